"""Read a recipe: one YAML file with the options of every command of a run."""

from __future__ import annotations

import argparse
import difflib
import glob
import json
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import read_yaml
from bioptimus_hf.errors import InputError

SECTIONS = (
    "train_vocabulary",
    "find_contexts",
    "distill",
    "pretrain",
    "finetune_ner",
    "annotate",
    "export_onnx",
    "report",
    "publish",
    "app",
)
"""The commands that a recipe may have a section for."""
COMMON = (
    "output_dir",
    "seed",
    "base_model",
    "corpus",
    "text_column",
    "unit",
    "max_megabytes",
    "errors",
    "encoding",
    "max_document_megabytes",
    "validation_share",
    "num_proc",
)
"""The keys at the top level of a recipe: options that several commands share."""


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe and check its top-level keys.

    Raises:
        InputError: it can't be read, or a key is neither a section nor a common option.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a mapping of options")
    for key, value in content.items():
        if key not in (*SECTIONS, *COMMON):
            known = (*SECTIONS, *COMMON)
            raise InputError(
                f"{path}: {key} is neither the section of a command nor one of {', '.join(COMMON)}"
                f"{suggestion(str(key), known)}"
            )
        if key in SECTIONS and not isinstance(value or {}, dict):
            raise InputError(f"{path}: {key} must be a mapping of options")
        if (value == "" and key == "output_dir") or (isinstance(value, dict) and value.get("output_dir") == ""):
            raise InputError(f"{path}: output_dir is empty: name a folder")
    return content


def apply_recipe(parser: argparse.ArgumentParser, path: Path, section: str) -> None:
    """Make the values of a recipe the defaults of the options they name, so that these are no longer required.

    Raises:
        InputError: a key is unknown, or a value can't be used.
    """
    options = {action.dest: action for action in parser._actions if action.dest not in ("help", "help_all", "recipe")}
    content = read_recipe(path)
    own = content.get(section) or {}
    for key in own:
        if key not in options:
            raise InputError(f"{path}: {section} has no option {key}{suggestion(str(key), options)}; see --help")
    common = {key: value for key, value in content.items() if key in COMMON}
    if "output_dir" in options:
        common["output_dir"] = str(Path(default_output_dir(path, content)).absolute())
    for key, value in {**common, **own}.items():
        if key in options:
            parser.set_defaults(**{key: _typed(path, options[key], value)})
            options[key].required = False
            if not options[key].option_strings and options[key].nargs != "*":
                options[key].nargs = "?"


def default_output_dir(path: Path, content: Mapping[str, Any]) -> str:
    """Return the folder of the run of a recipe: the one it names, or `runs/<name of the recipe>`."""
    named = content.get("output_dir")
    return relative_to_recipe(path, str(named), new=True) if named else str(Path("runs") / path.stem)


def _typed(path: Path, option: argparse.Action, value: Any) -> Any:
    """Convert a value of a recipe as the command line would.

    YAML 1.1 reads `5e-5` as a string and `5` as an integer; both are numbers if the option is a float.
    """
    if value is None and option.default is None and not option.required:
        return None
    if option.nargs in ("+", "*"):
        return [_typed_one(path, option, one) for one in (value if isinstance(value, list) else [value])]
    return _typed_one(path, option, value)


def _typed_one(path: Path, option: argparse.Action, value: Any) -> Any:
    convert = typing.cast(Callable[[str], Any], option.type or str)
    if value is not None and not isinstance(value, list):
        try:
            converted = convert(json.dumps(value) if isinstance(value, dict) else str(value))
            if option.choices is None or converted in option.choices:
                place = getattr(option, "path", None)
                return relative_to_recipe(path, converted, new=place == "output") if place else converted
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            pass
    kind = getattr(convert, "__name__", str(convert)).removeprefix("_to_")
    wanted = f"one of {', '.join(map(str, option.choices))}" if option.choices else f"of type {kind}"
    raise InputError(f"{path}: {option.dest} must be {wanted}, not {value!r}")


def relative_to_recipe(recipe: Path, value: str, *, new: bool) -> str:
    """Resolve a path relative to a recipe.

    Args:
        value: a path, or `label=path`. Anything that doesn't exist beside the recipe stays as it is, since it may be a
            name on the Hub, or the name of a task or version.
        new: whether the path is of something to be written, which needn't exist.
    """
    root = recipe.resolve().parent
    value = os.path.expanduser(value)
    if new or (root / value).exists():
        return str(root / value)
    if glob.glob(value, root_dir=root, recursive=True):
        return str(Path(glob.escape(str(root))) / value)
    label, equals, path = value.partition("=")
    beside = bool(path) and bool(glob.glob(path, root_dir=root, recursive=True))
    return f"{label}={root / path}" if equals and beside else value


def suggestion(name: str, known: typing.Iterable[str]) -> str:
    """Return `: did you mean ...?` if a known name is similar, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ""
