"""Read and write BioC JSON: a collection of documents, which consist of passages with offsets and annotations.

A collection is parsed value by value (ijson), so memory doesn't grow with it. The text of a document is its passages
joined by line breaks. The offsets in the file may count characters that the file doesn't contain, so they are kept too.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import ijson
from ijson.common import ObjectBuilder

from bioptimus_hf.corpus.documents import Document, Entity, Passage, check_entity, join_passages, read_score
from bioptimus_hf.corpus.json_text import field_texts, json_text, member_text, object_text
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError, format_error

_LISTS = ("documents", "PubTator3")  # PubTator's own service uses the second name
_WRITTEN = ("id", "infons", "passages", "annotations", "relations")  # fields of a document that we write ourselves
_MAX_DEPTH = 100
_READ_AT_ONCE = 1 << 14
_COLLECTION = {"source": "", "date": "", "key": "", "infons": {}}


def read_bioc(file: InputFile) -> Iterator[Document | InputError]:
    """Yield the documents of BioC JSON, and an error for each document that has one.

    A file holds a collection (possibly empty), a document, a list of either, or several of them in a row.

    - If a passage is split into sentences, each sentence becomes a passage.
    - An annotation in several pieces reaches from the first piece to the last one.
    - The type of an annotation is its `infons["type"]`; score and identifier are read too.
    - Relations, which refer to annotations by number, are left out, and so are fields of a collection that follow its
      documents. Other fields of a document are kept in `extra`.

    Raises:
        InputError: the file isn't JSON, or has no document.
    """
    source = _Lines(file)
    read = 0
    try:
        for row, collection in _rows(file, source):
            read += 1
            try:
                yield _document(row, collection, annotated=file.options.annotations != "ignored")
            except InputError as error:
                yield InputError(f"{file.path}, document {read}, which ends by line {source.line}: {error}")
    except ijson.JSONError as error:
        reason = format_error(str(error).partition("\n")[0])  # the next lines show the place
        raise InputError(
            f"{file.path}, lines {source.before} to {source.line}: not JSON ({reason}): fix the file or fetch it again"
        ) from error


def bioc_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield a collection of documents as BioC JSON, a document per line.

    A document without passages becomes one passage. Source, date and key are those of the first document's collection.

    Raises:
        InputError: an entity doesn't lie within one passage.
    """
    first = True
    for document in documents:
        if first:
            yield _opening(document.extra.get("collection", {}))
        try:
            yield ("\n" if first else ",\n") + _row(document)
        except InputError as error:
            raise InputError(f"document {document.id}: {error}") from error
        first = False
    yield "\n]}\n" if not first else _opening({}) + "]}\n"


class _Lines:
    """Counts lines while a file is read: the last chunk began in line `before` and ended in line `line`."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._at_start = True
        self.before = self.line = 1

    def read(self, size: int) -> bytes:
        """Read a chunk, for ijson."""
        content = self._file.read(size)
        self.before, self.line = self.line, self.line + content.count(b"\n")
        if self._at_start and size:
            content, self._at_start = content.removeprefix(BOM_UTF8), False
        return content


def _rows(file: InputFile, source: _Lines) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each document with the fields of its collection that precede it.

    Raises:
        InputError: the JSON is nested too deeply, or contains neither a collection nor a document.
    """
    opened: list[str] = []  # the keys of the objects and lists that are open, "" for members of a list
    key = ""
    around, inside, depth = ObjectBuilder(), None, 0  # what surrounds a document, and the document
    is_bioc = False
    for event, value in ijson.basic_parse(source, use_float=True, multiple_values=True, buf_size=_READ_AT_ONCE):
        if event in ("start_map", "start_array"):
            opened.append(key)
            key = ""
            if len(opened) > _MAX_DEPTH:
                raise InputError(f"{file.path}, line {source.line}: nested more than {_MAX_DEPTH} deep: not BioC")
            if inside is None and event == "start_map" and opened[-2:-1] and opened[-2] in _LISTS:
                inside, depth = ObjectBuilder(), len(opened)
        elif event == "map_key":
            key = value
        (inside or around).event(event, value)
        if event not in ("end_map", "end_array"):
            continue
        if inside is not None and len(opened) == depth:
            yield inside.value, {name: value for name, value in _last(around.value).items() if name not in _LISTS}
            inside = None
        opened.pop()
        key = ""
        listed = isinstance(around.value, list)
        if len(opened) == (1 if listed else 0) and "passages" in _last(around.value):
            is_bioc = True
            yield _last(around.value), {}
            if listed:
                around.value.pop()  # or memory would grow
        if not opened:
            is_bioc = is_bioc or any(name in _last(around.value) for name in _LISTS)
            around = ObjectBuilder()
    if not is_bioc:
        raise InputError(f"{file.path} has no BioC document: give a collection, or a document with its passages")


def _last(value: Any) -> dict[str, Any]:
    """Return an object itself, or the last object of a list; an empty object if there is none."""
    last = value[-1] if isinstance(value, list) and value else value
    return last if isinstance(last, dict) else {}


