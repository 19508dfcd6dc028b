"""Compare the F1 of NER heads in pairs, with bootstrap intervals."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bioptimus_hf.ner.options import JOINT
from bioptimus_hf.ner.results import SEARCH, HeadResult, HeadSetup, single_model, spread
from bioptimus_hf.ner.tasks import BLURB_NER

RESAMPLES = 1000
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Estimate:
    """A difference between two models, and how uncertain it is.

    Attributes:
        mean: over the pairs.
        samples: the same in each resample.
        variance: of the samples, which is itself an estimate.
        uncertainty: the squares of those parts of this variance that come from the differences between a few pairs,
            each divided by its degrees of freedom.
    """

    mean: float
    samples: Floats
    variance: float
    uncertainty: float

    def widening(self, tail: float) -> float:
        """Return how much wider than from a known variance an interval is that leaves out `tail` (< 0.5) on each side.

        Quantiles are those of Student's t instead of the normal distribution, with the degrees of freedom of
        Satterthwaite (1946).
        """
        from scipy.special import ndtri, stdtrit  # takes a while to load, and only intervals need it

        if not self.uncertainty:
            return 1.0
        degrees = self.variance**2 / self.uncertainty
        return float(stdtrit(degrees, tail) / ndtri(tail))

    def interval(self) -> list[float]:
        """Return the interval for this difference alone."""
        tail = (1 - LEVEL) / 2
        widening = self.widening(tail)
        edges = np.quantile(self.samples, (tail, 1 - tail)).tolist()
        return [self.mean + widening * (edge - self.mean) for edge in edges]


def paired_differences(
    results: Sequence[HeadResult], references: Sequence[str], *, only: str | None = None, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """Compare the F1 of each model with the references, in pairs with equal task, seed, data and training settings.

    Settings that were chosen from the same grid count as equal: choosing them belongs to the training. A reference is
    compared with those before it. A joint head is compared with the joint heads of the references, and with the heads
    of single tasks on the same model (pairs with equal task, seed, model, data of this task, and training settings).

    The interval is a percentile bootstrap: each resample draws test sentences (the same ones for all models and seeds),
    and adds variation as that between the pairs, from a normal distribution. It covers the variation from another test
    set and from other trainings; with a single pair, from the test set alone. What a few pairs say about the variation
    between trainings is itself uncertain, so intervals are widened as Student's t is wider than the normal
    distribution. The random numbers depend on the task alone, so an interval doesn't change when other tasks or models
    are added.

    Who reads many intervals finds some that miss the true difference. So each row also has a simultaneous interval: in
    95 % of all cases, every one of them covers its true difference. They are as wide as the largest of all studentised
    deviations in a resample demands (max-t, Westfall & Young 1993; Romano & Wolf 2005), which takes into account that
    comparisons with the same reference, and the average with its tasks, are correlated; Holm's method doesn't. Then
    each is widened like the others, at the level that this leaves to it.

    Args:
        references: labels of the models that others are compared with.
        only: label of a model: leave out comparisons other than those of its heads with the references.
        resamples: number of resamples.

    Returns:
        A row for each task and model, in the order of `results`: `minus` (the model that it is compared with), `seeds`
        (of the pairs), `mean` and `standard_deviation` of the F1 differences over the pairs, in shares, `interval`
        (95 %, for this row alone) and `simultaneous_interval` (95 %, for all rows together; for a single row, the
        same). Models that have pairs in all five BLURB tasks get a row for the average too (`task` is `average`),
        without `seeds` and `standard_deviation`.
    """
    rows = []
    drawn: dict[tuple[str, str, str], _Estimate] = {}
    for task in dict.fromkeys(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        weights = _sentence_weights(task, len(of_task[0].counts), resamples)
        resampled = {id(result): _f1(weights @ result.counts) for result in of_task}
        for model, other in _comparisons(dict.fromkeys(result.model for result in of_task), references):
            wanted = only is None or single_model(model) == only != single_model(other)
            pairs = _pairs(of_task, model, other) if wanted else []
            if not pairs:
                continue
            observed = [head.scores["f1"] - base.scores["f1"] for head, base in pairs]
            by_pair = np.stack([resampled[id(head)] - resampled[id(base)] for head, base in pairs], axis=1)
            drawn[task, model, other] = _resampled(task, np.array(observed), by_pair)
            row = {"task": task, "model": model, "minus": other, "seeds": [head.seed for head, _ in pairs]}
            rows.append({**row, **spread(observed)})
    averaged = _average_differences(drawn)
    rows += [dict(zip(("task", "model", "minus"), key, strict=True)) | {"mean": averaged[key].mean} for key in averaged]
    estimates = [*drawn.values(), *averaged.values()]
    intervals = zip(rows, estimates, _simultaneous_intervals(estimates), strict=True)
    return [
        {**row, "interval": estimate.interval(), "simultaneous_interval": simultaneous}
        for row, estimate, simultaneous in intervals
    ]


def _comparisons(models: Iterable[str], references: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each model with those that it is compared with."""
    for model in models:
        single = single_model(model)
        earlier = references[: references.index(single)] if single in references else references
        if single == model:
            yield from ((model, other) for other in earlier)
        else:
            yield from ((model, other) for other in (*(f"{JOINT}/{reference}" for reference in earlier), single))


