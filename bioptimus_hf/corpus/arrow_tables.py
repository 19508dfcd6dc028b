"""Read Arrow tables, of Parquet files and of data sets on the Hub: a document per row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bioptimus_hf.corpus.columns import ID, check_columns, row_document
from bioptimus_hf.corpus.documents import Document, Passage
from bioptimus_hf.corpus.encodings import NotUtf8Error
from bioptimus_hf.corpus.json_text import JsonFields, parse_leniently, parse_object
from bioptimus_hf.corpus.parquet_rows import is_ours
from bioptimus_hf.corpus.reading import InputFile, Source
from bioptimus_hf.errors import InputError, format_error

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 500
_BUFFER = 1 << 18  # bytes of a Parquet column, which may be larger than memory


def read_parquet(file: InputFile) -> Iterator[Document | InputError]:
    """Yield a document per row of a Parquet file; see `table_documents`.

    Raises:
        InputError: the file is not Parquet, or see `table_documents`.
    """
    import pyarrow as pa  # here: other formats don't need it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.binary, buffer_size=_BUFFER, pre_buffer=False) as parquet:

            def batches(columns: list[str]) -> Iterable[pa.RecordBatch]:
                found: Iterable[pa.RecordBatch] = parquet.iter_batches(ROWS_AT_ONCE, columns=columns)
                return found

            yield from table_documents(file, parquet.schema_arrow, batches)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file.path} is not a complete Parquet file ({format_error(error)})") from error


def table_documents(
    source: Source, schema: pa.Schema, batches: Callable[[list[str]], Iterable[pa.RecordBatch]]
) -> Iterator[Document | InputError]:
    """Yield the document of each row of a table, and an error in place of each that can't be read.

    The text is a column of strings (null is an empty text), the id one of strings or integers. Other columns of
    strings, numbers, truth values and lists of these are kept in `extra["fields"]`. Those of other types, which JSON
    doesn't have, are left out and noted. Where annotations are ignored, only the text is read.

    Args:
        source: where the table is, and how to read it.
        schema: the columns of the table and their types.
        batches: yields the rows with the given columns only.

    Raises:
        InputError: a column is missing, or isn't one of strings, or the ids are neither strings nor integers.
    """
    columns = _columns_to_read(source, schema)
    ours = is_ours(schema) and len(columns) == len(schema.names)
    number = 0
    for batch in batches(columns):
        values = [_values(batch.column(name)) for name in columns]
        for row in zip(*values, strict=True):
            number += 1
            where = f"row {number}"
            try:
                values_by_column = _decoded(source, where, dict(zip(columns, row, strict=True)))
                document = row_document(source, number, where, values_by_column)
                yield _restored(document) if ours else document
            except UnicodeDecodeError as error:
                place = f"at byte {error.start} of the text"
                yield NotUtf8Error(f"{source.path}, {where}: not valid UTF-8 {place}: convert the file")
            except InputError as error:
                yield InputError(f"{source.path}, {where}: {error}")


def _columns_to_read(source: Source, schema: pa.Schema) -> list[str]:
    """Return the columns of a table that are read, in its order.

    Raises:
        InputError: see `table_documents`.
    """
    import pyarrow as pa

    options, names = source.options, list(schema.names)
    texts, id_column = options.text_columns, options.id_column
    if not any(map(_is_string, schema.types)):
        shown = ", ".join(f"{name} ({type_})" for name, type_ in zip(names[:20], schema.types, strict=False))
        raise InputError(
            f"{source.path} has no column of strings: it has {shown or 'nothing'}: give a table with texts"
        )
    check_columns(source.path, names, texts)
    for column in texts:
        if not _is_string(found := schema.field(column).type):
            strings = [name for name, type_ in zip(names, schema.types, strict=True) if _is_string(type_)]
            raise InputError(
                f"{source.path}: the column {column!r} isn't a string column but {found}: set text_column to one of "
                f"{', '.join(strings[:20])}"
            )
    if options.annotations == "ignored":
        return [name for name in names if name in texts]
    check_columns(source.path, names, [id_column] if id_column else [], argument="id_column")
    ids = id_column or ID
    if ids in names and ids not in texts:
        found = schema.field(ids).type
        if not (_is_string(found) or pa.types.is_integer(found) or pa.types.is_null(found)):
            raise InputError(
                f"{source.path}: the column {ids!r} must be strings or integers, not {found}: convert it, or set "
                f"id_column to another one"
            )
    kept = [name for name in names if name == "entities" or _is_plain(schema.field(name).type)]
    if is_ours(schema):
        return names
    for name in names:
        if name not in kept:
            source.note("columns left out, since JSON has no such values", f"{name}, of type {schema.field(name).type}")
    return kept


def _is_string(type_: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        return _is_string(type_.value_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_plain(type_: pa.DataType) -> bool:
    """Return whether JSON has the values of a column."""
    import pyarrow as pa

    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _is_plain(type_.value_type)
    if pa.types.is_dictionary(type_):
        return _is_plain(type_.value_type)
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null, pa.types.is_decimal)
    return _is_string(type_) or any(is_kind(type_) for is_kind in kinds)


def _values(column: pa.Array) -> Sequence[Any]:
    """Return the values of a column, strings as bytes, which may not be UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_string(column.type):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return values


def _decoded(source: Source, where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with strings in place of bytes, and null in place of NaN and infinity, which JSON doesn't have.

    Raises:
        UnicodeDecodeError: some bytes are not UTF-8, and `errors` is `strict`.
    """
    for name, value in row.items():
        if type(value) is bytes:
            row[name] = source.decode(value)
        elif type(value) is float and not math.isfinite(value):
            source.note("numbers that aren't finite, read as null", f"{where}, {name!r}: {value}")
            row[name] = None
    return row


def _restored(document: Document) -> Document:
    """Return a document of a table that we wrote, with its passages and with fields as they were once read.

    Raises:
        InputError: a passage isn't in the text.
    """
    columns = document.extra["fields"]
    passages = tuple(
        Passage(place["start"], place["end"], place["offset"], parse_leniently(place["infons"]))
        for place in columns["passages"] or ()
    )
    if outside := next((one for one in passages if not 0 <= one.start <= one.end <= len(document.text)), None):
        raise InputError(f"the passage at {outside.start}:{outside.end} isn't in the text: write the file again")
    members = parse_object(columns["fields"] or "{}")
    fields = JsonFields({name: written for name, (written, _) in members.items()})
    return replace(document, passages=passages, extra={"fields": fields})
