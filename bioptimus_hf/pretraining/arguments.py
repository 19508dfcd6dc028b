"""Define the training arguments of pre-training and classify every option of `TrainingArguments`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers.training_args import TrainingArguments

from bioptimus_hf.errors import InputError

# Every option of `TrainingArguments` is in exactly one of SHAPING, HARMLESS and REJECTED. A test fails when a new
# version of transformers adds an option that isn't.

SHAPING = frozenset(
    {
        # How much is trained, in which batches
        "per_device_train_batch_size", "gradient_accumulation_steps", "average_tokens_across_devices",
        "num_train_epochs", "max_steps",
        # Optimizer and learning rate
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
        "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
        # Randomness
        "seed", "data_seed", "full_determinism", "neftune_noise_alpha",
        # Precision, and what changes the rounding
        "bf16", "fp16", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
        "torch_compile_mode",
        # Several processes
        "accelerator_config", "ddp_backend", "ddp_bucket_cap_mb", "fsdp", "fsdp_config",
    }
)  # fmt: skip
"""Options that work and shape the weights: they are part of a run's fingerprint."""

HARMLESS = frozenset(
    {
        # Where the run is, and what it is called
        "output_dir", "run_name", "project",
        # Logging
        "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level",
        "log_level_replica", "log_on_each_node", "include_num_input_tokens_seen", "disable_tqdm", "report_to",
        "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics", "debug",
        # Validation, which draws no random numbers; the model is always validated before the first step
        "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size",
        # Checkpoints
        "save_strategy", "save_steps", "save_total_limit", "save_on_each_node",
        # Data loading; rows that don't fill an optimizer step are always left out (`dataloader_drop_last`)
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_drop_last",
        "remove_unused_columns",
        # Hardware and launchers
        "use_cpu", "local_rank", "torch_empty_cache_steps", "ddp_find_unused_parameters", "ddp_broadcast_buffers",
        "ddp_static_graph", "ddp_timeout",
        # Flags for scripts that choose what to run, which the Trainer doesn't read
        "do_train", "do_eval", "do_predict",
    }
)  # fmt: skip
"""Options that work, or name what happens anyway, and don't shape the weights."""

_ONLY_LOSS = "validation measures only the loss, on the masked positions"
_BY_PUBLISH = "nothing is uploaded during training; publish the finished versions with `publish`"
_EVERY_PHASE = "there is no best model to choose: the model at the end of each phase is exported"
_AT_RANDOM = "blocks are always drawn at random"

REJECTED = {
    "label_smoothing_factor": "the loss of pre-training has no label smoothing",
    "resume_from_checkpoint": "a run resumes from the last checkpoint in its own folder without being told",
    "restore_callback_states_from_checkpoint": "it would recreate the curriculum's callback without its collator",
    "ignore_data_skip": "a resumed run would train on the same blocks again",
    "save_only_model": "a run can't be resumed from such checkpoints",
    "load_best_model_at_end": _EVERY_PHASE,
    "metric_for_best_model": _EVERY_PHASE,
    "greater_is_better": _EVERY_PHASE,
    "enable_jit_checkpoint": "SIGTERM always saves a checkpoint, at the end of the optimizer step",
    "auto_find_batch_size": "the curriculum counts rows by the batch size: set per_device_train_batch_size",
    "train_sampling_strategy": _AT_RANDOM,
    "length_column_name": _AT_RANDOM,
    "dataloader_in_order": "the curriculum counts batches in order",
    "label_names": "the collator makes the labels",
    "bf16_full_eval": "validation runs in the precision of training",
    "fp16_full_eval": "validation runs in the precision of training",
    "eval_accumulation_steps": _ONLY_LOSS,
    "eval_do_concat_batches": _ONLY_LOSS,
    "eval_use_gather_object": _ONLY_LOSS,
    "batch_eval_metrics": _ONLY_LOSS,
    "prediction_loss_only": _ONLY_LOSS,
    "include_for_metrics": _ONLY_LOSS,
    "use_cache": "a masked language model keeps no cache",
    "use_liger_kernel": "Liger has no kernels for BERT",
    "liger_kernel_config": "Liger has no kernels for BERT",
    "deepspeed": "weights are exported from replicated models and from FSDP 2 only: use FSDP",
    "parallelism_config": "the curriculum counts rows of data-parallel processes only",
    "push_to_hub": _BY_PUBLISH,
    "hub_token": _BY_PUBLISH,
    "hub_private_repo": _BY_PUBLISH,
    "hub_model_id": _BY_PUBLISH,
    "hub_strategy": _BY_PUBLISH,
    "hub_always_push": _BY_PUBLISH,
    "hub_revision": _BY_PUBLISH,
}
"""Options that pre-training can't respect, and why. Only the default of `TrainingArguments` is accepted."""

