"""Where tokens of interest stand in a batch of texts, by a tokenizer's own words and word pieces.

One pass of numpy over the value buffer of an Arrow array, without a Python object a word: letters are normalised in
place, words are hashed as 64-bit lanes and looked up in one table. What the tokenizer makes of a character or a word it
is asked once, and the answer is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import PreTokenizedString, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.vocabulary import MARK

Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

_BLOCK = 1 << 20  # bytes of text at once: what a pass writes, the next still finds in the processor's cache
_LANE = 8  # bytes
_SPACE = 32
_VANISHING = 1  # stands for ASCII characters that do not normalise to one ASCII character
_NUL = b"\xff"  # stands for a NUL character, which a few normalisers keep: NUL itself fills up the lanes
_MASKS = np.array([2 ** (8 * length) - 1 for length in range(_LANE + 1)], dtype=np.uint64)
_LATE_MARK, _EARLY_MARK = "\u302e", "\U0001d165"  # of combining classes 224 and 216; neither is stripped as an accent


class Matches(NamedTuple):
    """Occurrences of tokens in a batch, those of one text in its order; all four of shape (occurrences,).

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


def utf8_buffers(texts: pa.Array) -> tuple[memoryview, Integers]:
    """Return the UTF-8 of an array of strings and the offsets of the texts in it; a null is empty."""
    if not pa.types.is_string(texts.type):
        texts = texts.cast(pa.large_string())
    texts = texts.fill_null("") if texts.null_count else texts
    _, offsets, content = texts.buffers()
    width = np.int32 if pa.types.is_string(texts.type) else np.int64
    if not len(texts):
        return memoryview(b""), np.zeros(1, dtype=np.int64)
    every = np.frombuffer(offsets, dtype=width)
    return memoryview(content or b""), every[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)


class Matcher:
    """Finds every occurrence of the tokens of interest.

    A word is what the tokenizer's normaliser and pre-tokenizer say. A token is found where it is a whole word, and
    where it is one of the pieces that the tokenizer cuts a word into. A piece that ends inside what one character
    normalises to is given that whole character.

    Args:
        tokens: normalised tokens, a `##` piece with its mark.
        rules: the tokenizer, from `word_rules`.
    """

    def __init__(self, tokens: Sequence[str], rules: str) -> None:
        self._tokenizer = Tokenizer.from_str(rules)
        self._words = _Words(tokens, self._tokenizer)
        self._characters = _Characters(self._tokenizer, isolated={token for token in tokens if len(token) == 1})

    def match(self, texts: pa.Array) -> Matches:
        """Return the occurrences in an Arrow array of strings; a null is an empty text."""
        content, offsets = utf8_buffers(texts)
        found = [Matches(*np.empty((4, 0), dtype=np.int64))]
        first = 0
        while first < len(texts):
            last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1)
            block = bytes(content[offsets[first] : offsets[last]])
            for part in self._match_block(block, offsets[first : last + 1] - offsets[first]):
                found.append(part._replace(row=part.row + first))
            first = last
        return Matches(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _match_block(self, block: bytes, offsets: Integers) -> Iterator[Matches]:
        """Yield the occurrences in the plain ASCII texts of a block, then those in the others."""
        text = _padded(np.frombuffer(block.translate(self._characters.ascii), dtype=np.uint8))
        special = np.flatnonzero((text[: len(block)] - np.uint8(_SPACE)) >= 128 - _SPACE)
        others = np.flatnonzero(np.diff(np.searchsorted(special, offsets)))
        for row in others:
            text[offsets[row] : offsets[row + 1]] = _SPACE
        yield self._match_words(text, offsets)
        if not len(others):
            return
        contents = [block[offsets[row] : offsets[row + 1]] for row in others]
        lengths = np.array([len(content) for content in contents], dtype=np.int64)
        normalised = self._characters.normalise(b"".join(contents), np.append(0, np.cumsum(lengths)))
        matches = normalised.to_characters(self._match_words(normalised.text, normalised.offsets))
        odd = np.flatnonzero(normalised.odd)
        if len(odd):
            keep = ~normalised.odd[matches.row]
            matches = Matches(*(column[keep] for column in matches))
            yield from (self._match_odd(contents[row].decode(), int(others[row])) for row in odd)
        yield matches._replace(row=others[matches.row])

    def _match_words(self, text: Bytes, offsets: Integers) -> Matches:
        """Return the occurrences in normalised texts, in bytes from the start of each."""
        start, end = _word_edges(text, offsets, self._characters.isolated_ascii)
        word, token, place, length = self._words.find(text, start, end)
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(np.searchsorted(start[word], offsets)))
        left = start[word] + place - offsets[row]
        return Matches(row, token, left, left + length)

    def _match_odd(self, text: str, row: int) -> Matches:
        """Return the occurrences in a text in which normalisation changes the order of combining marks."""
        words = PreTokenizedString(text)
        words.normalize(self._tokenizer.normalizer.normalize)
        self._tokenizer.pre_tokenizer.pre_tokenize(words)
        splits = [(_encode(word), span) for word, span, _ in words.get_splits("original", "char")]
        joined = _padded(np.frombuffer(b" ".join(word for word, _ in splits), dtype=np.uint8))
        lengths = np.array([len(word) for word, _ in splits], dtype=np.int64)
        end = np.cumsum(lengths + 1) - 1
        word, token, _, _ = self._words.find(joined, end - lengths, end)
        spans = np.array([span for _, span in splits], dtype=np.int64).reshape(-1, 2)[word]
        return Matches(np.full(len(word), row), token, spans[:, 0], spans[:, 1])


