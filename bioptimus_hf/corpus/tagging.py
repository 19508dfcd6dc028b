"""Documents as CoNLL: a token and its tag a line, tags in IOB2, an empty line after a sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bioptimus_hf.corpus.conll import DOCUMENT_START, TAG, parse_conll
from bioptimus_hf.corpus.documents import Document, Entity, without_overlaps
from bioptimus_hf.corpus.sentences import sentences_of
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

# Combining marks, joiners and variation selectors belong to the letter before them. U+FEFF is left out: at the start of
# a file it would be a byte order mark.
_TOKEN = re.compile(
    r"(?:\w[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u200c\u200d\ufe00-\ufe2f]*)+|[^\s\ufeff]"
)


def read_tagged(path: Path, lines: Iterable[bytes]) -> Iterator[Document | InputError]:
    """Yield a document for each sentence of a CoNLL file, and the fault of one that has any; see `read_conll`.

    Its text is the tokens with a blank between two of them; columns between the first and the last are left out.

    Args:
        path: what faults are told of.
        lines: of the file, without their ends.
    """
    for number, sentence in enumerate(parse_conll(path, lines), start=1):
        yield sentence if isinstance(sentence, InputError) else _document(str(number), *sentence)


def conll_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield documents as CoNLL, a block a sentence.

    Tokens are those of the source if it has any, and each document is one sentence then. Otherwise tokens are runs of
    letters and digits, and every other sign by itself but for white space and U+FEFF; no sentence ends within an
    entity. A token is cut where an entity begins or ends in it. Of entities that overlap the longest is written,
    and how many others there were is logged. Without a token there is no block.

    Raises:
        InputError: a type or a given token cannot be written in a column.
    """
    left_out = 0
    for document in documents:
        entities = without_overlaps(document.entities)
        left_out += len(document.entities) - len(entities)
        for entity in entities:
            if not TAG.fullmatch(f"B-{entity.label}"):
                raise InputError(f"document {document.id}: {entity.label!r} cannot be a type in CoNLL: rename it")
        spans = document.tokens or [found.span() for found in _TOKEN.finditer(document.text)]
        ends = [] if document.tokens else list(_sentence_ends(document.text, entities))
        yield from _block(document, _cut(spans, entities), entities, ends)
    if left_out:
        logger.warning("CoNLL has one tag a token: %d entities that overlap longer ones are left out", left_out)


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
    """Yield the lines of a document, given where its sentences end; no token reaches over the edge of an entity."""
    entity = sentence = 0
    begun = False
    for start, end in tokens:
        if sentence < len(ends) and start >= ends[sentence]:
            yield "\n"
            while sentence < len(ends) and start >= ends[sentence]:
                sentence += 1
        while entity < len(entities) and start >= entities[entity].end:
            entity, begun = entity + 1, False
        if entity < len(entities) and start >= entities[entity].start:
            tag = f"{'I' if begun else 'B'}-{entities[entity].label}"
            begun = True
        else:
            tag = "O"
        yield f"{_writable(document, start, end)}\t{tag}\n"
    if tokens:
        yield "\n"


def _writable(document: Document, start: int, end: int) -> str:
    token = document.text[start:end]
    if token != token.strip() or not token or token == DOCUMENT_START or re.search("[\t\n\r\ufeff]", token):
        raise InputError(f"document {document.id}: CoNLL takes no token {token!r}: give other tokens, or none")
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
    """Yield where sentences end, but for ends within an entity."""
    entity = end = 0
    for sentence in sentences_of(text):
        end = text.index(sentence, end) + len(sentence)
        while entity < len(entities) and entities[entity].end <= end:
            entity += 1
        if entity == len(entities) or end <= entities[entity].start:
            yield end
