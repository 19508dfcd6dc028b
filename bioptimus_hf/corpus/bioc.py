"""Read and write BioC JSON: a collection of documents, which consist of passages with offsets and annotations.

A collection is parsed value by value (ijson), so memory doesn't grow with it. The text of a document is its passages
joined by line breaks. The offsets in the file may count characters that the file doesn't contain, so they are kept too.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import ijson
from ijson.common import ObjectBuilder

from bioptimus_hf.corpus.documents import Document, Entity, Passage, join_passages, read_score
from bioptimus_hf.corpus.json_text import field_texts, json_text, member_text, object_text
from bioptimus_hf.corpus.mentions import read_entities
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError, format_error

_LISTS = ("documents", "PubTator3")  # PubTator's own service uses the second name
_WRITTEN = ("id", "infons", "passages", "annotations", "relations")  # fields of a document that we write ourselves
_MAX_DEPTH = 100
_READ_AT_ONCE = 1 << 14
_DIGITS = 4000  # of an integer: ijson crashes where Python refuses to convert it
_TOO_LONG = re.compile(rb"[0-9]{%d}" % _DIGITS)
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
        for row, collection, twice in _rows(file, source):
            read += 1
            try:
                if twice:
                    raise InputError(f"the key {twice[:60]!r} occurs twice in an object: keep one of them")
                yield bioc_document(file, f"document {read}", row, collection)
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
        self._last = b""
        self.before = self.line = 1

    def read(self, size: int) -> bytes:
        """Read a chunk, for ijson."""
        content = self._file.read(size)
        digits = self._last + content
        if _TOO_LONG.search(digits):
            raise InputError(f"{self._file.path}, line {self.line}: a number has too many digits: shorten it")
        self._last = digits[-_DIGITS:]
        self.before, self.line = self.line, self.line + content.count(b"\n")
        if self._at_start and size:
            content, self._at_start = content.removeprefix(BOM_UTF8), False
        return content


def _rows(file: InputFile, source: _Lines) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Yield each document, the fields of its collection that precede it, and a key that occurs twice in an object.

    Decimals are read as `Decimal`, so that all digits are kept.

    Raises:
        InputError: the JSON is nested too deeply, or contains neither a collection nor a document.
    """
    opened: list[str] = []  # the keys of the objects and lists that are open, "" for members of a list
    keys: list[set[str]] = []  # those that each of them has so far
    key = twice = ""
    around, inside, depth = ObjectBuilder(), None, 0  # what surrounds a document, and the document
    is_bioc = False
    for event, value in ijson.basic_parse(source, multiple_values=True, buf_size=_READ_AT_ONCE):
        if event in ("start_map", "start_array"):
            opened.append(key)
            keys.append(set())
            key = ""
            if len(opened) > _MAX_DEPTH:
                raise InputError(f"{file.path}, line {source.line}: nested more than {_MAX_DEPTH} deep: not BioC")
            if inside is None and event == "start_map" and opened[-2:-1] and opened[-2] in _LISTS:
                inside, depth = ObjectBuilder(), len(opened)
        elif event == "map_key":
            key = value
            twice = twice or (key if key in keys[-1] else "")
            keys[-1].add(key)
        (inside or around).event(event, value)
        if event not in ("end_map", "end_array"):
            continue
        last = _last(around.value)
        if inside is not None and len(opened) == depth:
            yield inside.value, {name: value for name, value in last.items() if name not in _LISTS}, twice
            inside, twice = None, ""
        opened.pop()
        keys.pop()
        key = ""
        listed = isinstance(around.value, list)
        if len(opened) == (1 if listed else 0):
            is_bioc = is_bioc or any(name in last for name in (*_LISTS, "passages"))
            if not is_bioc:
                raise _not_bioc(file, listed)
            if "passages" in last:
                yield last, {}, twice
                twice = ""
            if listed:
                around.value.pop()  # or memory would grow
        if not opened:
            around = ObjectBuilder()
    if not is_bioc:
        raise _not_bioc(file, listed=False)


def _not_bioc(file: InputFile, listed: bool) -> InputError:
    advice = "give a collection, or a document with its passages"
    if listed:
        advice = "it is a list of something else: give documents of BioC, or objects with the text under text_column"
    return InputError(f"{file.path} has no BioC document: {advice}")


def _last(value: Any) -> dict[str, Any]:
    """Return an object itself, or the last object of a list; an empty object if there is none."""
    last = value[-1] if isinstance(value, list) and value else value
    return last if isinstance(last, dict) else {}


