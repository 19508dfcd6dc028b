"""Corpus + tokens of interest -> a uniform sample of the sentences that hold each token, with its place in them.

The step that qik-find takes in the paper, as `datasets.map`: one pass over the text for all tokens. Each process names
the rows that can still win (row numbers, not text); a streaming merge keeps the `per_token` smallest priorities of
every token; the text of the winners is fetched last. A priority is a hash of seed, sentence and token, so the sample
does not depend on the order of the rows, on how they are cut into batches, or on the number of processes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.contexts import kernels
from bioptimus_hf.contexts.matching import Matcher, utf8_buffers, word_rules
from bioptimus_hf.contexts.sampling import CANDIDATE, FEATURES, FIELDS, Candidates, merge, starts_sentence
from bioptimus_hf.errors import InputError
from bioptimus_hf.vocabulary.tokenizer import MARK, wordpiece_settings

logger = logging.getLogger(__name__)

_VERSION = 2  # of what a batch yields; part of the map's fingerprint, which does not see the code of this package
ROWS_AT_ONCE = 10_000  # sentences; about 1 MB, which stays in the processor's cache
_MOST_PRIORITIES = 1 << 25  # 256 MB
_TEXT_TYPES = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class TokenSelection:
    """What can be searched for.

    Attributes:
        tokens: as given, in the order given.
        normalised: what each is in normalised text; a `##` piece keeps its mark.
        merged: tokens that normalise to the same as an earlier one, with that one; they are found under its name.
        unusable: tokens that no word or piece can equal, with the reason.
    """

    tokens: tuple[str, ...]
    normalised: tuple[str, ...]
    merged: dict[str, str]
    unusable: dict[str, str]


def find_contexts(
    dataset: Dataset,
    tokens: Collection[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    per_token: int = 64,
    seed: int = 0,
    num_proc: int | None = None,
) -> Dataset:
    """Find sentences that hold the tokens: for each token a uniform sample of all distinct sentences that do.

    A word is what the tokenizer's normaliser and pre-tokenizer say. A token is found where it is a whole word, and
    where it is one of the pieces (`activ`, `##itis`) that `tokenizer` cuts a word into.

    Args:
        dataset: rows are sentences (`corpus.split_sentences`): `text`, and `document` where it is wanted back.
        tokens: tokens of interest; a word that the tokenizer does not hold is found as a whole word only.
        tokenizer: the tokenizer that holds the tokens, the new one.
        per_token: contexts of a token at most.
        seed: another seed draws another sample.
        num_proc: processes; changes nothing in the result.

    Returns:
        Data set with a row for each token and distinct sentence, tokens in the order given: `token` (as given), `text`,
        `start` and `end` (characters of `text`; of the first occurrence), and `document` if the input has it, the
        least among identical sentences. The same text, tokens, tokenizer, `per_token` and seed give the same rows.

    Raises:
        InputError: no token, a token that normalises to nothing or to several words, no column `text`, text that is
            not UTF-8, `per_token` below 1, or a tokenizer that is not BERT's kind.
    """
    if "text" not in dataset.column_names:
        raise InputError(f"the sentences need a column 'text': these have {', '.join(dataset.column_names) or 'none'}")
    if dataset.features["text"].dtype not in _TEXT_TYPES:
        raise InputError(f"the column 'text' must hold strings, not {dataset.features['text'].dtype}")
    selection = usable_tokens(tokens, tokenizer, per_token)
    columns = [name for name in ("text", "document") if name in dataset.column_names]
    dataset = dataset.select_columns(columns).with_format("arrow")
    candidates = dataset.map(
        BatchFinder(selection.normalised, word_rules(tokenizer), per_token, seed),
        with_indices=True,
        batched=True,
        batch_size=ROWS_AT_ONCE,
        remove_columns=columns,
        features=FEATURES,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        desc="Finding contexts",
    )
    copies = not first_copy_counts(dataset)
    winners = merge(candidates if len(dataset) else None, len(selection.tokens), per_token, copies=copies)
    return fetch_contexts(dataset, winners, selection.tokens)


def select_tokens(tokens: Collection[str], tokenizer: PreTrainedTokenizerBase) -> TokenSelection:
    """Normalise tokens of interest; set those apart that can never be found, and those that become the same.

    Raises:
        InputError: the tokenizer is not BERT's kind, whose words and characters alone are known here.
    """
    wordpiece_settings(tokenizer)
    backend = tokenizer.backend_tokenizer
    first: dict[str, str] = {}
    merged: dict[str, str] = {}
    unusable: dict[str, str] = {}
    for token in dict.fromkeys(tokens):
        mark = MARK if token.startswith(MARK) and len(token) > len(MARK) else ""
        normalised = backend.normalizer.normalize_str(token.removeprefix(mark))
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised)]
        if len(words) != 1:
            unusable[token] = (
                f"it normalises to {len(words)} words ({' '.join(words)})" if words else "it normalises to nothing"
            )
        elif mark + words[0] in first:
            merged[token] = first[mark + words[0]]
        else:
            first[mark + words[0]] = token
    return TokenSelection(tuple(first.values()), tuple(first), merged, unusable)


def usable_tokens(tokens: Collection[str], tokenizer: PreTrainedTokenizerBase, per_token: int) -> TokenSelection:
    """Normalise tokens of interest; refuse them if one can never be found, or nothing is asked for."""
    if per_token < 1:
        raise InputError(f"per_token must be at least 1, not {per_token}")
    selection = select_tokens(tokens, tokenizer)
    if selection.unusable:
        token, reason = next(iter(selection.unusable.items()))
        raise InputError(
            f"{len(selection.unusable)} tokens can never be found, {token!r} for one: {reason}. Leave them out"
        )
    if not selection.tokens:
        raise InputError("no tokens to look for")
    if selection.merged:
        token, other = next(iter(selection.merged.items()))
        logger.warning(
            "%d tokens normalise to the same as another, and are found under its name: %r as %r, for one",
            len(selection.merged),
            token,
            other,
        )
    return selection


class BatchFinder:
    """The step of `map`: a batch of sentences -> the rows that can still win.

    Its state (tables, the priorities in the lead) stays out of pickling: the fingerprint of the map hangs on the task
    alone, and each process starts afresh.

    Attributes:
        task: the arguments that it was made with.
        occurrences: how many it has seen, of all tokens.
    """

    def __init__(self, tokens: Sequence[str], rules: str, per_token: int, seed: int, version: int = _VERSION) -> None:
        self.task = (tuple(tokens), rules, per_token, seed, version)
        self.occurrences = 0
        self._matcher: Matcher | None = None  # made in the process that uses it
        # What is in the lead. For large samples that would take too much memory, and nothing is left out on the way.
        held = per_token if len(tokens) * per_token <= _MOST_PRIORITIES else 0
        limits = np.full(len(tokens), 2**64 - 1, dtype=np.uint64)
        heaps, sizes = np.empty((len(tokens), held), dtype=np.uint64), np.zeros(len(tokens), dtype=np.int64)
        self._leading = limits, heaps, sizes
        self._seed = np.uint64(seed % 2**64)
        hashes = [xxhash.xxh3_64_intdigest(token.encode(), seed % 2**64) for token in tokens]
        self._token_hashes = np.array(hashes, dtype=np.uint64)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.task

    def __call__(self, table: pa.Table, rows: Sequence[int]) -> pa.Table:
        """Search sentences (`text`) of these row numbers; return candidates, with the columns of `FEATURES`."""
        tokens, rules, *_ = self.task
        self._matcher = self._matcher or Matcher(tokens, rules)
        texts = _one_chunk(table["text"])
        try:
            texts.validate(full=True)  # Arrow trusts whoever made it, and the kernels trust Arrow
        except pa.ArrowInvalid as error:
            raise InputError(f"the sentences hold text that is not valid UTF-8 ({error})") from error
        hashes = kernels.hash_texts(*utf8_buffers(texts), self._seed)
        matches = self._matcher.match(texts)
        self.occurrences += len(matches.row)
        able, priorities = kernels.choose(matches.row, matches.token, hashes, self._token_hashes, *self._leading)
        candidates = np.empty(len(able), dtype=CANDIDATE)
        candidates["token"] = matches.token[able]
        candidates["row"] = np.asarray(rows, dtype=np.int64)[matches.row[able]]
        candidates["priority"] = priorities
        candidates["start"] = matches.start[able]
        candidates["end"] = matches.end[able]
        return pa.table({name: candidates[name] for name in FIELDS})


def first_copy_counts(dataset: Dataset) -> bool:
    """Say whether the first of several copies of a sentence is in the least document: the others need not be held."""
    if "document" not in dataset.column_names:
        return True
    kind = dataset.features["document"]
    if not (isinstance(kind, Value) and pa.types.is_integer(kind.pa_type)):
        return False
    last = None
    for table in dataset.select_columns(["document"]).with_format("arrow").iter(batch_size=1_000_000):
        if table["document"].null_count:
            return False
        numbers = table["document"].to_numpy()
        if (numbers[1:] < numbers[:-1]).any() or (last is not None and numbers[0] < last):
            return False
        last = numbers[-1]
    return True


def fetch_contexts(dataset: Dataset, winners: Candidates, tokens: Sequence[str]) -> Dataset:
    """Put the text of the winning rows beside their tokens and spans."""
    rows = np.sort(winners["row"])
    rows = rows[np.diff(rows, prepend=-1) != 0]
    texts = _rows_of(dataset, rows)
    place = np.searchsorted(rows, winners["row"])
    if "document" in texts.column_names:
        order = _by_document(winners, texts["document"].take(pa.array(place)))
        winners, place = winners[order], place[order]
    first = starts_sentence(winners)
    winners, place = winners[first], place[first]
    names = pa.array(tokens, pa.string()).take(pa.array(winners["token"]))
    table = pa.table({"token": names, "start": winners["start"], "end": winners["end"], "place": place})
    features = {"token": Value("string"), "start": Value("int32"), "end": Value("int32"), **dataset.features}
    columns = [name for name in ("token", "text", "start", "end", "document") if name in features]
    features = Features({name: features[name] for name in columns})
    if not len(winners):
        return Dataset.from_dict({name: [] for name in columns}, features=features)

    def attach(batch: pa.Table) -> pa.Table:
        found = texts.take(batch["place"])
        return pa.table({name: (batch if name in batch.column_names else found)[name] for name in columns})

    # Named after what is in it: later steps find their own caches again, and large results lie on disk.
    content = xxhash.xxh3_128(json.dumps([dataset._fingerprint, *tokens]).encode())
    for field in FIELDS:
        content.update(winners[field].tobytes())
    name = content.hexdigest()[:16]
    folder = Path(dataset.cache_files[0]["filename"]).parent if dataset.cache_files else None
    return cast(
        Dataset,
        Dataset(table)
        .with_format("arrow")
        .map(
            attach,
            batched=True,
            batch_size=ROWS_AT_ONCE,
            remove_columns=table.column_names,
            features=features,
            cache_file_name=str(folder / f"cache-contexts-{name}.arrow") if folder else None,
            new_fingerprint=name,
            desc="Fetching sentences",
        )
        .with_format(None),
    )


def _rows_of(dataset: Dataset, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Read some rows, which are sorted: in one pass, since random access takes longer than to read everything."""
    content = bytearray()  # which grows in place: to put pieces together would take their memory twice
    lengths = [np.zeros(1, dtype=np.int64)]
    schema = dataset.features.arrow_schema.remove_metadata()
    others = [schema.remove(schema.get_field_index("text")).empty_table()]  # no column, or `document`
    for number, batch in enumerate(dataset.iter(batch_size=ROWS_AT_ONCE)):
        start = number * ROWS_AT_ONCE
        first, last = np.searchsorted(rows, [start, start + len(batch)])
        if first < last:
            taken = batch.take(pa.array(rows[first:last] - start))
            text, offsets = utf8_buffers(_one_chunk(taken["text"]))
            content += text[offsets[0] : offsets[-1]].tobytes()
            lengths.append(np.diff(offsets))
            others.append(taken.drop_columns(["text"]))
    offsets = np.cumsum(np.concatenate(lengths))
    texts = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(content))
    columns = pa.concat_tables(others)
    return pa.table({"text": texts, **{name: columns[name].combine_chunks() for name in columns.column_names}})


def _by_document(winners: Candidates, documents: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the order by token, priority and document."""
    table = pa.table({"token": winners["token"], "priority": winners["priority"], "document": documents})
    return cast(
        npt.NDArray[np.int64],
        pc.sort_indices(
            table, sort_keys=[(name, "ascending") for name in ("token", "priority", "document")]
        ).to_numpy(),
    )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
