"""Search files with Ray on any number of machines: the rows are those of a search on one machine.

A part is a file, and a task searches it. The task returns the candidates that can still win and the text of their
sentences. The driver merges the results of the tasks in whatever order they end, and never holds more than the current
sample. A task is a pure function of its file: if a worker or a machine is lost, Ray repeats the task elsewhere, and the
result stays the same.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.contexts.fetching import ROWS_AT_ONCE, Counts, Found, fetch_contexts
from bioptimus_hf.contexts.finder import BatchFinder
from bioptimus_hf.contexts.query import ContextQuery
from bioptimus_hf.contexts.sampling import FIELDS, Candidates, Reservoir, Rows, first_row, from_table, part_of
from bioptimus_hf.corpus.dataset import Contents, check_splits, is_held_out
from bioptimus_hf.corpus.files import CorpusFile, TextCounts, TextOptions, check_unit, corpus_files, no_text, texts_of
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.corpus.sentences import sentences_of
from bioptimus_hf.errors import InputError
from bioptimus_hf.progress import progress_bar
from bioptimus_hf.ray_session import check_attempts, connected, run_tasks

logger = logging.getLogger(__name__)

_HELD = 1 << 18  # number of sentences at which those of losers are dropped for the first time
_SENTENCES = pa.schema([("row", pa.int64()), ("text", pa.large_string()), ("document", pa.int64())])


@check_call()
def find_contexts_on_ray(
    corpus: Corpus,
    query: ContextQuery,
    *,
    contents: Contents | None = None,
    training_only: bool = False,
    num_proc: int | None = None,
    address: str | None = None,
) -> Found:
    """Find the contexts that `find_contexts` finds in the sentences of a corpus, with Ray.

    Args:
        corpus: files, but no data set from the Hub. A file is the unit of work. Every machine must see the files under
            the same paths, and have this package installed.
        query: what to search for.
        contents: from `contents_of`, if the corpus must still contain this when it is read.
        training_only: leave out the documents held out for validation.
        num_proc: maximum number of files to read at a time; by default one per processor of the cluster. It doesn't
            affect the result.
        address: `host:port` of the head of a cluster that this machine belongs to, or `auto`. By default, Ray is
            started on this machine and stopped at the end; a process that is already connected uses its connection.

    Raises:
        InputError: the corpus can't be read, is a data set on the Hub, or has `max_megabytes`; Ray isn't installed, or
            not at that address; a file isn't on all machines.
    """
    check_corpus(corpus)
    files = _files(corpus, contents)
    tokens = query.selection.tokens
    search = _FileSearch(len(tokens), query.per_token, BatchFinder.of(query), corpus, training_only)
    leaders = _Leaders(len(tokens), query.per_token)
    documents = np.zeros(len(files), dtype=np.int64)
    counts, text = Counts(), TextCounts()
    with (
        connected(address),
        closing(_search_files(search, files, num_proc)) as results,
        progress_bar(total=len(files), desc="Finding contexts", unit=" files") as bar,
    ):
        for result in results:
            if result.error:
                raise InputError(result.error)
            documents[result.number] = result.counts.documents
            counts += result.counts
            text += result.text
            leaders.add(result.candidates, result.sentences)
            bar.update()
    if not counts.documents:
        raise no_text([file.path for file in files])
    if training_only:
        check_splits(counts.documents, counts.held_out, corpus.validation_share)
    logger.info("%d sentences in %d documents of %d files", counts.sentences, counts.documents, len(files))
    winners, sentences = leaders.best()
    rows = sentences["row"].to_numpy()
    winners["row"] = np.searchsorted(rows, winners["row"])
    numbers = sentences["document"].to_numpy() + (np.cumsum(documents) - documents)[part_of(rows)]
    contexts = fetch_contexts([_as_dataset(sentences["text"], numbers)], winners, tokens)
    return Found(contexts, counts, {"files": len(files), "files_read": len(files), **text.facts()})


def check_corpus(corpus: Corpus) -> None:
    """Raise for a corpus with an option that Ray can't support."""
    if corpus.max_megabytes is not None:
        raise InputError(
            "can't be used with Ray, which reads files in parallel: name fewer files", argument="max_megabytes"
        )


