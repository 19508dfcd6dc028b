"""Compute strict IOB2 precision, recall and F1 of entities, and conlleval's lenient scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bioptimus_hf.corpus.conll import TAG
from bioptimus_hf.errors import InputError

SCORER = "strict IOB2 as seqeval, micro average over entities"
LENIENT_SCORER = "conlleval, which is seqeval's default: an I- that continues nothing begins an entity"

Span = tuple[int, int, str]
"""First word, the word after the last one, entity type."""


def entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Score entities in strict IOB2, like seqeval with `mode="strict", scheme=IOB2`.

    An entity begins with `B-`, and is correct if its first word, last word and type are. An `I-` that doesn't continue
    an entity is ignored. conlleval, and seqeval by default, start an entity there, which gives other figures; papers
    often don't say which of the two they used.

    Args:
        gold: tags of each sentence.
        predicted: tags of each sentence, as many as in `gold`.

    Returns:
        `precision`, `recall`, `f1` (shares between 0 and 1, micro average) and `support` (entities in `gold`); the same
        for each type as `<type>_precision` and so on; and the scores of conlleval as `conlleval_precision`,
        `conlleval_recall` and `conlleval_f1`. A ratio with denominator 0 is 0.

    Raises:
        InputError: the lengths differ, or a tag isn't IOB2.
    """
    _check(gold, predicted)
    correct, found, true = Counter[str](), Counter[str](), Counter[str]()
    for gold_spans, predicted_spans in _span_pairs(gold, predicted, lenient=False):
        correct.update(kind for _, _, kind in gold_spans & predicted_spans)
        found.update(kind for _, _, kind in predicted_spans)
        true.update(kind for _, _, kind in gold_spans)
    scores = _ratios(correct.total(), found.total(), true.total())
    for kind in sorted({*found, *true}):
        of_kind = _ratios(correct[kind], found[kind], true[kind])
        scores |= {f"{kind}_{name}": value for name, value in of_kind.items()}
    lenient = _ratios(*_counts(gold, predicted, lenient=True).sum(axis=0).tolist())
    return scores | {f"conlleval_{name}": lenient[name] for name in ("precision", "recall", "f1")}


def entity_counts(gold: list[list[str]], predicted: list[list[str]]) -> NDArray[np.int64]:
    """Count entities by sentence; the strict scores of any sample of sentences follow from the sums.

    Returns:
        An array (sentences, 3): entities predicted correctly, entities predicted, entities in `gold`.

    Raises:
        InputError: as for `entity_scores`.
    """
    _check(gold, predicted)
    return _counts(gold, predicted, lenient=False)


def _counts(gold: list[list[str]], predicted: list[list[str]], *, lenient: bool) -> NDArray[np.int64]:
    rows = [(len(true & found), len(found), len(true)) for true, found in _span_pairs(gold, predicted, lenient=lenient)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _span_pairs(
    gold: list[list[str]], predicted: list[list[str]], *, lenient: bool
) -> Iterator[tuple[set[Span], set[Span]]]:
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        true = _spans(gold_tags, lenient=lenient)
        yield true, true if predicted_tags == gold_tags else _spans(predicted_tags, lenient=lenient)


def _spans(tags: Sequence[str], *, lenient: bool) -> set[Span]:
    spans: set[Span] = set()
    begin, kind = 0, ""  # of the open entity, if any
    for place, tag in enumerate((*tags, "O")):
        if kind and tag == f"I-{kind}":
            continue
        if kind:
            spans.add((begin, place, kind))
        begin, kind = place, tag[2:] if lenient or tag.startswith("B-") else ""
    return spans


def _check(gold: list[list[str]], predicted: list[list[str]]) -> None:
    if len(gold) != len(predicted):
        raise InputError(f"{len(gold)} sentences in gold, {len(predicted)} predicted")
    for number, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted, strict=True)):
        if len(gold_tags) != len(predicted_tags):
            raise InputError(f"sentence {number} has {len(gold_tags)} tags in gold, {len(predicted_tags)} predicted")
    for tag in {tag for tags in (*gold, *predicted) for tag in tags}:
        if not TAG.fullmatch(tag):
            raise InputError(f"tags must be O, B-<type> or I-<type>, not {tag!r}")


def _ratios(correct: int, found: int, true: int) -> dict[str, float]:
    precision = correct / found if found else 0.0
    recall = correct / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": float(true)}