def bioc_document(file: InputFile, where: str, row: Mapping[str, Any], collection: Mapping[str, Any]) -> Document:
    """Return a document of BioC, given as its JSON: BioC XML is read into the same form.

    Args:
        file: where it comes from, and how its annotations are read.
        where: its place in the file, such as `document 3`.
        row: the document.
        collection: the fields of its collection.

    Raises:
        InputError: something is missing, or an annotation can't be read and is needed.
    """
    name = row.get("id", "")
    if not isinstance(name, (str, int)) or isinstance(name, bool) or name == "":
        raise InputError("the document has no id, which must be a string or an integer")
    try:
        infons = _infons(row)
        parts = [(passage, _units(passage)) for passage in _dicts(row, "passages")]
        needed = file.options.annotations == "needed"  # otherwise offsets that are missing do no harm
        text, passages = join_passages(
            (
                _field(unit, "text", str),
                _field(unit, "offset", int) if needed or "offset" in unit else None,
                unit["infons"],
            )
            for _, units in parts
            for unit in units
        )
        entities: list[Entity] = []
        if file.options.annotations != "ignored":
            for place, found, pieces in _entities(row, parts, text, passages):
                if pieces > 1:
                    file.note("annotations in several pieces, read from the first to the last", f"{where}, {place}")
                try:
                    entities += read_entities(file, f"{where}, {place}", text, [found])
                except InputError as error:
                    raise InputError(f"{place}: {error}") from error
    except InputError as error:
        raise InputError(f"id {name}: {error}") from error
    extra = {"infons": infons, "collection": collection, "fields": _other_fields(row)}
    return Document(str(name), text, tuple(entities), passages, extra=extra)


def _entities(
    row: Mapping[str, Any],
    parts: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]],
    text: str,
    passages: Sequence[Passage],
) -> Iterator[tuple[str, Entity | InputError, int]]:
    """Yield the annotations of a document, of its passages (the `parts`) and of their sentences.

    Each comes after its place and before the number of its pieces. In place of one that can't be read there is its
    error.
    """
    rest = iter(passages)
    numbered = [
        (f"passage {number}", passage, tuple(islice(rest, len(units))))
        for number, (passage, units) in enumerate(parts, start=1)
    ]
    sentences = [
        (f"{place}, sentence {number}", sentence, own)
        for place, passage, own in numbered
        for number, sentence in enumerate(_dicts(passage, "sentences"), start=1)
    ]
    # An annotation is looked for in its own passage first: other passages may have the same offsets.
    for place, holder, own in (("document", row, ()), *numbered, *sentences):
        try:
            annotations = _dicts(holder, "annotations")
        except InputError as error:
            yield place, error, 0
            continue
        for annotation in annotations:
            try:
                yield place, _entity(annotation, text, (*own, *passages)), len(annotation["locations"])
            except InputError as error:
                yield place, error, 0


def _units(passage: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the passage, or its sentences if they hold its text."""
    infons = _infons(passage)
    sentences = _dicts(passage, "sentences")
    if passage.get("text") or not sentences:
        return [{"text": "", **{k: v for k, v in passage.items() if v is not None}, "infons": infons}]
    return [{**sentence, "infons": {**infons, **_infons(sentence)}} for sentence in sentences]


def _entity(annotation: dict[str, Any], text: str, passages: Sequence[Passage]) -> Entity:
    """Read an annotation without comparing its mention with the text."""
    mention = str(annotation.get("text") or "")
    pieces = [(_field(place, "offset", int), _field(place, "length", int)) for place in _dicts(annotation, "locations")]
    if not pieces:
        raise InputError(f"the annotation {mention[:60]!r} has no locations")
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
        raise InputError(
            f"the annotation {mention[:60]!r} at {first}:{last} isn't within a passage: fix its offsets, which count "
            f"Unicode characters from the start of the document"
        )
    infons = _infons(annotation)
    if not isinstance(infons.get("type"), str) or not infons["type"].strip():
        raise InputError(f"the annotation {mention[:60]!r} has no type: give it as a string in infons, under 'type'")
    mention = _field(annotation, "text", str) if len(pieces) == 1 else text[start : start + last - first]
    return Entity(
        start,
        start + last - first,
        mention,
        infons["type"],
        read_score(infons.get("score", 1.0)),
        identifier=str(infons.get("identifier") or ""),
    )


def _dicts(holder: Any, name: str) -> list[dict[str, Any]]:
    values = holder.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{name} must be a list of objects")
    return values


def _other_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _WRITTEN}


def _infons(holder: Mapping[str, Any]) -> dict[str, Any]:
    infons = holder.get("infons") or {}
    if not isinstance(infons, dict):
        raise InputError(f"infons must be an object, not {str(infons)[:80]}")
    return infons


def _field(holder: Mapping[str, Any], name: str, kind: type) -> Any:
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
    rest = {"infons": document.extra.get("infons", {}), "passages": passage_rows(document), "relations": []}
    return object_text(
        [member_text("id", document.id), *members, *(member_text(name, value) for name, value in rest.items())]
    )


def passage_rows(document: Document) -> list[dict[str, Any]]:
    """Return the passages of a document with their annotations as the objects of BioC JSON.

    Raises:
        InputError: an entity doesn't lie within one passage.
    """
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
