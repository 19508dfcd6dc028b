"""Find contexts with `datasets.map`: a uniform sample of the sentences that contain each token, and its position there.

This is the step that the paper performs with qik-find. A single pass over the text serves all tokens. Each process
emits only the row numbers of sentences that can still win; a streaming merge keeps the `per_token` smallest priorities
of each token; the text of the winners is fetched last. A priority is a hash of seed, sentence and token, so the sample
doesn't depend on the order of the rows, the batches or the number of processes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.contexts import kernels
from bioptimus_hf.contexts.fetching import ROWS_AT_ONCE, Counts, fetch_contexts, first_copy_is_least, one_chunk
from bioptimus_hf.contexts.matching import Matcher, utf8_buffers, word_rules
from bioptimus_hf.contexts.query import ContextQuery
from bioptimus_hf.contexts.sampling import CANDIDATE, FEATURES, FIELDS, Reservoir, from_table
from bioptimus_hf.corpus.cache import cached_map
from bioptimus_hf.corpus.sentences import checked_texts
from bioptimus_hf.errors import InputError
from bioptimus_hf.progress import progress_of_datasets

_VERSION = 3  # of the candidates; part of the fingerprint of the map, which doesn't see the code of this package
_MOST_PRIORITIES = 1 << 25  # 256 MB
_READ_AT_ONCE = 1_000_000  # candidates


@check_call(dataset=("text",))
def find_contexts(
    dataset: Dataset,
    tokens: Collection[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    per_token: int = 64,
    seed: int = 0,
    num_proc: int | None = None,
) -> Dataset:
    """Find sentences that contain the tokens: for each token, a uniform sample of all distinct sentences that do.

    A word is what the tokenizer's normaliser and pre-tokenizer produce. A token is found as a whole word, and as one of
    the pieces (`activ`, `##itis`) that the tokenizer splits a word into.

    Args:
        dataset: sentences, one per row, from `split_sentences`: `text` and, optionally, `document`.
        tokens: tokens of interest. A word that isn't in the tokenizer's vocabulary is found only as a whole word.
        tokenizer: the tokenizer that has the tokens, that is, the new one.
        per_token: maximum number of contexts per token.
        seed: a different seed draws a different sample.
        num_proc: number of processes. It doesn't affect the result.

    Returns:
        A data set with a row for each pair of token and distinct sentence, in the order of the tokens. Columns: `token`
        (as given), `text`, `start` and `end` (the characters of the first occurrence in `text`) and, if the input has
        it, `document` (the smallest among identical sentences). The same text, tokens, tokenizer, `per_token` and
        `seed` give the same rows.

    Raises:
        InputError: there are no tokens, a token normalises to nothing or to several words, the column `text` is missing
            or contains invalid UTF-8, `per_token` is below 1, or the tokenizer isn't a BERT tokenizer.
    """
    dataset = checked_texts(dataset)
    query = ContextQuery(tokens, tokenizer, per_token, seed)
    columns = [name for name in ("text", "document") if name in dataset.column_names]
    dataset = dataset.select_columns(columns).with_format("arrow")
    candidates = find_candidates(dataset, BatchFinder.of(query), num_proc=num_proc)
    reservoir = make_reservoir(query, dataset)
    for table in candidates.with_format("arrow").iter(batch_size=_READ_AT_ONCE):
        reservoir.add(from_table(table))
    return fetch_contexts([dataset], reservoir.best(), query.selection.tokens)


def find_candidates(
    sentences: Dataset, finder: BatchFinder, *, num_proc: int | None = None, keep_in_memory: bool = False
) -> Dataset:
    """Run the `datasets.map` step, which every search on this machine goes through.

    Returns:
        A data set of candidates, with the columns of `sampling.FEATURES`.
    """
    if not len(sentences):  # `map` would return the sentences themselves
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    sentences = sentences.with_format("arrow")
    options: dict[str, Any] = {
        "with_indices": True,
        "batch_size": ROWS_AT_ONCE,
        "remove_columns": sentences.column_names,
    }
    options |= {"features": FEATURES, "desc": "Finding contexts"}
    if keep_in_memory:
        with progress_of_datasets():
            return cast(Dataset, sentences.map(finder, batched=True, keep_in_memory=True, **options))
    return cached_map(sentences, finder, kind="candidates", num_proc=num_proc, **options)


def make_reservoir(query: ContextQuery, dataset: Dataset) -> Reservoir:
    """Create the reservoir for a query in these sentences, or in the documents that they are split from."""
    return Reservoir(len(query.selection.tokens), query.per_token, copies=not first_copy_is_least(dataset))


class BatchFinder:
    """Find the candidates in a batch of sentences: the function that `map` applies.

    The state (tables and the smallest priorities so far) isn't pickled. The fingerprint of the map therefore depends on
    the task alone, and each process starts from scratch.

    Attributes:
        task: the arguments of the constructor.
    """

    def __init__(self, tokens: Sequence[str], rules: str, per_token: int, seed: int, version: int = _VERSION) -> None:
        self.task = (tuple(tokens), rules, per_token, seed, version)
        self._counts = Counts()
        self._matcher: Matcher | None = None  # created in the process that uses it
        # The smallest priorities so far. If they would take too much memory, every occurrence becomes a candidate.
        held = per_token if len(tokens) * per_token <= _MOST_PRIORITIES else 0
        limits = np.full(len(tokens), 2**64 - 1, dtype=np.uint64)
        heaps, sizes = np.empty((len(tokens), held), dtype=np.uint64), np.zeros(len(tokens), dtype=np.int64)
        self._leading = limits, heaps, sizes
        self._seed = np.uint64(seed % 2**64)
        hashes = [xxhash.xxh3_64_intdigest(token.encode(), seed % 2**64) for token in tokens]
        self._token_hashes = np.array(hashes, dtype=np.uint64)

    @classmethod
    def of(cls, query: ContextQuery) -> BatchFinder:
        """Create the finder for a query."""
        return cls(query.selection.normalised, word_rules(query.tokenizer), query.per_token, query.seed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.task

    def __call__(self, table: pa.Table, rows: Sequence[int]) -> pa.Table:
        """Search the sentences (`text`) with these row numbers; return candidates with the columns of `FEATURES`."""
        tokens, rules, *_ = self.task
        self._matcher = self._matcher or Matcher(tokens, rules)
        texts = one_chunk(table["text"])
        try:
            texts.validate(full=True)  # Arrow doesn't check the bytes it is given, and the kernels rely on valid UTF-8
        except pa.ArrowInvalid as error:
            raise InputError(f"the sentences contain text that is not valid UTF-8 ({error})") from error
        content, offsets = utf8_buffers(texts)
        hashes = kernels.hash_texts(content, offsets, self._seed)
        matches = self._matcher.match(texts)
        size = int(offsets[-1] - offsets[0])
        self._counts += Counts(sentences=len(texts), bytes=size, occurrences=len(matches.row))
        chosen, priorities = kernels.choose(matches.row, matches.token, hashes, self._token_hashes, *self._leading)
        candidates = np.empty(len(chosen), dtype=CANDIDATE)
        candidates["token"] = matches.token[chosen]
        candidates["row"] = np.asarray(rows, dtype=np.int64)[matches.row[chosen]]
        candidates["priority"] = priorities
        candidates["start"] = matches.start[chosen]
        candidates["end"] = matches.end[chosen]
        return pa.table({name: candidates[name] for name in FIELDS})

    def take_counts(self) -> Counts:
        """Return the counts since the last call, in this process."""
        counts, self._counts = self._counts, Counts()
        return counts
