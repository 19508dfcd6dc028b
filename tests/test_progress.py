"""Progress: bars on a terminal that log lines don't break, and a line a minute elsewhere."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import termios
import textwrap
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from helpers import ROOT

from bioptimus_hf.progress import ProgressLines, bars_are_drawn, progress_bar


class Clock:
    """A clock that only goes on when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "bioptimus_hf.progress")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "bioptimus_hf.progress"]


def test_a_line_a_minute(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with ProgressLines(desc="Reading contexts", total=600, unit=" sentences", clock=clock) as bar:
        for _ in range(300):
            clock.seconds += 1
            bar.update()
    assert lines() == [
        "Reading contexts: 60 of 600 sentences (10%), 1 per second, 09:00 left",
        "Reading contexts: 120 of 600 sentences (20%), 1 per second, 08:00 left",
        "Reading contexts: 180 of 600 sentences (30%), 1 per second, 07:00 left",
        "Reading contexts: 240 of 600 sentences (40%), 1 per second, 06:00 left",
        "Reading contexts: 300 of 600 sentences (50%), 1 per second, 05:00 left",
        "Reading contexts: stopped after 05:00 at 300 of 600 sentences (50%)",
    ]


@pytest.mark.parametrize(
    ("options", "done", "seconds", "expected"),
    [
        ({"total": 2_000_000_000, "unit": "B"}, 500_000_000, 100, "500 of 2,000 MB (25%), 5 MB per second, 05:00 left"),
        ({"total": 9_600_000, "unit": "B"}, 2_400_000, 120, "2.4 of 9.6 MB (25%), 1.2 MB per minute, 06:00 left"),
        ({"total": 12, "unit": " files"}, 3, 7200, "3 of 12 files (25%), 1.5 per hour, 6:00:00 left"),
        ({"unit": " documents"}, 12_345, 100, "12,345 documents, 123 per second"),
        ({"total": 0, "unit": " documents"}, 12, 120, "12 documents, 6 per minute"),
        ({"total": 10, "unit": " files"}, 0, 120, "0 of 10 files (0%)"),
        (
            {"total": 1000, "initial": 400, "unit": " steps"},
            120,
            60,
            "520 of 1,000 steps (52%), 2 per second, 04:00 left",
        ),
    ],
)
def test_what_a_line_says(
    options: dict[str, Any],
    done: int,
    seconds: int,
    expected: str,
    clock: Clock,
    lines: Callable[[], list[str]],
) -> None:
    bar = ProgressLines(desc="Working", clock=clock, **options)
    clock.seconds += seconds
    bar.update(done)
    bar.update(0)
    assert lines() == [f"Working: {expected}"]
    bar.set_postfix_str("loss 2.5", refresh=False)
    clock.seconds += 60
    bar.update(0)
    assert lines()[1].endswith(", loss 2.5")
    bar.close()
    bar.close()
    assert len(lines()) == 3


def test_an_error_is_not_the_end_of_a_step(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with suppress(ValueError), ProgressLines(desc="Reading", total=2, clock=clock) as bar:
        clock.seconds += 60
        bar.update()
        raise ValueError
    assert lines() == ["Reading: 1 of 2 items (50%), 1 per minute, 01:00 left"]


def test_a_short_step_is_not_mentioned(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with ProgressLines(desc="Reading", total=2, clock=clock) as bar:
        clock.seconds += 59.9
        bar.update(2)
    assert not lines()


def test_items_are_counted_as_they_are_iterated_over(clock: Clock, lines: Callable[[], list[str]]) -> None:
    bar = ProgressLines(["a", "b", "c", "d"], desc="Reading", unit=" files", clock=clock)
    for item in bar:
        clock.seconds += 40 if item != "d" else 0
    assert (bar.n, bar.total) == (4, 4)
    assert lines() == ["Reading: 2 of 4 files (50%), 1.5 per minute, 01:20 left", "Reading: finished in 02:00"]
    assert list(ProgressLines((letter for letter in "ab"), desc="Reading")) == ["a", "b"]
    assert ProgressLines((letter for letter in "ab"), desc="Reading").total is None


def test_only_the_first_process_of_a_launch_says_anything(
    clock: Clock, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert not bars_are_drawn()
    bar = ProgressLines(desc="Training", clock=clock)
    clock.seconds += 61
    bar.update()
    bar.close()
    assert not lines()


@pytest.mark.parametrize(
    ("terminal", "environment", "drawn"),
    [
        (True, None, True),
        (True, "", True),
        (True, "0", True),
        (True, "1", False),
        (False, None, False),
        (False, "0", False),
    ],
)
def test_where_bars_are_drawn(
    terminal: bool, environment: str | None, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    if environment is not None:
        monkeypatch.setenv("TQDM_DISABLE", environment)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert bars_are_drawn() is drawn
    bar = progress_bar(desc="Reading", total=3)
    bar.update(2)
    assert isinstance(bar, ProgressLines) is not drawn
    assert bar.n == 2  # callers read it
    bar.close()


def test_bars_are_drawn_in_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", pty)
    assert bars_are_drawn()


PROGRAM = """
import logging, sys, time, warnings
from datasets import Dataset
from transformers.utils import logging as transformers_logging
import bioptimus_hf.progress
from bioptimus_hf.cli.launch import prepare_process
from bioptimus_hf.corpus.cache import cached_map
from bioptimus_hf.progress import progress_bar

prepare_process()
own = logging.getLogger("bioptimus_hf.test")
datasets = logging.getLogger("datasets.test")

def long_step(batch):
    time.sleep(0.15)
    return batch

for number in progress_bar(range(6), desc="Outer", unit=" files"):
    own.info("a line of ours %d", number)
    with progress_bar(total=4, desc="Inner", unit=" rows", leave=False) as bar:
        for row in range(4):
            time.sleep(0.11)  # longer than the time between two drawings
            bar.update()
            datasets.warning("a line of datasets %d", row)
            transformers_logging.get_logger("transformers.test").warning("a line of transformers")
            warnings.warn(f"a Python warning\\nof two lines {number} {row}")
rows = Dataset.from_dict({"text": ["a"] * 8})
cached_map(rows, long_step, kind="texts", batch_size=2, num_proc=NUM_PROC, desc="Mapping")
own.info("the end")
"""
LOGGED = re.compile(r"\d\d:\d\d:\d\d (INFO|WARNING) (bioptimus_hf|datasets|transformers|py\.warnings)[\w.]*: .*")
SAID = 6 * (1 + 4 * 3) + 1


def on_a_terminal(program: str, **environment: str) -> str:
    """Run a Python program whose stderr is a terminal, and return what it wrote there."""
    terminal, its_side = pty.openpty()
    termios.tcsetwinsize(its_side, (24, 100))
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stderr=its_side, env={**os.environ, **environment}, cwd=ROOT)
    os.close(its_side)
    written = b""
    with suppress(OSError):  # at the end, on Linux
        while part := os.read(terminal, 65536):
            written += part
    os.close(terminal)
    assert process.wait() == 0, written.decode()
    return written.decode()


def seen(written: str) -> list[str]:
    """Return the lines that someone sees who scrolls through all that was written to a terminal."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for part in re.findall(r"\x1b\[A|.|\n", written.replace("\r\n", "\n\r"), flags=re.DOTALL):
        if part == "\x1b[A":
            row -= 1
        elif part == "\n":
            row += 1
            rows.extend([] for _ in range(len(rows), row + 1))
        elif part == "\r":
            column = 0
        else:
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = part
            column += 1
    return ["".join(characters).rstrip() for characters in rows]


def test_the_reader_of_terminals() -> None:
    assert seen("bar 1\rbar 2\r     \ra line\r\nbar 3\r\nup\x1b[A\rbelow") == ["a line", "below", "up"]


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
def test_log_lines_and_bars_on_a_terminal(num_proc: int) -> None:
    written = on_a_terminal(textwrap.dedent(PROGRAM).replace("NUM_PROC", str(num_proc)))
    assert "Inner:" in written
    lines = [line for line in seen(written) if line]
    said = [line for line in lines if re.search(r"a line of|a Python warning|the end", line)]
    assert len(said) == SAID
    assert all(LOGGED.fullmatch(line) for line in said), [line for line in said if not LOGGED.fullmatch(line)]
    bars = [line for line in lines if line not in said]
    assert all(re.match(r"(Outer|Inner|Mapping[^:]*): +\d+%\|", line) for line in bars), bars
    assert sum("100%" in line for line in bars) == 2  # the inner ones have left no trace


@pytest.mark.slow
def test_a_log_file_has_no_bars() -> None:
    program = textwrap.dedent(PROGRAM).replace("NUM_PROC", "2")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=True)
    assert b"\r" not in ended.stderr
    lines = ended.stderr.decode().splitlines()
    assert [line for line in lines if not LOGGED.fullmatch(line)] == []
    assert len(lines) == SAID


@pytest.mark.slow
def test_bars_that_are_turned_off_on_a_terminal() -> None:
    program = textwrap.dedent(PROGRAM).replace("NUM_PROC", "1")
    written = on_a_terminal(program, TQDM_DISABLE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    assert len([line for line in seen(written) if LOGGED.fullmatch(line)]) == SAID
    assert "%" not in written


@pytest.mark.slow
def test_lines_of_a_step_of_datasets() -> None:
    """They come from its own counts, with one process or several."""
    program = PROGRAM[: PROGRAM.index("for number")] + PROGRAM[PROGRAM.index("rows = ") :]
    program = program.replace(
        "prepare_process()", "prepare_process()\nbioptimus_hf.progress._SECONDS_BETWEEN_LINES = 0"
    )
    for num_proc in ("1", "2"):
        ended = subprocess.run(
            [sys.executable, "-c", program.replace("NUM_PROC", num_proc)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert re.search(r"Mapping[^:]*: 8 of 8 examples \(100%\), [\d.,]+ per \w+, 00:00 left", ended.stderr)
        assert re.search(r"Mapping[^:]*: finished in 00:0\d", ended.stderr)
        assert "\r" not in ended.stderr
