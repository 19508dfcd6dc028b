"""Load a corpus from files or the Hub as a data set of documents, and split off validation documents."""

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
)
from datasets.exceptions import DatasetGenerationError
from tqdm.auto import tqdm

from bioptimus_hf import __version__
from bioptimus_hf.artifacts import RECORD, differences, identity, read_record, sha256_of_file
from bioptimus_hf.corpus.files import NoTextError, no_text, report_undecodable, resolve, texts_of
from bioptimus_hf.corpus.hub import load_pinned, pin_dataset
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.errors import InputError, format_error

_TEXT = Features({"text": Value("string")})
_FEATURES = Features({**_TEXT, "document": Value("int64")})


def load_corpus(
    source: str | Path | Sequence[str | Path],
    *,
    text_column: str = "text",
    max_megabytes: float | None = None,
    errors: str = "strict",
) -> Dataset:
    """Load the documents of a corpus.

    Files may have any format that `DocumentReader` reads, and end in its suffix: plain text (`.txt`, a document per
    line), JSON lines (`.jsonl`), Parquet (`.parquet`), PubMed XML (`.xml`), PubTator (`.pubtator`), BioC (`.json`) or
    CoNLL (`.conll`, `.tsv`, a document per sentence); all but Parquet may be compressed (`.gz`). A folder stands for
    all such files in it and its subfolders, except hidden ones. Annotations are ignored and empty documents left out.

    Args:
        source: a file, a folder, a pattern of files, a list of these, or the name of a Hub data set (`name` or
            `name@revision`, optionally followed by `:split`; the default split is `train`).
        text_column: name of the text in JSON lines, Parquet and Hub data sets.
        max_megabytes: stop after this much text, in 10^6 bytes of UTF-8.
        errors: what to do about bytes that are not UTF-8: `strict` raises, `replace` reads them as U+FFFD and logs how
            many there are.

    Returns:
        A data set with the columns `text` and `document` (running number). Each file has its own entry in the cache of
        `datasets`: if one of many files can't be read, the others are not read again next time.

    Raises:
        InputError: there is nothing, or no text, or some files can't be read (which ones, and where in them).
    """
    if max_megabytes is not None and not max_megabytes > 0:
        raise InputError(f"must be above 0, not {max_megabytes:g}", argument="max_megabytes")
    found = resolve(source)
    if isinstance(found, str):
        return _load_from_hub(found, text_column, max_megabytes)
    if errors == "replace":
        report_undecodable(found, text_column)
    read = _load_files(found, text_column, max_megabytes, errors)
    documents = concatenate_datasets(read)
    numbers = pa.array(np.arange(len(documents)))
    fingerprint = f"{documents._fingerprint[:-4]}docs"
    return cast(Dataset, documents.add_column("document", numbers, new_fingerprint=fingerprint))


def load_documents(corpus: Corpus) -> Dataset:
    """Load all documents of a corpus; see `load_corpus`."""
    return load_corpus(
        corpus.corpus,
        text_column=corpus.text_column,
        max_megabytes=corpus.max_megabytes,
        errors=corpus.errors,
    )


def load_splits(corpus: Corpus) -> DatasetDict:
    """Load a corpus and split it; every stage of a run gets the same `train` and `validation` documents."""
    return split_validation(load_documents(corpus), share=corpus.validation_share)


def corpus_identity(source: str | Path | Sequence[str | Path]) -> str:
    """Return a hash of a corpus's files in their order, or the name and commit of a Hub data set.

    Raises:
        InputError: there is nothing.
    """
    found = resolve(source)
    identities = [identity(_pinned(found))] if isinstance(found, str) else [identity(file) for file in found]
    return identities[0] if len(identities) == 1 else hashlib.sha256(" ".join(identities).encode()).hexdigest()[:32]


def check_same_text(root: Path, corpus: Corpus, identity: str) -> None:
    """Raise if the vocabulary of a run was trained on other text, or on documents that are held out now.

    Args:
        root: folder of the run.
        corpus: what is to be read. With `other_text`, only its `validation_share` is compared.
        identity: of the corpus.

    Raises:
        InputError: the text differs (the message says how).
    """
    folder = root / "tokenizer"
    record = read_record(folder) if (folder / RECORD).is_file() else None
    if record is None or "corpus" not in record["inputs"]:
        return
    settings = corpus.settings()
    if corpus.other_text:
        settings = {"validation_share": settings["validation_share"]}
    then = {name: record["settings"].get(name) for name in settings}
    inputs = {} if corpus.other_text else {"corpus": identity}
    before = {"inputs": {name: record["inputs"][name] for name in inputs}, "settings": then}
    if changed := differences(before, inputs, settings):
        # Another share is never accepted: documents that are held out now have shaped the vocabulary. It is named last.
        advice = "" if corpus.other_text or changed.startswith("validation_share") else ", or set other_text"
        raise InputError(f"{folder} was made from different {changed}: read the same text in every stage{advice}")


def split_validation(dataset: Dataset, *, share: float = 0.01) -> DatasetDict:
    """Split off validation documents, by a hash of their text.

    Whether a document is used for validation depends on nothing but its text, so it is the same in every run and every
    corpus, and copies of a document are never on both sides.

    Args:
        dataset: documents, with a column `text`.
        share: expected share of the documents to use for validation, between 0 and 1.

    Returns:
        The splits `train` and `validation`, in the order of the corpus.

    Raises:
        InputError: one of the splits would be empty.
    """
    check_share(share)
    held_out = [is_held_out(text, share) for text in dataset["text"]]
    validation = [row for row, chosen in enumerate(held_out) if chosen]
    train = [row for row, chosen in enumerate(held_out) if not chosen]
    check_splits(len(dataset), len(validation), share)
    return DatasetDict(train=dataset.select(train), validation=dataset.select(validation))


