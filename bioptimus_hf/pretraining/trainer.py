"""The `Trainer` of a curriculum: validation, schedule, whole steps, progress, and what stops it."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from bisect import bisect_right
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import reduce
from datasets import Dataset, concatenate_datasets
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import IGNORED_LABEL, check_finite, save_tokenizer
from bioptimus_hf.pretraining.callback import CurriculumCallback, diverged_at
from bioptimus_hf.pretraining.curriculum import phase_ends
from bioptimus_hf.pretraining.masking import BioptimusDataCollator
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions

logger = logging.getLogger(__name__)


class PretrainingTrainer(Trainer):
    """`Trainer` for a curriculum: exact validation loss, whole tokenizers in checkpoints, whole steps only.

    Args:
        phases: the callback that takes it through the curriculum.
        restart_each_phase: whether the learning rate warms up and decays anew in each phase, instead of over the run.
        arguments: of `Trainer`.
    """

    def __init__(self, *, phases: CurriculumCallback, restart_each_phase: bool = False, **arguments: Any) -> None:
        self._on_term = _CheckpointOnTerm()
        super().__init__(callbacks=[phases, self._on_term], **arguments)
        self.lr_scheduler: Any
        if self.is_fsdp_enabled:
            self._prepare_to_be_sharded()
        self.phases = phases
        self.restart_each_phase = restart_each_phase
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self._tokens_of_step = rows * len(self.train_dataset[0]["input_ids"])
        self._timed = (0, 0.0)  # optimizer step and time (s) of the last line of the log
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(_Progress(phases, self._tokens_of_step))

    def _prepare_to_be_sharded(self) -> None:
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
            raise InputError(
                "FSDP is supported with fsdp_version: 2 and fsdp_cpu_ram_efficient_loading: false alone, as in "
                "scripts/accelerate/fsdp.yaml"
            )
        # accelerate puts the decoder into a group of its own with the embeddings, whose weight it shares. Its bias is
        # that of the head, in another group, which PyTorch does not allow; the model reads it from there alone.
        self.model.cls.predictions.decoder.register_parameter("bias", None)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train as the parent; SIGTERM does what it did before when this ends, in whatever way."""
        try:
            return super().train(*arguments, **options)
        finally:
            self._on_term.restore()

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Set the learning rate over the run, or over each phase by itself."""
        if self.lr_scheduler is not None or not self.restart_each_phase:
            return super().create_scheduler(num_training_steps, optimizer)
        ends = phase_ends(self.phases.curriculum, num_training_steps)
        factors = []
        for first, end in pairwise([0, *ends]):
            scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                torch.optim.SGD([torch.zeros(1)]),
                num_warmup_steps=self.args.get_warmup_steps(end - first),
                num_training_steps=end - first,
                scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
            )
            if not isinstance(scheduler, LambdaLR):
                raise InputError(
                    f"--lr_scheduler_type {self.args.lr_scheduler_type.value} cannot start anew in each phase"
                )
            factors.append(scheduler.lr_lambdas[0])

        def factor(step: int) -> float:
            number = min(bisect_right(ends, step), len(ends) - 1)
            return float(factors[number](step - [0, *ends][number]))

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add masking rate and speed to a line of the log; end a run that has diverged.

        Raises:
            InputError: the loss is infinite or not a number.
        """
        if "loss" in logs:
            step = self.state.global_step
            if not math.isfinite(logs["loss"]):
                raise InputError(f"the loss is {logs['loss']}. {diverged_at(step)}")
            before, then = self._timed
            self._timed = (step, time.monotonic())
            logs["rate"] = self.phases.collator.strategy_at(step - 1).rate
            if then:
                logs["tokens_per_second"] = round((step - before) * self._tokens_of_step / (self._timed[1] - then))
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the mean cross-entropy (nats) over the masked tokens of the validation set, on all processes."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        # The stock loop averages the means of batches, which hold different numbers of masked tokens.
        part = dataset.select(range(self.args.process_index, len(dataset), self.args.world_size))
        if len(part) * self.args.world_size < len(dataset):  # as many passes on each process, which FSDP asks for
            blank = {**dataset[0], "labels": [IGNORED_LABEL] * len(dataset[0]["labels"])}
            part = concatenate_datasets([part, Dataset.from_list([blank], features=part.features)])
        sums = loss_and_count(self.model, part, self.data_collator, batch_size=self.args.eval_batch_size)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device))
        loss, count = sums.tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / max(count, 1)}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        # Rows of whole optimizer steps: with a smaller last one in each epoch, it would matter how a step is cut.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        rows = self._tokens_of_step // len(dataset[0]["input_ids"])
        return RandomSampler(dataset, num_samples=len(dataset) - len(dataset) % rows)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        check_finite(model.named_parameters(), diverged_at(self.state.global_step))
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        save_tokenizer(self.processing_class, output_dir or self.args.output_dir)


class _CheckpointOnTerm(TrainerCallback):
    """Save a checkpoint at the end of the optimizer step, and stop, when the process is told to end (SIGTERM).

    The one of transformers (`enable_jit_checkpoint`) also stops between micro-batches, after which the numbers drawn
    for dropout are not those of the uninterrupted run.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        asked = self._asked
        if args.world_size > 1:  # the others may have been told a step earlier or later
            asked = bool(reduce(torch.tensor(int(asked), device=args.device), "sum").item())
        if asked:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _ask(self, *_: Any) -> None:
        logger.warning("told to end: a checkpoint is saved when this step is done")
        self._asked = True


class _Progress(ProgressCallback):
    """A bar with phase, tokens a second since this process began, and the time left."""

    def __init__(self, phases: CurriculumCallback, tokens_of_step: int) -> None:
        super().__init__()
        self._phases = phases
        self._tokens_of_step = tokens_of_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.current_step = self._first = state.global_step
        self._started = time.monotonic()
        if self.training_bar is not None:
            self.training_bar.unit = " steps"
            self.training_bar.initial = self.training_bar.n = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            speed = (state.global_step - self._first) * self._tokens_of_step / (time.monotonic() - self._started)
            self.training_bar.set_description(f"v{self._phases.phase_of(state.global_step).version}", refresh=False)
            self.training_bar.set_postfix_str(f"{speed:,.0f} tokens/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)


@torch.no_grad()
def loss_and_count(
    model: BertForMaskedPositions, dataset: Dataset, collator: BioptimusDataCollator, *, batch_size: int
) -> torch.Tensor:
    """Return the sum of the cross-entropies (nats) over the masked tokens of a masked data set, and their number.

    They are added up in float64 on the CPU, which Apple's GPUs do not have.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    # With a generator of its own, the loader draws nothing from the global one, which dropout draws from.
    generator = torch.Generator()
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collator, generator=generator):
        batch = {name: values.to(model.device) for name, values in batch.items()}
        sums += torch.stack([model(**batch, num_items_in_batch=1).loss, (batch["labels"] != IGNORED_LABEL).sum()]).cpu()
    model.train(training)
    return sums
