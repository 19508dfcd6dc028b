"""Read and write CoNLL: a token and its tag per line, an empty line after each sentence.

Tags are read in any scheme and written in IOB2.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

from bioptimus_hf.corpus.documents import Document, Entity, join_passages, without_overlaps
from bioptimus_hf.corpus.reading import InputFile, NotUtf8Error, ReadOptions, open_input
from bioptimus_hf.corpus.tags import OUTSIDE, Tag, parse_tag, to_iob2
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

Sentence = tuple[list[str], list[str]]
"""The words of a sentence and as many tags."""

# A type neither begins nor ends with a hyphen: seqeval would strip it and confuse `a-` with `a`.
TAG = re.compile(r"O|[BI]-[^\s-](\S*[^\s-])?")
"""A tag of IOB2."""

# The only form that spaCy's converter recognises. Most other programs look for `-DOCSTART-` at the start of a line.
_DOCUMENT_LINE = "-DOCSTART- -X- O O"
# Of CoNLL-2003, of GENIA and JNLPBA, of CoNLL-U, and of CoNLL-2012.
_MARKER = re.compile(r"-DOCSTART-(?:\s.*)?|###MEDLINE:\s*(\S*).*|# ?newdoc(?:\s+id\s*=\s*(.*))?|#begin document .*")

# Combining marks, joiners and variation selectors belong to the letter before them. U+FEFF is left out: at the start of
# a file it would be a byte order mark.
_TOKEN = re.compile(
    r"(?:\w[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u200c\u200d\ufe00-\ufe2f]*)+|[^\s\ufeff]"
)


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
    sentences: list[Sentence] = []
    with open_input(path, ReadOptions(type_name=type_name)) as file:
        for sentence in _sentences(file, types):
            if isinstance(sentence, NotUtf8Error):
                raise InputError(f"{sentence}, for example with iconv -f latin1 -t utf-8") from sentence
            if isinstance(sentence, InputError):
                raise sentence
            if not isinstance(sentence, _DocumentStart):
                sentences.append(sentence)
    if not sentences:
        raise InputError(f"{path} has no sentence: give a file with a token and its tag per line")
    return sentences


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


def conll_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield documents as CoNLL, a block per sentence, with the line `-DOCSTART- -X- O O` before each document.

    If the source of a document had tokens, they are used, and each passage is a sentence. Without passages, the
    document is a sentence, and no line precedes it, unless it follows a document that has one. Without tokens, a token
    is a run of letters and digits, or any other character except white space and U+FEFF; no sentence ends within an
    entity. Tokens are cut where an entity begins or ends in them. If entities overlap, only the longest is written, and
    a warning says how many others there were.

    Raises:
        InputError: a type or a given token can't be written in a column.
    """
    left_out = 0
    marked = False
    for document in documents:
        entities = without_overlaps(document.entities)
        left_out += len(document.entities) - len(entities)
        for entity in entities:
            if not TAG.fullmatch(f"B-{entity.label}"):
                raise InputError(f"document {document.id}: {entity.label!r} can't be a type in CoNLL: rename it")
        spans = document.tokens or [found.span() for found in _TOKEN.finditer(document.text)]
        if document.tokens:
            ends = [passage.end for passage in document.passages]
        else:
            ends = list(_sentence_ends(document.text, entities))
        marked = marked or not document.tokens or bool(document.passages)
        if marked:
            yield f"{_DOCUMENT_LINE}\n\n"
        yield from _block(document, _cut(document.text, spans, entities), entities, ends)
    if left_out:
        logger.warning("CoNLL has one tag per token: left out %d entities that overlap longer ones", left_out)


def write_conll(path: str | Path, sentences: Sequence[Sequence[Sequence[str]]]) -> None:
    """Write sentences, each given as its columns (tokens first), separated by tabs."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for columns in sentences:
            file.writelines("\t".join(row) + "\n" for row in zip(*columns, strict=True))
            file.write("\n")


def types_of(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """Return the entity types that occur, in alphabetical order."""
    return tuple(sorted({tag[2:] for _, tags in sentences for tag in tags if tag != "O"}))


def known_tag(tag: str) -> Tag | None:
    """Return what a tag means, None if it is unknown or its type can't be written in CoNLL."""
    found = parse_tag(tag)
    return found if found is not None and (len(tag) == 1 or TAG.fullmatch(f"B-{found.type}")) else None


