"""The options of scripts that have not become commands yet."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from bioptimus_hf.artifacts import read_yaml
from bioptimus_hf.corpus.dataset import corpus_identity, load_corpus, split_validation
from bioptimus_hf.errors import InputError, Terminated
from bioptimus_hf.hardware import leave_process_group

SECTIONS = (
    "train_vocabulary",
    "find_contexts",
    "distill",
    "distill_embeddings",
    "pretrain",
    "finetune_ner",
    "export_onnx",
    "annotate",
    "app",
    "report",
    "publish",
)
COMMON = (
    "output_dir",
    "seed",
    "base_model",
    "corpus",
    "text_column",
    "max_megabytes",
    "errors",
    "validation_share",
    "num_proc",
)


class _OneLineErrors(argparse.ArgumentParser):
    """Say in one line what is wrong with an option, instead of listing a hundred others first."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message}; see --help")


class _Parser(_OneLineErrors, HfArgumentParser):
    """Make options of dataclasses."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of a script's docstring, and name the defaults."""


@dataclass
class RunOptions:
    """Where a run lives; scripts that train have options of these names among those of the training."""

    output_dir: str = field(
        default="runs/default",
        metadata={"help": "Folder of the run; every script reads what the ones before it left there, and adds its own"},
    )
    seed: int = field(default=0, metadata={"help": "The same inputs, settings and seed give the same bytes"})


@dataclass
class StageOptions:
    """What every stage has."""

    force: bool = field(default=False, metadata={"help": "Redo the stage, and replace what stands in its place"})
    num_proc: int | None = field(default=None, metadata={"help": "Processes for work on text; changes no result"})


@dataclass
class CorpusOptions:
    """Which text is read."""

    corpus: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files, folders or patterns (.txt and .txt.gz with a document a line, .jsonl, .jsonl.gz, "
            ".parquet), or the name of a Hub data set (name, name@revision, and :split behind)"
        },
    )
    text_column: str = field(default="text", metadata={"help": "Name of the text in .jsonl, .parquet and data sets"})
    max_megabytes: float | None = field(default=None, metadata={"help": "Read this much text only, in 10^6 bytes"})
    errors: Literal["strict", "replace"] = field(
        default="strict",
        metadata={"help": "What is done about bytes that are not UTF-8: stop, or replace them and say how many"},
    )
    validation_share: float = field(
        default=0.01,
        metadata={"help": "Share of the documents held out, the same ones in every stage, whatever the seed"},
    )

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ValueError("no --corpus given: name files, folders or a Hub data set")

    def documents(self) -> Dataset:
        """Read all documents."""
        return load_corpus(
            self.corpus, text_column=self.text_column, max_megabytes=self.max_megabytes, errors=self.errors
        )

    def load(self) -> DatasetDict:
        """Read the documents; the `train` and `validation` parts are the same in every stage of a run."""
        return split_validation(self.documents(), share=self.validation_share)

    def inputs(self) -> dict[str, str]:
        """Return the corpus as an input of a stage, for `artifacts`."""
        return {"corpus": corpus_identity(self.corpus)}

    def settings(self) -> dict[str, Any]:
        """Return what shapes the text that is read, for `artifacts`."""
        return {
            "text_column": self.text_column,
            "max_megabytes": self.max_megabytes,
            "errors": self.errors,
            "validation_share": self.validation_share,
        }


