#!/usr/bin/env python
"""Keep the results of finished NER heads in a file, and make one table of heads from several runs and machines.

    python benchmarks/five_tasks.py --add runs/biomedical_100mb --work runs/five_tasks
    python benchmarks/five_tasks.py --work runs/five_tasks    # the table of what the file holds

The file (benchmarks/five_tasks.jsonl) has one line for each head: task, model, seed, settings, what it was trained on,
seconds, commit and versions, scores, and the counts of each test sentence, from which intervals are resampled. So the
table can be made again without training anything, and a stranger's model can be compared with ours: `--file` names a
copy, to which `--add` adds the heads of a run. Lines of heads that are already there are replaced.

Writes results.md, results.json and, for several versions of an encoder, versions.png to WORK, as finetune-ner does, and
prints results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bioptimus_hf.ner.results import HeadResult, check_comparable, finished_heads, read_results, training_record
from bioptimus_hf.ner.tables import write_results
from bioptimus_hf.ner.tasks import BLURB_NER

FILE = Path(__file__).with_suffix(".jsonl")
TASKS = list(BLURB_NER)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""For the counts of a sentence, which has fewer than 36 mentions."""


def line_of(head: Path) -> dict[str, Any]:
    """Return what is kept of a finished head."""
    (result,) = read_results([head])
    counts = ["".join(DIGITS[count] for count in column) for column in result.counts.T]
    return {
        **training_record(head),
        "gold": result.gold,
        "inputs": dict(result.inputs),
        "scores": dict(result.scores),
        "counts": dict(zip(("correct", "predicted", "gold"), counts, strict=True)),
    }


def result_of(line: Mapping[str, Any]) -> HeadResult:
    """Return the result of a head from its line."""
    columns = [[DIGITS.index(digit) for digit in digits] for digits in line["counts"].values()]
    return HeadResult(
        **{name: line[name] for name in ("task", "model", "seed", "gold", "settings", "inputs", "scores")},
        counts=np.array(columns, dtype=np.int64).T,
    )


def key(line: Mapping[str, Any]) -> tuple[int, str, int]:
    """Return what identifies a head, in the order of the file."""
    return TASKS.index(line["task"]), line["model"], line["seed"]


def main() -> None:
    """Add the heads of runs to the file, and make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, nargs="+", default=[], help="runs with finished heads of the five tasks")
    parser.add_argument("--work", type=Path, required=True, help="folder for the table")
    parser.add_argument("--file", type=Path, default=FILE, help="file with the heads")
    parser.add_argument("--models", nargs="+", help="models of the table, in this order; default: all")
    parser.add_argument("--references", nargs="+", help="models to compare with; default: the first")
    options = parser.parse_args()
    kept = options.file.read_text(encoding="utf-8").splitlines() if options.file.is_file() else []
    lines = {key(line): line for line in map(json.loads, kept)}
    for run in options.add:
        lines |= {key(line): line for line in map(line_of, finished_heads(run / "ner"))}
    if options.add:
        rows = (json.dumps(lines[place]) for place in sorted(lines))
        options.file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    models = options.models or list(dict.fromkeys(line["model"] for line in lines.values()))
    chosen = [lines[place] for model in models for place in sorted(lines) if lines[place]["model"] == model]
    results = sorted(map(result_of, chosen), key=lambda result: TASKS.index(result.task))
    check_comparable((Path(result.model, result.task, str(result.seed)), result) for result in results)
    options.work.mkdir(parents=True, exist_ok=True)
    print(write_results(options.work, results, references=options.references or models[:1], trainings=chosen))


if __name__ == "__main__":
    main()
