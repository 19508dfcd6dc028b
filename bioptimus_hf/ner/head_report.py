"""Report what a head gets wrong, how far its scores can be trusted, and the least score with the best F1."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, Run, read_json, read_record, replace_files, verify
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import MIN_SCORE, load_by_name, load_token_classifier
from bioptimus_hf.ner.calibration import (
    MinScore,
    ScoredEntities,
    best_min_score,
    calibration,
    score_of_entity,
    scores_by_threshold,
)
from bioptimus_hf.ner.error_analysis import Mention, analyse, mentions_in, sentences_of
from bioptimus_hf.ner.head_page import head_page
from bioptimus_hf.ner.joint import keep_types, types_of_labels
from bioptimus_hf.ner.options import HeadOptions
from bioptimus_hf.ner.planning import TaskData, chosen_tasks, load_task
from bioptimus_hf.ner.prediction import ScoredTags, predict_scored_tags
from bioptimus_hf.ner.results import finished_heads, tests_of
from bioptimus_hf.ner.scores import SCORER, entity_spans
from bioptimus_hf.ner.tasks import BLURB_NER, documents_of, label_names, tags_of
from bioptimus_hf.ner.windows import document_window

logger = logging.getLogger(__name__)

PAGE, DATA = "report.html", "report.json"
_SPLITS = {"dev": "validation", "test": "test"}
_TOLERANCE = 0.001  # of the F1, which depends a little on the machine


@check_call()
def report_heads(
    heads: Sequence[str | Path],
    ner_data: str | None = None,
    tasks: Sequence[str] = (),
    *,
    force: bool = False,
    no_verify: bool = False,
) -> list[Path]:
    """Write `report.html` and `report.json` into the folders of heads, and the best `min_score` into `config.json`.

    The report has, for each task of a head: the kinds of errors on the test set, the scores of mentions that were seen
    in training and of those that weren't, by length and by type, the most frequent confusions with their sentences, the
    calibration of the scores, and the least score of an entity (`min_score`) with the best F1 on the development set.
    `Annotator` and `annotate_files` use it with `min_score="best"`.

    Args:
        heads: folders of heads, or of runs, whose heads are all reported.
        ner_data: folder of the data, as for `HeadOptions`; it must be what the heads were trained on.
        tasks: tasks that aren't found in `ner_data` by their name, as for `HeadOptions`.
        force: make reports again that are there.
        no_verify: read heads without comparing their files with their hashes.

    Returns:
        The pages.

    Raises:
        InputError: a folder is neither a head nor a run with heads, or the data isn't that of a head: then nothing is
            written. At the end: a head is damaged, or its report can't be written; the others have their reports.
    """
    folders = list(dict.fromkeys(folder for given in heads for folder in _heads_in(Path(given))))
    rest = [_read_head(folder) for folder in folders if force or not _is_reported(folder)]
    if len(rest) < len(folders):
        logger.info("%d of %d heads have a report; use force to make it again", len(folders) - len(rest), len(folders))
    data = _load_tasks(rest, ner_data, tasks)
    failures = []
    for number, head in enumerate(rest, start=1):
        logger.info("%s (%d of %d)", head.folder, number, len(rest))
        root = head.folder.parents[3] if head.folder.parts[-4:-3] == ("ner",) else head.folder.parent
        try:
            with Run(str(root), no_verify=no_verify).working_on(head.folder.relative_to(root).as_posix()):
                verify(head.folder)
                _report(head, {name: data[name] for name in head.tasks})
        except InputError as error:
            if len(rest) == 1:
                raise
            logger.error("%s: %s", head.folder, error)
            failures.append(f"{head.folder}: {error}")
    if failures:
        raise InputError(f"{len(failures)} of {len(rest)} heads have no report: {failures[0]}")
    return [folder / PAGE for folder in folders]


@dataclass(frozen=True)
class _Head:
    """A finished head, as its record describes it.

    Attributes:
        name: `task`, `model` and `seed`.
        tasks: its test scores by task.
        inputs: identity of each split of each task.
        merged_types: see `NerTask`, for each task.
    """

    folder: Path
    name: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, float]]
    inputs: Mapping[str, Mapping[str, str]]
    merged_types: Mapping[str, str | None]
    max_length: int


@dataclass(frozen=True)
class _Prediction:
    """What a head predicts for a split of a task, and what is annotated."""

    words: list[list[str]]
    gold: list[list[str]]
    tags: list[list[str]]
    scores: list[Any]

    def entities(self) -> ScoredEntities:
        scores, correct, mentions = [], [], 0
        for gold, tags, of_words in zip(self.gold, self.tags, self.scores, strict=True):
            true = set(entity_spans(gold))
            mentions += len(true)
            for span in entity_spans(tags):
                scores.append(score_of_entity(of_words[span[0] : span[1]]))
                correct.append(span in true)
        return ScoredEntities(np.array(scores), np.array(correct, dtype=bool), mentions)


def _heads_in(folder: Path) -> list[Path]:
    if (folder / RECORD).is_file() and (folder / "scores.json").is_file() and (folder / "config.json").is_file():
        return [folder]
    if heads := finished_heads(folder / "ner"):
        return heads
    raise InputError(
        f"{folder} is neither a finished head nor a run with heads: give a folder like RUN/ner/TASK/MODEL/SEED",
        argument="heads",
    )


def _is_reported(folder: Path) -> bool:
    recorded: set[str] = set(read_record(folder).get("files", {}))
    return {PAGE, DATA, "config.json"} <= recorded


def _read_head(folder: Path) -> _Head:
    """Read what a head was trained on.

    Raises:
        InputError: a file can't be read, or the record doesn't say it.
    """
    scores, record = read_json(folder / "scores.json"), read_record(folder)
    try:
        tests = tests_of(scores)
        joint = "tests" in scores
        inputs = {
            name: {
                split: record["inputs"][f"{name}/{split}" if joint else split] for split in ("train", *_SPLITS.values())
            }
            for name in tests
        }
        merged = record["settings"]["merged_types"] if joint else {scores["task"]: record["settings"]["merged_type"]}
        name = {key: scores[key] for key in ("task", "model", "seed")}
        return _Head(folder, name, tests, inputs, merged, record["settings"]["max_length"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} doesn't record the task data that it was trained on ({error} is missing): give a head that "
            f"`bioptimus finetune-ner` made",
            argument="heads",
        ) from error


def _load_tasks(heads: Sequence[_Head], ner_data: str | None, tasks: Sequence[str]) -> dict[str, TaskData]:
    """Read the data of all tasks of heads, and check that the heads were trained with it.

    Raises:
        InputError: the data of a task can't be read, or isn't that of a head.
    """
    given = {task.name: task for task in chosen_tasks(tasks)}
    loaded: dict[str, TaskData] = {}
    for head in heads:
        for name, trained in head.inputs.items():
            if name not in loaded:
                task = given.get(name) or chosen_tasks([name])[0]
                if name not in BLURB_NER:
                    task = replace(task, merged_type=head.merged_types[name])
                loaded[name] = load_task(task, HeadOptions(ner_data=ner_data))
            now = loaded[name].inputs
            if split := next((split for split, content in trained.items() if now[split] != content), None):
                raise InputError(
                    f"{head.folder} was trained with another {split} set of {name} than this one: give the data that "
                    f"it was trained with",
                    argument="ner_data",
                )
    return loaded


def _report(head: _Head, tasks: Mapping[str, TaskData]) -> None:
    predictions = _predict(head, tasks)
    seen: set[Mention] = set()  # a joint head has seen those of all tasks
    for data in tasks.values():
        seen |= mentions_in(data.splits["train"]["tokens"][:], tags_of(data.splits["train"]))
    reports: dict[str, Any] = {}
    development = []
    for name, of_task in predictions.items():
        entities = {split: prediction.entities() for split, prediction in of_task.items()}
        reports[name] = {
            split: {
                **analyse(sentences_of(prediction.words, prediction.gold, prediction.tags), seen),
                "calibration": calibration(entities[split]),
            }
            for split, prediction in of_task.items()
        }
        reports[name]["min_score"] = _min_score_of_task(entities)
        development.append(entities["dev"])
        _compare(head, name, reports[name]["test"])
    best = best_min_score(development)
    if best is None:
        logger.warning("%s finds nothing correct in the development set, so there is no best min_score", head.folder)
    content = {
        **head.name,
        "scorer": SCORER,
        "min_score": None if best is None else asdict(best),
        "tasks": reports,
    }
    _write(head.folder, content, best)


def _predict(head: _Head, tasks: Mapping[str, TaskData]) -> dict[str, dict[str, _Prediction]]:
    """Predict the development and test set of each task; sets of the same sentences once."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model = load_token_classifier(head.folder).to(device)
    tokenizer = load_by_name(AutoTokenizer, head.folder)
    labels = [name for _, name in sorted(model.config.id2label.items())]
    in_context = document_window(model.config) is not None
    known: list[tuple[Any, list[ScoredTags]]] = []  # sentences with their documents, and what was found
    predictions: dict[str, dict[str, _Prediction]] = {}
    for name, data in tasks.items():
        if unknown := set(label_names(data.splits["train"])) - set(labels):
            raise InputError(f"{head.folder} has no label {min(unknown)}, which {name} has", argument="heads")
        predictions[name] = {}
        for shown, split in _SPLITS.items():
            dataset: Dataset = data.splits[split]
            text = words, documents = dataset["tokens"][:], documents_of(dataset) if in_context else None
            found = next((found for other, found in known if other == text), None)
            if found is None:
                found = predict_scored_tags(
                    model,
                    tokenizer,
                    words,
                    max_length=head.max_length,
                    documents=documents,
                    desc=f"Tagging {name}, {shown}",
                )
                if not all(np.isfinite(of_sentence.scores).all() for of_sentence in found):
                    raise InputError(f"{head.folder} computes NaN: its training diverged. Train it again")
                known.append((text, found))
            tags = keep_types([of_sentence.tags for of_sentence in found], types_of_labels(dataset))
            scores = [of_sentence.scores for of_sentence in found]
            predictions[name][shown] = _Prediction(words, tags_of(dataset), tags, scores)
    return predictions


