"""Divide sentences or documents into windows that fit a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import DOCUMENT_WINDOW, MAX_LENGTH, SENTENCE_WINDOW
from bioptimus_hf.ner.word_pieces import WordEncoder

Array = npt.NDArray[Any]
Item = TypeVar("Item")
OVERLAP = 0.125
"""Largest share that windows of several labelled sentences have in common, as context at the edges."""
OVERLAP_IN_SENTENCE = 0.5
"""Share that windows of the same long sentence have in common."""


@dataclass(frozen=True)
class Window:
    """A part of a sentence or document that fits into the model.

    Every word is labelled in exactly one window. A window also holds words that are labelled in another one and serve
    as context.

    Attributes:
        input_ids: ids of word pieces, between those that begin and end a text ([CLS] and [SEP] in BERT).
        first_pieces: positions in `input_ids` of the first piece of each word that is labelled in this window.
        first_word: position in the sentence or document of the first of these words, which are consecutive.
    """

    input_ids: list[int]
    first_pieces: list[int]
    first_word: int


def document_window(configuration: Any) -> int | None:
    """Return the word pieces in a window of a head that is trained with document context; None for any other head.

    Args:
        configuration: a `PretrainedConfig`.
    """
    return _size(configuration, DOCUMENT_WINDOW)


def sentence_window(configuration: Any) -> int | None:
    """Return the word pieces in a window of a head that is trained on single sentences; None for any other head.

    Args:
        configuration: a `PretrainedConfig`.
    """
    return _size(configuration, SENTENCE_WINDOW)


def _size(configuration: Any, key: str) -> int | None:
    found = getattr(configuration, key, None)
    return found if type(found) is int and found > 0 else None  # another program may use this key for something else


def sentence_windows(
    sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, *, max_length: int = MAX_LENGTH
) -> Iterator[list[Window]]:
    """Yield the windows of each sentence.

    A sentence that fits is one window; others overlap by half. A word that doesn't fit into a window is truncated.

    Args:
        sentences: words of each sentence.
        max_length: maximum number of word pieces in a window, including those that begin and end it.

    Raises:
        InputError: `max_length` leaves no room for a word.
    """
    return _windows([[words] for words in sentences], tokenizer, max_length)


def document_windows(
    documents: Sequence[Sequence[Sequence[str]]], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> Iterator[list[Window]]:
    """Yield the windows of each document: one for each sentence, with its neighbours as context.

    The neighbours are whole sentences on both sides, as many as fit. They are labelled in windows of their own. For a
    sentence that doesn't fit, see `sentence_windows`.

    Args:
        documents: words of each sentence of each document. `Window.first_word` counts the words of the document.
        max_length: maximum number of word pieces in a window, including those that begin and end it.

    Raises:
        InputError: `max_length` leaves no room for a word.
    """
    return _windows(documents, tokenizer, max_length)


def sentences_by_document(sentences: Sequence[Item], documents: Sequence[Any]) -> list[list[Item]]:
    """Group items of consecutive sentences from the same document.

    Raises:
        InputError: there aren't as many documents as sentences.
    """
    if len(documents) != len(sentences):
        raise InputError(f"{len(documents)} for {len(sentences)} sentences", argument="documents")
    pairs = groupby(zip(sentences, documents, strict=True), key=itemgetter(1))
    return [[sentence for sentence, _ in of_document] for _, of_document in pairs]


def _windows(
    documents: Sequence[Sequence[Sequence[str]]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[list[Window]]:
    encoder = WordEncoder(tokenizer)
    room = max_length - len(encoder.begin) - len(encoder.end)
    if room < 1:
        around = " and ".join(tokenizer.convert_ids_to_tokens([*encoder.begin, *encoder.end]))
        raise InputError(f"a window of {max_length} word pieces has no room for a word besides {around}")
    encoded = encoder.encode_words([words for document in documents for words in document])
    for document in documents:
        of_sentences = list(islice(encoded, len(document)))
        pieces = [word[:room] for of_sentence in of_sentences for word in of_sentence]
        sentences = np.repeat(np.arange(len(document)), [len(of_sentence) for of_sentence in of_sentences])
        sizes = np.array([len(word) for word in pieces], dtype=np.int64)
        windows = []
        for left, right, own_left, own_right in spans_of_sentences(sizes, sentences, room, neighbours=True):
            first_pieces, ids = [], list(encoder.begin)
            for word in range(left, right):
                if own_left <= word < own_right:
                    first_pieces.append(len(ids))
                ids += pieces[word]
            windows.append(Window(ids + encoder.end, first_pieces, own_left))
        yield windows


def spans_of_sentences(
    sizes: Array, sentences: Array, room: int, *, neighbours: bool
) -> Iterator[tuple[int, int, int, int]]:
    """Yield a window for each sentence, or several that overlap by half for one that doesn't fit.

    Args:
        sizes: number of word pieces of each word, at most `room`.
        sentences: number of the sentence of each word, ascending.
        room: maximum number of word pieces in a window.
        neighbours: whether a window also holds neighbouring sentences on both sides, as many as fit.

    Yields:
        Four word numbers: begin and end of the window, begin and end of the words that it labels (ends exclusive).
    """
    starts = first_words(sentences)
    bounds = [*starts, len(sizes)]
    of_sentences = np.add.reduceat(sizes, starts).tolist() if starts else []
    for number, (start, end) in enumerate(pairwise(bounds)):
        if of_sentences[number] > room:
            for span in window_spans(sizes[start:end].tolist(), room, overlap=int(room * OVERLAP_IN_SENTENCE)):
                left, right, own_left, own_right = (start + word for word in span)
                yield left, right, own_left, own_right
        else:
            left, right = _neighbours(of_sentences, number, room) if neighbours else (number, number + 1)
            yield bounds[left], bounds[right], start, end


def first_words(sentences: Array) -> list[int]:
    """Return the first word of each sentence, given the sentence of each word."""
    found: list[int] = np.flatnonzero(np.diff(sentences, prepend=-1)).tolist()
    return found


def _neighbours(sizes: Sequence[int], number: int, room: int) -> tuple[int, int]:
    """Return the range of sentences (end exclusive) that share the window of a sentence.

    Sentences are added one by one on the side with less context, until the next one fits on neither side.
    """
    left, right = number, number + 1
    before = after = 0
    while True:
        free = room - sizes[number] - before - after
        on_left, on_right = left > 0 and sizes[left - 1] <= free, right < len(sizes) and sizes[right] <= free
        if on_left and (before <= after or not on_right):
            left -= 1
            before += sizes[left]
        elif on_right:
            after += sizes[right]
            right += 1
        else:
            return left, right


def spans_of_text(sizes: Array, sentences: Array, room: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield windows of as many sentences as fit, all of which are labelled, except some at the edges.

    Windows begin and end between sentences, where these fit. Neighbouring ones have up to an eighth in common.

    Args:
        sizes: number of word pieces of each word, at most `room`.
        sentences: number of the sentence of each word, ascending from 0.
        room: maximum number of word pieces in a window.

    Yields:
        Four word numbers, as `spans_of_sentences` does.
    """
    if not len(sizes):
        return
    too_long = np.bincount(sentences, weights=sizes) > room
    units = np.flatnonzero(np.diff(sentences, prepend=-1) | too_long[sentences])  # first word of each unit
    bounds = [*units.tolist(), len(sizes)]
    unit_sizes = np.add.reduceat(sizes, units).tolist()
    for span in window_spans(unit_sizes, room, overlap=int(room * OVERLAP)):
        left, right, own_left, own_right = (bounds[unit] for unit in span)
        yield left, right, own_left, own_right


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
