"""Train a head for every task, model and seed, score heads on other tasks, and write the tables of results."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, Run, read_json, read_record, replaced_sources, verification
from bioptimus_hf.errors import InputError, TrainingDiverged, counted
from bioptimus_hf.ner.finetuning import DOCUMENT_WINDOWS, TRAINER
from bioptimus_hf.ner.grid import HeadGroup, head_group, plan_parallelism, train_groups
from bioptimus_hf.ner.head_stage import score_elsewhere
from bioptimus_hf.ner.options import HeadOptions, HeadTraining
from bioptimus_hf.ner.planning import (
    CrossTest,
    PlannedHead,
    chosen_tasks,
    find_encoders,
    load_cross_tests,
    load_task,
    plan_heads,
)
from bioptimus_hf.ner.results import (
    BASE,
    HeadResult,
    adapted_model,
    check_comparable,
    finished_heads,
    missing_heads,
    missing_reason,
    read_head,
    read_results,
    single_model,
    training_record,
)
from bioptimus_hf.ner.search import searched
from bioptimus_hf.ner.tables import write_results
from bioptimus_hf.ner.tasks import NER_TASKS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedTraining:
    """A training that an experiment consists of.

    Attributes:
        task: name of the task, or `joint`.
        model: label of the encoder.
        encoder: its folder.
        work: training sentences, times epochs.
        finished: whether it was found finished.
        seconds: that it took, if that is known.
    """

    task: str
    model: str
    encoder: str
    work: int
    finished: bool
    seconds: float | None


@dataclass(frozen=True)
class Experiment:
    """What an experiment trains and scores.

    Attributes:
        groups: heads to train.
        models: labels of the encoders.
        references: labels of the models that all are compared with.
        seeds: of the trainings.
        cross_tests: test sets of other tasks.
        grid: values of the settings to choose from.
        at_once: how many heads are trained at the same time.
        threads: of PyTorch for each of them.
    """

    groups: Sequence[HeadGroup]
    models: Sequence[str]
    references: Sequence[str]
    seeds: Sequence[int]
    cross_tests: Sequence[CrossTest]
    grid: Mapping[str, Sequence[Any]]
    at_once: int
    threads: int


@check_call()
def make_heads(run: Run, options: HeadOptions, training: HeadTraining) -> Path:
    """Train the heads that are missing, score them, and tabulate the results of all finished heads of the run.

    Each head is saved with its scores and predictions in `ner/<task>/<model>/<seed>` of the run, a joint head in
    `ner/joint/<model>/<seed>`, a cross-test in `cross_test/<task>-on-<other>/<model>/<seed>`. Beside them,
    `results.md`, `results.json` and `versions.png` hold the mean and standard deviation over seeds and the paired
    differences from the references. Finished heads are skipped. All inputs are opened before the first training. Works
    under `accelerate launch`.

    If `training` has several values of a setting, every task and model gets the same search: each combination is
    trained with the first seed (`ner_search/<task>/<model>/<settings>/<seed>`, scores only), the one with the best F1
    on the development set is chosen, and the heads of all seeds are trained with it. Test sets are scored for these
    heads only.

    Returns:
        The folder `ner` of the run.

    Raises:
        TrainingDiverged: some trainings did; all other heads are finished, and the tables name those that are missing.
        InputError: a task, model or option can't be used, or finished heads have other inputs or
            settings and `run.force` is false.
    """
    with verification(not run.no_verify):
        experiment = plan_experiment(run, options, training)
        return _make_heads(run, options, experiment)


def plan_experiment(run: Run, options: HeadOptions, training: HeadTraining) -> Experiment:
    """Open all inputs of an experiment, and find out what is finished.

    Raises:
        InputError: see `make_heads`.
    """
    # The first call decides about the process group: without it, each process would consider itself the main one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    tasks = {task.name: load_task(task, options) for task in chosen_tasks(options.tasks)}
    if options.context == "document":
        for name, data in tasks.items():
            if "document" not in data.splits["train"].column_names:
                logger.warning("%s doesn't mark documents: all sentences of a split count as one, in their order", name)
    encoders = find_encoders(run, options)
    cross_tests = load_cross_tests(tasks, options)
    seeds = options.seeds_from(run.seed)
    root = run.root / "ner"
    settings: dict[str, Any] = {"max_length": options.window, "processes": state.num_processes, "trainer": TRAINER}
    if options.context != "sentence":  # heads that were trained before there was a choice have no such key
        settings |= {"context": options.context, "document_windows": DOCUMENT_WINDOWS}
    by_group: dict[tuple[str, str], dict[Path, PlannedHead]] = defaultdict(dict)
    for folder, head in plan_heads(root, tasks, encoders, seeds, settings, joint=options.joint).items():
        by_group[head.task, head.model][folder] = head
    groups = [head_group(run, heads, training) for heads in by_group.values()]
    heads = {folder: head for group in groups for folder, head in group.heads.items()}
    earlier = [folder for folder in finished_heads(root) if folder not in heads]
    finished = [(folder, result) for folder in earlier for result in read_head(folder)]
    check_comparable([*finished, *((folder, setup) for folder, head in heads.items() for setup in head.setups)])
    references = options.references or list(encoders)[:1]
    known = dict.fromkeys([*encoders, *(single_model(result.model) for _, result in finished)])
    if unknown := [name for name in references if name not in known]:
        raise InputError(
            f"{unknown[0]}: there are no heads of this name, only of {', '.join(known)}", argument="references"
        )
    if others := [name for name in known if name not in encoders]:
        logger.info("%s of earlier commands stay in the tables: %s", counted(len(others), "model"), ", ".join(others))
    shared = plan_parallelism(groups, training.num_train_epochs, options.at_once)
    return Experiment(groups, list(encoders), references, seeds, cross_tests, training.grid, *shared)


def planned_trainings(run: Run, options: HeadOptions, training: HeadTraining) -> tuple[list[PlannedTraining], int]:
    """Return the trainings that `make_heads` needs, with those that are finished, and how many run at the same time.

    Nothing is trained.

    Raises:
        InputError: see `make_heads`.
    """
    with verification(not run.no_verify):
        experiment = plan_experiment(run, options, training)
        planned = [
            _planned(group, folder, group.sentences * training.num_train_epochs, finished=finished)
            for group in experiment.groups
            for folder, finished in group.trainings().items()
        ]
        return planned, experiment.at_once


def _planned(group: HeadGroup, folder: Path, work: int, *, finished: bool) -> PlannedTraining:
    head = next(iter(group.heads.values()))
    there = finished and (folder / RECORD).is_file()
    seconds = read_record(folder)["seconds"] if there else None
    return PlannedTraining(head.task, head.model, head.encoder, work, finished, seconds)


def _make_heads(run: Run, options: HeadOptions, experiment: Experiment) -> Path:
    main = PartialState().is_main_process
    root = run.root / "ner"
    if main:
        for group in experiment.groups:
            for folder in group.heads.keys() - set(group.missing):  # which is wanted, and not a later one that diverged
                missing_reason(folder).unlink(missing_ok=True)
    reasons: list[str] = []
    left = Counter(group.task for group in experiment.groups)
    at_once, threads = experiment.at_once, experiment.threads
    for group, missing in train_groups(experiment.groups, run, experiment.grid, at_once=at_once, threads=threads):
        reasons += missing
        left[group.task] -= 1
        if main and not left[group.task]:
            tabulate(root, experiment.models, experiment.references)
    if experiment.cross_tests and main:
        without = missing_heads(root)
        for test in experiment.cross_tests:
            for label, seed in product(experiment.models, experiment.seeds):
                of_task = root / test.task / label / str(seed)
                if of_task not in without:
                    score_elsewhere(of_task, test, run, options)
        tabulate(run.root / "cross_test", experiment.models, experiment.references)
    if reasons:
        wanted = sum(len(group.missing) for group in experiment.groups)
        raise TrainingDiverged(f"{len(reasons)} of {wanted} heads are missing in the tables: {reasons[0]}")
    return root


def tabulate(root: Path, models: Sequence[str], references: Sequence[str]) -> None:
    """Write the tables of all finished heads below `root`.

    Known tasks and the given models come first, in their order.
    """
    tasks = [*NER_TASKS, *(f"{task}, tested on {other}" for task, other in product(NER_TASKS, repeat=2))]

    def order(result: HeadResult) -> tuple[Any, ...]:
        model = single_model(result.model)
        ranks = [
            (known.index(name) if name in known else len(known), name)
            for name, known in ((result.task, tasks), (model, list(models)))
        ]
        return (*ranks, result.model != model, result.seed)

    heads = finished_heads(root)
    missing = missing_heads(root) | _foreign_heads(heads, adapted_model(root.parent))
    results = sorted(read_results(head for head in heads if head not in missing), key=order)
    trainings = [training_record(folder) for folder in (*searched(root.parent), *heads)] if root.name == "ner" else []
    text = write_results(root, results, references=references, missing=missing, trainings=trainings)
    logger.info("saved %s\n%s", root / "results.md", text)


def _foreign_heads(heads: Sequence[Path], adapted: str | None) -> dict[Path, str]:
    """Return the heads that would be shown under a name that now stands for another model, and why.

    Args:
        adapted: identity of the model that the run adapts.
    """
    foreign = {
        head: f"made from another {name} than is now in {source}"
        for head in heads
        for _, name, source in replaced_sources(head)
    }
    for head in heads if adapted else []:
        scores, record = read_json(head / "scores.json"), read_record(head)
        trained = scores.get("trained", record)["inputs"].get("model")
        if head.parent.name == BASE and trained != adapted:
            foreign[head] = "made from another model than the run adapts"
    return foreign
