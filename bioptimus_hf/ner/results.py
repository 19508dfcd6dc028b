"""Read the results of NER heads, average them over seeds, and compare models with bootstrap intervals."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bioptimus_hf.artifacts import RECORD, read_json, read_record, verify
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.scores import entity_counts, entity_scores
from bioptimus_hf.ner.tasks import BLURB_NER

RESAMPLES = 1000
LEVEL = 0.95
METRICS = ("f1", "conlleval_f1", "precision", "recall")
"""Scores that are averaged over seeds."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeadSetup:
    """What a head is trained and tested on, and how.

    Attributes:
        task: name of the NER task.
        model: label of the encoder.
        seed: of the training.
        gold: hash of the words and gold tags of the test set.
        settings: of the training, without the seed.
        inputs: identity of each input by name: `model`, `train`, `validation`, `test`. For a head scored on another
            task these are the inputs of its training, with that task's test set.
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


def read_results(folders: Iterable[Path]) -> list[HeadResult]:
    """Read finished heads: `scores.json` (task, model, seed), `predictions.tsv` and `made.json`.

    Raises:
        InputError: a file isn't as `experiments.make_heads` writes it, or the heads aren't comparable (see
            `check_comparable`).
    """
    results = {folder: _read_result(folder) for folder in folders}
    check_comparable(results)
    return list(results.values())


def check_comparable(heads: Mapping[Path, HeadSetup]) -> None:
    """Check that heads can be averaged over seeds and compared within a task.

    Args:
        heads: finished or yet to be trained, by folder.

    Raises:
        InputError: two heads of a task have different test sets, or two seeds of a task and model were trained
            differently. Both folders are named.
    """
    tested: dict[str, tuple[Path, str]] = {}
    trained: dict[tuple[str, str], tuple[Path, str]] = {}
    for folder, head in heads.items():
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
    rows = []
    for model in dict.fromkeys(result.model for result in results):
        scores = {(result.task, result.seed): result.scores for result in results if result.model == model}
        seeds = [seed for _, seed in scores if all((task, seed) in scores for task in BLURB_NER)]
        if seeds := list(dict.fromkeys(seeds)):
            means = {
                name: spread([statistics.fmean(scores[task, seed][name] for task in BLURB_NER) for seed in seeds])
                for name in METRICS
            }
            rows.append({"task": "average", "model": model, "seeds": seeds, **means})
    return rows


def paired_differences(
    results: Sequence[HeadResult], reference: str, *, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """Compare the F1 of each model with the reference, in pairs with equal task, seed, data and training settings.

    The interval is a two-level percentile bootstrap: each resample draws test sentences (the same ones for all models
    and seeds) and as many pairs as there are. It covers the variation from another test set and from other trainings;
    with a single pair, from the test set alone. The random numbers depend on the task alone, so an interval doesn't
    change when other tasks or models are added.

    Returns:
        A row for each task and model, in the order of `results`: `minus` (the reference), `seeds` (of the pairs),
        `mean` and `standard_deviation` of the F1 differences over the pairs, in shares, and `interval` (95 %). Models
        that have pairs in all five BLURB tasks get a row for the average too (`task` is `average`), without `seeds` and
        `standard_deviation`.
    """
    rows = []
    drawn: dict[tuple[str, str], tuple[float, Floats]] = {}
    for task in dict.fromkeys(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        weights = _sentence_weights(task, len(of_task[0].counts), resamples)
        references = {_pair_key(result): result for result in of_task if result.model == reference}
        resampled = {id(result): _f1(weights @ result.counts) for result in of_task}
        for model in dict.fromkeys(result.model for result in of_task if result.model != reference):
            heads = [result for result in of_task if result.model == model and _pair_key(result) in references]
            if not heads:
                continue
            pairs = [(head, references[_pair_key(head)]) for head in heads]
            observed = [head.scores["f1"] - base.scores["f1"] for head, base in pairs]
            by_pair = np.stack([resampled[id(head)] - resampled[id(base)] for head, base in pairs], axis=1)
            samples = _mean_of_drawn_pairs(task, np.array(observed), by_pair)
            drawn[task, model] = statistics.fmean(observed), samples
            row = {"task": task, "model": model, "minus": reference, "seeds": [head.seed for head in heads]}
            rows.append({**row, **spread(observed), "interval": _interval(samples)})
    return rows + _average_differences(drawn, reference)


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


def _read_result(folder: Path) -> HeadResult:
    verify(folder, hashes=False)
    verify(folder, only=("scores.json", "predictions.tsv"))  # what is read; the weights may be large
    try:
        content = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        name = {key: content[key] for key in ("task", "model", "seed")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'scores.json'} isn't that of a finished head: train it again with force"
        ) from error
    words, gold, predicted = read_predictions(folder / "predictions.tsv")
    made = read_record(folder)
    trained = content.get("trained", made)  # of a head that was scored on another task
    inputs = {**trained["inputs"], **made["inputs"]}
    return HeadResult(
        **name,
        gold=hash_of_gold(words, gold),
        settings={key: value for key, value in trained["settings"].items() if key != "seed"},
        inputs={key: value for key, value in inputs.items() if key != "head"},  # which differs between seeds
        scores=entity_scores(gold, predicted),
        counts=entity_counts(gold, predicted),
    )


def _pair_key(head: HeadSetup) -> tuple[int, str]:
    """Return what two heads of a task share if they differ in the model alone."""
    inputs = {name: value for name, value in head.inputs.items() if name != "model"}
    return head.seed, _key({"inputs": inputs, "settings": head.settings})


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _average_differences(drawn: Mapping[tuple[str, str], tuple[float, Floats]], reference: str) -> list[dict[str, Any]]:
    """Average the differences of the five BLURB tasks, for each model that has them all.

    Args:
        drawn: mean difference and its resamples, by task and model.
    """
    rows = []
    for model in dict.fromkeys(model for _, model in drawn):
        if all((task, model) in drawn for task in BLURB_NER):
            means, samples = zip(*(drawn[task, model] for task in BLURB_NER), strict=True)
            row = {"task": "average", "model": model, "minus": reference}
            rows.append({**row, "mean": statistics.fmean(means), "interval": _interval(np.mean(samples, axis=0))})
    return rows


def _sentence_weights(task: str, sentences: int, resamples: int) -> Floats:
    """Return how often each resample draws each sentence, as an array (resamples, sentences)."""
    places = _generator(task, sentences).integers(sentences, size=(resamples, sentences))
    places += np.arange(resamples)[:, None] * sentences
    drawn = np.bincount(places.ravel(), minlength=resamples * sentences)
    return drawn.reshape(resamples, sentences).astype(np.float64)


def _mean_of_drawn_pairs(task: str, observed: Floats, by_pair: Floats) -> Floats:
    """Add the variation from drawing pairs to the mean difference of each resample of sentences.

    Pairs differ for two reasons: the trainings differ, and each head errs in different sentences. Resampling sentences
    already covers the second, and counting it twice would make the intervals too wide. So the variation that is added
    is scaled down to the variance that comes from training.

    Args:
        observed: F1 difference of each pair.
        by_pair: the same in each resample, as an array (resamples, pairs).
    """
    resamples, pairs = by_pair.shape
    means: Floats = by_pair.mean(axis=1)
    if pairs == 1:
        return means
    from_sentences = (by_pair.var(axis=0).mean() - means.var()) / (pairs - 1)
    total = observed.var(ddof=1) / pairs
    share = max(0.0, 1 - max(0.0, from_sentences) / total) if total > 0 else 0.0
    drawn = observed[_generator(task, pairs).integers(pairs, size=(resamples, pairs))].mean(axis=1)
    # The mean of a few values drawn with replacement varies too little, by a factor of pairs / (pairs - 1).
    added: Floats = means + math.sqrt(share * pairs / (pairs - 1)) * (drawn - observed.mean())
    return added


def _generator(task: str, size: int) -> np.random.Generator:
    return np.random.default_rng([*task.encode(), size])


def _f1(counts: Floats) -> Floats:
    """Return the micro F1 of rows (correct, predicted, gold)."""
    correct, both = counts[:, 0], counts[:, 1] + counts[:, 2]
    f1: Floats = np.divide(2 * correct, both, out=np.zeros_like(correct), where=both > 0)
    return f1


def _interval(samples: Floats) -> list[float]:
    tail = (1 - LEVEL) / 2
    return [float(edge) for edge in np.quantile(samples, (tail, 1 - tail))]
