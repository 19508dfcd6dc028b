"""Turn the command line and a YAML recipe into dataclasses of options.

argparse is used directly, on dataclasses whose fields carry their help. HfArgumentParser would import transformers
before `--help` is shown; jsonargparse takes neither `--models a b` nor `--bf16` beside `--bf16 true`.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from bioptimus_hf.cli.recipes import SECTIONS, apply_recipe, suggestion
from bioptimus_hf.errors import InputError
from bioptimus_hf.recipes import find


class _Parser(argparse.ArgumentParser):
    """Raise errors in one line, and begin the help with an example."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting; called by argparse."""
        raise InputError(f"{message.removeprefix('argument ')}; see --help")

    def format_help(self) -> str:
        """Return the description, whose first paragraph is an example, and the groups of options."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return formatter.format_help()


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of the description, and add defaults that tell the reader something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        shown = action.nargs != 0 and default not in (None, "", False, argparse.SUPPRESS)
        return f"{action.help} (default: {str(default).replace('%', '%%')})" if shown else action.help


def parse(
    options: Sequence[type], section: str, description: str | None, argv: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Fill one object of each dataclass: the command line wins over the recipe, the recipe over defaults.

    A recipe (`--recipe FILE`) is one YAML file for a whole run. Its top-level keys (`COMMON`) go to every command that
    has an option of that name, the mapping under the name of a command to that command alone. Relative paths in it are
    relative to its folder.

    Args:
        options: dataclasses. If two share a field name, the first defines the option and both get its value.
        section: name of the command in a recipe.
        description: docstring of the command, which contains an indented example.
        argv: arguments, by default those of the process.

    Raises:
        InputError: an option or a key of the recipe is unknown, missing or can't be used.
        SystemExit: help was asked for and printed.
    """
    values = parse_values(options, section, description, sys.argv[1:] if argv is None else argv)
    return tuple(build(type_, values) for type_ in options)


def parse_values(options: Sequence[type], section: str, description: str | None, argv: Sequence[str]) -> dict[str, Any]:
    """Return the value of every option by name, without making objects of them. For arguments, see `parse`.

    Raises:
        InputError: an option or a key of the recipe is unknown, missing or has a value of the wrong type.
        SystemExit: help was asked for and printed.
    """
    arguments = [_with_underscores(argument) for argument in argv]
    parser = build_parser(options, description, all_options="--help_all" in arguments, recipe=section in SECTIONS)
    if "--help_all" in arguments:
        parser.print_help()
        raise SystemExit(0)
    for argument in arguments:  # argparse would first ask for the option that was misspelt
        if argument.startswith("--") and argument.partition("=")[0] not in parser._option_string_actions:
            raise InputError(_unknown_option(argument, parser))
    if section in SECTIONS:
        recipe = _Parser(add_help=False, allow_abbrev=False)
        recipe.add_argument("--recipe")
        if name := recipe.parse_known_args(arguments)[0].recipe:
            apply_recipe(parser, find(name), section)
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise InputError(_unknown_option(unknown[0], parser))
    values = vars(namespace)
    for action in parser._actions:
        value = values.get(action.dest)
        # An unset variable of the shell, which would mean the working directory.
        named = action.dest in ("output_dir", "corpus") or getattr(action, "path", None)
        if named and "" in (value if isinstance(value, list) else [value]):
            problem = "is empty: name a file or folder"
            if not action.option_strings:  # a positional argument, which has no dashes
                raise InputError(f"{action.dest}: {problem}")
            raise InputError(problem, argument=action.dest)
    return values


def check_recipe(options: Sequence[type], path: Path, section: str) -> None:
    """Check the keys and the types of the values that a recipe gives to a command.

    Raises:
        InputError: a key is unknown, or a value can't be used.
    """
    apply_recipe(build_parser(options, None), path, section)