def is_held_out(text: str, share: float) -> bool:
    """Return whether `split_validation` uses a document for validation."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=bytes(8)).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def check_share(share: float) -> None:
    """Raise InputError for a validation share that isn't between 0 and 1."""
    if not 0 < share < 1:
        raise InputError(f"the validation share must be between 0 and 1, not {share}")


def check_splits(documents: int, validation: int, share: float) -> None:
    """Raise InputError if one of the splits is empty."""
    if validation in (0, documents):
        raise InputError(
            f"{documents} documents leave none for {'training' if validation else 'validation'} at a validation share "
            f"of {share}: give more text or another share"
        )


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets`."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _load_files(files: Sequence[Path], text_column: str, max_megabytes: float | None, errors: str) -> list[Dataset]:
    """Load files one by one until there is enough text. Errors are raised at the end, so that the others are cached."""
    limit = None if max_megabytes is None else int(max_megabytes * 1e6)
    read: list[Dataset] = []
    unreadable: list[str] = []
    alone = len(files) == 1
    with nullcontext() if alone else no_bars():  # several files share one bar
        for file in tqdm(files, desc="Reading", unit=" files", disable=alone):
            try:
                documents = _load_file(file, text_column, limit, errors)
            except NoTextError:
                continue
            except InputError as error:
                unreadable.append(str(error))
                continue
            if limit is not None:
                size = _size(documents)
                if size > limit:  # the last document exceeds it
                    read.append(documents.select(range(max(len(documents) - 1, 0 if read else 1))))
                    break
                limit -= size
            read.append(documents)
            if limit == 0:
                break
    if unreadable:
        more = f" (and {len(unreadable) - 3} more)" if unreadable[3:] else ""
        kept = f"; {len(read)} other files are cached for the next time" if read else ""
        raise InputError("; ".join(unreadable[:3]) + more + kept)
    if not read:
        raise no_text(files)
    return read


def _load_from_hub(source: str, text_column: str, max_megabytes: float | None) -> Dataset:
    pinned, _, split = _pinned(source).partition(":")
    dataset = cast(Dataset, load_pinned(pinned, split or "train"))
    if text_column not in dataset.column_names:
        columns = ", ".join(dataset.column_names)
        raise InputError(f"{source} has no column {text_column!r}: it has {columns}", argument="text_column")
    if dataset.features[text_column].dtype not in ("string", "large_string"):
        raise InputError(f"{source}: the column {text_column!r} isn't a string column", argument="text_column")
    dataset = dataset.select_columns([text_column]).filter(
        lambda text: bool(text and text.strip()), input_columns=text_column
    )
    if max_megabytes is not None:
        dataset = dataset.select(range(_rows_within(dataset[text_column], max_megabytes)))
    if len(dataset) == 0:
        raise InputError(f"no text in {source}: every document is empty")
    dataset = dataset.rename_column(text_column, "text") if text_column != "text" else dataset
    return cast(Dataset, dataset.add_column("document", list(range(len(dataset)))).cast(_FEATURES))


def _pinned(source: str) -> str:
    """Return a Hub data set as `name@commit`, followed by `:split` if the source is."""
    name, colon, split = source.partition(":")
    try:
        return f"{pin_dataset(name)}{colon}{split}"
    except InputError as error:
        problem = f"not a local file and not an available Hub data set ({format_error(error)})"
        raise InputError(f"no corpus at {source}: {problem}") from error


def _rows_within(texts: Sequence[str], megabytes: float) -> int:
    size = 0
    for row, text in enumerate(texts):
        size += len(text.encode())
        if size > megabytes * 1e6:
            return max(row, 1)
    return len(texts)


def _load_file(file: Path, text_column: str, limit: int | None, errors: str) -> Dataset:
    try:
        # The cache depends on the arguments alone, so they must change when the file or this package changes.
        arguments = {
            "file": str(file),
            "content": sha256_of_file(file),
            "text_column": text_column,
            "limit": limit,
            "errors": errors,
            "package": f"bioptimus_hf {__version__}",
        }
        return cast(Dataset, Dataset.from_generator(_documents, features=_TEXT, gen_kwargs=arguments, split="train"))
    except DatasetGenerationError as error:  # wraps what the generator raises
        if isinstance(error.__cause__, (InputError, OSError)):
            raise error.__cause__ from None
        raise
    except PermissionError as error:
        raise InputError(f"{file} can't be read ({error.strerror})") from error


def _documents(
    file: str, content: str, text_column: str, limit: int | None, errors: str, package: str
) -> Iterator[dict[str, Any]]:
    """Yield documents, up to and including the first one that exceeds the limit in bytes."""
    size = 0
    for text in texts_of(file, text_column, errors):
        yield {"text": text}
        size += len(text.encode())
        if limit is not None and size > limit:
            return
    if not size:
        raise no_text([file])


def _size(documents: Dataset) -> int:
    """Return the number of bytes of the texts."""
    return sum(pc.sum(pc.binary_length(chunk)).as_py() for chunk in documents.data["text"].chunks)
