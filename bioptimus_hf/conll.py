"""CoNLL files: a token and its tag a line, an empty line after a sentence, tags in IOB2."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from bioptimus_hf.artifacts import InputError

logger = logging.getLogger(__name__)

Sentence = tuple[list[str], list[str]]
"""The words of a sentence, and as many tags."""

# A type does not begin or end with a hyphen: seqeval would strip it and take `a-` and `a` for one type.
_TAG = re.compile(r"O|[BI]-[^\s-](\S*[^\s-])?")
_DOCUMENT = "-DOCSTART-"


def read_conll(path: str | Path, *, types: Collection[str] | None = None) -> list[Sentence]:
    """Read the sentences of a CoNLL file.

    Columns are parted by tabs, or by single blanks where the first line has no tab. The first column is the token, the
    last one the tag, and all lines have the same number of columns. `-DOCSTART-` lines are left out. An `I-` tag that
    continues nothing becomes `B-`; how often this was done is logged as a warning.

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
    repaired: list[int] = []
    tokens: list[str] = []
    tags: list[str] = []
    for number, row in _rows(path):
        if row is None:
            if tokens:
                sentences.append((tokens, tags))
            tokens, tags = [], []
            continue
        token, tag = row
        _check(f"{path}, line {number}", token, tag, types)
        if tag.startswith("I-") and (not tags or tags[-1][2:] != tag[2:]):
            tag = f"B-{tag[2:]}"
            repaired.append(number)
        tokens.append(token)
        tags.append(tag)
    if not sentences:
        raise InputError(f"{path} holds no sentence: give a file with a token and its tag a line")
    if repaired:
        logger.warning("%s: %d I- tags continue nothing, read as B- (first: line %d)", path, len(repaired), repaired[0])
    return sentences


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


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, str] | None]]:
    """Yield line numbers with token and tag, and None where a sentence ends."""
    separator = ""
    columns, first = 0, 0
    for number, line in _lines(path):
        if not line.strip():
            yield number, None
            continue
        if not columns:
            separator = "\t" if "\t" in line else " "
            columns, first = line.count(separator) + 1, number
        row = line.split(separator)
        if len(row) < 2:
            raise InputError(f"{path}, line {number}: a token and its tag are needed, not {line!r}")
        if len(row) != columns:
            raise InputError(f"{path}, line {number}: {len(row)} columns, where line {first} has {columns}: {line!r}")
        yield number, None if row[0] == _DOCUMENT else (row[0].strip(), row[-1].strip())
    yield -1, None  # the last sentence may lack its empty line


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    # Not str.splitlines: it also cuts at signs such as U+2028 that may stand in a token.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            yield number, line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not valid UTF-8 at byte {error.start} of the line: convert or mend it"
            ) from error


def _check(where: str, token: str, tag: str, types: Collection[str] | None) -> None:
    if not token:
        raise InputError(f"{where}: the token is empty")
    if not _TAG.fullmatch(tag):
        raise InputError(f"{where}: unknown tag {tag!r}: give O, B-<type> or I-<type>")
    if types is not None and tag != "O" and tag[2:] not in types:
        raise InputError(f"{where}: tag {tag!r} is of an unknown type: known are {', '.join(types) or 'none'}")
