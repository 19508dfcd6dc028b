"""Define the options for training NER heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import PurePath
from typing import Any, Literal, get_args

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError

Context = Literal["sentence", "document"]
_WINDOWS: dict[Context, int] = {"sentence": 512, "document": 128}
JOINT = "joint"
"""Folder of the joint heads, in place of that of a task. `joint/` before the label of a model, which can't contain a
slash, is the label of its joint head.
"""
GRID = ("learning_rate", "per_device_train_batch_size")
"""Arguments of `HeadTraining` that can have several values to choose from."""


@check_call()
@dataclass(frozen=True)
class HeadOptions:
    """Tasks, models and seeds."""

    ner_data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that contains the folders or files of the tasks; or the files, or the file, of a single "
            "task; or a data set on the Hub",
            "path": True,
        },
    )
    tasks: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": "BLURB tasks (bc5-chem, bc5-disease, ncbi-disease, bc2gm, jnlpba, or all for these five), "
            "jnlpba-types, or tasks of your own. The files of a task NAME are NER_DATA/NAME/{train,dev,test}.tsv or "
            "NER_DATA/{train,dev,test}.tsv, also in other formats with annotations (BioC, PubTator, brat, JSON lines, "
            "Parquet), or a file or folder NER_DATA/NAME of annotated documents, which is split by document; its "
            "entity types are those in the files. NAME=SOURCE reads another file or folder, or a data set on the Hub "
            "(owner/name or owner/name@revision); a file such as labels.jsonl is the task labels; FILE.yaml "
            "describes a task (see NerTask)",
            "path": True,
        },
    )
    models: list[str] = field(
        default_factory=lambda: ["base", "v0.4"],
        metadata={
            "help": "Encoders to fine-tune; the others are compared with the first one. base is the model that the run "
            "adapts, v0.4 is OUTPUT_DIR/v0.4; otherwise a folder or a name on the Hub (name@revision). LABEL=MODEL "
            "sets the name in the results",
            "path": True,
        },
    )
    references: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Models that all others are compared with, by their names in the results; they may be of an "
            "earlier command (default: the first of the models)"
        },
    )
    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or name on the Hub of the model that base stands for; default: the one recorded in the run",
            "path": True,
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [3],
        metadata={
            "help": "A single number is how many seeds to use: 5 means the seeds 0 to 4, or SEED to SEED + 4. Two or "
            "more numbers are the seeds themselves"
        },
    )
    joint: bool = field(
        default=False,
        metadata={
            "help": "Train one head with the types of all tasks (OUTPUT_DIR/ner/joint/MODEL/SEED) instead of one head "
            "for each task. A sentence only counts for the types that its task annotates"
        },
    )
    cross_test: list[str] = field(
        default_factory=list,
        metadata={
            "help": "TASK:OTHER also scores the heads of TASK on the test set of OTHER, on the entity types that both "
            "have. OTHER is given like a task. all: every pair of the tasks that share a type",
            "path": True,
        },
    )
    context: Context = field(
        default="sentence",
        metadata={
            "help": "What a head reads to label a sentence. sentence: this sentence alone; document: also whole "
            "neighbouring sentences on both sides, as many as fit into a window. Annotation reads text in the same "
            "way. Sentences of files that don't mark documents count as one document"
        },
    )
    at_once: int | None = field(
        default=None,
        metadata={
            "help": "Heads to train at the same time on a CPU, each with its share of the threads. Default: as many as "
            "there are threads, if memory suffices and the trainings aren't tiny"
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Word pieces in a window; longer sentences are split into overlapping windows. Default: "
            f"{_WINDOWS['sentence']}, or {_WINDOWS['document']} with context document, about four sentences"
        },
    )

    def __post_init__(self) -> None:
        for name in ("tasks", "models", "seeds"):
            if not getattr(self, name):
                raise InputError("name at least one", argument=name)
        _check_distinct("references", self.references)
        for given in self.tasks:
            if given.startswith("=") or given.endswith("="):
                raise InputError(
                    f"{given}: expected NAME=SOURCE, with a folder or a data set on the Hub", argument="tasks"
                )
        labels: dict[str, str] = {}
        for given in self.models:
            label, model = split_label(given)
            if not label or not model or any(character in label for character in "/|`"):
                raise InputError(f"{given}: expected a folder, a name on the Hub, or LABEL=MODEL", argument="models")
            if label in labels:
                raise InputError(
                    f"{labels[label]} and {model} are both called {label}: use LABEL=MODEL", argument="models"
                )
            labels[label] = model
        if len(self.seeds) == 1 and self.seeds[0] < 1:
            raise InputError(
                f"{self.seeds[0]}: a single number is how many seeds to use (1: one seed); to choose them, give two or "
                f"more",
                argument="seeds",
            )
        _check_distinct("seeds", self.seeds, ". For a single seed of your choice, set seed, and seeds to 1")
        if min(self.seeds) < 0:
            raise InputError(f"{min(self.seeds)}: seeds can't be negative", argument="seeds")
        if max(self.seeds) >= 2**32:
            raise InputError(f"{max(self.seeds)}: seeds can't be above {2**32 - 1}", argument="seeds")
        for given in self.cross_test:
            if given != "all" and not all(given.partition(":")):
                raise InputError(f"{given}: expected TASK:OTHER, or all", argument="cross_test")
        if self.joint and self.cross_test:
            raise InputError("only scores heads of single tasks: leave it out, or joint", argument="cross_test")
        check_context(self.context)
        if self.at_once is not None and self.at_once < 1:
            raise InputError(f"must be at least 1, not {self.at_once}", argument="at_once")
        if self.joint and self.context == "document":
            raise InputError("joint heads are trained on sentences: leave out context or joint", argument="context")
        if self.max_length is not None and self.max_length < 3:
            raise InputError(
                f"{self.max_length} leaves no room for a word besides [CLS] and [SEP]", argument="max_length"
            )

    @property
    def window(self) -> int:
        """Word pieces in a window."""
        return self.max_length or _WINDOWS[self.context]

    def seeds_from(self, first: int) -> list[int]:
        """Return the seeds themselves, or as many as the single number says, counted from `first`."""
        if len(self.seeds) > 1:
            return self.seeds
        return list(range(first, first + self.seeds[0]))


@check_call()
@dataclass(frozen=True)
class HeadTraining:
    """Training; named as in transformers.TrainingArguments.

    Several learning rates or batch sizes are a grid, from which the development set chooses (see `make_heads`).
    """

    learning_rate: float | list[float] = field(
        default=5e-5,
        metadata={
            "help": "Peak learning rate; decays linearly to 0. Several values: for each task and model, the one with "
            "the best F1 on the development set is chosen"
        },
    )
    per_device_train_batch_size: int | list[int] = field(
        default=16, metadata={"help": "Windows in a batch. Several values: the best one is chosen, too"}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches in an update"})
    num_train_epochs: int = field(
        default=10, metadata={"help": "Epochs; the one with the best F1 on the development set is kept"}
    )
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1, their share of all steps"})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay for AdamW"})
    bf16: bool = field(
        default=False, metadata={"help": "Train in bfloat16 mixed precision; evaluation stays in float32"}
    )

    def __post_init__(self) -> None:
        for name in GRID:
            value = getattr(self, name)
            if isinstance(value, list):
                if not value:
                    raise InputError("name at least one", argument=name)
                _check_distinct(name, value)
                object.__setattr__(self, name, value[0] if len(value) == 1 else value)
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"):
            for value in _values(getattr(self, name)):
                if not 1 <= value < math.inf:
                    raise InputError(f"must be at least 1, not {value}", argument=name)
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"must be a number from 0 on, not {getattr(self, name)}", argument=name)
        for value in _values(self.learning_rate):
            if not 0 < value < math.inf:
                raise InputError(f"must be a number above 0, not {value}", argument="learning_rate")

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The values to choose from, for each argument that has several; empty if all settings are fixed."""
        return {name: value for name in GRID if isinstance(value := getattr(self, name), list)}

    def candidates(self) -> list[HeadTraining]:
        """Return the fixed settings that the grid consists of, in its order; without a grid, these settings alone."""
        names = list(self.grid)
        return [replace(self, **dict(zip(names, values, strict=True))) for values in product(*self.grid.values())]


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_distinct(name: str, values: Sequence[Any], advice: str = "") -> None:
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{value} is given twice: name each value once{advice}", argument=name)


def check_context(context: str) -> None:
    """Raise if a context is unknown.

    Raises:
        InputError: it is.
    """
    if context not in get_args(Context):
        raise InputError(f"must be {' or '.join(get_args(Context))}, not {context!r}", argument="context")


def split_label(given: str) -> tuple[str, str]:
    """Split LABEL=MODEL; without a label, the last part of the model's path or name is the label."""
    label, equals, model = given.partition("=")
    return (label, model) if equals else (PurePath(given).name, given)