_BY_VALIDATION = "the result would depend on how often the model is validated; choose a schedule over steps"

REJECTED_VALUES = {
    ("save_strategy", "best"): "a run couldn't be resumed from the step at which it stopped",
    ("lr_scheduler_type", "reduce_lr_on_plateau"): _BY_VALIDATION,
    ("lr_scheduler_type", "greedy"): _BY_VALIDATION,
}
"""Single values that are rejected, of options that work otherwise."""

_Allowed = Callable[[float], bool]

# None leaves an option out. NaN and infinity are in no range.
_RANGES: dict[str, tuple[_Allowed, frozenset[str]]] = {
    "a whole number from 1 on": (
        lambda value: value >= 1 and value == int(value),
        frozenset(
            {
                "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
                "save_total_limit", "torch_empty_cache_steps", "dataloader_prefetch_factor", "ddp_bucket_cap_mb",
                "ddp_timeout",
            }
        ),
    ),
    "above 0": (lambda value: value > 0, frozenset({"learning_rate", "adam_epsilon", "num_train_epochs"})),
    "at least 0": (
        lambda value: value >= 0,
        frozenset({"weight_decay", "max_grad_norm", "warmup_steps", "eval_delay", "neftune_noise_alpha"}),
    ),
    "at least 0 and below 1": (lambda value: 0 <= value < 1, frozenset({"adam_beta1", "adam_beta2"})),
    "a whole number from 0 on": (
        lambda value: value >= 0 and value == int(value),
        frozenset({"dataloader_num_workers"}),
    ),
    "a whole number of steps or, below 1, a share of the run above 0": (
        lambda value: 0 < value < 1 or (value >= 1 and value == int(value)),
        frozenset({"logging_steps", "save_steps", "eval_steps"}),
    ),
    "a whole number from 1 on, or -1 to train by epochs": (
        lambda value: value == -1 or (value >= 1 and value == int(value)),
        frozenset({"max_steps"}),
    ),
    "a whole number from 0 to 4294967295": (
        lambda value: 0 <= value < 2**32 and value == int(value),
        frozenset({"seed", "data_seed"}),
    ),
}  # fmt: skip
"""Sensible ranges of numbers, with the options that must be in them."""


