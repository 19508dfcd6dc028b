"""Text in: files or a Hub data set -> documents -> sentences; training and validation parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Value,
    are_progress_bars_disabled,
    concatenate_datasets,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import constants
from tqdm.auto import tqdm

from bioptimus_hf import __version__
from bioptimus_hf.artifacts import identity, sha256_of_file
from bioptimus_hf.corpus.files import NoText, documents_of, no_text, report_undecodable, resolve
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import find_files, split_revision

_TEXT = Features({"text": Value("string")})
FEATURES = Features({**_TEXT, "document": Value("int64")})


def load_corpus(
    source: str | Path | Sequence[str | Path],
    *,
    text_column: str = "text",
    max_megabytes: float | None = None,
    errors: str = "strict",
) -> Dataset:
    """Read documents.

    Args:
        source: a file, a folder or a pattern of files, several of them, or the name of a Hub data set (`name` or
            `name@revision`, and maybe `:split` behind it, by default `train`). In `.txt` and `.txt.gz` a document is a
            line; in `.jsonl` and `.parquet` it is the value of `text_column`. Empty documents are left out.
        max_megabytes: stop after this much text, in 10^6 bytes of UTF-8.
        errors: what is done about bytes that are not UTF-8: `strict`, or `replace` by U+FFFD and say how many.

    Returns:
        Data set with the columns `text` and `document` (running number). Each file is kept in the cache of `datasets`
        by itself: where one of many cannot be read, the others are not read again.

    Raises:
        InputError: nothing there, no text in it, or files that cannot be read (which ones, and where in them).
    """
    if max_megabytes is not None and max_megabytes <= 0:
        raise InputError(f"--max_megabytes must be above 0, not {max_megabytes:g}")
    found = resolve(source)
    if isinstance(found, str):
        return _load_from_hub(found, text_column, max_megabytes)
    if errors == "replace":
        report_undecodable(found, text_column)
    limit = None if max_megabytes is None else int(max_megabytes * 1e6)
    read: list[Dataset] = []
    unreadable: list[str] = []
    alone = len(found) == 1  # or it is one bar for all files, not one for each
    with nullcontext() if alone else no_bars():
        for file in tqdm(found, desc="Reading", unit=" files", disable=alone):
            try:
                documents = _load_file(file, text_column, limit, errors)
            except NoText:
                continue
            except InputError as error:
                unreadable.append(str(error))
                continue
            if limit is not None:
                size = _size(documents)
                if size > limit:  # the last one reaches over it
                    read.append(documents.select(range(max(len(documents) - 1, 0 if read else 1))))
                    break
                limit -= size
            read.append(documents)
            if limit == 0:
                break
    if unreadable:
        more = f" (and {len(unreadable) - 3} more)" if unreadable[3:] else ""
        kept = f"; read and kept for the next time: {len(read)} others" if read else ""
        raise InputError("; ".join(unreadable[:3]) + more + kept)
    if not read:
        raise no_text(found)
    every = concatenate_datasets(read)
    numbers = pa.array(np.arange(len(every)))
    return cast(Dataset, every.add_column("document", numbers, new_fingerprint=f"{every._fingerprint[:-4]}docs"))


def load_documents(corpus: Corpus) -> Dataset:
    """Read all documents of a corpus; see `load_corpus`."""
    return load_corpus(
        corpus.corpus,
        text_column=corpus.text_column,
        max_megabytes=corpus.max_megabytes,
        errors=corpus.errors,
    )


def load_splits(corpus: Corpus) -> DatasetDict:
    """Read a corpus and split it; every stage of a run gets the same `train` and `validation` documents."""
    return split_validation(load_documents(corpus), share=corpus.validation_share)


def corpus_identity(source: str | Path | Sequence[str | Path]) -> str:
    """Return what makes a corpus itself: the content of its files in their order, or its name and commit on the Hub.

    Raises:
        InputError: nothing there.
    """
    found = resolve(source)
    identities = [identity(_pinned(found))] if isinstance(found, str) else [identity(file) for file in found]
    return identities[0] if len(identities) == 1 else hashlib.sha256(" ".join(identities).encode()).hexdigest()[:32]


def split_validation(dataset: Dataset, *, share: float = 0.01) -> DatasetDict:
    """Set documents aside for validation, by a hash of their text.

    A document falls on the same side whatever the seed of a run and whatever else the corpus holds, and copies of it
    never fall on both sides.

    Args:
        share: expected share of the documents, between 0 and 1.

    Raises:
        InputError: one of the two sides would be empty.
    """
    check_share(share)
    aside = [is_set_aside(text, share) for text in dataset["text"]]
    validation = [row for row, chosen in enumerate(aside) if chosen]
    train = [row for row, chosen in enumerate(aside) if not chosen]
    check_parts(len(dataset), len(validation), share)
    return DatasetDict(train=dataset.select(train), validation=dataset.select(validation))


def is_set_aside(text: str, share: float) -> bool:
    """Say whether `split_validation` puts a document into the validation part."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=bytes(8)).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def check_share(share: float) -> None:
    """Refuse a validation share that is none."""
    if not 0 < share < 1:
        raise InputError(f"the validation share must lie between 0 and 1, not {share}")


