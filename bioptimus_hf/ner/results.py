"""Read the results of NER heads, average them over seeds, and compare models with bootstrap intervals."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bioptimus_hf.artifacts import RECORD, read_json, read_record, verify
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.options import JOINT
from bioptimus_hf.ner.scores import entity_counts, entity_scores
from bioptimus_hf.ner.tasks import BLURB_NER, SPLITS

RESAMPLES = 1000
LEVEL = 0.95
METRICS = ("f1", "conlleval_f1", "precision", "recall")
"""Scores that are averaged over seeds."""

BASE = "base"
"""Label of the model that a run adapts."""
SEARCH = "search"
"""Setting of a head whose training settings were chosen on the development set: the values of each that were tried."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeadSetup:
    """What a head is trained and tested on, and how. A joint head has one for each task.

    Attributes:
        task: name of the NER task.
        model: label of the encoder, after `joint/` if the head is a joint one.
        seed: of the training.
        gold: hash of the words and gold tags of the test set.
        settings: of the training, without the seed.
        inputs: identity of each input by name: `model`, `train`, `validation`, `test`. For a head scored on another
            task these are the inputs of its training, with that task's test set; for a joint head, those of this task,
            while `joint` in the settings has all.
    """

    task: str
    model: str
    seed: int
    gold: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HeadResult(HeadSetup):
    """How a head scored on its test set.

    Attributes:
        scores: from `entity_scores`.
        counts: from `entity_counts`.
    """

    scores: Mapping[str, float]
    counts: NDArray[np.int64]


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


def adapted_model(run: Path) -> str | None:
    """Return the identity of the model that a run adapts; None if it adapts none."""
    folder = run / "tokenizer"
    identity: str | None = read_record(folder)["inputs"].get("base_model") if (folder / RECORD).is_file() else None
    return identity


def finished_heads(root: Path) -> list[Path]:
    """Return the folders of all finished heads in `ner`, or of all finished tests in `cross_test`.

    They are sorted by task, model and seed.
    """
    folders = [record.parent for record in root.glob(f"*/*/*/{RECORD}") if record.parent.name.isdecimal()]
    return sorted(folders, key=lambda folder: (folder.parts[-3:-1], int(folder.name)))


def missing_reason(head: Path) -> Path:
    """Return the file that says why a head is missing, beside its folder."""
    return head.with_name(f"{head.name}.missing.json")


def missing_heads(root: Path) -> dict[Path, str]:
    """Return why a head is missing, by its folder, for each one in `ner` whose training diverged."""
    files = sorted(root.glob(f"*/*/*{missing_reason(Path('x')).name.removeprefix('x')}"))
    return {file.with_name(file.name.partition(".")[0]): str(read_json(file)["reason"]) for file in files}


