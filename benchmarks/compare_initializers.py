#!/usr/bin/env python
"""Compare the initializers of new tokens, with the same vocabulary, contexts, pre-training and NER heads.

    python benchmarks/compare_initializers.py --corpus abstracts.txt.gz --ner_data DATA/ner \
        --base_model google-bert/bert-base-uncased --work runs/initializers

The steps are as follows. Finished ones are skipped, so an interrupted comparison resumes.

1. A base model with a masked-LM head. If the base has none, a new one is trained on the base's own vocabulary with the
   encoder and the embeddings frozen, so that the head is independent of the initializers.
2. A vocabulary and contexts for all (train-vocabulary, find-contexts).
3. A v0.0 for each initializer (distill).
4. The same short pre-training from each v0.0 (pretrain), validated before the first step and along the way.
5. NER heads on most v0.0 and on the base (finetune-ner).

To change options, choose another WORK. Writes WORK/summary.md (losses, F1, and differences with 95 % intervals, paired
by seed and, for F1, by task) and WORK/losses.png. The first three initializers are run with all seeds, the others with
the first one only. A seed also draws the held-out documents, so losses can be compared within a seed only. The head,
the vocabulary and the contexts are made once, from the training split of seed 0, so with other seeds they have seen
some of the held-out documents.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t
from transformers import AutoTokenizer

from bioptimus_hf.artifacts import atomic_folder
from bioptimus_hf.corpus.dataset import load_corpus, split_validation
from bioptimus_hf.hardware import keep_freed_memory
from bioptimus_hf.models import load_masked_lm, save_masked_lm
from bioptimus_hf.plots import save_plot
from bioptimus_hf.pretraining.arguments import PretrainingArguments
from bioptimus_hf.pretraining.curriculum import Phase
from bioptimus_hf.pretraining.masking import MaskingStrategy, mask_once
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.pretraining.run import pretrain

BLOCK = 128
VARIANTS = {  # label to options of `bioptimus distill`
    "random": ["--initializer", "random"],
    "subtoken_mean": ["--initializer", "subtoken_mean"],
    "contextual_mean_scaled": ["--initializer", "contextual_mean_scaled"],
    "contextual_mean": ["--initializer", "contextual_mean"],
    "contextual_mean_scaled, layer 1": ["--initializer", "contextual_mean_scaled", "--layer", "1"],
    "token_distillation": ["--initializer", "token_distillation", "--max_tokens", "1500"],
}
ALL_SEEDS = 3  # number of variants that are run with all seeds
REFERENCE = "subtoken_mean"
WITHOUT_HEADS = ("contextual_mean_scaled, layer 1",)  # to save time

Curves = dict[str, dict[int, dict[int, float]]]
"""Validation losses (nats) by label, seed and step."""

Scores = dict[str, dict[tuple[str, int], float]]
"""F1 in percent by label of the model, task and seed."""


def run_command(name: str, *options: object, threads: int) -> None:
    """Run a command of `bioptimus`; what it prints goes to a log file in its output folder."""
    arguments = [str(option) for option in options]
    log = Path(arguments[arguments.index("--output_dir") + 1]) / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        subprocess.run(
            [sys.executable, "-m", "bioptimus_hf.cli", name, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )


def base_with_head(options: argparse.Namespace, folder: Path) -> None:
    """Save the base with a masked-LM head: its own, or a new one, trained with all other weights frozen."""
    keep_freed_memory()
    model, new_weights = load_masked_lm(options.base_model, kind=BertForMaskedPositions)
    tokenizer = AutoTokenizer.from_pretrained(options.base_model)
    if new_weights:
        documents = split_validation(
            load_corpus(options.corpus, max_megabytes=options.max_megabytes), share=options.validation_share
        )
        train, validation = (
            tokenize_and_pack(documents[split], tokenizer, max_length=BLOCK) for split in ("train", "validation")
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in new_weights)
        arguments = PretrainingArguments(
            output_dir=str(folder.with_suffix(".checkpoints")),
            learning_rate=1e-3,
            max_steps=options.head_steps,
            bf16=True,
            eval_steps=options.head_steps,
            report_to="none",
        )
        history = pretrain(
            model,
            tokenizer,
            train,
            mask_once(validation, tokenizer),
            arguments,
            curriculum=[Phase("0.1", MaskingStrategy("word", 0.15, corrupt=False), share=1.0)],
            export_dir=folder.with_suffix(".exports"),
        )
        print(*(f"step {row['step']}: loss {row['eval_loss']:.3f}" for row in history if "eval_loss" in row), sep="\n")
    with atomic_folder(folder) as complete:
        save_masked_lm(model, tokenizer, complete)


def seeds_of(label: str, seeds: Sequence[int]) -> Sequence[int]:
    """Return the seeds that a variant is run with."""
    return seeds if list(VARIANTS).index(label) < ALL_SEEDS else seeds[:1]


def folder_of(work: Path, label: str, seed: int) -> Path:
    """Return the folder of a v0.0; only that of the random initializer depends on the seed."""
    name = label.replace(", ", "_").replace(" ", "")
    return work / (f"{name}-{seed}" if label == "random" else name)


def read_curves(work: Path, seeds: Sequence[int]) -> Curves:
    """Read the losses of finished runs."""
    curves: Curves = {}
    for label in VARIANTS:
        for seed in seeds_of(label, seeds):
            file = folder_of(work, label, seed) / f"seed-{seed}" / "pretraining" / "history.json"
            if file.is_file():
                rows = json.loads(file.read_text())
                losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
                curves.setdefault(label, {})[seed] = losses
    return curves


def read_scores(work: Path) -> Scores:
    """Read the scores of finished heads."""
    scores: Scores = {}
    for file in (work / "ner").glob("*/*/*/scores.json"):
        head = json.loads(file.read_text())
        label = head["model"].partition("-")[0] if head["model"].startswith("random") else head["model"]
        scores.setdefault(label, {})[head["task"], head["seed"]] = 100 * head["test"]["f1"]
    return scores


def format_spread(values: Sequence[float], digits: int) -> str:
    """Format mean and standard deviation; a single value has no standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def format_interval(differences: Sequence[float], digits: int) -> str:
    """Format the mean of differences and its 95 % t-interval."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / sqrt(len(differences))
    return f"{mean:+.{digits}f} ({mean - half:+.{digits}f} to {mean + half:+.{digits}f})"


def make_loss_table(curves: Curves) -> list[str]:
    """Make the table of losses, at the steps that all runs have in common."""
    steps = sorted(set.intersection(*(set(curve) for runs in curves.values() for curve in runs.values())))
    lines = [
        f"| initializer | {' | '.join(f'loss, step {step}' for step in steps)} | minus {REFERENCE} (95 %), seeds |",
        "| --- |" + " --- |" * (len(steps) + 1),
    ]
    reference = curves.get(REFERENCE, {})
    for label, runs in curves.items():
        columns = [format_spread([curve[step] for curve in runs.values()], 3) for step in steps]
        pairs = [curve[steps[-1]] - reference[seed][steps[-1]] for seed, curve in runs.items() if seed in reference]
        difference = f"{format_interval(pairs, 3)}, {len(pairs)}" if label != REFERENCE and pairs else "-"
        lines.append(f"| {label} | {' | '.join(columns)} | {difference} |")
    return lines


def make_score_table(scores: Scores, tasks: Sequence[str]) -> list[str]:
    """Make the table of F1."""
    lines = ["| initializer | " + " | ".join(f"{task} F1" for task in tasks) + " | minus base (95 %), pairs |"]
    lines.append("| --- |" + " --- |" * (len(tasks) + 1))
    base = scores.get("base", {})
    for label in ("base", *VARIANTS):
        own = scores.get(folder_of(Path(), label, 0).name.removesuffix("-0"), {})
        if not own:
            continue
        by_task = ([score for (task, _), score in sorted(own.items()) if task == wanted] for wanted in tasks)
        columns = [format_spread(values, 2) if values else "-" for values in by_task]
        pairs = [score - base[head] for head, score in own.items() if head in base]
        difference = f"{format_interval(pairs, 2)}, {len(pairs)}" if label != "base" and pairs else "-"
        lines.append(f"| {label} | {' | '.join(columns)} | {difference} |")
    return lines


def write_summary(options: argparse.Namespace) -> None:
    """Write the tables and the plot of what is finished."""
    curves = read_curves(options.work, options.seeds)
    if not curves:
        return
    lines = [*make_loss_table(curves), "", *make_score_table(read_scores(options.work), options.tasks)]
    (options.work / "summary.md").write_text("\n".join(lines) + "\n")
    plot(curves, options.work / "losses.png")


def plot(curves: Curves, path: Path) -> None:
    """Plot the losses, and their mean differences from the reference with the same seed."""

    def draw(axes: Any) -> None:
        left, right = axes
        reference = curves.get(REFERENCE, {})
        for label, runs in curves.items():
            steps = sorted(next(iter(runs.values())))
            left.plot(steps, [statistics.fmean(curve[step] for curve in runs.values()) for step in steps], label=label)
            seeds, later = sorted(runs.keys() & reference.keys()), steps[1:]
            if seeds:
                means = [statistics.fmean(runs[seed][step] - reference[seed][step] for seed in seeds) for step in later]
                right.plot(later, means, marker=".", label=f"{label} ({len(seeds)} seeds)" if seeds[1:] else label)
        left.set(xlabel="optimizer steps after the start", ylabel="validation loss (nats)", yscale="log")
        right.set(xlabel="optimizer steps after the start", ylabel=f"loss minus that of {REFERENCE} (nats)")
        if reference:
            right.legend(fontsize="small")

    save_plot(path, draw, size=(11, 4), columns=2)


def prepare_versions(options: argparse.Namespace, threads: int) -> None:
    """Make the base, vocabulary and contexts for all, and the v0.0 of each initializer."""
    work, base = options.work, options.work / "base"
    if not base.is_dir():
        base_with_head(options, base)
    model = ("--base_model", base)
    shared = ("--output_dir", work / "shared", *model, *corpus_options(options))
    run_command("train-vocabulary", *shared, "--size", 30522, threads=threads)
    run_command("find-contexts", *shared, "--per_token", options.per_token, threads=threads)
    for label, chosen in VARIANTS.items():
        for seed in seeds_of(label, options.seeds):
            folder = folder_of(work, label, seed)
            folder.mkdir(exist_ok=True)
            for name in ("tokenizer", "contexts"):
                if not (folder / name).exists():
                    (folder / name).symlink_to(work.resolve() / "shared" / name)
            own = ("--seed", seed if label == "random" else 0, "--bf16")
            run_command("distill", "--output_dir", folder, *model, *own, *chosen, threads=threads)


def corpus_options(options: argparse.Namespace) -> list[object]:
    """Return the options of a command that select the text."""
    limits = ("--max_megabytes", options.max_megabytes, "--validation_share", options.validation_share)
    return ["--corpus", *options.corpus, *limits]


def train_version(options: argparse.Namespace, label: str, seed: int, threads: int) -> None:
    """Pre-train from the v0.0 of an initializer."""
    folder = folder_of(options.work, label, seed)
    settings = {
        "output_dir": folder / f"seed-{seed}",
        "model": folder / "v0.0",
        "seed": seed,
        "max_steps": options.steps,
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": 16,
        "max_length": BLOCK,
        "eval_steps": max(1, options.steps // 6),
        "save_steps": 100,
        "report_to": "none",
    }
    arguments = [argument for name, value in settings.items() for argument in (f"--{name}", value)]
    run_command("pretrain", *arguments, "--bf16", *corpus_options(options), threads=threads)


def train_heads(options: argparse.Namespace, model: str, seed: int, threads: int) -> None:
    """Fine-tune a head of a model, given as LABEL=FOLDER, for each task."""
    settings = {
        "output_dir": options.work,
        "ner_data": options.ner_data,
        "models": model,
        "num_train_epochs": options.ner_epochs,
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 32,
    }
    arguments = [argument for name, value in settings.items() for argument in (f"--{name}", value)]
    for task in options.tasks:
        seeds = ("--seed", seed, "--seeds", 1)
        run_command("finetune-ner", *arguments, "--tasks", task, *seeds, "--bf16", threads=threads)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--ner_data", required=True, help="folder with the NER sets")
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for all runs and the results")
    parser.add_argument("--max_megabytes", type=float, default=20)
    parser.add_argument("--validation_share", type=float, default=0.02)
    parser.add_argument("--per_token", type=int, default=16, help="maximum number of contexts per token")
    parser.add_argument("--head_steps", type=int, default=300, help="optimizer steps for a new masked-LM head")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of pre-training from each v0.0")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="peak learning rate of pre-training")
    parser.add_argument("--tasks", nargs="+", default=["ncbi-disease", "bc5-chem"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ner_epochs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the processor")
    return parser.parse_args()


def main() -> None:
    """Run all steps, and write the summary after each run."""
    options = parse_options()
    cores = max(1, len(os.sched_getaffinity(0)))
    torch.set_num_threads(cores)
    prepare_versions(options, cores)
    runs = [(seed, label) for label in VARIANTS for seed in seeds_of(label, options.seeds)]
    heads = [(seed, f"base={options.work / 'base'}") for seed in options.seeds]
    for seed, label in runs:
        if label not in WITHOUT_HEADS:
            folder = folder_of(options.work, label, seed)
            heads.append((seed, f"{folder.name}={folder / 'v0.0'}"))
    runs.sort(key=lambda run: run[0])
    heads.sort(key=lambda head: (head[0], not head[1].startswith("base=")))
    threads = max(1, cores // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in pool.map(lambda run: train_version(options, run[1], run[0], threads), runs):
            write_summary(options)
        for _ in pool.map(lambda head: train_heads(options, head[1], head[0], threads), heads):
            write_summary(options)


if __name__ == "__main__":
    main()
