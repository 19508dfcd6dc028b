"""Text in: files or a Hub data set -> documents -> sentences; training and validation parts."""

from __future__ import annotations

import glob
import gzip
import hashlib
import importlib.metadata
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet
import sentencex
from datasets import Dataset, DatasetDict, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from bioptimus_hf import __version__
from bioptimus_hf.artifacts import InputError, identity, sha256_of_file

_JSONL = (".jsonl", ".jsonl.gz")
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
# Stands among the arguments of the step, whose cache sees neither our code nor that of the library.
_SPLITTER = f"sentencex {importlib.metadata.version('sentencex')}, brackets 1"
_LONG_SENTENCE = 1000  # characters
_WITHOUT_BRACKETS = str.maketrans(dict.fromkeys("()[]{}", " "))
_FEATURES = Features({"text": Value("string"), "document": Value("int64")})


def load_corpus(
    source: str | Path | Sequence[str | Path], *, text_column: str = "text", max_megabytes: float | None = None
) -> Dataset:
    """Read documents.

    Args:
        source: a file, a folder or a pattern of files, several of them, or the name of a Hub data set
            (`name` or `name:split`, by default the split `train`). In `.txt` and `.txt.gz` a document is a line; in
            `.jsonl` and `.parquet` it is the value of `text_column`. Empty documents are left out.
        max_megabytes: stop after this much text, in 10^6 bytes of UTF-8.

    Returns:
        Data set with the columns `text` and `document` (running number).

    Raises:
        InputError: nothing there, no text in it, or a file that cannot be read (which one, and where in it).
    """
    if max_megabytes is not None and max_megabytes <= 0:
        raise InputError(f"--max_megabytes must be above 0, not {max_megabytes:g}")
    found = _resolve(source)
    if isinstance(found, str):
        return _load_from_hub(found, text_column, max_megabytes)
    # The cache of data sets hashes the arguments alone, so a changed file and a changed package must show in them.
    # A tuple, because a list would be taken for shards, the generator called for each, and its counts begun again.
    content = tuple((str(file), sha256_of_file(file)) for file in found)
    try:
        dataset = Dataset.from_generator(
            _documents,
            features=_FEATURES,
            gen_kwargs={
                "content": content,
                "text_column": text_column,
                "max_megabytes": max_megabytes,
                "package": f"bioptimus_hf {__version__}",
            },
            split="train",
        )
    except DatasetGenerationError as error:  # wraps whatever the generator raises
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    return cast(Dataset, dataset)


def corpus_identity(source: str | Path | Sequence[str | Path]) -> str:
    """Return what makes a corpus itself: the content of its files in their order, or its name on the Hub.

    Raises:
        InputError: nothing there.
    """
    found = _resolve(source)
    identities = [identity(found)] if isinstance(found, str) else [identity(file) for file in found]
    return identities[0] if len(identities) == 1 else hashlib.sha256(" ".join(identities).encode()).hexdigest()[:32]


def split_sentences(dataset: Dataset, *, num_proc: int | None = None) -> Dataset:
    """Cut documents into sentences with sentencex, which knows "e.g.", "Fig. 2" and "et al.".

    Returns:
        Data set with a row for each sentence: `text` (stripped) and `document`.
    """
    return cast(
        Dataset,
        dataset.select_columns(["text", "document"]).map(
            _sentences,
            batched=True,
            fn_kwargs={"splitter": _SPLITTER},
            features=_FEATURES,
            num_proc=num_proc if num_proc and num_proc > 1 else None,
            desc="Splitting sentences",
        ),
    )


def split_validation(dataset: Dataset, *, share: float = 0.01, seed: int = 0) -> DatasetDict:
    """Set documents aside for validation, by a hash of seed and text.

    A document falls on the same side whatever else the corpus holds, and copies of it never fall on both sides.

    Args:
        share: expected share of the documents, between 0 and 1.

    Raises:
        InputError: one of the two sides would be empty.
    """
    if not 0 < share < 1:
        raise InputError(f"the validation share must lie between 0 and 1, not {share}")
    aside = [_falls_below(text, share, seed) for text in dataset["text"]]
    validation = [row for row, chosen in enumerate(aside) if chosen]
    train = [row for row, chosen in enumerate(aside) if not chosen]
    if not validation or not train:
        raise InputError(
            f"{len(dataset)} documents leave no {'training' if validation else 'validation'} part at a validation "
            f"share of {share}: give more text or another --validation_share"
        )
    return DatasetDict(train=dataset.select(train), validation=dataset.select(validation))


def _resolve(source: str | Path | Sequence[str | Path]) -> list[Path] | str:
    """Return the files meant, in order, or the name of the Hub data set meant."""
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    files: list[Path] = []
    for one in sources:
        found = _files(one)
        if not found and len(sources) == 1 and not Path(one).exists() and _looks_like_hub_name(str(one)):
            return str(one)
        if not found:
            raise InputError(f"no corpus at {one}: give a file or folder of {', '.join(SUFFIXES)}, or a Hub data set")
        files.extend(found)
    if not files:
        raise InputError("no corpus given: name files, folders or a Hub data set")
    return files


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path} is of no kind known here: give one of {', '.join(SUFFIXES)}")
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(source), recursive=True))
    return sorted(file for file in found if file.is_file() and file.name.endswith(SUFFIXES))


