"""Read and write PubTator: `id|t|title`, `id|a|abstract`, an annotation per line, an empty line after each document.

Offsets count the characters of the title, a line break and the abstract. A field can't hold a tab or a line break, so
each of them is written as one space and offsets stay the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from bioptimus_hf.corpus.documents import Document, Entity, check_entity, join_passages
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError

_TEXT_LINE = re.compile(r"([^|\t]+)\|([ta])\|(.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,15}")
# Everything that some reader takes for the end of a field or line.
_AS_SPACES = str.maketrans(dict.fromkeys("\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))

_Line = tuple[int, str | InputError]


def read_pubtator(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the documents of a PubTator file, and an error for each document that has one.

    Annotations have the columns id, start, end, text, type and possibly more, which become the `identifier`. Lines of
    four or more columns without offsets are relations, kept in `extra["relations"]`.
    """
    block: list[_Line] = []
    for number, line in file.lines():
        if isinstance(line, InputError) or (line and not line.isspace()):
            block.append((number, line))
        elif block:
            yield _document_or_error(file, block)
            block = []
    if block:
        yield _document_or_error(file, block)


def pubtator_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield documents as PubTator.

    The title is the first passage, or the first line of a text without passages. If nothing follows the title, no line
    for the abstract is written, because it would add a line break to the text. Scores are left out.

    Raises:
        InputError: an id can't be written.
    """
    for document in documents:
        yield "\n".join([*_lines(document), "", ""])


def _lines(document: Document) -> list[str]:
    text = document.text.translate(_AS_SPACES)
    if "|" in document.id or document.id.translate(_AS_SPACES) != document.id or not document.id.strip():
        raise InputError(
            f"document {document.id!r}: PubTator can't hold this id: use one without bars, tabs and line breaks"
        )
    title = document.passages[0].end if document.passages else document.text.find("\n")
    title = len(text) if title < 0 else title
    lines = [f"{document.id}|t|{text[:title]}"]
    if title < len(text):
        lines.append(f"{document.id}|a|{text[title + 1 :]}")
    for entity in document.entities:
        # Tabs in the identifier separate columns.
        more = [column.translate(_AS_SPACES) for column in entity.identifier.split("\t") if entity.identifier]
        mention = text[entity.start : entity.end]
        columns = [document.id, entity.start, entity.end, mention, entity.label.translate(_AS_SPACES), *more]
        lines.append("\t".join(map(str, columns)))
    lines.extend("\t".join([document.id, *relation]) for relation in document.extra.get("relations", ()))
    return lines


def _document_or_error(file: InputFile, block: list[_Line]) -> Document | InputError:
    try:
        return _document(file, block)
    except InputError as error:
        return error


def _document(file: InputFile, block: list[_Line]) -> Document:
    name, texts = _texts(file, block)
    text, passages = join_passages(
        (texts[kind], None, {"type": kind_name})
        for kind, kind_name in (("t", "title"), ("a", "abstract"))
        if kind in texts
    )
    entities: list[Entity] = []
    relations: list[list[str]] = []
    for number, line in block[len(texts) :]:
        where = f"{file.path}, line {number}"
        columns = _decoded(line).split("\t")
        if columns[0] != name:
            raise InputError(
                f"{where}: this line belongs to document {columns[0][:60]!r}, not {name!r}: put an empty line between "
                f"documents"
            )
        if file.options.annotations == "ignored":
            continue
        if len(columns) >= 5 and _NUMBER.fullmatch(columns[1]) and _NUMBER.fullmatch(columns[2]):
            mention, label, *more = columns[3:]
            entity = Entity(int(columns[1]), int(columns[2]), mention, label, identifier="\t".join(more))
            entities.append(_checked(where, text, entity))
        elif len(columns) >= 4 and not columns[1].lstrip("-").isdigit():
            relations.append(columns[1:])
        else:
            raise InputError(
                f"{where}: an annotation has the columns id, start, end, text and type, separated by tabs; this line "
                f"has {len(columns)}"
            )
    extra: dict[str, Any] = {"relations": relations} if relations else {}
    return Document(name, text, tuple(entities), passages, extra=extra)


def _checked(where: str, text: str, entity: Entity) -> Entity:
    """Check an entity. In a mention across title and abstract, the line break between them is written as a space."""
    found = text[entity.start : entity.end]
    if found.replace("\n", " ") == entity.text:
        entity = replace(entity, text=found)
    try:
        check_entity(text, entity)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return entity


def _texts(file: InputFile, block: list[_Line]) -> tuple[str, dict[str, str]]:
    """Return the id, and the title and abstract, each of which takes a line."""
    name = ""
    texts: dict[str, str] = {}
    for _, line in block[:2]:
        found = _TEXT_LINE.fullmatch(_decoded(line))
        if found is None or (name and found[1] != name):
            break
        name = found[1]
        texts[found[2]] = found[3]
    if "t" not in texts:
        raise InputError(f"{file.path}, line {block[0][0]}: a document begins with its title, like 12345|t|Title")
    return name, texts


def _decoded(line: str | InputError) -> str:
    if isinstance(line, InputError):
        raise line
    return line
