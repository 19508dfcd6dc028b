"""Search documents on this machine, in parts that survive a kill.

A part is a range of documents. A process splits it into sentences, which are cached by `datasets`, runs the
`datasets.map` step of `find_contexts` on them, and writes the candidates to a file. The parent process merges the files
as they appear. When the search is started again, it continues with the parts that have no file yet, or a damaged one.
"""

from __future__ import annotations

import _thread
import errno
import hashlib
import json
import logging
import math
import mmap
import multiprocessing
import os
import re
import shutil
import signal
import time
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from itertools import islice, pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import (
    RECORD,
    fingerprint,
    read_record,
    verification,
    verify,
    write_record,
    write_with_checksum,
)
from bioptimus_hf.contexts.fetching import Counts, Found, fetch_contexts
from bioptimus_hf.contexts.finder import BatchFinder, find_candidates, make_reservoir
from bioptimus_hf.contexts.query import ContextQuery
from bioptimus_hf.contexts.sampling import Candidates, Reservoir, first_row, from_table
from bioptimus_hf.corpus.dataset import no_bars
from bioptimus_hf.corpus.sentences import SPLITTER, split_sentences
from bioptimus_hf.errors import InputError
from bioptimus_hf.progress import progress_bar
from bioptimus_hf.storage import atomic_file, manifest_of

logger = logging.getLogger(__name__)

_MEGABYTES_PER_PART = 16
_SECONDS_BETWEEN_COUNTS = 10
_COUNTS = b"counts"  # key in the metadata of a part's file
_OURS = re.compile(r"(made\.json|part-\d+\.(parquet|json))(\.partial.*)?")
_MEMORY_NEEDED = 1 << 28  # bytes that libraries may ask for while they are loaded
_NO_MEMORY = (errno.ENOMEM, errno.EAGAIN)  # when a process can't be started


@check_call(documents=("text", "document"))
def search_documents(
    documents: Dataset, query: ContextQuery, *, folder: str | Path, num_proc: int | None = None
) -> Found:
    """Find the contexts that `find_contexts` finds in `split_sentences(documents)`, and continue after a kill.

    Args:
        documents: rows of `text` and `document`.
        query: what to search for.
        folder: where to keep the finished parts. If the same search was killed before, its parts in this folder aren't
            searched again; parts of another search are deleted. Delete the folder when the result is saved.
        num_proc: number of processes. It doesn't affect the result.

    Raises:
        InputError: `folder` contains other files, memory ran out, or a process was killed.
    """
    with _memory_errors_explained():
        return _search(documents, query, Path(folder), num_proc)


def _search(documents: Dataset, query: ContextQuery, folder: Path, num_proc: int | None) -> Found:
    _check_memory()
    parts = _divide(documents)
    search = _PartSearch(documents, parts, BatchFinder.of(query), folder)
    _claim(search)
    reservoir = make_reservoir(query, documents)
    counts = Counts()
    with no_bars(), progress_bar(total=len(documents), desc="Finding contexts", unit=" documents") as bar:
        progress = _Progress(bar, reservoir, tokens=len(query.selection.tokens))
        with closing(_finished_parts(search, num_proc)) as finished:
            for number in finished:
                candidates, counts_of_part = search.read(number)
                candidates["row"] += first_row(number)
                reservoir.add(candidates)
                counts += counts_of_part
                progress.show(counts)
        sentences = [search.sentences(number) for number in range(len(parts))]
        contexts = fetch_contexts(sentences, reservoir.best(), query.selection.tokens)
    return Found(contexts, counts)


