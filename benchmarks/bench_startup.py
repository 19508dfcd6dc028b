#!/usr/bin/env python
"""Measure the CPU time of `--help`, and of rejecting an unknown option, for every command.

    python benchmarks/bench_startup.py

Each figure is the median of several processes, user plus system time. The targets: 0.5 s for `bioptimus --help` and
`--version`; 1.5 s for `--help` and rejected options of a command; for a command built on TrainingArguments, at most 1 s
more than importing them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from bioptimus_hf.cli.__main__ import COMMANDS

RUNS = 5
REFERENCE = ("-c", "import transformers.training_args")


def cpu_seconds(arguments: tuple[str, ...], runs: int, *, status: int = 0) -> float:
    """Return the median CPU time of a Python process with these arguments, which must end with this exit status."""
    times = []
    for _ in range(runs):
        before = os.times()
        ended = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        after = os.times()
        if ended.returncode != status:
            raise SystemExit(f"{' '.join(arguments)}: exit status {ended.returncode}\n{ended.stderr.decode()}")
        times.append(after.children_user - before.children_user + after.children_system - before.children_system)
    return statistics.median(times)


def main() -> None:
    """Measure each command and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="processes per figure")
    runs = parser.parse_args().runs
    bioptimus = ("-m", "bioptimus_hf.cli")
    print("| command | `--help`, CPU seconds | unknown option, CPU seconds |\n| --- | --- | --- |")
    for option in ("--version", "--help"):
        print(f"| `bioptimus {option}` | {cpu_seconds((*bioptimus, option), runs):.2f} | |", flush=True)
    for command in COMMANDS:
        helped = cpu_seconds((*bioptimus, command, "--help"), runs)
        rejected = cpu_seconds((*bioptimus, command, "--no_such"), runs, status=2)
        print(f"| `bioptimus {command}` | {helped:.2f} | {rejected:.2f} |", flush=True)
    print(f"| importing `transformers.training_args`, for comparison | {cpu_seconds(REFERENCE, runs):.2f} | |")


if __name__ == "__main__":
    main()
