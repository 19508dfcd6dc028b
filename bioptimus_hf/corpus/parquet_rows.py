"""Write documents as Parquet: a row for each, in columns that are the same in every file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.json_text import field_texts, json_text, object_text
from bioptimus_hf.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 1_000  # of a group, all of which are in memory
_CHARACTERS = 10_000_000  # of the texts in a group


def parquet_bytes(documents: Iterable[Document]) -> Iterator[bytes]:
    """Yield a Parquet file with a row per document.

    The columns are `id`, `text`, `entities` (a list of structs with `start`, `end`, `text`, `label`, `score` and
    `identifier`), `passages` (a list of structs with `start`, `end`, `offset` and `infons`, a JSON object) and `fields`
    (the other fields of JSON lines, as a JSON object; null if there are none).

    Raises:
        InputError: a string isn't valid Unicode, or a field can't be written as JSON.
    """
    import pyarrow as pa  # here: other formats don't need it
    import pyarrow.parquet

    schema = _schema()
    file = io.BytesIO()
    with pa.PythonFile(file, mode="w") as sink, pyarrow.parquet.ParquetWriter(sink, schema) as writer:
        for rows in _groups(documents):
            writer.write_table(pa.Table.from_pylist(rows, schema))
            yield _taken(file)
        writer.close()
        yield _taken(file)


def is_ours(schema: pa.Schema) -> bool:
    """Return whether a table has the columns that `parquet_bytes` writes."""
    return bool(_schema().equals(schema))


def _schema() -> pa.Schema:
    import pyarrow as pa

    integer, string = pa.int64(), pa.string()
    entity = {"start": integer, "end": integer, "text": string, "label": string}
    passage = {"start": integer, "end": integer, "offset": integer, "infons": string}
    return pa.schema(
        {
            "id": string,
            "text": string,
            "entities": pa.list_(pa.struct({**entity, "score": pa.float64(), "identifier": string})),
            "passages": pa.list_(pa.struct(passage)),
            "fields": string,
        }
    )


def _groups(documents: Iterable[Document]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    size = 0
    for document in documents:
        rows.append(_row(document))
        size += len(document.text)
        if len(rows) == _ROWS or size > _CHARACTERS:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _row(document: Document) -> dict[str, Any]:
    fields = document.extra.get("fields", {})
    try:
        row = {
            "id": document.id,
            "text": document.text,
            "entities": [asdict(entity) for entity in document.entities],
            "passages": [{**vars(passage), "infons": json_text(dict(passage.infons))} for passage in document.passages],
            "fields": object_text(field_texts(fields)) if fields else None,
        }
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"document {document.id!a}: half a surrogate pair outside of its text: fix it") from error
    except InputError as error:
        raise InputError(f"document {document.id}: {error}") from error
    return row


def _taken(file: io.BytesIO) -> bytes:
    """Return what has been written, and forget it."""
    content = file.getvalue()
    file.seek(0)
    file.truncate()
    return content