class _PartSearch:
    """The search of a part, as a function of its number. What a process has learned helps it with its next part."""

    def __init__(self, documents: Dataset, parts: Sequence[range], finder: BatchFinder, folder: Path) -> None:
        self.parts = parts
        self.folder = folder
        self._documents = documents
        self._finder = finder

    def made_from(self) -> dict[str, str]:
        """Return everything that the files depend on."""
        task = hashlib.sha256(json.dumps(self._finder.task).encode()).hexdigest()[:32]
        return {
            "documents": self._documents._fingerprint,
            "splitter": SPLITTER,
            "parts": str(len(self.parts)),
            "task": task,
        }

    def file(self, number: int) -> Path:
        """Return the file for the candidates and counts of a part."""
        return self.folder / f"part-{number:06d}.parquet"

    def record(self, number: int) -> Path:
        """Return the record of that file, which is written when the file is complete."""
        return self.file(number).with_suffix(".json")

    def sentences(self, number: int) -> Dataset:
        """Return the sentences of a part, from the cache if the part has been split before."""
        return split_sentences(self._documents.select(self.parts[number])).with_format("arrow")

    def is_finished(self, number: int) -> bool:
        """Return whether the file of a part exists and is undamaged."""
        record = self.record(number)
        if not record.is_file():
            return False
        try:
            with verification(True):  # whatever is said about results
                verify(record)
        except InputError as error:
            logger.warning("part %d is searched again: %s", number, str(error).rpartition(": ")[0])
            return False
        return True

    def __call__(self, number: int) -> None:
        """Search a part and write its file."""
        try:
            candidates = find_candidates(self.sentences(number), self._finder, keep_in_memory=True)
            counts = replace(self._finder.take_counts(), documents=len(self.parts[number]))
            table = candidates.with_format("arrow")[:].replace_schema_metadata({_COUNTS: json.dumps(asdict(counts))})
            with atomic_file(self.file(number)) as partial:
                pq.write_table(table, partial)
            # Without the hardware, unlike that of a stage: a process that was forked can't ask for it.
            record = {"fingerprint": "", "inputs": {}, "settings": {"part": number}}
            files = manifest_of([self.file(number)], self.folder)
            write_with_checksum(self.record(number), {**record, "files": files})
        except BaseException:
            # The finder remembers candidates that were never written. They must not exclude those of later parts.
            self._finder = BatchFinder(*self._finder.task)
            raise

    def load_kernels(self) -> None:
        """Load compiled code and libraries, so that processes which are forked afterwards have them."""
        rules = self._finder.task[1]
        BatchFinder(("a",), rules, 1, 0)(pa.table({"text": ["a"]}), range(1))

    def read(self, number: int) -> tuple[Candidates, Counts]:
        """Read the file of a part."""
        with pq.ParquetFile(self.file(number), pre_buffer=False) as file:
            table = file.read(use_threads=False)  # threads that can't be started would be waited for
        return from_table(table), Counts(**json.loads(table.schema.metadata[_COUNTS]))


class _Progress:
    """The bar: documents, megabytes, sentences, and the tokens that have as many contexts as asked for."""

    def __init__(self, bar: Any, reservoir: Reservoir, *, tokens: int) -> None:
        self._bar = bar
        self._reservoir = reservoir
        self._tokens = tokens
        self._updated = time.monotonic()

    def show(self, counts: Counts) -> None:
        """Show how far the search is."""
        if counts.documents == self._bar.total or time.monotonic() - self._updated > _SECONDS_BETWEEN_COUNTS:
            self._reservoir.best()  # updates the limits, from which satisfied tokens are counted
            self._updated = time.monotonic()
        self._bar.set_postfix_str(
            f"{counts.bytes / 1e6:.0f} MB, {counts.sentences:,} sentences, {self._reservoir.satisfied():,} of "
            f"{self._tokens:,} tokens satisfied",
            refresh=False,
        )
        self._bar.update(counts.documents - self._bar.n)


