"""Read the results of NER heads, and average them over seeds."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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

METRICS = ("f1", "conlleval_f1", "precision", "recall")
"""Scores that are averaged over seeds."""

BASE = "base"
"""Label of the model that a run adapts."""
SEARCH = "search"
"""Setting of a head whose training settings were chosen on the development set: the values of each that were tried."""


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
        training = json.dumps({"inputs": head.inputs, "settings": head.settings}, sort_keys=True)
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
