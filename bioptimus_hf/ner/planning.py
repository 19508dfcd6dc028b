"""Find the tasks, encoders and test sets of an experiment, and list the heads to train."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoConfig

from bioptimus_hf.artifacts import Run, check_fresh, verify
from bioptimus_hf.corpus.formats import stem_of
from bioptimus_hf.corpus.ner_files import is_named_like_labels
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import Source, base_of_run, check_encoder, find_model, load_by_name
from bioptimus_hf.ner.joint import JointData, join_tasks, types_of_labels
from bioptimus_hf.ner.options import JOINT, HeadOptions, HeadTraining, split_label
from bioptimus_hf.ner.results import BASE, SEARCH, HeadSetup, adapted_model, hash_of_gold, joint_setup
from bioptimus_hf.ner.tasks import (
    BLURB_NER,
    NER_TASKS,
    NerTask,
    load_ner,
    pin_source,
    read_task,
    tags_of,
    task_identity,
)
from bioptimus_hf.pretraining.versions import version_numbers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """A task with its data.

    Attributes:
        inputs: identity of each split.
    """

    task: NerTask
    splits: DatasetDict
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class CrossTest:
    """A task whose heads are scored on the test set of another task.

    Attributes:
        task: name of the task that the heads are trained on.
        other: name of the task that they are tested on.
        test: the test set.
        inputs: identity of the test set.
        types: entity types that are scored, if one of the tasks has more than both share.
    """

    task: str
    other: str
    test: Dataset
    inputs: Mapping[str, str]
    types: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PlannedHead:
    """A head to train.

    Attributes:
        task: name of its task, or `joint`.
        model: label of the encoder.
        seed: of the training.
        encoder: folder of the model to fine-tune.
        dataset: from `load_ner`, or from `join_tasks`.
        tests: test set of each task.
        setups: what it is trained and tested on, for each task.
        inputs: of its record.
        settings: of its record.
        training: its fixed settings; `settings` has them too (see `trained_with`).
    """

    task: str
    model: str
    seed: int
    encoder: str
    dataset: DatasetDict | JointData
    tests: Mapping[str, Dataset]
    setups: Sequence[HeadSetup]
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    training: HeadTraining = field(default_factory=HeadTraining)

    def trained_with(self, training: HeadTraining, grid: Mapping[str, Sequence[Any]] | None = None) -> PlannedHead:
        """Return this head with other settings of its training.

        Args:
            training: fixed settings.
            grid: the values that they were chosen from, if they were. A head that was chosen from another grid is
                another head.
        """
        settings = {**asdict(training), **({SEARCH: dict(grid)} if grid else {})}
        return replace(
            self,
            training=training,
            settings={**self.settings, **settings},
            setups=[replace(setup, settings={**setup.settings, **settings}) for setup in self.setups],
        )


def chosen_tasks(names: Sequence[str]) -> list[NerTask]:
    """Return the tasks that names, NAME=SOURCE, folders and files stand for; `all` is the five BLURB tasks.

    Raises:
        InputError: two tasks have the same name, a task is called `joint`, or a YAML file is invalid.
    """
    tasks: dict[str, NerTask] = {}
    expanded = [task for name in names for task in (BLURB_NER if name == "all" else [name])]
    for given in dict.fromkeys(expanded):
        task = _chosen_task(given)
        if task.name in tasks:
            raise InputError(f"{task.name} is given twice: rename one of them", argument="tasks")
        if task.name == JOINT:
            raise InputError(f"{given}: the folder {JOINT} is that of joint heads: rename the task", argument="tasks")
        tasks[task.name] = task
    return list(tasks.values())


def load_task(task: NerTask, options: HeadOptions) -> TaskData:
    """Read the data of a task from its own source or from `options.ner_data`.

    Raises:
        InputError: there is no source, or the data can't be used.
    """
    source = task.source or options.ner_data
    named = source or task.name
    if is_named_like_labels(named) and not Path(named).exists():
        raise InputError(f"there is no file {named}: check its name and its folder")
    if not source:
        raise InputError(
            f"needed for {task.name}: the folder that contains the folders or files of the tasks", argument="ner_data"
        )
    source = pin_source(source)
    splits = load_ner(task, source)
    return TaskData(task, splits, task_identity(task, source, splits))


def load_cross_tests(tasks: Mapping[str, TaskData], options: HeadOptions) -> list[CrossTest]:
    """Read the test sets that `options.cross_test` names; `all` stands for every pair of tasks that share a type.

    If one of two tasks has more types than both share, the heads are scored on the shared types alone: what a set
    doesn't annotate can't be counted as wrong.

    Raises:
        InputError: the heads aren't trained in this call, the tasks share no type, or one name stands for two test
            sets.
    """
    tests: dict[tuple[str, str], CrossTest] = {}
    for name, other in _cross_test_pairs(tasks, options):
        types, other_types = (types_of_labels(data.splits["test"]) for data in (tasks[name], other))
        shared = tuple(kind for kind in types if kind in other_types)
        if not shared:
            raise InputError(
                f"{name}:{other.task.name}: they share no entity type: {name} has {', '.join(sorted(types))} and "
                f"{other.task.name} has {', '.join(sorted(other_types))}",
                argument="cross_test",
            )
        test = CrossTest(name, other.task.name, other.splits["test"], {"test": other.inputs["test"]})
        if set(types) != set(other_types):
            test = replace(test, types=shared)
        if tests.setdefault((name, test.other), test).inputs != test.inputs:
            raise InputError(f"{test.other} stands for two test sets: rename one of them", argument="cross_test")
    return list(tests.values())


def _cross_test_pairs(tasks: Mapping[str, TaskData], options: HeadOptions) -> Iterator[tuple[str, TaskData]]:
    """Yield the task of the heads and the data that they are tested on."""
    for given in options.cross_test:
        if given == "all":
            types = {name: set(types_of_labels(data.splits["test"])) for name, data in tasks.items()}
            pairs = [(name, other) for name, other in permutations(tasks, 2) if types[name] & types[other]]
            if not pairs:
                logger.warning("no two of the tasks share an entity type: no head is scored on another task")
            yield from ((name, tasks[other]) for name, other in pairs)
            continue
        name, _, other_name = given.partition(":")
        if name not in tasks:
            raise InputError(f"{given}: {name} isn't one of the tasks to train on", argument="cross_test")
        yield name, tasks.get(other_name) or load_task(_chosen_task(other_name), options)


def find_encoders(run: Run, options: HeadOptions) -> dict[str, Source]:
    """Find the models to fine-tune, by label.

    Raises:
        InputError: a model isn't available, has no readable configuration, or is a head that was fine-tuned for a task;
            or a model other than the one that the run adapts is called base.
    """
    encoders = {}
    for given in options.models:
        label, name = split_label(given)
        version = run.root / name
        if given == BASE:
            source = base_of_run(run.root, options.base_model)
        elif version.is_dir() and (given == name or version_numbers(name)):
            source = find_model(version)
        elif version_numbers(name):
            raise InputError(f"{given}: there is no {version}", argument="models")
        else:
            source = find_model(name)
        _check_label(run, label, source)
        verify(source.folder)
        check_fresh(source.folder)
        check_encoder(given, load_by_name(AutoConfig, source.folder))
        encoders[label] = source
    return encoders


def _check_label(run: Run, label: str, source: Source) -> None:
    """Raise if a model is called `base` and isn't the one that the run adapts: tables and cards would mix the two."""
    adapted = adapted_model(run.root)
    if label == BASE and adapted and source.identity != adapted:
        raise InputError(
            f"{source.folder} isn't the model that the run adapts, which is called {BASE}: give it a name of its own "
            f"(LABEL=MODEL)",
            argument="models",
        )


