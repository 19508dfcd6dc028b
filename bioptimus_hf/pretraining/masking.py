"""Which tokens of a batch are to be predicted, and what stands in their place: strategies and the data collator."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import IGNORED_LABEL
from bioptimus_hf.vocabulary.tokenizer import is_continuation, real_ids

_MASKED, _RANDOM = 0.8, 0.1  # Devlin et al. 2019, section 3.1; the rest is left as it is
_STREAMS = np.arange(3, dtype=np.uint64)[:, None]  # of random numbers, independent: choice, fate and replacement

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MaskingStrategy:
    """How masked-language-model training chooses and hides tokens.

    Attributes:
        unit: "token" chooses each token by itself, "word" all the pieces of a word together.
        rate: expected share of the maskable tokens that are chosen, for both units; above 0, at most 1.
        corrupt: if true, of the chosen tokens 80 % become `[MASK]`, 10 % another token and 10 % stay, each drawn by
            itself (Devlin et al. 2019, section 3.1); if false, all become `[MASK]`.

    Raises:
        InputError: `unit` or `rate` is none of these.
    """

    unit: Literal["token", "word"]
    rate: float
    corrupt: bool

    def __post_init__(self) -> None:
        if self.unit not in ("token", "word"):
            raise InputError(f"a masking unit is 'token' or 'word', not {self.unit!r}")
        if not 0 < self.rate <= 1:
            raise InputError(f"a masking rate lies above 0 and is at most 1, not {self.rate}")


class BioptimusDataCollator:
    """Pad examples and mask them, as `data_collator` of a `Trainer` or `collate_fn` of a `DataLoader`.

    The mask of a row depends only on `seed` and the row's running number in training, never on how rows are batched or
    which worker process makes the batch. Under a `CurriculumCallback` that number is exact, also after a resume.
    Without one, rows are counted as they come, and worker processes draw a fresh stream for each epoch from torch's
    global generator.

    Examples that already carry `labels` are padded and left as they are: evaluation sets are masked once, beforehand.

    Args:
        tokenizer: must have a mask and a padding token; for the unit "word" it must be a WordPiece tokenizer.
        strategy: what to do until a curriculum says otherwise.
        seed: of the masks.
        pad_to_multiple_of: round the length of a batch up to a multiple of this.

    Raises:
        InputError: the tokenizer cannot be used (it is named, with the reason).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        strategy: MaskingStrategy = MaskingStrategy("token", 0.15, True),
        *,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        name = type(tokenizer).__name__
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise InputError(f"{name} has no {'mask' if tokenizer.mask_token_id is None else 'padding'} token")
        self.tokenizer = tokenizer
        self.strategy = strategy
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        self._special = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.bool_)
        self._special[tokenizer.all_special_ids] = True
        self._real_ids = real_ids(tokenizer)
        self._continues = _continuations(tokenizer, [strategy])
        self._plan: _Plan | None = None
        # Shared with worker processes, which hold a copy of everything else: the micro-batch at which the current
        # iterator over the data began, and how many iterators have begun.
        self._clock = torch.zeros(2, dtype=torch.int64)
        self._clock.share_memory_()  # type: ignore[no-untyped-call]
        self._iterators_seen = 0
        self._calls = 0

    def follow(
        self,
        edges: Sequence[int],
        strategies: Sequence[MaskingStrategy],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        accumulation: int = 1,
        last_rates: Sequence[float] = (),
    ) -> None:
        """Set a plan: what to do at each optimizer step. Called before the first iterator over the data begins.

        Args:
            edges: optimizer step (counted from 0) at which each strategy begins; ascending, the first is 0. One more
                than strategies, the end of the run, where rates change within a strategy.
            strategies: what is done from each edge on.
            batch_size: rows of a micro-batch.
            rank: of this process, among `world_size`.
            accumulation: micro-batches of an optimizer step, on each process.
            last_rates: masking rate that each strategy reaches at its last step, in even steps from its own; by default
                it stays.
        """
        self._continues = _continuations(self.tokenizer, strategies)
        self._plan = _Plan(
            tuple(edges), tuple(strategies), batch_size, rank, world_size, accumulation, tuple(last_rates)
        )

    def strategy_at(self, step: int) -> MaskingStrategy:
        """Return the strategy that the plan has for an optimizer step, counted from 0."""
        return self.strategy if self._plan is None else self._plan.strategy_at(step)

    def begin(self, micro_batch: int) -> None:
        """Say that an iterator over the data is about to begin, and at which micro-batch of the run it does."""
        self._clock[0] = micro_batch
        self._clock[1] += 1

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: each with `input_ids`, and with `attention_mask`, `special_tokens_mask`, `token_type_ids` or
                `labels` where there are any; of any lengths.

        Returns:
            Tensors (int64) of shape (rows, length): `input_ids`, `attention_mask`, `labels` (-100 where nothing is to
            be predicted), and `token_type_ids` if the examples have them.
        """
        ids = self._pad(examples, "input_ids", self.tokenizer.pad_token_id)
        given = examples[0].keys()
        attention = (
            self._pad(examples, "attention_mask", 0)
            if "attention_mask" in given
            else (ids != self.tokenizer.pad_token_id).astype(np.int64)
        )
        batch = {"input_ids": ids, "attention_mask": attention}
        if "token_type_ids" in given:
            batch["token_type_ids"] = self._pad(examples, "token_type_ids", 0)
        if "labels" in given:
            batch["labels"] = self._pad(examples, "labels", IGNORED_LABEL)
        else:
            maskable = (attention == 1) & ~self._special[ids]
            if "special_tokens_mask" in given:
                maskable &= self._pad(examples, "special_tokens_mask", 1) == 0
            batch["input_ids"], batch["labels"] = self._mask(ids, maskable)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _pad(self, examples: Sequence[Mapping[str, Any]], name: str, filler: int) -> Array:
        rows = [example[name] for example in examples]
        length = max(map(len, rows))
        if self.pad_to_multiple_of:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padded = np.full((len(rows), length), filler, dtype=np.int64)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        return padded

    def _mask(self, ids: Array, maskable: Array) -> tuple[Array, Array]:
        """Return the corrupted ids and the labels."""
        key, first_row, strategy = self._next(len(ids))
        choices, fates, replacements = _row_keys(key, np.arange(first_row, first_row + len(ids), dtype=np.uint64))
        positions = np.arange(ids.shape[1], dtype=np.uint64)
        # The pieces of a word share the number of its first one.
        units = self._word_starts(ids, maskable).view(np.uint64) if strategy.unit == "word" else positions
        chosen = maskable & (_uniform(choices[:, None], units) < strategy.rate)
        labels = np.where(chosen, ids, IGNORED_LABEL)
        if not strategy.corrupt:
            return np.where(chosen, self.tokenizer.mask_token_id, ids), labels
        # Drawn for the chosen positions alone, a sixth of all: numbers depend on nothing but row and position.
        row, column = np.nonzero(chosen)
        fate = _uniform(fates[row], positions[column])
        place = _uniform(replacements[row], positions[column]) * len(self._real_ids)
        instead = np.where(fate < _MASKED, self.tokenizer.mask_token_id, self._real_ids[place.astype(np.int64)])
        corrupted = ids.copy()
        corrupted[row, column] = np.where(fate < _MASKED + _RANDOM, instead, ids[row, column])
        return corrupted, labels

    def _word_starts(self, ids: Array, maskable: Array) -> Array:
        """Return for every position that of the first piece of its word."""
        if self._continues is None:
            raise InputError("whole words need a strategy given to the collator or to its plan, not set afterwards")
        # A block cut from a stream of text may begin with a continuation, whose word began in another row.
        inside = self._continues[ids]
        inside[:, 0] = False
        inside[:, 1:] &= maskable[:, :-1]
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        starts: Array = np.maximum.accumulate(np.where(inside, 0, positions), axis=1)
        return starts

    def _next(self, rows: int) -> tuple[int, int, MaskingStrategy]:
        """Return the key of the random numbers, the running number of the batch's first row, and the strategy."""
        worker = get_worker_info()
        began, iterators = self._clock.tolist()
        if iterators != self._iterators_seen:
            self._iterators_seen, self._calls = iterators, 0
        call = self._calls
        self._calls += 1
        if worker is not None:  # a DataLoader hands batches to its workers in turn
            call = call * worker.num_workers + worker.id
        if self._plan is None:
            # The workers of one iterator share worker.seed - worker.id, and the next iterator draws another.
            epoch = worker.seed - worker.id if worker else 0
            rank = int(os.environ.get("RANK", "0"))
            key = _mix(_number(self.seed) ^ _mix(_number(epoch + rank)))
            return int(key[0]), call * 2**20, self.strategy
        plan = self._plan
        micro_batch = began + call
        first_row = (micro_batch * plan.world_size + plan.rank) * plan.batch_size
        return self.seed % 2**64, first_row, plan.strategy_at(micro_batch // plan.accumulation)


@dataclass(frozen=True)
class _Plan:
    edges: tuple[int, ...]
    strategies: tuple[MaskingStrategy, ...]
    batch_size: int
    rank: int
    world_size: int
    accumulation: int
    last_rates: tuple[float, ...]

    def strategy_at(self, step: int) -> MaskingStrategy:
        """Return the strategy of an optimizer step; batches fetched beyond the last step have that of the last."""
        number = min(bisect_right(self.edges, step), len(self.strategies)) - 1
        strategy = self.strategies[number]
        if not self.last_rates or self.last_rates[number] == strategy.rate:
            return strategy
        first, end = self.edges[number], self.edges[number + 1]
        share = min(step - first, end - 1 - first) / max(end - 1 - first, 1)
        return replace(strategy, rate=strategy.rate + share * (self.last_rates[number] - strategy.rate))


def _continuations(tokenizer: PreTrainedTokenizerBase, strategies: Sequence[MaskingStrategy]) -> Array | None:
    return is_continuation(tokenizer) if any(strategy.unit == "word" for strategy in strategies) else None


def _number(number: int) -> Array:
    """Return an array of one, as numpy lets arrays overflow, which is meant here, and warns of single numbers."""
    return np.array([number % 2**64], dtype=np.uint64)


def _mix(numbers: Array) -> Array:
    """Scramble 64-bit numbers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 16)."""
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
    """Return numbers in [0, 1) that depend on nothing but the arguments, of the shape that keys and positions span."""
    mixed = _mix(row_keys ^ (positions * np.uint64(0xD1342543DE82EF95)))
    numbers: Array = (mixed >> np.uint64(11)) * 2.0**-53
    return numbers
