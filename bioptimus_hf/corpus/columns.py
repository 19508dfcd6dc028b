"""Make documents of rows with several fields or columns, in the same way for all formats that have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bioptimus_hf.corpus.documents import Document, Entity, Passage, join_passages, read_score
from bioptimus_hf.corpus.json_text import JsonFields, json_text, parse_leniently, parse_object
from bioptimus_hf.corpus.mentions import read_entities
from bioptimus_hf.corpus.reading import Source
from bioptimus_hf.errors import InputError

ID = "id"
"""Name of the id in what we write, and by default in what we read."""
WRITTEN = (ID, "text", "passages", "entities")
"""Names of the fields of a row that we write ourselves."""
_PLACE = {"field", "start", "end"}
_LONGEST_NAME = 60
_ENTITY_TYPES: dict[str, Any] = {
    "start": int, "end": int, "text": str, "label": str, "score": (int, float), "identifier": str
}  # fmt: skip


def json_document(source: Source, number: int, where: str, text: str) -> Document:
    """Return the document that a JSON object holds. All other members are kept as they were written.

    Args:
        source: where it comes from, and how to read it.
        number: of the object, counted from 1.
        where: its place, such as `line 3`.
        text: the object.

    Raises:
        InputError: the text is no JSON object, or holds no document. The message doesn't contain `where`.
    """
    if source.options.annotations == "ignored":
        found = parse_leniently(text)
        row = found if isinstance(found, dict) else {}
        return Document(str(number), _joined(source, where, row)[0])
    members = parse_object(text)
    row = {name: value for name, (_, value) in members.items()}
    return row_document(source, number, where, row, {name: written for name, (written, _) in members.items()})


def row_document(
    source: Source, number: int, where: str, row: Mapping[str, Any], members: Mapping[str, str] | None = None
) -> Document:
    """Return the document that a row holds.

    Args:
        source: where it comes from, and how to read it.
        number: of the row, counted from 1.
        where: its place, such as `line 3`.
        row: the values by column.
        members: for each column its name and value as they were written, if the row is JSON.

    Raises:
        InputError: there is no text, or the id or an entity can't be read. The message doesn't contain `where`.
    """
    columns = source.options.text_columns
    text, passages = _joined(source, where, row)
    if source.options.annotations == "ignored":
        return Document(str(number), text)
    name = _id(source, where, row)
    taken = {"entities", *columns}
    if len(columns) > 1:
        taken = {"entities", *(column for column in columns if column in WRITTEN)}
    elif columns == ("text",) and (places := _places(row.get("passages"), text)):
        passages = places
        taken.add("passages")
    if type(row.get(ID)) is not int and source.options.id_column in (None, ID):
        taken.add(ID)
    entities: list[Entity] = []
    if "entities" in row and "entities" not in columns:
        entities = read_entities(source, where, text, json_entities(row["entities"]))
    kept = [column for column in row if column not in taken]
    fields: Mapping[str, Any] = {column: row[column] for column in kept}
    if members is not None:
        fields = JsonFields({column: members[column] for column in kept})
    return Document(name or source.name(number), text, tuple(entities), passages, extra={"fields": fields})


def check_columns(path: object, names: Sequence[str], wanted: Sequence[str], *, argument: str = "text_column") -> None:
    """Raise InputError if a table lacks a column, or has two of the same name.

    Args:
        path: the file or data set, for the message.
        names: the columns of the table.
        wanted: those that it must have.
        argument: what names them.
    """
    if missing := next((column for column in wanted if column not in names), None):
        raise InputError(
            f"{path} has no column {missing!r}: it has {_listed(names)}: set {argument} to a name among these"
        )
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise InputError(f"{path} has two columns with the name {twice!r}: rename one of them")


def json_entities(rows: Any) -> Iterable[Entity | InputError]:
    """Yield entities as `entity_row` writes them, and an error in place of each that can't be read."""
    if not isinstance(rows, list):
        yield InputError("'entities' must be a list of objects: rename the field if it holds something else")
        return
    for row in rows:
        try:
            yield _json_entity(row)
        except InputError as error:
            yield error


def entity_row(entity: Entity) -> dict[str, Any]:
    """Return an entity as an object of JSON."""
    row = dict(start=entity.start, end=entity.end, text=entity.text, label=entity.label, score=entity.score)
    return {**row, "identifier": entity.identifier} if entity.identifier else row


