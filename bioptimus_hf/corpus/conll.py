"""CoNLL files: a token and its tag a line, an empty line after a sentence, tags in IOB2."""

from __future__ import annotations

import logging
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

Sentence = tuple[list[str], list[str]]
"""The words of a sentence, and as many tags."""

# A type does not begin or end with a hyphen: seqeval would strip it and take `a-` and `a` for one type.
TAG = re.compile(r"O|[BI]-[^\s-](\S*[^\s-])?")
DOCUMENT_START = "-DOCSTART-"


def read_conll(path: str | Path, *, types: Collection[str] | None = None) -> list[Sentence]:
    """Read the sentences of a CoNLL file.

    Columns are parted by tabs, or by single blanks where the first line has no tab. The first column is the token, the
    last one the tag, and all lines have the same number of columns. `-DOCSTART-` lines, of any columns, end a
    sentence and are left out. An `I-` tag that continues nothing becomes `B-`; how often this was done is logged as a
    warning.

    Args:
        types: the entity types that may occur; by default any.

    Returns:
        A pair (tokens, tags) a sentence.

    Raises:
        InputError: the file is missing, holds no sentence, is not UTF-8, or has a line that is malformed or whose tag
            is unknown (which one).
    """
    path = Path(path)
    sentences: list[Sentence] = []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    # Not bytes.splitlines: a lone carriage return may stand in a token.
    for sentence in parse_conll(path, content.removeprefix(BOM_UTF8).split(b"\n"), types=types):
        if isinstance(sentence, InputError):
            raise sentence
        sentences.append(sentence)
    if not sentences:
        raise InputError(f"{path} holds no sentence: give a file with a token and its tag a line")
    return sentences


def parse_conll(
    path: Path, lines: Iterable[bytes], *, types: Collection[str] | None = None
) -> Iterator[Sentence | InputError]:
    """Yield the sentences of a CoNLL file as `read_conll` does, one at a time, and the fault of one that has any.

    Args:
        path: what faults are told of.
        lines: of the file, without their ends and without a byte order mark.
    """
    layout = _Layout(path)
    repaired: list[int] = []
    tokens: list[str] = []
    tags: list[str] = []
    fault: InputError | None = None
    for number, line in enumerate(chain(lines, [b""]), start=1):  # the last sentence may lack its empty line
        try:
            row = layout.row(number, line)
            if row is not None:
                check_row(f"{path}, line {number}", *row, types)
        except InputError as error:
            fault = fault or error
            continue
        if row is None:
            if fault or tokens:
                yield fault or (tokens, tags)
            tokens, tags, fault = [], [], None
            continue
        token, tag = row
        mended = begun(tag, tags[-1:])
        if mended != tag:
            repaired.append(number)
        tokens.append(token)
        tags.append(mended)
    if repaired:
        logger.warning("%s: %d I- tags continue nothing, read as B- (first: line %d)", path, len(repaired), repaired[0])


def write_conll(path: str | Path, sentences: Sequence[Sequence[Sequence[str]]]) -> None:
    """Write sentences, each given as its columns (tokens first), parted by tabs."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for columns in sentences:
            file.writelines("\t".join(row) + "\n" for row in zip(*columns, strict=True))
            file.write("\n")


def types_of(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """Return the entity types that occur, in alphabetical order."""
    return tuple(sorted({tag[2:] for _, tags in sentences for tag in tags if tag != "O"}))


def count_mentions(sentences: Sequence[Sentence]) -> int:
    """Return the number of entity mentions."""
    return sum(tag.startswith("B-") for _, tags in sentences for tag in tags)


def check_row(where: str, token: str, tag: str, types: Collection[str] | None) -> None:
    """Refuse an empty token, a tag that is not of IOB2, and a type that is not among `types` (None: any will do).

    Raises:
        InputError: which of these it is, and `where`.
    """
    if not token:
        raise InputError(f"{where}: the token is empty")
    if not TAG.fullmatch(tag):
        raise InputError(f"{where}: unknown tag {tag!r}: give O, B-<type> or I-<type>")
    if types is not None and tag != "O" and tag[2:] not in types:
        raise InputError(f"{where}: tag {tag!r} is of an unknown type: known are {', '.join(types) or 'none'}")


def begun(tag: str, before: Sequence[str]) -> str:
    """Return `B-` for an `I-` tag that continues nothing, and any other tag as it is.

    Args:
        before: the tags before it in the sentence; the last one matters.
    """
    if tag.startswith("I-") and (not before or before[-1][2:] != tag[2:]):
        return f"B-{tag[2:]}"
    return tag


class _Layout:
    """What parts the columns, and how many there are, as the first line of two or more has them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._separator = ""
        self._columns = self._first = 0

    def row(self, number: int, content: bytes) -> tuple[str, str] | None:
        """Return token and tag of a line, or None where a sentence ends."""
        line = self._decoded(number, content)
        if line.split(maxsplit=1)[:1] in ([], [DOCUMENT_START]):
            return None
        separator = self._separator or ("\t" if "\t" in line else " ")
        row = line.split(separator)
        if len(row) < 2:
            raise InputError(f"{self._path}, line {number}: a token and its tag are needed, not {line!r}")
        if not self._columns:
            self._separator, self._columns, self._first = separator, len(row), number
        if len(row) != self._columns:
            raise InputError(
                f"{self._path}, line {number}: {len(row)} columns, where line {self._first} has {self._columns}: "
                f"{line!r}"
            )
        return row[0].strip(), row[-1].strip()

    def _decoded(self, number: int, content: bytes) -> str:
        try:
            return content.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self._path}, line {number}: not valid UTF-8 at byte {error.start} of the line: convert or mend it"
            ) from error
