"""Documents with named entities: what an annotator reads and writes, whatever the format of the file."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bioptimus_hf.errors import InputError


@dataclass(frozen=True)
class Entity:
    """A mention of something in a text.

    Attributes:
        start: the first character of the mention, counted in Unicode code points as Python does.
        end: the character after the last one.
        text: the mention, which is what stands there.
        label: its type.
        score: how sure the finder is, between 0 and 1; 1 where a source states nothing.
        identifier: what it is in some terminology, if that is known (the columns of PubTator after the type).
    """

    start: int
    end: int
    text: str
    label: str
    score: float = 1.0
    identifier: str = ""


@dataclass(frozen=True)
class Passage:
    """A part of a document that its source marks as such, for instance the title.

    Attributes:
        start: the first character in the document's text.
        end: the character after the last one.
        offset: the number that the source gives the first character, which may count what is not in the text.
        infons: what the source says of the part, as `{"type": "title"}`.
    """

    start: int
    end: int
    offset: int
    infons: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A text and the entities in it.

    Attributes:
        id: what its source calls it; where that names nothing, the number of its line or sentence, from 1.
        text: what the entities' offsets count in.
        entities: the mentions.
        passages: the parts in order, which a line break parts; none where the source marks none.
        tokens: first and after-last character of each token, from a source that has tokens.
        extra: whatever else the source holds, for a file of the same format to keep it.

    Raises:
        InputError: the text of an entity is not what stands at its place, or the text is not Unicode.
    """

    id: str
    text: str
    entities: Sequence[Entity] = ()
    passages: Sequence[Passage] = ()
    tokens: Sequence[tuple[int, int]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.text.encode()
        except UnicodeEncodeError as error:  # "\ud83d" alone is JSON, and no character
            raise InputError(
                f"document {self.id}: half a surrogate pair at character {error.start}, which is no text: mend it"
            ) from error
        for entity in self.entities:
            try:
                check_entity(self.text, entity)
            except InputError as error:
                raise InputError(f"document {self.id}: {error}") from error


def check_entity(text: str, entity: Entity) -> None:
    """Refuse an entity that is not what stands at its place in the text."""
    if not 0 <= entity.start < entity.end <= len(text):
        raise InputError(
            f"the entity {entity.text[:60]!r} at {entity.start}:{entity.end} does not lie within the text's "
            f"{len(text)} characters: mend its offsets"
        )
    there = text[entity.start : entity.end]
    if there != entity.text:
        raise InputError(
            f"at {entity.start}:{entity.end} stands {there[:60]!r}, not {entity.text[:60]!r}: mend the offsets, which "
            f"count Unicode characters from 0"
        )


def read_score(score: Any) -> float:
    """Return a score as a number.

    Raises:
        InputError: it is none, or infinite.
    """
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"the score {str(score)[:80]} is no number")
    return number


def join_passages(parts: Iterable[tuple[str, int | None, Mapping[str, Any]]]) -> tuple[str, tuple[Passage, ...]]:
    """Put the parts of a document together, with a line break between two of them.

    Args:
        parts: text, offset and infons of each; without an offset it is the place in the text.
    """
    passages: list[Passage] = []
    texts: list[str] = []
    start = 0
    for text, offset, infons in parts:
        passages.append(Passage(start, start + len(text), start if offset is None else offset, infons))
        texts.append(text)
        start += len(text) + 1
    return "\n".join(texts), tuple(passages)


def without_overlaps(entities: Iterable[Entity]) -> list[Entity]:
    """Return entities in the order of the text; of those that share a character, the longest, then the first."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: (entity.start - entity.end, entity.start, entity.label)):
        place = bisect(kept, entity.start, key=lambda other: other.start)
        before, after = kept[place - 1 : place], kept[place : place + 1]
        if all(other.end <= entity.start for other in before) and all(other.start >= entity.end for other in after):
            kept.insert(place, entity)
    return kept