@dataclass(frozen=True)
class _Result:
    """What a task found in its file.

    Attributes:
        number: number of the file.
        counts: what was searched.
        text: what was read.
        candidates: candidates that can still win.
        sentences: their sentences, sorted by row: `row`, `text` and `document` (number within the file).
        error: why the file can't be read. It is a value because Ray logs exceptions at length and wraps them.
    """

    number: int
    counts: Counts
    text: TextCounts
    candidates: Candidates
    sentences: pa.Table
    error: str | None = None

    def to_row(self) -> pa.Table:
        """Convert to a table with one row: Ray doesn't pass on empty tables, and doesn't split a row."""
        columns = {
            "number": pa.array([self.number]),
            "counts": pa.array([asdict(self.counts)]),
            "text": pa.array([asdict(self.text)]),
            "error": pa.array([self.error], pa.string()),
            "candidates": _as_list([pa.array(self.candidates[name]) for name in FIELDS], FIELDS),
            "found": _as_list([column.combine_chunks() for column in self.sentences.columns], _SENTENCES.names),
        }
        return pa.table(columns)

    @classmethod
    def from_row(cls, row: pa.Table) -> _Result:
        """Convert from what `to_row` returns."""
        candidates, sentences = (
            pa.Table.from_struct_array(row[name].combine_chunks().flatten()) for name in ("candidates", "found")
        )
        number, counts, text, error = (row[name][0].as_py() for name in ("number", "counts", "text", "error"))
        return cls(number, Counts(**counts), TextCounts(**text), from_table(candidates), sentences, error)


class _Leaders:
    """Keep the current sample and its sentences.

    Among identical sentences, the first in the corpus is kept, as in `find_contexts`.
    """

    def __init__(self, tokens: int, per_token: int) -> None:
        self._reservoir = Reservoir(tokens, per_token, copies=False)
        self._sentences = [_SENTENCES.empty_table()]
        self._room = _HELD

    def add(self, candidates: Candidates, sentences: pa.Table) -> None:
        """Add candidates and their sentences, and drop losers whenever the number of sentences has doubled."""
        candidates = self._reservoir.add(candidates)
        self._sentences.append(_select(sentences, np.unique(candidates["row"])))
        if sum(map(len, self._sentences)) > self._room:
            self._room = max(2 * len(self.best()[1]), _HELD)

    def best(self) -> tuple[Candidates, pa.Table]:
        """Return the current sample, sorted by token and priority, and its sentences, sorted by row."""
        candidates = self._reservoir.best()
        self._sentences = [_select(pa.concat_tables(self._sentences), np.unique(candidates["row"]))]
        return candidates, self._sentences[0]


@dataclass(frozen=True)
class _FileSearch:
    """The task: convert the number and path of a file to the candidates and sentences that can still win.

    Attributes:
        tokens: number of tokens.
        per_token: maximum number of contexts per token.
        finder: the finder to copy: each task starts with a fresh one, and a process may run several tasks.
        corpus: how to read the file.
        training_only: leave out the documents held out for validation.
    """

    tokens: int
    per_token: int
    finder: BatchFinder
    corpus: Corpus
    training_only: bool

    def __call__(self, item: pa.Table) -> pa.Table:
        number, name, content = (item[column][0].as_py() for column in ("number", "file", "content"))
        file = Path(name)
        leaders = _Leaders(self.tokens, self.per_token)
        counts, text, error = Counts(), TextCounts(), None
        try:
            check_attempts(file)
            counts = self._search(CorpusFile(file, content), text, first_row(number), leaders)
        except InputError as reason:
            error = str(reason)
        except OSError as reason:
            error = (
                f"{file} can't be read on {socket.gethostname()} ({reason.strerror or reason}): every machine of the "
                f"cluster must see the corpus under the same path"
            )
        return _Result(number, counts, text, *leaders.best(), error).to_row()

    def _search(self, file: CorpusFile, text: TextCounts, row: int, leaders: _Leaders) -> Counts:
        """Search a file, whose first sentence has this row number, and count what is read."""
        finder = BatchFinder(*self.finder.task)
        batches = _SentenceBatches(file, text, self.corpus, self.training_only)
        for texts, documents in batches:
            rows = range(row, row + len(texts))
            row += len(texts)
            sentences = pa.table([rows, texts, documents], _SENTENCES)
            leaders.add(from_table(finder(sentences, rows)), sentences)
        return replace(finder.take_counts(), documents=batches.documents, held_out=batches.held_out)


