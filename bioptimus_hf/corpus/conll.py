"""Read and write CoNLL: a token and its tag per line, an empty line after each sentence, tags in IOB2."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from bioptimus_hf.corpus.documents import Document, Entity, without_overlaps
from bioptimus_hf.corpus.reading import InputFile, open_input
from bioptimus_hf.corpus.sentences import sentences_of
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

Sentence = tuple[list[str], list[str]]
"""The words of a sentence and as many tags."""

# A type neither begins nor ends with a hyphen: seqeval would strip it and confuse `a-` with `a`.
TAG = re.compile(r"O|[BI]-[^\s-](\S*[^\s-])?")
_DOCUMENT_START = "-DOCSTART-"

# Combining marks, joiners and variation selectors belong to the letter before them. U+FEFF is left out: at the start of
# a file it would be a byte order mark.
_TOKEN = re.compile(
    r"(?:\w[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u200c\u200d\ufe00-\ufe2f]*)+|[^\s\ufeff]"
)


def read_conll(path: str | Path, *, types: Collection[str] | None = None) -> list[Sentence]:
    """Read the sentences of a CoNLL file, plain or `.gz`.

    Columns are separated by tabs, or by single spaces if the first line has no tab. The first column is the token, the
    last one the tag, and all lines have the same number of columns. `-DOCSTART-` lines, with any number of columns, end
    a sentence and are left out. An `I-` tag that doesn't continue an entity becomes `B-`; a warning says how often.

    Args:
        types: the entity types that may occur; by default any.

    Returns:
        A pair (tokens, tags) per sentence.

    Raises:
        InputError: the file is missing, has no sentence or isn't UTF-8, or a line is malformed or has an unknown tag
            (which line).
    """
    sentences: list[Sentence] = []
    with open_input(path) as file:
        for sentence in _sentences(file, types):
            if isinstance(sentence, InputError):
                raise sentence
            sentences.append(sentence)
    if not sentences:
        raise InputError(f"{path} has no sentence: give a file with a token and its tag per line")
    return sentences


def read_conll_documents(file: InputFile) -> Iterator[Document | InputError]:
    """Yield a document for each sentence of a CoNLL file, and an error for each sentence that has one.

    The text is the tokens separated by single spaces. Columns between the first and the last are left out.
    """
    for number, sentence in enumerate(_sentences(file), start=1):
        yield sentence if isinstance(sentence, InputError) else _document(str(number), *sentence)


def conll_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield documents as CoNLL, a block per sentence.

    If the source of a document had tokens, they are used and the document is one sentence. Otherwise a token is a run
    of letters and digits, or any other character except white space and U+FEFF; no sentence ends within an entity.
    Tokens are cut where an entity begins or ends in them. If entities overlap, only the longest is written, and a
    warning says how many others there were. A document without tokens has no block.

    Raises:
        InputError: a type or a given token can't be written in a column.
    """
    left_out = 0
    for document in documents:
        entities = without_overlaps(document.entities)
        left_out += len(document.entities) - len(entities)
        for entity in entities:
            if not TAG.fullmatch(f"B-{entity.label}"):
                raise InputError(f"document {document.id}: {entity.label!r} can't be a type in CoNLL: rename it")
        spans = document.tokens or [found.span() for found in _TOKEN.finditer(document.text)]
        ends = [] if document.tokens else list(_sentence_ends(document.text, entities))
        yield from _block(document, _cut(spans, entities), entities, ends)
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


def count_mentions(sentences: Sequence[Sentence]) -> int:
    """Return the number of entity mentions."""
    return sum(tag.startswith("B-") for _, tags in sentences for tag in tags)


def check_row(where: str, token: str, tag: str, types: Collection[str] | None) -> None:
    """Reject an empty token, a tag that isn't IOB2, and a type that isn't among `types` (None: any type is valid).

    Raises:
        InputError: one of these; the message begins with `where`.
    """
    if not token:
        raise InputError(f"{where}: the token is empty")
    if not TAG.fullmatch(tag):
        raise InputError(f"{where}: unknown tag {tag!r}: give O, B-<type> or I-<type>")
    if types is not None and tag != "O" and tag[2:] not in types:
        raise InputError(f"{where}: tag {tag!r} has an unknown type: known types are {', '.join(types) or 'none'}")


