"""Check the arguments of public functions against their annotations, so that errors name the argument at fault.

A string where a list of texts is expected would be read letter by letter, and most other mistakes would end in an error
from deep inside. Annotations are read as text and compared with the names of classes: nothing is imported for it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from bioptimus_hf.errors import InputError

_Checked = TypeVar("_Checked", bound=Callable[..., Any])

_COLLECTIONS = ("Iterable", "Sequence", "Collection", "list", "tuple")
_NUMBERS = {"int": numbers.Integral, "float": numbers.Real}
_MODELS = ("PreTrainedModel", "BertForMaskedLM", "BertForMaskedPositions")
_LONGEST_SHOWN = 80  # characters of a value in an error
_UNCHECKED = ("Any", "Callable", "type", "bool")


def check_call(**columns: Iterable[str]) -> Callable[[_Checked], _Checked]:
    """Return a decorator that checks the arguments of a function or class when it is called.

    Checked are collections (not a single string, nor with an item of another type), data sets, models, tokenizers,
    numbers, names, and objects of the package's own classes. Models may be wrapped in another module.

    Args:
        columns: name of an argument to the columns that this data set must have.

    Raises:
        InputError: from the decorated function: an argument has another type, or a data set lacks a column.
    """

    def decorate(checked: _Checked) -> _Checked:
        if inspect.isclass(checked):
            checked.__init__ = _wrap(checked.__init__, columns)  # type: ignore[method-assign]
            return checked
        wrapped: Any = _wrap(checked, columns)
        return wrapped  # type: ignore[no-any-return]

    return decorate


def _wrap(function: Callable[..., Any], columns: Mapping[str, Iterable[str]]) -> Callable[..., Any]:
    @functools.cache
    def declared() -> tuple[inspect.Signature, dict[str, ast.expr]]:
        # Read at the first call: reading those of all public functions takes longer than the help of a command.
        signature = inspect.signature(function)
        return signature, _checked_annotations(signature, function.__globals__)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        signature, annotations = declared()
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # an argument is missing or unknown: Python's own message says which
            return function(*args, **kwargs)
        for name, annotation in annotations.items():
            if name in given:
                _check(name, given[name], annotation)
        for name, needed in columns.items():
            if given.get(name) is not None:
                check_columns(given[name], needed, argument=name)
        return function(*args, **kwargs)

    return wrapper


def _checked_annotations(signature: inspect.Signature, names: Mapping[str, Any]) -> dict[str, ast.expr]:
    """Return the annotations that are checked, by argument.

    Args:
        names: what is defined in the module of the function.
    """
    parsed = {
        name: ast.parse(parameter.annotation, mode="eval").body
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, str) and parameter.kind is not parameter.VAR_KEYWORD
    }
    return {name: node for name, node in parsed.items() if not _has_alias(node, names)}


def check_columns(dataset: Any, needed: Iterable[str], *, argument: str) -> None:
    """Raise if a data set lacks a column.

    Raises:
        InputError: it does, and which columns it has.
    """
    if missing := [column for column in needed if column not in dataset.column_names]:
        found = ", ".join(dataset.column_names) or "no columns"
        raise InputError(f"the data set needs a column {missing[0]!r}, and has {found}", argument=argument)


def _check(place: str, value: Any, annotation: ast.expr) -> None:
    """Raise if a value doesn't have the type that its annotation says.

    Args:
        place: name of the argument, with the index or key of an item.
    """
    choices = list(_choices(annotation))
    if any(_fits(value, choice) for choice in choices):
        for choice in choices:
            if _fits(value, choice):
                _check_items(place, value, choice)
                return
    wanted = " or ".join(dict.fromkeys(map(_described, choices)))
    if isinstance(value, str | bytes) and any(_name(choice) in _COLLECTIONS for choice in choices):
        raise InputError("is a single string: give a list", argument=place)
    advice = ""
    if "data set" in wanted:
        kinds = {"IterableDataset": "load it without streaming", "DatasetDict": "give one of its splits"}
        advice = next((f": {advice}" for kind, advice in kinds.items() if kind in _classes(value)), ": load it first")
    elif "tokenizer" in wanted or "model" in wanted:
        advice = ": load it first" if isinstance(value, str | os.PathLike) else ""
    raise InputError(f"must be {wanted}, not {_shown(value)}{advice}", argument=place)


def _check_items(place: str, value: Any, annotation: ast.expr) -> None:
    """Check the items of a list and the values of a dictionary. Other iterables are not consumed."""
    if not isinstance(annotation, ast.Subscript):
        return
    name, inner = _name(annotation), annotation.slice
    if name == "Mapping" and isinstance(inner, ast.Tuple):
        for key, item in value.items():
            _check(f"{place}[{key!r}]", item, inner.elts[1])
    elif name in _COLLECTIONS and _name(inner) == "str" and _classes(value) & {"Dataset", "IterableDataset"}:
        advice = "give one of its columns, such as dataset['text']"
        raise InputError(f"must be a list of strings, not a data set: {advice}", argument=place)
    elif name in _COLLECTIONS and isinstance(value, list | tuple):
        if isinstance(inner, ast.Tuple):  # tuple[str, ...]
            inner = inner.elts[0]
        simple = _name(inner)
        for number, item in enumerate(value):
            if simple != "str" or not isinstance(item, str):
                _check(f"{place}[{number}]", item, inner)


def _has_alias(annotation: ast.expr, names: Mapping[str, Any]) -> bool:
    """Return whether an annotation contains something else than classes, such as a name for a `Literal`."""
    used = [names[node.id] for node in ast.walk(annotation) if isinstance(node, ast.Name) and node.id in names]
    return not all(inspect.isclass(value) or inspect.ismodule(value) for value in used)


def _choices(annotation: ast.expr) -> Iterable[ast.expr]:
    if isinstance(annotation, ast.BinOp):
        yield from _choices(annotation.left)
        yield from _choices(annotation.right)
    else:
        yield annotation


def _fits(value: Any, annotation: ast.expr) -> bool:
    name = _name(annotation)
    if name in _UNCHECKED:
        return True
    if name == "None":
        return value is None
    if name in _COLLECTIONS:
        return not isinstance(value, str | bytes | os.PathLike) and (hasattr(value, "__iter__"))
    if name == "Mapping":
        return hasattr(value, "items")
    if name in _NUMBERS:
        return isinstance(value, _NUMBERS[name])
    if name == "str":
        return isinstance(value, str)
    if name == "Path":
        return isinstance(value, str | os.PathLike)
    return ("Module" if name in _MODELS else name) in _classes(value)


def _classes(value: Any) -> set[str]:
    """Return the names of a value's class and its base classes; `Dataset` only for those of the library datasets."""
    kinds = type(value).__mro__
    return {kind.__name__ for kind in kinds if kind.__name__ != "Dataset" or kind.__module__.startswith("datasets.")}


def _name(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Subscript):
        return _name(annotation.value)
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    if isinstance(annotation, ast.Constant):
        return str(annotation.value)
    return annotation.id if isinstance(annotation, ast.Name) else "Any"


def _described(annotation: ast.expr) -> str:
    name = _name(annotation)
    if name in _COLLECTIONS:
        return "a list"
    if name in _MODELS:
        return "a model"
    known = {"None": "None", "str": "a string", "Path": "a path", "Mapping": "a dictionary", "Dataset": "a data set"}
    known |= {"int": "a whole number", "float": "a number", "PreTrainedTokenizerBase": "a tokenizer"}
    return known.get(name) or _with_article(name)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    shown = repr(value) if isinstance(value, str | int | float) else ""
    return shown if 0 < len(shown) < _LONGEST_SHOWN else _with_article(type(value).__name__)
