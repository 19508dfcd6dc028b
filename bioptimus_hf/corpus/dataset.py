"""Load a corpus from files or the Hub as a data set of documents, and split off validation documents."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    are_progress_bars_disabled,
    concatenate_datasets,
    disable_progress_bars,
    enable_progress_bars,
)

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, differences, identity, read_record
from bioptimus_hf.corpus.cache import cached
from bioptimus_hf.corpus.files import (
    CorpusFile,
    TextCounts,
    TextOptions,
    check_unit,
    kept_texts,
    no_text,
    resolve,
    text_of,
    texts_of,
)
from bioptimus_hf.corpus.hub import pin_source, read_hub
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.corpus.reading import MAX_DOCUMENT_MEGABYTES, ReadOptions, Source, Unit
from bioptimus_hf.errors import InputError
from bioptimus_hf.progress import progress_bar

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema({"text": pa.string()})
_DEFAULTS = {"encoding": "utf-8", "unit": "line"}  # of settings that a record doesn't name
_ROWS_AT_ONCE = 1000  # of a file
_EMPTY = f"sha256:{hashlib.sha256().hexdigest()}"  # identity of an empty file
_CHARACTERS_AT_ONCE = 1 << 26  # whole books may be too much for one Arrow array


@dataclass(frozen=True)
class Contents:
    """What a corpus contained when it was asked for.

    Attributes:
        source: files, or the name of a Hub data set with its commit.
        identity: a hash of the files in their order, or that name.
    """

    source: tuple[CorpusFile, ...] | str
    identity: str


@dataclass(frozen=True)
class Text:
    """Documents, and what was read to get them.

    Attributes:
        documents: with the columns `text` and `document` (running number).
        facts: number of files, documents, words and bytes that were read, and of what was left out.
    """

    documents: Dataset
    facts: dict[str, int]


@check_call()
def load_corpus(
    source: str | Path | Sequence[str | Path],
    *,
    text_column: str | Sequence[str] = "text",
    unit: Unit | None = None,
    max_megabytes: float | None = None,
    errors: str = "strict",
    encoding: str = "utf-8",
    max_document_megabytes: float = MAX_DOCUMENT_MEGABYTES,
) -> Dataset:
    """Load the documents of a corpus.

    Files may have any format that `DocumentReader` reads, and end in its suffix: plain text (`.txt`), JSON lines
    (`.jsonl`), a JSON array or BioC (`.json`), CSV (`.csv`), TSV or CoNLL (`.tsv`), Parquet (`.parquet`), PubMed, JATS
    or BioC XML (`.xml`), PubTator (`.pubtator`) and others; all but Parquet may be compressed (`.gz`). A folder stands
    for all such files in it and its subfolders, except hidden ones. Annotations are ignored and empty documents left
    out.

    Args:
        source: a file, a folder, a pattern of files, a list of these, or the name of a Hub data set (`name` or
            `name@revision`, optionally followed by `:split`; the default split is `train`).
        text_column: name of the text in JSON, CSV, TSV, Parquet and Hub data sets. Several are joined by line breaks.
        unit: what is a document in plain text: a `line` (the default) or a `file`. Must be given for many small files.
        max_megabytes: stop after this much text, in 10^6 bytes of UTF-8.
        errors: what to do about bytes that can't be decoded: `strict` raises, `replace` reads them as U+FFFD and logs
            how many there are.
        encoding: of text files: any that Python knows. XML declares its own, and Parquet has one.
        max_document_megabytes: longer documents are an error, since tokenizing one needs a hundred times its size.

    Returns:
        A data set with the columns `text` and `document` (running number). Each file has its own entry in the cache,
        which is found by the hash of the file: if one of many files can't be read, the others are not read again next
        time.

    Raises:
        InputError: there is nothing, or no text, or some files can't be read (which ones, and where in them), or a file
            changes while it is read.
    """
    if max_megabytes is not None and not max_megabytes > 0:
        raise InputError(f"must be above 0, not {max_megabytes:g}", argument="max_megabytes")
    options = ReadOptions(text_column, errors, encoding, max_document_megabytes, unit=unit or "line")
    contents = contents_of(source)
    _check_unit(contents, unit)
    return _load(contents, TextOptions(options), max_megabytes).documents


def load_text(corpus: Corpus, contents: Contents | None = None) -> Text:
    """Load all documents of a corpus; see `load_corpus`.

    Args:
        corpus: what to load, and how to read it.
        contents: from `contents_of`, if the corpus must still contain this.
    """
    options = TextOptions(corpus.read_options())
    contents = contents or contents_of(corpus.corpus)
    _check_unit(contents, corpus.unit)
    return _load(contents, options, corpus.max_megabytes)


def _check_unit(contents: Contents, unit: str | None) -> None:
    if not isinstance(contents.source, str):
        check_unit([file.path for file in contents.source], unit)


def contents_of(source: str | Path | Sequence[str | Path]) -> Contents:
    """Find the files of a corpus and hash them, or find the commit of a Hub data set.

    Raises:
        InputError: there is nothing, or a file can't be read.
    """
    found = resolve(source, report=True)
    if isinstance(found, str):
        try:
            pinned = pin_source(found)
        except InputError as error:
            raise InputError(f"no corpus at {found}: {error}") from error
        return Contents(pinned, identity(pinned))
    files = tuple(CorpusFile(file, _hash(file)) for file in found)
    _report_copies(files)
    identities = [str(file.content) for file in files]
    combined = hashlib.sha256(" ".join(identities).encode()).hexdigest()[:32]
    return Contents(files, identities[0] if len(identities) == 1 else combined)


def corpus_identity(source: str | Path | Sequence[str | Path]) -> str:
    """Return a hash of a corpus's files in their order, or the name and commit of a Hub data set.

    Raises:
        InputError: there is nothing.
    """
    return contents_of(source).identity


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
    settings = {**_DEFAULTS, **corpus.settings()}
    if corpus.other_text:
        settings = {"validation_share": settings["validation_share"]}
    then = {name: record["settings"].get(name, _DEFAULTS.get(name)) for name in settings}
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


def _hash(file: Path) -> str:
    try:
        return identity(file)
    except OSError as error:
        raise InputError(f"{file} can't be read ({error.strerror or error})") from error


def _report_copies(files: Sequence[CorpusFile]) -> None:
    """Warn about files with the same content, unless they are empty."""
    copies: dict[str | None, list[str]] = {}
    for file in files:
        copies.setdefault(file.content, []).append(str(file.path))
    copies.pop(_EMPTY, None)
    for names in copies.values():
        if len(names) > 1:
            more = f" and {len(names) - 4} more" if names[4:] else ""
            logger.warning("the same documents are read %d times: %s%s", len(names), ", ".join(names[:4]), more)


def _load(contents: Contents, options: TextOptions, max_megabytes: float | None) -> Text:
    options = replace(options, limit=None if max_megabytes is None else int(max_megabytes * 1e6))
    if isinstance(contents.source, str):
        documents, counts = _load_from_hub(contents.source, options)
        facts = counts.facts()
    else:
        read, counts = _load_files(contents.source, options)
        documents = concatenate_datasets(read)
        facts = {"files": len(contents.source), "files_read": len(read), **counts.facts()}
    if counts.empty:
        logger.info("%d empty documents are left out", counts.empty)
    numbers = pa.array(np.arange(len(documents)))
    fingerprint = f"{documents._fingerprint[:-4]}docs"
    return Text(documents.add_column("document", numbers, new_fingerprint=fingerprint), facts)


def _load_files(files: Sequence[CorpusFile], options: TextOptions) -> tuple[list[Dataset], TextCounts]:
    """Load files one by one until there is enough text. Errors are raised at the end, so that the others are cached."""
    read: list[Dataset] = []
    counts = TextCounts()
    unreadable: list[str] = []
    for file in progress_bar(files, desc="Reading", unit=" files", delay=1):
        limit = None if options.limit is None else options.limit - counts.bytes
        try:
            documents, counted = _load_file(file, replace(options, limit=limit, at_least_one=not counts.documents))
        except InputError as error:
            unreadable.append(str(error))
            continue
        if counted.replaced:
            logger.warning("%s: %d undecodable bytes or sequences are replaced by U+FFFD", file.path, counted.replaced)
        read.append(documents)
        counts += counted
        if counts.cut or (options.limit is not None and counts.bytes >= options.limit):
            break
    if unreadable:
        more = f" (and {len(unreadable) - 3} more)" if unreadable[3:] else ""
        kept = f"; {len(read)} other files are cached for the next time" if read else ""
        raise InputError("; ".join(unreadable[:3]) + more + kept)
    if not counts.documents:
        raise no_text([file.path for file in files])
    return read, counts


def _load_file(file: CorpusFile, options: TextOptions) -> tuple[Dataset, TextCounts]:
    # The format depends on the name of the file.
    key = {"file": file.path.name, "content": file.content}
    return _cached_texts(key, options, lambda counts: texts_of(file, options, counts))


def _load_from_hub(source: str, options: TextOptions) -> tuple[Dataset, TextCounts]:
    name = source.partition("@")[0]

    def texts(counts: TextCounts) -> Iterator[str]:
        documents = read_hub(source, Source(name, replace(options.read, annotations="ignored")))
        yield from kept_texts(map(text_of, documents), options, counts)

    documents, counts = _cached_texts({"source": source}, options, texts)
    if not counts.documents:
        raise InputError(f"no text in {name}: every document is empty")
    return documents, counts


def _cached_texts(
    key: Mapping[str, str | None], options: TextOptions, texts: Callable[[TextCounts], Iterable[str]]
) -> tuple[Dataset, TextCounts]:
    """Return texts and their counts from the cache; if they aren't there, they are read first."""

    def write(folder: Path) -> dict[str, int]:
        counts = TextCounts()
        with pa.OSFile(str(folder / "texts.arrow"), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            for batch in _batches(texts(counts)):
                writer.write_batch(pa.record_batch([pa.array(batch, pa.string())], schema=_SCHEMA))
        return asdict(counts)

    documents, counts = cached("texts", {**key, **asdict(options)}, write)
    return documents, TextCounts(**counts)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if len(batch) == _ROWS_AT_ONCE or size > _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    yield batch
