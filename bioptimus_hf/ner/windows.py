"""Split sentences that are longer than a model's input into overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import MAX_LENGTH
from bioptimus_hf.ner.word_pieces import WordEncoder


@dataclass(frozen=True)
class Window:
    """A part of a sentence that fits into the model.

    Every word of a sentence is labelled in exactly one window. Near the edges, windows also hold words that are
    labelled in a neighbouring window and serve as context.

    Attributes:
        input_ids: ids of word pieces, between those that begin and end a text ([CLS] and [SEP] in BERT).
        first_pieces: positions in `input_ids` of the first piece of each word that is labelled in this window.
        first_word: position in the sentence of the first of these words, which are consecutive.
    """

    input_ids: list[int]
    first_pieces: list[int]
    first_word: int


def sentence_windows(
    sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, *, max_length: int = MAX_LENGTH
) -> Iterator[list[Window]]:
    """Yield the windows of each sentence.

    A sentence that fits is one window. A word that doesn't fit into a window is truncated.

    Args:
        sentences: words of each sentence.
        max_length: maximum number of word pieces in a window, including those that begin and end it.

    Raises:
        InputError: `max_length` leaves no room for a word.
    """
    encoder = WordEncoder(tokenizer)
    room = max_length - len(encoder.begin) - len(encoder.end)
    if room < 1:
        around = " and ".join(tokenizer.convert_ids_to_tokens([*encoder.begin, *encoder.end]))
        raise InputError(f"a window of {max_length} word pieces has no room for a word besides {around}")
    for pieces in encoder.encode_words(sentences):
        pieces = [word[:room] for word in pieces]
        windows = []
        sizes = [len(word) for word in pieces]
        for left, right, own_left, own_right in window_spans(sizes, room, overlap=room // 2):
            first_pieces, ids = [], list(encoder.begin)
            for word in range(left, right):
                if own_left <= word < own_right:
                    first_pieces.append(len(ids))
                ids += pieces[word]
            windows.append(Window(ids + encoder.end, first_pieces, own_left))
        yield windows


def window_spans(sizes: Sequence[int], room: int, *, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield overlapping windows over a sequence of units (words or sentences).

    Neighbouring windows overlap as much as `overlap` allows. Each unit belongs to one window: in an overlap, the units
    of the first half belong to the window on the left, the others to the window on the right.

    Args:
        sizes: number of word pieces of each unit, at most `room`.
        room: maximum number of word pieces in a window.
        overlap: maximum number of word pieces that two neighbours share.

    Yields:
        Four unit numbers: begin and end of the window, begin and end of the units that belong to it (ends exclusive).
    """
    left = right = own_left = 0
    while right < len(sizes):
        used = sum(sizes[left:right])
        while right < len(sizes) and used + sizes[right] <= room:
            used += sizes[right]
            right += 1
        if right == len(sizes):
            yield left, right, own_left, right
            return
        following, shared = right, 0
        while following > left + 1 and shared + sizes[following - 1] <= overlap:
            following -= 1
            shared += sizes[following]
        # The next window must have room for the unit that did not fit.
        while shared + sizes[right] > room:
            shared -= sizes[following]
            following += 1
        own_right = (following + right) // 2
        yield left, right, own_left, own_right
        left, own_left = following, own_right
