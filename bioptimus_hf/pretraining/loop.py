"""Take a training loop with Accelerate through a curriculum: masks, phases, versions, and an exact resume."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, SeedableRandomSampler
from accelerate.utils import DistributedType
from torch.utils.data import IterableDataset

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError
from bioptimus_hf.hardware import warn_if_alone
from bioptimus_hf.pretraining.callback import innermost_sampler
from bioptimus_hf.pretraining.curriculum import (
    BIOPTIMUS_CURRICULUM,
    Phase,
    PhasePlan,
    check_same_run,
    evaluation_masking,
)
from bioptimus_hf.pretraining.masking import BatchLayout, BioptimusDataCollator, NumberedBatch
from bioptimus_hf.pretraining.versions import (
    VersionRecord,
    check_exportable,
    check_replaceable,
    export_version,
    folder_name,
)

logger = logging.getLogger(__name__)


@check_call()
class CurriculumLoop:
    """A curriculum in a training loop without a `Trainer`.

    Create it after `accelerator.prepare`, and call `step` after each optimizer step. Nothing else is to be done: it
    masks the batches of the loader by its phase, exports a version at the end of each phase, and is saved and loaded
    with `accelerator.save_state` and `load_state`. A loop that skips the batches it has seen (`skip_first_batches`)
    then goes on bit for bit, with its dropout and the order of its rows. In an evaluation with the same collator, rows
    without labels are masked in the same way in all phases, see `BioptimusDataCollator.for_evaluation`.

    Args:
        accelerator: of the loop.
        loader: over the training set, with a `BioptimusDataCollator` as its `collate_fn`.
        steps: optimizer steps of the whole run.
        curriculum: phases in order.
        export_dir: folder in which the end of each phase creates `v<version>/`: weights, tokenizer and a record. None
            exports nothing.

    Attributes:
        completed: optimizer steps that are done.

    Raises:
        InputError: the loader has another collator, streams its data or distributes it in a way that can't be followed;
            its rows have labels; or the curriculum doesn't fit the number of steps.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        loader: Any,
        steps: int,
        curriculum: Sequence[Phase] = BIOPTIMUS_CURRICULUM,
        *,
        export_dir: str | Path | None = None,
    ) -> None:
        base = getattr(loader, "base_dataloader", loader)
        _check_loader(accelerator, loader, base)
        if export_dir is not None:
            check_replaceable(Path(export_dir) / folder_name(phase.version) for phase in curriculum)
            for model in accelerator._models:
                check_exportable(accelerator.unwrap_model(model))
        warn_if_alone("SCRIPT ...")
        self.completed = 0
        self._accelerator = accelerator
        self._export_dir = Path(export_dir) if export_dir is not None else None
        self._started = time.monotonic()
        layout = BatchLayout(
            base.batch_sampler.batch_size,
            accelerator.gradient_accumulation_steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        # A copy: the curriculum must not reach an evaluation that shares the collator, nor count its rows.
        shared: BioptimusDataCollator = base.collate_fn
        self._collator = shared.unplanned_copy()
        shared.for_evaluation(evaluation_masking(curriculum))
        self._plan = PhasePlan(self._collator, curriculum, steps, layout)
        self._batches_per_epoch = len(base)
        self._steps_per_epoch = -(-len(base) // layout.accumulation)
        sampler = innermost_sampler(base)
        self._identity = {
            **self._plan.identity(),
            "number of rows": len(base.dataset),
            "seed of the order": getattr(sampler, "initial_seed", None),
        }
        self._order = _Order(sampler)
        # Batches that may be drawn before they are needed: by worker processes, by Accelerate, and to number them.
        self._ahead = 2 + base.num_workers * (base.prefetch_factor or 0)
        self._epoch_began = 0  # optimizer steps that were done when the current epoch began
        self._resumed = False  # until the next iterator over the data begins
        self._loaded = False
        base.collate_fn = self._collator
        # Each iterator over the data draws a seed for its workers, by default from the generator that dropout uses. An
        # evaluation would change the rest of the run, unless it was resumed after it.
        for other in (loader, *accelerator._dataloaders):
            inner = getattr(other, "base_dataloader", other)
            if inner.generator is None:
                inner.generator = torch.Generator().manual_seed(self._collator.seed)
        self._drawn = 0  # batches of the current iterator, some of which may be skipped or not be delivered yet
        _number_batches(base, self._numbers)
        accelerator.register_for_checkpointing(self)

    @property
    def phase(self) -> Phase:
        """The phase of the next optimizer step, or the last one at the end of the run."""
        return self._plan.phase_of(min(self.completed + 1, self._plan.steps))

    def step(self, model: Any) -> None:
        """Count an optimizer step; at the end of a phase, export its version.

        Args:
            model: as `accelerator.prepare` returned it.

        Raises:
            InputError: the run has had all its steps, batches it had seen weren't skipped, or a weight isn't finite.
        """
        if self.completed >= self._plan.steps:
            raise InputError(f"all {self._plan.steps} steps of the curriculum are done: create it with more steps")
        self.completed += 1
        self._check_position()
        phase = self._plan.ends.get(self.completed)
        if phase is not None and self._export_dir is not None:
            self._export(phase, model)

    def _check_position(self) -> None:
        """Raise if other batches were drawn than the steps so far need."""
        accumulation = self._plan.batches.accumulation
        position = (self.completed - self._epoch_began) * accumulation
        if self._drawn < min(position, self._batches_per_epoch):
            raise InputError(
                "the run goes on in the middle of an epoch, but the loop hasn't skipped the batches that it had seen: "
                "iterate over accelerator.skip_first_batches(loader, ...)"
                if self._loaded
                else "step was called before the batches of an optimizer step were used: call it only if "
                "accelerator.sync_gradients"
            )
        if self._drawn > position + self._ahead:
            raise InputError(
                f"the loop has used more than {accumulation} batches for an optimizer step: give the Accelerator their "
                f"number (gradient_accumulation_steps), and call step after each optimizer step"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: numbers, strings and tensors."""
        return {
            "run": self._identity,
            "completed": self.completed,
            "epoch_began": self._epoch_began,
            "order": self._order.at_begin,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same run.

        Raises:
            InputError: it belongs to a run with other settings; the message names them.
        """
        check_same_run(state["run"], self._identity)
        self.completed, self._epoch_began = state["completed"], state["epoch_began"]
        self._order.at_begin = state["order"]
        self._resumed = self._loaded = True

    def _numbers(self) -> Iterator[int]:
        """Prepare for an iterator over the data that is about to begin, and yield the number of each of its batches.

        They are counted from the beginning of the epoch, whether batches are skipped or not.
        """
        ended = self.completed - self._epoch_began >= self._steps_per_epoch
        if self._resumed:
            self._order.restore(ended=ended)
        if not self._resumed or ended:
            self._epoch_began = self.completed
            self._order.begin()
        self._resumed = False
        self._drawn = 0
        first = self._epoch_began * self._plan.batches.accumulation
        while True:
            self._drawn += 1
            yield first + self._drawn - 1

    def _export(self, phase: Phase, model: Any) -> None:
        assert self._export_dir is not None
        sharded = self._accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        weights = self._accelerator.get_state_dict(model) if sharded else None  # collective: all processes take part
        if self._accelerator.is_main_process:
            folder = self._export_dir / folder_name(phase.version)
            facts = {**self._plan.facts_of(phase), "metrics": {}}
            record = VersionRecord(facts, None, time.monotonic() - self._started)
            plain = self._accelerator.unwrap_model(model, keep_torch_compile=False)
            export_version(folder, plain, self._collator.tokenizer, record, weights=weights)
            logger.info("step %d: exported %s", self.completed, folder)
        self._accelerator.wait_for_everyone()


class _Order:
    """The order of the rows, which a sampler draws for each epoch.

    Args:
        sampler: of single rows.

    Attributes:
        at_begin: what the order of the current epoch was drawn from: an epoch number, or the state of a generator.
    """

    def __init__(self, sampler: Any) -> None:
        self.at_begin: Any = None
        self._sampler = sampler
        self._epoch = 0
        self._by_epoch = isinstance(sampler, SeedableRandomSampler)
        if not self._by_epoch and getattr(sampler, "generator", 0) is None:
            # By default, each epoch draws a seed from the generator that dropout uses.
            sampler.generator = torch.Generator().manual_seed(torch.initial_seed())

    def begin(self) -> None:
        """Note what the order of an epoch that begins is drawn from."""
        if self._by_epoch:
            self.at_begin = self._epoch
            self._sampler.set_epoch(self._epoch)
            self._epoch += 1
        elif getattr(self._sampler, "generator", None) is not None:
            self.at_begin = self._sampler.generator.get_state()

    def restore(self, *, ended: bool) -> None:
        """Return to the epoch of a checkpoint, or to its end."""
        if self._by_epoch:
            self._epoch = self.at_begin + 1
            self._sampler.set_epoch(self.at_begin)
        elif self.at_begin is not None:
            self._sampler.generator.set_state(self.at_begin)
            if ended:
                for _ in self._sampler:  # draws the order of the epoch that has ended
                    pass


class _NumberedRows:
    """A data set that passes on the number of a batch with its rows."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        several = getattr(self._dataset, "__getitems__", None)
        rows = several(indices) if several else list(map(self._dataset.__getitem__, indices))
        return NumberedBatch(rows, indices.number) if isinstance(indices, NumberedBatch) else rows

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)


def _number_batches(loader: Any, numbers: Callable[[], Iterator[int]]) -> None:
    """Number the batches of a loader in the main process, wherever they are built and however some are skipped.

    `skip_first_batches` makes another loader, which shares only the data set, the sampler of batches and the collator.
    A DataLoader doesn't allow its data set to be replaced, nor is there a public way to extend its sampler.
    """
    kind = type(loader.batch_sampler)

    def iterate(self: Any) -> Iterator[NumberedBatch]:
        for number, indices in zip(numbers(), kind.__iter__(self), strict=False):
            yield NumberedBatch(indices, number)

    loader.batch_sampler.__class__ = type(kind.__name__, (kind,), {"__iter__": iterate})
    object.__setattr__(loader, "dataset", _NumberedRows(loader.dataset))


def _check_loader(accelerator: Accelerator, loader: Any, base: Any) -> None:
    """Raise if the loader's batches can't be followed."""
    collator = getattr(base, "collate_fn", None)
    if not isinstance(collator, BioptimusDataCollator):
        raise InputError(
            f"the training loader's collate_fn is a {type(collator).__name__}: give it a BioptimusDataCollator"
        )
    config = accelerator.dataloader_config
    if isinstance(base.dataset, IterableDataset) or base.batch_sampler is None:
        raise InputError("the rows of a streamed data set aren't numbered: load the training set as a whole")
    if isinstance(loader, DataLoaderDispatcher) or config.split_batches:
        raise InputError("with split_batches or dispatch_batches, rows aren't where the curriculum expects them")
    if not any(loader is prepared for prepared in accelerator._dataloaders):
        raise InputError("the training loader isn't prepared: create the CurriculumLoop after accelerator.prepare")
    if accelerator.gradient_accumulation_steps > 1 and not accelerator.gradient_state.sync_with_dataloader:
        raise InputError(
            "with sync_with_dataloader: false, an optimizer step may take batches of two epochs: leave it out",
            argument="gradient_accumulation_plugin",
        )
    if "labels" in base.dataset[0]:
        raise InputError("the training set has labels, so it would never be masked: remove that column")
