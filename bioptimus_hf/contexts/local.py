"""Contexts from any amount of text: `contexts.find_contexts` in parts, so that a kill costs no more than a part.

A part is a range of documents, whose sentences are split (which the cache of `datasets` keeps) and searched by one
process. What can still win is written to a file of the part; the parent merges these as they come.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.artifacts import fingerprint
from bioptimus_hf.contexts.finder import ROWS_AT_ONCE, BatchFinder, fetch_contexts, first_copy_counts, usable_tokens
from bioptimus_hf.contexts.matching import word_rules
from bioptimus_hf.contexts.sampling import FEATURES, Reservoir, from_table
from bioptimus_hf.corpus.dataset import no_bars
from bioptimus_hf.corpus.sentences import SPLITTER, split_sentences
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

_MEGABYTES_A_PART = 16
_SECONDS_BETWEEN_COUNTS = 10
_ROW_BITS = 32  # of a row number for the sentence within its part; the bits above are the number of the part
_COUNTS = ("documents", "bytes", "sentences", "occurrences")

_search: _PartSearch  # of a process of the pool


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        contexts: as `contexts.find_contexts` returns them.
        sentences: how many were searched.
        occurrences: of all tokens in all of them.
    """

    contexts: Dataset
    sentences: int
    occurrences: int


def search_documents(
    documents: Dataset,
    tokens: Collection[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    per_token: int = 64,
    seed: int = 0,
    num_proc: int | None = None,
) -> Found:
    """Find contexts in documents: the rows that `find_contexts` finds in `split_sentences(documents)`.

    Args:
        documents: rows of `text` and `document`.
        tokens: tokens of interest.
        tokenizer: the tokenizer that holds the tokens, the new one.
        folder: where the parts are kept. Given again for the same search, after a kill, the parts in it are not redone;
            parts of another search are deleted. It can go when the result is saved.
        per_token: contexts of a token at most.
        seed: another seed draws another sample.
        num_proc: processes; changes nothing in the result.

    Raises:
        InputError: as `find_contexts` raises it, or a process was killed (of too little memory, say).
    """
    selection = usable_tokens(tokens, tokenizer, per_token)
    finder = BatchFinder(selection.normalised, word_rules(tokenizer), per_token, seed)
    parts = _cut(documents)
    search = _PartSearch(documents, parts, finder, Path(folder))
    made_of = {"documents": documents._fingerprint, "splitter": SPLITTER, "parts": len(parts), "for": finder.task}
    _own(search.folder, fingerprint({}, made_of))
    reservoir = Reservoir(len(selection.tokens), per_token, copies=not first_copy_counts(documents))
    counts = dict.fromkeys(_COUNTS, 0)
    shown = time.monotonic()
    with no_bars(), tqdm(total=len(documents), desc="Finding contexts", unit=" documents") as bar:
        for number in _searched(search, num_proc):
            part = pq.read_table(search.file(number))
            candidates = from_table(part)
            candidates["row"] += number << _ROW_BITS
            reservoir.add(candidates)
            for name in _COUNTS:
                counts[name] += int(part.schema.metadata[name.encode()])
            if counts["documents"] == len(documents) or time.monotonic() - shown > _SECONDS_BETWEEN_COUNTS:
                reservoir.best()  # which brings the limits up to date
                shown = time.monotonic()
            satisfied = reservoir.satisfied()
            bar.set_postfix_str(
                f"{counts['bytes'] / 1e6:.0f} MB, {counts['sentences']:,} sentences, {satisfied:,} of "
                f"{len(selection.tokens):,} tokens satisfied",
                refresh=False,
            )
            bar.update(counts["documents"] - bar.n)
        sentences = [search.sentences(number) for number in range(len(parts))]
    winners = reservoir.best()
    starts = np.cumsum([0, *map(len, sentences)])
    winners["row"] = starts[winners["row"] >> _ROW_BITS] + (winners["row"] & ((1 << _ROW_BITS) - 1))
    contexts = fetch_contexts(concatenate_datasets(sentences), winners, selection.tokens)
    return Found(contexts, counts["sentences"], counts["occurrences"])


class _PartSearch:
    """The search of a part. A process keeps what it has learned for the next one."""

    def __init__(self, documents: Dataset, parts: Sequence[range], finder: BatchFinder, folder: Path) -> None:
        self.parts = parts
        self.folder = folder
        self._documents = documents
        self._finder = finder

    def file(self, number: int) -> Path:
        """Return where the part's candidates are written, and its counts in the metadata of the schema."""
        return self.folder / f"part-{number:06d}.parquet"

    def sentences(self, number: int) -> Dataset:
        """Return the sentences of a part; split once, and then from the cache."""
        return split_sentences(self._documents.select(self.parts[number])).with_format("arrow")

    def __call__(self, number: int) -> None:
        """Search a part, and write its file, whole or not at all."""
        counts = dict.fromkeys(_COUNTS, 0)
        counts["documents"] = len(self.parts[number])
        found = [FEATURES.arrow_schema.empty_table()]
        try:
            before = self._finder.occurrences
            for table in self.sentences(number).iter(batch_size=ROWS_AT_ONCE):
                found.append(self._finder(table, range(counts["sentences"], counts["sentences"] + len(table))))
                counts["sentences"] += len(table)
                counts["bytes"] += pc.sum(pc.binary_length(table["text"])).as_py() or 0
            counts["occurrences"] = self._finder.occurrences - before
            metadata = {name: str(count) for name, count in counts.items()}
            partial = self.file(number).with_suffix(".partial")
            pq.write_table(pa.concat_tables(found).replace_schema_metadata(metadata), partial)
            partial.replace(self.file(number))
        except BaseException:
            # What it has in the lead is written nowhere, and must keep nothing out of the parts to come.
            self._finder = BatchFinder(*self._finder.task)
            raise


def _cut(documents: Dataset) -> list[range]:
    """Cut documents into parts, the same for any number of processes."""
    number = max(1, min(math.ceil(documents.data.nbytes / (1e6 * _MEGABYTES_A_PART)), len(documents)))
    edges = [len(documents) * part // number for part in range(number + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def _own(folder: Path, key: str) -> None:
    """Make the folder of this search; what another search left there goes."""
    owner = folder / "search"
    if owner.is_file() and owner.read_text(encoding="utf-8") == key:
        return
    if owner.is_file():
        for file in folder.iterdir():  # the owner's mark last: a kill in between would leave files that are no one's
            if file != owner:
                file.unlink()
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not of our making: move it away")
    folder.mkdir(parents=True, exist_ok=True)
    owner.write_text(key, encoding="utf-8")


def _searched(search: _PartSearch, num_proc: int | None) -> Iterator[int]:
    """Yield the number of each part as soon as its file is there."""
    finished = [number for number in range(len(search.parts)) if search.file(number).is_file()]
    if finished:
        logger.info("%d of %d parts are there already", len(finished), len(search.parts))
    yield from finished
    rest = sorted(set(range(len(search.parts))) - set(finished))
    processes = min(num_proc or 1, len(rest))
    if processes <= 1:
        for number in rest:
            search(number)
            yield number
        return
    with ProcessPoolExecutor(processes, initializer=_become_worker, initargs=(search,)) as pool:
        try:
            futures = {pool.submit(_search_part, number): number for number in rest}
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise InputError(
                "a process of the search was killed, perhaps for want of memory: give the same command again to go on, "
                "with a smaller --num_proc"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _become_worker(search: _PartSearch) -> None:
    global _search
    disable_progress_bars()
    # A parent that is killed says nothing to its workers, which would wait for it for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _search = search


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _search_part(number: int) -> None:
    _search(number)
