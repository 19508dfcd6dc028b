"""Measure how far the scores of entities can be trusted, and find the least score that gives the best F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bioptimus_hf.models import MIN_SCORE
from bioptimus_hf.ner.scores import ratios

BINS = 10
_THRESHOLDS = [step / 100 for step in range(100)]  # which users can type

Floats = npt.NDArray[np.floating[Any]]


def score_of_entity(word_scores: Floats) -> float:
    """Return the score of an entity: the mean probability of the tags of its words.

    Args:
        word_scores: probability of the predicted tag of each word of the entity, float32.
    """
    return float(word_scores.mean())


@dataclass(frozen=True)
class ScoredEntities:
    """The entities that a head predicts in a data set.

    Attributes:
        scores: of each entity, between 0 and 1.
        correct: whether it is annotated, with the same boundaries and type.
        mentions: number of annotated entities.
    """

    scores: Floats
    correct: npt.NDArray[np.bool_]
    mentions: int

    def at(self, min_score: float) -> dict[str, float]:
        """Return `min_score`, and `precision`, `recall`, `f1` and the number `found` of entities with such a score."""
        kept = self.scores >= min_score
        scores = ratios(int(self.correct[kept].sum()), int(kept.sum()), self.mentions)
        return {
            "min_score": min_score,
            **{name: scores[name] for name in ("precision", "recall", "f1")},
            "found": int(kept.sum()),
        }


def calibration(entities: ScoredEntities, bins: int = BINS) -> dict[str, Any]:
    """Compare the scores of predicted entities with the share of them that is correct.

    The expected calibration error (Naeini et al. 2015; Guo et al. 2017) is the mean difference between score and
    precision over bins of equal width, weighted by the number of entities.

    Returns:
        `expected_calibration_error`, `mean_score` and `precision`, None without entities; and `bins`: `low` and `high`
        score, the number of entities `found`, and their `mean_score` and `precision`. The last bin includes 1.
    """
    number = np.minimum((entities.scores * bins).astype(int), bins - 1)
    rows = []
    for low in range(bins):
        row = {"low": low / bins, "high": (low + 1) / bins}
        rows.append(row | _means(entities, number == low))
    total = len(entities.scores)
    differences = [row["found"] * abs(row["mean_score"] - row["precision"]) for row in rows if row["found"]]
    overall = _means(entities, np.ones(total, dtype=bool))
    return {
        "expected_calibration_error": sum(differences) / total if total else None,
        **{name: overall[name] for name in ("mean_score", "precision")},
        "bins": rows,
    }


def scores_by_threshold(entities: ScoredEntities) -> list[dict[str, float]]:
    """Return the `ScoredEntities.at` each hundredth from 0 to 0.99."""
    return [entities.at(threshold) for threshold in _THRESHOLDS]


@dataclass(frozen=True)
class MinScore:
    """The least score of entities that gives the best F1 on the development set of a head.

    Attributes:
        best: the score: the lowest of those with the best F1. For a joint head, of those with the best mean F1 of the
            tasks.
        f1: on the development set, with entities of this score and more.
        f1_of_all: with all entities.
        left_out: share of the entities with a lower score.
    """

    best: float
    f1: float
    f1_of_all: float
    left_out: float

    def in_configuration(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of a head with this score."""
        return {**configuration, MIN_SCORE: asdict(self)}


def best_min_score(development: Sequence[ScoredEntities]) -> MinScore | None:
    """Find the least score with the best F1, or the best mean F1 of several tasks.

    Returns:
        None if nothing is found, or nothing is annotated: all scores are the same then.
    """
    if not any(entities.correct.any() for entities in development):
        return None
    means = [float(np.mean([entities.at(score)["f1"] for entities in development])) for score in _THRESHOLDS]
    best = _THRESHOLDS[int(np.argmax(means))]
    scores = np.concatenate([entities.scores for entities in development])
    return MinScore(best, max(means), means[0], float((scores < best).mean()))


def recommended_min_score(configuration: Any) -> MinScore | None:
    """Return what the configuration of a head says about the least score of its entities; None if it says nothing.

    Args:
        configuration: a `PretrainedConfig`.
    """
    try:
        found = MinScore(**getattr(configuration, MIN_SCORE, None))  # type: ignore[arg-type]
        return found if 0 <= found.best <= 1 else None
    except TypeError:  # of another program
        return None


def _means(entities: ScoredEntities, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    found = int(chosen.sum())
    return {
        "found": found,
        "mean_score": float(entities.scores[chosen].mean(dtype=np.float64)) if found else None,
        "precision": float(entities.correct[chosen].mean()) if found else None,
    }