def plan_heads(
    root: Path,
    tasks: Mapping[str, TaskData],
    encoders: Mapping[str, Source],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    *,
    joint: bool,
) -> dict[Path, PlannedHead]:
    """Return a head for each task, encoder and seed by the folder it belongs into.

    Args:
        settings: that shape all heads alike, beside those of `HeadTraining`, which `PlannedHead.trained_with` adds.
        joint: plan one head for all tasks instead of one for each.

    Raises:
        InputError: see `join_tasks`.
    """
    gold = {
        name: hash_of_gold(data.splits["test"]["tokens"][:], tags_of(data.splits["test"]))
        for name, data in tasks.items()
    }
    groups = {JOINT: tasks} if joint else {name: {name: data} for name, data in tasks.items()}
    heads = {}
    for name, members in groups.items():
        dataset, data_inputs, of_task = _joined(members) if joint else _single(members[name])
        of_task = {**settings, **of_task}
        for (label, model), seed in product(encoders.items(), seeds):
            inputs = {**data_inputs, "model": model.identity}
            setups = [HeadSetup(member, label, seed, gold[member], of_task, inputs) for member in members]
            heads[root / name / label / str(seed)] = PlannedHead(
                task=name,
                model=label,
                seed=seed,
                encoder=model.folder,
                dataset=dataset,
                tests={member: data.splits["test"] for member, data in members.items()},
                setups=[joint_setup(setup, inputs, of_task) for setup in setups] if joint else setups,
                inputs=inputs,
                settings={**of_task, "seed": seed},
            )
    return heads


def _single(data: TaskData) -> tuple[DatasetDict, Mapping[str, str], dict[str, Any]]:
    """Return the data of a task, its identity, and the settings of its heads."""
    return data.splits, data.inputs, {"merged_type": data.task.merged_type}


def _joined(tasks: Mapping[str, TaskData]) -> tuple[JointData, Mapping[str, str], dict[str, Any]]:
    """Return the data of several tasks as one set, its identity, and the settings of joint heads."""
    inputs = {f"{name}/{split}": value for name, data in tasks.items() for split, value in data.inputs.items()}
    merged_types = {name: data.task.merged_type for name, data in tasks.items()}
    return join_tasks({name: data.splits for name, data in tasks.items()}), inputs, {"merged_types": merged_types}


def _chosen_task(given: str) -> NerTask:
    if given.endswith((".yaml", ".yml")):
        return read_task(given)
    name, _, source = given.partition("=")
    if not source and ("/" in given or Path(given).is_file()):
        name, source = stem_of(given), given
    return replace(NER_TASKS.get(name) or NerTask(name, folder=name), source=source)
