"""BioC JSON: a collection of documents, each of passages with offsets and annotations.

Read value by value (ijson), so that memory does not grow with the collection. The text of a document is its passages
with a line break between two of them; the offsets of the file, which may count what is not in it, are kept beside it.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import ijson
from ijson.common import ObjectBuilder

from bioptimus_hf.corpus.documents import Document, Entity, Passage, check_entity, join_passages, read_score
from bioptimus_hf.errors import InputError

_LISTS = ("documents", "PubTator3")  # the second is what PubTator's own service calls it
_OF_DOCUMENTS = ("id", "infons", "passages", "annotations", "relations")  # what is written anew
_DEEPEST = 100
_READ_AT_ONCE = 1 << 14
_COLLECTION = {"source": "", "date": "", "key": "", "infons": {}}


def read_bioc(path: Path, file: BinaryIO) -> Iterator[Document | InputError]:
    """Yield the documents of BioC JSON, and the fault of one that has any.

    A file holds a collection, which may be empty, a document, a list of either, or several of them one after another.
    Where a passage is cut into sentences, each of them is a passage here. A mention of several pieces reaches from the
    first one to the last. The type of an annotation is its `infons["type"]`, and of what else is known of one, score
    and identifier are kept. Relations, which name annotations by numbers, are left out, as is what a collection says of
    itself after its documents. What else a document says of itself is kept in `extra`.

    Raises:
        InputError: the file is not JSON, or holds no document.
    """
    source = _Lines(file)
    read = 0
    try:
        for row, collection in _rows(path, source):
            read += 1
            try:
                yield _document(row, collection)
            except InputError as error:
                yield InputError(f"{path}, document {read}, which ends by line {source.line}: {error}")
    except ijson.JSONError as error:
        reason = " ".join(str(error).split("\n", maxsplit=1)[0].split())
        raise InputError(
            f"{path}, lines {source.before} to {source.line}: not JSON ({reason}): fetch or mend it"
        ) from error


def bioc_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield a collection of documents as BioC JSON, a document a line.

    A document without passages is one passage. The collection is described as that of the first document is.

    Raises:
        InputError: an entity does not lie within one passage.
    """
    first = True
    for document in documents:
        if first:
            yield _opening(document.extra.get("collection", {}))
        yield ("\n" if first else ",\n") + json.dumps(_row(document), ensure_ascii=False)
        first = False
    yield "\n]}\n" if not first else _opening({}) + "]}\n"


class _Lines:
    """A file that counts the lines read: the last piece read began in line `before` and ended in line `line`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._at_start = True
        self.before = self.line = 1

    def read(self, size: int) -> bytes:
        """Called by ijson."""
        content = self._file.read(size)
        self.before, self.line = self.line, self.line + content.count(b"\n")
        if self._at_start and size:
            content, self._at_start = content.removeprefix(BOM_UTF8), False
        return content


def _rows(path: Path, source: _Lines) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each document with what its collection says of itself before it; refuse what is neither."""
    opened: list[str] = []  # the keys of the objects and lists that are open, "" for members of a list
    key = ""
    around, inside, depth = ObjectBuilder(), None, 0
    is_bioc = False
    for event, value in ijson.basic_parse(source, use_float=True, multiple_values=True, buf_size=_READ_AT_ONCE):
        if event in ("start_map", "start_array"):
            opened.append(key)
            key = ""
            if len(opened) > _DEEPEST:
                raise InputError(f"{path}, line {source.line}: nested more than {_DEEPEST} deep, which BioC never is")
            if inside is None and event == "start_map" and opened[-2:-1] and opened[-2] in _LISTS:
                inside, depth = ObjectBuilder(), len(opened)
        elif event == "map_key":
            key = value
        (inside or around).event(event, value)
        if event not in ("end_map", "end_array"):
            continue
        if inside is not None and len(opened) == depth:
            yield inside.value, {name: said for name, said in _last(around.value).items() if name not in _LISTS}
            inside = None
        opened.pop()
        key = ""
        listed = isinstance(around.value, list)
        if len(opened) == (1 if listed else 0) and "passages" in _last(around.value):
            is_bioc = True
            yield _last(around.value), {}
            if listed:  # which would grow
                around.value.pop()
        if not opened:
            is_bioc = is_bioc or any(name in _last(around.value) for name in _LISTS)
            around = ObjectBuilder()
    if not is_bioc:
        raise InputError(f"{path} holds no document of BioC: give a collection, or a document with its passages")