def _pairs(results: Sequence[HeadResult], model: str, other: str) -> list[tuple[HeadResult, HeadResult]]:
    """Return the results of a model with those of the other that differ from them in the model, or in being joint."""
    left_out = JOINT if single_model(model) == other else "model"

    def key(head: HeadSetup) -> tuple[int, str]:
        kept = {"inputs": head.inputs, "settings": head.settings}
        chosen = {left_out, *head.settings.get(SEARCH, {})}
        equal = {kind: {k: v for k, v in of.items() if k not in chosen} for kind, of in kept.items()}
        return head.seed, json.dumps(equal, sort_keys=True)

    others = {key(result): result for result in results if result.model == other}
    return [(head, others[key(head)]) for head in results if head.model == model and key(head) in others]


def _average_differences(
    drawn: Mapping[tuple[str, str, str], _Estimate],
) -> dict[tuple[str, str, str], _Estimate]:
    """Average the differences of the five BLURB tasks, for each comparison that has them all.

    Args:
        drawn: the differences, by task, model and the model that it is compared with.
    """
    averaged = {}
    for model, other in dict.fromkeys(key[1:] for key in drawn):
        if all((task, model, other) in drawn for task in BLURB_NER):
            of_tasks = [drawn[task, model, other] for task in BLURB_NER]
            averaged["average", model, other] = _Estimate(
                statistics.fmean(one.mean for one in of_tasks),
                np.mean([one.samples for one in of_tasks], axis=0),
                sum(one.variance for one in of_tasks) / len(of_tasks) ** 2,
                sum(one.uncertainty for one in of_tasks) / len(of_tasks) ** 4,
            )
    return averaged


def _simultaneous_intervals(estimates: Sequence[_Estimate]) -> list[list[float]]:
    """Return an interval for each estimate, which together cover all true values with probability `LEVEL`."""
    from scipy.special import ndtr  # takes a while to load, and only intervals need it

    if len(estimates) < 2:
        return [estimate.interval() for estimate in estimates]
    means = np.array([estimate.mean for estimate in estimates])
    samples = np.stack([estimate.samples for estimate in estimates])
    errors = samples.std(axis=1, ddof=1)
    deviations = np.abs(samples - means[:, None])
    studentised = np.divide(deviations, errors[:, None], out=np.zeros_like(samples), where=errors[:, None] > 0)
    largest = float(np.quantile(studentised.max(axis=0), LEVEL))
    if not largest:  # nothing varies, except for rounding
        return [[estimate.mean, estimate.mean] for estimate in estimates]
    half = largest * errors * [estimate.widening(float(ndtr(-largest))) for estimate in estimates]
    return np.stack([means - half, means + half], axis=1).tolist()  # type: ignore[no-any-return]


def _sentence_weights(task: str, sentences: int, resamples: int) -> Floats:
    """Return how often each resample draws each sentence, as an array (resamples, sentences)."""
    places = _generator(task, sentences).integers(sentences, size=(resamples, sentences))
    places += np.arange(resamples)[:, None] * sentences
    drawn = np.bincount(places.ravel(), minlength=resamples * sentences)
    return drawn.reshape(resamples, sentences).astype(np.float64)


def _resampled(task: str, observed: Floats, by_pair: Floats) -> _Estimate:
    """Return the mean difference, with the variation from drawing sentences and from training again.

    Pairs differ for two reasons: the trainings differ, and each head errs in different sentences. Resampling sentences
    already covers the second, and counting it twice would make the intervals too wide. So the variation that is added
    is scaled down to the variance that comes from training.

    Args:
        observed: F1 difference of each pair.
        by_pair: the same in each resample, as an array (resamples, pairs).
    """
    resamples, pairs = by_pair.shape
    means: Floats = by_pair.mean(axis=1)
    mean, variance = float(observed.mean()), float(means.var())
    if pairs == 1:
        return _Estimate(mean, means, variance, 0.0)
    from_sentences = max(0.0, float(by_pair.var(axis=0).mean()) - variance) / (pairs - 1)
    total = float(observed.var(ddof=1)) / pairs
    from_training = max(0.0, total - from_sentences)
    # Pairs that are drawn with replacement would give a few values, which don't reach as far as those of a normal
    # distribution. The same numbers for all models keep the correlation of their differences.
    weights = _generator(task, pairs).standard_normal((resamples, pairs)) / math.sqrt(pairs * (pairs - 1))
    share = from_training / total if total > 0 else 0.0
    samples = means + math.sqrt(share) * (weights @ (observed - mean))
    # How much the pairs differ, for either reason, is an estimate from these few pairs.
    variance += from_training
    return _Estimate(mean, samples, variance, min(max(total, from_sentences), variance) ** 2 / (pairs - 1))


def _generator(task: str, size: int) -> np.random.Generator:
    return np.random.default_rng([*task.encode(), size])


def _f1(counts: Floats) -> Floats:
    """Return the micro F1 of rows (correct, predicted, gold)."""
    correct, both = counts[:, 0], counts[:, 1] + counts[:, 2]
    f1: Floats = np.divide(2 * correct, both, out=np.zeros_like(correct), where=both > 0)
    return f1