def _looks_like_hub_name(source: str) -> bool:
    name = source.partition(":")[0]
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and name[0] != "." and not name.endswith(SUFFIXES)


def _load_from_hub(source: str, text_column: str, max_megabytes: float | None) -> Dataset:
    name, _, split = source.partition(":")
    try:
        dataset = cast(Dataset, load_dataset(name, split=split or "train"))
    except Exception as error:  # the client raises many kinds; all mean that this name cannot be had
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no corpus at {source}: neither a file here nor a data set that can be had ({reason})"
        ) from error
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
    return cast(Dataset, dataset.add_column("document", list(range(len(dataset)))).cast(_FEATURES))


def _rows_within(texts: Sequence[str], megabytes: float) -> int:
    size = 0
    for row, text in enumerate(texts):
        size += len(text.encode())
        if size > megabytes * 1e6:
            return max(row, 1)
    return len(texts)


def _documents(
    content: tuple[tuple[str, str], ...], text_column: str, max_megabytes: float | None, package: str
) -> Iterator[dict[str, Any]]:
    size = 0
    document = 0
    for name, _ in content:
        for text in _texts(Path(name), text_column):
            if not text.strip():
                continue
            size += len(text.encode())
            if max_megabytes is not None and size > max_megabytes * 1e6 and document:
                return
            yield {"text": text, "document": document}
            document += 1
    if not document:
        raise InputError(f"no text in {', '.join(name for name, _ in content[:3])}: every document is empty")


def _texts(path: Path, text_column: str) -> Iterator[str]:
    if path.name.endswith(".parquet"):
        yield from _parquet_texts(path, text_column)
    else:
        for number, line in enumerate(_lines(path), start=1):
            yield _json_text(path, number, line, text_column) if path.name.endswith(_JSONL) else line


def _lines(path: Path) -> Iterator[str]:
    opening = gzip.open if path.name.endswith(".gz") else open
    offset = 0
    with cast(BinaryIO, opening(path, "rb")) as file:
        try:
            for line in file:
                if not offset and line.startswith(BOM_UTF8):  # some editors write one, and it is no text
                    offset, line = len(BOM_UTF8), line.removeprefix(BOM_UTF8)
                yield line.decode("utf-8").rstrip("\r\n")
                offset += len(line)
        except UnicodeDecodeError as error:
            where = "of the unpacked text" if path.name.endswith(".gz") else ""
            raise InputError(
                f"{path} is not valid UTF-8 at byte {offset + error.start} {where}".rstrip() + ": convert or mend it"
            ) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} is not a whole gzip file ({error}): fetch it again") from error


def _json_text(path: Path, number: int, line: str, text_column: str) -> str:
    if not line.strip():
        return ""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not JSON ({error.msg})") from error
    text = row.get(text_column, 0) if isinstance(row, dict) else 0
    if text is None:  # an empty document, as in a parquet file
        return ""
    if not isinstance(text, str):
        raise InputError(f"{path}, line {number}: no text under {text_column!r}; name the column with --text_column")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud83d" alone is JSON, and no character
        raise InputError(f"{path}, line {number}: half a surrogate pair, which is no text: mend it") from error
    return text


def _parquet_texts(path: Path, text_column: str) -> Iterator[str]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_column not in file.schema_arrow.names:
                raise InputError(f"{path} has no column {text_column!r}: it has {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(columns=[text_column]):
                for text in batch.column(0).to_pylist():
                    if text is not None and not isinstance(text, str):
                        raise InputError(f"{path}: the column {text_column!r} holds no text")
                    yield text or ""
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the column {text_column!r} is not valid UTF-8: convert or mend it") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a whole parquet file ({' '.join(str(error).split())})") from error


def _sentences(batch: dict[str, list[Any]], splitter: str) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {"text": [], "document": []}
    for text, document in zip(batch["text"], batch["document"], strict=True):
        for sentence in _segment(text):
            stripped = sentence.strip()
            if stripped:
                rows["text"].append(stripped)
                rows["document"].append(document)
    return rows


def _segment(text: str) -> Iterator[str]:
    """Yield the sentences of a text, which is all of them put together."""
    for sentence in sentencex.segment("en", text):
        if len(sentence) <= _LONG_SENTENCE:
            yield sentence
            continue
        # After a number in brackets, "(iii)", the library takes all that follows, over pages, for one item of a list.
        start = 0
        for part in sentencex.segment("en", sentence.translate(_WITHOUT_BRACKETS)):
            yield sentence[start : start + len(part)]
            start += len(part)


def _falls_below(text: str, share: float, seed: int) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "big", signed=True)).digest()
    return int.from_bytes(digest, "big") < share * 2**64
