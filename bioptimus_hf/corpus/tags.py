"""Read tags of the schemes IOB1, IOB2, IOBES, BILOU and BMES, and convert sequences of them to IOB2."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from bioptimus_hf.errors import InputError

OUTSIDE = "O"
"""The tag of tokens outside of entities."""

# A type neither begins nor ends with a hyphen: seqeval would strip it and confuse `a-` with `a`.
TAG = re.compile(r"O|[BI]-[^\s-](\S*[^\s-])?")
"""A tag of IOB2."""

# BILOU calls the last token L and a single one U, BMES the middle ones M.
_MARKS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
_PREFIXED = re.compile(r"([BIMELSU])(?:[-_](.*))?", re.IGNORECASE | re.DOTALL)
_SUFFIXED = re.compile(r"(.+)[-_]([BIMELSU])", re.IGNORECASE | re.DOTALL)


BEGINNING = "BS"
"""Marks of tags that begin an entity in strict IOB2, and in the schemes that mark the end of entities, too."""


class Tag(NamedTuple):
    """A tag of any scheme.

    Attributes:
        mark: `B` (begins an entity), `I` (inside), `E` (ends one), `S` (is one by itself) or `O` (outside).
        type: the entity type; empty outside of entities, and for tags that carry none, such as a bare `B`.
    """

    mark: str
    type: str = ""

    def continues(self, before: Tag) -> bool:
        """Return whether this tag continues the entity of the tag before it."""
        return self.mark in "IE" and before.mark in "BI" and before.type == self.type


@lru_cache(maxsize=10_000)
def parse_tag(tag: str, *, suffixed: bool = False) -> Tag | None:
    """Split a tag into mark and type.

    `O`, `B-Chemical`, `i_chemical`, `U-Chemical` and a bare `B` are tags; `Chemical`, `LABEL_1` and `0` are not.

    Args:
        tag: the tag, in upper or lower case, with `-` or `_` between mark and type.
        suffixed: the mark follows the type, as in `Chemical-B`.

    Returns:
        The tag, or None if it has no mark.
    """
    if tag in (OUTSIDE, "o"):
        return Tag(OUTSIDE)
    found = (_SUFFIXED if suffixed else _PREFIXED).fullmatch(tag)
    if found is None:
        return None
    kind, mark = found.groups() if suffixed else reversed(found.groups())
    return Tag(_MARKS[mark.upper()], kind or "")


def to_iob2(tags: Iterable[Tag]) -> list[Tag]:
    """Convert the tags of a sentence to IOB2: an entity begins with `B` and goes on with `I`.

    A tag that doesn't continue the entity before it begins one, whatever its mark, as in IOB1. `E` and `S` end an
    entity, so an `I` after them begins the next one.
    """
    converted: list[Tag] = []
    before = Tag(OUTSIDE)
    for tag in tags:
        mark = tag.mark if tag.mark == OUTSIDE else "I" if tag.continues(before) else "B"
        converted.append(Tag(mark, tag.type))
        before = tag
    return converted


def known_tag(tag: str) -> Tag | None:
    """Return what a tag means, None if it is unknown or its type can't be written in CoNLL."""
    found = parse_tag(tag)
    return found if found is not None and (len(tag) == 1 or TAG.fullmatch(f"B-{found.type}")) else None


class TagConverter:
    """Converts the tags of sentences to IOB2, and notes what it changes.

    Args:
        note: counts a conversion and keeps the first example, like `Notes.note`.
        types: the entity types that may occur; by default any.
        type_name: the type of tags that carry none.
    """

    def __init__(
        self, note: Callable[[str, str], None], types: Collection[str] | None = None, type_name: str | None = None
    ) -> None:
        self._note = note
        self._types = types
        self._type_name = type_name
        self._first: tuple[str, str, bool] | None = None  # first tag of an entity: where, the tag, if it has a type

    def parse(self, where: str, tag: str) -> Tag:
        """Read a tag.

        Args:
            where: where the tag is, for messages.

        Raises:
            InputError: the tag is unknown, has an unknown type, or has no type and `type_name` isn't given; or some
                tags have a type and others have none.
        """
        found = known_tag(tag)
        if found is None:
            raise InputError(
                f"{where}: unknown tag {tag!r}: give O, B-<type> or I-<type> (or tags of IOBES or BILOU) in the last "
                f"column"
            )
        if found.mark == OUTSIDE:
            return found
        if not found.type and not self._type_name:
            raise InputError(
                f"{where}: the tag {tag!r} has no type: name the type of all entities (type_name, or merged_type of a "
                f"task)"
            )
        if found.type and self._types is not None and found.type not in self._types:
            known = ", ".join(self._types) or "none"
            raise InputError(f"{where}: tag {tag!r} has an unknown type: known types are {known}")
        place, other, typed = self._first = self._first or (where, tag, bool(found.type))
        if typed != bool(found.type):
            raise InputError(f"{where}: tag {tag!r}, but {place} has {other!r}: give all tags a type, or none")
        return found

    def convert(self, tags: Sequence[str], parsed: Sequence[Tag], unit: str, numbers: Sequence[int]) -> list[str]:
        """Return the tags of a sentence in IOB2.

        Args:
            tags: as they were read.
            parsed: the same tags, from `parse`.
            unit: what is numbered, `line` or `row`.
            numbers: where each tag is.
        """
        converted: list[str] = []
        for tag, found, iob2, number in zip(tags, parsed, to_iob2(parsed), numbers, strict=True):
            written = OUTSIDE if iob2.mark == OUTSIDE else f"{iob2.mark}-{iob2.type or self._type_name}"
            converted.append(written)
            if written == tag:
                continue
            if found.mark == "I" and iob2.mark == "B" and found.type:
                kind = "I- tags that begin an entity (as in IOB1), read as B-"
            elif found.mark != OUTSIDE and not found.type:
                kind = f"tags without a type, read as {self._type_name}"
            else:
                kind = "tags of other schemes, converted to IOB2"
            self._note(kind, f"{unit} {number}, {tag!r}")
        return converted
