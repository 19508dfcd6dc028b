"""Compute strict IOB2 precision, recall and F1 of entities, and conlleval's lenient scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.tags import BEGINNING, OUTSIDE, TAG, Tag, known_tag, parse_tag
from bioptimus_hf.errors import InputError

SCORER = "strict IOB2 as seqeval, micro average over entities"
LENIENT_SCORER = "conlleval, which is seqeval's default: an I- that continues nothing begins an entity"

Span = tuple[int, int, str]
"""First word, the word after the last one, entity type."""


@check_call()
def entity_scores(
    gold: list[list[str]], predicted: list[list[str]], *, merged_type: str | None = None
) -> dict[str, float]:
    """Score entities in strict IOB2, like seqeval with `mode="strict", scheme=IOB2`.

    An entity begins with `B-`, and is correct if its first word, last word and type are. An `I-` that doesn't continue
    an entity is ignored. conlleval, and seqeval by default, start an entity there, which gives other figures; papers
    often don't say which of the two they used.

    Tags of IOBES, BILOU and BMES score as they would in IOB2. Tags may have no type (`B` and `I`), if none has.

    Args:
        gold: tags of each sentence.
        predicted: tags of each sentence, as many as in `gold`.
        merged_type: if given, all types, and tags without one, count as this type.

    Returns:
        `precision`, `recall`, `f1` (shares between 0 and 1, micro average) and `support` (entities in `gold`); the same
        for each type that has a name as `<type>_precision` and so on; and the scores of conlleval as
        `conlleval_precision`, `conlleval_recall` and `conlleval_f1`. A ratio with denominator 0 is 0.

    Raises:
        InputError: the lengths differ, a tag is unknown, or only some of the tags have a type.
    """
    if merged_type is not None and not TAG.fullmatch(f"B-{merged_type}"):
        raise InputError(f"a type can't be called {merged_type!r}: no spaces, no hyphen at either end")
    _check(gold, predicted, typed=merged_type is None)
    correct, found, true = Counter[str](), Counter[str](), Counter[str]()
    for gold_spans, predicted_spans in _span_pairs(gold, predicted, lenient=False, merged_type=merged_type):
        correct.update(kind for _, _, kind in gold_spans & predicted_spans)
        found.update(kind for _, _, kind in predicted_spans)
        true.update(kind for _, _, kind in gold_spans)
    scores = ratios(correct.total(), found.total(), true.total())
    for kind in sorted({*found, *true} - {""}):
        of_kind = ratios(correct[kind], found[kind], true[kind])
        scores |= {f"{kind}_{name}": value for name, value in of_kind.items()}
    lenient = ratios(*_counts(gold, predicted, lenient=True, merged_type=merged_type).sum(axis=0).tolist())
    return scores | {f"conlleval_{name}": lenient[name] for name in ("precision", "recall", "f1")}


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """Return the entities of a sentence in strict IOB2, in their order; they don't overlap."""
    return sorted(_spans(tags, lenient=False, merged_type=None))


def entity_counts(gold: list[list[str]], predicted: list[list[str]]) -> NDArray[np.int64]:
    """Count entities by sentence; the strict scores of any sample of sentences follow from the sums.

    Returns:
        An array (sentences, 3): entities predicted correctly, entities predicted, entities in `gold`.

    Raises:
        InputError: as for `entity_scores`.
    """
    _check(gold, predicted)
    return _counts(gold, predicted, lenient=False)


def _counts(
    gold: list[list[str]], predicted: list[list[str]], *, lenient: bool, merged_type: str | None = None
) -> NDArray[np.int64]:
    pairs = _span_pairs(gold, predicted, lenient=lenient, merged_type=merged_type)
    rows = [(len(true & found), len(found), len(true)) for true, found in pairs]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _span_pairs(
    gold: list[list[str]], predicted: list[list[str]], *, lenient: bool, merged_type: str | None
) -> Iterator[tuple[set[Span], set[Span]]]:
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        true = _spans(gold_tags, lenient, merged_type)
        yield true, true if predicted_tags == gold_tags else _spans(predicted_tags, lenient, merged_type)


def _spans(tags: Sequence[str], lenient: bool, merged_type: str | None) -> set[Span]:
    spans: set[Span] = set()
    begin: int | None = None  # of the open entity, if any
    before = Tag(OUTSIDE)
    for place, tag in enumerate((*tags, OUTSIDE)):
        found = parse_tag(tag) or before  # all were checked
        if begin is None or not found.continues(before):
            if begin is not None:
                spans.add((begin, place, before.type if merged_type is None else merged_type))
            begin = place if found.mark in ("BSIE" if lenient else BEGINNING) else None
        before = found
    return spans


def _check(gold: list[list[str]], predicted: list[list[str]], *, typed: bool = True) -> None:
    """Check lengths and tags, and, if `typed`, that all tags have a type or none has."""
    if len(gold) != len(predicted):
        raise InputError(f"{len(gold)} sentences in gold, {len(predicted)} predicted")
    for number, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted, strict=True)):
        if len(gold_tags) != len(predicted_tags):
            raise InputError(f"sentence {number} has {len(gold_tags)} tags in gold, {len(predicted_tags)} predicted")
    examples: dict[bool, str] = {}
    for tag in sorted({tag for tags in (*gold, *predicted) for tag in tags}):
        found = known_tag(tag)
        if found is None:
            raise InputError(f"tags must be O, B-<type> or I-<type> (or those of IOBES or BILOU), not {tag!r}")
        if found.mark != OUTSIDE:
            examples[bool(found.type)] = tag
    if typed and len(examples) == 2:
        raise InputError(f"{examples[True]!r} has a type and {examples[False]!r} has none: name one as merged_type")


def ratios(correct: int, found: int, true: int) -> dict[str, float]:
    """Return precision, recall, F1 and support; a ratio with denominator 0 is 0.

    Args:
        correct: entities predicted correctly.
        found: entities predicted.
        true: entities in the gold data.
    """
    precision = correct / found if found else 0.0
    recall = correct / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": float(true)}
