"""Read and write files with a document per line or row: plain text, JSON lines and Parquet."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from bioptimus_hf.corpus.documents import Document, Entity, read_score
from bioptimus_hf.corpus.json_text import (
    JsonFields,
    field_texts,
    member_text,
    object_text,
    parse_leniently,
    parse_object,
)
from bioptimus_hf.corpus.mentions import read_entities
from bioptimus_hf.corpus.reading import InputFile, NotUtf8Error
from bioptimus_hf.corpus.recognition import HEAD, recognise
from bioptimus_hf.errors import InputError, format_error

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 500  # of Parquet
_BUFFER = 1 << 18  # bytes of a Parquet column, which may be larger than memory
_ENTITY_TYPES: dict[str, Any] = {
    "start": int, "end": int, "text": str, "label": str, "score": (int, float), "identifier": str
}  # fmt: skip


def read_txt(file: InputFile) -> Iterator[Document | InputError]:
    """Yield a document per line, named by the number of the line; blank lines are left out.

    A warning says so if the file looks like one of another format.
    """
    found = recognise(cast(io.BufferedReader, file.utf8).peek(HEAD)[:HEAD])
    if found:
        logger.warning(
            "%s looks like the format %s but is read as plain text, a document per line: pass the format %s, or name "
            "the file accordingly",
            *(file.path, found, found),
        )
    for number, line in file.lines():
        if isinstance(line, InputError):
            yield line
        elif line and not line.isspace():
            yield Document(file.name(number), line)
        else:
            file.blank += 1


def read_jsonl(file: InputFile) -> Iterator[Document | InputError]:
    """Yield a document per line of JSON, or the error in it.

    A line is an object with the text under `text_column` (null is an empty text), and optionally `id` (a string or an
    integer; null is none) and `entities` as `jsonl_text` writes them. All other fields are kept in `extra["fields"]`,
    which is written as it was read. A line with NaN, which isn't JSON, or with a key twice is an error. Where
    annotations are ignored, NaN is, too.
    """
    for number, line in file.lines():
        if isinstance(line, InputError):
            yield line
        elif line and not line.isspace():
            try:
                yield _json_document(file, number, line)
            except InputError as error:
                yield InputError(f"{file.path}, line {number}: {error}")


def read_parquet(file: InputFile) -> Iterator[Document | InputError]:
    """Yield a document per row of a Parquet file: the text under `text_column` (null is an empty text).

    A document is named by the column `id` if there is one, of strings or integers, otherwise by the number of the row,
    counted from 1. Other columns are not read.

    Raises:
        InputError: the file is not Parquet, or has no such column, or not of strings.
    """
    import pyarrow as pa  # here: other formats don't need it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.binary, buffer_size=_BUFFER, pre_buffer=False) as parquet:
            text_column = file.options.text_column
            if text_column not in (names := parquet.schema_arrow.names):
                raise InputError(f"{file.path} has no column {text_column!r}: it has {', '.join(names)}")
            named = "id" in names and text_column != "id" and file.options.annotations != "ignored"
            columns = ["id", text_column] if named else [text_column]
            row = 0
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=columns):
                texts = _strings(batch.column(text_column))
                if texts is None:
                    raise InputError(f"{file.path}: the column {text_column!r} isn't a string column")
                ids = _ids(batch.column("id")) if named else [None] * len(texts)
                for name, content in zip(ids, texts, strict=True):
                    row += 1
                    try:
                        text = file.decode(content or b"")
                    except UnicodeDecodeError as error:
                        where = f"at byte {error.start} of the text"
                        yield NotUtf8Error(f"{file.path}, row {row}: not valid UTF-8 {where}: convert the file")
                    else:
                        yield Document(file.name(row) if name is None else str(name), text)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file.path} is not a complete Parquet file ({format_error(error)})") from error


def jsonl_text(documents: Iterable[Document]) -> Iterator[str]:
    """Yield documents as JSON lines: `id`, the other fields of the line that was read, `text` and `entities`.

    Fields that were read from JSON lines are written exactly as they were read.

    Raises:
        InputError: a field has one of our names but isn't what it stands for, or can't be written as JSON.
    """
    for document in documents:
        fields = document.extra.get("fields", {})
        if taken := next((name for name in ("text", "entities") if name in fields), None):
            raise InputError(
                f"document {document.id}: its field {taken!r} would be lost, because annotated lines use this name: "
                f"rename the field"
            )
        try:
            others = dict(zip(fields, field_texts(fields), strict=True))
            # An id that was read as a number is written as one.
            number = others.pop("id") if "id" in others else ""
            kept = number if number and str(fields["id"]) == document.id else member_text("id", document.id)
            entities = [_entity_row(entity) for entity in document.entities]
            text = member_text("text", document.text)
            yield object_text([kept, *others.values(), text, member_text("entities", entities)]) + "\n"
        except InputError as error:
            raise InputError(f"document {document.id}: {error}") from error


def _json_document(file: InputFile, number: int, line: str) -> Document:
    column = file.options.text_column
    if file.options.annotations == "ignored":
        row = parse_leniently(line)
        return Document(str(number), _text_of(row.get(column, 0) if isinstance(row, dict) else 0, column))
    members = parse_object(line)
    text = _text_of(members[column][1] if column in members else 0, column)
    # The text may be in a field that has one of our names.
    name = members["id"][1] if "id" in members and column != "id" else None
    if not (name is None or type(name) in (str, int)):
        raise InputError(f"'id' must be a string or an integer, not {members['id'][0].partition(':')[2].strip()[:60]}")
    entities: list[Entity] = []
    if "entities" in members and column != "entities":
        entities = read_entities(file, f"line {number}", text, _json_entities(members["entities"][1]))
    taken = {column, "entities", *(["id"] if type(name) is not int else [])}
    fields = {key: member for key, (member, _) in members.items() if key not in taken}
    name = file.name(number) if name is None else str(name)
    return Document(name, text, tuple(entities), extra={"fields": JsonFields(fields)})


def _text_of(value: Any, column: str) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        raise InputError(
            f"no text under {column!r}: each line is an object with the text in that field; set text_column if the "
            f"field has another name"
        )
    return value


def _json_entities(rows: Any) -> Iterator[Entity | InputError]:
    """Yield the entities of a line, and an error in place of each that can't be read."""
    if not isinstance(rows, list):
        yield InputError("'entities' must be a list of objects: rename the field if it holds something else")
        return
    for row in rows:
        try:
            yield _json_entity(row)
        except InputError as error:
            yield error


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


def _entity_row(entity: Entity) -> dict[str, Any]:
    row = dict(start=entity.start, end=entity.end, text=entity.text, label=entity.label, score=entity.score)
    return {**row, "identifier": entity.identifier} if entity.identifier else row


def _strings(column: pa.Array) -> list[bytes | None] | None:
    """Return the strings of a column as bytes, which may not be UTF-8; None if the column holds something else."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def _ids(column: pa.Array) -> Sequence[str | int | None]:
    """Return the ids of a batch, None where a row has none."""
    import pyarrow as pa

    if pa.types.is_integer(column.type):
        numbers: list[int | None] = column.to_pylist()
        return numbers
    strings = _strings(column) or [None] * len(column)
    return [content.decode(errors="replace") if content else None for content in strings]
