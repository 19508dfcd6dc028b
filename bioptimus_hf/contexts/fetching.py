"""Fetch the text of the winning candidates and build the data set of contexts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, Features, Value, concatenate_datasets

from bioptimus_hf.contexts.matching import utf8_buffers
from bioptimus_hf.contexts.sampling import FIELDS, Candidates, Rows, positions, starts_sentence
from bioptimus_hf.corpus.cache import cached, is_kept
from bioptimus_hf.progress import progress_of_datasets

ROWS_AT_ONCE = 10_000  # sentences, about 1 MB of text, which fits in the processor's cache


@dataclass(frozen=True)
class Counts:
    """What a search, or one part of it, has read and seen.

    Attributes:
        documents: documents read, including those held out for validation.
        held_out: documents held out for validation, which were not searched.
        bytes: UTF-8 bytes of the sentences searched.
        sentences: sentences searched.
        occurrences: occurrences of all tokens in those sentences.
    """

    documents: int = 0
    held_out: int = 0
    bytes: int = 0
    sentences: int = 0
    occurrences: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        contexts: rows as `find_contexts` returns them.
        counts: what was searched.
        text: what a search that reads files has read, for records.
    """

    contexts: Dataset
    counts: Counts
    text: dict[str, int] = field(default_factory=dict)


def first_copy_is_least(dataset: Dataset) -> bool:
    """Return whether the first copy of a sentence always has the least document, so that only that copy is needed."""
    if "document" not in dataset.column_names:
        return True
    kind = dataset.features["document"]
    if not (isinstance(kind, Value) and pa.types.is_integer(kind.pa_type)):
        return False
    last = None
    for table in dataset.select_columns(["document"]).with_format("arrow").iter(batch_size=1_000_000):
        if table["document"].null_count:
            return False
        numbers = table["document"].to_numpy()
        if (numbers[1:] < numbers[:-1]).any() or (last is not None and numbers[0] < last):
            return False
        last = numbers[-1]
    return True


def fetch_contexts(parts: Sequence[Dataset], winners: Candidates, tokens: Sequence[str]) -> Dataset:
    """Build the data set of contexts: the winners with their tokens, text and spans.

    Args:
        parts: the sentences of all parts, in the format `arrow`.
        winners: from `Reservoir.best`; their row numbers refer to the parts.
        tokens: names of the tokens.
    """
    dataset = concatenate_datasets(list(parts)) if len(parts) > 1 else parts[0]
    winners = winners.copy()
    winners["row"] = positions(winners["row"], [len(part) for part in parts])
    rows = np.sort(winners["row"])
    rows = rows[np.diff(rows, prepend=-1) != 0]
    texts = _read_rows(dataset, rows)
    place = np.searchsorted(rows, winners["row"])
    if "document" in texts.column_names:
        order = _order_by_document(winners, texts["document"].take(pa.array(place)))
        winners, place = winners[order], place[order]
    first = starts_sentence(winners)
    return _attach_texts(dataset, texts, winners[first], place[first], tokens)


def _attach_texts(
    dataset: Dataset, texts: pa.Table, winners: Candidates, place: Rows, tokens: Sequence[str]
) -> Dataset:
    """Join each winner with its row in `texts`, which is given by `place`, in steps that need little memory."""
    names = pa.array(tokens, pa.string()).take(pa.array(winners["token"]))
    table = pa.table({"token": names, "start": winners["start"], "end": winners["end"], "place": place})
    features = {"token": Value("string"), "start": Value("int32"), "end": Value("int32"), **dataset.features}
    columns = [name for name in ("token", "text", "start", "end", "document") if name in features]
    features = Features({name: features[name] for name in columns})
    if not len(winners):
        return Dataset.from_dict({name: [] for name in columns}, features=features)

    def attach(batch: pa.Table) -> pa.Table:
        found = texts.take(batch["place"])
        return pa.table({name: (batch if name in batch.column_names else found)[name] for name in columns})

    def attached(**place: Any) -> Dataset:
        rows = Dataset(table).with_format("arrow")
        options: dict[str, Any] = {"batch_size": ROWS_AT_ONCE, "remove_columns": table.column_names}
        options |= {"features": features, "desc": "Fetching sentences"}
        with progress_of_datasets():
            return cast(Dataset, rows.map(attach, batched=True, **options, **place).with_format(None))

    def write(folder: Path) -> dict[str, Any]:
        attached(cache_file_name=str(folder / "rows.arrow"))
        return {}

    content = xxhash.xxh3_128(json.dumps([dataset._fingerprint, *tokens]).encode())
    for column in FIELDS:
        content.update(winners[column].tobytes())
    # Found by their content: later steps recognise their caches, and large results stay on disk.
    key = content.hexdigest()
    return cached("contexts", {"content": key}, write)[0] if is_kept(dataset) else attached(new_fingerprint=key)


def _read_rows(dataset: Dataset, rows: Rows) -> pa.Table:
    """Read the given rows, which are sorted, in one pass: random access takes longer than reading everything."""
    content = bytearray()  # grows in place; joining pieces at the end would need twice the memory
    lengths = [np.zeros(1, dtype=np.int64)]
    schema = dataset.features.arrow_schema.remove_metadata()
    others = [schema.remove(schema.get_field_index("text")).empty_table()]  # no column, or `document`
    for number, batch in enumerate(dataset.iter(batch_size=ROWS_AT_ONCE)):
        start = number * ROWS_AT_ONCE
        first, last = np.searchsorted(rows, [start, start + len(batch)])
        if first < last:
            taken = batch.take(pa.array(rows[first:last] - start))
            text, offsets = utf8_buffers(one_chunk(taken["text"]))
            content += text[offsets[0] : offsets[-1]].tobytes()
            lengths.append(np.diff(offsets))
            others.append(taken.drop_columns(["text"]))
    offsets = np.cumsum(np.concatenate(lengths))
    texts = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(content))
    columns = pa.concat_tables(others)
    return pa.table({"text": texts, **{name: columns[name].combine_chunks() for name in columns.column_names}})


def _order_by_document(winners: Candidates, documents: pa.ChunkedArray) -> Rows:
    """Return the order by token, priority and document."""
    table = pa.table({"token": winners["token"], "priority": winners["priority"], "document": documents})
    keys = [(name, "ascending") for name in ("token", "priority", "document")]
    return cast(Rows, pc.sort_indices(table, sort_keys=keys).to_numpy())


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return the values of a column as a single array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