def _min_score_of_task(entities: Mapping[str, ScoredEntities]) -> dict[str, Any] | None:
    """Return the best least score of a task, with the scores on both sets with and without it."""
    best = best_min_score([entities["dev"]])
    if best is None:
        return None
    return {
        "best": best.best,
        **{split: {"all": of_split.at(0.0), "best": of_split.at(best.best)} for split, of_split in entities.items()},
        "curve": scores_by_threshold(entities["dev"]),
    }


def _compare(head: _Head, task: str, test: Mapping[str, Any]) -> None:
    """Warn if the head scores otherwise than after its training."""
    before, now = float(head.tasks[task]["f1"]), float(test["all"]["f1"])
    if abs(before - now) > _TOLERANCE:
        logger.warning(
            "%s, %s: F1 %.2f on the test set, but %.2f in its scores.json: is this the machine that trained it?",
            *(head.folder, task, 100 * now, 100 * before),
        )


def _write(folder: Path, content: Mapping[str, Any], best: MinScore | None) -> None:
    configuration = read_json(folder / "config.json")
    configuration.pop(MIN_SCORE, None)  # of an earlier report
    configuration = best.in_configuration(configuration) if best else configuration
    files = {
        DATA: json.dumps(content, indent=2, ensure_ascii=False),
        PAGE: head_page(content),
        "config.json": json.dumps(configuration, indent=2, sort_keys=True),  # as transformers writes it
    }
    replace_files(folder, {name: f"{text}\n".encode() for name, text in files.items()})
    logger.info("saved %s", folder / PAGE)