def tests_of(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the test scores in a head's `scores.json`, by task: one, or those of a joint head."""
    return dict(scores["tests"]) if "tests" in scores else {scores["task"]: scores["test"]}


def training_record(folder: Path) -> dict[str, Any]:
    """Return what is known about a training: of a head, or of a setting that was tried for a task and model.

    Returns:
        `task`, `model`, `seed`, `settings` of the training, `dev` (scores of the epoch that was kept, or None), `test`
        (scores of a head by task; None if it wasn't scored), `reason` (why it failed, or None), `seconds`, and
        `versions` of the packages with, if this one was run from a repository, its `commit`.
    """
    record, scores = read_record(folder), read_json(folder / "scores.json")
    best = [row for row in scores.get("validation", []) if row["epoch"] == scores["best_epoch"]]
    return {
        **{name: scores[name] for name in ("task", "model", "seed")},
        "settings": {name: value for name, value in record["settings"].items() if name != "seed"},
        "dev": best[0] if best else None,
        "test": tests_of(scores) if "test" in scores or "tests" in scores else None,
        "reason": scores.get("reason"),
        "seconds": record["seconds"],
        "versions": record.get("versions", {}),
    }


def joint_setup(setup: HeadSetup, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> HeadSetup:
    """Return what a joint head is trained and tested on, as far as it concerns a task.

    Args:
        setup: task, label of the encoder, seed and test set.
        inputs: of the head: `model`, and `<task>/<split>` of each task.
        settings: of the head, without the seed: those of training, and `merged_types`.
    """
    own = {split: inputs[f"{setup.task}/{split}"] for split in SPLITS}
    data = {name: value for name, value in inputs.items() if name != "model"}
    training = {name: value for name, value in settings.items() if name != "merged_types"}
    return replace(
        setup,
        model=f"{JOINT}/{setup.model}",
        settings={**training, "merged_type": settings["merged_types"][setup.task], JOINT: data},
        inputs={"model": inputs["model"], **own},
    )


def read_results(folders: Iterable[Path]) -> list[HeadResult]:
    """Read finished heads: `scores.json` (task, model, seed), predictions and `made.json`. A joint head has one result
    for each task.

    Raises:
        InputError: a file isn't as `experiments.make_heads` writes it, or the heads aren't comparable (see
            `check_comparable`).
    """
    results = [(folder, result) for folder in folders for result in read_head(folder)]
    check_comparable(results)
    return [result for _, result in results]


def check_comparable(heads: Iterable[tuple[Path, HeadSetup]]) -> None:
    """Check that heads can be averaged over seeds and compared within a task.

    Args:
        heads: finished or yet to be trained, with their folders.

    Raises:
        InputError: two heads of a task have different test sets, or two seeds of a task and model were trained
            differently. Both folders are named.
    """
    tested: dict[str, tuple[Path, str]] = {}
    trained: dict[tuple[str, str], tuple[Path, str]] = {}
    for folder, head in heads:
        other, gold = tested.setdefault(head.task, (folder, head.gold))
        if head.gold != gold:
            raise InputError(f"{other} and {folder} have different test sets: move the older one away")
        training = _key({"inputs": head.inputs, "settings": head.settings})
        other, other_training = trained.setdefault((head.task, head.model), (folder, training))
        if training != other_training:
            raise InputError(
                f"{other} and {folder} have different inputs or settings and can't be averaged: train all seeds alike "
                f"with force, or move the older ones away"
            )


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return `mean` and `standard_deviation` of a sample; a single value has no standard deviation (None)."""
    return {
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def mean_and_standard_deviation(spread: Mapping[str, float | None]) -> str:
    """Format what `spread` returns in percent: `77.41 ± 0.20`, or `77.41` for a single value."""
    mean, standard_deviation = (
        None if value is None else f"{100 * value:.2f}" for value in (spread["mean"], spread["standard_deviation"])
    )
    return f"{mean} ± {standard_deviation}" if standard_deviation else f"{mean}"


def difference_and_interval(row: Mapping[str, Any]) -> str:
    """Format a row of `paired_differences` in percent, with the simultaneous interval: `+1.20 (+0.31 to +2.05)`."""
    low, high = row["simultaneous_interval"]
    return f"{100 * row['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def summary_row(task: str, model: str, scores: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Summarise the heads of one task and model.

    Args:
        scores: from `entity_scores`, by seed.

    Returns:
        `task`, `model`, `seeds`, `support` (mentions in the test set), and the `spread` of each of `METRICS`, in shares
        between 0 and 1.
    """
    return {
        "task": task,
        "model": model,
        "seeds": list(scores),
        "support": int(next(iter(scores.values()))["support"]),
        **{name: spread([of_seed[name] for of_seed in scores.values()]) for name in METRICS},
    }


def summarize(results: Sequence[HeadResult]) -> list[dict[str, Any]]:
    """Return the `summary_row` of each task and model, in the order of `results`."""
    groups: dict[tuple[str, str], dict[int, Mapping[str, float]]] = defaultdict(dict)
    for result in results:
        groups[result.task, result.model][result.seed] = result.scores
    return [summary_row(task, model, scores) for (task, model), scores in groups.items()]


def averages(results: Sequence[HeadResult]) -> list[dict[str, Any]]:
    """Average the five BLURB tasks for each model that has them all, over the seeds that every task has.

    Returns:
        Rows like those of `summarize`, without `support`. The standard deviation is that of the average over seeds.
    """
    models = dict.fromkeys(result.model for result in results)
    scores = {
        model: {(result.task, result.seed): result.scores for result in results if result.model == model}
        for model in models
    }
    return [row for model in models if (row := average_row(model, scores[model]))]


def average_row(model: str, scores: Mapping[tuple[str, int], Mapping[str, float]]) -> dict[str, Any]:
    """Average the five BLURB tasks for a model; nothing if there is no seed that every task has.

    Args:
        scores: from `entity_scores`, by task and seed.

    Returns:
        A row as `averages` has it.
    """
    seeds = [seed for _, seed in scores if all((task, seed) in scores for task in BLURB_NER)]
    if not seeds:
        return {}
    seeds = list(dict.fromkeys(seeds))
    means = {
        name: spread([statistics.fmean(scores[task, seed][name] for task in BLURB_NER) for seed in seeds])
        for name in METRICS
    }
    return {"task": "average", "model": model, "seeds": seeds, **means}


def paired_differences(
    results: Sequence[HeadResult], references: Sequence[str], *, resamples: int = RESAMPLES
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
            pairs = _pairs(of_task, model, other)
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


def single_model(model: str) -> str:
    """Return the label of the model of a joint head, or the label itself."""
    return model.removeprefix(f"{JOINT}/")


def read_predictions(path: Path) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Read the words, gold tags and predicted tags of each sentence from a file that `conll.write_conll` wrote.

    `read_conll` would repair the predicted tags.

    Raises:
        InputError: the file can't be read or has another format.
    """
    try:
        blocks = path.read_bytes().decode("utf-8").removesuffix("\n\n").split("\n\n")
        rows = [[line.split("\t") for line in block.split("\n")] for block in blocks]
        words, gold, predicted = zip(
            *([list(column) for column in zip(*sentence, strict=True)] for sentence in rows), strict=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{path} doesn't hold the predictions of a head: train it again with force") from error
    return list(words), list(gold), list(predicted)


def hash_of_gold(words: Iterable[Sequence[str]], tags: Iterable[Sequence[str]]) -> str:
    """Return a hash that identifies a test set."""
    return hashlib.sha256(json.dumps([list(words), list(tags)]).encode()).hexdigest()


def read_head(folder: Path) -> list[HeadResult]:
    """Read the result of a finished head, or the results of a joint head on its tasks.

    Raises:
        InputError: a file isn't as `experiments.make_heads` writes it.
    """
    verify(folder, hashes=False)
    verify(folder, only=("scores.json", "predictions.tsv"))  # what is read; the weights may be large
    try:
        content = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        name = {key: content[key] for key in ("task", "model", "seed")}
        tasks = list(content.get("tests", []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / 'scores.json'} isn't that of a finished head: train it again with force"
        ) from error
    if not tasks:
        return [_read_single(folder, name, content)]
    record = read_record(folder)
    settings = {key: value for key, value in record["settings"].items() if key != "seed"}
    results = []
    for task in tasks:
        file = predictions_file(task)
        verify(folder, only=(file,))
        gold, tested = _read_test(folder / file)
        setup = HeadSetup(task, name["model"], name["seed"], gold)
        results.append(HeadResult(**vars(joint_setup(setup, record["inputs"], settings)), **tested))
    return results


def predictions_file(task: str) -> str:
    """Return where a joint head keeps its predictions for a task, relative to its folder."""
    return f"predictions-{task}.tsv"


def _read_single(folder: Path, name: Mapping[str, Any], content: Mapping[str, Any]) -> HeadResult:
    gold, tested = _read_test(folder / "predictions.tsv")
    made = read_record(folder)
    trained = content.get("trained", made)  # of a head that was scored on another task
    inputs = {**trained["inputs"], **made["inputs"]}
    return HeadResult(
        **name,
        gold=gold,
        settings={key: value for key, value in trained["settings"].items() if key != "seed"},
        inputs={key: value for key, value in inputs.items() if key != "head"},  # which differs between seeds
        **tested,
    )


def _read_test(predictions: Path) -> tuple[str, dict[str, Any]]:
    """Return the hash of a test set, and scores and counts of the predictions."""
    words, gold, predicted = read_predictions(predictions)
    counted = {"scores": entity_scores(gold, predicted), "counts": entity_counts(gold, predicted)}
    return hash_of_gold(words, gold), counted


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
        return head.seed, _key({kind: {k: v for k, v in of.items() if k not in chosen} for kind, of in kept.items()})

    others = {key(result): result for result in results if result.model == other}
    return [(head, others[key(head)]) for head in results if head.model == model and key(head) in others]


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


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
