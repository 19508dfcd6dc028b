"""Files of text: which are meant, and the documents in them; every fault is told with its place."""

from __future__ import annotations

import glob
import gzip
import json
import logging
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet

from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
_JSONL = (".jsonl", ".jsonl.gz")
_REPLACEMENT = "\ufffd"


def resolve(source: str | Path | Sequence[str | Path]) -> list[Path] | str:
    """Return the files meant, in order, or the name of the Hub data set meant."""
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    files: list[Path] = []
    for one in sources:
        found = _files(one)
        if not found and len(sources) == 1 and not Path(one).exists() and _looks_like_hub_name(str(one)):
            return str(one)
        if not found:
            raise InputError(f"no corpus at {one}: give a file or folder of {', '.join(SUFFIXES)}, or a Hub data set")
        files.extend(found)
    if not files:
        raise InputError("no corpus given: name files, folders or a Hub data set")
    return files


def corpus_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files of a corpus in the order in which they are read.

    Raises:
        InputError: nothing there, or a Hub data set, which is no files.
    """
    found = resolve(source)
    if isinstance(found, str):
        raise InputError(
            f"no files at {found}, which may be a data set of the Hub: write it to files first "
            f"(`datasets.load_dataset`, then `to_parquet`), and name those"
        )
    return found


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be read as bytes, unpacked where its name ends in `.gz`.

    Raises:
        InputError: it cannot be read, also where that shows only later, within the `with`.
    """
    opening = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with cast(BinaryIO, opening(path, "rb")) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def numbered_bytes(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield lines without their end, each with the byte at which it starts; a byte order mark is left out."""
    offset = 0
    for line in file:
        if not offset and line.startswith(BOM_UTF8):  # some editors write one, and it is no text
            offset, line = len(BOM_UTF8), line.removeprefix(BOM_UTF8)
        yield offset, line.rstrip(b"\r\n")
        offset += len(line)


def documents_of(file: Path, text_column: str, errors: str = "strict") -> Iterator[str]:
    """Yield the documents of a file that are not empty.

    Raises:
        InputError: the file cannot be read (where in it).
    """
    for text in _texts(file, text_column, errors):
        if text.strip():
            yield text


def report_undecodable(files: Sequence[Path], text_column: str) -> None:
    """Say of each file how much of it is not UTF-8, and will be replaced."""
    for file in files:
        try:
            number = sum(_undecodable(content) for _, content in _contents(file, text_column))
        except InputError:  # which is told when it is read for good
            continue
        if number:
            logger.warning("%s: %d undecodable bytes or sequences are replaced by U+FFFD", file, number)


def _undecodable(content: bytes) -> int:
    if content.isascii():
        return 0
    return content.decode("utf-8", "replace").count(_REPLACEMENT) - content.count(_REPLACEMENT.encode())


class NoText(InputError):
    """Files that hold nothing but empty documents."""


def no_text(files: Sequence[str | Path]) -> NoText:
    """Say that these files hold nothing but empty documents."""
    return NoText(f"no text in {', '.join(map(str, files[:3]))}: every document is empty")


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path} is of no kind known here: give one of {', '.join(SUFFIXES)}")
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(source), recursive=True))
    return sorted(file for file in found if file.is_file() and file.name.endswith(SUFFIXES))


def _looks_like_hub_name(source: str) -> bool:
    name = source.partition(":")[0].partition("@")[0]
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and name[0] != "." and not name.endswith(SUFFIXES)


def _texts(path: Path, text_column: str, errors: str) -> Iterator[str]:
    packed = " of the unpacked text" if path.name.endswith(".gz") else ""
    for number, (offset, content) in enumerate(_contents(path, text_column), start=1):
        try:
            text = content.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            where = f" of row {number}" if path.name.endswith(".parquet") else packed
            raise InputError(
                f"{path} is not valid UTF-8 at byte {offset + error.start}{where}: convert or mend it, or --errors "
                f"replace"
            ) from error
        yield _json_text(path, number, text, text_column) if path.name.endswith(_JSONL) else text


def _contents(path: Path, text_column: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, or the values of a column, each with the byte at which it starts, or 0."""
    if path.name.endswith(".parquet"):
        yield from ((0, value) for value in _parquet_values(path, text_column))
        return
    with opened(path) as file:
        yield from numbered_bytes(file)


def _json_text(path: Path, number: int, line: str, text_column: str) -> str:
    if not line.strip():
        return ""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from error
    text = row.get(text_column, 0) if isinstance(row, dict) else 0
    if text is None:  # an empty document, as in a parquet file
        return ""
    if not isinstance(text, str):
        raise InputError(f"{path}, line {number}: no text under {text_column!r}; name the column with --text_column")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud83d" alone is JSON, and no character
        raise InputError(f"{path}, line {number}: half a surrogate pair, which is no text: mend it") from error
    return text


def _parquet_values(path: Path, text_column: str) -> Iterator[bytes]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_column not in file.schema_arrow.names:
                raise InputError(f"{path} has no column {text_column!r}: it has {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(columns=[text_column]):
                values = batch.column(0)
                if pa.types.is_dictionary(values.type):
                    values = values.dictionary_decode()
                if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
                    raise InputError(f"{path}: the column {text_column!r} holds no text")
                for value in values.cast(pa.large_binary()).to_pylist():
                    yield value or b""
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a whole parquet file ({' '.join(str(error).split())})") from error
