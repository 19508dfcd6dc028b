#!/usr/bin/env python
"""Compare encoders by the F1 of heads that are trained on few sentences.

    python benchmarks/learning_curve.py --ner_data data/ner --work runs/curve \\
        --models base=google-bert/bert-base-uncased v0.4=runs/mine/v0.4

For each seed, the training set is shuffled, and heads are trained on its first 50, 100, 250, 500 and 1,000 sentences,
so that smaller sets are parts of larger ones and all encoders get the same sentences. The development set is drawn in
the same way and has as many sentences as the training set, if there are as many: who has few labels has few for
development, too. The test set is whole. A small set gets more epochs (--min_updates), since a few dozen updates teach
nothing; the best epoch on the development set is kept. Finished heads are skipped, so a run that was killed goes on
when it is repeated.

Writes WORK/summary.md (test F1 for each number of sentences, mean and standard deviation over seeds, and differences
from the first model, in pairs of the same seed and sentences, with the 95 % interval of `paired_differences`),
WORK/summary.json and WORK/learning_curve.png.
--max_sentences cuts the test set, to try the command.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bioptimus_hf.artifacts import Run, write_json
from bioptimus_hf.corpus.conll_writing import write_conll
from bioptimus_hf.hardware import keep_freed_memory
from bioptimus_hf.ner.differences import paired_differences
from bioptimus_hf.ner.experiments import make_heads
from bioptimus_hf.ner.joint import types_of_labels
from bioptimus_hf.ner.options import HeadOptions, HeadTraining, split_label
from bioptimus_hf.ner.planning import chosen_tasks, load_task
from bioptimus_hf.ner.results import (
    HeadResult,
    difference_and_interval,
    mean_and_standard_deviation,
    read_results,
    spread,
)
from bioptimus_hf.ner.tasks import tags_of
from bioptimus_hf.plots import save_plot

Scores = Mapping[str, Mapping[int, Sequence[float]]]
"""Test F1 of each seed, by model and number of training sentences."""


def name_of(options: argparse.Namespace, size: int) -> str:
    """Return what the task with so many training sentences is called."""
    return f"{options.task.replace('/', '-')}-{size}"


def write_data(options: argparse.Namespace) -> None:
    """Write the sets of all seeds and sizes, each with a YAML file that describes it as a task."""
    (task,) = chosen_tasks([options.task])
    data = load_task(task, HeadOptions(ner_data=options.ner_data)).splits
    rows = {split: list(zip(data[split]["tokens"][:], tags_of(data[split]), strict=True)) for split in data}
    if max(options.sizes) > len(rows["train"]):
        raise SystemExit(f"--sizes: {options.task} has {len(rows['train'])} training sentences")
    for seed in options.seeds:
        shuffled = {
            split: random.Random(seed).sample(rows[split], len(rows[split])) for split in ("train", "validation")
        }
        for size in options.sizes:
            folder = options.work / "data" / f"seed-{seed}" / name_of(options, size)
            folder.mkdir(parents=True, exist_ok=True)
            write_conll(folder / "train.tsv", shuffled["train"][:size])
            write_conll(folder / "dev.tsv", shuffled["validation"][:size])
            write_conll(folder / "test.tsv", rows["test"][: options.max_sentences])
            content = {"name": folder.name, "source": folder.name, "types": types_of_labels(data["train"])}
            folder.with_name(f"{folder.name}.yaml").write_text(yaml.safe_dump(content))


def epochs(options: argparse.Namespace, size: int) -> int:
    """Return how many epochs a set of so many sentences gets."""
    updates = math.ceil(size / options.batch)  # of an epoch
    return int(max(options.epochs, math.ceil(options.min_updates / updates)))


def train(options: argparse.Namespace) -> None:
    """Train the heads that are missing, the smallest sets first, each seed in a run of its own."""
    for size in sorted(options.sizes):
        training = HeadTraining(
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch,
            num_train_epochs=epochs(options, size),
            bf16=options.bf16,
        )
        for seed in options.seeds:
            task = options.work / "data" / f"seed-{seed}" / f"{name_of(options, size)}.yaml"
            heads = HeadOptions(tasks=[str(task)], models=options.models, seeds=[1])
            make_heads(Run(str(options.work / f"seed-{seed}"), seed=seed), heads, training)


def read_heads(options: argparse.Namespace) -> list[HeadResult]:
    """Return the results of all heads, the smallest sets first."""
    labels = [split_label(given)[0] for given in options.models]
    folders = [
        options.work / f"seed-{seed}" / "ner" / name_of(options, size) / label / str(seed)
        for size in sorted(options.sizes)
        for label in labels
        for seed in options.seeds
    ]
    # Each seed has sentences of its own, and so other inputs.
    return [replace(result, inputs={}) for folder in folders for result in read_results([folder])]


def scores_of(options: argparse.Namespace, heads: Sequence[HeadResult]) -> Scores:
    """Return the test F1 of all heads."""
    return {
        label: {
            size: [head.scores["f1"] for head in heads if (head.model, head.task) == (label, name_of(options, size))]
            for size in sorted(options.sizes)
        }
        for label in dict.fromkeys(head.model for head in heads)
    }


def make_table(options: argparse.Namespace, scores: Scores, differences: Sequence[Mapping[str, Any]]) -> str:
    """Make the table of all sizes and models."""
    first, *others = scores
    columns = [*scores, *(f"{other} minus {first}" for other in others)]
    lines = [
        f"Test F1 (strict, percent) of {options.task}, mean ± standard deviation over {len(options.seeds)} seeds; "
        f"differences in pairs of the same seed and sentences, with intervals that hold together (95 %).",
        "",
        f"| training sentences | epochs | {' | '.join(columns)} |",
        "| --- " * (len(columns) + 2) + "|",
    ]
    for size in sorted(options.sizes):
        shown = [mean_and_standard_deviation(spread(list(of_size[size]))) for of_size in scores.values()]
        shown += [difference_and_interval(row) for row in differences if row["task"] == name_of(options, size)]
        lines.append(f"| {size:,} | {epochs(options, size)} | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def plot(options: argparse.Namespace, scores: Scores) -> None:
    """Plot F1 over the number of sentences: the mean of each model, and every seed."""

    def draw(axes: Any) -> None:
        for number, (label, of_model) in enumerate(scores.items()):
            color = f"C{number}"
            summaries = [spread(list(values)) for values in of_model.values()]
            means = [100 * float(one["mean"] or 0) for one in summaries]
            errors = [100 * float(one["standard_deviation"] or 0) for one in summaries]
            axes.errorbar(list(of_model), means, yerr=errors, color=color, capsize=3, label=label)
            for size, values in of_model.items():
                axes.plot([size] * len(values), [100 * value for value in values], ".", color=color, alpha=0.4)
        axes.set_xscale("log")
        axes.set_xticks(sorted(options.sizes), [f"{size:,}" for size in sorted(options.sizes)])
        axes.minorticks_off()
        axes.set(xlabel="training sentences", ylabel="strict entity F1 (%)", title=options.task)
        axes.legend(title="mean ± standard deviation")

    save_plot(options.work / "learning_curve.png", draw)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ner_data", required=True, help="folder with the NER sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for the sets, the heads and the summary")
    parser.add_argument("--models", nargs="+", required=True, help="LABEL=MODEL; the first is the reference")
    parser.add_argument("--task", default="ncbi-disease")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 250, 500, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--min_updates", type=int, default=200, help="small sets get as many epochs as this takes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--max_sentences", type=int, help="of the test set; default: all")
    return parser.parse_args()


def main() -> None:
    """Train, score and plot."""
    options = parse_options()
    keep_freed_memory()
    write_data(options)
    train(options)
    heads = read_heads(options)
    scores = scores_of(options, heads)
    differences = paired_differences(heads, [heads[0].model])
    summary = make_table(options, scores, differences)
    (options.work / "summary.md").write_text(summary, encoding="utf-8")
    content = {"task": options.task, "seeds": options.seeds, "f1": scores, "differences": differences}
    write_json(options.work / "summary.json", content)
    plot(options, scores)
    print(summary)


if __name__ == "__main__":
    main()
