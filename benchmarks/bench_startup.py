"""Measure the CPU time of asking for help, and of an option that is rejected.

    python benchmarks/bench_startup.py

Each figure is the median of several processes (user and system time). The aims: 0.5 s for `bioptimus --help` and
`--version`, 1.5 s for `--help` and rejected options of a command; for those built on TrainingArguments,
1 s more than importing these.
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


def cpu_seconds(arguments: tuple[str, ...], runs: int) -> float:
    """Return the median CPU time of a Python process."""
    times = []
    for _ in range(runs):
        before = os.times()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        after = os.times()
        times.append(after.children_user - before.children_user + after.children_system - before.children_system)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    runs = parser.parse_args().runs
    module = ("-m", "bioptimus_hf.cli")
    print("| command | CPU seconds |\n| --- | --- |")
    for arguments in (("--version",), ("--help",)):
        print(f"| bioptimus {' '.join(arguments)} | {cpu_seconds((*module, *arguments), runs):.2f} |")
    for command in COMMANDS:
        for option in ("--help", "--no_such_option"):
            print(f"| bioptimus {command} {option} | {cpu_seconds((*module, command, option), runs):.2f} |", flush=True)
    print(f"| import transformers.training_args | {cpu_seconds(REFERENCE, runs):.2f} |")


if __name__ == "__main__":
    main()
