"""Scores of entities: strict IOB2, and the lenient figure of conlleval beside it."""

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
"""First word, the word behind the last one, type."""


def entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Score entities in strict IOB2, as seqeval does with `mode="strict", scheme=IOB2`.

    An entity begins with `B-`, and is right if its first word, last word and type are. An `I-` that continues nothing
    is no entity. conlleval, and seqeval by default, take it for the beginning of one, which gives other figures;
    published ones often do not say which was used.

    Args:
        gold: the tags of each sentence.
        predicted: as many.

    Returns:
        `precision`, `recall`, `f1` (shares between 0 and 1, micro average) and `support` (entities in `gold`); the same
        for each type as `<type>_precision` and so on; and what conlleval gives as `conlleval_precision`,
        `conlleval_recall` and `conlleval_f1`. A share of nothing is 0.

    Raises:
        InputError: the two differ in length, or a tag is not of IOB2.
    """
    _check(gold, predicted)
    right, found, true = Counter[str](), Counter[str](), Counter[str]()
    for its_true, its_found in _spans_of_both(gold, predicted, lenient=False):
        right.update(kind for _, _, kind in its_true & its_found)
        found.update(kind for _, _, kind in its_found)
        true.update(kind for _, _, kind in its_true)
    scores = _shares(right.total(), found.total(), true.total())
    for kind in sorted({*found, *true}):
        of_kind = _shares(right[kind], found[kind], true[kind])
        scores |= {f"{kind}_{name}": value for name, value in of_kind.items()}
    lenient = _shares(*_counts(gold, predicted, lenient=True).sum(axis=0).tolist())
    return scores | {f"conlleval_{name}": lenient[name] for name in ("precision", "recall", "f1")}


def entity_counts(gold: list[list[str]], predicted: list[list[str]]) -> NDArray[np.int64]:
    """Return what the strict scores of any choice of sentences follow from.

    Returns:
        A row a sentence: entities predicted rightly, entities predicted, entities in `gold`.

    Raises:
        InputError: as `entity_scores`.
    """
    _check(gold, predicted)
    return _counts(gold, predicted, lenient=False)


def _counts(gold: list[list[str]], predicted: list[list[str]], *, lenient: bool) -> NDArray[np.int64]:
    rows = [
        (len(true & found), len(found), len(true)) for true, found in _spans_of_both(gold, predicted, lenient=lenient)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _spans_of_both(
    gold: list[list[str]], predicted: list[list[str]], *, lenient: bool
) -> Iterator[tuple[set[Span], set[Span]]]:
    for right, guess in zip(gold, predicted, strict=True):
        true = _spans(right, lenient=lenient)
        yield true, true if guess == right else _spans(guess, lenient=lenient)


def _spans(tags: Sequence[str], *, lenient: bool) -> set[Span]:
    spans: set[Span] = set()
    begin, kind = 0, ""  # of the entity that is open, if any
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
    for number, (right, guess) in enumerate(zip(gold, predicted, strict=True)):
        if len(right) != len(guess):
            raise InputError(f"sentence {number} has {len(right)} tags in gold, {len(guess)} predicted")
    for tag in {tag for tags in (*gold, *predicted) for tag in tags}:
        if not TAG.fullmatch(tag):
            raise InputError(f"tags must be O, B-<type> or I-<type>, not {tag!r}")


def _shares(right: int, found: int, true: int) -> dict[str, float]:
    precision = right / found if found else 0.0
    recall = right / true if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": float(true)}
