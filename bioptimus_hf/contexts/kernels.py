"""The inner loops of finding tokens, compiled by numba: one pass over UTF-8, without an object a character or a word.

They know nothing of tokenizers: what characters become and which words hold which tokens stands in tables, which
`matching` fills. A loop that meets what stands in none of them stops, says why, and is called again.

All of them are in this one module: numba keeps compiled code for as long as the file that it stands in is the same, and
does not look at files of functions that it calls.
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

# Why `scan` has stopped.
DONE, NEW_CHARACTER, ODD_TEXT, NO_ROOM = range(4)
NOTHING = -1  # number of a word that holds no token; fresh words count down from the next
PLAIN = -1  # instead of a place in the map of characters: each character of the text has become one byte
SPACE, SPECIAL = 32, 128  # between words; to be looked up as a character

PADDING = 8  # bytes that have to follow whatever is read 8 bytes at a time
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class CharacterTable(NamedTuple):
    """What characters become: letters their lower case, what stands between words a space, and so on.

    Attributes:
        bytes: of each byte, what it becomes, SPACE or SPECIAL; shape (256,).
        numbers: of each code point, into the following, or -1 where it is not known yet; shape (0x110000,).
        content: what these characters become, one after the other: UTF-8, words separated by spaces.
        ends: of each character in `content`, after a 0; shape (characters + 1,).
        odd: whether it matters what stands beside a character; shape (characters,).
    """

    bytes: Bytes
    numbers: Integers
    content: Bytes
    ends: Offsets
    odd: Mask


class WordTable(NamedTuple):
    """A hash table of words with open addressing.

    Attributes:
        signs: a bit for every word, where its key says; what has none is in no need of being looked up.
        slots: of a word, its key, which is never 0, and its number: from 0 up into the following, NOTHING, or from
            NOTHING - 1 down into the fresh words; shape (a power of 2, 2).
        content: the words that hold tokens, one after the other, padded.
        ends: of each word in `content`, after a 0; shape (words + 1,).
    """

    signs: Bytes
    slots: Offsets
    content: Bytes
    ends: Offsets


class FreshWords(NamedTuple):
    """Room for words that are in the table, but not known to hold tokens or not.

    Attributes:
        content: the words, one after the other, padded.
        ends: of each word in `content`, after a 0.
        slots: of each word in the table.
    """

    content: Bytes
    ends: Offsets
    slots: Offsets


class Hits(NamedTuple):
    """Room for the words found that may hold tokens, in the order of the text.

    Attributes:
        rows: of the texts.
        words: numbers of the words.
        starts: first character of each in its text.
        maps: where in `characters` the characters that the bytes of the word come from begin, or PLAIN.
        characters: see there.
    """

    rows: Integers
    words: Integers
    starts: Integers
    maps: Integers
    characters: Integers


@njit(cache=True)
def scan(content, offsets, row, longest, characters, words, any_word, fresh, hits):
    """Find the words of texts in a table.

    Args:
        content: UTF-8 of the texts, one after the other.
        offsets: of the texts in it.
        row: the text to start at.
        longest: bytes of the longest word that can be found.
        characters, words: the tables.
        any_word: whether words that are not in the table, which has room for them, are of interest and put into it.
        fresh, hits: filled from the start.

    Returns:
        Text that it has stopped at, of which it leaves no trace in `hits`; why; number of fresh words; number of hits.
    """
    slots, last_slot, shift = words.slots, np.int64(len(words.slots) - 1), _shift(words.slots)
    text = np.empty(_room_for_text(offsets[row:], characters.ends), dtype=np.uint8)
    origins = np.empty(len(text), dtype=np.int32)  # of each byte of `text`, the character that it comes from
    edges, places = np.empty((2, len(text) + 1), dtype=np.int64)
    keys = np.empty(len(text), dtype=np.uint64)
    fresh_words, found, mapped = 0, 0, 0
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
                return row, reason, fresh_words, found
        text[size : size + PADDING] = SPACE
        candidates = 0
        for number_in_text in range(_find_edges(text, size, edges) // 2):
            key = _key(text, edges[2 * number_in_text], edges[2 * number_in_text + 1])
            keys[candidates], places[candidates] = key, number_in_text
            candidates += np.int64(_may_hold(words.signs, key))
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
                last = fresh.ends[fresh_words]
                if fresh_words == len(fresh.slots) or last + length + PADDING > len(fresh.content):
                    return row, NO_ROOM, fresh_words, found_before
                fresh.content[last : last + length] = text[start:end]
                fresh_words += 1
                fresh.ends[fresh_words] = last + length
                fresh.slots[fresh_words - 1] = slot
                number = NOTHING - fresh_words
                slots[slot, 0], slots[slot, 1] = key, number
            if number != NOTHING and (
                _is_word(text, start, end, words.content, words.ends, number)
                if number > NOTHING
                else _is_word(text, start, end, fresh.content, fresh.ends, NOTHING - 1 - number)
            ):
                if found == len(hits.rows) or mapped + length > len(hits.characters):
                    return row, NO_ROOM, fresh_words, found_before
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
    return row, DONE, fresh_words, found


@njit(cache=True)
def insert(slots, words):
    """Put distinct words, each a key and a number, into a table that has room for them."""
    last_slot, shift = np.int64(len(slots) - 1), _shift(slots)
    for word in range(len(words)):
        slot = np.int64(np.uint64(words[word, 0]) >> shift)
        while slots[slot, 0] != 0:
            slot = (slot + 1) & last_slot
        slots[slot] = words[word]


@njit(cache=True)
def keys_of(content, ends):
    """Return the keys of words, one after the other in `content`, which is padded."""
    keys = np.empty(len(ends) - 1, dtype=np.uint64)
    for word in range(len(keys)):
        keys[word] = _key(content, ends[word], ends[word + 1])
    return keys


@njit(cache=True)
def expand(hits, found, firsts, tokens, places, lengths, rows, which, starts, ends):
    """Write down the tokens in the words that were hit.

    Args:
        hits: of `scan`.
        found: number of them.
        firsts: of each word, its first token in the next three; shape (words + 1,).
        tokens, places, lengths: which token, and its bytes in the word.
        rows, which, starts, ends: filled: text, token, first character and the character after the last.
    """
    number = 0
    for hit in range(found):
        word = hits.words[hit]
        if word == NOTHING:
            continue
        for held in range(firsts[word], firsts[word + 1]):
            rows[number] = hits.rows[hit]
            which[number] = tokens[held]
            if hits.maps[hit] == PLAIN:
                starts[number] = hits.starts[hit] + places[held]
                ends[number] = starts[number] + lengths[held]
            else:
                first = hits.maps[hit] + places[held]
                starts[number] = hits.characters[first]
                ends[number] = hits.characters[first + lengths[held] - 1] + 1
            number += 1


@njit(cache=True)
def choose(rows, tokens, text_hashes, token_hashes, limits, heaps, sizes):
    """Choose, of the occurrences of a token in a text, the first, if it can be among the token's best ones.

    Args:
        rows, tokens: of each occurrence; those of a text stand together, in its order.
        text_hashes, token_hashes: a priority is made of both; the least ones win.
        limits: of each token, the priority above which nothing can win any more. It falls from call to call.
        heaps: the least priorities of each token so far, the largest of them first; shape (tokens, how many can win),
            or (tokens, 0) to choose every one.
        sizes: how many of them there are; shape (tokens,).

    Returns:
        Numbers of the occurrences chosen, and their priorities.
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
    """Put a value that is not above the largest into a heap, in whose place if that is full; return its size."""
    copy = False
    for place in range(size):  # all of them: what does not branch, several are done of at once
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
    """Return a 64-bit hash of each text: splitmix64's last steps, chained over its 8-byte pieces."""
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
    """Spread 64 bits: the last steps of splitmix64, a bijection."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def _scatter(value):
    """Spread 64 bits over the high ones, where slots are taken from; a bijection that keeps 0."""
    value = (value ^ (value >> np.uint64(32))) * _GOLDEN
    return (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


@njit(cache=True)
def _shift(slots):
    """Return by how much a key is shifted to give a slot."""
    shift = np.uint64(64)
    size = len(slots)
    while size > 1:
        size >>= 1
        shift -= np.uint64(1)
    return shift


@njit(cache=True)
def _room_for_text(offsets, ends):
    """Return how many bytes the longest text may become, padding included."""
    widest = 1
    for character in range(len(ends) - 1):
        widest = max(widest, ends[character + 1] - ends[character])
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest * widest + PADDING


@njit(cache=True)
def _normalise(content, place, stop, characters, text, origins):
    """Write down what the characters of a text become, and which characters it comes from.

    Returns:
        Its length in bytes; DONE, or why the text is not to be read in this way.
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
            for held in range(characters.ends[number], characters.ends[number + 1]):
                text[size] = characters.content[held]
                origins[size] = character
                size += 1
            place += width
        character += 1
    return size, DONE