class _Normalised(NamedTuple):
    """Normalised texts: words separated by spaces, in UTF-8."""

    text: Bytes  # padded
    offsets: Integers  # of each text in it
    odd: npt.NDArray[np.bool_]  # texts that cannot be normalised character by character
    places: Integers  # in `text`, of the characters that are not plain ASCII, and 0 before them
    lengths: Integers  # of what each of them has become, in bytes
    characters: Integers  # which characters of the originals they are
    originals: Integers  # of each text, its first character in the originals

    def to_characters(self, matches: Matches) -> Matches:
        """Turn bytes of the normalised texts into characters of the originals."""
        base, before = self.offsets[matches.row], self.originals[matches.row]
        first, last = self._character(base + matches.start), self._character(base + matches.end - 1)
        return matches._replace(start=first - before, end=last + 1 - before)

    def _character(self, place: Integers) -> Integers:
        special = np.searchsorted(self.places, place, side="right") - 1
        after = place - self.places[special]  # ASCII follows it, a character a byte
        character: Integers = self.characters[special] + np.maximum(after - self.lengths[special] + 1, 0)
        return character


class _Characters:
    """What the tokenizer's normaliser and pre-tokenizer make of each character, asked once a character.

    Both look at one character at a time, but for one thing: canonical order. A text with a mark that survives
    normalisation and may have to change places is `odd`, and has to be normalised as a whole.

    Attributes:
        ascii: table for `bytes.translate`. Letters become their lower case where the normaliser says so, what is
            between words becomes a space, and so does punctuation that nobody looks for.
        isolated_ascii: ASCII punctuation that is looked for.
    """

    def __init__(self, tokenizer: Tokenizer, isolated: set[str]) -> None:
        self._normalise = tokenizer.normalizer.normalize_str
        self._cut = tokenizer.pre_tokenizer.pre_tokenize_str
        self._isolated = isolated
        self._numbers = np.full(0x110000, -1, dtype=np.int32)  # of each code point seen, into the following
        self._lengths = np.empty(0, dtype=np.int64)
        self._contents = np.empty((0, 1), dtype=np.uint8)
        self._odd = np.empty(0, dtype=np.bool_)
        became = {code: self._ask(chr(code)) for code in range(128)}
        self.ascii = bytes(
            became[code][0][0]
            if code < 128 and len(became[code][0]) == 1 and not became[code][1]
            else _VANISHING
            if code < 128
            else code
            for code in range(256)
        )
        self.isolated_ascii = bytes(
            code for code in range(33, 127) if chr(code) in isolated and len(self._cut("a" + chr(code))) == 2
        )

    def normalise(self, texts: bytes, offsets: Integers) -> _Normalised:
        """Normalise texts that hold other than plain ASCII characters."""
        original = np.frombuffer(texts, dtype=np.uint8)
        text = np.frombuffer(texts.translate(self.ascii), dtype=np.uint8)
        plain = (original < 128) & (text != _VANISHING)
        special = np.flatnonzero((original >= 0xC0) | (text == _VANISHING))
        code_points, sizes = _code_points(original, special)
        number = self._number(code_points)
        lengths = self._lengths[number]
        growth = np.append(0, np.cumsum(lengths - sizes))  # of the text up to each special character
        place = special + growth[:-1]
        normalised = np.full(len(text) + growth[-1] + _LANE, _SPACE, dtype=np.uint8)
        filled = np.zeros(len(normalised), dtype=np.bool_)
        filled[_ranges(place, lengths)] = True
        filled[len(normalised) - _LANE :] = True
        normalised[~filled] = text[plain]
        for byte in range(self._contents.shape[1]):
            held = np.flatnonzero(lengths > byte)
            normalised[place[held] + byte] = self._contents[number[held], byte]
        row_of_special = np.searchsorted(offsets, special, side="right") - 1
        odd = np.zeros(len(offsets) - 1, dtype=np.bool_)
        odd[row_of_special[self._odd[number]]] = True
        held = np.searchsorted(special, offsets)  # special characters before each text
        surplus = np.append(0, np.cumsum(sizes - 1))  # bytes beyond one a character
        return _Normalised(
            text=normalised,
            offsets=offsets + growth[held],
            odd=odd,
            places=np.append(0, place),
            lengths=np.append(1, lengths),
            characters=np.append(0, special - surplus[:-1]),
            originals=offsets - surplus[held],
        )

    def _number(self, code_points: Integers) -> Integers:
        number = self._numbers[code_points]
        if number.size and number.min() < 0:
            for code in sorted(set(code_points[number < 0].tolist())):
                self._learn(code)
            number = self._numbers[code_points]
        return number.astype(np.int64)

    def _learn(self, code: int) -> None:
        content, odd = self._ask(chr(code))
        known, width = self._contents.shape
        contents = np.zeros((known + 1, max(width, len(content))), dtype=np.uint8)
        contents[:known, :width] = self._contents
        contents[known, : len(content)] = list(content)
        self._contents = contents
        self._lengths = np.append(self._lengths, len(content))
        self._odd = np.append(self._odd, odd)
        self._numbers[code] = known

    def _ask(self, character: str) -> tuple[bytes, bool]:
        """Return what a character becomes, words separated by spaces, and whether its neighbours matter."""
        normalised = self._normalise(character)
        content = "".join(self._separated(one) for one in normalised).encode()
        odd = (
            "\0" in normalised  # which fills up the lanes
            or self._normalise(_LATE_MARK + character) != self._normalise(_LATE_MARK) + normalised
            or self._normalise(character + _EARLY_MARK) != normalised + self._normalise(_EARLY_MARK)
        )
        return content, odd

    def _separated(self, normalised: str) -> str:
        parts = len(self._cut(f"a{normalised}a"))
        if parts == 1:
            return normalised
        if parts == 2 or normalised not in self._isolated:
            return " "
        return normalised if normalised.isascii() else f" {normalised} "


