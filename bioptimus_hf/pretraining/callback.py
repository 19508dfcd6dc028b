"""Take a Trainer through a curriculum and export a version at the end of each phase."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import IterableDataset
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from bioptimus_hf.artifacts import write_json
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import check_finite, save_masked_lm
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, Phase, follow_curriculum
from bioptimus_hf.pretraining.masking import BioptimusDataCollator

logger = logging.getLogger(__name__)


PHASE_FILE = "phase.json"


class Finished(InputError):
    """The checkpoint to go on from is that of a run's last step."""


class CurriculumCallback(TrainerCallback, ExportableState):
    """Take a `Trainer` through a curriculum, switching at exact optimizer steps, and export each phase's version.

    Where the training arguments ask for evaluation at all, the model is evaluated at the end of every phase too.

    Args:
        collator: the collator of the same `Trainer`.
        curriculum: phases in their order.
        export_dir: folder in which each phase's end writes `v<version>/`: weights, tokenizer and `phase.json`. None
            exports nothing.
        record: facts about the run that every `phase.json` is to keep.

    Raises:
        InputError: (when training begins) the curriculum does not fit the run; a checkpoint to go on from is of a run
            without it or with other phases, seeds, rows, steps, batches or processes, or of its last step (`Finished`);
            or a setting makes it impossible to tell which row stands where in the run, or to go on exactly.
    """

    def __init__(
        self,
        collator: BioptimusDataCollator,
        curriculum: Sequence[Phase] = BIOPTIMUS_CURRICULUM,
        *,
        export_dir: Path | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.collator = collator
        self.curriculum = tuple(curriculum)
        self.export_dir = export_dir
        self.record = dict(record or {})
        self.ends: dict[int, Phase] = {}  # the phase that ends with each step
        self._run: dict[str, Any] = {}
        self._to_export: Phase | None = None  # the phase that has ended and is not on disk yet
        self._evaluated: Any = None  # the evaluation set that was looked at last

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse what would make another callback out of a checkpoint, without a collator."""
        if args.restore_callback_states_from_checkpoint:
            raise InputError(
                "restore_callback_states_from_checkpoint makes callbacks anew, which leaves out their collator: leave "
                "it out"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lay the phases out over the steps of the run."""
        loader = kwargs.get("train_dataloader")
        streamed = isinstance(getattr(loader, "dataset", None), IterableDataset)
        scattered = args.world_size > 1 or args.dataloader_num_workers > 0
        config = args.accelerator_config
        if config.split_batches or config.dispatch_batches or (streamed and scattered):
            raise InputError(
                "split_batches, dispatch_batches, and a streamed data set on several processes or with worker "
                "processes, give each row to another place than the curriculum counts on: load the data set whole, or "
                "use one process, without workers"
            )
        if streamed and state.global_step:
            raise InputError(
                "a run on a streamed data set cannot go on from a checkpoint, since the Trainer does not know where in "
                "the stream it was: load the data set whole"
            )
        if args.auto_find_batch_size:
            raise InputError("auto_find_batch_size changes the batch, which the curriculum counts rows by: name one")
        if loader is not None and not streamed and "labels" in loader.dataset[0]:
            raise InputError("the training set has labels, and would be trained on as it is: leave them out")
        if state.global_step and (args.ignore_data_skip or args.save_only_model or not config.use_seedable_sampler):
            raise InputError(
                "ignore_data_skip, save_only_model and use_seedable_sampler: false leave out what it takes to go on "
                "from a checkpoint exactly: leave them out"
            )
        if loader is not None:
            # Every iterator draws a seed for its workers, from torch's own generator unless there is another. Dropout
            # draws from that too, and persistent workers are made once, others once an epoch.
            generator = torch.Generator().manual_seed(args.seed)
            getattr(loader, "base_dataloader", loader).generator = generator
        self._run = {
            "curriculum": [asdict(phase) for phase in self.curriculum],
            "seed": self.collator.seed,
            "seed of the Trainer": args.seed,
            "data_seed": args.data_seed,
            "number of rows": None if loader is None or streamed else len(loader.dataset),
            "max_steps": state.max_steps,
            "per_device_train_batch_size": args.train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "world_size": args.world_size,
            "save_only_model": args.save_only_model,
        }
        if state.global_step:  # it goes on from a checkpoint, which the Trainer has read
            before = state.stateful_callbacks.get(type(self).__name__)
            if not isinstance(before, dict):
                raise InputError("the checkpoint is of a run without a curriculum: begin one from its weights instead")
            self._check_same_run(before["attributes"]["_run"])
            if state.global_step >= state.max_steps:  # the Trainer would go on until the end of the epoch
                raise Finished(f"the checkpoint is that of the last step, {state.max_steps}: the run is finished")
        self.ends = follow_curriculum(
            self.collator,
            self.curriculum,
            steps=state.max_steps,
            batch_size=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index,
            world_size=args.world_size,
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, to be compared with the run that goes on from it."""
        return {"args": {}, "attributes": {"_run": self._run}}

    def _check_same_run(self, before: Mapping[str, Any]) -> None:
        changed = [
            f"{name} ({before.get(name)} then, {now} now)" for name, now in self._run.items() if before.get(name) != now
        ]
        if changed:
            raise InputError(
                f"the checkpoint is of a run with another {', '.join(changed)}: what follows would not continue it"
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the collator where the iterator that begins now stands in the run."""
        self.collator.begin(state.global_step * args.gradient_accumulation_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """At the end of a phase, ask for a line of the log and an evaluation; export at once where there is none."""
        if state.global_step in self.ends:
            self._to_export = self.ends[state.global_step]
            control.should_log = True
            control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"
            if not control.should_evaluate:
                self._export(state, kwargs["model"], metrics={})

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse an evaluation set that is not masked: the collator would mask it, and count its rows as training's."""
        dataset = getattr(kwargs.get("eval_dataloader"), "dataset", None)
        if dataset is None or dataset is self._evaluated:
            return
        self._evaluated = dataset
        first = next(iter(dataset), {"labels": ()}) if isinstance(dataset, IterableDataset) else dataset[0]
        if "labels" not in first:
            raise InputError("the evaluation set has no labels: mask it once, with bioptimus_hf.mask_once, beforehand")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Export the phase that has ended, with its validation loss."""
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
        """Say in the log history which phase's masks a training loss was measured on."""
        if self.ends and logs is not None and "loss" in logs and state.log_history:
            phase = self.phase_of(state.global_step)
            masking = self.collator.strategy_at(state.global_step - 1)
            state.log_history[-1] |= {"phase": phase.version, **asdict(masking)}

    def phase_of(self, step: int) -> Phase:
        """Return the phase of an optimizer step; steps count from 1, as in `global_step`."""
        return next(phase for end, phase in self.ends.items() if step <= end)

    def _export(self, state: TrainerState, model: PreTrainedModel, metrics: Mapping[str, float]) -> None:
        phase, self._to_export = self._to_export, None
        if phase is None or self.export_dir is None:
            return
        weights = _gathered(model)  # on all processes
        if not state.is_world_process_zero:
            return
        check_finite((weights or model.state_dict()).items(), diverged_at(state.global_step))
        folder = Path(self.export_dir) / f"v{phase.version}"
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_masked_lm(model, self.collator.tokenizer, partial, weights=weights)
        write_json(
            partial / PHASE_FILE,
            {
                **asdict(phase),
                "last_step": state.global_step,
                "steps": state.max_steps,
                "metrics": dict(metrics),
                "curriculum": [asdict(phase) | {"last_step": end} for end, phase in self.ends.items()],
                **self.record,
            },
        )
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        logger.info("step %d: exported %s", state.global_step, folder)


def _gathered(model: Any) -> dict[str, Any] | None:
    """Return the whole weights (on the first process) of a model that is sharded over processes; None of any other."""
    if not issubclass(type(model), FSDPModule):
        return None
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: values for name, values in weights.items() if name not in model.all_tied_weights_keys}


def diverged_at(step: int) -> str:
    """Return what to tell the user whose training has diverged."""
    return (
        f"Training diverged by step {step}: nothing was saved at this step; earlier checkpoints are intact. Try a "
        f"lower --learning_rate or more --warmup_steps"
    )
