"""Open files of text, decompress and decode them; errors name the file, the line and the byte."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import zlib
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast, get_args

from bioptimus_hf.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logger = logging.getLogger(__name__)

Annotations = Literal["needed", "optional", "ignored"]
_REPLACEMENT = "\ufffd"
_BUFFER = 1 << 16  # bytes


@dataclass(frozen=True)
class ReadOptions:
    """How documents are read, whatever the format of their file.

    Attributes:
        text_column: name of the field or column that holds the text, in formats whose rows have several.
        errors: what to do about bytes that are not UTF-8: `strict` raises, `replace` puts U+FFFD in their place.
        annotations: what becomes of annotations in the file. `needed`: one that can't be read is an error of its
            document. `optional`: one that can't be read is left out and noted, see `InputFile.note`; for files whose
            annotations are going to be replaced. `ignored`: they aren't read at all; for corpora.

    Raises:
        InputError: a value is none of these.
    """

    text_column: str = "text"
    errors: str = "strict"
    annotations: Annotations = "needed"

    def __post_init__(self) -> None:
        if self.annotations not in get_args(Annotations):
            allowed = ", ".join(get_args(Annotations))
            raise InputError(f"must be one of {allowed}, not {self.annotations!r}", argument="annotations")
        if self.errors not in ("strict", "replace"):
            raise InputError(f"must be strict or replace, not {self.errors!r}", argument="errors")


class NotUtf8Error(InputError):
    """Some bytes are not UTF-8."""


class InputFile:
    """An open file, decompressed, as the readers of all formats take it.

    Attributes:
        path: where the file is, for error messages.
        options: how to read it.
        binary: the decompressed bytes.
        replaced: how many undecodable bytes or sequences have been replaced so far.
        blank: how many blank lines the reader has left out so far, in formats where a document is a line.
    """

    def __init__(self, path: Path, binary: io.BufferedReader, raw: BinaryIO, options: ReadOptions) -> None:
        self.path = path
        self.options = options
        self.binary = binary
        self.replaced = self.blank = 0
        self._notes: dict[str, tuple[int, str]] = {}
        self._raw = raw
        self._decoder = getincrementaldecoder("utf-8")("replace")

    @property
    def position(self) -> int:
        """The number of bytes read so far, before decompression."""
        return 0 if self._raw.closed else self._raw.tell()

    def note(self, what: str, example: str) -> None:
        """Count something that is converted or left out. When the file is closed, one warning says how often it was.

        Args:
            what: a plural without a number, such as `mentions that differ from the text`.
            example: one of them and where it is, such as `line 3, 'TNF-a'`. The first one given is kept.
        """
        count, first = self._notes.get(what, (0, example))
        self._notes[what] = count + 1, first

    def report(self) -> None:
        """Log what was noted: a line each, with the count and an example."""
        for what, (count, example) in self._notes.items():
            logger.warning("%s: %s: %d (for example %s)", self.path, what, count, example)
        self._notes.clear()

    def lines(self) -> Iterator[tuple[int, str | InputError]]:
        """Yield the number and the text of each line, without its end, or the error if the line can't be decoded.

        A byte order mark at the start of the file is left out.
        """
        packed = self._raw is not self.binary
        offset = 0
        for number, line in enumerate(self.binary, start=1):
            content = line.rstrip(b"\r\n")
            start = offset
            if not offset and content.startswith(BOM_UTF8):
                start, content = len(BOM_UTF8), content.removeprefix(BOM_UTF8)
            try:
                yield number, self.decode(content)
            except UnicodeDecodeError as error:
                where = f"byte {start + error.start} of the {'decompressed ' if packed else ''}file"
                yield number, NotUtf8Error(f"{self.path}, line {number}: not valid UTF-8 at {where}: convert the file")
            offset += len(line)

    def decode(self, content: bytes) -> str:
        """Decode UTF-8 and count what is replaced.

        Raises:
            UnicodeDecodeError: some bytes are not UTF-8, and `errors` is `strict`.
        """
        try:
            return content.decode()
        except UnicodeDecodeError:
            if self.options.errors == "strict":
                raise
        text = content.decode(errors="replace")
        self._count(text, content)
        return text

    def read(self, size: int) -> bytes:
        """Read about this many bytes, for parsers that decode UTF-8 themselves; nothing at the end of the file."""
        if self.options.errors == "strict" or not size:
            return self.binary.read(size)
        while True:
            chunk = self.binary.read(size)
            before = self._decoder.getstate()[0]
            text = self._decoder.decode(chunk, final=not chunk)
            after = self._decoder.getstate()[0]
            content = before + chunk
            self._count(text, content[: len(content) - len(after)])
            if text or not chunk:
                return text.encode()

    def _count(self, text: str, content: bytes) -> None:
        self.replaced += text.count(_REPLACEMENT) - content.count(_REPLACEMENT.encode())


class _HashedFile(io.RawIOBase):
    """Hashes the bytes of a file while they are read.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path)
        self._opened = self._state()
        self._digest = hashlib.sha256()
        self._in_order = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        number = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:number])
        return number

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = self._file.tell()
        after = self._file.seek(offset, whence)
        self._in_order = self._in_order and after == before
        return after

    def close(self) -> None:
        self._file.close()
        super().close()

    def identity(self) -> str | None:
        """Return the identity of the content that was read, as `artifacts.identity` does; reads the file to its end.

        What is read in another order, as in Parquet, is hashed afterwards. Then the result is None if the file was
        written to in the meantime.
        """
        if not self._in_order:
            self._file.seek(0)
            self._digest = hashlib.sha256()
        while self.read(_BUFFER):
            pass
        unchanged = self._in_order or self._state() == self._opened
        return f"sha256:{self._digest.hexdigest()}" if unchanged else None

    def _state(self) -> tuple[int, ...]:
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns, state.st_ctime_ns


@contextmanager
def open_input(
    path: str | Path, options: ReadOptions | None = None, *, content: str | None = None
) -> Iterator[InputFile]:
    """Open a file for reading, decompressing it if its name ends in `.gz`.

    Args:
        content: identity of what the file must contain, from `artifacts.identity`. The bytes are hashed while they are
            read, and the rest of them at the end of the `with` block.

    Raises:
        InputError: the file can't be read, or doesn't contain this, even if it shows only later, within the `with`
            block.
    """
    path = Path(path)
    try:
        if content is None:
            with open(path, "rb") as unhashed, _opened(path, unhashed, options) as file:
                yield file
            return
        hashed = _HashedFile(path)
        with io.BufferedReader(hashed, _BUFFER) as raw:
            try:
                with _opened(path, raw, options) as file:
                    yield file
            except (InputError, gzip.BadGzipFile, EOFError, zlib.error) as error:
                _check_content(path, hashed, content, error)  # the reason of the error, if it has changed
                raise
            _check_content(path, hashed, content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a complete gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error})") from error


@contextmanager
def _opened(path: Path, raw: BinaryIO, options: ReadOptions | None) -> Iterator[InputFile]:
    packed = path.name.lower().endswith(".gz")
    # A BufferedReader splits lines in C, which GzipFile doesn't.
    binary = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw)), _BUFFER) if packed else raw
    file = InputFile(path, cast(io.BufferedReader, binary), raw, options or ReadOptions())
    try:
        yield file
    finally:
        file.report()


def _check_content(path: Path, file: _HashedFile, content: str, cause: Exception | None = None) -> None:
    if file.identity() != content:
        raise InputError(f"{path} changed while it was being read: run the same command again") from cause
