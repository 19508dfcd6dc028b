"""Scan UTF-8 text for tokens in loops compiled by numba: a single pass that creates no object per character or word.

The loops know nothing about tokenizers. Tables, which `matching` fills, say what each character becomes and which words
contain which tokens. When a loop meets something that isn't in the tables, it stops, returns the reason, and is called
again.

All loops are in this module: numba reuses compiled code until the file of a function changes, and doesn't check the
files of the functions that it calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# Reasons why `scan` stops.
DONE, NEW_CHARACTER, ODD_TEXT, NO_ROOM = range(4)
NOTHING = -1  # number of a word that contains no token; the numbers of new words are below it
PLAIN = -1  # instead of a place in the character map: each character of the text became a single byte
SPACE, SPECIAL = 32, 128  # separator of words; marks a byte whose character must be looked up

PADDING = 8  # bytes that must follow any array that is read 8 bytes at a time
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class CharacterTable(NamedTuple):
    """What each character becomes: a letter its lower case, a separator of words a space, and so on.

    Attributes:
        bytes: for each byte, what it becomes, or SPACE or SPECIAL; shape (256,).
        numbers: for each code point, its index in the arrays below, or -1 if it isn't known yet; shape (0x110000,).
        content: what these characters become, concatenated: UTF-8, words separated by spaces.
        ends: end of each character in `content`, after a 0; shape (characters + 1,).
        odd: whether the result depends on the neighbours of the character; shape (characters,).
    """

    bytes: Bytes
    numbers: Integers
    content: Bytes
    ends: Offsets
    odd: Mask


class WordTable(NamedTuple):
    """A hash table of words with open addressing, behind a Bloom filter.

    Attributes:
        bloom: Bloom filter with one hash: a word whose bit isn't set needs no lookup; shape (2^16,).
        slots: key of each word, which is never 0, and its number: an index in the arrays below, or NOTHING, or
            NOTHING - 1 - i for the new word i; shape (a power of 2, 2).
        content: the words that contain tokens, concatenated and padded.
        ends: end of each word in `content`, after a 0; shape (words + 1,).
    """

    bloom: Bytes
    slots: Offsets
    content: Bytes
    ends: Offsets


class NewWords(NamedTuple):
    """Buffers for words that a scan adds to the table before it is known which tokens they contain.

    Attributes:
        content: the words, concatenated and padded.
        ends: end of each word in `content`, after a 0.
        slots: slot of each word in the table.
    """

    content: Bytes
    ends: Offsets
    slots: Offsets


class Hits(NamedTuple):
    """Buffers for the words found that may contain tokens, in the order of the text.

    Attributes:
        rows: row of the text.
        words: number of the word.
        starts: first character of the word in its text; only for PLAIN words.
        maps: first entry of the word in `characters`, or PLAIN.
        characters: for each byte of a word that isn't PLAIN, the character of the text that it comes from.
    """

    rows: Integers
    words: Integers
    starts: Integers
    maps: Integers
    characters: Integers


@njit(cache=True)
def scan(content, offsets, row, longest, characters, words, any_word, new, hits):
    """Look up the words of texts in a table.

    Args:
        content: UTF-8 of the texts, concatenated.
        offsets: offsets of the texts in it.
        row: the text to start with.
        longest: length in bytes of the longest word that can contain a token.
        characters: table of characters.
        words: table of words.
        any_word: add words that aren't in the table. It must have enough empty slots.
        new: filled with the words that are added.
        hits: filled with the words that are found.

    Returns:
        The row where the scan stopped, which contributes nothing to `hits`; the reason; the number of new words; the
        number of hits.
    """
    slots, last_slot, shift = words.slots, np.int64(len(words.slots) - 1), _shift(words.slots)
    text = np.empty(_room_for_text(offsets[row:], characters.ends), dtype=np.uint8)
    origins = np.empty(len(text), dtype=np.int32)  # for each byte of `text`, the character that it comes from
    edges, places = np.empty((2, len(text) + 1), dtype=np.int64)
    keys = np.empty(len(text), dtype=np.uint64)
    new_words, found, mapped = 0, 0, 0
    while row < len(offsets) - 1:
        found_before = found
        size = offsets[row + 1] - offsets[row]
        special = np.uint8(0)
        for place in range(size):
            byte = characters.bytes[content[offsets[row] + place]]
            text[place] = byte
            special |= byte
        plain = special < SPECIAL
        if not plain:
            size, reason = _normalise(content, offsets[row], offsets[row + 1], characters, text, origins)
            if reason != DONE:
                return row, reason, new_words, found
        text[size : size + PADDING] = SPACE
        candidates = 0
        for number_in_text in range(_find_edges(text, size, edges) // 2):
            key = _key(text, edges[2 * number_in_text], edges[2 * number_in_text + 1])
            keys[candidates], places[candidates] = key, number_in_text
            candidates += np.int64(_may_contain(words.bloom, key))
        for candidate in range(candidates):
            key = np.int64(keys[candidate])
            start, end = edges[2 * places[candidate]], edges[2 * places[candidate] + 1]
            slot = np.int64(keys[candidate] >> shift)
            while slots[slot, 0] != key and slots[slot, 0] != 0:
                slot = (slot + 1) & last_slot
            length = end - start
            number = NOTHING
            if slots[slot, 0] == key:
                number = slots[slot, 1]
            elif any_word and length <= longest:
                last = new.ends[new_words]
                if new_words == len(new.slots) or last + length + PADDING > len(new.content):
                    return row, NO_ROOM, new_words, found_before
                new.content[last : last + length] = text[start:end]
                new_words += 1
                new.ends[new_words] = last + length
                new.slots[new_words - 1] = slot
                number = NOTHING - new_words
                slots[slot, 0], slots[slot, 1] = key, number
            if number != NOTHING and (
                _is_word(text, start, end, words.content, words.ends, number)
                if number > NOTHING
                else _is_word(text, start, end, new.content, new.ends, NOTHING - 1 - number)
            ):
                if found == len(hits.rows) or mapped + length > len(hits.characters):
                    return row, NO_ROOM, new_words, found_before
                hits.rows[found] = row
                hits.words[found] = number
                if plain:
                    hits.starts[found] = start
                    hits.maps[found] = PLAIN
                else:
                    hits.maps[found] = mapped
                    hits.characters[mapped : mapped + length] = origins[start:end]
                    mapped += length
                found += 1
        row += 1
    return row, DONE, new_words, found


@njit(cache=True)
def insert(slots, words):
    """Insert distinct words, each a key and a number, into a table with enough empty slots."""
    last_slot, shift = np.int64(len(slots) - 1), _shift(slots)
    for word in range(len(words)):
        slot = np.int64(np.uint64(words[word, 0]) >> shift)
        while slots[slot, 0] != 0:
            slot = (slot + 1) & last_slot
        slots[slot] = words[word]


@njit(cache=True)
def keys_of(content, ends):
    """Return the keys of the words in `content`, which are concatenated and padded."""
    keys = np.empty(len(ends) - 1, dtype=np.uint64)
    for word in range(len(keys)):
        keys[word] = _key(content, ends[word], ends[word + 1])
    return keys


@njit(cache=True)
def expand(hits, found, firsts, tokens, places, lengths, rows, which, starts, ends):
    """List the tokens in the words that a scan found.

    Args:
        hits: from `scan`.
        found: number of hits.
        firsts: index of the first token of each word in the next three arrays; shape (words + 1,).
        tokens: the tokens.
        places: offset of each token in its word, in bytes.
        lengths: length of each token in bytes.
        rows: filled with the rows of the texts.
        which: filled with the tokens.
        starts: filled with the first characters of the tokens.
        ends: filled with the characters after the tokens.
    """
    number = 0
    for hit in range(found):
        word = hits.words[hit]
        if word == NOTHING:
            continue
        for entry in range(firsts[word], firsts[word + 1]):
            rows[number] = hits.rows[hit]
            which[number] = tokens[entry]
            if hits.maps[hit] == PLAIN:
                starts[number] = hits.starts[hit] + places[entry]
                ends[number] = starts[number] + lengths[entry]
            else:
                first = hits.maps[hit] + places[entry]
                starts[number] = hits.characters[first]
                ends[number] = hits.characters[first + lengths[entry] - 1] + 1
            number += 1


@njit(cache=True)
def choose(rows, tokens, text_hashes, token_hashes, limits, heaps, sizes):
    """Choose the first occurrence of each token in each text, unless its priority can't win any more.

    Args:
        rows: row of the text of each occurrence; the occurrences in a text are adjacent and in its order.
        tokens: token of each occurrence.
        text_hashes: hashes of the texts. The priority is a hash of text and token, and the smallest priorities win.
        token_hashes: hashes of the tokens.
        limits: for each token, the priority above which nothing can win any more. It decreases from call to call.
        heaps: for each token, a max-heap of its smallest priorities so far; shape (tokens, number of winners), or
            (tokens, 0) to choose every first occurrence.
        sizes: number of priorities in each heap; shape (tokens,).

    Returns:
        Indices of the chosen occurrences, and their priorities.
    """
    chosen = np.empty(len(rows), dtype=np.int64)
    priorities = np.empty(len(rows), dtype=np.uint64)
    number = 0
    seen = np.full(len(token_hashes), -1, dtype=np.int32)
    for occurrence in range(len(rows)):
        row, token = rows[occurrence], tokens[occurrence]
        priority = _mix(text_hashes[row] ^ token_hashes[token])
        if priority > limits[token] or seen[token] == row:
            continue
        seen[token] = row
        chosen[number] = occurrence
        priorities[number] = priority
        number += 1
        if heaps.shape[1]:
            sizes[token] = _push(heaps[token], sizes[token], priority)
            if sizes[token] == heaps.shape[1]:
                limits[token] = heaps[token, 0]
    return chosen[:number], priorities[:number]


@njit(cache=True)
def _push(heap, size, value):
    """Push a value that isn't above the largest into a max-heap, replacing the largest if it is full; return its size.

    A value that is in the heap already is ignored.
    """
    copy = False
    for place in range(size):  # without a break, so that the loop is vectorised
        copy |= heap[place] == value
    if copy:
        return size
    if size < len(heap):
        place = size
        while place and heap[(place - 1) // 2] < value:
            heap[place] = heap[(place - 1) // 2]
            place = (place - 1) // 2
        heap[place] = value
        return size + 1
    place = 0
    while 2 * place + 1 < size:
        larger = 2 * place + 1
        if larger + 1 < size and heap[larger + 1] > heap[larger]:
            larger += 1
        if heap[larger] <= value:
            break
        heap[place] = heap[larger]
        place = larger
    heap[place] = value
    return size


@njit(cache=True)
def hash_texts(content, offsets, seed):
    """Return a 64-bit hash of each text: the finalizer of splitmix64, chained over pieces of 8 bytes."""
    hashes = np.empty(len(offsets) - 1, dtype=np.uint64)
    for row in range(len(hashes)):
        start, stop = offsets[row], offsets[row + 1]
        value = _mix(seed + np.uint64(stop - start) * _GOLDEN)
        place = start
        while place + 8 <= stop:
            value = _mix(value ^ _eight_bytes(content, place))
            place += 8
        rest = np.uint64(0)
        for left in range(stop - place):
            rest |= np.uint64(content[place + left]) << np.uint64(8 * left)
        hashes[row] = _mix(value ^ rest)
    return hashes


@njit(cache=True, inline="always")
def _eight_bytes(content, place):
    value = np.uint64(content[place])
    for byte in range(1, 8):
        value |= np.uint64(content[place + byte]) << np.uint64(8 * byte)
    return value


@njit(cache=True)
def _mix(value):
    """Mix 64 bits with the finalizer of splitmix64, which is a bijection."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def _scatter(value):
    """Mix 64 bits into the high ones, which select the slot; a bijection that maps 0 to 0."""
    value = (value ^ (value >> np.uint64(32))) * _GOLDEN
    return (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


@njit(cache=True)
def _shift(slots):
    """Return the number of bits by which to shift a key right to get its slot."""
    shift = np.uint64(64)
    size = len(slots)
    while size > 1:
        size >>= 1
        shift -= np.uint64(1)
    return shift


@njit(cache=True)
def _room_for_text(offsets, ends):
    """Return the maximum number of bytes that a text becomes, including padding."""
    widest = 1
    for character in range(len(ends) - 1):
        widest = max(widest, ends[character + 1] - ends[character])
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest * widest + PADDING


@njit(cache=True)
def _normalise(content, place, stop, characters, text, origins):
    """Write what the characters of a text become into `text`, and the characters it comes from into `origins`.

    Returns:
        The number of bytes written, and DONE or the reason why the text can't be normalised with this table.
    """
    size, character = 0, 0
    while place < stop:
        byte = characters.bytes[content[place]]
        if byte < SPECIAL:
            text[size] = byte
            origins[size] = character
            size += 1
            place += 1
        else:
            code, width = _code_point(content, place)
            number = characters.numbers[code]
            if number < 0:
                return size, NEW_CHARACTER
            if characters.odd[number]:
                return size, ODD_TEXT
            for entry in range(characters.ends[number], characters.ends[number + 1]):
                text[size] = characters.content[entry]
                origins[size] = character
                size += 1
            place += width
        character += 1
    return size, DONE


@njit(cache=True)
def _find_edges(text, size, edges):
    """Write the starts and ends of words into `edges`; return their number. A space must follow the text."""
    number = 0
    before = np.uint8(1)
    for place in range(size + 1):
        space = np.uint8(text[place] == SPACE)
        edges[number] = place  # overwritten unless it is an edge: a branch at every word would be much slower
        number += np.int64(space ^ before)
        before = space
    return number


@njit(cache=True)
def _key(text, start, end):
    """Return a 64-bit key of a word, never 0. Different words of up to 8 bytes have different keys."""
    key = np.uint64(0)
    lane = _eight_bytes(text, start)
    while end - start > PADDING:
        key = _scatter(key + lane)
        start += PADDING
        lane = _eight_bytes(text, start)
    return _scatter(key + (lane & _first_bytes(end - start)))


@njit(cache=True)
def add_to_bloom(bloom, keys):
    """Add words to a Bloom filter of 2^16 bytes."""
    for key in keys:
        bloom[key >> np.uint64(48)] |= np.uint8(1) << np.uint8(key & np.uint64(7))


@njit(cache=True)
def _may_contain(bloom, key):
    return (bloom[key >> np.uint64(48)] >> np.uint8(key & np.uint64(7))) & 1


@njit(cache=True)
def _is_word(text, start, end, content, ends, number):
    first = ends[number]
    if ends[number + 1] - first != end - start:
        return False
    if end - start <= PADDING:  # the key of such a word is unique
        return True
    while end - start > PADDING:
        if _eight_bytes(text, start) != _eight_bytes(content, first):
            return False
        start += PADDING
        first += PADDING
    return (_eight_bytes(text, start) ^ _eight_bytes(content, first)) & _first_bytes(end - start) == 0


@njit(cache=True)
def _first_bytes(number):
    """Return a mask of 1 to 8 bytes."""
    return ~np.uint64(0) >> np.uint64(8 * (PADDING - number))


@njit(cache=True)
def _code_point(content, place):
    """Decode a UTF-8 character; return its code point and its number of bytes."""
    byte = np.int64(content[place])
    if byte < 0x80:
        return byte, 1
    size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
    code = byte & (0x7F >> size)
    for more in range(1, size):
        code = code << 6 | (np.int64(content[place + more]) & 0x3F)
    return code, size