class _Words:
    """Words and the tokens in them: a hash table with open addressing, in numpy arrays.

    If the tokens are whole words only, it holds these. If some are pieces of the tokenizer's vocabulary, a word not yet
    in it is cut by the tokenizer and entered. Words of up to 8 bytes differ in their keys; for longer ones, what is
    found is confirmed byte by byte.
    """

    def __init__(self, tokens: Sequence[str], tokenizer: Tokenizer) -> None:
        self._tokens = {token: number for number, token in enumerate(tokens)}
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        self._open = any(token in vocabulary for token in tokens)
        whole = [token for token in tokens if not _is_piece(token)]
        self._longest = max((len(token.encode()) for token in whole), default=0)
        if self._open:
            self._cutter = _word_cutter(tokenizer)
            self._pieces = np.full(max(vocabulary.values()) + 1, -1, dtype=np.int64)  # id to token of interest
            self._piece_lengths = np.zeros(len(self._pieces), dtype=np.int64)  # bytes
            for piece, number in vocabulary.items():
                self._pieces[number] = self._tokens.get(piece, -1)
                self._piece_lengths[number] = len((piece.removeprefix(MARK) if _is_piece(piece) else piece).encode())
            self._pieces[vocabulary[tokenizer.model.unk_token]] = -1
            self._longest = max(self._longest, 4 * tokenizer.model.max_input_chars_per_word)
        self._keys = np.zeros(1 << 12, dtype=np.uint64)  # 0 where nothing is
        self._values = np.zeros(1 << 12, dtype=np.int32)  # number of the word, -1 if it holds no token of interest
        self._entered = 0
        # Of each word that holds tokens: its bytes, padded, and its occurrences in the three arrays that follow.
        self._bytes, self._at, self._sizes = _Growing(np.uint8), _Growing(np.int64), _Growing(np.int64)
        self._first, self._count = _Growing(np.int64), _Growing(np.int64)
        self._token, self._place, self._length = _Growing(np.int64), _Growing(np.int64), _Growing(np.int64)
        self._enter([_encode(token) for token in whole])

    def find(self, text: Bytes, start: Integers, end: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """Return the tokens in words.

        Args:
            text: padded.
            start: of each word, in bytes.
            end: likewise.

        Returns:
            Number of the word, number of the token, place of the token in the word and its length in bytes; by word,
            then place.
        """
        length = end - start
        kept = np.flatnonzero(length <= self._longest)
        if len(kept) < len(length):
            start, length = start[kept], length[kept]
        keys = _word_keys(text, start, length)
        values, unknown = self._look_up(keys)
        if self._open and len(unknown):
            _, new = np.unique(keys[unknown], return_index=True)
            spans = zip(start[unknown[new]].tolist(), length[unknown[new]].tolist(), strict=True)
            self._enter([text[left : left + size].tobytes() for left, size in spans])
            values[unknown], _ = self._look_up(keys[unknown])
        held = np.flatnonzero(values >= 0)
        held = held[self._confirmed(text, start[held], length[held], values[held])]
        value = values[held]
        counts = self._count.array[value]
        occurrence = _ranges(self._first.array[value], counts)
        word = np.repeat(kept[held], counts)
        return word, self._token.array[occurrence], self._place.array[occurrence], self._length.array[occurrence]

    def _look_up(self, keys: Keys) -> tuple[npt.NDArray[np.int32], Integers]:
        """Return the value of each key, -1 where there is none, and the places of the keys that are not there."""
        last = len(self._keys) - 1
        slots = (keys >> np.uint64(64 - last.bit_length())).astype(np.int64)
        held = self._keys.take(slots)
        values = np.full(len(keys), -1, dtype=np.int32)
        same = np.flatnonzero(held == keys)
        values[same] = self._values[slots[same]]
        unknown = [np.flatnonzero(held == 0)]
        pending = np.flatnonzero((held != keys) & (held != 0))
        while len(pending):
            slots[pending] = (slots[pending] + 1) & last
            held = self._keys[slots[pending]]
            same = held == keys[pending]
            values[pending[same]] = self._values[slots[pending[same]]]
            unknown.append(pending[held == 0])
            pending = pending[~same & (held != 0)]
        return values, np.concatenate(unknown)

    def _confirmed(
        self, text: Bytes, start: Integers, length: Integers, values: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.bool_]:
        """Say which words are the very ones found under their keys."""
        same: npt.NDArray[np.bool_] = self._sizes.array[values] == length
        at, known = self._at.array[values], _lanes(self._bytes.array)
        lanes = _lanes(text)
        place = 0
        longer = np.flatnonzero(length > _LANE)
        while len(longer):
            mask = _MASKS[np.minimum(length[longer] - place, _LANE)]
            read = np.minimum(at[longer] + place, len(known) - 1)  # a word of another length may end before
            same[longer] &= (lanes[start[longer] + place] & mask) == (known[read] & mask)
            place += _LANE
            longer = longer[length[longer] > place]
        return same

    def _enter(self, words: list[bytes]) -> None:
        """Put distinct new words in, with the tokens that each holds."""
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        ends = np.cumsum(lengths + _LANE)
        text = _padded(np.frombuffer(b"".join(word + bytes(_LANE) for word in words), dtype=np.uint8))
        word, token, place, length = self._tokens_in(words)
        counts = np.bincount(word, minlength=len(words))
        holding = np.flatnonzero(counts)
        values = np.full(len(words), -1, dtype=np.int32)
        values[holding] = len(self._sizes.array) + np.arange(len(holding))
        sizes = lengths[holding] + _LANE
        self._at.extend(len(self._bytes.array) + np.cumsum(sizes) - sizes)
        self._bytes.extend(text[_ranges((ends - lengths - _LANE)[holding], sizes)])
        self._sizes.extend(lengths[holding])
        self._first.extend(len(self._token.array) + (np.cumsum(counts) - counts)[holding])
        self._count.extend(counts[holding])
        self._token.extend(token)
        self._place.extend(place)
        self._length.extend(length)
        self._insert(_word_keys(text, ends - lengths - _LANE, lengths), values)

    def _tokens_in(self, words: list[bytes]) -> tuple[Integers, Integers, Integers, Integers]:
        """Return the tokens that words hold, as `find` does: the word itself, and its pieces."""
        decoded = [word.replace(_NUL, b"\0").decode() for word in words]
        whole = np.array([self._tokens.get(word, -1) for word in decoded], dtype=np.int64)
        whole[[number for number, word in enumerate(decoded) if _is_piece(word)]] = -1
        word = np.flatnonzero(whole >= 0)
        found = [(word, whole[word], np.zeros_like(word), np.array([len(words[number]) for number in word], np.int64))]
        if self._open and words:
            encoding = self._cutter.encode(" ".join(decoded), add_special_tokens=False)
            pieces, word = np.array(encoding.ids, dtype=np.int64), np.array(encoding.word_ids, dtype=np.int64)
            lengths = self._piece_lengths[pieces]
            before = np.cumsum(lengths) - lengths
            place = before - before[np.searchsorted(word, word)]
            alone = (np.diff(word, prepend=-1) != 0) & (np.diff(word, append=len(words)) != 0)
            inside = np.flatnonzero((self._pieces[pieces] >= 0) & ~alone)
            found.append((word[inside], self._pieces[pieces[inside]], place[inside], lengths[inside]))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        order = np.lexsort((columns[2], columns[0]))
        return columns[0][order], columns[1][order], columns[2][order], columns[3][order]

    def _insert(self, keys: Keys, values: npt.NDArray[np.int32]) -> None:
        self._entered += len(keys)
        if 3 * self._entered > len(self._keys):
            held = self._keys != 0
            keys, values = np.append(self._keys[held], keys), np.append(self._values[held], values)
            size = 1 << (6 * self._entered).bit_length()
            self._keys, self._values = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.int32)
        last = len(self._keys) - 1
        slots = (keys >> np.uint64(64 - last.bit_length())).astype(np.int64)
        while len(keys):
            free = np.flatnonzero(self._keys[slots] == 0)
            taken, first = np.unique(slots[free], return_index=True)
            self._keys[taken], self._values[taken] = keys[free[first]], values[free[first]]
            rest = np.ones(len(keys), dtype=np.bool_)
            rest[free[first]] = False
            keys, values, slots = keys[rest], values[rest], (slots[rest] + 1) & last


