"""Read and write PubTator: `id|t|title`, `id|a|abstract`, an annotation per line, an empty line after each document.

Offsets count the characters of the title, a line break and the abstract. A field can't hold a tab or a line break, so
each of them is written as one space and offsets stay the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from bioptimus_hf.corpus.documents import Document, Entity, Passage, join_passages
from bioptimus_hf.corpus.encodings import NotUtf8Error
from bioptimus_hf.corpus.mentions import UNREADABLE, read_entities, settle_mention
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

_TEXT_LINE = re.compile(r"([^|\t]+)\|([ta])\|(.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,15}")
_NO_IDENTIFIER = "-"
_MOST_OF_LIMIT = 4  # as many annotations, compared with the limit of a text, are taken for those of one document
_NOVELTY: tuple[list[str], ...] = (
    [],
    ["Novel"],
    ["No"],
    ["None"],
)  # what BioRED has in the fifth column, and what the package bioc writes
_RELATION = re.compile(r"[A-Za-z][\w .:/-]*")
# Identifiers of concepts have digits, as in MESH:D009270, 7124, rs12345 or D003000|D006470, or are missing.
_IDENTIFIER = re.compile(r"-|\S*[0-9]\S*")
# Everything that some reader takes for the end of a field or line.
_BREAKS = "\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_AS_SPACES = str.maketrans(dict.fromkeys(_BREAKS, " "))

_Line = tuple[int, str | InputError]


def read_pubtator(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the documents of a PubTator file, and an error for each document that has one.

    Annotations have the columns id, start, end, text, type and possibly more, which become the `identifier` (`-` stands
    for none). Relations have the columns id, type, the identifiers of two concepts, and possibly `Novel` or `No`;
    they are kept in `extra["relations"]`. Any other line is an error, or noted if annotations are optional.
    """
    for block in _blocks(file):
        yield block if isinstance(block, InputError) else _document_or_error(file, block)


