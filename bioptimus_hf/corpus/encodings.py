"""Find out whether bytes are text of a given encoding, and convert text of other encodings to UTF-8."""

from __future__ import annotations

import codecs
import io
import unicodedata
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE, getincrementaldecoder
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bioptimus_hf.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_NUL_SHARE = 0.1
_WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_BLANKS = " \t\r\n"
_NO_TEXT = ("Cc", "Cn", "Co", "Cs")  # categories of control characters, and of those that aren't assigned
_ODD_SHARE = 0.02  # of characters of these categories in a text
_MARKS = (
    (BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (BOM_UTF32_BE, "utf-32"),
    (BOM_UTF16_LE, "utf-16"),
    (BOM_UTF16_BE, "utf-16"),
    (BOM_UTF8, "utf-8"),
)
_COMPRESSED = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"(\xb5/\xfd", "Zstandard"),
    (b"PK\x03\x04", "zip"),
)
_UNDECODABLE = "\udcff"  # becomes the byte FF, which UTF-8 never contains
_MARKED = "bioptimus_hf.mark"
codecs.register_error(_MARKED, lambda error: (_UNDECODABLE, getattr(error, "end")))  # noqa: B009


class NotUtf8Error(InputError):
    """Some bytes are not UTF-8, or not of the given encoding.

    Args:
        message: what is wrong, and that the file can be converted.
        advice: what else to do where there are options for it.
    """

    def __init__(self, message: str, advice: str = "or set errors to replace") -> None:
        super().__init__(message)
        self.advice = advice


def check_encoding(encoding: str) -> None:
    """Raise InputError if Python can't read text files of this encoding."""
    try:
        b"a".decode(encoding)  # rejects "hex" and the like, whose results aren't text
        getincrementaldecoder(encoding)(_MARKED).decode(
            b"a"
        )  # rejects "punycode" and the like, which is only for names
    except UnicodeDecodeError:
        pass  # "a" alone isn't UTF-16
    except (LookupError, ValueError) as error:
        raise InputError(
            f"unknown encoding {encoding!r}: give one that Python knows, such as utf-8, utf-16, latin-1 or cp1252",
            argument="encoding",
        ) from error


def codec_name(encoding: str) -> str:
    """Return Python's own name of a known encoding, for records."""
    return codecs.lookup(encoding).name


def check_head(path: Path, head: bytes, encoding: str) -> None:
    """Raise InputError if the beginning of a file shows that it isn't text of this encoding."""
    for magic, program in _COMPRESSED:
        if head.startswith(magic):
            also = " once more" if path.name.lower().endswith(".gz") else ""
            raise InputError(f"{path} is compressed{also} ({program}): decompress it, or name a gzip file .gz")
    family = family_of(encoding)
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked and marked != family:
        raise NotUtf8Error(f"{path}: {marked.upper()} text: convert the file", f"or set encoding to {marked}")
    if family in ("utf-16", "utf-32"):
        if head and not marked and _is_utf8(head):
            raise NotUtf8Error(f"{path}: UTF-8 text: convert the file", "or set encoding to utf-8")
        if head and not marked and family == codecs.lookup(encoding).name:
            advice = f"or set encoding to {family}-le or {family}-be"
            raise NotUtf8Error(f"{path}: {family.upper()} text needs a byte order mark: convert the file", advice)
    elif likely := _guess_encoding(head):
        problem = f"{path}: {likely.upper()} text without byte order mark: convert the file"
        raise NotUtf8Error(problem, f"or set encoding to {likely}")
    elif is_laden(head):
        raise InputError(f"{path}: laden with NUL bytes, not text: fetch it again")


def family_of(encoding: str) -> str:
    """Return the name of an encoding, the same one for either byte order, and with or without byte order mark."""
    return codecs.lookup(encoding).name.removesuffix("-le").removesuffix("-be").removesuffix("-sig")


def _is_utf8(head: bytes) -> bool:
    """Return whether the beginning of a file is UTF-8 and has no NUL, which UTF-16 of any language has in line ends."""
    try:
        getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def is_laden(content: bytes) -> bool:
    """Return whether so many bytes are NUL that this isn't text; a stray NUL may occur in texts."""
    return content.count(b"\0") > max(1, _NUL_SHARE * len(content))


def _guess_encoding(head: bytes) -> str | None:
    """Return the encoding with wide characters in which the beginning of a file is text; None if there is none.

    Only bytes with NUL can be such text. In UTF-16 of scripts other than Latin, that may be just blanks and line ends.
    """
    if b"\0" not in head:
        return None
    blanks = {encoding: _count_blanks(head, encoding) for encoding in _WIDE}
    best = max(_WIDE, key=lambda encoding: blanks[encoding])
    return best if blanks[best] else None


def _count_blanks(head: bytes, encoding: str) -> int:
    """Return the number of ASCII blanks and line ends of a text; 0 if the bytes aren't text in this encoding."""
    try:
        text = getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return 0
    blanks = sum(map(text.count, _BLANKS))
    odd = sum(unicodedata.category(character) in _NO_TEXT for character in text if character not in _BLANKS)
    return blanks if odd <= _ODD_SHARE * len(text) else 0


class ConvertedFile(io.RawIOBase):
    """Converts bytes of another encoding to UTF-8 while they are read. What can't be decoded becomes the byte FF."""

    def __init__(self, binary: BinaryIO, encoding: str) -> None:
        self._binary = binary
        self._decoder = getincrementaldecoder(encoding)(_MARKED)
        self._rest = b""

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer)
        at_end = False
        while not self._rest and not at_end:
            chunk = self._binary.read(len(view))
            at_end = not chunk
            self._rest = self._decoder.decode(chunk, final=at_end).encode("utf-8", "surrogateescape")
        given, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(given)] = given
        return len(given)
