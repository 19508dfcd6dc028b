"""Find every occurrence of the tokens of interest in a batch of texts, with the tokenizer's own words and word pieces.

A single pass over the value buffer of an Arrow array (`kernels.scan`) uses tables of what characters become and of
which words contain which tokens. The tokenizer is asked about each character and each word once, when it first occurs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import PreTokenizedString, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.contexts import kernels
from bioptimus_hf.contexts.kernels import (
    NOTHING,
    PADDING,
    Bytes,
    CharacterTable,
    Hits,
    Integers,
    NewWords,
    Offsets,
    WordTable,
)
from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.vocabulary.tokenizer import MARK

_HITS_AT_ONCE = 1 << 14
_NEW_WORDS_AT_ONCE = 1 << 12  # words
# Marks with the combining classes 224 and 216, neither of which is stripped as an accent.
_LATE_MARK, _EARLY_MARK = "\u302e", "\U0001d165"


class Matches(NamedTuple):
    """Occurrences of tokens in a batch; those in the same text are adjacent and in its order. Shapes: (occurrences,).

    Attributes:
        row: index of the text in the batch.
        token: index of the token.
        start: first character of the token in the text.
        end: the character after the token.
    """

    row: Integers
    token: Integers
    start: Integers
    end: Integers


def word_rules(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the parts of a tokenizer that decide what a word is and how it is split, as JSON.

    Truncation and padding, which change with every call of a tokenizer, are left out. The same rules always give the
    same string, so it can be part of a fingerprint.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({key: whole[key] for key in ("version", "normalizer", "pre_tokenizer", "model")})


def utf8_buffers(texts: pa.Array) -> tuple[Bytes, Offsets]:
    """Return the UTF-8 of an array of strings and the offsets of its texts; a null becomes an empty text."""
    if not pa.types.is_string(texts.type):
        texts = texts.cast(pa.large_string())
    texts = texts.fill_null("") if texts.null_count else texts
    _, offsets, content = texts.buffers()
    if not len(texts) or not content:
        return np.zeros(1, dtype=np.uint8), np.zeros(len(texts) + 1, dtype=np.int64)
    every = np.frombuffer(offsets, dtype=np.int32 if pa.types.is_string(texts.type) else np.int64)
    used = every[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(content, dtype=np.uint8), used


class Matcher:
    """Find every occurrence of the tokens of interest.

    A word is what the tokenizer's normaliser and pre-tokenizer produce. A token is found as a whole word, and as one of
    the pieces that the tokenizer splits a word into. If a single character normalises to several and a piece ends among
    these, the span includes the whole character.

    Args:
        tokens: normalised tokens, `##` pieces with their mark.
        rules: the tokenizer, from `word_rules`.
    """

    def __init__(self, tokens: Sequence[str], rules: str) -> None:
        self._tokenizer = Tokenizer.from_str(rules)
        self._contained = _ContainedTokens(tokens, self._tokenizer)
        self._words = _Words(self._contained)
        self._characters = _Characters(self._tokenizer, isolated={token for token in tokens if len(token) == 1})
        self._hits = self._hits_buffer(_HITS_AT_ONCE)

    def match(self, texts: pa.Array) -> Matches:
        """Return the occurrences in an Arrow array of strings. A null counts as an empty text."""
        content, offsets = utf8_buffers(texts)
        parts = [Matches(*np.empty((4, 0), dtype=np.int32))]
        row = 0
        while row < len(texts):
            before = row
            row, reason, new, found = kernels.scan(
                content,
                offsets,
                row,
                self._contained.longest,
                self._characters.table,
                self._words.table,
                self._contained.any_word,
                self._words.new,
                self._hits,
            )
            self._words.resolve(new, self._hits.words[:found])
            if found:
                parts.append(self._words.expand(self._hits, found))
            if reason == kernels.NEW_CHARACTER:
                self._characters.learn(texts[row].as_py())
            elif reason == kernels.ODD_TEXT:
                parts.append(self._match_odd(texts[row].as_py(), row))
                row += 1
            elif reason == kernels.NO_ROOM and row == before and not new:  # a text with more hits than fit
                self._hits = self._hits_buffer(2 * len(self._hits.rows))
        return Matches(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _match_odd(self, text: str, row: int) -> Matches:
        """Return the occurrences in a text with characters whose normalisation depends on their neighbours."""
        words = PreTokenizedString(with_blanks(text))
        words.normalize(self._tokenizer.normalizer.normalize)
        self._tokenizer.pre_tokenizer.pre_tokenize(words)
        splits = [(word, span) for word, span, _ in words.get_splits("original", "char")]
        word, token, _, _ = self._contained.find([word for word, _ in splits])
        spans = np.array([span for _, span in splits], dtype=np.int32).reshape(-1, 2)[word]
        return Matches(np.full(len(word), row, dtype=np.int32), token, spans[:, 0], spans[:, 1])

    def _hits_buffer(self, number: int) -> Hits:
        rows, words, starts, maps = np.empty((4, number), dtype=np.int32)
        return Hits(rows, words, starts, maps, np.empty(number + self._contained.longest, dtype=np.int32))


class _Characters:
    """The table of what the tokenizer's normaliser and pre-tokenizer make of each character.

    Both look at each character on its own, with one exception: the canonical order of combining marks. A text with a
    mark that survives normalisation and may change places is odd, and must be normalised as a whole. So must a text
    that keeps a NUL, because NULs pad the last 8 bytes of a word when it is hashed.
    """

    def __init__(self, tokenizer: Tokenizer, isolated: set[str]) -> None:
        self._normalise = tokenizer.normalizer.normalize_str
        self._pre_tokenize = tokenizer.pre_tokenizer.pre_tokenize_str
        self._isolated = isolated
        self._bytes = np.full(256, kernels.SPECIAL, dtype=np.uint8)
        self._numbers = np.full(0x110000, -1, dtype=np.int32)
        self._content, self._ends = _Growing(np.empty(0, dtype=np.uint8)), _Growing(np.zeros(1, dtype=np.int64))
        self._odd = _Growing(np.empty(0, dtype=np.bool_))
        for code in range(128):
            content, odd = self._ask(chr(code))
            if len(content) == 1 and not odd:
                self._bytes[code] = content[0]

    @property
    def table(self) -> CharacterTable:
        """The table of the characters seen so far."""
        return CharacterTable(self._bytes, self._numbers, self._content.array, self._ends.array, self._odd.array)

    def learn(self, text: str) -> None:
        """Add the characters of a text to the table."""
        for character in sorted(set(text)):
            if self._numbers[ord(character)] < 0:
                content, odd = self._ask(character)
                self._numbers[ord(character)] = len(self._odd.array)
                self._content.extend(np.frombuffer(content, dtype=np.uint8))
                self._ends.extend(self._ends.array[-1:] + len(content))
                self._odd.extend(np.array([odd]))

    def _ask(self, character: str) -> tuple[bytes, bool]:
        """Return what a character becomes, words separated by spaces, and whether that depends on its neighbours."""
        character = with_blanks(character)
        normalised = self._normalise(character)
        content = "".join(map(self._separated, normalised)).encode()
        odd = (
            "\0" in normalised
            or self._normalise(_LATE_MARK + character) != self._normalise(_LATE_MARK) + normalised
            or self._normalise(character + _EARLY_MARK) != normalised + self._normalise(_EARLY_MARK)
        )
        return content, odd

    def _separated(self, normalised: str) -> str:
        words = len(self._pre_tokenize(f"a{normalised}a"))
        if words == 1:
            return normalised
        return f" {normalised} " if words == 3 and normalised in self._isolated else " "


class _ContainedTokens:
    """Determine which tokens of interest a word contains: the word itself, and its pieces.

    Attributes:
        words: the tokens that can be whole words.
        any_word: whether any word may contain a token, because some tokens are in the tokenizer's vocabulary.
        longest: length in bytes of the longest word that can contain a token.
    """

    def __init__(self, tokens: Sequence[str], tokenizer: Tokenizer) -> None:
        self._tokens = {token: number for number, token in enumerate(tokens)}
        self.words = [token for token in tokens if not _is_piece(token)]
        self.longest = max((len(word.encode()) for word in self.words), default=1)
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        self.any_word = any(token in vocabulary for token in tokens)
        if not self.any_word:
            return
        self.longest = max(self.longest, 4 * tokenizer.model.max_input_chars_per_word)
        self._splitter = Tokenizer(tokenizer.model)  # for normalised words, separated by spaces
        self._splitter.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
        self._pieces = np.full(max(vocabulary.values()) + 1, -1, dtype=np.int64)  # token id to token of interest
        self._lengths = np.zeros(len(self._pieces), dtype=np.int64)  # bytes
        for piece, number in vocabulary.items():
            self._pieces[number] = self._tokens.get(piece, -1)
            self._lengths[number] = len((piece.removeprefix(MARK) if _is_piece(piece) else piece).encode())
        self._pieces[vocabulary[tokenizer.model.unk_token]] = -1

    def find(self, words: Sequence[str]) -> tuple[Integers, Integers, Integers, Integers]:
        """Return all tokens in the given words, sorted by word and place.

        Returns:
            Index of the word, index of the token, and place and length of the token in the word, in bytes; each of
            shape (tokens found,).
        """
        whole = np.array([-1 if _is_piece(word) else self._tokens.get(word, -1) for word in words], dtype=np.int64)
        word = np.flatnonzero(whole >= 0)
        sizes = np.array([len(words[number].encode()) for number in word.tolist()], dtype=np.int64)
        found = [(word, whole[word], np.zeros_like(word), sizes)]
        if self.any_word and words:
            encoding = self._splitter.encode(" ".join(words), add_special_tokens=False)
            pieces, word = np.array(encoding.ids, dtype=np.int64), np.array(encoding.word_ids, dtype=np.int64)
            lengths = self._lengths[pieces]
            before = np.cumsum(lengths) - lengths
            place = before - before[np.searchsorted(word, word)]
            alone = (np.diff(word, prepend=-1) != 0) & (np.diff(word, append=len(words)) != 0)
            inside = np.flatnonzero((self._pieces[pieces] >= 0) & ~alone)
            found.append((word[inside], self._pieces[pieces[inside]], place[inside], lengths[inside]))
        columns = [np.concatenate(column).astype(np.int32) for column in zip(*found, strict=True)]
        order = np.lexsort((columns[2], columns[0]))
        return columns[0][order], columns[1][order], columns[2][order], columns[3][order]


class _Words:
    """The table of words and the tokens that they contain.

    If all tokens are whole words, the table contains just these. Otherwise a scan adds every word that it doesn't know;
    after the scan, the tokenizer splits the new words, and those that contain tokens get a number.

    Attributes:
        new: buffers for the new words of a scan.
    """

    def __init__(self, contained: _ContainedTokens) -> None:
        self._contained = contained
        self._slots = np.zeros((4, 2), dtype=np.int64)
        self._bloom = np.full(1 << 16, 255 if contained.any_word else 0, dtype=np.uint8)
        self._size = 0
        self._content, self._ends = _Growing(np.empty(0, dtype=np.uint8)), _Growing(np.zeros(1, dtype=np.int64))
        # Index of the first token of each numbered word in the three arrays below.
        self._firsts = _Growing(np.zeros(1, dtype=np.int64))
        self._tokens, self._places, self._lengths = (_Growing(np.empty(0, dtype=np.int32)) for _ in range(3))
        self.new = NewWords(
            content=np.empty(_NEW_WORDS_AT_ONCE * 16 + contained.longest + PADDING, dtype=np.uint8),
            ends=np.zeros(_NEW_WORDS_AT_ONCE + 1, dtype=np.int64),
            slots=np.empty(_NEW_WORDS_AT_ONCE, dtype=np.int64),
        )
        words = [word.encode() for word in contained.words if "\0" not in word]
        self._reserve(len(words))
        self._insert(words, self._numbered(words))

    @property
    def table(self) -> WordTable:
        """The table, with enough empty slots for the new words of a scan."""
        if self._contained.any_word:
            self._reserve(_NEW_WORDS_AT_ONCE)
        return WordTable(self._bloom, self._slots, self._content.array, self._ends.array)

    def resolve(self, new: int, hits: Integers) -> None:
        """Number the new words of a scan that contain tokens, and replace the preliminary numbers in its hits."""
        if not new:
            return
        ends = self.new.ends[: new + 1].tolist()
        content = self.new.content[: ends[-1]].tobytes()
        numbers = self._numbered([content[start:end] for start, end in pairwise(ends)])
        self._slots[self.new.slots[:new], 1] = numbers
        self._size += new
        preliminary = np.flatnonzero(hits < NOTHING)
        hits[preliminary] = numbers[NOTHING - 1 - hits[preliminary]]

    def expand(self, hits: Hits, found: int) -> Matches:
        """Return the tokens in the words that a scan found."""
        words = hits.words[:found]
        words = words[words != NOTHING]
        firsts = self._firsts.array
        matches = Matches(*np.empty((4, int((firsts[words + 1] - firsts[words]).sum())), dtype=np.int32))
        kernels.expand(hits, found, firsts, self._tokens.array, self._places.array, self._lengths.array, *matches)
        return matches

    def _numbered(self, words: list[bytes]) -> Integers:
        """Number the words that contain tokens; return the numbers of all words, NOTHING for the others."""
        word, token, place, length = self._contained.find([word.decode() for word in words])
        counts = np.bincount(word, minlength=len(words))
        containing = np.flatnonzero(counts)
        numbers = np.full(len(words), NOTHING, dtype=np.int32)
        numbers[containing] = len(self._firsts.array) - 1 + np.arange(len(containing))
        content, ends = _joined([words[number] for number in containing])
        self._ends.extend(self._ends.array[-1] + ends[1:])
        self._content.extend(content[: ends[-1]])
        self._firsts.extend(self._firsts.array[-1] + np.cumsum(counts[containing]))
        for array, values in ((self._tokens, token), (self._places, place), (self._lengths, length)):
            array.extend(values)
        return numbers

    def _reserve(self, words: int) -> None:
        """Grow the table so that it stays at most half full with so many more words, and lookups stay fast."""
        if 2 * (self._size + words) > len(self._slots):
            entries = self._slots[self._slots[:, 0] != 0]
            self._slots = np.zeros((1 << (2 * (self._size + words)).bit_length(), 2), dtype=np.int64)
            kernels.insert(self._slots, entries)

    def _insert(self, words: list[bytes], numbers: Integers) -> None:
        keys = kernels.keys_of(*_joined(words))
        kernels.insert(self._slots, np.stack([keys.view(np.int64), numbers], axis=1))
        kernels.add_to_bloom(self._bloom, keys)
        self._size += len(words)


class _Growing:
    """An array that grows at its end. It is padded, so 8 bytes can be read at any place."""

    def __init__(self, first: npt.NDArray[Any]) -> None:
        self._room = self.array = first[:0]
        self.extend(first)

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Append values."""
        size = len(self.array) + len(values)
        if size + PADDING > len(self._room):
            room = np.zeros(2 * (size + PADDING), dtype=self._room.dtype)
            room[: len(self.array)] = self.array
            self._room = room
        self._room[len(self.array) : size] = values
        self.array = self._room[:size]


def _joined(words: Sequence[bytes]) -> tuple[Bytes, Offsets]:
    """Concatenate words; return them, padded, and the end of each word, after a 0."""
    ends = np.array([0, *accumulate(map(len, words))], dtype=np.int64)
    return np.frombuffer(b"".join(words) + bytes(PADDING), dtype=np.uint8), ends


def _is_piece(token: str) -> bool:
    return token.startswith(MARK) and len(token) > len(MARK)
