"""Where tokens of interest stand in a batch of texts, by a tokenizer's own words and word pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import PreTokenizedString, Tokenizer
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.vocabulary import MARK

Integers = npt.NDArray[np.int64]


class Matches(NamedTuple):
    """Occurrences of tokens in a batch, in the order of the texts; all four of shape (occurrences,).

    Attributes:
        row: which text of the batch.
        token: which token of interest.
        start: first character of it in the text.
        end: the character after its last.
    """

    row: Integers
    token: Integers
    start: Integers
    end: Integers


def word_rules(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return all of a tokenizer that decides what a word is and how it is cut, as JSON.

    Truncation and padding, which change with every call of a tokenizer, are left out: the same rules always give the
    same text, so that it can stand in a fingerprint.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({key: whole[key] for key in ("version", "normalizer", "pre_tokenizer", "model")})


class Matcher:
    """Finds every occurrence of the tokens of interest.

    A word is what the tokenizer's normaliser and pre-tokenizer say. A token is found where it is a whole word, and
    where it is one of the pieces that the tokenizer cuts a word into.

    Args:
        tokens: normalised tokens, a `##` piece with its mark.
        rules: the tokenizer, from `word_rules`.
    """

    def __init__(self, tokens: Sequence[str], rules: str) -> None:
        self._tokens = {token: number for number, token in enumerate(tokens)}
        self._rules = rules
        self._found_in_word: dict[str, list[tuple[int, int, int]]] = {}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self._rules)

    def match(self, texts: pa.Array) -> Matches:
        """Return the occurrences in an Arrow array of strings; a null is an empty text."""
        found = [
            (row, token, start, end)
            for row, text in enumerate(texts.to_pylist())
            for token, start, end in self._match_text(text or "")
        ]
        columns = np.array(found, dtype=np.int64).reshape(-1, 4).T
        return Matches(*columns)

    def _match_text(self, text: str) -> Iterator[tuple[int, int, int]]:
        words = PreTokenizedString(text)
        words.normalize(self._tokenizer.normalizer.normalize)
        self._tokenizer.pre_tokenizer.pre_tokenize(words)
        for word, (start, end), _ in words.get_splits("original", "char"):
            for token, first, last in self._match_word(word):
                left, right = self._span(word, text[start:end], first, last)
                yield token, start + left, start + right

    def _match_word(self, word: str) -> list[tuple[int, int, int]]:
        """Return the tokens in a normalised word, each with its characters in it."""
        found = self._found_in_word.get(word)
        if found is None:
            found = [(self._tokens[word], 0, len(word))] if word in self._tokens else []
            place = 0
            for piece in self._tokenizer.model.tokenize(word):
                length = len(piece.value.removeprefix(MARK)) if place else len(piece.value)
                if piece.value != word and piece.value in self._tokens:
                    found.append((self._tokens[piece.value], place, place + length))
                place += length
            self._found_in_word[word] = found
        return found

    def _span(self, word: str, original: str, first: int, last: int) -> tuple[int, int]:
        """Return where characters `first` to `last` of a normalised word come from in its original."""
        if first == 0 and last == len(word):
            return 0, len(original)
        normalised = [self._tokenizer.normalizer.normalize_str(character) for character in original]
        if "".join(normalised) != word:  # the normaliser changed the order of combining marks
            return 0, len(original)
        sources = [place for place, characters in enumerate(normalised) for _ in characters]
        return sources[first], sources[last - 1] + 1
