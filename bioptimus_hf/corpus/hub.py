"""Load data sets from the Hub, pinned to a commit, and read the documents in their rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import constants

from bioptimus_hf.corpus.arrow_tables import ROWS_AT_ONCE, table_documents
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.reading import Source, TooLongError, size_over
from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.models import find_files, split_revision

if TYPE_CHECKING:
    import pyarrow as pa


def pin_dataset(name: str) -> str:
    """Return the name of a data set on the Hub as `name@commit`.

    Args:
        name: `name` or `name@revision`. Offline, the commit is the one that the revision pointed to when it was last
            looked up online.

    Raises:
        InputError: the data set isn't available.
    """
    return str(find_files(name, [".gitattributes"]).commit)  # a file that every repository has


def pin_source(source: str) -> str:
    """Return `name`, `name@revision` or either of them with `:split` as `name@commit`, with the split if it has one.

    Raises:
        InputError: the data set isn't available.
    """
    name, colon, split = source.partition(":")
    try:
        return f"{pin_dataset(name)}{colon}{split}"
    except InputError as error:
        raise InputError(f"not a local file and not an available Hub data set ({format_error(error)})") from error


def read_hub(pinned: str, source: Source) -> Iterator[Document | InputError]:
    """Yield the document of each row of a data set, and an error in place of each that can't be read.

    Args:
        pinned: `name@commit`, with `:split` if it isn't `train`.
        source: the data set, for messages, and how to read it; see `table_documents`.

    Raises:
        InputError: it can't be loaded, or a column is missing or has another type.
    """
    name, _, split = pinned.partition(":")
    dataset = cast(Dataset, load_pinned(name, split or "train"))

    def batches(columns: list[str]) -> Iterable[pa.RecordBatch]:
        for table in dataset.select_columns(columns).with_format("arrow").iter(ROWS_AT_ONCE):
            # In one piece, whatever the pieces of the data set.
            yield from table.combine_chunks().to_batches()

    for number, document in enumerate(table_documents(source, dataset.features.arrow_schema, batches), start=1):
        if isinstance(document, Document) and (size := size_over(document.text, source.options)):
            yield TooLongError(f"{source.path}, row {number}", size, source.options)
        else:
            yield document
    source.report()


def load_pinned(pinned: str, split: str | None = None) -> Dataset | DatasetDict:
    """Load a data set from the Hub at the commit that `pin_dataset` returned.

    Args:
        pinned: `name@commit`.
        split: one split, also a slice like `train[:10%]`; by default all of them.

    Raises:
        InputError: the data set can't be loaded, or this process is offline and has no copy of this commit.
    """
    name, commit = split_revision(pinned)
    try:
        dataset = load_dataset(name, revision=commit, split=split)
    except Exception as error:  # the client raises many kinds; all mean that the data set isn't available
        raise InputError(f"{name} can't be loaded from the Hub ({format_error(error)})") from error
    # Offline, `datasets` loads the newest copy in its cache, no matter which revision was asked for.
    if constants.HF_HUB_OFFLINE and str(commit) not in str(dataset.cache_files):
        raise InputError(f"{name}: commit {commit} is not in the cache: load it once without HF_HUB_OFFLINE")
    return dataset