def pubtator_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield documents as PubTator.

    The title is the first passage, or the first line of a text without passages. If nothing follows the title, no line
    for the abstract is written, because it would add a line break to the text. An annotation without an identifier has
    `-` in the sixth column, without which other programs don't read the line. Scores are left out.

    Raises:
        InputError: an id can't be written.
    """
    blanks = 0
    for document in documents:
        lines = _lines(document)
        title = len(lines[0]) - len(f"{document.id}|t|")
        kept = document.text[title : title + 1] == "\n"  # between title and abstract
        blanks += sum(map(document.text.count, _BREAKS)) - kept
        yield "\n".join([*lines, "", ""])
    if blanks:
        logger.warning("PubTator can't hold tabs and line breaks in a text: wrote %d of them as spaces", blanks)


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
        more = [column.translate(_AS_SPACES) for column in (entity.identifier or _NO_IDENTIFIER).split("\t")]
        mention = text[entity.start : entity.end]
        columns = [document.id, entity.start, entity.end, mention, entity.label.translate(_AS_SPACES), *more]
        lines.append("\t".join(map(str, columns)))
    lines.extend("\t".join([document.id, *relation]) for relation in document.extra.get("relations", ()))
    return lines


def _blocks(file: InputFile) -> Iterator[list[_Line] | InputError]:
    """Yield the lines of each document, or an error if there are so many that an empty line seems to be missing."""
    block: list[_Line] = []
    limit = _MOST_OF_LIMIT * file.options.limit
    size = 0
    for number, line in chain(file.lines(), [(0, "")]):  # the last document may lack its empty line
        if isinstance(line, InputError) or (line and not line.isspace()):
            size += len(str(line))
            if size <= limit or not block:  # what is over the limit isn't kept in memory
                block.append((number, line))
        elif block and size <= limit:
            yield block
            block, size = [], 0
        elif block:
            where = f"{file.path}, document that begins in line {block[0][0]}"
            yield InputError(
                f"{where}: more than {_MOST_OF_LIMIT} times the limit of a document: put an empty line between "
                f"documents, or set max_document_megabytes"
            )
            block, size = [], 0


def _document_or_error(file: InputFile, block: list[_Line]) -> Document | InputError:
    try:
        return _document(file, block)
    except InputError as error:
        return error


def _document(file: InputFile, block: list[_Line]) -> Document:
    name, texts = _texts(file, block)
    found: list[tuple[str, Entity]] = []
    relations: list[list[str]] = []
    for number, line in [] if file.options.annotations == "ignored" else block[len(texts) :]:
        try:
            columns = _columns(line, name)
            if _is_relation(columns):
                relations.append(columns[1:])
            else:
                found.append((f"line {number}", _entity(columns)))
        except NotUtf8Error:
            raise
        except InputError as error:
            _reject_line(file, number, error)
    for number, line in block[len(texts) :]:
        if _TEXT_LINE.fullmatch(_decoded(line)):
            raise InputError(f"{file.path}, line {number}: put an empty line between documents")
    text, passages = _joined(texts, [entity for _, entity in found])
    entities: list[Entity] = []
    for where, entity in found:
        try:
            entities += read_entities(file, where, text, [_with_line_break(text, entity)])
        except InputError as error:
            raise InputError(f"{file.path}, {where}: {error}") from error
    extra: dict[str, Any] = {"relations": relations} if relations else {}
    return Document(name, text, tuple(entities), passages, extra=extra)


def _columns(line: str | InputError, name: str) -> list[str]:
    columns = _decoded(line).split("\t")
    if len(columns) == 1 and not _TEXT_LINE.fullmatch(columns[0]):
        raise InputError("neither an annotation nor a relation, whose columns are separated by tabs")
    if columns[0] != name:
        raise InputError(
            f"this line belongs to document {columns[0][:60]!r}, not {name!r}: put an empty line between documents"
        )
    return columns


def _is_relation(columns: list[str]) -> bool:
    """Tell whether the columns are id, type, the identifiers of two concepts, and possibly whether this is new."""
    return (
        len(columns) >= 4
        and columns[4:] in _NOVELTY
        and _RELATION.fullmatch(columns[1]) is not None
        and all(map(_IDENTIFIER.fullmatch, columns[2:4]))
    )


def _entity(columns: list[str]) -> Entity:
    """Read an annotation.

    Raises:
        InputError: it hasn't the columns of one.
    """
    if len(columns) < 5:
        raise InputError(
            f"an annotation has the columns id, start, end, text and type, separated by tabs, a relation id, type and "
            f"two identifiers; this line has {len(columns)}"
        )
    _, start, end, mention, label, *more = columns
    if not (_NUMBER.fullmatch(start) and _NUMBER.fullmatch(end)):
        reason = (
            "which stand for no place in the text: remove the line"
            if start == end == "-1"
            else "not start and end in digits: the columns of an annotation are id, start, end, text and type"
        )
        raise InputError(f"the second and third column are {start[:60]!r} and {end[:60]!r}, {reason}")
    if not label.strip():
        raise InputError(f"the annotation {mention[:60]!r} has no type: give it in the fifth column")
    identifier = "\t".join(more)
    return Entity(int(start), int(end), mention, label, identifier="" if identifier == _NO_IDENTIFIER else identifier)


def _joined(texts: Mapping[str, str], entities: Sequence[Entity]) -> tuple[str, tuple[Passage, ...]]:
    """Join title and abstract with a line break.

    Some sources take a blank at the end of the title, instead of another character after it, for what separates the
    abstract. The offsets of the entities show whether this one does.
    """
    kinds = [(kind, name) for kind, name in (("t", "title"), ("a", "abstract")) if kind in texts]
    joined = join_passages((texts[kind], None, {"type": name}) for kind, name in kinds)
    if "a" not in texts or not texts["t"].endswith(" "):
        return joined
    title = texts["t"][:-1]
    later = [entity for entity in entities if entity.start > len(title)]
    other = join_passages(({**texts, "t": title}[kind], None, {"type": name}) for kind, name in kinds)
    right, others = (sum(_fits(text, entity) for entity in later) for text in (joined[0], other[0]))
    return other if others > right else joined


def _with_line_break(text: str, entity: Entity) -> Entity:
    """Return an entity with the line break between title and abstract, which is written as a blank, if it has it."""
    found = text[entity.start : entity.end]
    return replace(entity, text=found) if found.replace("\n", " ") == entity.text else entity


def _fits(text: str, entity: Entity) -> bool:
    try:
        return bool(settle_mention(text, _with_line_break(text, entity)))
    except InputError:
        return False


def _reject_line(file: InputFile, number: int, error: InputError) -> None:
    """Raise the error of a line that isn't an annotation or a relation, or note it if annotations are optional."""
    if file.options.annotations == "needed":
        raise InputError(f"{file.path}, line {number}: {error}") from error
    file.note(UNREADABLE, f"line {number}: {error}")


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
