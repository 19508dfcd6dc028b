#!/usr/bin/env python
r"""Fine-tune a NER head for every task, model and seed, and write the table of strict entity F1.

    python scripts/finetune_ner.py --ner_data data/ner --tasks all --models base v0.1 v0.2 v0.3 v0.4 --seeds 5 \
        --output_dir runs/mine --cross_test bc5-disease:ncbi-disease ncbi-disease:bc5-disease

Writes OUTPUT_DIR/ner/<task>/<model>/<seed> (a model for pipeline("ner"), scores.json, predictions.tsv), then
OUTPUT_DIR/ner/results.md, results.json and versions.png: mean, deviation and what each model differs by from the first
one. Cells that are finished are skipped. Heads that are scored on another task's test part go to
OUTPUT_DIR/cross_test/<task>-on-<other>/<model>/<seed>, and their table to OUTPUT_DIR/cross_test/results.md.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer

from bioptimus_hf.artifacts import RECORD, Stage, building, identity, is_finished, read_record, write_json
from bioptimus_hf.cli.legacy import StageOptions, parse, run
from bioptimus_hf.corpus.conll import write_conll
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import base_of_run, find_model, load_by_name, load_token_classifier, new_head, save_head
from bioptimus_hf.ner.finetuning import evaluates_each_epoch, finetune, predict_tags
from bioptimus_hf.ner.results import Cell, check_alike, hash_of_gold, read_cells
from bioptimus_hf.ner.scores import SCORER, entity_scores
from bioptimus_hf.ner.tables import write_results
from bioptimus_hf.ner.tasks import (
    BLURB_NER,
    NER_TASKS,
    NerTask,
    label_names,
    load_ner,
    read_task,
    tags_of,
    task_identity,
)

logger = logging.getLogger("finetune_ner")


@dataclass
class Options:
    """What is trained on what."""

    ner_data: str | None = field(
        default=None,
        metadata={"help": "Folder that holds the tasks' folders, or the files of one task, or a data set of the Hub"},
    )
    output_dir: str = field(
        default="runs/default", metadata={"help": "Folder of the run; the models' versions are looked for in it"}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": f"Tasks of BLURB ({', '.join(BLURB_NER)}, or all of them: all), or jnlpba-types. Any other name is "
            "a task of your own: the files are NER_DATA/<name>/{train,dev,test}.tsv, or NER_DATA/{train,dev,test}.tsv, "
            "and the entity types are those that occur in them. name=SOURCE takes another folder, or a data set of the "
            "Hub (owner/name or owner/name@revision); FILE.yaml describes a task (see bioptimus_hf.ner.tasks.NerTask)"
        },
    )
    models: list[str] = field(
        default_factory=lambda: ["base", "v0.4"],
        metadata={
            "help": "Models: base (the unadapted one), v0.4 (OUTPUT_DIR/v0.4), a folder or a Hub name (name@revision); "
            "label=FOLDER chooses the name that the results are filed under"
        },
    )
    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of the unadapted model, `base` in --models; default: the base of the run"
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [3],
        metadata={
            "help": "One number is how many: 5 trains with the seeds 0 to 4. Two or more are the seeds themselves, "
            "each once, so that 7 7 is seed 7 alone"
        },
    )
    cross_test: list[str] = field(
        default_factory=list,
        metadata={
            "help": "task:other, as often as you like: score the heads of that task on the other one's test part too. "
            "Their entity types must be the same"
        },
    )
    max_length: int = field(
        default=512, metadata={"help": "Most pieces of a window; longer sentences are cut into several windows"}
    )


@dataclass
class TrainingOptions:
    """How a head is trained; named as in transformers.TrainingArguments."""

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak; decays linearly to 0"})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Sentences at once"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches of an update"})
    num_train_epochs: int = field(default=10, metadata={"help": "Epochs; the best on the dev part is kept"})
    warmup_steps: float = field(default=0.1, metadata={"help": "Updates of warm-up, or below 1 their share"})
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW"})
    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16 mixed precision; scores are taken in fp32"})


def main() -> None:
    """Train what is missing of the grid, score it on other tasks if asked, and write the tables."""
    options, training, stage = parse(
        Options, TrainingOptions, StageOptions, section="finetune_ner", description=__doc__
    )
    # The first to ask for the state of the processes decides what it is: without this, each would be the main one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    tasks, models, seeds = chosen_tasks(options.tasks), chosen_models(options), chosen_seeds(options.seeds)
    # All that is named is opened now: hours into a grid is no time to learn that something is missing.
    datasets = {task.name: load_ner(task, source_of(task, options)) for task in tasks}
    others = load_others(options, tasks, datasets)
    sources = {label: find_model(source) for label, source in models.items()}
    for source in sources.values():
        load_by_name(AutoConfig, source.folder)
    root = Path(options.output_dir) / "ner"
    shared = {**asdict(training), "max_length": options.max_length, "processes": state.num_processes}
    cells: dict[Path, Cell] = {}
    for task in tasks:
        data = datasets[task.name]
        files = task_identity(task, source_of(task, options), data)
        gold = hash_of_gold(data["test"]["tokens"], tags_of(data["test"]))
        settings = {**shared, "merged_type": task.merged_type}
        for (label, source), seed in product(sources.items(), seeds):
            inputs = {**files, "model": source.identity}
            folder = root / task.name / label / str(seed)
            cells[folder] = Cell(task.name, label, seed, gold=gold, settings=settings, inputs=inputs)
    missing = {
        folder: cell
        for folder, cell in cells.items()
        if not is_finished(folder, cell.inputs, {**cell.settings, "seed": cell.seed}, force=stage.force)
    }
    earlier = [folder for folder in finished_cells(root) if folder not in cells]
    check_alike({**dict(zip(earlier, read_cells(earlier), strict=True)), **cells})
    for task in tasks:
        for folder, cell in missing.items():
            if cell.task == task.name:
                train_cell(folder, cell, sources[cell.model].folder, datasets[task.name], options, training, stage)
        if state.is_main_process:
            tabulate(root, list(models))
    if others and state.is_main_process:
        cross = root.with_name("cross_test")
        for (name, other), (data, files) in others.items():
            for label, seed in product(models, seeds):
                score_elsewhere(root / name / label / str(seed), cross, other, data, files, options, stage)
        tabulate(cross, list(models))


def chosen_tasks(names: list[str]) -> list[NerTask]:
    """Return the tasks of these names, sources and files."""
    tasks: dict[str, NerTask] = {}
    for given in dict.fromkeys(one for name in names for one in (BLURB_NER if name == "all" else [name])):
        task = chosen_task(given)
        if task.name in tasks:
            raise InputError(f"--tasks: {task.name} is given twice: give one of them another name")
        tasks[task.name] = task
    return list(tasks.values())


def chosen_task(given: str) -> NerTask:
    """Return the task of a name, of name=SOURCE or of a YAML file."""
    if given.endswith((".yaml", ".yml")):
        return read_task(given)
    name, equals, source = given.partition("=")
    if equals and not source:
        raise InputError(f"--tasks {given}: give a folder or a data set of the Hub after =")
    return replace(NER_TASKS.get(name) or NerTask(name, folder=name), source=source)


def source_of(task: NerTask, options: Options) -> str:
    """Return where a task is read from."""
    source = task.source or options.ner_data
    if not source:
        raise InputError(f"--ner_data is needed for {task.name}: the folder that holds the tasks' folders")
    return source


def chosen_seeds(given: list[int]) -> list[int]:
    """Return the seeds that one number counts, or several numbers are."""
    if len(given) > 1:
        return list(dict.fromkeys(given))
    if given[0] < 1:
        raise InputError(f"--seeds {given[0]}: give how many (1: seed 0 alone), or two or more seeds by number")
    return list(range(given[0]))


def load_others(
    options: Options, tasks: list[NerTask], datasets: Mapping[str, DatasetDict]
) -> dict[tuple[str, str], tuple[Dataset, dict[str, str]]]:
    """Return test part and its identity for each pair (task, other) of --cross_test."""
    others: dict[tuple[str, str], tuple[Dataset, dict[str, str]]] = {}
    for given in options.cross_test:
        name, _, wanted = given.partition(":")
        if name not in datasets or not wanted:
            raise InputError(f"--cross_test {given}: give task:other, where task is one of --tasks")
        other = next((task for task in tasks if task.name == wanted), None) or chosen_task(wanted)
        data = datasets[other.name] if other in tasks else load_ner(other, source_of(other, options))
        own, its = ({label[2:] for label in label_names(one["test"])} - {""} for one in (datasets[name], data))
        if own != its:
            raise InputError(
                f"--cross_test {given}: {name} has {', '.join(sorted(own))}, {other.name} has "
                f"{', '.join(sorted(its))}: only tasks of the same types can be tested on one another"
            )
        identities = task_identity(other, source_of(other, options), data)
        found = (data["test"], {"test": identities["test"]})
        if others.setdefault((name, other.name), found)[1] != found[1]:
            raise InputError(f"--cross_test: {other.name} stands for two test parts: give one of them another name")
    return others


def score_elsewhere(
    head: Path, root: Path, other: str, data: Dataset, files: Mapping[str, str], options: Options, stage: StageOptions
) -> None:
    """Score a finished head on the test part of another task."""
    cell = json.loads((head / "scores.json").read_text(encoding="utf-8"))
    folder = root / f"{cell['task']}-on-{other}" / head.parent.name / head.name
    inputs, settings = {**files, "head": identity(head)}, {"max_length": options.max_length, "seed": cell["seed"]}
    if is_finished(folder, inputs, settings, force=stage.force):
        return
    with building(folder, inputs, settings) as built:
        scores = score(built, head, data, options.max_length)
        what = {"task": f"{cell['task']}, tested on {other}", "model": cell["model"], "seed": cell["seed"]}
        made = read_record(head)
        trained = {name: made[name] for name in ("inputs", "settings")}
        write_json(built.path / "scores.json", {**what, "scorer": SCORER, "test": scores, "trained": trained})
        logger.info("%s, model %s, seed %d: F1 %.2f", *what.values(), 100 * scores["f1"])


def tabulate(root: Path, models: list[str]) -> None:
    """Write the tables of all finished cells, those of earlier calls too; the first model is the reference."""
    order = [*NER_TASKS, *(f"{one}-on-{other}" for one, other in product(NER_TASKS, repeat=2))]

    def place(folder: Path) -> tuple[Any, ...]:
        task, model = folder.parts[-3:-1]
        known = [
            (names.index(name) if name in names else len(names), name)
            for name, names in ((task, order), (model, models))
        ]
        return (*known, int(folder.name))

    text = write_results(root, read_cells(sorted(finished_cells(root), key=place)), reference=models[0])
    logger.info("saved %s\n%s", root / "results.md", text)


def finished_cells(root: Path) -> list[Path]:
    """Return the folders of all cells that are finished."""
    return [made.parent for made in root.glob("*/*/*/" + RECORD) if made.parent.name.isdecimal()]


def chosen_models(options: Options) -> dict[str, str]:
    """Return the label of each model and where it is."""
    models: dict[str, str] = {}
    for given in options.models:
        label, equals, source = given.partition("=")
        if not equals:
            version = Path(options.output_dir) / given
            if given == "base":
                base = base_of_run(options.output_dir, options.base_model)
                source = base.commit or base.folder
            else:
                source = str(version) if version.is_dir() else given
            label = "base" if given == "base" else Path(given).name
        if re.fullmatch(r"v\d+\.\d+", source):
            raise InputError(f"--models {given}: there is no {Path(options.output_dir) / given}")
        if not label or not source or "/" in label:
            raise InputError(f"--models {given}: give a folder, a Hub name, or label=FOLDER")
        if label in models:
            raise InputError(f"--models: {models[label]} and {source} are both called {label}: give label=FOLDER")
        models[label] = source
    return models


@contextmanager
def built_by_main_process(folder: Path, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> Iterator[Stage]:
    """Build a stage that several processes train together: all see its folder, the main process makes and ends it."""
    state = PartialState()
    state.wait_for_everyone()  # nobody may still be looking whether the stage is finished
    if state.is_main_process:
        with building(folder, inputs, settings) as built:
            state.wait_for_everyone()
            yield built
            state.wait_for_everyone()
    else:
        state.wait_for_everyone()
        yield Stage(folder.with_name(folder.name + ".partial"))
        state.wait_for_everyone()
    state.wait_for_everyone()


def train_cell(
    folder: Path,
    cell: Cell,
    source: str,
    dataset: DatasetDict,
    options: Options,
    training: TrainingOptions,
    stage: StageOptions,
) -> None:
    """Train one head, and save it with its scores and its card."""
    settings = {**cell.settings, "seed": cell.seed}
    if is_finished(folder, cell.inputs, settings, force=stage.force):
        return  # by another process, since this one looked
    with built_by_main_process(folder, cell.inputs, settings) as built:
        logger.info("task %s, model %s, seed %d", cell.task, cell.model, cell.seed)
        scores = train_and_score(built, source, dataset, cell.seed, options, training, stage.num_proc)
        if PartialState().is_main_process:
            what = {"task": cell.task, "model": cell.model, "seed": cell.seed, "scorer": SCORER, **scores}
            write_json(built.path / "scores.json", what)


def train_and_score(
    built: Stage,
    source: str,
    dataset: DatasetDict,
    seed: int,
    options: Options,
    training: TrainingOptions,
    num_proc: int | None,
) -> dict[str, Any]:
    """Train one head, save it, and score on the test part what was saved."""
    model, tokenizer = new_head(source, label_names(dataset["train"]), seed=seed)
    checkpoints = built.path / "checkpoints"
    arguments = evaluates_each_epoch(
        checkpoints, seed=seed, use_cpu=not torch.accelerator.is_available(), **asdict(training)
    )
    history = finetune(model, tokenizer, dataset, arguments, max_length=options.max_length, num_proc=num_proc)
    PartialState().wait_for_everyone()  # the Trainer of a slower process may still list its checkpoints
    if arguments.process_index > 0:
        return {}
    shutil.rmtree(checkpoints)
    save_head(model, tokenizer, built.path)
    scores = score(built, built.path, dataset["test"], options.max_length)
    best = max(history, key=lambda row: row["f1"])
    built.facts |= {"f1": scores["f1"], "support": scores["support"], "best_epoch": best["epoch"]}
    logger.info("test F1 %.2f (dev %.2f, epoch %d)", 100 * scores["f1"], 100 * best["f1"], best["epoch"])
    return {"test": scores, "best_epoch": best["epoch"], "validation": history}


def score(built: Stage, head: Path, data: Dataset, max_length: int) -> dict[str, float]:
    """Score a saved head on a test part, and save what it predicts there."""
    device = PartialState().device
    model = load_token_classifier(head).to(device)
    words, gold = data["tokens"], tags_of(data)
    tokenizer = load_by_name(AutoTokenizer, str(head))
    predicted = predict_tags(model, tokenizer, words, max_length=max_length)
    write_conll(built.path / "predictions.tsv", list(zip(words, gold, predicted, strict=True)))
    return entity_scores(gold, predicted)


if __name__ == "__main__":
    run(main)
