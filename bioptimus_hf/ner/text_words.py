"""Find the words of a text that annotation can label, so that heads are trained on the same words."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
from transformers import PretrainedConfig

from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.models import PUNCTUATION_IN_WORDS
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


_LONGEST = 100  # characters of a word that is put together: BERT doesn't read longer words, either
_AFTER_WORDS = ".,;:!?"  # end sentences and clauses, so they never belong to the word before them


@dataclass(frozen=True)
class PunctuationInWords:
    """Punctuation that is part of the words of a set of sentences, such as the hyphen of `IL-2` and the plus of `CD4+`.

    In some sets `IL-2` is one word, in others three. BERT splits words at punctuation, so annotation puts them together
    again. Only punctuation beside a letter or digit is, so that `(+)-catechin` is still several words.

    Attributes:
        inside: characters between letters or digits that belong to both.
        before: characters after a letter or digit, and not before another one, that belong to it.
        after: characters before a letter or digit, and not after another one, that belong to it.
    """

    inside: str = ""
    before: str = ""
    after: str = ""

    def record(self, configuration: PretrainedConfig) -> None:
        """Put it into the configuration of a head; without any, leave the key out."""
        vars(configuration).pop(PUNCTUATION_IN_WORDS, None)
        if self != PunctuationInWords():
            setattr(configuration, PUNCTUATION_IN_WORDS, asdict(self))

    @classmethod
    def of(cls, configuration: PretrainedConfig) -> PunctuationInWords:
        """Return what the configuration of a head says; none if it says nothing."""
        found = getattr(configuration, PUNCTUATION_IN_WORDS, None)
        values = found if isinstance(found, dict) else {}
        return cls(*(value if isinstance(value := values.get(of.name), str) else "" for of in fields(cls)))

    def first_words(self, text: str, starts: Array, ends: Array, sentences: Collection[int] = ()) -> Array:
        """Return which words of a text begin a word of the set (bool); the others belong to the word before them.

        Args:
            text: the text.
            starts: first character of each word.
            ends: the character after the last one of each word.
            sentences: first character of each sentence, across which no words belong together.
        """
        begin = np.ones(len(starts), dtype=bool)
        start = 0  # of the word of the set
        for word in np.flatnonzero(starts[1:] == ends[:-1]).tolist():
            if begin[word]:
                start = starts[word]
            place = int(starts[word + 1])
            joined = (
                self._holds(text, place, -1, sentences)
                or self._holds(text, place - 1, 1, sentences)
                # The apostrophe and the hyphen of 5'-end.
                or (self._holds(text, place - 1, -1, sentences) and self._holds(text, place, 1, sentences))
            )
            begin[word + 1] = not joined or place in sentences or ends[word + 1] - start > _LONGEST
        return begin

    def _holds(self, text: str, place: int, side: int, sentences: Collection[int]) -> bool:
        """Tell whether a character belongs to the letter or digit on one side of it."""
        left = "" if place in sentences else text[max(place - 1, 0) : place]
        right = "" if place + 1 in sentences else text[place + 1 : place + 2]
        near, far = (one.isalnum() for one in ((left, right) if side < 0 else (right, left)))
        return near and text[place] in (self.inside if far else self.before if side < 0 else self.after)


def find_punctuation_in_words(sentences: Iterable[Sequence[str]]) -> PunctuationInWords:
    """Find the punctuation that is part of words more often than it is apart from them.

    Args:
        sentences: words of each sentence.
    """
    inside, before, after = Counter[str](), Counter[str](), Counter[str]()
    for words in sentences:
        for last, word, following in zip(["", *words], words, [*words[1:], ""], strict=False):
            if len(word) == 1:  # apart from both its neighbours, wherever it is in the text
                left, right = last[-1:].isalnum(), following[:1].isalnum()
                inside[word] -= left and right
                before[word] -= left
                after[word] -= right
            if word.isalnum():
                continue
            for place, character in enumerate(word):
                left, right = (word[max(other, 0) : other + 1].isalnum() for other in (place - 1, place + 1))
                inside[character] += left and right
                before[character] += left and not right
                after[character] += right and not left
    for mark in _AFTER_WORDS:
        del before[mark]  # in a set of titles, `etc.` may be all that has one
    return PunctuationInWords(*("".join(sorted(filter(_is_punctuation, +found))) for found in (inside, before, after)))


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _is_dropped(character: str) -> bool:
    return character.isspace() or character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co")
