"""Search documents on this machine, in parts that survive a kill.

A part is a range of documents. A process splits it into sentences, which are cached by `datasets`, runs the
`datasets.map` step of `find_contexts` on them, and writes the candidates to a file. The parent process merges the files
as they appear. When the search is started again, it continues with the parts that have no file yet.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars
from tqdm.auto import tqdm

from bioptimus_hf.artifacts import RECORD, fingerprint, read_record, write_record
from bioptimus_hf.contexts.fetching import Counts, Found, fetch_contexts
from bioptimus_hf.contexts.finder import BatchFinder, find_candidates, make_reservoir
from bioptimus_hf.contexts.query import ContextQuery
from bioptimus_hf.contexts.sampling import Candidates, Reservoir, first_row, from_table
from bioptimus_hf.corpus.dataset import no_bars
from bioptimus_hf.corpus.sentences import SPLITTER, split_sentences
from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import atomic_file

logger = logging.getLogger(__name__)

_MEGABYTES_PER_PART = 16
_SECONDS_BETWEEN_COUNTS = 10
_COUNTS = b"counts"  # key in the metadata of a part's file

_search: _PartSearch  # of a process of the pool


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
        InputError: `folder` contains other files, or a process was killed (for example because memory ran out).
    """
    parts = _divide(documents)
    search = _PartSearch(documents, parts, BatchFinder.of(query), Path(folder))
    _claim(search)
    reservoir = make_reservoir(query, documents)
    counts = Counts()
    with no_bars(), tqdm(total=len(documents), desc="Finding contexts", unit=" documents") as bar:
        progress = _Progress(bar, reservoir, tokens=len(query.selection.tokens))
        for number in _finished_parts(search, num_proc):
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

    def sentences(self, number: int) -> Dataset:
        """Return the sentences of a part, from the cache if the part has been split before."""
        return split_sentences(self._documents.select(self.parts[number])).with_format("arrow")

    def __call__(self, number: int) -> None:
        """Search a part and write its file."""
        try:
            candidates = find_candidates(self.sentences(number), self._finder, keep_in_memory=True)
            counts = replace(self._finder.take_counts(), documents=len(self.parts[number]))
            table = candidates.with_format("arrow")[:].replace_schema_metadata({_COUNTS: json.dumps(asdict(counts))})
            with atomic_file(self.file(number)) as partial:
                pq.write_table(table, partial)
        except BaseException:
            # The finder remembers candidates that were never written. They must not exclude those of later parts.
            self._finder = BatchFinder(*self._finder.task)
            raise

    def read(self, number: int) -> tuple[Candidates, Counts]:
        """Read the file of a part."""
        table = pq.read_table(self.file(number))
        return from_table(table), Counts(**json.loads(table.schema.metadata[_COUNTS]))


class _Progress:
    """The bar: documents, megabytes, sentences, and the tokens that have as many contexts as asked for."""

    def __init__(self, bar: tqdm, reservoir: Reservoir, *, tokens: int) -> None:
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
    if record.is_file():
        if read_record(folder)["fingerprint"] == fingerprint(inputs, {}):
            return
        for file in folder.iterdir():  # the record last: after a kill in between, the folder is still known as ours
            if file != record:
                file.unlink()
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} contains files that don't belong to a search: move it away")
    write_record(record, inputs, {}, facts={}, seconds=0, files=())


def _finished_parts(search: _PartSearch, num_proc: int | None) -> Iterator[int]:
    """Yield the number of each part as soon as its file exists."""
    finished = [number for number in range(len(search.parts)) if search.file(number).is_file()]
    if finished:
        logger.info("%d of %d parts are already finished", len(finished), len(search.parts))
    yield from finished
    rest = sorted(set(range(len(search.parts))) - set(finished))
    processes = min(num_proc or 1, len(rest))
    if processes <= 1:
        for number in rest:
            search(number)
            yield number
        return
    with ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(search,)) as pool:
        try:
            futures = {pool.submit(_search_part, number): number for number in rest}
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise InputError(
                "a process of the search was killed, perhaps because memory ran out: run the search again with a "
                "smaller number of processes, and it continues with the parts that are missing",
                argument="num_proc",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(search: _PartSearch) -> None:
    global _search
    disable_progress_bars()
    # When the parent is killed, its workers aren't told, and would wait for the next part forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _search = search


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _search_part(number: int) -> None:
    _search(number)
