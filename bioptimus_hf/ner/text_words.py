"""Find the words of a text that annotation can label, so that heads are trained on the same words."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.ner.word_pieces import words_of

Array = npt.NDArray[Any]
# A flag is two regional indicators. At each one `\X` counts those before it: a long row of flags would take minutes.
_GRAPHEME = regex.compile(r"\p{RI}{2}(?=\p{RI})|\X")
_NOT_ASCII = regex.compile(r"[^\x00-\x7f]+(?:[\x00-\x7f][^\x00-\x7f]+)*")  # no grapheme reaches beyond one's neighbours


def text_words(text: str) -> list[tuple[int, int]]:
    """Return the start and the end of each word of a text as `TextTokenizer` finds them with BERT's tokenizer.

    Characters that this tokenizer drops, such as control characters, zero-width spaces and accents without a letter,
    neither begin nor end a word, and a word of nothing else is none.
    """
    spans = [stripped(text, start, end) for start, end in words_of(with_blanks(text))]
    starts, ends = np.array([span for span in spans if span[0] < span[1]], dtype=np.int64).reshape(-1, 2).T
    keep_graphemes(text, starts, ends)
    return [(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True) if start < end]


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a place in a text without the white space and the characters that BERT drops at its edges."""
    while start < end and (_is_dropped(text[start]) or unicodedata.category(text[start]) == "Mn"):
        start += 1
    while start < end and _is_dropped(text[end - 1]):
        end -= 1
    return start, end


def keep_graphemes(text: str, starts: Array, ends: Array) -> None:
    """Move starts and ends of words that lie within a grapheme to the end of it, in place.

    A grapheme is what readers see as one character: a letter with its accents, vowel signs and joiners, or an emoji
    with its modifiers. Tokenizers drop some of its parts, and split others off. A word of nothing else becomes empty.
    """
    if text.isascii():
        return
    grapheme_end: dict[int, int] = {}
    for run in _NOT_ASCII.finditer(text):
        for found in _GRAPHEME.finditer(text, max(run.start() - 1, 0), run.end() + 1):
            grapheme_end |= dict.fromkeys(range(found.start() + 1, found.end()), found.end())
    if grapheme_end:
        for places in (starts, ends):
            places[:] = [grapheme_end.get(place, place) for place in places.tolist()]


def _is_dropped(character: str) -> bool:
    return character.isspace() or character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co")
