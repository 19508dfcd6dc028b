"""The progress of a training, on a terminal and in a log."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerState

from bioptimus_hf import progress
from bioptimus_hf.pretraining import training_progress
from bioptimus_hf.pretraining.trainer import _Progress
from bioptimus_hf.pretraining.training_progress import TrainingProgress

ARGUMENTS: Any = None  # which no method reads
PHASES: Any = SimpleNamespace(plan=SimpleNamespace(phase_of=lambda step: SimpleNamespace(version=f"1.{step // 10}")))
LOG = {"loss": 2.51234, "learning_rate": 0.001, "grad_norm": 3.0}


def train(bar: TrainingProgress) -> None:
    """Train from step 10 to step 40, and log a row in the middle."""
    state = TrainerState(global_step=10, max_steps=40, is_world_process_zero=True)
    bar.on_train_begin(ARGUMENTS, state, None)
    for step in range(11, 41):
        state.global_step = step
        bar.on_step_end(ARGUMENTS, state, None)
        if step == 25:
            bar.on_log(ARGUMENTS, state, None, logs=LOG)
            bar.on_log(ARGUMENTS, state, None, logs={"total_flos": 1.0})
    bar.on_train_end(ARGUMENTS, state, None)
    bar.on_log(ARGUMENTS, state, None, logs=LOG)  # the summary of the Trainer


def test_a_bar_and_the_rows_above_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (progress, training_progress):
        monkeypatch.setattr(module, "bars_are_drawn", lambda: True)
    train(_Progress(PHASES, tokens_per_step=256))
    shown = capsys.readouterr()
    assert not shown.out
    assert re.search(r"\rv1\.4: 100%\|.+\| 40/40 \[\d\d:\d\d<00:00, .+ steps/s, [\d,]+ tokens/s\] *\n$", shown.err), (
        shown.err
    )
    assert shown.err.count("\rstep 25 of 40: loss 2.512, learning rate 0.001\n") == 1
    assert shown.err.count("step ") == 1


def test_lines_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    caplog.set_level(logging.INFO, "bioptimus_hf")
    train(_Progress(PHASES, tokens_per_step=256))
    assert capsys.readouterr() == ("", "")
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("step 25 of 40: loss 2.512, learning rate 0.001") == 1
    assert len(messages) == 30 + 1 + 1
    last_step, end = messages[-2:]
    assert re.fullmatch(
        r"v1\.4: 40 of 40 steps \(100%\), [\d,.]+ per second, 00:00 left, [\d,]+ tokens/s", last_step
    ), last_step
    assert end == "v1.4: finished in 00:00"


def test_other_processes_of_a_launch_show_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bioptimus_hf")
    bar = TrainingProgress()
    state = TrainerState(global_step=0, max_steps=1, is_world_process_zero=False)
    bar.on_train_begin(ARGUMENTS, state, None)
    bar.on_step_end(ARGUMENTS, state, None)
    bar.on_log(ARGUMENTS, state, None, logs=LOG)
    bar.on_train_end(ARGUMENTS, state, None)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records
