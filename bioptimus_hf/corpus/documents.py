"""Define documents and their named entities, whatever the format of the file."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bioptimus_hf.errors import InputError


@dataclass(frozen=True)
class Entity:
    """A mention in a text.

    Attributes:
        start: offset of the first character, counted in Unicode code points like Python's own indices.
        end: offset after the last character.
        text: the mention itself: `document.text[start:end]`.
        label: the entity type.
        score: confidence between 0 and 1; 1 if the source states none.
        identifier: its identifier in a terminology, if known (in PubTator, the columns after the type).
    """

    start: int
    end: int
    text: str
    label: str
    score: float = 1.0
    identifier: str = ""


@dataclass(frozen=True)
class Passage:
    """A section of a document that its source marks as such, for instance the title.

    Attributes:
        start: offset of the first character in the document's text.
        end: offset after the last character.
        offset: the number that the source gives the first character; it may count characters that the text doesn't
            contain.
        infons: what the source says about the passage, like `{"type": "title"}`.
    """

    start: int
    end: int
    offset: int
    infons: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A text and its entities.

    Attributes:
        id: the source's identifier; if it gives none, the number of the line, row or sentence, counted from 1.
        text: the text to which all offsets refer.
        entities: the mentions.
        passages: the sections in order, separated by line breaks; empty if the source marks none.
        tokens: start and end offset of each token, if the source is tokenised.
        extra: everything else in the source, so that a file of the same format can keep it.

    Raises:
        InputError: an entity's text isn't what its offsets point to, or the text isn't valid Unicode.
    """

    id: str
    text: str
    entities: Sequence[Entity] = ()
    passages: Sequence[Passage] = ()
    tokens: Sequence[tuple[int, int]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text.isascii():
            try:
                self.text.encode()
            except UnicodeEncodeError as error:  # "\ud83d" alone is valid JSON, but not a character
                raise InputError(
                    f"document {self.id}: half a surrogate pair at character {error.start}: fix the text"
                ) from error
        for entity in self.entities:
            try:
                check_entity(self.text, entity)
            except InputError as error:
                raise InputError(f"document {self.id}: {error}") from error


def check_entity(text: str, entity: Entity) -> None:
    """Reject an entity whose text isn't what its offsets point to."""
    if not 0 <= entity.start < entity.end <= len(text):
        raise InputError(
            f"the entity {entity.text[:60]!r} at {entity.start}:{entity.end} isn't within the text's {len(text)} "
            f"characters: fix its offsets"
        )
    found = text[entity.start : entity.end]
    if found != entity.text:
        raise InputError(
            f"the text at {entity.start}:{entity.end} is {found[:60]!r}, not {entity.text[:60]!r}: fix the offsets, "
            f"which count Unicode characters from 0"
        )


def read_score(score: Any) -> float:
    """Return a score as a number.

    Raises:
        InputError: the score isn't a number, or is infinite.
    """
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"the score {str(score)[:80]} is not a finite number")
    return number


def join_passages(sections: Iterable[tuple[str, int | None, Mapping[str, Any]]]) -> tuple[str, tuple[Passage, ...]]:
    """Join the sections of a document with line breaks.

    Args:
        sections: text, offset and infons of each; None as the offset stands for the place in the joined text.
    """
    passages: list[Passage] = []
    texts: list[str] = []
    start = 0
    for text, offset, infons in sections:
        passages.append(Passage(start, start + len(text), start if offset is None else offset, infons))
        texts.append(text)
        start += len(text) + 1
    return "\n".join(texts), tuple(passages)


def without_overlaps(entities: Iterable[Entity]) -> list[Entity]:
    """Return entities in text order; of those that share a character keep the longest, then the first."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: (entity.start - entity.end, entity.start, entity.label)):
        place = bisect(kept, entity.start, key=lambda other: other.start)
        before, after = kept[place - 1 : place], kept[place : place + 1]
        if all(other.end <= entity.start for other in before) and all(other.start >= entity.end for other in after):
            kept.insert(place, entity)
    return kept