class _SentenceBatches:
    """Read a file as batches of sentences with the numbers of their documents in the file, and count documents."""

    def __init__(self, file: CorpusFile, counts: TextCounts, corpus: Corpus, training_only: bool) -> None:
        self.documents = 0
        self.held_out = 0
        self._file = file
        self._counts = counts
        self._corpus = corpus
        self._training_only = training_only

    def __iter__(self) -> Iterator[tuple[list[str], list[int]]]:
        if not self._file.path.is_file():  # pyarrow would report an incomplete parquet file
            raise FileNotFoundError("no such file")
        texts: list[str] = []
        numbers: list[int] = []
        options = TextOptions(self._corpus.read_options())
        for text in texts_of(self._file, options, self._counts):
            if self._training_only and is_held_out(text, self._corpus.validation_share):
                self.held_out += 1
            else:
                texts.extend(sentences_of(text))
                numbers.extend([self.documents] * (len(texts) - len(numbers)))
            self.documents += 1
            if len(texts) >= ROWS_AT_ONCE:
                yield texts, numbers
                texts, numbers = [], []
        yield texts, numbers


def _files(corpus: Corpus, contents: Contents | None) -> Sequence[CorpusFile]:
    if contents is None or isinstance(contents.source, str):
        files: Sequence[CorpusFile] = [CorpusFile(file) for file in corpus_files(corpus.corpus)]
    else:
        files = contents.source
    check_unit([file.path for file in files], corpus.unit)
    return files


def _search_files(search: _FileSearch, files: Sequence[CorpusFile], num_proc: int | None) -> Generator[_Result]:
    """Run a task for each file, and yield the results as the tasks end."""
    items = [
        {"number": number, "file": str(file.path.absolute()), "content": file.content}
        for number, file in enumerate(files)
    ]
    with closing(run_tasks(search, items, num_proc)) as rows:
        for row in rows:
            yield _Result.from_row(row)


def _as_dataset(texts: pa.ChunkedArray, documents: npt.NDArray[np.int64]) -> Dataset:
    table = pa.table({"text": texts, "document": documents})
    # In chunks, because all texts together may be too large for a single string array.
    chunks = pa.Table.from_batches(table.to_batches(max_chunksize=ROWS_AT_ONCE), table.schema)
    schema = pa.schema([("text", pa.string()), ("document", pa.int64())])
    return Dataset(chunks.cast(schema)).with_format("arrow")


def _select(sentences: pa.Table, rows: Rows) -> pa.Table:
    """Return the sentences with these row numbers, in their order."""
    held = sentences["row"].to_numpy()
    order = np.argsort(held)
    return sentences.take(pa.array(order[np.searchsorted(held, rows, sorter=order)], pa.int64()))


def _as_list(columns: Sequence[pa.Array], names: Sequence[str]) -> pa.Array:
    """Pack a table into a single value."""
    rows = pa.StructArray.from_arrays(columns, names)
    return pa.LargeListArray.from_arrays(pa.array([0, len(rows)], pa.int64()), rows)
