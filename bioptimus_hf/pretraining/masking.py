"""Choose which tokens a batch has to predict and hide them: masking strategies, plans and the data collator."""

from __future__ import annotations

import copy
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from datasets import Dataset
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import IGNORED_LABEL
from bioptimus_hf.vocabulary.tokenizer import is_continuation, real_ids

_MASKED, _RANDOM = 0.8, 0.1  # Devlin et al. 2019, section 3.1; the remaining 10 % stay as they are
# Independent streams of random numbers: which tokens are chosen, what happens to each, and the replacement token.
_STREAMS = np.arange(3, dtype=np.uint64)[:, None]

_ROWS_AT_ONCE = 1024

Array = npt.NDArray[Any]

# What columns are padded with, and what a row has that lacks them, from its ids and the id of padding.
_COLUMNS: dict[str, tuple[int, Callable[[Array, int], Array]]] = {
    "attention_mask": (0, lambda ids, padding: ids != padding),
    "token_type_ids": (0, lambda ids, padding: np.zeros_like(ids)),
    "special_tokens_mask": (1, lambda ids, padding: np.zeros_like(ids)),
    "position_ids": (0, lambda ids, padding: np.arange(len(ids))),
}


@check_call()
@dataclass(frozen=True)
class MaskingStrategy:
    """How masked-language-model training chooses and hides tokens.

    Attributes:
        unit: "token" chooses each token independently, "word" chooses all pieces of a word together.
        rate: expected share of the maskable tokens that are chosen, for both units; above 0, at most 1.
        corrupt: if true, 80 % of the chosen tokens become `[MASK]`, 10 % become a random token and 10 % stay, drawn for
            each token independently (Devlin et al. 2019, section 3.1); if false, all of them become `[MASK]`.

    Raises:
        InputError: `unit` or `rate` has another value.
    """

    unit: Literal["token", "word"]
    rate: float
    corrupt: bool

    def __post_init__(self) -> None:
        if self.unit not in ("token", "word"):
            raise InputError(f"the masking unit must be 'token' or 'word', not {self.unit!r}")
        if not 0 < self.rate <= 1:
            raise InputError(f"the masking rate must be above 0 and at most 1, not {self.rate}")


