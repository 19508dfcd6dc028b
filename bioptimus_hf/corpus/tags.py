"""Read tags of the schemes IOB1, IOB2, IOBES, BILOU and BMES, and convert sequences of them to IOB2."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

OUTSIDE = "O"
"""The tag of tokens outside of entities."""

# BILOU calls the last token L and a single one U, BMES the middle ones M.
_MARKS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
_PREFIXED = re.compile(r"([BIMELSU])(?:[-_](.*))?", re.IGNORECASE | re.DOTALL)
_SUFFIXED = re.compile(r"(.+)[-_]([BIMELSU])", re.IGNORECASE | re.DOTALL)


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