def check_parts(documents: int, validation: int, share: float) -> None:
    """Refuse a split into training and validation with nothing on one side."""
    if validation in (0, documents):
        raise InputError(
            f"{documents} documents leave no {'training' if validation else 'validation'} part at a validation "
            f"share of {share}: give more text or another --validation_share"
        )


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep `datasets` from showing its own bars."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _load_from_hub(source: str, text_column: str, max_megabytes: float | None) -> Dataset:
    pinned, _, split = _pinned(source).partition(":")
    name, commit = split_revision(pinned)
    try:
        dataset = cast(Dataset, load_dataset(name, revision=commit, split=split or "train"))
    except Exception as error:  # the client raises many kinds; all mean that this name cannot be had
        raise _no_dataset(source, error) from error
    # Off the network, the library takes the newest that it has, whatever was asked for.
    if constants.HF_HUB_OFFLINE and str(commit) not in str(dataset.cache_files):
        raise InputError(f"{source}: commit {commit} is not in the cache: load it once without HF_HUB_OFFLINE")
    if text_column not in dataset.column_names:
        raise InputError(f"{source} has no column {text_column!r}: it has {', '.join(dataset.column_names)}")
    if dataset.features[text_column].dtype not in ("string", "large_string"):
        raise InputError(f"{source}: the column {text_column!r} holds no text; name another with --text_column")
    dataset = dataset.select_columns([text_column]).filter(
        lambda text: bool(text and text.strip()), input_columns=text_column
    )
    if max_megabytes is not None:
        dataset = dataset.select(range(_rows_within(dataset[text_column], max_megabytes)))
    if len(dataset) == 0:
        raise InputError(f"no text in {source}: every document is empty")
    dataset = dataset.rename_column(text_column, "text") if text_column != "text" else dataset
    return cast(Dataset, dataset.add_column("document", list(range(len(dataset)))).cast(FEATURES))


def _pinned(source: str) -> str:
    """Return the name of a Hub data set with the commit that its revision is now, or was when it was last online."""
    given, colon, split = source.partition(":")
    try:
        found = find_files(given, [".gitattributes"])  # which every repository has
    except InputError as error:
        raise _no_dataset(source, error) from error
    return f"{found.commit}{colon}{split}"


def _no_dataset(source: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"no corpus at {source}: neither a file here nor a data set that can be had ({reason})")


def _rows_within(texts: Sequence[str], megabytes: float) -> int:
    size = 0
    for row, text in enumerate(texts):
        size += len(text.encode())
        if size > megabytes * 1e6:
            return max(row, 1)
    return len(texts)


def _load_file(file: Path, text_column: str, limit: int | None, errors: str) -> Dataset:
    try:
        # The cache of data sets hashes the arguments alone, so a changed file and a changed package must show in them.
        arguments = {
            "file": str(file),
            "content": sha256_of_file(file),
            "text_column": text_column,
            "limit": limit,
            "errors": errors,
            "package": f"bioptimus_hf {__version__}",
        }
        return cast(Dataset, Dataset.from_generator(_documents, features=_TEXT, gen_kwargs=arguments, split="train"))
    except DatasetGenerationError as error:  # wraps whatever the generator raises
        if isinstance(error.__cause__, (InputError, OSError)):
            raise error.__cause__ from None
        raise
    except PermissionError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error


def _documents(
    file: str, content: str, text_column: str, limit: int | None, errors: str, package: str
) -> Iterator[dict[str, Any]]:
    """Yield documents, and if there is a limit in bytes none after the first that goes beyond it."""
    size = 0
    for text in documents_of(Path(file), text_column, errors):
        yield {"text": text}
        size += len(text.encode())
        if limit is not None and size > limit:
            return
    if not size:
        raise no_text([file])


def _size(documents: Dataset) -> int:
    """Return the number of bytes of text."""
    return sum(pc.sum(pc.binary_length(chunk)).as_py() for chunk in documents.data["text"].chunks)
