#!/usr/bin/env python
"""Compare the curriculum at equal compute with a single objective for all steps, and with dropout.

    python benchmarks/compare_curricula.py --corpus abstracts.txt.gz --model runs/mine/v0.0 --work runs/curricula

Each variant is a run of `bioptimus pretrain` with the same text, start, steps, batches and seed, validated on the same
masked words (WORK/<variant>-<seed>). Finished runs are skipped, and interrupted ones resume. Writes WORK/summary.md
(mean validation loss after each quarter of the steps, the standard deviation over seeds at the end, and differences
from the curriculum, paired by seed) and WORK/differences.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bioptimus_hf.plots import save_plot
from bioptimus_hf.recipes import find

VARIANTS = {  # label to options of `bioptimus pretrain`; the first is the reference
    "curriculum": [],
    "tokens": ["--curriculum", str(find("tokens", "curricula"))],
    "words_always": ["--curriculum", str(find("words_always", "curricula"))],
    "curriculum, dropout 0.1": ["--dropout", "0.1"],
}

Losses = dict[int, float]
"""Validation loss (nats) by step."""


def train(options: argparse.Namespace, label: str, seed: int) -> Losses:
    """Run a variant, unless it is finished, and return its validation losses."""
    folder = options.work / f"{label.replace(', ', '-').replace(' ', '_')}-{seed}"
    settings = {
        "output_dir": folder,
        "seed": seed,
        "corpus": options.corpus,
        "model": options.model,
        "max_megabytes": options.max_megabytes,
        "validation_share": options.validation_share,
        "max_steps": options.steps,
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": options.batch,
        "logging_steps": 10,
        "eval_steps": max(options.steps // 8, 1),
        "save_steps": 100,
    }
    command = [sys.executable, "-m", "bioptimus_hf.cli", "pretrain", "--bf16", *VARIANTS[label]]
    command += [argument for name, value in settings.items() for argument in (f"--{name}", str(value))]
    subprocess.run(command, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    history: list[dict[str, Any]] = json.loads((folder / "pretraining" / "history.json").read_text())
    return {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}


def make_table(losses: Mapping[str, Sequence[Losses]], steps: int) -> str:
    """Make the table of the variants that have losses."""
    quarters = [round(steps * quarter / 4) for quarter in range(5)]
    columns = " | ".join(f"step {step}" for step in quarters)
    lines = [f"| variant | seeds | {columns} | standard deviation | minus the curriculum: mean, smallest, largest |"]
    lines.append("| --- " * 9 + "|")
    reference = [run[steps] for run in losses["curriculum"]]
    for label, runs in losses.items():
        if not runs:
            continue
        last = [run[steps] for run in runs]
        means = " | ".join(f"{statistics.mean(run[step] for run in runs):.3f}" for step in quarters)
        standard_deviation = statistics.stdev(last) if len(last) > 1 else math.nan
        differences = [loss - base for loss, base in zip(last, reference, strict=False)]
        lines.append(
            f"| {label} | {len(runs)} | {means} | {standard_deviation:.3f} | "
            f"{statistics.mean(differences):+.3f} {min(differences):+.3f} {max(differences):+.3f} |"
        )
    return "\n".join([*lines, ""])


def plot(losses: Mapping[str, Sequence[Losses]], path: Path) -> None:
    """Plot the mean difference of each variant from the curriculum, paired by seed."""
    reference = losses["curriculum"]
    steps = list(reference[0])

    def draw(axes: Any) -> None:
        for label, runs in losses.items():
            pairs = list(zip(runs, reference, strict=True))
            axes.plot(
                steps, [statistics.mean(run[step] - base[step] for run, base in pairs) for step in steps], label=label
            )
        axes.set(xlabel="optimizer step", ylabel="loss minus the curriculum's (nats)")
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, fontsize="small")

    save_plot(path, draw)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--model", required=True, help="model to start from, a v0.0")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs and the results")
    parser.add_argument("--max_megabytes", type=float, default=20)
    parser.add_argument("--validation_share", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16, help="blocks of 128 tokens per step")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser.parse_args()


def main() -> None:
    """Run all variants with all seeds, and write the summary after each run."""
    options = parse_options()
    losses: dict[str, list[Losses]] = {label: [] for label in VARIANTS}
    for seed in options.seeds:
        for label in VARIANTS:
            losses[label].append(train(options, label, seed))
            summary = make_table(losses, options.steps)
            (options.work / "summary.md").write_text(summary)
    print(summary)
    plot(losses, options.work / "differences.png")


if __name__ == "__main__":
    main()