def _divide(documents: Dataset) -> list[range]:
    """Divide documents into parts; the number of processes doesn't matter."""
    number = max(1, min(math.ceil(documents.data.nbytes / (1e6 * _MEGABYTES_PER_PART)), len(documents)))
    edges = [len(documents) * part // number for part in range(number + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def _claim(search: _PartSearch) -> None:
    """Create the folder for the parts, with a record of the search; delete the parts of another search."""
    folder, record = search.folder, search.folder / RECORD
    inputs = search.made_from()
    foreign = [file.name for file in folder.iterdir() if not _OURS.fullmatch(file.name)] if folder.is_dir() else []
    if foreign or (folder.is_dir() and not record.is_file() and any(folder.iterdir())):
        raise InputError(f"{folder} contains files that don't belong to a search: move it away")
    if record.is_file():
        if _is_of(folder, inputs):
            return
        for file in folder.iterdir():  # the record last: after a kill in between, the folder is still known as ours
            if file != record:
                file.unlink()
        shutil.rmtree(folder)
    write_record(record, inputs, {}, facts={}, seconds=0, files=())


def _is_of(folder: Path, inputs: Mapping[str, str]) -> bool:
    """Return whether the parts in a folder are those of a search of these inputs."""
    try:
        return bool(read_record(folder)["fingerprint"] == fingerprint(inputs, {}))
    except InputError as error:
        if isinstance(error.__cause__, OSError):  # it may be readable next time
            raise
        logger.warning("%s is damaged: the search begins again", folder / RECORD)
        return False


def _finished_parts(search: _PartSearch, num_proc: int | None) -> Generator[int]:
    """Yield the number of each part as soon as its file exists."""
    finished = [number for number in range(len(search.parts)) if search.is_finished(number)]
    if finished:
        logger.info("%d of %d parts are already finished", len(finished), len(search.parts))
    yield from finished
    rest = sorted(set(range(len(search.parts))) - set(finished))
    processes = min(num_proc or 1, len(rest))
    if processes > 1:
        yield from _search_in_processes(search, rest, processes)
        return
    for number in rest:
        search(number)
        yield number


def _search_in_processes(search: _PartSearch, numbers: Sequence[int], processes: int) -> Generator[int]:
    """Search parts in other processes, and yield their numbers as they are finished.

    The pools of the standard library need threads in this process, and wait forever if memory runs out when they start.

    Raises:
        InputError: a process was killed.
    """
    search.load_kernels()
    rest = iter(numbers)
    workers: list[_Worker] = []
    try:
        for number in islice(rest, processes):
            workers.append(_Worker(search))
            workers[-1].connection.send(number)
        busy = {worker.connection: number for worker, number in zip(workers, numbers, strict=False)}
        while busy:
            for connection in cast("list[Connection]", wait(list(busy))):
                error = connection.recv()
                if error is not None:
                    raise error
                done = busy.pop(connection)
                for number in islice(rest, 1):
                    connection.send(number)
                    busy[connection] = number
                yield done
    except (EOFError, ConnectionError) as error:
        raise _killed() from error
    finally:
        for worker in workers:
            worker.end()


def _check_memory() -> None:
    """Raise if there is little memory left: OpenBLAS, which Numba loads, would ask for it again and again forever."""
    mmap.mmap(-1, _MEMORY_NEEDED).close()


@contextmanager
def _memory_errors_explained() -> Iterator[None]:
    try:
        yield
    except (MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or error.errno in _NO_MEMORY or os.strerror(errno.ENOMEM) in str(error):
            raise _killed() from error
        raise


def _killed() -> InputError:
    return InputError(
        "a process of the search was killed, perhaps because memory ran out: run the search again with a smaller "
        "number of processes, and it continues with the parts that are missing",
        argument="num_proc",
    )


class _Worker:
    """A process that searches the parts whose numbers are sent to it, and answers with None or an error.

    Raises:
        OSError: it can't be started.
    """

    def __init__(self, search: _PartSearch) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_work, args=(search, theirs), daemon=True)
        try:
            self._process.start()
        finally:
            theirs.close()  # so that the end of the process closes the pipe

    def end(self) -> None:
        """End the process, whatever it is doing: what it has finished is on disk."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def _work(search: _PartSearch, connection: Connection) -> None:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        disable_progress_bars()
        _check_memory()
        # `threading` would wait forever for a thread that runs out of memory before it says that it has started.
        _thread.start_new_thread(_end_with_parent, ())
        while True:
            connection.send(_error_of(search, connection.recv()))
    except (EOFError, OSError, MemoryError, RuntimeError):  # the parent has ended, or memory has run out
        os._exit(1)


def _error_of(search: _PartSearch, number: int) -> Exception | None:
    """Search a part, and return an error instead of raising it."""
    try:
        search(number)
    except MemoryError:
        return MemoryError()  # without what pyarrow adds
    except (InputError, OSError) as error:
        return error
    except Exception:
        return RuntimeError(traceback.format_exc())
    return None


def _end_with_parent() -> None:
    """End with the parent, even in the middle of a part: when it is killed, its workers aren't told."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
