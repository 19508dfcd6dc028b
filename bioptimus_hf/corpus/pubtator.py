"""PubTator files: `id|t|title`, `id|a|abstract`, an annotation a line, an empty line after a document.

Offsets count the characters of the title, a line break and the abstract. There is no way to write a tab or a line break
within a field, so each of them is written as one blank: offsets stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bioptimus_hf.corpus.documents import Document, Entity, check_entity, join_passages
from bioptimus_hf.errors import InputError

_TEXT_LINE = re.compile(r"([^|\t]+)\|([ta])\|(.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,15}")
# All that some reader takes for the end of a field or line.
_BLANKED = str.maketrans(dict.fromkeys("\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))


def read_pubtator(path: Path, lines: Iterable[bytes]) -> Iterator[Document | InputError]:
    """Yield the documents of a PubTator file, and the fault of one that has any.

    Annotations have the columns id, start, end, text, type, and maybe more, which become the `identifier`. Lines of
    four or more columns without offsets are relations, and kept in `extra["relations"]`.

    Args:
        path: what faults are told of.
        lines: of the file, without their ends.
    """
    block: list[tuple[int, bytes]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            block.append((number, line))
        elif block:
            yield _document_or_fault(path, block)
            block = []
    if block:
        yield _document_or_fault(path, block)


def pubtator_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield documents as PubTator.

    The title is the first passage, or the first line of a text without passages. Where nothing follows it, there is no
    line of an abstract, which would add a line break to the text. Scores are left out.

    Raises:
        InputError: an id cannot be written.
    """
    for document in documents:
        yield "\n".join([*_lines(document), "", ""])


def _lines(document: Document) -> list[str]:
    text = document.text.translate(_BLANKED)
    if "|" in document.id or document.id.translate(_BLANKED) != document.id or not document.id.strip():
        raise InputError(f"document {document.id!r}: PubTator takes no such id: give one without bars, tabs and breaks")
    title = document.passages[0].end if document.passages else document.text.find("\n")
    title = len(text) if title < 0 else title
    lines = [f"{document.id}|t|{text[:title]}"]
    if title < len(text):
        lines.append(f"{document.id}|a|{text[title + 1 :]}")
    for entity in document.entities:
        # Columns of the identifier are columns here.
        last = [column.translate(_BLANKED) for column in entity.identifier.split("\t") if entity.identifier]
        mention = text[entity.start : entity.end]
        columns = [document.id, entity.start, entity.end, mention, entity.label.translate(_BLANKED), *last]
        lines.append("\t".join(map(str, columns)))
    lines.extend("\t".join([document.id, *relation]) for relation in document.extra.get("relations", ()))
    return lines


def _document_or_fault(path: Path, block: list[tuple[int, bytes]]) -> Document | InputError:
    try:
        return _document(path, block)
    except InputError as error:
        return error


def _document(path: Path, block: list[tuple[int, bytes]]) -> Document:
    name, texts, first_row = _texts(path, block)
    text, passages = join_passages(
        (texts[kind], None, {"type": kind_name})
        for kind, kind_name in (("t", "title"), ("a", "abstract"))
        if kind in texts
    )
    entities: list[Entity] = []
    relations: list[list[str]] = []
    for number, content in block[first_row:]:
        where = f"{path}, line {number}"
        columns = _decoded(where, content).split("\t")
        if columns[0] != name:
            raise InputError(
                f"{where}: a line of {columns[0][:60]!r} among those of {name}: part documents by an empty line"
            )
        if len(columns) >= 5 and _NUMBER.fullmatch(columns[1]) and _NUMBER.fullmatch(columns[2]):
            mention, label, *more = columns[3:]
            entity = Entity(int(columns[1]), int(columns[2]), mention, label, identifier="\t".join(more))
            entities.append(_checked(where, text, entity))
        elif len(columns) >= 4 and not columns[1].lstrip("-").isdigit():
            relations.append(columns[1:])
        else:
            raise InputError(
                f"{where}: an annotation has the columns id, start, end, text and type, parted by tabs; here are "
                f"{len(columns)}"
            )
    extra: dict[str, Any] = {"relations": relations} if relations else {}
    return Document(name, text, tuple(entities), passages, extra=extra)


def _checked(where: str, text: str, entity: Entity) -> Entity:
    """Check an entity; the line break between title and abstract is a blank in a mention that holds it."""
    there = text[entity.start : entity.end]
    if there.replace("\n", " ") == entity.text:
        entity = replace(entity, text=there)
    try:
        check_entity(text, entity)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return entity


def _texts(path: Path, block: list[tuple[int, bytes]]) -> tuple[str, dict[str, str], int]:
    """Return the id, title and abstract, and the number of lines that they take."""
    name = ""
    texts: dict[str, str] = {}
    for number, content in block[:2]:
        found = _TEXT_LINE.fullmatch(_decoded(f"{path}, line {number}", content))
        if found is None or (name and found[1] != name):
            break
        name = found[1]
        texts[found[2]] = found[3]
    if "t" not in texts:
        raise InputError(f"{path}, line {block[0][0]}: a document begins with its title, as 12345|t|Title")
    return name, texts, len(texts)


def _decoded(where: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not valid UTF-8 at byte {error.start} of the line: convert or mend it") from error