@dataclass(frozen=True)
class BatchLayout:
    """How the rows of a run are distributed over micro-batches and processes.

    Attributes:
        batch_size: rows per micro-batch.
        accumulation: micro-batches per optimizer step, on each process.
        rank: index of this process among `world_size`.
        world_size: number of processes.
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    def first_row(self, micro_batch: int) -> int:
        """Return the running number, in the whole run, of the first row of a micro-batch of this process."""
        return (micro_batch * self.world_size + self.rank) * self.batch_size


@dataclass(frozen=True)
class MaskingPlan:
    """The masking strategy of each optimizer step, and the layout of the batches.

    Attributes:
        edges: optimizer steps (counted from 0) at which the strategies begin; ascending, the first is 0. If the rate
            changes within a strategy, the end of the run is appended.
        strategies: the strategy that applies from each edge on.
        batches: how rows are distributed over micro-batches and processes.
        last_rates: masking rate that each strategy reaches at its last step, in equal steps from its initial rate. By
            default, rates don't change.
    """

    edges: tuple[int, ...]
    strategies: tuple[MaskingStrategy, ...]
    batches: BatchLayout
    last_rates: tuple[float, ...] = ()

    def strategy_at(self, step: int) -> MaskingStrategy:
        """Return the strategy of an optimizer step, counted from 0.

        Batches that are prefetched beyond the last step have the strategy of the last step.
        """
        number = min(bisect_right(self.edges, step), len(self.strategies)) - 1
        strategy = self.strategies[number]
        if not self.last_rates or self.last_rates[number] == strategy.rate:
            return strategy
        first, end = self.edges[number], self.edges[number + 1]
        share = min(step - first, end - 1 - first) / max(end - 1 - first, 1)
        return replace(strategy, rate=strategy.rate + share * (self.last_rates[number] - strategy.rate))


# One fixed strategy for all validation text, whatever phase is being trained, so that losses are comparable: whole
# words, as in three of the four phases, and always hidden, so that every prediction is of a word that can't be seen.
VALIDATION_MASKING = MaskingStrategy("word", 0.15, corrupt=False)


class NumberedBatch(list[Any]):
    """The rows of a batch, or their indices, with the number of the micro-batch in the run.

    Attributes:
        number: micro-batches of this process before it.
    """

    def __init__(self, rows: Iterable[Any], number: int) -> None:
        super().__init__(rows)
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return NumberedBatch, (list(self), self.number)


@check_call()
class BioptimusDataCollator:
    """Pad and mask examples, as `data_collator` of a `Trainer` or `collate_fn` of a `DataLoader`.

    The mask of a row depends only on `seed` and the row's running number in training, never on how rows are batched or
    which worker process builds the batch. Under a `CurriculumCallback` or `follow_curriculum`, that number is exact,
    also after resuming. Without them, rows are counted as they arrive, and worker processes draw a fresh stream for
    each epoch from torch's global generator.

    Examples that already have `labels` are padded but not masked. Once a `CurriculumLoop` or a `CurriculumCallback` has
    taken over the training set, the collator itself is left for evaluation, see `for_evaluation`.

    Args:
        tokenizer: must have a mask token and a padding token; the unit "word" needs a WordPiece tokenizer.
        strategy: applies until a curriculum replaces it.
        seed: seed of the masks.
        pad_to_multiple_of: round the length of a batch up to a multiple of this.

    Raises:
        InputError: the tokenizer can't be used; the message gives the reason.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        strategy: MaskingStrategy = MaskingStrategy("token", 0.15, True),
        *,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        for kind, token in (("mask", tokenizer.mask_token_id), ("padding", tokenizer.pad_token_id)):
            if token is None:
                raise InputError(f"{type(tokenizer).__name__} has no {kind} token: give a tokenizer that has one")
        self.tokenizer = tokenizer
        self.strategy = strategy
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        self._special = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.bool_)
        self._special[tokenizer.all_special_ids] = True
        self._real_ids = real_ids(tokenizer)
        self._continues = _continuations(tokenizer, [strategy])
        self._plan: MaskingPlan | None = None
        self._evaluates = False
        self._count_anew()

    def _count_anew(self) -> None:
        # Shared with worker processes, which have a copy of everything else: the micro-batch at which the current
        # iterator over the data began, the number of iterators so far, and the seed that this one's workers share.
        self._clock = torch.zeros(3, dtype=torch.int64)
        self._clock.share_memory_()  # type: ignore[no-untyped-call]
        self._iterators_seen = self._begun = 0
        self._calls = 0

    def follow(self, plan: MaskingPlan) -> None:
        """Mask each optimizer step as the plan says. Call it before the first iterator over the data begins."""
        self._continues = _continuations(self.tokenizer, plan.strategies)
        self._plan = plan

    def for_evaluation(self, strategy: MaskingStrategy = VALIDATION_MASKING) -> None:
        """Mask rows by nothing but their ids from now on, so that every evaluation has the same predictions to make.

        Args:
            strategy: how all rows are masked.
        """
        self.strategy = strategy
        self._continues = _continuations(self.tokenizer, [strategy])
        self._evaluates = True

    def unplanned_copy(self) -> BioptimusDataCollator:
        """Return a collator of the same class and settings that follows no plan and has seen no rows."""
        other = copy.copy(self)
        other._plan, other._evaluates = None, False
        other._count_anew()
        return other

    def strategy_at(self, step: int) -> MaskingStrategy:
        """Return the masking strategy of an optimizer step, counted from 0."""
        return self.strategy if self._plan is None else self._plan.strategy_at(step)

    def begin(self, micro_batch: int) -> None:
        """Announce that an iterator over the data is about to begin.

        Args:
            micro_batch: number of micro-batches that this process has consumed in the run so far.
        """
        self._clock[0] = micro_batch
        self._clock[1] += 1
        self._clock[2] = 0
        self._begun = int(self._clock[1])

    def __call__(self, examples: Sequence[Mapping[str, Any] | Sequence[int]]) -> dict[str, torch.Tensor]:
        """Build a batch.

        Args:
            examples: mappings of any lengths with `input_ids` and, optionally, `attention_mask`,
                `special_tokens_mask`, `token_type_ids`, `position_ids` or `labels`; or plain lists of ids. Where only
                some rows have one of these, the others get its default, except for `labels`. Other columns of numbers,
                one for each id or one for the row, are passed on.

        Returns:
            Tensors of shape (rows, length), or (rows,) for numbers of rows: `input_ids`, `attention_mask`, `labels`
            (-100 where nothing has to be predicted), and what else the examples have, except `special_tokens_mask`.

        Raises:
            InputError: there are no ids, or a column can't be put into a batch (which one).
        """
        rows = [example if isinstance(example, Mapping) else {"input_ids": example} for example in examples]
        columns = dict.fromkeys(name for row in rows for name in row)
        if any("input_ids" not in row for row in rows):
            raise InputError("a row has no column input_ids: tokenise the data set first")
        lengths = [len(row["input_ids"]) for row in rows]
        length = -(-max(lengths) // (self.pad_to_multiple_of or 1)) * (self.pad_to_multiple_of or 1)
        ids = _pad([row["input_ids"] for row in rows], length, self.tokenizer.pad_token_id)
        given = {name: self._column(name, rows, lengths, length) for name in columns if name != "input_ids"}
        if ids.max(initial=0) >= len(self._special):
            tokens = len(self._special)
            raise InputError(f"a row has the id {ids.max()}, but the tokenizer has {tokens} tokens: give its tokenizer")
        special = given.pop("special_tokens_mask", None)
        attention = given.setdefault("attention_mask", (ids != self.tokenizer.pad_token_id).astype(np.int64))
        batch = {"input_ids": ids, **given}
        if "labels" not in columns:
            maskable = (attention == 1) & ~self._special[ids]
            if special is not None:
                maskable &= special == 0
            number = examples.number if isinstance(examples, NumberedBatch) else None
            batch["input_ids"], batch["labels"] = self._mask(ids, maskable, lengths, number)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _column(self, name: str, rows: Sequence[Mapping[str, Any]], lengths: Sequence[int], length: int) -> Array:
        """Return a column of a batch, padded."""
        if name in _COLUMNS:
            filler, default = _COLUMNS[name]
            pad_id = self.tokenizer.pad_token_id
            values = [
                default(np.asarray(row["input_ids"]), pad_id) if row.get(name) is None else row[name] for row in rows
            ]
            return _pad(values, length, filler)
        if missing := sum(row.get(name) is None for row in rows):
            raise InputError(f"{missing} of {len(rows)} rows have no {name}: give it to all rows, or to none")
        values = [np.asarray(row[name]) for row in rows]
        if any(one.dtype.kind not in "biuf" for one in values):
            raise InputError(f"{name} isn't made of numbers: remove this column from the data set")
        if all(one.shape == (size,) for one, size in zip(values, lengths, strict=True)):
            kind = np.float32 if any(one.dtype.kind == "f" and one.size for one in values) else np.int64
            return _pad(values, length, IGNORED_LABEL if name == "labels" else 0, kind)
        if all(one.shape == () for one in values):
            return np.stack(values)
        raise InputError(f"{name} has neither one number for each id nor one for the row: remove this column")

    def _mask(
        self, ids: Array, maskable: Array, lengths: Sequence[int], micro_batch: int | None
    ) -> tuple[Array, Array]:
        """Return the corrupted ids and the labels."""
        if self._evaluates:
            key, strategy = self.seed % 2**64, self.strategy
            rows = [xxhash.xxh3_64_intdigest(row[:size].tobytes()) for row, size in zip(ids, lengths, strict=True)]
            numbers = np.array(rows, dtype=np.uint64)
        else:
            key, first_row, strategy = self._next(len(ids), micro_batch)
            numbers = np.arange(first_row, first_row + len(ids), dtype=np.uint64)
        choices, outcomes, replacements = _row_keys(key, numbers)
        positions = np.arange(ids.shape[1], dtype=np.uint64)
        # All pieces of a word share the number of the word's first piece.
        units = self._word_starts(ids, maskable).view(np.uint64) if strategy.unit == "word" else positions
        chosen = maskable & (_uniform(choices[:, None], units) < strategy.rate)
        labels = np.where(chosen, ids, IGNORED_LABEL)
        if not strategy.corrupt:
            return np.where(chosen, self.tokenizer.mask_token_id, ids), labels
        # Drawn only for the chosen positions, a sixth of all: the numbers depend on nothing but row and position.
        row, column = np.nonzero(chosen)
        outcome = _uniform(outcomes[row], positions[column])
        place = _uniform(replacements[row], positions[column]) * len(self._real_ids)
        instead = np.where(outcome < _MASKED, self.tokenizer.mask_token_id, self._real_ids[place.astype(np.int64)])
        corrupted = ids.copy()
        corrupted[row, column] = np.where(outcome < _MASKED + _RANDOM, instead, ids[row, column])
        return corrupted, labels

    def _word_starts(self, ids: Array, maskable: Array) -> Array:
        """Return, for every position, the position of the first piece of the same word."""
        if self._continues is None:
            raise InputError(
                "pass a strategy that masks whole words to the collator or its plan, don't set it afterwards"
            )
        # A block cut from a stream of text may begin with a continuation of a word that began in another row.
        inside = self._continues[ids]
        inside[:, 0] = False
        inside[:, 1:] &= maskable[:, :-1]
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        starts: Array = np.maximum.accumulate(np.where(inside, 0, positions), axis=1)
        return starts

    def _next(self, rows: int, micro_batch: int | None) -> tuple[int, int, MaskingStrategy]:
        """Return the key of the random numbers, the running number of the first row of this batch, and the strategy."""
        if self._plan is not None and micro_batch is not None:
            return self._at(self._plan, micro_batch)
        worker = get_worker_info()
        began, iterators, seed = self._clock.tolist()
        seed_now = worker.seed - worker.id if worker else 0
        latest = self._begun == iterators  # and not a worker of an earlier iterator, which may still be at work
        if latest and not seed:
            self._clock[2] = seed = seed_now
        if self._plan is not None and (not iterators or (latest and seed != seed_now)):
            raise InputError(
                "the position of this batch in the run is unknown, and so is its phase: call begin before each pass "
                "over the data, or use a CurriculumLoop"
            )
        if iterators != self._iterators_seen:
            self._iterators_seen, self._calls = iterators, 0
        call = self._calls
        self._calls += 1
        if worker is not None:  # a DataLoader assigns batches to its workers in turn
            call = call * worker.num_workers + worker.id
        if self._plan is None:
            # All workers of an iterator have the same worker.seed - worker.id, and the next iterator draws a new one.
            rank = int(os.environ.get("RANK", "0"))
            key = _mix(_number(self.seed) ^ _mix(_number(seed_now + rank)))
            return int(key[0]), call * 2**20, self.strategy
        return self._at(self._plan, began + call)

    def _at(self, plan: MaskingPlan, micro_batch: int) -> tuple[int, int, MaskingStrategy]:
        strategy = plan.strategy_at(micro_batch // plan.batches.accumulation)
        return self.seed % 2**64, plan.batches.first_row(micro_batch), strategy


def _pad(rows: Sequence[Any], length: int, filler: int, kind: type = np.int64) -> Array:
    """Return rows of numbers as an array, filled up on the right."""
    padded: Array = np.full((len(rows), length), filler, dtype=kind)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


@check_call(blocks=("input_ids",))
def mask_once(
    blocks: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    strategy: MaskingStrategy = VALIDATION_MASKING,
    seed: int = 0,
) -> Dataset:
    """Mask a validation set before training, so that every validation loss is measured on the same predictions.

    Args:
        blocks: has the column `input_ids`, of any lengths, and possibly others that `BioptimusDataCollator` accepts.
        tokenizer: as for `BioptimusDataCollator`.
        strategy: how tokens are masked.
        seed: seed of the masks.

    Returns:
        Data set with the columns `input_ids`, `attention_mask`, `labels` (lists of integers, as long as the block; -100
        where nothing has to be predicted), and what else the blocks have. `BioptimusDataCollator` leaves
        such rows as they are.
    """
    collator = BioptimusDataCollator(tokenizer, strategy, seed=seed)
    # A plan makes the masks independent of the process, also where several processes share the training.
    collator.follow(MaskingPlan((0,), (strategy,), BatchLayout(_ROWS_AT_ONCE)))
    collator.begin(0)
    masked: list[dict[str, Any]] = []
    for start in range(0, len(blocks), _ROWS_AT_ONCE):
        rows = blocks.select(range(start, min(start + _ROWS_AT_ONCE, len(blocks)))).to_list()
        batch = collator([{name: values for name, values in row.items() if name != "labels"} for row in rows])
        for number, row in enumerate(rows):
            size = len(row["input_ids"])
            masked.append(
                {
                    name: values[number, :size].numpy() if values.ndim > 1 else values[number].item()
                    for name, values in batch.items()
                }
            )
    return Dataset.from_list(masked)


def _continuations(tokenizer: PreTrainedTokenizerBase, strategies: Sequence[MaskingStrategy]) -> Array | None:
    return is_continuation(tokenizer) if any(strategy.unit == "word" for strategy in strategies) else None


def _number(number: int) -> Array:
    """Return an array with one element: numpy wraps arrays silently, as wanted here, but warns about scalars."""
    return np.array([number % 2**64], dtype=np.uint64)


def _mix(numbers: Array) -> Array:
    """Scramble 64-bit numbers with the finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 16)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _row_keys(key: int, rows: Array) -> Array:
    """Return keys of shape (streams, rows)."""
    return _mix(_mix(rows ^ _mix(_number(key))) + _STREAMS)


def _uniform(row_keys: Array, positions: Array) -> Array:
    """Return numbers in [0, 1) that depend only on the arguments, in the shape to which both broadcast."""
    mixed = _mix(row_keys ^ (positions * np.uint64(0xD1342543DE82EF95)))
    numbers: Array = (mixed >> np.uint64(11)) * 2.0**-53
    return numbers