def place_rows(document: Document) -> list[dict[str, Any]]:
    """Return where each field lies in the text of a document; nothing if its passages aren't the fields of a row."""
    fields = document.extra.get("fields", {})
    places = [
        {"field": passage.infons.get("type"), "start": passage.start, "end": passage.end}
        for passage in document.passages
        if len(passage.infons) == 1 and (passage.start == passage.end or _is_field(passage.infons.get("type"), fields))
    ]
    return places if len(places) == len(document.passages) and all(map(_is_place, places)) else []


def fields_not_in_text(document: Document) -> list[str]:
    """Return the names of the other fields of a document that are neither its id nor a passage of its text."""
    fields = document.extra.get("fields", {})
    passages = {passage.infons.get("type") for passage in document.passages} if fields else ()
    return [name for name in fields if name not in passages and str(fields[name]) != document.id]


def _json_entity(row: Any) -> Entity:
    """Read an entity without comparing it with the text."""
    if not isinstance(row, dict) or not {"start", "end", "text", "label"} <= row.keys() <= _ENTITY_TYPES.keys():
        raise InputError(
            "'entities' must be objects with start, end, text, label and optionally score and identifier: rename the "
            "field if it holds something else"
        )
    for name, value in row.items():
        if not isinstance(value, _ENTITY_TYPES[name]) or isinstance(value, bool):
            raise InputError(f"the {name} of an entity can't be {value!r:.60}")
    read_score(row.get("score", 1.0))
    return Entity(**row)


def _joined(source: Source, where: str, row: Mapping[str, Any]) -> tuple[str, tuple[Passage, ...]]:
    """Return the text of a row, and a passage for each column if there are several."""
    columns = source.options.text_columns
    texts = [_text(source, where, row, column) for column in columns]
    if len(columns) == 1 or not any(texts):
        return texts[0], ()
    return join_passages((text, None, {"type": column}) for column, text in zip(columns, texts, strict=True))


def _text(source: Source, where: str, row: Mapping[str, Any], column: str) -> str:
    several = len(source.options.text_columns) > 1
    if column not in row and several and any(other in row for other in source.options.text_columns):
        source.note(f"rows without a text under {column!r}", where)
        return ""
    value = row.get(column)
    if type(value) is str:
        return value
    if value is None and column in row:
        return ""
    found = f"it is {str(value)[:_LONGEST_NAME]!r}" if column in row else f"the row has {_listed(list(row))}"
    raise InputError(f"no text under {column!r} ({found}): set text_column to the name of the text")


def _id(source: Source, where: str, row: Mapping[str, Any]) -> str | None:
    """Return the id of a row, None if it has none."""
    column = source.options.id_column or ID
    if column in source.options.text_columns:  # the text may be in a column of this name
        return None
    if column not in row and source.options.id_column:
        source.note(f"rows without {column!r}, which get their number as id", where)
    name = row.get(column)
    if not (name is None or type(name) in (str, int)):
        shown = json_text(name) if isinstance(name, bool | list | dict) else str(name)
        raise InputError(f"{column!r} must be a string or an integer, not {shown[:_LONGEST_NAME]}")
    return None if name is None else str(name)


def _places(value: Any, text: str) -> tuple[Passage, ...]:
    """Return the passages that `place_rows` describes; nothing if this is some other value.

    Raises:
        InputError: they aren't in the text, one after the other.
    """
    if not isinstance(value, list) or not all(map(_is_place, value)):
        return ()
    passages: list[Passage] = []
    begin = 0
    for row in value:
        start, end = row["start"], row["end"]
        if type(start) is not int or type(end) is not int or not begin <= start <= end <= len(text):
            raise InputError(
                f"the field {row['field']!r:.60} isn't at {start!r:.20}:{end!r:.20} of the text, which has {len(text)} "
                f"characters: remove 'passages'"
            )
        passages.append(Passage(start, end, start, {"type": row["field"]}))
        begin = end + 1
    return tuple(passages)


def _is_field(name: Any, fields: Mapping[str, Any]) -> bool:
    return isinstance(name, str) and (name in fields or name in WRITTEN)


def _is_place(row: Any) -> bool:
    return isinstance(row, dict) and row.keys() == _PLACE and isinstance(row["field"], str)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:_LONGEST_NAME] or "''" for name in names[:20])
    return f"{shown or 'nothing'}{f' and {len(names) - 20} more' if names[20:] else ''}"
