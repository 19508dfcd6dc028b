"""Read CoNLL: a token and its tag per line, an empty line after each sentence, tags in any scheme."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from bioptimus_hf.corpus.documents import Document, Entity, join_passages
from bioptimus_hf.corpus.encodings import NotUtf8Error
from bioptimus_hf.corpus.reading import InputFile, ReadOptions, TooLongError, open_input
from bioptimus_hf.corpus.tags import OUTSIDE, Tag, TagConverter, parse_tag
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

Sentence = tuple[list[str], list[str]]
"""The words of a sentence and as many tags."""

# Of CoNLL-2003, of GENIA and JNLPBA, of CoNLL-U, and of CoNLL-2012.
DOCUMENT_START = re.compile(
    r"-DOCSTART-(?:\s.*)?|###MEDLINE:\s*(\S*).*|# ?newdoc(?:\s+id\s*=\s*(.*))?|#begin document .*"
)
"""A line that begins a document."""


def read_conll(
    path: str | Path, *, types: Collection[str] | None = None, type_name: str | None = None
) -> list[Sentence]:
    """Read the sentences of a CoNLL file, plain or `.gz`.

    Columns are separated by tabs, or by blanks if the first line has no tab. The first column is the token, the last
    one the tag, and all lines have the same number of columns. These lines are left out:

    - lines that begin a document (`-DOCSTART-`, `###MEDLINE:`, `# newdoc`, `#begin document`), which end a sentence;
    - comments: lines that begin with `#` and don't have the columns of the others.

    Tags may be IOB2, IOB1, IOBES, BILOU or BMES. They are converted to IOB2, and a warning says how many were.

    Args:
        types: the entity types that may occur; by default any.
        type_name: the type of tags that carry none (`B` and `I`).

    Returns:
        A pair (tokens, tags) per sentence.

    Raises:
        InputError: the file is missing, has no sentence or isn't UTF-8; or a line is malformed, or its tag unknown or
            without a type that isn't named (which line).
    """
    return read_conll_with_documents(path, types=types, type_name=type_name)[0]


def read_conll_with_documents(
    path: str | Path, *, types: Collection[str] | None = None, type_name: str | None = None
) -> tuple[list[Sentence], list[str | None]]:
    """Read the sentences of a CoNLL file as `read_conll` does, and the id of the document that each belongs to.

    A document whose line has no id is called by its number in the file, counted from 1. Sentences before the first line
    that begins a document belong to none.
    """
    sentences: list[Sentence] = []
    documents: list[str | None] = []
    name: str | None = None
    number, is_empty = 0, False
    with open_input(path, ReadOptions(type_name=type_name)) as file:
        for sentence in _sentences(file, types):
            if isinstance(sentence, NotUtf8Error):
                raise InputError(f"{sentence}, for example with iconv -f latin1 -t utf-8") from sentence
            if isinstance(sentence, InputError):
                raise sentence
            if isinstance(sentence, _DocumentStart):
                number += not is_empty  # two lines may begin one document
                name, is_empty = sentence.id or str(number), True
                continue
            sentences.append(sentence)
            documents.append(name)
            is_empty = False
    if not sentences:
        raise InputError(f"{path} has no sentence: give a file with a token and its tag per line")
    return sentences, documents


def read_words(path: str | Path) -> list[list[str]]:
    """Read the tokens of each sentence of a CoNLL file, whatever the tags.

    Raises:
        InputError: the file is missing, has no sentence or isn't UTF-8, or a line is malformed (which line).
    """
    sentences: list[list[str]] = []
    with open_input(path, ReadOptions(annotations="ignored")) as file:
        for sentence in _sentences(file):
            if isinstance(sentence, InputError):
                raise sentence
            if not isinstance(sentence, _DocumentStart):
                sentences.append(sentence[0])
    if not sentences:
        raise InputError(f"{path} has no sentence: give a file with a token and its tag per line")
    return sentences


def has_types(path: str | Path) -> bool:
    """Return whether the first entity of a CoNLL file has a type; false if there is none.

    Raises:
        InputError: the file can't be read, or a line before is malformed (which line).
    """
    with open_input(path, ReadOptions(type_name="any")) as file:
        rows = _Rows(file, None)
        for number, line in rows.lines():
            row = rows.read(number, line)
            if isinstance(row, _Row) and row.parsed.mark != OUTSIDE:
                return bool(row.parsed.type)
    return False


def read_conll_documents(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the documents of a CoNLL file, and an error for each document that has one.

    A document begins at each line that `read_conll` takes for the beginning of one; sentences before the first of these
    lines, or in a file without any, are documents of their own. The text is the tokens separated by single spaces. In
    documents of several sentences, each sentence is a passage, and a line break follows it. Columns between the first
    and the last are left out.
    """
    for number, (name, sentences) in enumerate(_groups(file), start=1):
        fault = next((sentence for sentence in sentences if isinstance(sentence, InputError)), None)
        read = [sentence for sentence in sentences if not isinstance(sentence, InputError)]
        yield fault or _document(name or file.name(number), read, is_sentence=name is None)