class _Growing:
    """An array that is added to at its end."""

    def __init__(self, dtype: Any) -> None:
        self._room = np.zeros(1024, dtype=dtype)
        self.array = self._room[:0]

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Add values."""
        size = len(self.array) + len(values)
        if size > len(self._room):
            room = np.zeros(2 * size, dtype=self._room.dtype)
            room[: len(self.array)] = self.array
            self._room = room
        self._room[len(self.array) : size] = values
        self.array = self._room[:size]


def _word_edges(text: Bytes, offsets: Integers, isolated: bytes) -> tuple[Integers, Integers]:
    """Return where words start and end in padded text; no word reaches over the edge of a text."""
    inside = np.zeros(len(text) - _LANE + 2, dtype=np.bool_)
    np.not_equal(text[:-_LANE], _SPACE, out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    cuts = offsets
    if isolated:
        alone = np.flatnonzero(np.isin(text[:-_LANE], np.frombuffer(isolated, dtype=np.uint8)))
        cuts = np.sort(np.concatenate([offsets, alone, alone + 1]))
    cuts = cuts[inside[cuts] & inside[cuts + 1]]
    if len(cuts):  # one word ends and the next starts here
        cuts = np.repeat(cuts[np.diff(cuts, prepend=-1) != 0], 2)  # empty texts give the same edge twice
        edges = np.insert(edges, np.searchsorted(edges, cuts), cuts)
    return edges[0::2].copy(), edges[1::2].copy()


def _word_keys(text: Bytes, start: Integers, length: Integers) -> Keys:
    """Return a 64-bit key of each word, never 0; words of up to 8 bytes have the same key only if they are the same."""
    lanes = _lanes(text)
    keys = _scatter(lanes[start] & _MASKS.take(length, mode="clip"))
    longer, place = np.flatnonzero(length > _LANE), _LANE
    while len(longer):
        mask = _MASKS.take(length[longer] - place, mode="clip")
        keys[longer] = _scatter(keys[longer] + (lanes[start[longer] + place] & mask))
        place += _LANE
        longer = longer[length[longer] > place]
    return keys


def _scatter(values: Keys) -> Keys:
    """Spread 64-bit values over the high bits; a bijection that keeps 0."""
    values = (values ^ (values >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (values ^ (values >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


def _lanes(text: Bytes) -> Keys:
    """Return a view of padded text: the 8 bytes from each place on."""
    return np.ndarray((len(text) - _LANE + 1,), dtype="<u8", buffer=text, strides=(1,))


def _padded(text: Bytes) -> Bytes:
    """Copy text and put 8 spaces behind it, so that a lane can be read anywhere in it."""
    padded = np.full(len(text) + _LANE, _SPACE, dtype=np.uint8)
    padded[: len(text)] = text
    return padded


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """Return start, start + 1, ... for each start, as many as its count, one after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def _code_points(text: Bytes, start: Integers) -> tuple[Integers, Integers]:
    """Decode the UTF-8 characters that start at these places; return them and their numbers of bytes."""
    lead = text[start].astype(np.int64)
    size = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
    code = np.where(size == 1, lead, lead & (0x7F >> size))
    for place in (1, 2, 3):
        more = np.flatnonzero(size > place)
        code[more] = code[more] << 6 | text[start[more] + place] & 0x3F
    return code, size


def _word_cutter(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that cuts normalised words, separated by spaces, into pieces."""
    cutter = Tokenizer(tokenizer.model)
    cutter.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    return cutter


def _encode(word: str) -> bytes:
    return word.encode().replace(b"\0", _NUL)


def _is_piece(token: str) -> bool:
    return token.startswith(MARK) and len(token) > len(MARK)