def _document(row: Any, collection: Mapping[str, Any], *, annotated: bool) -> Document:
    name = row.get("id", "")
    if not isinstance(name, (str, int)) or name == "":
        raise InputError("the document has no id")
    try:
        infons = _infons(row)
        parts = [(passage, _units(passage)) for passage in _dicts(row, "passages")]
        text, passages = join_passages(
            (_field(unit, "text", str), _field(unit, "offset", int), unit["infons"])
            for _, units in parts
            for unit in units
        )
        entities = _entities(row, parts, text, passages) if annotated else []
    except InputError as error:
        raise InputError(f"id {name}: {error}") from error
    extra = {"infons": infons, "collection": collection, "fields": _other_fields(row)}
    return Document(str(name), text, tuple(entities), passages, extra=extra)


def _entities(
    row: Any, parts: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], text: str, passages: Sequence[Passage]
) -> list[Entity]:
    """Return the annotations of a document, of its passages (the `parts`) and of their sentences, in this order."""
    rest = iter(passages)
    holders = [(passage, tuple(islice(rest, len(units)))) for passage, units in parts]
    holders += [(sentence, own) for passage, own in holders for sentence in _dicts(passage, "sentences")]
    # An annotation is looked for in its own passage first: other passages may have the same offsets.
    return [
        _entity(annotation, text, (*own, *passages))
        for holder, own in ((row, ()), *holders)
        for annotation in _dicts(holder, "annotations")
    ]


def _units(passage: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the passage, or its sentences if they hold its text."""
    infons = _infons(passage)
    sentences = _dicts(passage, "sentences")
    if passage.get("text") or not sentences:
        return [{"text": "", **{k: v for k, v in passage.items() if v is not None}, "infons": infons}]
    return [{**sentence, "infons": {**infons, **_infons(sentence)}} for sentence in sentences]


def _entity(annotation: dict[str, Any], text: str, passages: Sequence[Passage]) -> Entity:
    pieces = [(_field(place, "offset", int), _field(place, "length", int)) for place in _dicts(annotation, "locations")]
    if not pieces:
        raise InputError(f"the annotation {annotation.get('text', '')!r} has no locations")
    first, last = min(start for start, _ in pieces), max(start + length for start, length in pieces)
    start = next(
        (
            first - passage.offset + passage.start
            for passage in passages
            if passage.offset <= first and last <= passage.offset + passage.end - passage.start
        ),
        None,
    )
    if start is None:
        raise InputError(f"the annotation {annotation.get('text', '')!r} at {first}:{last} isn't within a passage")
    infons = _infons(annotation)
    mention = _field(annotation, "text", str) if len(pieces) == 1 else text[start : start + last - first]
    score = infons.get("score", 1.0)
    entity = Entity(
        start,
        start + last - first,
        mention,
        _field(infons, "type", str),
        read_score(score),
        identifier=str(infons.get("identifier") or ""),
    )
    check_entity(text, entity)
    return entity


def _dicts(holder: Any, name: str) -> list[dict[str, Any]]:
    values = holder.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{name} must be a list of objects")
    return values


def _other_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _WRITTEN}


def _infons(holder: dict[str, Any]) -> dict[str, Any]:
    infons = holder.get("infons") or {}
    if not isinstance(infons, dict):
        raise InputError(f"infons must be an object, not {str(infons)[:80]}")
    return infons


def _field(holder: dict[str, Any], name: str, kind: type) -> Any:
    value = holder.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = "a string" if kind is str else "an integer"
        raise InputError(f"{name} is missing or not {wanted}, in {str(holder)[:80]}")
    return value


def _opening(collection: Mapping[str, Any]) -> str:
    described = json_text({**_COLLECTION, **collection})
    return f'{described[:-1]}, "documents": ['


def _row(document: Document) -> str:
    fields = document.extra.get("fields", {})
    others = dict(zip(fields, field_texts(fields), strict=True))
    members = [text for name, text in others.items() if name not in _WRITTEN]
    rest = {"infons": document.extra.get("infons", {}), "passages": _passages(document), "relations": []}
    return object_text(
        [member_text("id", document.id), *members, *(member_text(name, value) for name, value in rest.items())]
    )


def _passages(document: Document) -> list[dict[str, Any]]:
    passages = document.passages or (Passage(0, len(document.text), 0),)
    homes: list[list[Entity]] = [[] for _ in passages]
    for entity in document.entities:
        home = next((n for n, p in enumerate(passages) if p.start <= entity.start and entity.end <= p.end), None)
        if home is None:
            raise InputError(f"the entity {entity.text[:60]!r} isn't within one passage")
        homes[home].append(entity)
    numbers = iter(range(1, len(document.entities) + 1))
    return [
        {
            "offset": passage.offset,
            "infons": dict(passage.infons),
            "text": document.text[passage.start : passage.end],
            "sentences": [],
            "annotations": [_annotation(next(numbers), entity, passage) for entity in held],
            "relations": [],
        }
        for passage, held in zip(passages, homes, strict=True)
    ]


def _annotation(number: int, entity: Entity, passage: Passage) -> dict[str, Any]:
    infons: dict[str, Any] = {"type": entity.label, "score": entity.score}
    if entity.identifier:
        infons["identifier"] = entity.identifier
    place = {"offset": entity.start - passage.start + passage.offset, "length": entity.end - entity.start}
    return {"id": str(number), "infons": infons, "text": entity.text, "locations": [place]}
