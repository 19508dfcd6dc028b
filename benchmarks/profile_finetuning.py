#!/usr/bin/env python
"""Show where the time of training a NER head goes, with our trainer or the stock one of bench_finetuning.py.

    python benchmarks/profile_finetuning.py --ner_data DATA/ner --work runs/profile --epochs 1

Options are those of bench_finetuning.py; of --seeds and --tasks, the first value counts. Each row is a process of its
own, under Python's profiler.

Prints tables and writes them to WORK/profile.md: the seconds of each part of a training, all epochs together; and for
each row, the operations of PyTorch by their share of the time, in a training on a few batches.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from bench_finetuning import ROWS, environment_of, load, measure, parse_options, quiet, train_ours, train_stock
from datasets import Dataset
from transformers import AutoModelForTokenClassification, Trainer

from bioptimus_hf.models import new_head
from bioptimus_hf.ner.finetuning import HeadTrainer, windows_dataset

BATCHES = 8
"""How many are trained on to list operations."""
OPERATIONS = 12
"""How many operations are listed by name."""

PARTS: Mapping[str, Sequence[Callable[..., Any]]] = {
    "loading the encoder, restoring the best epoch": (new_head, Trainer._load_best_model),
    "tokenising": (windows_dataset,),
    "making batches": (Trainer.get_batch_samples, HeadTrainer.get_train_dataloader),
    "forward and backward passes": (Trainer.training_step,),
    "clipping of gradients": (Accelerator.clip_grad_norm_,),
    "optimizer": (AcceleratedOptimizer.step,),
    "evaluation": (HeadTrainer.evaluate,),
    "checkpoints": (Trainer._save_checkpoint,),
}
"""Functions whose seconds count; none of them calls another."""
STOCK_PARTS: Mapping[str, Sequence[Callable[..., Any]]] = {
    **PARTS,
    "loading the encoder, restoring the best epoch": (
        AutoModelForTokenClassification.from_pretrained,
        Trainer._load_best_model,
    ),
    "tokenising": (Dataset.map,),
    "evaluation": (Trainer.evaluate,),
}
"""The same for the stock Trainer."""


def seconds_of_parts(options: argparse.Namespace, task: str, label: str, seed: int) -> dict[str, float]:
    """Train a head, and return the seconds of each part of the training, of reading the data and of the last scores."""
    profiler = cProfile.Profile()
    start = time.perf_counter()
    result = profiler.runcall(measure, options, task, label, seed)
    whole = time.perf_counter() - start
    statistics: Any = pstats.Stats(profiler)
    cumulative = {place: values[3] for place, values in statistics.stats.items()}

    def seconds(function: Callable[..., Any]) -> float:
        code = getattr(function, "__wrapped__", function).__code__
        return float(cumulative.get((code.co_filename, code.co_firstlineno, code.co_name), 0.0))

    parts = PARTS if ROWS[label].ours else STOCK_PARTS
    spent = {name: sum(map(seconds, functions)) for name, functions in parts.items()}
    training, reading = result["seconds"] * options.epochs, seconds(load)
    return {
        **spent,
        "the rest of the training": training - sum(spent.values()),
        "the training": training,
        "reading the data": reading,
        "scores on dev and test": whole - training - reading,
    }


def shares_of_operations(options: argparse.Namespace, task: str, label: str, seed: int) -> dict[str, float]:
    """Return the share of each operation of PyTorch in the time of a training on a few batches."""
    options = argparse.Namespace(**{**vars(options), "epochs": 1})
    data = load(options, task)
    data["train"] = data["train"].select(range(min(len(data["train"]), BATCHES * options.batch)))
    data["validation"] = data["validation"].select(range(1))
    train = train_ours if ROWS[label].ours else train_stock
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with tempfile.TemporaryDirectory(dir=options.work) as folder, profiler:
        train(options, ROWS[label], seed, data, folder)
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages() if "::" in event.key}
    total = sum(spent.values())
    return {name: time / total for name, time in sorted(spent.items(), key=lambda item: -item[1])}


def profile(options: argparse.Namespace, label: str) -> dict[str, dict[str, float]]:
    """Profile a row in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", options.tasks[0], label, str(options.seeds[0])]
    start = time.perf_counter()
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment_of(label))
    whole = time.perf_counter() - start
    parts, operations, inside = json.loads(ended.stdout.decode().rpartition("RESULT")[2])
    return {"parts": {"starting Python, imports": whole - inside, **parts}, "operations": operations}


def tables(options: argparse.Namespace, profiles: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return both tables in Markdown, with a column for each row of the benchmark."""
    columns = " | ".join(profiles)
    lines = [f"| {options.tasks[0]}, seconds | {columns} |", "| --- " * (len(profiles) + 1) + "|"]
    for part in next(iter(profiles.values()))["parts"]:
        cells = " | ".join(f"{of_row['parts'][part]:.1f}" for of_row in profiles.values())
        lines.append(f"| {part} | {cells} |")
    for label, of_row in profiles.items():
        lines += ["", f"| {label}: operation | share of the time |", "| --- | --- |"]
        shares = of_row["operations"]
        lines += [f"| `{name}` | {share:.1%} |" for name, share in islice(shares.items(), OPERATIONS)]
        lines.append(f"| {len(shares) - OPERATIONS} others | {sum(list(shares.values())[OPERATIONS:]):.1%} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Profile all rows, or one of them in this process."""
    options = parse_options(__doc__)
    quiet()
    if options.one:
        task, label, seed = options.one
        start = time.perf_counter()
        parts = seconds_of_parts(options, task, label, int(seed))
        operations = shares_of_operations(options, task, label, int(seed))
        print("RESULT", json.dumps([parts, operations, time.perf_counter() - start]))
        return
    summary = tables(options, {label: profile(options, label) for label in options.rows})
    (options.work / "profile.md").write_text(summary, encoding="utf-8")
    print(summary)


if __name__ == "__main__":
    main()
