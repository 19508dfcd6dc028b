#!/usr/bin/env python
"""Show where the time of training a NER head goes, with our trainer or the stock one of bench_finetuning.py.

    python benchmarks/profile_finetuning.py --ner_data DATA/ner --work runs/profile --epochs 1

Options are those of bench_finetuning.py, of which --seeds and --tasks take their first value. Each row is a process of
its own, under Python's profiler.

Prints two tables and writes them to WORK/profile.md: seconds of each part of a training, of all epochs together; and
what PyTorch spends the time of training steps on, by operation, for a few batches.
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
from transformers import Trainer

from bioptimus_hf.models import new_head
from bioptimus_hf.ner.finetuning import HeadTrainer, windows_dataset
from bioptimus_hf.ner.prediction import predict_tags

BATCHES = 8
"""Whose operations are listed."""
OPERATIONS = 12
"""How many of them are listed by name."""

PARTS: Mapping[str, Sequence[Callable[..., Any]]] = {
    "loading the encoder": (new_head, Trainer._load_best_model),
    "tokenising": (windows_dataset,),
    "batches": (Trainer.get_batch_samples, HeadTrainer.get_train_dataloader),
    "forward and backward pass": (Trainer.training_step,),
    "clipping of gradients": (Accelerator.clip_grad_norm_,),
    "optimizer": (AcceleratedOptimizer.step,),
    "evaluation": (HeadTrainer.evaluate,),
    "checkpoints": (Trainer._save_checkpoint,),
}
"""Functions whose seconds count; none of them calls another. The stock Trainer's differ in two parts."""
STOCK_PARTS = {"tokenising": (Dataset.map,), "evaluation": (Trainer.evaluate,)}


def seconds_of_parts(options: argparse.Namespace, task: str, label: str, seed: int) -> dict[str, float]:
    """Train a head and return the seconds of each part of it, and of everything in `bench_finetuning.measure`."""
    profiler = cProfile.Profile()
    result = profiler.runcall(measure, options, task, label, seed)
    statistics: Any = pstats.Stats(profiler)
    cumulative = {place: values[3] for place, values in statistics.stats.items()}

    def seconds(function: Callable[..., Any]) -> float:
        code = getattr(function, "__wrapped__", function).__code__
        return float(cumulative.get((code.co_filename, code.co_firstlineno, code.co_name), 0.0))

    parts = dict(PARTS) if ROWS[label].ours else {**PARTS, **STOCK_PARTS}
    training = result["seconds"] * options.epochs
    spent = {name: sum(map(seconds, functions)) for name, functions in parts.items()}
    spent["everything else of the training"] = training - sum(spent.values())
    return {**spent, "training": training, "scores on dev and test, once": seconds(predict_tags)}


def shares_of_operations(options: argparse.Namespace, task: str, label: str, seed: int) -> dict[str, float]:
    """Return the share of each operation of PyTorch in the time of a few training steps."""
    data = load(options, task)
    data["train"] = data["train"].select(range(min(len(data["train"]), BATCHES * options.batch)))
    data["validation"] = data["validation"].select(range(1))
    train = train_ours if ROWS[label].ours else train_stock
    operators = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with tempfile.TemporaryDirectory(dir=options.work) as folder, operators:
        train(options, ROWS[label], seed, data, folder)
    spent = {event.key: event.self_cpu_time_total for event in operators.key_averages()}
    operations = {name: time for name, time in spent.items() if name.startswith(("aten::", "bioptimus"))}
    total = sum(operations.values())
    return {name: time / total for name, time in sorted(operations.items(), key=lambda item: -item[1])}


def profile(options: argparse.Namespace, label: str) -> dict[str, dict[str, float]]:
    """Profile a row in a process of its own, and add what lies outside the training: starting Python, reading data."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", options.tasks[0], label, str(options.seeds[0])]
    start = time.perf_counter()
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment_of(label))
    whole = time.perf_counter() - start
    parts, operations, apart = json.loads(ended.stdout.decode().rpartition("RESULT")[2])
    parts["imports, reading the data"] = whole - apart - parts["training"] - parts["scores on dev and test, once"]
    return {"parts": parts, "operations": operations}


def tables(options: argparse.Namespace, profiles: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return both tables in Markdown, with a column for each row of the benchmark."""
    columns = " | ".join(profiles)
    lines = [f"| {options.tasks[0]}, seconds | {columns} |", "| --- " * (len(profiles) + 1) + "|"]
    for part in next(iter(profiles.values()))["parts"]:
        cells = " | ".join(f"{of_row['parts'][part]:.1f}" for of_row in profiles.values())
        lines.append(f"| {part} | {cells} |")
    for label, of_row in profiles.items():
        lines += ["", f"| {label}: operation | share of {BATCHES} batches |", "| --- | --- |"]
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
        parts = seconds_of_parts(options, task, label, int(seed))
        start = time.perf_counter()
        operations = shares_of_operations(options, task, label, int(seed))
        print("RESULT", json.dumps([parts, operations, time.perf_counter() - start]))
        return
    summary = tables(options, {label: profile(options, label) for label in options.rows})
    (options.work / "profile.md").write_text(summary, encoding="utf-8")
    print(summary)


if __name__ == "__main__":
    main()