class TagConverter:
    """Converts the tags of sentences to IOB2, and notes what it changes.

    Args:
        note: counts a conversion and keeps the first example, like `Notes.note`.
        types: the entity types that may occur; by default any.
        type_name: the type of tags that carry none.
    """

    def __init__(
        self, note: Callable[[str, str], None], types: Collection[str] | None = None, type_name: str | None = None
    ) -> None:
        self._note = note
        self._types = types
        self._type_name = type_name
        self._first: tuple[str, str, bool] | None = None  # first tag of an entity: where, the tag, if it has a type

    def parse(self, where: str, tag: str) -> Tag:
        """Read a tag.

        Args:
            where: where the tag is, for messages.

        Raises:
            InputError: the tag is unknown, has an unknown type, or has no type and `type_name` isn't given; or some
                tags have a type and others have none.
        """
        found = known_tag(tag)
        if found is None:
            raise InputError(
                f"{where}: unknown tag {tag!r}: give O, B-<type> or I-<type> (or tags of IOBES or BILOU) in the last "
                f"column"
            )
        if found.mark == OUTSIDE:
            return found
        if not found.type and not self._type_name:
            raise InputError(
                f"{where}: the tag {tag!r} has no type: name the type of all entities (type_name, or merged_type of a "
                f"task)"
            )
        if found.type and self._types is not None and found.type not in self._types:
            known = ", ".join(self._types) or "none"
            raise InputError(f"{where}: tag {tag!r} has an unknown type: known types are {known}")
        place, other, typed = self._first = self._first or (where, tag, bool(found.type))
        if typed != bool(found.type):
            raise InputError(f"{where}: tag {tag!r}, but {place} has {other!r}: give all tags a type, or none")
        return found

    def convert(self, tags: Sequence[str], parsed: Sequence[Tag], unit: str, numbers: Sequence[int]) -> list[str]:
        """Return the tags of a sentence in IOB2.

        Args:
            tags: as they were read.
            parsed: the same tags, from `parse`.
            unit: what is numbered, `line` or `row`.
            numbers: where each tag is.
        """
        converted: list[str] = []
        for tag, found, iob2, number in zip(tags, parsed, to_iob2(parsed), numbers, strict=True):
            written = OUTSIDE if iob2.mark == OUTSIDE else f"{iob2.mark}-{iob2.type or self._type_name}"
            converted.append(written)
            if written == tag:
                continue
            if found.mark == "I" and iob2.mark == "B" and found.type:
                kind = "I- tags that begin an entity (as in IOB1), read as B-"
            elif found.mark != OUTSIDE and not found.type:
                kind = f"tags without a type, read as {self._type_name}"
            else:
                kind = "tags of other schemes, converted to IOB2"
            self._note(kind, f"{unit} {number}, {tag!r}")
        return converted


class _DocumentStart(NamedTuple):
    """The beginning of a document, and its id if the line has one."""

    id: str


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
    for item in _sentences(file):
        if not isinstance(item, _DocumentStart):
            if name is None:
                yield None, [item]
            else:
                held.append(item)
            continue
        two_lines = name == "" and not held and item.id  # for one document
        if name is not None and not two_lines:
            yield name, held
        name, held = item.id, []
    if name is not None:
        yield name, held


def _sentences(
    file: InputFile, types: Collection[str] | None = None
) -> Iterator[Sentence | _DocumentStart | InputError]:
    """Yield the sentences of a CoNLL file, an error for each sentence that has one, and the beginnings of documents."""
    reader = _Rows(file, types)
    rows: list[_Row] = []
    fault: InputError | None = None
    for number, line in chain(reader.lines(), [(0, "")]):  # the last sentence may lack its empty line
        try:
            row = reader.read(number, line)
        except InputError as error:
            fault = fault or error
            continue
        if isinstance(row, _Row):
            rows.append(row)
            continue
        if row is None:
            continue
        if fault or rows:
            yield fault or reader.sentence(rows)
        rows, fault = [], None
        if isinstance(row, re.Match):
            yield _DocumentStart(next(filter(None, row.groups()), "").strip())


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
            if isinstance(line, str) and line.strip() and not line.startswith("#") and not _MARKER.fullmatch(line):
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
        if line[0] in "-#" and (marker := _MARKER.fullmatch(line)):
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


def _block(
    document: Document, tokens: Sequence[tuple[int, int]], entities: Sequence[Entity], ends: Sequence[int]
) -> Iterator[str]:
    """Yield the lines of a document, given where its sentences end. No token crosses the edge of an entity."""
    entity = sentence = 0
    inside = False
    for start, end in tokens:
        if sentence < len(ends) and start >= ends[sentence]:
            yield "\n"
            inside = False
            while sentence < len(ends) and start >= ends[sentence]:
                sentence += 1
        while entity < len(entities) and start >= entities[entity].end:
            entity, inside = entity + 1, False
        if entity < len(entities) and start >= entities[entity].start:
            tag = f"{'I' if inside else 'B'}-{entities[entity].label}"
            inside = True
        else:
            tag = "O"
        yield f"{_writable(document, start, end)}\t{tag}\n"
    if tokens:
        yield "\n"


def _writable(document: Document, start: int, end: int) -> str:
    token = document.text[start:end]
    if token != token.strip() or not token or _MARKER.fullmatch(token) or re.search("[\t\n\r\ufeff]", token):
        raise InputError(f"document {document.id}: CoNLL can't hold the token {token!r}: give other tokens, or none")
    return token


def _cut(text: str, tokens: Iterable[tuple[int, int]], entities: Iterable[Entity]) -> list[tuple[int, int]]:
    """Cut tokens where an entity begins or ends in them, without white space at the edges."""
    edges = sorted({edge for entity in entities for edge in (entity.start, entity.end)})
    pieces: list[tuple[int, int]] = []
    place = 0
    for start, end in tokens:
        while place < len(edges) and edges[place] <= start:
            place += 1
        cuts = [start]
        while place < len(edges) and edges[place] < end:
            cuts.append(edges[place])
            place += 1
        if len(cuts) == 1:
            pieces.append((start, end))
            continue
        for left, right in pairwise([*cuts, end]):
            piece = text[left:right]
            if stripped := piece.strip():
                left += len(piece) - len(piece.lstrip())
                pieces.append((left, left + len(stripped)))
    return pieces


def _sentence_ends(text: str, entities: Sequence[Entity]) -> Iterator[int]:
    """Yield where sentences end, except within an entity."""
    from bioptimus_hf.corpus.sentences import sentences_of  # loads numpy, which the help of a command must not

    entity = end = 0
    for sentence in sentences_of(text):
        end = text.index(sentence, end) + len(sentence)
        while entity < len(entities) and entities[entity].end <= end:
            entity += 1
        if entity == len(entities) or end <= entities[entity].start:
            yield end
