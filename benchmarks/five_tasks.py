#!/usr/bin/env python
"""Keep the results of finished NER heads in a file, and make one table of heads from several runs and machines.

    python benchmarks/five_tasks.py --work runs/five_tasks    # the table of what the file holds
    cp benchmarks/five_tasks.jsonl runs/all.jsonl
    python benchmarks/five_tasks.py --work runs/five_tasks --file runs/all.jsonl --add runs/mine

The file (default: benchmarks/five_tasks.jsonl; a new one if it doesn't exist) has a line for each head of a single
BLURB task: task, model, seed, settings, what it was trained on, seconds, commit and versions, scores, and the counts of
each test sentence, from which intervals are resampled. So the table can be made again without training anything. --add
puts the heads of a run into the file: to compare a model of your own, do so with a copy. Heads that are missing in a
run are missing in the table, too: see the column of seeds.

Writes results.md, results.json and, for several versions of an encoder, versions.png to WORK, as finetune-ner does, and
prints results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bioptimus_hf.ner.results import (
    BASE,
    HeadResult,
    check_comparable,
    finished_heads,
    read_results,
    training_record,
)
from bioptimus_hf.ner.tables import write_results
from bioptimus_hf.ner.tasks import BLURB_NER
from bioptimus_hf.storage import atomic_file

FILE = Path(__file__).with_suffix(".jsonl")
TASKS = list(BLURB_NER)
ZERO = ord("0")
COUNTS = ("correct", "predicted", "gold")

Line = dict[str, Any]
Key = tuple[int, bool, str, int]


def line_of(head: Path) -> Line:
    """Return what is kept of a finished head. The counts of a kind are a text with a character for each sentence."""
    (result,) = read_results([head])
    counts = ["".join(chr(ZERO + count) for count in column) for column in result.counts.T]
    return {
        **training_record(head),
        "test": {result.task: dict(result.scores)},
        "gold": result.gold,
        "inputs": dict(result.inputs),
        "counts": dict(zip(COUNTS, counts, strict=True)),
    }


def result_of(line: Line) -> HeadResult:
    """Return the result of a head from its line."""
    columns = [[ord(character) - ZERO for character in line["counts"][name]] for name in COUNTS]
    return HeadResult(
        **{name: line[name] for name in ("task", "model", "seed", "gold", "settings", "inputs")},
        scores=line["test"][line["task"]],
        counts=np.array(columns, dtype=np.int64).T,
    )


def key_of(line: Line) -> Key:
    """Return what identifies a head, in the order of the file."""
    return TASKS.index(line["task"]), line["model"] != BASE, line["model"], line["seed"]


def lines_of(run: Path) -> dict[Key, Line]:
    """Return the lines of the heads of a run."""
    heads = [head for head in finished_heads(run / "ner") if head.parts[-3] in TASKS]
    return {key_of(line): line for line in map(line_of, heads)}


def add(kept: Mapping[Key, Line], run: Path) -> dict[Key, Line]:
    """Add the heads of a run, unless other heads have their names."""
    new = lines_of(run)
    for key in kept.keys() & new.keys():
        if any(kept[key][name] != new[key][name] for name in ("inputs", "settings")):
            task, model, seed = (new[key][name] for name in ("task", "model", "seed"))
            raise SystemExit(f"{run}: {task}, {model}, seed {seed} has other inputs or settings than in the file")
    return {**kept, **new}


def make_table(lines: Sequence[Line], options: argparse.Namespace) -> str:
    """Write the table and return it."""
    models = options.models or list(dict.fromkeys(line["model"] for line in lines))
    chosen = [line for model in models for line in lines if line["model"] == model]
    chosen.sort(key=lambda line: TASKS.index(line["task"]))
    if not chosen:
        raise SystemExit(f"{options.file} has no heads of these models: give a run with --add")
    results = [result_of(line) for line in chosen]
    check_comparable((Path(result.task, result.model, str(result.seed)), result) for result in results)
    options.work.mkdir(parents=True, exist_ok=True)
    trainings = [{name: value for name, value in line.items() if name != "counts"} for line in chosen]
    return write_results(options.work, results, references=options.references or models[:1], trainings=trainings)


def main() -> None:
    """Add the heads of runs to the file, and make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the table")
    parser.add_argument("--add", type=Path, nargs="+", default=[], help="runs whose heads are added to the file")
    parser.add_argument("--file", type=Path, default=FILE, help="file with the heads")
    parser.add_argument("--models", nargs="+", help="models of the table, in this order; default: all, base first")
    parser.add_argument("--references", nargs="+", help="models to compare with; default: the first")
    options = parser.parse_args()
    kept = options.file.read_text(encoding="utf-8").splitlines() if options.file.is_file() else []
    lines = {key_of(line): line for line in map(json.loads, kept)}
    for run in options.add:
        lines = add(lines, run)
    in_order = [lines[key] for key in sorted(lines)]
    table = make_table(in_order, options)
    if options.add:
        with atomic_file(options.file) as file:
            file.write_text("".join(f"{json.dumps(line)}\n" for line in in_order), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