def build_parser(
    options: Sequence[type], description: str | None, *, all_options: bool = False, recipe: bool = True
) -> argparse.ArgumentParser:
    """Build the parser of a command.

    Args:
        all_options: show also the options that a dataclass leaves out of its `SHOWN_OPTIONS`.
        recipe: whether the options can come from a recipe.
    """
    parser = _Parser(
        description=_example_first(description or ""),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    seen: set[str] = set()
    hidden = sum(_add_options(parser, type_, seen, all_options=all_options) for type_ in options)
    general = parser.add_argument_group("General")
    if recipe:
        general.add_argument(
            "--recipe",
            metavar="FILE",
            help="YAML file with options for every stage of a run, or the name of a shipped one",
        )
    general.add_argument("-h", "--help", action="help", help="Show this help and exit")
    if hidden:
        general.add_argument("--help_all", action="store_true", help=f"Show {hidden} more options, which work as well")
    return parser


def _add_options(parser: argparse.ArgumentParser, type_: type, seen: set[str], *, all_options: bool) -> int:
    """Add a dataclass's options as a group, without those already `seen`; return the number hidden from the help."""
    title = inspect.cleandoc(type_.__doc__ or type_.__name__).split("\n")[0].rstrip(".").replace("`", "")
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(type_)
    shown = getattr(type_, "SHOWN_OPTIONS", None)
    hidden = 0
    for field in dataclasses.fields(type_):
        if not field.init or field.name in seen:
            continue
        seen.add(field.name)
        settings = _argument(field, hints[field.name])
        if settings is None:
            continue
        if shown is not None and field.name not in shown and not all_options:
            settings["help"] = argparse.SUPPRESS
            hidden += 1
        _add(group, field, settings)
    return hidden


def _add(group: Any, field: dataclasses.Field[Any], settings: dict[str, Any]) -> None:
    if field.metadata.get("positional"):
        if settings.pop("required", None) is False and settings.get("nargs") == "+":
            settings["nargs"] = "*"
        group.add_argument(field.name, **settings)
    else:
        group.add_argument(f"--{field.name}", **settings)
    group._group_actions[-1].path = field.metadata.get("path")


def _argument(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any] | None:
    """Return what argparse is told about a field; None if it can't be given on a command line."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    required = default is dataclasses.MISSING
    settings: dict[str, Any] = {"help": field.metadata.get("help", "").replace("%", "%%"), "required": required}
    settings["default"] = None if required else default.value if isinstance(default, Enum) else default
    kinds = _alternatives(hint)
    lists = [kind for kind in kinds if get_origin(kind) is list]
    if lists and (str not in kinds or field.metadata.get("several")):
        settings |= {"nargs": "+", **_converter(get_args(lists[0])[0])}
    elif float in kinds and (words := [word for kind in kinds for word in get_args(kind)]):
        settings |= {"type": _number_or(words), "metavar": f"NUMBER|{'|'.join(words)}"}
    elif kinds == [bool]:
        settings |= {"type": _to_bool, "nargs": "?", "const": True, "metavar": "true|false"}
    else:
        converter = next((found for kind in kinds if (found := _converter(kind))), None)
        if converter is None:
            return None
        settings |= converter
    return settings


def _alternatives(hint: Any) -> list[Any]:
    """Return the members of a union without None."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [member for member in members if member is not type(None)]


def _converter(kind: Any) -> dict[str, Any]:
    """Return type and choices for argparse; empty for a type that has no form on the command line."""
    if get_origin(kind) is Literal:
        choices = list(get_args(kind))
        return {"choices": choices, "type": type(choices[0])}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"choices": [member.value for member in kind], "type": str, "metavar": "NAME"}
    if kind is dict or get_origin(kind) is dict:
        return {"type": _to_mapping, "metavar": "JSON"}
    if kind in (str, int, float):
        return {"type": kind}
    return {"type": _to_bool} if kind is bool else {}


def _to_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"true or false, not {text!r}")


def _number_or(words: Sequence[str]) -> Callable[[str], float | str]:
    def number(text: str) -> float | str:
        return text if text in words else float(text)

    number.__name__ = f"number or {' or '.join(words)}"  # for errors
    return number


def _to_mapping(text: str) -> Any:
    """Read JSON, or return what may be the path of a file."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from error


def _with_underscores(argument: str) -> str:
    """Accept `--output-dir` for `--output_dir`."""
    if not re.match(r"--\w", argument):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _unknown_option(argument: str, parser: argparse.ArgumentParser) -> str:
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {argument!r}; see --help"
    return f"unknown option {name}{suggestion(name, parser._option_string_actions)}; see --help"


def with_dashes(error: InputError, options: Sequence[type]) -> str:
    """Return an error's message with options as they are written on the command line: `use --force` for `use force`.

    Args:
        options: the dataclasses of the command.
    """
    fields = (field for type_ in options for field in dataclasses.fields(type_))
    names = {field.name for field in fields if not field.metadata.get("positional")}
    compound = "|".join(sorted(name for name in names if "_" in name)) or "$^"  # no word of plain English looks so
    simple = "|".join(sorted(name for name in names if "_" not in name)) or "$^"
    message = re.sub(rf"(?<![\w/.-])(?=({compound})(?![\w/.]))", "--", str(error))
    message = re.sub(rf"(?:(?<=\buse )|(?<=\bset ))(?=({simple})\b)|(?<=\bwith )(?=force\b)", "--", message)
    return f"--{message}" if error.argument in names and not message.startswith("--") else message


def _example_first(docstring: str) -> str:
    """Move the indented example of a docstring to its beginning."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    examples = [text for text in paragraphs if text.startswith("    ")]
    return "\n\n".join(
        [
            *(["Example:\n\n" + "\n".join(examples)] if examples else []),
            *(text for text in paragraphs if text not in examples),
        ]
    )


def build(type_: type, values: Mapping[str, Any]) -> Any:
    """Make an object of a dataclass of options.

    Args:
        values: options by name, from `parse_values`; others are ignored.

    Raises:
        InputError: a value can't be used.
    """
    given = {
        field.name: values[field.name] for field in dataclasses.fields(type_) if field.init and field.name in values
    }
    try:
        return type_(**given)
    except InputError:
        raise
    except (ValueError, ImportError) as error:  # TrainingArguments checks some of its values
        raise InputError(" ".join(str(error).split())) from error
