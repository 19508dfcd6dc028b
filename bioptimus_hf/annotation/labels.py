"""Interpret the labels of a token classifier, whatever their scheme, as tags of entities."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any

from bioptimus_hf.corpus.tags import OUTSIDE, Tag, parse_tag
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

OTHERS = "*"
"""Stands for all labels and types that aren't named."""
_SHOWN = 12  # labels in a message
_NUMBERED = re.compile(r"(?:LABEL_)?\d+", re.IGNORECASE)  # transformers calls labels without names LABEL_0 and so on
_SPECIAL = re.compile(r"\[\w+\]|</?\w+>|X|PAD", re.IGNORECASE)  # for special tokens and further pieces of words
_WANTED_TAG = re.compile(r"[BIELSUM]-\S.*")


BEST = "best"
"""In place of the least score of an entity: the one that each head recommends."""


def check_score(score: Any) -> None:
    """Raise InputError for what is neither a score between 0 and 1 nor `BEST`."""
    if score != BEST and not (isinstance(score, Real) and 0 <= float(score) <= 1):
        raise InputError(f"must be between 0 and 1, or {BEST}, not {score!r}", argument="min_score")


def read_renames(pairs: Iterable[str]) -> dict[str, str]:
    """Read `FOUND=WANTED` pairs, and names of labels or types to keep, which leave out all types that aren't given.

    Returns:
        What each label or type becomes. The key `OTHERS` stands for all others.

    Raises:
        InputError: a side of a pair is empty, or a label is given twice.
    """
    renames: dict[str, str] = {}
    keeps = False
    for pair in pairs:
        found, equals, wanted = map(str.strip, pair.rpartition("="))
        if not equals:
            found, keeps = wanted, True
        if not (found and wanted):
            raise InputError(
                f"{pair!r} must be a type to keep, such as Chemical, or FOUND=WANTED, such as LABEL_1=B-Chemical or "
                f"Gene=O",
                argument="labels",
            )
        if renames.setdefault(found, wanted) != wanted:
            raise InputError(f"{found} is given twice, as {renames[found]} and {wanted}", argument="labels")
    if keeps and renames.setdefault(OTHERS, OUTSIDE) != OUTSIDE:
        raise InputError(
            f"names of types to keep leave out all others: remove {OTHERS}={renames[OTHERS]}", argument="labels"
        )
    return renames


def interpret_labels(
    labels: Mapping[int, str], renames: Mapping[str, str], *, name: str = "the model"
) -> dict[int, Tag]:
    """Return the tag that each label of a model stands for.

    Labels may have a mark of IOB, IOBES, BILOU or BMES before or after the type, in upper or lower case, or be types
    without a mark. Labels of special tokens, such as `[CLS]`, count as outside of entities.

    Args:
        labels: label by id, from the model's configuration.
        renames: what labels and types mean. A label becomes a type, a tag such as `B-Chemical`, or `O`; a type becomes
            another type or `O`. `OTHERS` stands for those that aren't named. Keys that occur nowhere are ignored; see
            `check_renames`.
        name: what to call the model in errors.

    Raises:
        InputError: a label carries no type, or none is outside of entities, and `renames` doesn't say what they mean.
    """
    found = {number: _renamed(label, tag, renames) for number, (label, tag) in _parse(labels).items()}
    shown = _shown(labels.values())
    if unnamed := [labels[number] for number, tag in found.items() if tag.mark != OUTSIDE and not tag.type]:
        raise InputError(
            f"{name} has labels that name no entity type ({_shown(unnamed)}): say what they mean, for example "
            f"{_example(unnamed, labels)}",
            argument="labels",
        )
    if not any(tag.mark == OUTSIDE for tag in found.values()):
        raise InputError(
            f"{name} has no label O for words outside of entities, only {shown}: say which label that is, for example "
            f"{next(iter(labels.values()), 'LABEL_0')}=O",
            argument="labels",
        )
    changed = [
        f"{label} as {_written(found[number])}" for number, label in labels.items() if label != _written(found[number])
    ]
    if changed:
        logger.info("%s: reading %s", name, _shown(changed))
    return found


def check_renames(renames: Mapping[str, str], labels_of_models: Iterable[Mapping[int, str]]) -> None:
    """Raise if a key of `renames` is neither a label nor a type of any model.

    Raises:
        InputError: the first such key, and what there is instead.
    """
    known: dict[str, None] = {}
    for labels in labels_of_models:
        known |= dict.fromkeys(labels.values()) | {tag.type: None for _, tag in _parse(labels).values() if tag.type}
    for found in renames:
        if found not in known and found != OTHERS:
            raise InputError(f"{found} is neither a label nor a type; there are {_shown(known)}", argument="labels")


def _parse(labels: Mapping[int, str]) -> dict[int, tuple[str, Tag]]:
    """Return each label with its tag. Labels are judged together: `E-coli` is a tag only if all others have marks."""
    names = [label for label in labels.values() if label.upper() != OUTSIDE]
    special = {label for label in names if _SPECIAL.fullmatch(label)}
    names = [label for label in names if label not in special]
    for suffixed in (False, True):
        tags = {label: parse_tag(label, suffixed=suffixed) for label in names}
        if _are_of_a_scheme(tags.values()):
            break
    else:  # marks of IOB only, and types without marks
        tags = {label: parse_tag(label) if label.startswith(("B-", "I-")) else None for label in names}
        if not any(tags.values()):
            special = set()
    return {number: (label, _tag(label, tags.get(label), special)) for number, label in labels.items()}


def _are_of_a_scheme(tags: Collection[Tag | None]) -> bool:
    """Return whether all labels have marks that make sense together: one alone may belong to a type, as in `e_coli`."""
    parsed = [tag for tag in tags if tag]
    marks = {tag.mark for tag in parsed}
    several = len(marks) > 1 or not any(tag.type for tag in parsed)
    return len(parsed) == len(tags) and bool(marks & {"B", "I"}) and several


def _tag(label: str, tag: Tag | None, special: set[str]) -> Tag:
    if label.upper() == OUTSIDE or label in special:
        return Tag(OUTSIDE)
    return tag or Tag("I", "" if _NUMBERED.fullmatch(label) else label)


def _renamed(label: str, tag: Tag, renames: Mapping[str, str]) -> Tag:
    others = renames.get(OTHERS) if tag.mark != OUTSIDE else None
    wanted = renames.get(label) or renames.get(tag.type) or others
    if wanted is None:
        return tag
    if wanted == OUTSIDE:
        return Tag(OUTSIDE)
    if label in renames and _WANTED_TAG.fullmatch(wanted):
        return parse_tag(wanted) or tag
    return Tag("I" if tag.mark == OUTSIDE else tag.mark, wanted)


def _written(tag: Tag) -> str:
    return f"{tag.mark}-{tag.type}" if tag.type else tag.mark


def _shown(names: Iterable[str]) -> str:
    listed = list(dict.fromkeys(names))
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")


def _example(unnamed: list[str], labels: Mapping[int, str]) -> str:
    """Return pairs that would name the types of labels."""
    if not any(map(_NUMBERED.fullmatch, unnamed)):  # bare marks
        return " ".join(f"{label}=Chemical" for label in dict.fromkeys(unnamed))
    meanings = ["B-Chemical", "I-Chemical"] if OUTSIDE in labels.values() else [OUTSIDE, "B-Chemical", "I-Chemical"]
    return " ".join(f"{label}={meaning}" for label, meaning in zip(dict.fromkeys(unnamed), meanings, strict=False))
