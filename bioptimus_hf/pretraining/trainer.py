"""Define the Trainer of a curriculum: exact validation, whole steps, progress, checkpoints, and when it stops."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, reduce
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.models import IGNORED_LABEL, check_finite, evaluating, save_tokenizer
from bioptimus_hf.pretraining import checkpoints
from bioptimus_hf.pretraining.callback import CurriculumCallback
from bioptimus_hf.pretraining.masking import BioptimusDataCollator
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions
from bioptimus_hf.pretraining.training_progress import TrainingProgress
from bioptimus_hf.pretraining.versions import DIVERGED

logger = logging.getLogger(__name__)


class PretrainingTrainer(Trainer):
    """`Trainer` for a curriculum: exact validation loss, complete tokenizers in checkpoints, whole steps only.

    Args:
        phases: callback that takes the training through the curriculum.
        arguments: arguments of `Trainer`.
    """

    def __init__(self, *, phases: CurriculumCallback, **arguments: Any) -> None:
        self._on_term = _CheckpointOnTerm()
        super().__init__(callbacks=[phases, self._on_term], **arguments)
        if self.is_fsdp_enabled:
            self._prepare_for_fsdp()
        self.phases = phases
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self._tokens_per_step = rows * len(self.train_dataset[0]["input_ids"])
        self._last_log = (0, 0.0)  # optimizer step and time (s) of the last row of the log
        self._saving: list[str | None] = [None]  # name of the folder that checkpoints are written into
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(_Progress(phases, self._tokens_per_step))

    def _prepare_for_fsdp(self) -> None:
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
            raise InputError(
                "FSDP is supported only with fsdp_version: 2 and fsdp_cpu_ram_efficient_loading: false in the "
                "configuration of Accelerate"
            )
        # accelerate puts the decoder into one group with the embeddings, whose weight it shares. The decoder's bias is
        # also that of the head, which is in another group, and PyTorch allows no such sharing. The model reads the bias
        # only from the head.
        self.model.cls.predictions.decoder.register_parameter("bias", None)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train as the parent class does; afterwards, SIGTERM has its previous handler again."""
        try:
            return super().train(*arguments, **options)
        finally:
            self._on_term.restore()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the scheduler as the parent class does.

        Raises:
            InputError: the warm-up is as long as the run, which would never reach its learning rate.
        """
        if self.args.warmup_steps >= num_training_steps:
            raise InputError(
                f"{self.args.warmup_steps:g} steps are as many as the run has ({num_training_steps}), so the learning "
                f"rate would never reach its peak",
                argument="warmup_steps",
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add masking rate and speed to a row of the log.

        Raises:
            TrainingDiverged: the loss is NaN or infinite.
        """
        if "loss" in logs:
            step = self.state.global_step
            if not math.isfinite(logs["loss"]):
                raise TrainingDiverged(f"step {step}: the loss is {logs['loss']}: {DIVERGED}")
            step_before, time_before = self._last_log
            self._last_log = (step, time.monotonic())
            logs["rate"] = self.phases.masking_of(step).rate
            if time_before:
                tokens = (step - step_before) * self._tokens_per_step
                logs["tokens_per_second"] = round(tokens / (self._last_log[1] - time_before))
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the mean cross-entropy (nats) over the masked tokens of the validation set, on all processes."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        # The parent class averages the means of batches, which have different numbers of masked tokens.
        rows = dataset.select(range(self.args.process_index, len(dataset), self.args.world_size))
        if len(rows) * self.args.world_size < len(dataset):  # FSDP needs the same number of passes on each process
            blank = {**dataset[0], "labels": [IGNORED_LABEL] * len(dataset[0]["labels"])}
            rows = concatenate_datasets([rows, Dataset.from_list([blank], features=rows.features)])
        sums = loss_and_count(self.model, rows, self.data_collator, batch_size=self.args.eval_batch_size)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device))
        loss, count = sums.tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / max(count, 1)}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, **options: Any) -> None:
        """Save as the parent class does, with `vocab.txt`; called first when a checkpoint is saved.

        Raises:
            TrainingDiverged: weights contain NaN or infinity.
        """
        check_finite(self.model.named_parameters(), f"step {self.state.global_step}", DIVERGED, error=TrainingDiverged)
        super().save_model(output_dir, **options)
        if self.args.should_save:
            save_tokenizer(self.processing_class, output_dir or self.args.output_dir)

    # There are no public ways to write a checkpoint elsewhere first, to add a file of each process to it, and to load
    # it without a warning about tied weights, which it holds only once.

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [name for name in load_result.missing_keys if name not in self.model.all_tied_weights_keys]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        if (folder / f"checkpoint-{self.state.global_step}").is_dir():  # SIGTERM came in the last step of an epoch
            return
        if self._saving == [None]:  # all processes write into the same folder, which no other launch uses
            self._saving = [checkpoints.saving_folder(folder).name]
            if self.args.world_size > 1:
                broadcast_object_list(self._saving)
        saving = folder / str(*self._saving)
        self.args.output_dir = str(saving)
        checkpoint = saving / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            # The mean loss in the next row of the log begins before this checkpoint.
            running = {"loss": self._tr_loss.item(), "since": self._globalstep_last_logged}
            (checkpoint / self._running_loss).write_text(json.dumps(running), encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                ranks = 0 if self.args.save_on_each_node else self.args.world_size
                checkpoints.complete(checkpoint, folder, ranks=ranks, keep=self.args.save_total_limit)
        except BaseException:
            shutil.rmtree(saving, ignore_errors=True)  # the disk may be full
            raise
        finally:
            self.args.output_dir = str(folder)
        self.accelerator.wait_for_everyone()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            running = json.loads((Path(checkpoint) / self._running_loss).read_text(encoding="utf-8"))
            self._tr_loss.fill_(running["loss"])
            self._globalstep_last_logged = running["since"]

    @property
    def _running_loss(self) -> str:
        return f"running_loss_{self.args.process_index}.json"

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        # Only rows that fill whole optimizer steps: with a smaller last step in each epoch, results would depend on how
        # a step is divided into micro-batches. There is no public way to give the Trainer a sampler.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        rows = self._tokens_per_step // len(dataset[0]["input_ids"])
        return RandomSampler(dataset, num_samples=len(dataset) - len(dataset) % rows)


class _CheckpointOnTerm(TrainerCallback):
    """After SIGTERM, save a checkpoint at the end of the optimizer step, and stop.

    transformers has a similar callback (`enable_jit_checkpoint`), but it also stops between micro-batches, after which
    dropout draws other random numbers than in an uninterrupted run.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous_handler: Any = None

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._request)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        requested = self._requested
        if args.world_size > 1:  # the other processes may get the signal a step earlier or later
            requested = bool(reduce(torch.tensor(int(requested), device=args.device), "sum").item())
        if requested:
            control.should_save = control.should_training_stop = True

    def restore(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    def _request(self, *_: Any) -> None:
        logger.warning("SIGTERM: saving a checkpoint at the end of this step")
        self._requested = True


class _Progress(TrainingProgress):
    """A progress bar with the version in training, tokens per second in this session, and the time left."""

    def __init__(self, phases: CurriculumCallback, tokens_per_step: int) -> None:
        super().__init__()
        self._phases = phases
        self._tokens_per_step = tokens_per_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._first = state.global_step
        self._started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            speed = (state.global_step - self._first) * self._tokens_per_step / (time.monotonic() - self._started)
            if self._phases.plan is not None:
                version = self._phases.plan.phase_of(state.global_step).version
                self.training_bar.set_description(f"v{version}", refresh=False)
            self.training_bar.set_postfix_str(f"{speed:,.0f} tokens/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)


@torch.no_grad()
def loss_and_count(
    model: BertForMaskedPositions, dataset: Dataset, collator: BioptimusDataCollator, *, batch_size: int
) -> torch.Tensor:
    """Return the sum of the cross-entropies (nats) over the masked tokens of a data set, and their number.

    They are added up in float64 on the CPU, since Apple's GPUs don't support float64.

    Args:
        model: its training mode is restored.
        dataset: masked, from `mask_once`.
        collator: pads the rows.
        batch_size: rows per forward pass.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    # With its own generator, the loader draws nothing from the global one, which dropout uses.
    generator = torch.Generator()
    with evaluating(model):
        for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collator, generator=generator):
            batch = {name: values.to(model.device) for name, values in batch.items()}
            masked = (batch["labels"] != IGNORED_LABEL).sum()
            sums += torch.stack([model(**batch, num_items_in_batch=1).loss, masked]).cpu()
    return sums
