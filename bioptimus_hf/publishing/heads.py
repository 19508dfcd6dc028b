"""Collect the NER heads of a run with their scores, and choose the seed to publish."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import identity, read_json, read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.differences import paired_differences
from bioptimus_hf.ner.options import JOINT
from bioptimus_hf.ner.results import (
    BASE,
    METRICS,
    SEARCH,
    adapted_model,
    average_row,
    finished_heads,
    read_results,
    single_model,
    summary_row,
    tests_of,
)
from bioptimus_hf.pretraining.versions import check_unchanged, folder_name


@dataclass(frozen=True)
class Head:
    """The head of a task, or the joint head, that is published, with the scores of all its seeds.

    Attributes:
        folder: the seed with the best validation F1, or the lowest such seed. Test scores play no role in the choice.
        scores: `scores.json` of every seed.
        record: how the chosen seed was trained.
    """

    folder: Path
    scores: tuple[dict[str, Any], ...]
    record: dict[str, Any]

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The values that settings were chosen from on the development set; empty if all were fixed."""
        grid: dict[str, list[Any]] = self.record["settings"].get(SEARCH, {})
        return grid

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that were chosen."""
        return {name: self.record["settings"][name] for name in self.grid}


def heads_of(run: Path, version: str) -> dict[str, Head]:
    """Return the heads trained on a version, by task; the joint head under `joint`.

    Raises:
        InputError: a head was trained on weights other than the version's or with settings other than those of the
            other seeds, or lacks a score; or the version's files have changed since.
    """
    groups = _scores_by_task(run, folder_name(version))
    if groups:
        check_unchanged(run / folder_name(version))
    encoder = identity(run / folder_name(version)) if groups else ""
    heads = {}
    for task, scores in groups.items():
        for folder in scores:
            if read_record(folder)["inputs"].get("model") != encoder:
                raise InputError(
                    f"{folder} was trained on weights other than those of {run / folder_name(version)}: train it again"
                )
        _check_seeds(scores)
        best = max(scores, key=lambda folder: (_best_validation_f1(scores[folder]), -int(scores[folder]["seed"])))
        heads[task] = Head(best, tuple(scores.values()), read_record(best))
    return heads


def compared_results(run: Path, others: Collection[str]) -> list[dict[str, Any]]:
    """Return the result rows of the model that was adapted, and of other encoders.

    A head in a folder called `base` may have been trained on another model, and then doesn't count.

    Args:
        others: labels of the other encoders.

    Raises:
        InputError: the label of another encoder stands for several ones.
    """
    rows = []
    for label in (BASE, *others):
        for scores in _scores_of_reference(run, label).values():
            _check_seeds(scores)
            rows += result_rows(list(scores.values()))
    return rows


def average_results(run: Path, version: str, others: Collection[str]) -> list[dict[str, Any]]:
    """Return the rows of the average over the five BLURB tasks, of a version and of what it is compared with.

    There are none if the heads of the version don't cover all five; if only those of another model don't, its row is
    missing.

    Args:
        others: see `compared_results`.
    """
    averages = []
    for model, groups in _groups(run, version, others).items():
        scores = {
            (task, score["seed"]): tests_of(score)[task]
            for task, of_task in groups.items()
            for score in of_task.values()
            if task != JOINT
        }
        averages.append(average_row(model, scores))
    return [row for row in averages if row] if averages[-1] else []


def differences(run: Path, version: str, tasks: Collection[str], others: Collection[str]) -> list[dict[str, Any]]:
    """Return how the heads of a version differ from those of the model that was adapted, and of other encoders.

    Args:
        tasks: names of tasks, and `joint` for the joint heads.
        others: see `compared_results`.

    Returns:
        Rows of `paired_differences`, with the label of the other encoder as `reference`.
    """
    references = [BASE, *others]
    folders = {
        label: [folder for task, scores in groups.items() if task in tasks for folder in scores]
        for label, groups in _groups(run, version, others).items()
    }
    if not any(folders[label] for label in references):
        return []
    results = read_results(chain.from_iterable(folders.values()))
    rows = paired_differences(results, references, only=folder_name(version))
    return [{**row, "reference": single_model(row["minus"])} for row in rows]


def _groups(run: Path, version: str, others: Collection[str]) -> dict[str, dict[str, dict[Path, dict[str, Any]]]]:
    """Return the scores of the heads on the references and then on a version, by label; see `_scores_by_task`."""
    groups = {label: _scores_of_reference(run, label) for label in (BASE, *others)}
    return {**groups, folder_name(version): _scores_by_task(run, folder_name(version))}


def _scores_of_reference(run: Path, label: str) -> dict[str, dict[Path, dict[str, Any]]]:
    """Return the scores of the heads on an encoder, as `_scores_by_task` does; on `base`, of the adapted model only."""
    groups = _scores_by_task(run, label)
    encoders = {folder: read_record(folder)["inputs"]["model"] for scores in groups.values() for folder in scores}
    if label == BASE:
        adapted = adapted_model(run)
        groups = {
            task: {folder: score for folder, score in scores.items() if encoders[folder] == adapted}
            for task, scores in groups.items()
        }
        return {task: scores for task, scores in groups.items() if scores}
    if len(set(encoders.values())) > 1:
        raise InputError(f"heads called {label} were trained on different encoders", argument="other_encoders")
    return groups


def result_rows(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the row of a results table for each task of a head, over several seeds; scores are between 0 and 1.

    Args:
        scores: `scores.json` of each seed.
    """
    first = scores[0]
    model = f"{JOINT}/{first['model']}" if first["task"] == JOINT else first["model"]
    return [
        summary_row(task, model, {score["seed"]: tests_of(score)[task] for score in scores}) for task in tests_of(first)
    ]


def _scores_by_task(run: Path, label: str) -> dict[str, dict[Path, dict[str, Any]]]:
    """Return the scores of the finished heads on a model, by task and then by folder, in order of the seeds."""
    groups: dict[str, dict[Path, dict[str, Any]]] = {}
    for folder in finished_heads(run / "ner"):
        task, model = folder.parts[-3:-1]
        if model == label:
            groups.setdefault(task, {})[folder] = read_json(folder / "scores.json")
    return groups


def _check_seeds(scores: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise unless all seeds have all scores and were trained from the same inputs with the same settings."""
    first = None
    for folder, score in scores.items():
        complete = all({*METRICS, "support"} <= test.keys() for test in tests_of({"test": {}, **score}).values())
        if not complete or not score["validation"]:
            raise InputError(f"{folder / 'scores.json'} lacks a score that the model card states: train the head again")
        record = read_record(folder)
        training = record["inputs"], {name: value for name, value in record["settings"].items() if name != "seed"}
        if training != (first := first or training):
            raise InputError(f"{folder} was trained on other data or with other settings than the other seeds")


def _best_validation_f1(score: Mapping[str, Any]) -> float:
    return max(float(epoch["f1"]) for epoch in score["validation"])
