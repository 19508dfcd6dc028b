"""Texts that are longer than a model reads, cut into windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import MAX_LENGTH


@dataclass(frozen=True)
class Window:
    """A stretch of a sentence that fits into the model.

    Attributes:
        input_ids: pieces, between [CLS] and [SEP].
        heads: where the first pieces of the window's own words stand in `input_ids`. Words at the edges that are there
            as context only are another window's own.
        first_word: place in the sentence of the first own word; the others follow it.
    """

    input_ids: list[int]
    heads: list[int]
    first_word: int


def sentence_windows(
    sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, *, max_length: int = MAX_LENGTH
) -> Iterator[list[Window]]:
    """Cut sentences into windows of at most `max_length` pieces; each word is the own word of one window.

    A sentence that fits is one window. Of a word that does not fit by itself, the pieces that do are kept.
    """
    room = max_length - 2
    if room < 1:
        raise InputError(f"a window of {max_length} pieces has no room for a word beside [CLS] and [SEP]")
    begin, end = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    for pieces in _pieces(sentences, tokenizer):
        pieces = [word[:room] for word in pieces]
        its = []
        for left, right, own_left, own_right in window_spans([len(word) for word in pieces], room, overlap=room // 2):
            heads, ids = [], list(begin)
            for word in range(left, right):
                if own_left <= word < own_right:
                    heads.append(len(ids))
                ids += pieces[word]
            its.append(Window(ids + end, heads, own_left))
        yield its


def window_spans(sizes: Sequence[int], room: int, *, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield windows over units of these sizes, as unit numbers: begin and end, begin and end of the own units.

    Neighbours overlap as far as is allowed, and the border between their own units runs through the middle.

    Args:
        sizes: pieces of each unit (word, sentence), none more than `room`.
        room: pieces of a window.
        overlap: pieces that two neighbours share at most.
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
        # The word that did not fit must find room in the next window.
        while shared + sizes[right] > room:
            shared -= sizes[following]
            following += 1
        own_right = (following + right) // 2
        yield left, right, own_left, own_right
        left, own_left = following, own_right


def _pieces(sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[list[int]]]:
    """Yield the ids of the pieces of each word of each sentence; a word that the tokenizer drops becomes [UNK]."""
    for words in sentences:
        encoded = tokenizer(
            list(words), is_split_into_words=True, add_special_tokens=False, truncation=False, verbose=False
        )
        pieces: list[list[int]] = [[] for _ in words]
        for number, word in zip(encoded["input_ids"], encoded.word_ids(), strict=True):
            pieces[word].append(number)
        yield [word or [tokenizer.unk_token_id] for word in pieces]