def repair_tag(tag: str, before: Sequence[str]) -> str:
    """Return `B-` for an `I-` tag that doesn't continue an entity, and any other tag unchanged.

    Args:
        before: the tags before it in the sentence; only the last one matters.
    """
    if tag.startswith("I-") and (not before or before[-1][2:] != tag[2:]):
        return f"B-{tag[2:]}"
    return tag


def _sentences(file: InputFile, types: Collection[str] | None = None) -> Iterator[Sentence | InputError]:
    """Yield the sentences of a CoNLL file as `read_conll` does, and an error for each sentence that has one."""
    layout = _Layout(file.path)
    repaired: list[int] = []
    tokens: list[str] = []
    tags: list[str] = []
    fault: InputError | None = None
    for number, line in chain(file.lines(), [(0, "")]):  # the last sentence may lack its empty line
        try:
            row = layout.row(number, line)
            if row is not None:
                check_row(f"{file.path}, line {number}", *row, types)
        except InputError as error:
            fault = fault or error
            continue
        if row is None:
            if fault or tokens:
                yield fault or (tokens, tags)
            tokens, tags, fault = [], [], None
            continue
        token, tag = row
        iob2 = repair_tag(tag, tags[-1:])
        if iob2 != tag:
            repaired.append(number)
        tokens.append(token)
        tags.append(iob2)
    if repaired:
        logger.warning(
            "%s: %d I- tags don't continue an entity and were read as B- (first: line %d)",
            *(file.path, len(repaired), repaired[0]),
        )


class _Layout:
    """Splits lines into columns, whose separator and number the first line of two or more columns determines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._separator = ""
        self._columns = self._first = 0

    def row(self, number: int, line: str | InputError) -> tuple[str, str] | None:
        """Return token and tag of a line, or None where a sentence ends."""
        if isinstance(line, InputError):
            raise line
        if line.split(maxsplit=1)[:1] in ([], [_DOCUMENT_START]):
            return None
        separator = self._separator or ("\t" if "\t" in line else " ")
        row = line.split(separator)
        if len(row) < 2:
            raise InputError(f"{self._path}, line {number}: expected a token and its tag, not {line!r}")
        if not self._columns:
            self._separator, self._columns, self._first = separator, len(row), number
        if len(row) != self._columns:
            raise InputError(
                f"{self._path}, line {number}: {len(row)} columns, but line {self._first} has {self._columns}: {line!r}"
            )
        return row[0].strip(), row[-1].strip()


def _document(name: str, words: list[str], tags: list[str]) -> Document:
    tokens: list[tuple[int, int]] = []
    for word in words:
        start = tokens[-1][1] + 1 if tokens else 0
        tokens.append((start, start + len(word)))
    text = " ".join(words)
    entities: list[Entity] = []
    for (start, end), tag in zip(tokens, tags, strict=True):
        if tag.startswith("I-"):
            start = entities.pop().start
        if tag != "O":
            entities.append(Entity(start, end, text[start:end], tag[2:]))
    return Document(name, text, tuple(entities), tokens=tuple(tokens))


def _block(
    document: Document, tokens: Sequence[tuple[int, int]], entities: Sequence[Entity], ends: Sequence[int]
) -> Iterator[str]:
    """Yield the lines of a document, given where its sentences end. No token crosses the edge of an entity."""
    entity = sentence = 0
    inside = False
    for start, end in tokens:
        if sentence < len(ends) and start >= ends[sentence]:
            yield "\n"
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
    if token != token.strip() or not token or token == _DOCUMENT_START or re.search("[\t\n\r\ufeff]", token):
        raise InputError(f"document {document.id}: CoNLL can't hold the token {token!r}: give other tokens, or none")
    return token


def _cut(tokens: Iterable[tuple[int, int]], entities: Iterable[Entity]) -> list[tuple[int, int]]:
    """Cut tokens where an entity begins or ends in them."""
    edges = sorted({edge for entity in entities for edge in (entity.start, entity.end)})
    pieces: list[tuple[int, int]] = []
    place = 0
    for start, end in tokens:
        while place < len(edges) and edges[place] < end:
            if edges[place] > start:
                pieces.append((start, edges[place]))
                start = edges[place]
            place += 1
        pieces.append((start, end))
    return pieces


def _sentence_ends(text: str, entities: Sequence[Entity]) -> Iterator[int]:
    """Yield where sentences end, except within an entity."""
    entity = end = 0
    for sentence in sentences_of(text):
        end = text.index(sentence, end) + len(sentence)
        while entity < len(entities) and entities[entity].end <= end:
            entity += 1
        if entity == len(entities) or end <= entities[entity].start:
            yield end
