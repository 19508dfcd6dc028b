"""Training arguments of pre-training, and which of them shape the result."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import (
    TrainingArguments,
)

from bioptimus_hf.errors import InputError

# Arguments that say where and how often something is written, or on what hardware, not what is learned.
_HARMLESS = (
    "output_dir", "run_name", "logging_", "log_", "report_to", "save_", "eval_", "do_", "disable_tqdm", "push_to_hub",
    "dataloader_num_", "dataloader_pin_", "dataloader_persistent_", "dataloader_prefetch_", "hub_", "use_cpu",
    "project", "resume_from_checkpoint", "trackio_", "include_", "per_device_eval_",
)  # fmt: skip


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of a continued pre-training; every option of the `Trainer` is there.

    With `torch_compile` they set, as the stock ones do, variables of the environment that accelerate reads, and that
    stay set in this process.
    """

    output_dir: str = field(default="runs/default", metadata={"help": "Folder of the run"})
    seed: int = field(default=0, metadata={"help": "The same inputs, settings and seed give the same bytes"})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW"})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Blocks of max_length tokens a device"})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW, on all but biases and norms"})
    warmup_steps: float = field(default=0.06, metadata={"help": "Warm-up: steps, or below 1 their share of the run"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training text"})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log"})
    eval_strategy: str = field(default="steps", metadata={"help": "`no` leaves out all validation"})
    eval_steps: float | None = field(
        default=1000, metadata={"help": "Steps between two validations; the end of each phase is always validated"}
    )
    save_steps: float = field(default=500, metadata={"help": "Steps between two checkpoints to resume from"})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep"})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "The rows of an epoch that fill no optimizer step are left out in any case"}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is no number ends the run"})

    def __post_init__(self) -> None:
        # Without this the stock arguments refuse bf16 where there is no GPU, though the CPU may well have it.
        self.use_cpu: bool = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        if self.torch_compile:
            # Layer by layer, which share what is compiled: as fast as the whole, in a tenth of the time to compile.
            os.environ["ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"] = "true"


def shaping_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that differ from the stock ones and shape the weights, for `artifacts`."""
    stock = TrainingArguments(use_cpu=True).to_dict()
    launched: dict[str, Any] = {}  # what `accelerate launch` says in the environment, where no argument does
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no" and not (arguments.bf16 or arguments.fp16):
        launched["mixed_precision"] = precision
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        launched["sharded"] = True
    own = {name: value for name, value in arguments.to_dict().items() if value != stock.get(name)}
    return {
        **{name: value for name, value in own.items() if not name.startswith(_HARMLESS)},
        **launched,
        "world_size": arguments.world_size,
    }


def check_arguments(arguments: TrainingArguments) -> None:
    """Refuse arguments that this training cannot heed.

    Raises:
        InputError: there is one.
    """
    if arguments.label_smoothing_factor:
        raise InputError("--label_smoothing_factor: the loss of pre-training is computed without it; leave it out")
    if arguments.resume_from_checkpoint:
        raise InputError("--resume_from_checkpoint: a run goes on from its own last checkpoint by itself; leave it out")
    if arguments.save_only_model or arguments.save_strategy == "best":
        raise InputError("--save_only_model, --save_strategy best: a run could not go on from there; leave them out")
    if arguments.train_sampling_strategy != "random":
        raise InputError(
            f"--train_sampling_strategy {arguments.train_sampling_strategy}: blocks are drawn at random; leave it out"
        )