@njit(cache=True)
def _find_edges(text, size, edges):
    """Write down where words start and end; return how many edges there are. A space follows the text."""
    number = 0
    before = np.uint8(1)
    for place in range(size + 1):
        space = np.uint8(text[place] == SPACE)
        edges[number] = place  # and overwrite it unless it is one: to branch at every word would take much longer
        number += np.int64(space ^ before)
        before = space
    return number


@njit(cache=True)
def _key(text, start, end):
    """Return a 64-bit key of a word, never 0; words of up to 8 bytes have the same key only if they are the same."""
    key = np.uint64(0)
    lane = _eight_bytes(text, start)
    while end - start > PADDING:
        key = _scatter(key + lane)
        start += PADDING
        lane = _eight_bytes(text, start)
    return _scatter(key + (lane & _first_bytes(end - start)))


@njit(cache=True)
def sign(signs, keys):
    """Set the bits of words; `signs` has 2^16 bytes."""
    for key in keys:
        signs[key >> np.uint64(48)] |= np.uint8(1) << np.uint8(key & np.uint64(7))


@njit(cache=True)
def _may_hold(signs, key):
    return (signs[key >> np.uint64(48)] >> np.uint8(key & np.uint64(7))) & 1


@njit(cache=True)
def _is_word(text, start, end, content, ends, number):
    first = ends[number]
    if ends[number + 1] - first != end - start:
        return False
    if end - start <= PADDING:  # of such words, those of the same key are the same
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
    """Decode a UTF-8 character; return it and its number of bytes."""
    byte = np.int64(content[place])
    if byte < 0x80:
        return byte, 1
    size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
    code = byte & (0x7F >> size)
    for more in range(1, size):
        code = code << 6 | (np.int64(content[place + more]) & 0x3F)
    return code, size
