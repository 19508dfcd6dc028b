"""Compare annotations with the text: keep those that only spell a mention differently, explain those that are wrong.

A source may give mentions in a normalised spelling (`TNF-a` where the text has `TNF-α`). Then the offsets stand. If the
offsets themselves are wrong, the error names the way of counting under which they would be right.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import SequenceMatcher
from functools import lru_cache
from typing import NamedTuple

from bioptimus_hf.corpus.documents import Entity, check_entity
from bioptimus_hf.corpus.reading import Source
from bioptimus_hf.errors import InputError

UNREADABLE = "annotations that can't be read and are left out"
"""What `InputFile.note` counts them as."""
_SIMILAR = 0.75  # of `SequenceMatcher.ratio`: `tumour` and `tumor` have 0.91, `aspirin` and `hepatitis` 0.25
_LONGEST = 200  # characters of a mention that is compared letter by letter
_FARTHEST = 200  # characters by which a mention is looked for around its place
_LONGEST_EXPLAINED = 1_000_000  # characters of a text in which the cause of wrong offsets is looked for
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
)
_LETTERS = "αβγδεζηθικλμνξοπρστυφχψω"
_TO_LATIN = str.maketrans(_LETTERS, "abgdezhqiklmnxoprstufcyw")
_TO_NAMES = str.maketrans(dict(zip(_LETTERS, _GREEK.split(), strict=True)))


def read_entities(file: Source, where: str, text: str, found: Iterable[Entity | InputError]) -> list[Entity]:
    """Return the entities of a text as the text spells them, and note mentions that are spelt differently.

    Args:
        file: where they come from. If its annotations are optional, those with an error are noted and left out.
        where: their place in the file, such as `line 3`.
        text: the text to which their offsets refer.
        found: the entities, with an error in place of each that can't be read.

    Raises:
        InputError: the first error, without `where`.
    """
    entities: list[Entity] = []
    for entity in found:
        try:
            if isinstance(entity, InputError):
                raise entity
            settled = settle_mention(text, entity)
        except InputError as error:
            if file.options.annotations == "needed":
                raise
            file.note(UNREADABLE, f"{where}: {error}")
            continue
        if settled.text != entity.text:
            example = f"{where}: {entity.text[:60]!r}, in the text {settled.text[:60]!r}"
            file.note("mentions spelt differently from the text, whose spelling is used", example)
        entities.append(settled)
    return entities


def settle_mention(text: str, entity: Entity) -> Entity:
    """Return an entity with its mention as the text spells it.

    Raises:
        InputError: the mention isn't in this place, not even in another spelling.
    """
    found = text[entity.start : entity.end]
    if found == entity.text and 0 <= entity.start < entity.end <= len(text):
        return entity
    if 0 <= entity.start < entity.end <= len(text) and _is_spelling(text, entity):
        return replace(entity, text=found)
    try:
        check_entity(text, entity)
    except InputError as error:
        cause = _cause(text, entity)
        raise InputError(f"{error} ({cause})" if cause else str(error)) from error
    return entity


def _is_spelling(text: str, entity: Entity) -> bool:
    """Tell whether a mention is another spelling of what its offsets point to."""
    found, mention = text[entity.start : entity.end], entity.text
    if " ".join(found.split()) == " ".join(mention.split()):  # a line break is written as a blank
        return found.strip() == found
    # The mention itself, a few characters beside its offsets, shows that they are wrong.
    around = text[max(0, entity.start - len(mention) + 1) : entity.end + len(mention) - 1]
    if not mention.strip() or mention in around or (found != found.strip() and mention == mention.strip()):
        return False
    if any(fold(found) == fold(mention) and fold(found) for fold in (_with_names, _with_latin)):
        return True
    if max(len(found), len(mention)) > _LONGEST or _cuts_a_word(text, entity.start) or _cuts_a_word(text, entity.end):
        return False
    pairs = ((fold(found), fold(mention)) for fold in (_with_names, _with_latin))
    return any(SequenceMatcher(None, *pair, autojunk=False).ratio() >= _SIMILAR for pair in pairs)


def _cuts_a_word(text: str, place: int) -> bool:
    return text[place - 1 : place].isalnum() and text[place : place + 1].isalnum()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKD", html.unescape(text)).casefold()


def _with_latin(text: str) -> str:
    """Reduce a mention to its letters and digits, Greek letters to the Latin ones that stand for them: α to a."""
    return "".join(filter(str.isalnum, _folded(text).translate(_TO_LATIN)))


def _with_names(text: str) -> str:
    """Reduce a mention to its letters and digits, Greek letters to their names: α to alpha."""
    return "".join(filter(str.isalnum, _folded(text).translate(_TO_NAMES)))


class _Counting(NamedTuple):
    """A wrong way to count offsets, and what turns them into right ones."""

    what: str
    corrected: Callable[[str, int, int], tuple[int, int]]


@lru_cache(maxsize=4)  # a document is asked about as often as it has annotations
def _encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


@lru_cache(maxsize=4)
def _with_wide_breaks(text: str) -> str:
    """Return a text as long in which line breaks, and nothing else, have two bytes in UTF-8."""
    return re.sub("[^\n]", "x", text).replace("\n", "é")


def _in_units(encoding: str, size: int) -> Callable[[str, int, int], tuple[int, int]]:
    """Return what turns offsets in units of an encoding into characters."""

    def corrected(text: str, start: int, end: int) -> tuple[int, int]:
        content = _encoded(text, encoding)
        first, last = (len(content[: place * size].decode(encoding, "ignore")) for place in (start, end))
        return first, last

    return corrected


def _with_long_breaks(text: str, start: int, end: int) -> tuple[int, int]:
    """Turn offsets that count each line break as two characters into characters."""
    return _in_units("utf-8", 1)(_with_wide_breaks(text), start, end)


_COUNTINGS = (
    _Counting("they seem to count the bytes of UTF-8", _in_units("utf-8", 1)),
    _Counting("they seem to count UTF-16 units, as Java and JavaScript do", _in_units("utf-16-le", 2)),
    _Counting("they seem to count each line break as two characters", _with_long_breaks),
    _Counting("they seem to be counted from 1", lambda _, start, end: (start - 1, end - 1)),
    _Counting("they seem to be counted from 1, the last character included", lambda _, start, end: (start - 1, end)),
    _Counting("the end seems to be that of the last character", lambda _, start, end: (start, end + 1)),
    _Counting("the second number seems to be the length", lambda _, start, end: (start, start + end)),
)  # fmt: skip


def _cause(text: str, entity: Entity) -> str:
    """Say under which way of counting the offsets of an entity are right, or where the mention is nearest to them."""
    mention = entity.text
    if not mention or entity.start < 0 or entity.end < 0 or len(text) > _LONGEST_EXPLAINED:
        return ""
    for counting in _COUNTINGS:
        start, end = counting.corrected(text, entity.start, entity.end)
        if start >= 0 and text[start:end] == mention:
            return counting.what
    # The nearest place of the mention, on either side.
    after = text.find(mention, entity.start, entity.start + _FARTHEST + len(mention))
    before = text.rfind(mention, max(0, entity.start - _FARTHEST), max(0, entity.start + len(mention) - 1))
    places = [place for place in (before, after) if place >= 0]
    if not places:
        return ""
    nearest = min(places, key=lambda place: abs(place - entity.start))
    return f"the mention begins at {nearest}"
