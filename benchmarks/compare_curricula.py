#!/usr/bin/env python
"""The curriculum, and what it is compared with at equal compute: one objective for all steps; other schedules.

    python benchmarks/compare_curricula.py --corpus abstracts.txt.gz --model runs/mine/v0.0 --work runs/curricula

Each variant is a run of scripts/pretrain.py with the same text, start, steps, batches and seed, validated on the same
masked words (WORK/<variant>). What is finished is not redone, and a run that was interrupted goes on. Writes
WORK/summary.md (mean validation loss at the end of each quarter of the steps, deviation over seeds at the last one, and
the paired differences from the curriculum) and WORK/differences.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bioptimus_hf.plots import save_plot

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
CURRICULA = SCRIPTS / "recipes" / "curricula"
VARIANTS = {  # label to the options of pretrain.py
    "curriculum": [],
    "tokens": ["--curriculum", str(CURRICULA / "tokens.yaml")],
    "words_always": ["--curriculum", str(CURRICULA / "words_always.yaml")],
    "curriculum, dropout 0.1": ["--dropout", "0.1"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--model", required=True, help="the start, v0.0")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--max_megabytes", type=float, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16, help="blocks of 128 tokens")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    common = ["--corpus", options.corpus, "--model", options.model, "--max_megabytes", str(options.max_megabytes)]
    common += ["--validation_share", "0.02", "--max_steps", str(options.steps), "--bf16", "--learning_rate"]
    common += [str(options.learning_rate), "--per_device_train_batch_size", str(options.batch), "--logging_steps", "10"]
    common += ["--eval_steps", str(max(options.steps // 8, 1)), "--save_steps", "100"]
    histories: dict[str, list[list[dict[str, Any]]]] = {label: [] for label in VARIANTS}
    for seed in options.seeds:
        for label, more in VARIANTS.items():
            folder = options.work / f"{label.replace(', ', '-').replace(' ', '_')}-{seed}"
            command = [sys.executable, str(SCRIPTS / "pretrain.py"), "--output_dir", str(folder), "--seed", str(seed)]
            subprocess.run(
                [*command, *common, *more], check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
            )
            histories[label].append(json.loads((folder / "pretraining" / "history.json").read_text()))
            summary = table(histories, options.steps)
            (options.work / "summary.md").write_text(summary)
    print(summary)
    plot(histories, options.work / "differences.png")


def validation(history: list[dict[str, Any]]) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}


def table(histories: dict[str, list[list[dict[str, Any]]]], steps: int) -> str:
    quarters = [round(steps * quarter / 4) for quarter in range(5)]
    steps_of_it = " | ".join(f"step {step}" for step in quarters)
    lines = [f"| variant | seeds | {steps_of_it} | deviation | minus the curriculum: mean, least, most |"]
    lines.append("| --- " * 9 + "|")
    first = [validation(run)[steps] for run in next(iter(histories.values()))]
    for label, runs in histories.items():
        losses = [validation(run) for run in runs]
        if not losses:
            continue
        means = " | ".join(f"{statistics.mean(one[step] for one in losses):.3f}" for step in quarters)
        deviation = statistics.stdev(one[steps] for one in losses) if len(losses) > 1 else math.nan
        apart = [one[steps] - base for one, base in zip(losses, first, strict=False)]
        lines.append(
            f"| {label} | {len(runs)} | {means} | {deviation:.3f} | "
            f"{statistics.mean(apart):+.3f} {min(apart):+.3f} {max(apart):+.3f} |"
        )
    return "\n".join([*lines, ""])


def plot(histories: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    """Draw what each variant differs from the curriculum by, in pairs of the same seed; the losses would hide it."""
    bases = [validation(run) for run in next(iter(histories.values()))]

    def draw(axes: Any) -> None:
        for label, runs in histories.items():
            pairs = [(validation(run), base) for run, base in zip(runs, bases, strict=True)]
            axes.plot(
                list(bases[0]),
                [statistics.mean(its[step] - base[step] for its, base in pairs) for step in bases[0]],
                label=label,
            )
        axes.set(xlabel="optimizer step", ylabel="loss minus the curriculum's (nats)")
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, fontsize="small")

    save_plot(path, draw)


if __name__ == "__main__":
    main()
