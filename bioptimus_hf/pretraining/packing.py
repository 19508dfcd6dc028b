"""Turn documents into blocks of tokens: one stream, cut into blocks of equal length in the cache."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, LargeList, List, Value
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.cache import cached_map
from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.errors import InputError

_BYTES_PER_BATCH = 1_000_000  # of text
_VERSION = 2  # of the tokens; part of the key of the cache, which doesn't see the code of this package


@check_call(documents=("text",))
def tokenize_and_pack(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int, num_proc: int | None = None
) -> Dataset:
    """Turn documents into one stream of tokens, and cut it into blocks.

    The stream contains every document whole, in order, as `[CLS] ... [SEP]`. Nothing is dropped: the last block is as
    long as what remains. The blocks don't depend on `num_proc`. Tokens are kept in the cache, which is aware of changes
    in text or tokenizer; the blocks are views of that cache and take no memory of their own.

    Args:
        documents: has a column `text`.
        tokenizer: a fast tokenizer.
        max_length: tokens per block.
        num_proc: number of processes for tokenising.

    Returns:
        Data set with the column `input_ids`. On disk, it takes 2 bytes per token if the vocabulary allows it, and 4
        per document.

    Raises:
        InputError: `max_length` is less than 8, or more than the model can read according to the tokenizer.
    """
    if not 8 <= max_length <= tokenizer.model_max_length:
        raise InputError(
            f"must be between 8 and the model's {tokenizer.model_max_length}, not {max_length}", argument="max_length"
        )
    kind = "uint16" if len(tokenizer) <= 2**16 else "int32"
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    features = Features(input_ids=LargeList(Value(kind)))
    if not len(documents):
        return Dataset.from_dict({"input_ids": []}, features=features)
    tokenized = cached_map(
        documents.select_columns(["text"]).with_format("arrow"),
        _tokenize,
        kind="tokens",
        # As text: using a tokenizer changes its state, so that the cache would take it for another one.
        fn_kwargs={"backend": backend.to_str(), "kind": kind, "version": _VERSION},
        remove_columns=["text"],
        features=Features(input_ids=List(Value(kind))),
        num_proc=num_proc,
        desc="Tokenising",
    )
    chunks = tokenized.data.column("input_ids").chunks
    # Given a fingerprint, datasets doesn't hash the blocks, for which it would copy them all into memory. There is no
    # public access to the fingerprint of the tokens.
    return Dataset(
        pa.concat_tables(_cut(chunks, max_length)), fingerprint=Hasher.hash((tokenized._fingerprint, max_length))
    )


def _cut(chunks: list[pa.ListArray], max_length: int) -> list[pa.Table]:
    """Return tables of blocks: views of the chunks, and copies of the blocks that cross the border between two."""
    tables = []
    rest = None  # tokens of earlier chunks that don't fill a block
    for chunk in chunks:
        values = chunk.flatten()
        if rest is not None:
            missing = max_length - len(rest)
            rest = pa.concat_arrays([rest, values[:missing]])
            values = values[missing:]
            if len(rest) < max_length:
                continue
            tables.append(_table(rest, max_length))
        whole = len(values) - len(values) % max_length
        tables.append(_table(values[:whole], max_length))
        rest = values[whole:] if len(values) > whole else None
    return tables if rest is None else [*tables, _table(rest, max_length)]


def _table(values: pa.Array, max_length: int) -> pa.Table:
    offsets = np.append(np.arange(0, len(values), max_length), len(values))
    return pa.table({"input_ids": pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)})


def _tokenize(table: pa.Table, backend: str, kind: str, version: int) -> pa.Table:
    sizes = pc.binary_length(table["text"]).to_numpy()
    ids: list[npt.NDArray[Any]] = []
    # In batches, since the tokenizer's results take a hundred times the memory of the ids.
    for rows in np.split(table["text"].to_numpy(), np.flatnonzero(np.diff(np.cumsum(sizes) // _BYTES_PER_BATCH)) + 1):
        encodings = _tokenizer(backend).encode_batch_fast(list(map(with_blanks, rows)))
        ids += [np.array(encoding.ids, dtype=kind) for encoding in encodings]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(ids)))
    return pa.table({"input_ids": lists})


@lru_cache(maxsize=1)
def _tokenizer(backend: str) -> Tokenizer:
    return Tokenizer.from_str(backend)
