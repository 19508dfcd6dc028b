#!/usr/bin/env python
r"""Fine-tune a NER head for every task, model and seed, and write the table of strict entity F1.

    python scripts/finetune_ner.py --ner_data data/ner --tasks ncbi-disease --models base v0.4 --seeds 0 1 2 \
        --output_dir runs/mine

Writes OUTPUT_DIR/ner/<task>/<model>/<seed> (a model for pipeline("ner"), scores.json, predictions.tsv), then
OUTPUT_DIR/ner/results.md and results.json. Cells that are finished are skipped.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import DatasetDict
from transformers import AutoConfig, AutoModelForTokenClassification

from bioptimus_hf.artifacts import InputError, Stage, building, identity, is_finished, write_json
from bioptimus_hf.cards import write_ner_card
from bioptimus_hf.conll import write_conll
from bioptimus_hf.finetuning import evaluates_each_epoch, finetune, new_head, predict_tags, save_head
from bioptimus_hf.ner import (
    BLURB_NER,
    SCORER,
    NerTask,
    entity_scores,
    label_names,
    load_ner,
    results_table,
    summarize,
    tags_of,
    task_files,
)
from bioptimus_hf.recipes import StageOptions, load_by_name, parse, run

logger = logging.getLogger("finetune_ner")


@dataclass
class Options:
    """What is trained on what."""

    ner_data: str = field(metadata={"help": "Folder that holds the tasks' folders, or the files of one task"})
    output_dir: str = field(
        default="runs/default", metadata={"help": "Folder of the run; the models' versions are looked for in it"}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": f"Tasks of BLURB ({', '.join(BLURB_NER)}, or all of them: all). Any other name is a task of your "
            "own: the files are NER_DATA/<name>/{train,dev,test}.tsv, or NER_DATA/{train,dev,test}.tsv, and the entity "
            "types are those that occur in them"
        },
    )
    models: list[str] = field(
        default_factory=lambda: ["base", "v0.4"],
        metadata={
            "help": "Models: base (BASE_MODEL), v0.4 (OUTPUT_DIR/v0.4), a folder or a Hub name; "
            "label=FOLDER chooses the name that the results are filed under"
        },
    )
    base_model: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "Folder or Hub name of the unadapted model, which --models knows as base"},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "A training for each of these seeds"})
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
    """Train what is missing of the grid, and write its table."""
    options, training, stage = parse(
        Options, TrainingOptions, StageOptions, section="finetune_ner", description=__doc__
    )
    # The first to ask for the state of the processes decides what it is: without this, each would be the main one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    tasks = chosen_tasks(options.tasks)
    models = chosen_models(options)
    # All that is named is opened now: hours into a grid is no time to learn that something is missing.
    datasets = {task.name: load_ner(task, options.ner_data) for task in tasks}
    for source in models.values():
        load_by_name(AutoConfig, source)
    root = Path(options.output_dir) / "ner"
    identities = {label: identity(source) for label, source in models.items()}
    files = {
        task.name: {split: identity(file) for split, file in task_files(task, options.ner_data).items()}
        for task in tasks
    }
    for task, (label, source), seed in product(tasks, models.items(), options.seeds):
        folder = root / task.name / label / str(seed)
        inputs = {**files[task.name], "model": identities[label]}
        settings = {**asdict(training), "max_length": options.max_length, "seed": seed}
        settings |= {"merged_type": task.merged_type, "processes": state.num_processes}
        if not is_finished(folder, inputs, settings, force=stage.force):
            with built_by_main_process(folder, inputs, settings) as built:
                logger.info("task %s, model %s, seed %d", task.name, label, seed)
                scores = train_and_score(built, source, datasets[task.name], seed, options, training, stage.num_proc)
                if state.is_main_process:
                    cell = {"task": task.name, "model": label, "seed": seed, "scorer": SCORER, **scores}
                    write_json(built.path / "scores.json", cell)
                    write_ner_card(built.path, model=str(folder))
    if state.is_main_process:
        finished = sorted(root.glob("*/*/*/scores.json"))  # of earlier calls too
        rows = summarize([json.loads(path.read_text(encoding="utf-8")) for path in finished])
        write_json(root / "results.json", {"scorer": SCORER, "rows": rows})
        (root / "results.md").write_text(results_table(rows), encoding="utf-8")
        logger.info("saved %s\n%s", root / "results.md", results_table(rows))


def chosen_tasks(names: list[str]) -> list[NerTask]:
    """Return the tasks of these names."""
    names = [one for name in names for one in (BLURB_NER if name == "all" else [name])]
    return [BLURB_NER.get(name) or NerTask(name, folder=name) for name in dict.fromkeys(names)]


def chosen_models(options: Options) -> dict[str, str]:
    """Return the label of each model and where it is."""
    models: dict[str, str] = {}
    for given in options.models:
        label, equals, source = given.partition("=")
        if not equals:
            version = Path(options.output_dir) / given
            source = options.base_model if given == "base" else str(version) if version.is_dir() else given
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
    saved = load_by_name(AutoModelForTokenClassification, str(built.path), dtype=torch.float32).to(arguments.device)
    words, gold = dataset["test"]["tokens"], tags_of(dataset["test"])
    predicted = predict_tags(saved, tokenizer, words, max_length=options.max_length)
    write_conll(built.path / "predictions.tsv", list(zip(words, gold, predicted, strict=True)))
    scores = entity_scores(gold, predicted)
    best = max(history, key=lambda row: row["f1"])
    built.facts |= {"f1": scores["f1"], "support": scores["support"], "best_epoch": best["epoch"]}
    logger.info("test F1 %.2f (dev %.2f, epoch %d)", 100 * scores["f1"], 100 * best["f1"], best["epoch"])
    return {"test": scores, "best_epoch": best["epoch"], "validation": history}


if __name__ == "__main__":
    run(main)
