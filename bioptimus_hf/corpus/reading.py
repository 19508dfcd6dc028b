"""Open files of text, decompress and decode them; errors name the file, the line and the byte.

Readers get UTF-8, whatever the encoding of the file: another one is converted while it is read.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import logging
import os
import re
import zlib
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Literal, cast, get_args

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.encodings import ConvertedFile, NotUtf8Error, check_encoding, check_head, family_of, is_laden
from bioptimus_hf.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logger = logging.getLogger(__name__)

Annotations = Literal["needed", "optional", "ignored"]
Unit = Literal["line", "file"]
_REPLACEMENT = "\ufffd"
_BUFFER = 1 << 16  # bytes
_HEAD = 1 << 12  # bytes that are looked at before a file is read
MAX_DOCUMENT_MEGABYTES = 10.0
"""Default limit of a document. Tokenizing needs a hundred times the memory of the text."""

_HUB_SPLIT = re.compile(r"[^@:]+@[^@:/]+:[^/]+")


@check_call()
@dataclass(frozen=True)
class ReadOptions:
    """How documents are read, whatever the format of their file.

    Attributes:
        text_column: name of the field or column that holds the text, in formats whose rows have several. Of several
            names, each becomes a passage, and line breaks separate them.
        errors: what to do about bytes that can't be decoded: `strict` raises, `replace` puts U+FFFD in their place.
        encoding: of text files, any text encoding that Python knows. XML declares its own, and Parquet has one.
        max_document_megabytes: the limit of a document, in 10^6 bytes. Longer ones are errors.
        place: path of the file among others, such as `sub/a.txt`. Ids of documents that have none of their own begin
            with it.
        annotations: what becomes of annotations in the file. `needed`: one that can't be read is an error of its
            document. `optional`: one that can't be read is left out and noted, see `InputFile.note`; for files whose
            annotations are going to be replaced. `ignored`: they aren't read at all; for corpora.
        type_name: the type of entities in CoNLL files whose tags carry none (`B` and `I`).
        id_column: name of the field or column that holds the id; by default `id`, where there is one.
        unit: what a document is in plain text: a `line`, or the whole `file`.

    Raises:
        InputError: a value is none of these.
    """

    text_column: str | Sequence[str] = "text"
    errors: str = "strict"
    encoding: str = "utf-8"
    max_document_megabytes: float = MAX_DOCUMENT_MEGABYTES
    place: str = ""
    annotations: Annotations = "needed"
    type_name: str | None = None
    id_column: str | None = None
    unit: Unit = "line"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The names of the fields or columns that hold the text."""
        return text_columns(self.text_column)

    @property
    def limit(self) -> int:
        """The limit of a document in bytes."""
        return int(self.max_document_megabytes * 1e6)

    @property
    def is_utf8(self) -> bool:
        """Whether the encoding is UTF-8."""
        return family_of(self.encoding) == "utf-8"

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        if not 1e-6 <= self.max_document_megabytes <= 1000:
            raise InputError(
                f"must be above 0 and at most 1000, not {self.max_document_megabytes:g}",
                argument="max_document_megabytes",
            )
        if self.annotations not in get_args(Annotations):
            allowed = ", ".join(get_args(Annotations))
            raise InputError(f"must be one of {allowed}, not {self.annotations!r}", argument="annotations")
        if self.errors not in ("strict", "replace"):
            raise InputError(f"must be strict or replace, not {self.errors!r}", argument="errors")
        if self.unit not in get_args(Unit):
            raise InputError(f"must be line or file, not {self.unit!r}", argument="unit")
        if self.id_column in self.text_columns:
            raise InputError(f"{self.id_column!r} is the text, which can't be the id, too", argument="id_column")


