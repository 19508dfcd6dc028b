"""Define the options of annotation, of the ONNX export and of the web page."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, get_args

from bioptimus_hf.annotation.labels import check_score, read_renames
from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.formats import READABLE, WRITABLE
from bioptimus_hf.corpus.options import TEXT_COLUMN_HELP, UNIT_HELP
from bioptimus_hf.corpus.reading import MAX_DOCUMENT_MEGABYTES, ReadOptions
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.options import Context, check_context

EngineName = Literal["torch", "onnx", "openvino"]
EngineOption = Literal["torch", "onnx", "openvino", "auto"]
Precision = Literal["exact", "fast"]
MinimumScore = float | Literal["best"]
Weights = Literal["int8", "fp32"]
"""Precisions of ONNX files."""
MODELS_VARIABLE = "BIOPTIMUS_MODELS"
"""Environment variable with the models of the web page, separated by whitespace."""

LABELS_HELP = (
    "Types to keep, such as Chemical Disease; and FOUND=WANTED pairs that say what labels of the models mean or rename "
    "types: LABEL_0=O LABEL_1=B-Chemical, Chemical=Drug, or Gene=O to leave a type out"
)
CONTEXT_HELP = (
    "What heads read at once. sentence: a single sentence; document: a sentence with its neighbours, for heads that "
    "were trained so, and as much of the document as fits for others. By default what a head was trained with, as its "
    "config.json says, or document if it doesn't say"
)


@check_call()
@dataclass(frozen=True)
class AnnotationOptions:
    """What is annotated, and how.

    Raises:
        InputError: no model or no input is given, or a value is out of range or malformed.
    """

    models: list[str] = field(
        metadata={
            "help": "Folders, installed packages or Hub names of NER heads; folders of exported ONNX files work too",
            "path": True,
        }
    )
    input: list[str] = field(
        metadata={
            "help": "Files, folders with all their sub-folders, glob patterns, or data sets on the Hub (name, "
            "name@revision, with :split appended if it isn't train)",
            "path": True,
        }
    )
    output_dir: str = field(metadata={"help": "Folder for the annotated files", "path": "output"})
    format: str = field(default="jsonl", metadata={"help": f"Format of the annotated files: {', '.join(WRITABLE)}"})
    input_format: str | None = field(
        default=None,
        metadata={
            "help": f"Format of the input files: {', '.join(READABLE)}; by default recognised by name and content"
        },
    )
    text_column: str | list[str] = field(default="text", metadata={"help": TEXT_COLUMN_HELP, "several": True})
    id_column: str | None = field(
        default=None,
        metadata={"help": "Field or column with the id, strings or integers; by default id, if there is one"},
    )
    unit: Literal["line", "file"] | None = field(default=None, metadata={"help": UNIT_HELP})
    labels: list[str] = field(default_factory=list, metadata={"help": LABELS_HELP})
    min_score: MinimumScore = field(
        default=0.0,
        metadata={
            "help": "Leave out entities that are found with a score below this, from 0 to 1; best: the score that gave "
            "each head the best F1 on its development set, which bioptimus report stores with it"
        },
    )
    context: Context | None = field(default=None, metadata={"help": CONTEXT_HELP})
    on_error: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "A document that can't be read: leave out its file, or only the document, which is recorded"},
    )
    encoding: str = field(
        default="utf-8",
        metadata={"help": "Encoding of text files, such as utf-16, latin-1 or cp1252; XML declares its own"},
    )
    errors: Literal["strict", "replace"] = field(
        default="strict",
        metadata={"help": "Bytes that can't be decoded: an error of the document, or replace and count them"},
    )
    max_document_megabytes: float = field(
        default=MAX_DOCUMENT_MEGABYTES,
        metadata={"help": "Longest document (10^6 bytes): longer ones can't be read, since they exhaust the memory"},
    )
    keep: bool = field(default=False, metadata={"help": "Add the entities to those of the input, don't replace them"})
    batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Windows of text per batch; by default as many as have 32,768 word pieces on a GPU, and 1,024 on a "
            "CPU"
        },
    )
    engine: EngineOption | None = field(
        default=None,
        metadata={
            "help": "What computes: torch, onnx or openvino (the last two on a CPU), or auto for the fastest of these "
            "on this machine, found by a short trial on some texts; by default torch, or onnx for exported models"
        },
    )
    precision: Precision | None = field(
        default=None,
        metadata={
            "help": "exact: in float32, with the same entities whatever computes. fast: with fewer bits, which changes "
            "a few entities: in bfloat16 with torch and openvino, in 8-bit integers with onnx; by default exact, or "
            "that of an exported model"
        },
    )
    force: bool = field(
        default=False, metadata={"help": "Redo files that are finished or were annotated with other settings"}
    )
    no_verify: bool = field(default=False, metadata={"help": "Read heads without comparing them with their hashes"})
    take_over: bool = field(default=False, metadata={"help": "Take over from a process on another host that has died"})

    def __post_init__(self) -> None:
        for name in ("models", "input"):
            if not getattr(self, name):
                raise InputError("must name at least one", argument=name)
        if not self.output_dir:
            raise InputError("is empty: name a folder", argument="output_dir")
        _check_choice("format", self.format, WRITABLE)
        _check_choice("input_format", self.input_format, (None, *READABLE))
        _check_choice("engine", self.engine, (None, *get_args(EngineOption)))
        _check_choice("precision", self.precision, (None, *get_args(Precision)))
        _check_choice("on_error", self.on_error, ("raise", "skip"))
        self.read_options()
        read_renames(self.labels)
        check_score(self.min_score)
        if self.context is not None:
            check_context(self.context)
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"must be at least 1, not {self.batch_size}", argument="batch_size")

    @check_call()
    def read_options(self, place: str = "") -> ReadOptions:
        """Return how an input file is read.

        Args:
            place: path of the file among the others; ids of documents that have none begin with it.
        """
        return ReadOptions(
            text_column=self.text_column,
            errors=self.errors,
            encoding=self.encoding,
            max_document_megabytes=self.max_document_megabytes,
            place=place,
            id_column=self.id_column,
            unit=self.unit or "line",
            annotations="needed" if self.keep else "optional",
        )


@check_call()
@dataclass(frozen=True)
class RunnerOptions:
    """Where the files are annotated.

    With Ray, an actor annotates one file at a time with models that it loads once. All machines of the cluster must see
    the input, local models and the output folder under the same paths, and have the same version of this package.

    Raises:
        InputError: a value is out of range, or concerns Ray while the runner is local.
    """

    runner: Literal["local", "ray"] = field(
        default="local",
        metadata={
            "help": "Annotate in this process, or with Ray on any number of machines, one task per file "
            "(pip install 'bioptimus-hf[ray]'); doesn't change the result"
        },
    )
    address: str | None = field(
        default=None,
        metadata={
            "help": "Ray cluster to use: host:port, or auto on a machine of the cluster; by default Ray is started on "
            "this machine"
        },
    )
    num_actors: int | None = field(
        default=None,
        metadata={
            "help": "Number of files annotated at a time with Ray; by default as many as the cluster has room for"
        },
    )
    cpus_per_actor: int | None = field(
        default=None,
        metadata={"help": "Processors, and threads, of each Ray actor; by default 1, or more if there are fewer files"},
    )
    gpus_per_actor: float | None = field(
        default=None,
        metadata={"help": "GPUs of each Ray actor, such as 0.5 for two actors per GPU; by default 1 if there are any"},
    )

    def __post_init__(self) -> None:
        _check_choice("runner", self.runner, ("local", "ray"))
        for name in ("address", "num_actors", "cpus_per_actor", "gpus_per_actor"):
            value = getattr(self, name)
            if value is not None and self.runner == "local":
                raise InputError(f"{value} is for Ray: set runner to ray", argument=name)
        for name in ("num_actors", "cpus_per_actor"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise InputError(f"must be at least 1, not {number}", argument=name)
        if (gpus := self.gpus_per_actor) is not None and not (0 <= gpus <= 1 or gpus in range(2, 65)):
            raise InputError(f"must be between 0 and 1, or a whole number, not {gpus:g}", argument="gpus_per_actor")


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and where to.

    Raises:
        InputError: the precision is unknown.
    """

    model: str = field(metadata={"help": "Folder, installed package or Hub name of a NER head", "path": True})
    output_dir: str = field(
        metadata={"help": "New or empty folder for the ONNX file, its configuration and tokenizer", "path": "output"}
    )
    precision: Weights = field(
        default="int8",
        metadata={"help": "int8 is a quarter of the size and faster; a few predictions change"},
    )

    def __post_init__(self) -> None:
        _check_choice("precision", self.precision, get_args(Weights))


def _models_of_environment() -> list[str]:
    return os.environ.get(MODELS_VARIABLE, "").split()


@dataclass(frozen=True)
class AppOptions:
    """Which models the page uses, and what they read.

    Raises:
        InputError: no model is given, a pair of `labels` is malformed, or the context is unknown.
    """

    models: list[str] = field(
        default_factory=_models_of_environment,
        metadata={
            "help": "Folders, installed packages or Hub names of NER heads that annotate the text; by default those "
            f"in the environment variable {MODELS_VARIABLE}, separated by whitespace",
            "path": True,
        },
    )
    labels: list[str] = field(default_factory=list, metadata={"help": LABELS_HELP})
    context: Context | None = field(default=None, metadata={"help": CONTEXT_HELP})

    def __post_init__(self) -> None:
        read_renames(self.labels)
        if self.context is not None:
            check_context(self.context)
        if not self.models:
            raise InputError(
                f"no model given: name a NER head, or set the environment variable {MODELS_VARIABLE}",
                argument="models",
            )


def _check_choice(name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise InputError(f"must be one of {', '.join(filter(None, choices))}, not {value!r}", argument=name)