def parse(*types: type, section: str, description: str | None, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Fill one object of each dataclass in `types`: command line before recipe, recipe before defaults.

    A recipe (`--recipe file.yaml`) is one file for a whole run. Its top-level keys (`output_dir`, `seed`, ...) go to
    every script that has an option of that name; the mapping under a script's name holds that script's own options.

    Args:
        types: dataclasses, `transformers.TrainingArguments` among them where a script trains.
        section: name of the script, and of its section in a recipe.
        description: the script's docstring, shown by `--help`.
        argv: arguments, by default those of the process.

    Raises:
        InputError: the recipe cannot be read, or holds a key that no option is named after.
    """
    recipe = _OneLineErrors(add_help=False, allow_abbrev=False)
    recipe.add_argument("--recipe", type=Path, metavar="FILE", help="YAML file with options for every script of a run")
    parser = _Parser(
        types,  # type: ignore[arg-type]
        parents=[recipe],
        description=inspect.cleandoc(description or ""),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    path: Path | None = recipe.parse_known_args(arguments)[0].recipe
    if path is not None:
        _take_recipe(parser, path, section)
    namespace = vars(parser.parse_args(arguments))
    return tuple(
        _build(type_, {field.name: namespace[field.name] for field in dataclasses.fields(type_) if field.init})
        for type_ in types
    )


def _take_recipe(parser: argparse.ArgumentParser, path: Path, section: str) -> None:
    """Make a recipe's values the defaults of the options they name; then they need not be given any more."""
    options = {
        action.dest: action for action in parser._actions if action.dest not in {"help", "recipe"} and action.nargs != 0
    }
    content = _read_recipe(path)
    own = content.get(section) or {}
    if not isinstance(own, dict):
        raise InputError(f"--recipe {path}: {section} must be a mapping of options")
    common = {key: value for key, value in content.items() if key not in SECTIONS}
    for key in common:
        if key not in COMMON:
            raise InputError(f"--recipe {path}: {key} is neither a script's section nor one of {', '.join(COMMON)}")
    for key in own:
        if key not in options:
            raise InputError(f"--recipe {path}: {section} has no option {key}; see --help")
    for key, value in {**common, **own}.items():
        if key in options:
            parser.set_defaults(**{key: _typed(path, options[key], value)})
            options[key].required = False


def _read_recipe(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"--recipe {path} must be a mapping of options")
    return content


def _typed(path: Path, option: argparse.Action, value: Any) -> Any:
    """Read a recipe's value as the command line would.

    YAML 1.1 takes `5e-5` for a string and `5` for an integer; both are numbers where an option is a float.
    """
    if value is None and option.default is None and not option.required:
        return None
    if option.nargs == "+":
        return [_typed_one(path, option, one) for one in (value if isinstance(value, list) else [value])]
    return _typed_one(path, option, value)


def _typed_one(path: Path, option: argparse.Action, value: Any) -> Any:
    convert = cast(Callable[[str], Any], option.type or str)
    if value is not None and not isinstance(value, list):
        try:
            # What is a mapping in YAML (`lr_scheduler_kwargs`) is JSON on the command line.
            typed = convert(json.dumps(value) if isinstance(value, dict) else str(value))
            if option.choices is None or typed in option.choices:
                return typed
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            pass
    kind = getattr(convert, "__name__", str(convert)).removeprefix("string_to_")
    wanted = f"one of {', '.join(map(str, option.choices))}" if option.choices else f"of type {kind}"
    raise InputError(f"--recipe {path}: {option.dest} must be {wanted}, not {value!r}")


def _build(type_: type, values: Mapping[str, Any]) -> Any:
    try:
        return type_(**values)
    except (ValueError, ImportError) as error:  # TrainingArguments checks its own values
        raise InputError(" ".join(str(error).split())) from error


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main`: log to stderr; end with status 2 and one line where the user's input is at fault."""
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("httpx", "httpcore", "httpx2", "httpcore2", "filelock", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # The scripts say themselves which weights are new, and need no bar for the reading or writing of one file.
    for chatty in ("transformers.modeling_utils", "transformers.distributed.tensor_parallel"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    disable_progress_bar()
    # With only a pytorch_model.bin, transformers would ask an outside service for a converted copy behind our back.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        main()
        # Where a run fails instead, the group stays: the other processes may wait in it for this one.
        leave_process_group()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Terminated as end:
        print(f"{end}: run the same command again, without --force, to go on", file=sys.stderr)
        end.__traceback__ = None  # its frames hold the model
        leave_process_group()
        sys.exit(128 + signal.SIGTERM)
    except torch.OutOfMemoryError as error:
        print(
            f"error: too little memory on the GPU ({' '.join(str(error).split())[:150]}): read fewer "
            f"rows at once (--batch_size; in training a smaller --per_device_train_batch_size, with more "
            f"--gradient_accumulation_steps for the same training); what is finished is kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _no_room(error):
            raise
        place = f" of {error.filename}" if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:150]
        print(
            f"error: no room left on the disk{place} ({reason}): make some, and run the same command again; what is "
            f"finished is kept",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: run the same command again, without --force, to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _no_room(error: Exception) -> bool:
    """Say whether the disk is full; the libraries that write weights and optimizer states say so in words alone."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(words in str(error) for words in ("os error 28", "os error 27", "os error 122", "inline_container"))