def text_columns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the columns with the text, of which one may be given alone.

    Raises:
        InputError: there is none, or one of them is empty or given twice.
    """
    columns = (given,) if isinstance(given, str) else tuple(given)
    if not columns or not all(columns):
        raise InputError("is empty: name the field or column with the text", argument="text_column")
    if len(set(columns)) < len(columns):
        raise InputError(f"names a column twice: {', '.join(columns)}", argument="text_column")
    return columns


def named_columns(given: str | Sequence[str]) -> str | list[str]:
    """Return the names of the columns with the text for records: a string if there is only one."""
    columns = text_columns(given)
    return columns[0] if len(columns) == 1 else list(columns)


def size_over(text: str, options: ReadOptions) -> int:
    """Return the size of a text in bytes of UTF-8 if it is over the limit, otherwise 0."""
    longest = 4 * len(text)
    return size if longest > options.limit and (size := len(text.encode())) > options.limit else 0


def is_hub_split(path: str | Path) -> bool:
    """Return whether a path stands for a split of a data set on the Hub at a commit, `owner/name@commit:split`."""
    return _HUB_SPLIT.fullmatch(str(path)) is not None and not Path(path).exists()


class Notes:
    """Counts what is converted or left out, and says it once.

    Args:
        source: where the data comes from, for the messages.
    """

    def __init__(self, source: str | Path) -> None:
        self._source = source
        self._notes: dict[str, tuple[int, str]] = {}

    def note(self, what: str, example: str) -> None:
        """Count something that is converted or left out. `report` says how often it was.

        Args:
            what: a plural without a number, such as `mentions that differ from the text`.
            example: one of them and where it is, such as `line 3, 'TNF-a'`. The first one given is kept.
        """
        count, first = self._notes.get(what, (0, example))
        self._notes[what] = count + 1, first

    def report(self) -> None:
        """Log what was noted: a line each, with the count and an example."""
        for what, (count, example) in self._notes.items():
            logger.warning("%s: %s: %d (for example %s)", self._source, what, count, example)
        self._notes.clear()


class Source(Notes):
    """Where documents come from, as the readers of rows take it.

    Attributes:
        path: the file, or the name of a data set, for error messages.
        options: how to read it.
        replaced: how many undecodable bytes or sequences have been replaced so far.
    """

    def __init__(self, path: str | Path, options: ReadOptions) -> None:
        super().__init__(path)
        self.path = Path(path)
        self.options = options
        self.replaced = 0

    def name(self, number: int) -> str:
        """Return the id of a document that has none of its own.

        Args:
            number: of its line, row or sentence, counted from 1.
        """
        return f"{self.options.place}:{number}" if self.options.place else str(number)

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

    def _count(self, text: str, content: bytes) -> None:
        self.replaced += text.count(_REPLACEMENT) - content.count(_REPLACEMENT.encode())


class InputFile(Source):
    """An open file, decompressed, as the readers of all formats take it.

    Attributes:
        binary: the decompressed bytes as they are in the file, whatever its encoding.
        blank: how many blank lines the reader has left out so far, in formats where a document is a line.
    """

    def __init__(self, path: Path, binary: io.BufferedReader, raw: BinaryIO, options: ReadOptions) -> None:
        super().__init__(path, options)
        self.binary = binary
        self.blank = 0
        self._raw = raw
        self._packed = raw is not binary
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._utf8: BinaryIO | None = None

    @property
    def stem(self) -> str:
        """The path of the file without its last suffix and `.gz`; the id of a document that is a whole file."""
        place = self.options.place or self.path.name
        return str(PurePosixPath(place[:-3] if place.lower().endswith(".gz") else place).with_suffix(""))

    @property
    def position(self) -> int:
        """The number of bytes read so far, before decompression."""
        return 0 if self._raw.closed else self._raw.tell()

    @property
    def utf8(self) -> BinaryIO:
        """The decompressed bytes, converted to UTF-8 if the file has another encoding.

        Raises:
            InputError: the beginning of the file shows that its encoding isn't the given one, or that it isn't text.
        """
        if self._utf8 is None:
            encoding = self.options.encoding
            check_head(self.path, self.binary.peek(_HEAD)[:_HEAD], encoding)
            converted = None if self.options.is_utf8 else ConvertedFile(self.binary, encoding)
            self._utf8 = self.binary if converted is None else io.BufferedReader(converted, _BUFFER)
        return self._utf8

    def lines(self) -> Iterator[tuple[int, str | InputError]]:
        """Yield the number and the text of each line, without its end, or the error if the line can't be read.

        A byte order mark at the start of the file is left out. A line that is longer than the limit of a document isn't
        held in memory.

        Raises:
            InputError: see `utf8`.
        """
        offset = 0
        for number in itertools.count(1):
            line = self.utf8.readline(self.options.limit + len(BOM_UTF8) + 2)
            if not line:
                return
            content = line.rstrip(b"\r\n")
            start = offset
            offset += len(line)
            if not start and content.startswith(BOM_UTF8):
                start, content = len(BOM_UTF8), content.removeprefix(BOM_UTF8)
            if len(content) > self.options.limit:
                size = offset - start + (0 if line.endswith(b"\n") else self._skip_line())
                offset = start + size
                yield number, TooLongError(f"{self.path}, line {number}", size, self.options)
                continue
            if b"\0" in content and is_laden(content):
                yield (
                    number,
                    InputError(f"{self.path}, line {number}: mostly NUL bytes, not text: fetch the file again"),
                )
                continue
            try:
                yield number, self.decode(content)
            except UnicodeDecodeError as error:
                yield number, self.undecodable(number, start + error.start)

    def text(self) -> str:
        """Return the whole text without its byte order mark. Line ends stay as they are.

        Raises:
            InputError: it is longer than the limit of a document or can't be decoded; see also `utf8`.
        """
        content = self.utf8.read(self.options.limit + len(BOM_UTF8) + 1)
        start = len(BOM_UTF8) if content.startswith(BOM_UTF8) else 0
        if len(content) - start > self.options.limit:
            size = len(content) - start
            while more := self.utf8.read(_BUFFER):
                size += len(more)
            raise TooLongError(str(self.path), size, self.options)
        if is_laden(content):
            raise InputError(f"{self.path}: mostly NUL bytes, not text: fetch the file again")
        try:
            return self.decode(content[start:])
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, start + error.start) + 1
            raise self.undecodable(line, start + error.start) from error

    def _skip_line(self) -> int:
        """Read to the end of a line, and return the number of bytes."""
        size = 0
        while line := self.utf8.readline(_BUFFER):
            size += len(line)
            if line.endswith(b"\n"):
                break
        return size

    def undecodable(self, line: int, place: int) -> NotUtf8Error:
        """Return the error that a line can't be decoded.

        Args:
            place: of the first such byte in the decompressed file.
        """
        if not self.options.is_utf8:
            problem = f"not valid {self.options.encoding}"
        else:
            problem = f"not valid UTF-8 at byte {place} of the {'decompressed ' if self._packed else ''}file"
        advice = "set encoding, or set errors to replace"
        return NotUtf8Error(f"{self.path}, line {line}: {problem}: convert the file", advice)

    def read(self, size: int) -> bytes:
        """Read about this many bytes, for parsers that decode UTF-8 themselves; nothing at the end of the file.

        Raises:
            InputError: see `utf8`.
        """
        if self.options.errors == "strict" or not size:
            return self.utf8.read(size)
        while True:
            chunk = self.utf8.read(size)
            before = self._decoder.getstate()[0]
            text = self._decoder.decode(chunk, final=not chunk)
            after = self._decoder.getstate()[0]
            content = before + chunk
            self._count(text, content[: len(content) - len(after)])
            if text or not chunk:
                return text.encode()


class TooLongError(InputError):
    """A document is longer than the limit."""

    def __init__(self, where: str, size: int, options: ReadOptions) -> None:
        super().__init__(
            f"{where}: a document of {size / 1e6:,.1f} MB, more than the limit of {options.max_document_megabytes:g}: "
            f"put each document in a line of its own, or set max_document_megabytes"
        )


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
    if packed and not cast(io.BufferedReader, raw).peek(1):
        raise EOFError("it is empty")
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