def types_of(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """Return the entity types that occur, in alphabetical order."""
    return tuple(sorted({tag[2:] for _, tags in sentences for tag in tags if tag != "O"}))


class _DocumentStart(NamedTuple):
    """The beginning of a document: its id if the line has one, and the number of the line."""

    id: str
    line: int


class _Row(NamedTuple):
    """A line with a token: its number, the token, the tag as it was read, what it means, and what is wrong with it."""

    number: int
    token: str
    tag: str
    parsed: Tag
    fault: InputError | None = None


def _groups(file: InputFile) -> Iterator[tuple[str | None, list[Sentence | InputError]]]:
    """Yield the sentences of each document after its id, which may be empty; None for one outside of documents."""
    name: str | None = None
    held: list[Sentence | InputError] = []
    size = begin = 0
    for item in _sentences(file):
        if not isinstance(item, _DocumentStart):
            if name is None:
                yield None, [item]
                continue
            size += 0 if isinstance(item, InputError) else sum(map(len, item[0])) + len(item[0])
            if size > file.options.limit:  # is only counted, so that memory doesn't grow with it
                held = [TooLongError(f"{file.path}, document that begins in line {begin}", size, file.options)]
            else:
                held.append(item)
            continue
        two_lines = name == "" and not held and item.id  # for one document
        if name is not None and not two_lines:
            yield name, held
        name, begin, held, size = item.id, item.line, [], 0
    if name is not None:
        yield name, held


def _sentences(
    file: InputFile, types: Collection[str] | None = None
) -> Iterator[Sentence | _DocumentStart | InputError]:
    """Yield the sentences of a CoNLL file, an error for each sentence that has one, and the beginnings of documents."""
    reader = _Rows(file, types)
    rows: list[_Row] = []
    fault: InputError | None = None
    size = 0
    for number, line in chain(reader.lines(), [(0, "")]):  # the last sentence may lack its empty line
        try:
            row = reader.read(number, line)
        except InputError as error:
            fault = fault or error
            continue
        if isinstance(row, _Row):
            size += len(row.token) + 1
            if size <= file.options.limit + 1 or not rows:  # what is over the limit is only counted
                rows.append(row)
            continue
        if row is None:
            continue
        if not fault and size > file.options.limit + 1:
            fault = TooLongError(f"{file.path}, line {rows[0].number}", size - 1, file.options)
        if fault or rows:
            yield fault or reader.sentence(rows)
        rows, fault, size = [], None, 0
        if isinstance(row, re.Match):
            yield _DocumentStart(next(filter(None, row.groups()), "").strip(), number)


class _Rows:
    """Reads the lines of a CoNLL file.

    The first line that isn't a comment tells what separates columns and how many there are. If annotations aren't
    needed, lines without a tag or with an unknown one are read too, but only in files that have known tags: a table of
    something else is not CoNLL.
    """

    def __init__(self, file: InputFile, types: Collection[str] | None) -> None:
        self._file = file
        self._where = f"{file.path}, line"
        self._needed = file.options.annotations == "needed"
        self._converter = TagConverter(file.note, types, file.options.type_name)
        self._has_tags = False
        self._separator = ""
        self._columns = self._first = 0

    def lines(self) -> Iterator[tuple[int, str | InputError]]:
        """Yield numbered lines, which may also end in a carriage return alone."""
        first: list[tuple[int, str | InputError]] = []
        rest = _lines(self._file)
        for number, line in rest:
            first.append((number, line))
            if (
                isinstance(line, str)
                and line.strip()
                and not line.startswith("#")
                and not DOCUMENT_START.fullmatch(line)
            ):
                self._learn(number, line)
                break
        yield from first
        yield from rest

    def read(self, number: int, line: str | InputError) -> _Row | re.Match[str] | str | None:
        """Return a row, the match of a line that begins a document, "" where a sentence ends, or None for a comment.

        Raises:
            InputError: the line can't be decoded, or has no token; if annotations are needed, it is malformed.
        """
        if isinstance(line, InputError):
            raise line
        if not line or line.isspace():
            return ""
        if line[0] in "-#" and (marker := DOCUMENT_START.fullmatch(line)):
            return marker
        if not self._columns and (line[0] != "#" or "\t" in line or parse_tag(line.split()[-1])):
            self._learn(number, line)
        columns = _split(line, self._separator or " ")
        if line.startswith("#") and self._is_comment(columns):
            self._file.note("comments, left out", f"line {number}, {line[:60]!r}")
            return None
        token, tag = columns[0].strip(), columns[-1].strip()
        if not token:
            raise InputError(f"{self._where} {number}: the token is empty")
        try:
            self._check_columns(number, line, columns)
            parsed = self._converter.parse(f"{self._where} {number}", tag)
        except InputError as error:
            if self._needed:
                raise
            return _Row(number, token, tag, Tag(OUTSIDE), error)
        finally:
            if not self._has_tags:
                self._has_tags = len(columns) > 1 and parse_tag(tag) is not None
        return _Row(number, token, tag, parsed)

    def sentence(self, rows: Sequence[_Row]) -> Sentence | InputError:
        """Return the tokens and tags of a sentence, or its error."""
        fault = next((row.fault for row in rows if row.fault), None)
        if fault and not self._has_tags:
            return fault
        tokens = [row.token for row in rows]
        if self._columns > 2 and len(tokens) > 2 and _are_numbered(tokens):
            return InputError(
                f"{self._where} {rows[0].number}: the first column numbers the tokens: remove it, so that each line "
                f"begins with its token"
            )
        if self._file.options.annotations == "ignored":
            return tokens, [OUTSIDE] * len(rows)
        for row in rows:
            if row.fault:
                what = "tags that can't be read or have no type, left out"
                self._file.note(what, f"line {row.number}, {row.tag!r}")
        tags = [OUTSIDE if row.fault else row.tag for row in rows]
        return tokens, self._converter.convert(tags, [row.parsed for row in rows], "line", [row.number for row in rows])

    def _learn(self, number: int, line: str) -> None:
        """Take separator and number of columns from a line."""
        separator = "\t" if "\t" in line else " "
        if (columns := len(_split(line, separator))) > 1:
            self._separator, self._columns, self._first = separator, columns, number

    def _is_comment(self, columns: Sequence[str]) -> bool:
        """Tell whether a line that begins with `#` is a comment, and not a token that does."""
        if self._separator == "\t":
            return len(columns) == 1
        return len(columns) != self._columns or parse_tag(columns[-1]) is None

    def _check_columns(self, number: int, line: str, columns: Sequence[str]) -> None:
        if len(columns) < 2:
            raise InputError(f"{self._where} {number}: expected a token and its tag, not {line[:100]!r}")
        if len(columns) != self._columns:
            raise InputError(
                f"{self._where} {number}: {len(columns)} columns, but line {self._first} has {self._columns}: "
                f"{line[:100]!r}"
            )


def _lines(file: InputFile) -> Iterator[tuple[int, str | InputError]]:
    more = 0  # lines than line feeds
    for number, line in file.lines():
        if isinstance(line, InputError) or "\r" not in line:
            yield number + more, line
            continue
        pieces = line.split("\r")
        yield from enumerate(pieces, start=number + more)
        more += len(pieces) - 1


def _are_numbered(tokens: Sequence[str]) -> bool:
    first = int(tokens[0] == "1")
    return list(tokens) == [str(number) for number in range(first, first + len(tokens))]


def _split(line: str, separator: str) -> list[str]:
    """Split a line into columns; empty ones at its end, and blanks in a row, count for nothing."""
    if separator == "\t":
        columns = line.rstrip(" ").split("\t")
        while len(columns) > 2 and not columns[-1].strip():
            columns.pop()
        return columns
    first, *more = re.split("[ \t]", line.rstrip(" \t"))
    return [first, *filter(None, more)]


def _document(name: str, sentences: Sequence[Sentence], *, is_sentence: bool) -> Document:
    """Make a document of sentences, each of which is a passage, or of one sentence without passages."""
    text, passages = join_passages((" ".join(words), None, {"type": "sentence"}) for words, _ in sentences)
    tokens: list[tuple[int, int]] = []
    entities: list[Entity] = []
    for passage, (words, tags) in zip(passages, sentences, strict=True):
        start = passage.start
        for word, tag in zip(words, tags, strict=True):
            end = start + len(word)
            tokens.append((start, end))
            if tag != OUTSIDE:
                begin = entities.pop().start if tag.startswith("I-") else start
                entities.append(Entity(begin, end, text[begin:end], tag[2:]))
            start = end + 1
    return Document(name, text, tuple(entities), () if is_sentence else passages, tuple(tokens))
