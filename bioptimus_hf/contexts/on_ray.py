"""Contexts past one machine: the search of `contexts` on Ray Data, a file a task, with the rows that one machine gives.

A task names the sentences of its file that can still win, with their text. The driver merges what the tasks hand in, in
whatever order they end, and never holds more than the leaders. A task is a pure function of its file: where a worker or
a machine is lost, Ray does it again elsewhere, and nothing changes in the result.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.contexts.finder import ROWS_AT_ONCE, BatchFinder, fetch_contexts, usable_tokens
from bioptimus_hf.contexts.local import Found
from bioptimus_hf.contexts.matching import word_rules
from bioptimus_hf.contexts.sampling import FIELDS, Candidates, Reservoir, from_table
from bioptimus_hf.corpus.dataset import check_parts, check_share, is_set_aside
from bioptimus_hf.corpus.files import corpus_files, no_text, texts_of
from bioptimus_hf.corpus.sentences import sentences_of
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

_HELD = 1 << 18  # sentences, before those of losers are thrown out for the first time
_ROW_BITS = 40  # of a row number for the sentence within its file; the bits above are the number of the file
_ATTEMPTS = 10  # at a file, before it is blamed for the end of the workers that read it
_SECONDS_FOR_THREADS = 30  # of Ray Data, to end
_COUNTS = ("documents", "set_aside", "sentences", "occurrences")
_SENTENCES = pa.schema([("row", pa.int64()), ("text", pa.large_string()), ("document", pa.int64())])


def find_contexts_on_ray(
    source: str | Path | Sequence[str | Path],
    tokens: Collection[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str = "text",
    errors: str = "strict",
    validation_share: float | None = None,
    per_token: int = 64,
    seed: int = 0,
    num_proc: int | None = None,
    address: str | None = None,
) -> Found:
    """Find sentences that hold the tokens, as `contexts.find_contexts` does, with Ray on any number of machines.

    Args:
        source: a file, a folder or a pattern of files, or several of them, as for `corpus.load_corpus`. A file is the
            unit of work. Every machine must see the files under the same paths, and have this package installed.
        tokens: tokens of interest.
        tokenizer: the tokenizer that holds the tokens, the new one.
        text_column: name of the text in `.jsonl` and `.parquet`.
        errors: what is done about bytes that are not UTF-8, as for `corpus.load_corpus`; replaced ones are not counted.
        validation_share: leave out the documents that `corpus.split_validation` sets aside with this share.
        per_token: contexts of a token at most.
        seed: another seed draws another sample.
        num_proc: files read at once at most, by default one for each processor of the cluster; changes nothing in the
            result.
        address: of a cluster that this machine is part of: `host:port` of its head, or `auto`. By default a Ray of this
            machine alone is started, and stopped at the end; a process that is connected already uses that.

    Returns:
        What `search.search_documents` returns for `load_corpus(source)`.

    Raises:
        InputError: as `find_contexts` and `load_corpus` raise it; a Hub data set as the source; no Ray, or none at that
            address; a file that is not on all machines.
    """
    if validation_share is not None:
        check_share(validation_share)
    selection = usable_tokens(tokens, tokenizer, per_token)
    files = corpus_files(source)
    search = _FileSearch(
        selection.normalised, word_rules(tokenizer), text_column, errors, validation_share, per_token, seed
    )
    leaders = _Leaders(len(selection.tokens), per_token)
    documents = np.zeros(len(files), dtype=np.int64)
    counts: Counter[str] = Counter()
    with (
        _connected(address),
        _quiet("ray.data"),
        closing(_results(search, files, num_proc)) as results,
        tqdm(total=len(files), desc="Finding contexts", unit=" files") as bar,
    ):
        for result in results:
            if result.error:
                raise InputError(result.error)
            documents[result.number] = result.counts["documents"]
            counts.update(result.counts)
            leaders.add(result.candidates, result.sentences)
            bar.update()
    if not counts["documents"]:
        raise no_text(files)
    if validation_share is not None:
        check_parts(counts["documents"], counts["set_aside"], validation_share)
    logger.info("%d sentences in %d documents of %d files", counts["sentences"], counts["documents"], len(files))
    winners, sentences = leaders.best()
    rows = sentences["row"].to_numpy()
    winners["row"] = np.searchsorted(rows, winners["row"])
    numbers = sentences["document"].to_numpy() + (np.cumsum(documents) - documents)[rows >> _ROW_BITS]
    contexts = fetch_contexts(_as_dataset(sentences["text"], numbers), winners, selection.tokens)
    return Found(contexts, counts["sentences"], counts["occurrences"])


@dataclass(frozen=True)
class _Result:
    """What a task found in its file.

    Attributes:
        number: of the file.
        counts: of documents (empty ones left out), those set aside, sentences of the others, occurrences in them.
        candidates: what can still win.
        sentences: where it stands: `row`, `text`, and `document` (running number in the file); by row.
        error: why the file cannot be read. A value, since Ray logs an exception at length and wraps it several times.
    """

    number: int
    counts: dict[str, int]
    candidates: Candidates
    sentences: pa.Table
    error: str | None = None

    def to_row(self) -> pa.Table:
        """Return a table of one row: Ray passes on tables of at least one, and does not cut within a row."""
        columns = {
            "number": pa.array([self.number]),
            **{name: pa.array([count]) for name, count in self.counts.items()},
            "error": pa.array([self.error], pa.string()),
            "candidates": _as_list([pa.array(self.candidates[name]) for name in FIELDS], FIELDS),
            "found": _as_list([column.combine_chunks() for column in self.sentences.columns], _SENTENCES.names),
        }
        return pa.table(columns)

    @classmethod
    def from_row(cls, row: pa.Table) -> _Result:
        """Turn what `to_row` made back."""
        candidates, sentences = (
            pa.Table.from_struct_array(row[name].combine_chunks().flatten()) for name in ("candidates", "found")
        )
        counts = {name: row[name][0].as_py() for name in _COUNTS}
        return cls(row["number"][0].as_py(), counts, from_table(candidates), sentences, row["error"][0].as_py())


class _Leaders:
    """The candidates in the lead and their sentences, out of any number of them.

    Of copies of a sentence that of the least row counts: the first in the corpus, as in `find_contexts`.
    """

    def __init__(self, tokens: int, per_token: int) -> None:
        self._reservoir = Reservoir(tokens, per_token, copies=False)
        self._sentences = [_SENTENCES.empty_table()]
        self._room = _HELD

    def add(self, candidates: Candidates, sentences: pa.Table) -> None:
        """Take in candidates and the sentences they are in; keep those in the lead when the sentences have doubled."""
        candidates = candidates[candidates["priority"] <= self._reservoir.limits[candidates["token"]]]
        self._reservoir.add(candidates)
        self._sentences.append(_only(sentences, np.unique(candidates["row"])))
        if sum(map(len, self._sentences)) > self._room:
            self._room = max(2 * len(self.best()[1]), _HELD)

    def best(self) -> tuple[Candidates, pa.Table]:
        """Return the candidates in the lead, by token and priority, and their sentences, by row."""
        candidates = self._reservoir.best()
        self._sentences = [_only(pa.concat_tables(self._sentences), np.unique(candidates["row"]))]
        return candidates, self._sentences[0]


@dataclass(frozen=True)
class _FileSearch:
    """The task: the number and path of a file -> what of it can still win."""

    tokens: tuple[str, ...]
    rules: str
    text_column: str
    errors: str
    validation_share: float | None
    per_token: int
    seed: int

    def __call__(self, item: pa.Table) -> pa.Table:
        number, file = item["number"][0].as_py(), Path(item["file"][0].as_py())
        counts = dict.fromkeys(_COUNTS, 0)
        leaders = _Leaders(len(self.tokens), self.per_token)
        error = None
        try:
            _check_attempts(file)
            self._search(file, number << _ROW_BITS, leaders, counts)
        except InputError as reason:
            error = str(reason)
        except OSError as reason:
            error = (
                f"{file} cannot be read on {socket.gethostname()} ({reason.strerror or reason}): every machine of the "
                f"cluster must see the corpus under the same path"
            )
        return _Result(number, counts, *leaders.best(), error).to_row()

    def _search(self, file: Path, first_row: int, leaders: _Leaders, counts: dict[str, int]) -> None:
        finder = BatchFinder(self.tokens, self.rules, self.per_token, self.seed)
        for texts, documents in self._batches(file, counts):
            rows = range(first_row + counts["sentences"], first_row + counts["sentences"] + len(texts))
            sentences = pa.table([rows, texts, documents], _SENTENCES)
            leaders.add(from_table(finder(sentences, rows)), sentences)
            counts["sentences"] += len(texts)
        counts["occurrences"] = finder.occurrences

    def _batches(self, file: Path, counts: dict[str, int]) -> Iterator[tuple[list[str], list[int]]]:
        """Yield sentences with the numbers of their documents in the file; count documents."""
        if not file.is_file():  # pyarrow would call it half a parquet file
            raise FileNotFoundError("no such file")
        texts: list[str] = []
        documents: list[int] = []
        for text in texts_of(file, self.text_column, self.errors):
            if self.validation_share is not None and is_set_aside(text, self.validation_share):
                counts["set_aside"] += 1
            else:
                texts.extend(sentences_of(text))
                documents.extend([counts["documents"]] * (len(texts) - len(documents)))
            counts["documents"] += 1
            if len(texts) >= ROWS_AT_ONCE:
                yield texts, documents
                texts, documents = [], []
        yield texts, documents


def _results(search: _FileSearch, files: Sequence[Path], num_proc: int | None) -> Generator[_Result]:
    """Run the tasks; yield what they found as they end."""
    import ray.data

    items = [{"number": number, "file": str(file.absolute())} for number, file in enumerate(files)]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        search, batch_size=None, batch_format="pyarrow", concurrency=num_proc
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_no_progress_timeout_s = -1  # a large file takes long, and hands nothing in before its end
    before = threading.enumerate()
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in range(len(batch)):
                yield _Result.from_row(batch.slice(row, 1))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        if not reason.startswith(("ImportError", "ModuleNotFoundError")):
            raise
        raise InputError(f"{reason}: install the same bioptimus-hf[ray] on all machines of the cluster") from error
    finally:
        # Ray Data does not wait for its threads where the iteration breaks off, and Ray ends the whole process, without
        # a word, when one of them asks it something after `ray.shutdown`.
        deadline = time.monotonic() + _SECONDS_FOR_THREADS
        for thread in threading.enumerate():
            if thread not in before:
                thread.join(max(0.0, deadline - time.monotonic()))


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster, or to a Ray of this machine's own, for as long as it takes."""
    try:
        import ray.data
    except ImportError as error:
        raise InputError("Ray is not installed: pip install 'bioptimus-hf[ray]'") from error
    if ray.is_initialized():
        if address is not None:
            raise InputError(f"this process is connected to a Ray already: leave the address {address} out")
        yield
        return
    if address is not None:
        _check_address(address)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            if address is None:
                os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
                # The names of Ray's sockets lie in that folder, and must be short.
                ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=folder)
            else:
                ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise InputError(f"no Ray at {address or 'hand'}: {' '.join(str(error).split())[:200]}") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger off the screen; it goes on writing to its file."""
    handlers = [one for one in logging.getLogger(name).handlers if isinstance(one, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _check_address(address: str) -> None:
    """Refuse an address where nobody listens: Ray would try for minutes, and then end the process."""
    if address.startswith("ray://"):
        raise InputError(
            f"Ray Data does not work through {address}: run this on a machine of the cluster, for instance with "
            f"`ray job submit`, and give auto or host:port"
        )
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"no Ray at {address}: {error}") from error


def _check_attempts(file: Path) -> None:
    """Give up on a file that has ended one worker after the other: Ray would go on for ever."""
    from ray._private.worker import global_worker

    attempts = global_worker.core_worker.get_current_task_attempt_number()
    if attempts >= _ATTEMPTS:
        raise InputError(f"{file}: the worker that read it died {attempts} times, of too little memory or of the file")


def _as_dataset(texts: pa.ChunkedArray, documents: npt.NDArray[np.int64]) -> Dataset:
    table = pa.table({"text": texts, "document": documents})
    # In pieces: all of it together may be more than a string column in one piece can hold.
    pieces = pa.Table.from_batches(table.to_batches(max_chunksize=ROWS_AT_ONCE), table.schema)
    schema = pa.schema([("text", pa.string()), ("document", pa.int64())])
    return Dataset(pieces.cast(schema)).with_format("arrow")


def _only(sentences: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Return the sentences of these rows, in their order."""
    held = sentences["row"].to_numpy()
    order = np.argsort(held)
    return sentences.take(pa.array(order[np.searchsorted(held, rows, sorter=order)], pa.int64()))


def _as_list(columns: Sequence[pa.Array], names: Sequence[str]) -> pa.Array:
    """Pack a table into one value."""
    rows = pa.StructArray.from_arrays(columns, names)
    return pa.LargeListArray.from_arrays(pa.array([0, len(rows)], pa.int64()), rows)
