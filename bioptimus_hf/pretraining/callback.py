"""Take a Trainer through a curriculum, and export a version at the end of each phase."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import IterableDataset
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import evaluating
from bioptimus_hf.pretraining.curriculum import (
    BIOPTIMUS_CURRICULUM,
    Phase,
    PhasePlan,
    check_same_run,
    evaluation_masking,
)
from bioptimus_hf.pretraining.masking import BatchLayout, BioptimusDataCollator, MaskingStrategy
from bioptimus_hf.pretraining.versions import (
    Provenance,
    VersionRecord,
    check_exportable,
    check_replaceable,
    export_version,
    folder_name,
    whole_weights,
)

logger = logging.getLogger(__name__)


class RunAlreadyFinished(InputError):
    """The checkpoint to resume from is that of the last step of a run."""


@check_call()
class CurriculumCallback(TrainerCallback, ExportableState):
    """Take a `Trainer` through a curriculum, switching phases at exact optimizer steps, and export each version.

    If the training arguments ask for evaluation at all, the model is also evaluated at the end of every phase. Of
    several evaluation sets, the record of a version has the metrics of the first.

    Args:
        collator: the collator of the same `Trainer`.
        curriculum: phases in order.
        export_dir: folder in which the end of each phase creates `v<version>/`: weights, tokenizer and a record. None
            exports nothing.
        provenance: what the run is made from, for the records; by default, they don't say it.

    Attributes:
        plan: the curriculum laid out over the run. None until training begins.

    Raises:
        InputError: (when training begins) the curriculum doesn't fit the run; the checkpoint to resume from belongs to
            a run without a curriculum or with other phases, seeds, rows, steps, batches or processes, or is that of
            the last step (`RunAlreadyFinished`); or a setting makes it impossible to know the position of each row in
            the run, or to resume exactly.
    """

    def __init__(
        self,
        collator: BioptimusDataCollator,
        curriculum: Sequence[Phase] = BIOPTIMUS_CURRICULUM,
        *,
        export_dir: Path | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        self.collator = collator
        self.curriculum = tuple(curriculum)
        self.export_dir = export_dir
        self.provenance = provenance
        self.plan: PhasePlan | None = None
        self._run: dict[str, Any] = {}  # what must not change when the run is resumed
        self._started = 0.0
        self._to_export: Phase | None = None  # the phase that has ended and isn't exported yet
        self._planned: BioptimusDataCollator | None = None  # of the training set
        self._multiplied = False  # whether losses are too large

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the collator for evaluation, and reject a setting that would recreate this callback without it."""
        self._prepare(args)

    def _prepare(self, args: TrainingArguments) -> None:
        if args.restore_callback_states_from_checkpoint:
            raise InputError(
                "would recreate the callback of the curriculum without its collator: leave it out",
                argument="restore_callback_states_from_checkpoint",
            )
        self.collator.for_evaluation(evaluation_masking(self.curriculum))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lay the phases out over the steps of the run."""
        loader = kwargs.get("train_dataloader")
        streamed = isinstance(getattr(loader, "dataset", None), IterableDataset)
        _check_data(args, loader, streamed=streamed)
        if state.global_step or args.save_strategy != "no":
            _check_resumable(args, loader)
        if state.global_step and streamed:
            raise InputError(
                "a run on a streamed data set can't be resumed, since the Trainer doesn't know where in the stream it "
                "was: load the data set as a whole"
            )
        self._prepare(args)  # a callback that is added later isn't told of the beginning
        if self.export_dir is not None:
            check_exportable(kwargs.get("model"))
            if args.process_index == 0:
                check_replaceable(Path(self.export_dir) / folder_name(phase.version) for phase in self.curriculum)
        planned = self._take_over(loader)
        self._multiplied = _multiplies_loss(args, kwargs.get("model"))
        if loader is not None:
            # Every iterator over the data draws a seed for its workers, by default from torch's global generator, as
            # dropout does. Persistent workers are created once, others once per epoch.
            generator = torch.Generator().manual_seed(args.seed)
            getattr(loader, "base_dataloader", loader).generator = generator
        plan = PhasePlan(
            planned,
            self.curriculum,
            state.max_steps,
            BatchLayout(args.train_batch_size, args.gradient_accumulation_steps, args.process_index, args.world_size),
        )
        self._run = {
            **plan.identity(),
            "seed of the Trainer": args.seed,
            "data_seed": args.data_seed,
            "number of rows": None if loader is None or streamed else len(loader.dataset),
            "save_only_model": args.save_only_model,
        }
        if state.global_step:  # resumed from a checkpoint, which the Trainer has loaded
            before = state.stateful_callbacks.get(type(self).__name__)
            if not isinstance(before, dict):
                raise InputError("the checkpoint belongs to a run without a curriculum: start a new run from its model")
            check_same_run(before["attributes"]["_run"], self._run)
            if state.global_step >= state.max_steps:  # the Trainer would train until the end of the epoch
                raise RunAlreadyFinished(
                    f"the checkpoint is that of the last step, {state.max_steps}: the run is finished"
                )
        self.plan = plan
        self._started = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, for the comparison with a run that resumes from it."""
        return {"args": {}, "attributes": {"_run": self._run}}

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the collator where in the run the iterator begins."""
        if self.plan is not None:
            self.plan.begin(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """At the end of a phase, request a log row and an evaluation; without evaluation, export at once."""
        if self.plan is not None and state.global_step in self.plan.ends:
            self._to_export = self.plan.ends[state.global_step]
            control.should_log = True
            control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"
            if not control.should_evaluate:
                self._export(state, kwargs["model"], metrics={})

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Export the version of a phase that has ended, with its validation loss."""
        if self._to_export is not None:
            self._export(state, kwargs["model"], kwargs["metrics"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add to each training loss in the log history the phase and the masking it was measured with."""
        if self.plan is not None and logs is not None and "loss" in logs and state.log_history:
            phase, masking = self.plan.phase_of(state.global_step), self.plan.masking_of(state.global_step)
            state.log_history[-1] |= {"phase": phase.version, **asdict(masking)}

    def masking_of(self, step: int) -> MaskingStrategy:
        """Return the masking of an optimizer step of a training that has begun, counted from 1."""
        assert self.plan is not None
        return self.plan.masking_of(step)

    def _take_over(self, loader: Any) -> BioptimusDataCollator:
        """Give the training set a collator of its own, which follows the curriculum.

        Raises:
            InputError: the Trainer has another collator than this callback.
        """
        planned = self.collator.unplanned_copy()
        if loader is None:
            return planned
        base = getattr(loader, "base_dataloader", loader)
        wrapper = base if isinstance(base.collate_fn, BioptimusDataCollator) else base.collate_fn
        name = "collate_fn" if wrapper is base else "data_collator"  # of the Trainer's wrapper that removes columns
        found = getattr(wrapper, name, wrapper)
        if found is not self.collator and found is not self._planned:
            kind = "another BioptimusDataCollator" if type(found) is type(planned) else f"a {type(found).__name__}"
            raise InputError(
                f"the Trainer's data_collator is {kind}, so the curriculum wouldn't reach its batches: give the same "
                f"object to the Trainer and to the CurriculumCallback"
            )
        setattr(wrapper, name, planned)
        self._planned = planned
        return planned

    def _export(self, state: TrainerState, model: PreTrainedModel, metrics: Mapping[str, float]) -> None:
        phase, self._to_export = self._to_export, None
        if phase is None or self.plan is None or self.export_dir is None:
            return
        weights = whole_weights(model)  # collective: all processes take part
        if not state.is_world_process_zero:
            return
        folder = Path(self.export_dir) / folder_name(phase.version)
        sound = {name: value for name, value in metrics.items() if not (self._multiplied and name.endswith("loss"))}
        facts = {**self.plan.facts_of(phase), "metrics": sound}
        record = VersionRecord(facts, self.provenance, time.monotonic() - self._started)
        export_version(folder, model, self.collator.tokenizer, record, weights=weights)
        logger.info("step %d: exported %s", state.global_step, folder)


def _check_data(args: TrainingArguments, loader: Any, *, streamed: bool) -> None:
    """Reject settings that make it impossible to know the position of each row in the run."""
    config = args.accelerator_config
    scattered = args.world_size > 1 or args.dataloader_num_workers > 0
    if config.split_batches or config.dispatch_batches or (streamed and scattered):
        raise InputError(
            "with split_batches, dispatch_batches, or a streamed data set on several processes or worker processes, "
            "rows are not where the curriculum expects them: load the data set as a whole, or use one process without "
            "workers"
        )
    if not getattr(args, "dataloader_in_order", True) and args.dataloader_num_workers > 0:
        raise InputError("the curriculum counts batches in order: leave it out", argument="dataloader_in_order")
    if args.auto_find_batch_size:
        raise InputError(
            "changes the batch size, by which the curriculum counts rows: set per_device_train_batch_size",
            argument="auto_find_batch_size",
        )
    if loader is not None and not streamed and "labels" in loader.dataset[0]:
        raise InputError("the training set has labels, so it would never be masked: remove that column")


def _multiplies_loss(args: TrainingArguments, model: Any) -> bool:
    """Return whether the Trainer's losses are too large, with a warning: if the model ignores `num_items_in_batch`.

    The Trainer passes it to every model that takes arguments by name, and counts on a sum divided by it: it multiplies
    by the number of processes and doesn't divide by the accumulation steps (transformers 5.24).
    """
    factor = args.world_size * args.gradient_accumulation_steps
    if factor == 1 or model is None:
        return False
    device = next(model.parameters()).device
    ids = torch.zeros((1, 8), dtype=torch.int64, device=device)
    try:
        with torch.no_grad(), evaluating(model):
            losses = [model(input_ids=ids, labels=ids, num_items_in_batch=count).loss for count in (1, 2)]
        ignored = bool(losses[0] == losses[1])
    except (TypeError, AttributeError):  # it takes no such argument, and the Trainer knows
        ignored = False
    if ignored:
        logger.warning(
            "%s ignores num_items_in_batch, so the Trainer's losses are up to %d times too large, and they aren't "
            "recorded: use BertForMaskedPositions",
            type(model).__name__,
            factor,
        )
    return ignored


def _check_resumable(args: TrainingArguments, loader: Any) -> None:
    """Reject settings with which a run couldn't be resumed exactly."""
    if args.ignore_data_skip or args.save_only_model or not args.accelerator_config.use_seedable_sampler:
        raise InputError(
            "with ignore_data_skip, save_only_model or use_seedable_sampler: false, a run can't be resumed exactly: "
            'leave them out, or save no checkpoints (save_strategy="no")'
        )
    sampler = innermost_sampler(loader)
    if getattr(sampler, "generator", sampler) is None and not isinstance(sampler, SeedableRandomSampler):
        raise InputError(
            f"{type(sampler).__name__} draws the order of rows from the global random numbers, so a run can't be "
            f'resumed exactly: give it a generator, or save no checkpoints (save_strategy="no")'
        )


def innermost_sampler(loader: Any) -> Any:
    """Return what chooses the rows, inside of what groups and distributes them."""
    found, inner = None, loader
    while inner is not None:
        found, inner = inner, getattr(inner, "batch_sampler", None)
        if inner is None:
            inner = getattr(found, "sampler", None)
    return found