@dataclass
class PretrainingArguments(TrainingArguments):
    """Options of the Trainer, with the defaults of continued pre-training.

    Raises:
        InputError: an option is set that pre-training can't respect (see `REJECTED`).
    """

    # What --help shows; all others work by name too, and --help_all shows them.
    SHOWN_OPTIONS = frozenset(
        {
            "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
            "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "bf16", "torch_compile",
            "eval_strategy", "eval_steps", "save_steps", "save_total_limit", "logging_steps", "report_to",
            "dataloader_num_workers", "dataloader_persistent_workers", "full_determinism",
        }
    )  # fmt: skip

    output_dir: str = field(default="runs/default", metadata={"help": "Folder of the run"})
    seed: int = field(default=0, metadata={"help": "Seed: the same inputs, settings and seed give the same bytes"})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW"})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Blocks per device and micro-batch, each of max_length tokens"}
    )
    weight_decay: float = field(
        default=0.01, metadata={"help": "Weight decay for AdamW, applied to all weights but biases and layer norms"}
    )
    warmup_steps: float = field(
        default=0.06, metadata={"help": "Warm-up of the learning rate: steps or, below 1, a share of the run"}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training text"})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two rows of the log"})
    eval_strategy: str = field(default="steps", metadata={"help": "When to validate; `no` disables validation"})
    eval_steps: float | None = field(
        default=1000, metadata={"help": "Steps between two validations, besides the one at the end of each phase"}
    )
    save_steps: float = field(default=500, metadata={"help": "Steps between two checkpoints"})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep; the older ones are for when the newest is damaged"}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are NaN or infinite, instead of stopping the run"}
    )

    def __post_init__(self) -> None:
        check_arguments(self)
        # Otherwise the parent rejects bf16 on machines without a GPU, although many CPUs support it.
        self.use_cpu: bool = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        check_arguments(self)  # again: what was given as JSON has been read


def check_arguments(arguments: TrainingArguments) -> None:
    """Reject arguments that pre-training can't respect, and numbers that are out of range.

    Raises:
        InputError: an argument is set that is in `REJECTED` or `REJECTED_VALUES`, or is out of range; the message gives
            the reason.
    """
    defaults = {
        option.name: option.default if option.default_factory is MISSING else option.default_factory()
        for option in fields(TrainingArguments)
    }
    for name, reason in REJECTED.items():
        if name in defaults and getattr(arguments, name) != defaults[name]:
            raise InputError(f"not supported, because {reason}", argument=name)
    for (name, value), reason in REJECTED_VALUES.items():
        if getattr(arguments, name) == value:
            raise InputError(f"{value} is not supported, because {reason}", argument=name)
    for wanted, (allowed, names) in _RANGES.items():
        for option in sorted(names):
            given = getattr(arguments, option, None)
            if given is None:
                continue
            if not isinstance(given, int | float) or not math.isfinite(given) or not allowed(given):
                raise InputError(f"must be {wanted}, not {given}", argument=option)
    if getattr(arguments.accelerator_config, "use_seedable_sampler", True) is False:
        raise InputError(
            "not supported with use_seedable_sampler: false, because the run couldn't be resumed exactly",
            argument="accelerator_config",
        )
    if getattr(arguments, "deepspeed_plugin", None):  # asked for by `accelerate launch`, without an argument
        raise InputError(f"not supported, because {REJECTED['deepspeed']}", argument="deepspeed")
    _check_reports(arguments)


def _check_reports(arguments: TrainingArguments) -> None:
    # Here: it would import most of transformers before any help is shown.
    from transformers.integrations import get_available_reporting_integrations

    reports = [arguments.report_to] if isinstance(arguments.report_to, str) else arguments.report_to or []
    available = ["none", "all", *get_available_reporting_integrations()]
    for name in reports:  # the Trainer would find out after the text has been tokenised
        if name not in available:
            raise InputError(f"{name} is not installed; there is {', '.join(available)}", argument="report_to")


def shaping_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that shape the weights and aren't the defaults of transformers, for `artifacts`.

    An option that is unknown here, because transformers is newer, counts as shaping.
    """
    stock = TrainingArguments(use_cpu=True).to_dict()
    launched: dict[str, Any] = {}  # what `accelerate launch` passes in the environment instead of as an argument
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no" and not (arguments.bf16 or arguments.fp16):
        launched["mixed_precision"] = precision
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        launched["sharded"] = True
    return {
        **{
            name: value
            for name, value in arguments.to_dict().items()
            if name not in HARMLESS and name not in REJECTED and value != stock.get(name)
        },
        **launched,
        "world_size": arguments.world_size,
    }
