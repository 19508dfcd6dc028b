"""Train a head for every task, model and seed, score heads on other tasks, and write the tables of results."""

from __future__ import annotations

import logging
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import (
    Run,
    Stage,
    building,
    check_fresh,
    identity,
    is_finished,
    read_json,
    read_record,
    replaced_sources,
    verification,
    verify,
    write_json,
)
from bioptimus_hf.corpus.conll_writing import write_conll
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.models import (
    Source,
    base_of_run,
    check_encoder,
    find_model,
    load_by_name,
    load_token_classifier,
    new_head,
    save_head,
)
from bioptimus_hf.ner.finetuning import best_epoch_arguments, finetune, predict_tasks
from bioptimus_hf.ner.joint import JointData, join_tasks, types_of_labels
from bioptimus_hf.ner.options import JOINT, HeadOptions, HeadTraining, split_label
from bioptimus_hf.ner.results import (
    HeadResult,
    HeadSetup,
    check_comparable,
    finished_heads,
    hash_of_gold,
    joint_setup,
    missing_heads,
    missing_reason,
    predictions_file,
    read_head,
    read_results,
    single_model,
)
from bioptimus_hf.ner.scores import SCORER, entity_scores
from bioptimus_hf.ner.tables import write_results
from bioptimus_hf.ner.tasks import (
    BLURB_NER,
    NER_TASKS,
    NerTask,
    label_names,
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
    """

    task: str
    other: str
    test: Dataset
    inputs: Mapping[str, str]


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


@check_call()
def make_heads(run: Run, options: HeadOptions, training: HeadTraining) -> Path:
    """Train the heads that are missing, score them, and tabulate the results of all finished heads of the run.

    Each head is saved with its scores and predictions in `ner/<task>/<model>/<seed>` of the run, a joint head in
    `ner/joint/<model>/<seed>`, a cross-test in `cross_test/<task>-on-<other>/<model>/<seed>`. Beside them,
    `results.md`, `results.json` and `versions.png` hold the mean and standard deviation over seeds and the paired
    differences from the first model. Finished heads are skipped. All inputs are opened before the first training. Works
    under `accelerate launch`.

    Returns:
        The folder `ner` of the run.

    Raises:
        TrainingDiverged: some trainings did; all other heads are finished, and the tables name those that are missing.
        InputError: a task, model or option can't be used, or finished heads have other inputs or
            settings and `run.force` is false.
    """
    with verification(not run.no_verify):
        return _make_heads(run, options, training)


def _make_heads(run: Run, options: HeadOptions, training: HeadTraining) -> Path:
    # The first call decides about the process group: without it, each process would consider itself the main one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    tasks = {task.name: load_task(task, options) for task in chosen_tasks(options.tasks)}
    encoders = find_encoders(run, options)
    cross_tests = load_cross_tests(tasks, options)
    seeds = options.seeds_from(run.seed)
    root = run.root / "ner"
    settings = {**asdict(training), "max_length": options.max_length, "processes": state.num_processes}
    plan = plan_joint_heads if options.joint else plan_heads
    heads = plan(root, tasks, encoders, seeds, settings)
    missing = {
        folder: head
        for folder, head in heads.items()
        if not is_finished(folder, head.inputs, head.settings, force=run.force)
    }
    if state.is_main_process:
        for folder in heads.keys() - missing.keys():  # which is wanted, and not a later one that diverged
            missing_reason(folder).unlink(missing_ok=True)
    earlier = [folder for folder in finished_heads(root) if folder not in heads]
    finished = [(folder, result) for folder in earlier for result in read_head(folder)]
    check_comparable([*finished, *((folder, setup) for folder, head in heads.items() for setup in head.setups)])
    diverged: list[str] = []
    for name in dict.fromkeys(head.task for head in heads.values()):
        for folder, head in missing.items():
            if head.task == name:
                with _working_on(folder, run):
                    diverged += _try_to_train(folder, head, run, options, training)
        if state.is_main_process:
            tabulate(root, list(encoders))
    if cross_tests and state.is_main_process:
        without = missing_heads(root)
        for test in cross_tests:
            for label, seed in product(encoders, seeds):
                of_task = root / test.task / label / str(seed)
                if of_task not in without:
                    score_elsewhere(of_task, test, run, options)
        tabulate(run.root / "cross_test", list(encoders))
    if diverged:
        raise TrainingDiverged(f"{len(diverged)} of {len(missing)} heads are missing in the tables: {diverged[0]}")
    return root


def chosen_tasks(names: Sequence[str]) -> list[NerTask]:
    """Return the tasks that names, NAME=SOURCE, folders and YAML files stand for; `all` is the five BLURB tasks.

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
    if not source:
        raise InputError(
            f"needed for {task.name}: the folder that contains the folders of the tasks", argument="ner_data"
        )
    source = pin_source(source)
    splits = load_ner(task, source)
    return TaskData(task, splits, task_identity(task, source, splits))


def load_cross_tests(tasks: Mapping[str, TaskData], options: HeadOptions) -> list[CrossTest]:
    """Read the test sets that `options.cross_test` names.

    Raises:
        InputError: the heads aren't trained in this call, the entity types differ, or one name stands for two test
            sets.
    """
    tests: dict[tuple[str, str], CrossTest] = {}
    for given in options.cross_test:
        name, _, other_name = given.partition(":")
        if name not in tasks:
            raise InputError(f"{given}: {name} isn't one of the tasks to train on", argument="cross_test")
        other = tasks.get(other_name) or load_task(_chosen_task(other_name), options)
        types, other_types = (set(types_of_labels(data.splits["test"])) for data in (tasks[name], other))
        if types != other_types:
            raise InputError(
                f"{given}: the entity types must be the same, but {name} has {', '.join(sorted(types))} and "
                f"{other.task.name} has {', '.join(sorted(other_types))}",
                argument="cross_test",
            )
        test = CrossTest(name, other.task.name, other.splits["test"], {"test": other.inputs["test"]})
        if tests.setdefault((name, test.other), test).inputs != test.inputs:
            raise InputError(f"{test.other} stands for two test sets: rename one of them", argument="cross_test")
    return list(tests.values())


def find_encoders(run: Run, options: HeadOptions) -> dict[str, Source]:
    """Find the models to fine-tune, by label.

    Raises:
        InputError: a model isn't available, has no readable configuration, or is a head that was fine-tuned for a task.
    """
    encoders = {}
    for given in options.models:
        label, name = split_label(given)
        version = run.root / name
        if given == "base":
            source = base_of_run(run.root, options.base_model)
        elif version.is_dir() and (given == name or version_numbers(name)):
            source = find_model(version)
        elif version_numbers(name):
            raise InputError(f"{given}: there is no {version}", argument="models")
        else:
            source = find_model(name)
        verify(source.folder)
        check_fresh(source.folder)
        check_encoder(given, load_by_name(AutoConfig, source.folder))
        encoders[label] = source
    return encoders


def plan_heads(
    root: Path,
    tasks: Mapping[str, TaskData],
    encoders: Mapping[str, Source],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> dict[Path, PlannedHead]:
    """Return every head of the grid by the folder it belongs into.

    Args:
        settings: that shape all heads alike.
    """
    heads = {}
    for name, data in tasks.items():
        gold = _gold(data)
        of_task = {**settings, "merged_type": data.task.merged_type}
        for (label, model), seed in product(encoders.items(), seeds):
            inputs = {**data.inputs, "model": model.identity}
            heads[root / name / label / str(seed)] = PlannedHead(
                task=name,
                model=label,
                seed=seed,
                encoder=model.folder,
                dataset=data.splits,
                tests={name: data.splits["test"]},
                setups=[HeadSetup(name, label, seed, gold, settings=of_task, inputs=inputs)],
                inputs=inputs,
                settings={**of_task, "seed": seed},
            )
    return heads


def plan_joint_heads(
    root: Path,
    tasks: Mapping[str, TaskData],
    encoders: Mapping[str, Source],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> dict[Path, PlannedHead]:
    """Return a joint head for each model and seed by the folder it belongs into; see `plan_heads`.

    Raises:
        InputError: see `join_tasks`.
    """
    joined = join_tasks({name: data.splits for name, data in tasks.items()})
    data_inputs = {f"{name}/{split}": value for name, data in tasks.items() for split, value in data.inputs.items()}
    of_all = {**settings, "merged_types": {name: data.task.merged_type for name, data in tasks.items()}}
    gold = {name: _gold(data) for name, data in tasks.items()}
    heads = {}
    for (label, model), seed in product(encoders.items(), seeds):
        inputs = {**data_inputs, "model": model.identity}
        heads[root / JOINT / label / str(seed)] = PlannedHead(
            task=JOINT,
            model=label,
            seed=seed,
            encoder=model.folder,
            dataset=joined,
            tests={name: data.splits["test"] for name, data in tasks.items()},
            setups=[joint_setup(HeadSetup(name, label, seed, gold[name]), inputs, of_all) for name in tasks],
            inputs=inputs,
            settings={**of_all, "seed": seed},
        )
    return heads


def _try_to_train(folder: Path, head: PlannedHead, run: Run, options: HeadOptions, training: HeadTraining) -> list[str]:
    """Train one head; if training diverges, keep the reason beside its folder, and return it."""
    try:
        train_head(folder, head, run, options, training)
    except TrainingDiverged as error:
        reason = f"{folder}: {error}"
        if PartialState().is_main_process:
            write_json(missing_reason(folder), {"reason": str(error)})
            logger.error("%s", reason)
        return [reason]
    if PartialState().is_main_process:
        missing_reason(folder).unlink(missing_ok=True)
    return []


def train_head(folder: Path, head: PlannedHead, run: Run, options: HeadOptions, training: HeadTraining) -> None:
    """Train one head, and save it with its scores."""
    if is_finished(folder, head.inputs, head.settings, force=run.force):
        return  # by another command in the meantime
    with _stage_of_all_ranks(folder, head.inputs, head.settings, {"model": Path(head.encoder)}) as stage:
        logger.info("task %s, model %s, seed %d", head.task, head.model, head.seed)
        joint = isinstance(head.dataset, JointData)
        tags = head.dataset.tags if isinstance(head.dataset, JointData) else label_names(head.dataset["train"])
        model, tokenizer = new_head(head.encoder, tags, seed=head.seed)
        checkpoints = stage.path / "checkpoints"
        arguments = best_epoch_arguments(
            checkpoints, seed=head.seed, use_cpu=not torch.accelerator.is_available(), **asdict(training)
        )
        history = finetune(
            model, tokenizer, head.dataset, arguments, max_length=options.max_length, num_proc=run.num_proc
        )
        PartialState().wait_for_everyone()  # the Trainer of a slower process may still list its checkpoints
        if arguments.process_index > 0:
            return
        shutil.rmtree(checkpoints)
        save_head(model, tokenizer, stage.path)
        tests = _score(stage, stage.path, head.tests, options.max_length, joint=joint)
        best = max(history, key=lambda row: row["f1"])
        f1 = statistics.fmean(scores["f1"] for scores in tests.values())
        stage.facts |= {"f1": f1, "support": sum(scores["support"] for scores in tests.values())}
        stage.facts |= {"best_epoch": best["epoch"]}
        if isinstance(head.dataset, JointData):
            stage.facts["excluded"] = head.dataset.excluded
        logger.info("test F1 %.2f (dev %.2f, epoch %d)", 100 * f1, 100 * best["f1"], best["epoch"])
        content = {"task": head.task, "model": head.model, "seed": head.seed, "scorer": SCORER}
        content |= {"tests": tests} if joint else {"test": tests[head.task]}
        write_json(stage.path / "scores.json", {**content, "best_epoch": best["epoch"], "validation": history})


def score_elsewhere(head: Path, test: CrossTest, run: Run, options: HeadOptions) -> None:
    """Score a finished head on the test set of another task."""
    own = read_json(head / "scores.json")
    folder = run.root / "cross_test" / f"{test.task}-on-{test.other}" / head.parent.name / head.name
    inputs = {**test.inputs, "head": identity(head)}
    settings = {"max_length": options.max_length, "seed": own["seed"]}
    if is_finished(folder, inputs, settings, force=run.force):
        return
    with _working_on(folder, run), building(folder, inputs, settings, sources={"head": head}) as stage:
        verify(head)
        scores = _score(stage, head, {test.other: test.test}, options.max_length)[test.other]
        content = {"task": f"{test.task}, tested on {test.other}", "model": own["model"], "seed": own["seed"]}
        record = read_record(head)
        trained = {"inputs": record["inputs"], "settings": record["settings"]}
        write_json(stage.path / "scores.json", {**content, "scorer": SCORER, "test": scores, "trained": trained})
        logger.info("%s, model %s, seed %d: F1 %.2f", *content.values(), 100 * scores["f1"])


def tabulate(root: Path, models: Sequence[str]) -> None:
    """Write the tables of all finished heads below `root`; the first of `models` is the reference.

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
    missing = missing_heads(root) | {
        head: f"made from another {name} than is now in {source}"
        for head in heads
        for _, name, source in replaced_sources(head)
    }
    results = sorted(read_results(head for head in heads if head not in missing), key=order)
    text = write_results(root, results, reference=models[0], missing=missing)
    logger.info("saved %s\n%s", root / "results.md", text)


def _chosen_task(given: str) -> NerTask:
    if given.endswith((".yaml", ".yml")):
        return read_task(given)
    name, _, source = given.partition("=")
    if not source and "/" in given:
        name, source = Path(given).name, given
    return replace(NER_TASKS.get(name) or NerTask(name, folder=name), source=source)


def _working_on(folder: Path, run: Run) -> AbstractContextManager[Path]:
    """Keep other launches from writing a head."""
    return run.working_on(folder.relative_to(run.root).as_posix(), writes=PartialState().is_main_process)


@contextmanager
def _stage_of_all_ranks(
    folder: Path, inputs: Mapping[str, str], settings: Mapping[str, Any], sources: Mapping[str, Path]
) -> Iterator[Stage]:
    """Build a stage that all processes of a launch write to; the main process begins and ends it."""
    state = PartialState()
    state.wait_for_everyone()  # another process may still be checking whether the stage is finished
    building_it = building(folder, inputs, settings, sources=sources) if state.is_main_process else nullcontext()
    with building_it as stage:
        (path,) = broadcast_object_list([str(stage.path) if stage else ""])
        yield stage or Stage(Path(path))
        state.wait_for_everyone()
    state.wait_for_everyone()


def _gold(data: TaskData) -> str:
    """Return the hash of a test set."""
    return hash_of_gold(data.splits["test"]["tokens"][:], tags_of(data.splits["test"]))


def _score(
    stage: Stage, head: Path, tests: Mapping[str, Dataset], max_length: int, *, joint: bool = False
) -> dict[str, dict[str, float]]:
    """Score a saved head on test sets, by task, and save its predictions."""
    model = load_token_classifier(head).to(PartialState().device)
    tokenizer = load_by_name(AutoTokenizer, str(head))
    predicted = predict_tasks(model, tokenizer, tests, max_length=max_length)
    scores = {}
    for task, test in tests.items():
        file = stage.path / (predictions_file(task) if joint else "predictions.tsv")
        gold = tags_of(test)
        write_conll(file, list(zip(test["tokens"][:], gold, predicted[task], strict=True)))
        scores[task] = entity_scores(gold, predicted[task])
    return scores
