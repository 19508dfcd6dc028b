"""Write CoNLL: a token and its tag per line, tags in IOB2, an empty line after each sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from bioptimus_hf.corpus.conll import DOCUMENT_START
from bioptimus_hf.corpus.documents import Document, Entity, without_overlaps
from bioptimus_hf.corpus.tags import TAG
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

# The only form that spaCy's converter recognises. Most other programs look for `-DOCSTART-` at the start of a line.
_DOCUMENT_LINE = "-DOCSTART- -X- O O"


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
        spans = document.tokens or [found.span() for found in _tokens().finditer(document.text)]
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


@lru_cache
def _tokens() -> Any:
    """Return the pattern of a token: characters as readers see them, each with its accents, vowel signs and joiners.

    U+FEFF is left out: at the start of a file it would be a byte order mark.
    """
    import regex  # takes a while to load, and only writing needs it

    return regex.compile(r"(?:(?=\w)\X)+|(?![\s\x1c-\x1f\ufeff])\X")


def _block(
    document: Document, tokens: Sequence[tuple[int, int]], entities: Sequence[Entity], ends: Sequence[int]
) -> Iterator[str]:
    """Yield the lines of a document, given where its sentences end. No token crosses the edge of an entity."""
    entity = sentence = 0
    inside = False
    for start, end in tokens:
        if sentence < len(ends) and start >= ends[sentence]:
            if start > tokens[0][0]:  # otherwise there was no token in the sentences before
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
    if token != token.strip() or not token or DOCUMENT_START.fullmatch(token) or re.search("[\t\n\r\ufeff]", token):
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
