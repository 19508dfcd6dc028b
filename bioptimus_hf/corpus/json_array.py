"""Read a JSON array with a document per object, element by element, so that memory doesn't grow with the file.

Each element is cut out of the file as it was written, and then read like a line of JSON lines.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator

from bioptimus_hf.corpus.columns import json_document
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.encodings import NotUtf8Error
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError

_READ_AT_ONCE = 1 << 16
_BLANK = b" \t\r\n"
_OUTSIDE = re.compile(rb'["\[\]{},]')
_BREAKS = re.compile(rb"[\r\n]+[ \t]*")  # in JSON, never within a string


def read_json_array(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the document of each object in a JSON array, and an error in place of each that can't be read.

    An object has the same fields as a line of JSON lines.

    Raises:
        InputError: the file isn't an array, or isn't complete.
    """
    for number, (line, element) in enumerate(_elements(file), start=1):
        where = f"element {number}, line {line}"
        try:
            on_one_line = _BREAKS.sub(b" ", element) if b"\n" in element or b"\r" in element else element
            text = file.decode(on_one_line)
            yield json_document(file, number, where, text)
        except UnicodeDecodeError:
            encoding = "UTF-8" if file.options.is_utf8 else file.options.encoding
            advice = "set encoding, or set errors to replace"
            yield NotUtf8Error(f"{file.path}, {where}: not valid {encoding}: convert the file", advice)
        except InputError as error:
            yield InputError(f"{file.path}, {where}: {error}")


def _elements(file: InputFile) -> Iterator[tuple[int, bytes]]:
    """Yield the line in which each element of an array begins, and the element as it is in the file."""
    scanner = _Scanner()
    pending = bytearray()  # what was read since the last bracket or comma of the array itself
    line = 1  # in which it begins
    begun = ended = False
    number = 0

    def first_line() -> int:
        return line + pending[: len(pending) - len(pending.lstrip(_BLANK))].count(b"\n")

    while chunk := file.utf8.read(_READ_AT_ONCE):
        place = 0
        for cut in scanner.cuts(chunk):
            pending += chunk[place:cut]
            place = cut + 1
            if not begun:
                begun = True
                if chunk[cut] != ord("[") or pending.removeprefix(BOM_UTF8).strip(_BLANK):
                    raise _not_an_array(file)
            elif ended:
                raise InputError(f"{file.path}, line {first_line()}: something follows the array: give one array")
            else:
                ended = scanner.depth == 0
                if ended and chunk[cut] != ord("]"):
                    raise InputError(f"{file.path}, line {first_line()}: the array isn't closed by ]: fix the file")
                if pending.strip(_BLANK) or not ended or number:
                    number += 1
                    yield first_line(), bytes(pending)
            line += pending.count(b"\n")
            pending.clear()
        pending += chunk[place:]
        # A document over the limit is an error of its own, unless it is so long that a quote seems to be missing.
        if len(pending) > 2 * file.options.limit + _READ_AT_ONCE:
            raise InputError(
                f"{file.path}, element that begins in line {first_line()}: more than twice the limit of a document: "
                f"close its quotes, or set max_document_megabytes"
            )
    if not begun:
        raise _not_an_array(file)
    if not ended:
        where = f"element {number + 1}, which begins in line {first_line()}"
        raise InputError(f"{file.path}: not a complete JSON array, it ends within {where}: fetch it again")
    if pending.strip(_BLANK):
        raise InputError(f"{file.path}, line {first_line()}: something follows the array: give one array")


def _not_an_array(file: InputFile) -> InputError:
    return InputError(f"{file.path} is not a JSON array: give [ and ] around the objects and a comma between them")


class _Scanner:
    """Finds the brackets and commas of an array, from one chunk to the next.

    Attributes:
        depth: how many arrays and objects are open.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._escaped = False

    def cuts(self, chunk: bytes) -> Iterator[int]:
        """Yield the places of the brackets and commas of the array itself."""
        place = int(self._escaped)
        self._escaped = False
        while True:
            if self._in_string:
                place = self._end_of_string(chunk, place)
            found = None if self._in_string else _OUTSIDE.search(chunk, place)
            if found is None:
                return
            place, mark = found.end(), found[0]
            if mark == b'"':
                self._in_string = True
            elif mark == b",":
                if self.depth == 1:
                    yield place - 1
            else:
                self.depth += 1 if mark in b"[{" else -1
                if self.depth == (1 if mark in b"[{" else 0):
                    yield place - 1

    def _end_of_string(self, chunk: bytes, place: int) -> int:
        """Go to the end of the string that is open, if the chunk has it, and return the place after it."""
        while (quote := chunk.find(b'"', place)) >= 0:
            if _backslashes(chunk, place, quote) % 2 == 0:
                self._in_string = False
                return quote + 1
            place = quote + 1
        self._escaped = _backslashes(chunk, place, len(chunk)) % 2 == 1
        return place


def _backslashes(chunk: bytes, start: int, end: int) -> int:
    """Return how many backslashes there are right before `end`, back to `start` at most."""
    first = end
    while first > start and chunk[first - 1] == ord("\\"):
        first -= 1
    return end - first