def _last(value: Any) -> dict[str, Any]:
    """Return an object, or the last one of a list; an empty one where there is none."""
    last = value[-1] if isinstance(value, list) and value else value
    return last if isinstance(last, dict) else {}


def _document(row: Any, collection: Mapping[str, Any]) -> Document:
    name = row.get("id", "")
    if not isinstance(name, (str, int)) or name == "":
        raise InputError("it has no id")
    try:
        infons = _infons(row)
        parts = [(passage, _units(passage)) for passage in _dicts(row, "passages")]
        text, passages = join_passages(
            (_of(unit, "text", str), _of(unit, "offset", int), unit["infons"]) for _, units in parts for unit in units
        )
        rest = iter(passages)
        holders = [(passage, tuple(islice(rest, len(units)))) for passage, units in parts]
        holders += [(sentence, own) for passage, own in holders for sentence in _dicts(passage, "sentences")]
        # First among the passages of its own holder: offsets of others may be the same.
        entities = [
            _entity(annotation, text, (*own, *passages))
            for holder, own in ((row, ()), *holders)
            for annotation in _dicts(holder, "annotations")
        ]
    except InputError as error:
        raise InputError(f"id {name}: {error}") from error
    extra = {"infons": infons, "collection": collection, "fields": _others(row)}
    return Document(str(name), text, tuple(entities), passages, extra=extra)


def _units(passage: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the passage, or its sentences where these hold its text."""
    infons = _infons(passage)
    sentences = _dicts(passage, "sentences")
    if passage.get("text") or not sentences:
        return [{"text": "", **{k: v for k, v in passage.items() if v is not None}, "infons": infons}]
    return [{**sentence, "infons": {**infons, **_infons(sentence)}} for sentence in sentences]


def _entity(annotation: dict[str, Any], text: str, passages: Sequence[Passage]) -> Entity:
    pieces = [(_of(place, "offset", int), _of(place, "length", int)) for place in _dicts(annotation, "locations")]
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
        raise InputError(f"the annotation {annotation.get('text', '')!r} at {first}:{last} lies within no passage")
    infons = _infons(annotation)
    mention = _of(annotation, "text", str) if len(pieces) == 1 else text[start : start + last - first]
    score = infons.get("score", 1.0)
    entity = Entity(
        start,
        start + last - first,
        mention,
        _of(infons, "type", str),
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


def _others(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _OF_DOCUMENTS}


def _infons(holder: dict[str, Any]) -> dict[str, Any]:
    infons = holder.get("infons") or {}
    if not isinstance(infons, dict):
        raise InputError(f"infons must be an object, not {str(infons)[:80]}")
    return infons


def _of(holder: dict[str, Any], name: str, kind: type) -> Any:
    value = holder.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{name} is missing or no {'text' if kind is str else 'whole number'}, in {str(holder)[:80]}")
    return value


def _opening(collection: Mapping[str, Any]) -> str:
    described = json.dumps({**_COLLECTION, **collection}, ensure_ascii=False)
    return f'{described[:-1]}, "documents": ['


def _row(document: Document) -> dict[str, Any]:
    passages = document.passages or (Passage(0, len(document.text), 0),)
    homes: list[list[Entity]] = [[] for _ in passages]
    for entity in document.entities:
        home = next((n for n, p in enumerate(passages) if p.start <= entity.start and entity.end <= p.end), None)
        if home is None:
            raise InputError(f"document {document.id}: the entity {entity.text[:60]!r} does not lie within one passage")
        homes[home].append(entity)
    numbers = iter(range(1, len(document.entities) + 1))
    return {
        "id": document.id,
        **_others(document.extra.get("fields", {})),
        "infons": document.extra.get("infons", {}),
        "passages": [
            {
                "offset": passage.offset,
                "infons": dict(passage.infons),
                "text": document.text[passage.start : passage.end],
                "sentences": [],
                "annotations": [_annotation(next(numbers), entity, passage) for entity in held],
                "relations": [],
            }
            for passage, held in zip(passages, homes, strict=True)
        ],
        "relations": [],
    }


def _annotation(number: int, entity: Entity, passage: Passage) -> dict[str, Any]:
    infons: dict[str, Any] = {"type": entity.label, "score": entity.score}
    if entity.identifier:
        infons["identifier"] = entity.identifier
    place = {"offset": entity.start - passage.start + passage.offset, "length": entity.end - entity.start}
    return {"id": str(number), "infons": infons, "text": entity.text, "locations": [place]}
