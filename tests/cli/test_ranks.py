"""Processes of one launch: what happens without their launcher, and when there are fewer than asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bioptimus_hf.cli import launch
from bioptimus_hf.cli.ranks import prepare_rank
from bioptimus_hf.errors import InputError

LAUNCHER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""
RANK = """
import signal, sys, time
from bioptimus_hf.cli.ranks import prepare_rank

def stop(*_):
    print("SIGTERM", flush=True)
    sys.exit()

signal.signal(signal.SIGTERM, stop)
prepare_rank()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("launcher", "variables", "asked"),
    [
        ("torchrun", {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, False),
        ("accelerate", {"ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "1"}, True),
    ],
)
def test_a_rank_ends_with_its_launcher(launcher: str, variables: dict[str, str], asked: bool) -> None:
    """Its output is a pipe, which ends when no process has it open any more. One alone may save a checkpoint first."""
    started = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK, launcher],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.kill()
    said = started.stdout.read()
    started.wait()
    assert said.startswith(f"error: the launcher (process {started.pid}) has ended, and this process ends with it")
    assert said.endswith("SIGTERM\n") == asked


def test_fewer_processes_than_asked_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As after `accelerate launch --cpu --num_processes 2`, without MPI."""
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MASTER_PORT", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    prepare_rank()  # a single process was asked for
    assert not caplog.messages
    monkeypatch.setenv("MASTER_PORT", "29500")
    prepare_rank()
    assert "Accelerate was asked for several processes, but has started only this one" in caplog.text
    caplog.clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    prepare_rank()
    assert not caplog.messages


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "another process of this launch"),
        (torch.distributed.DistNetworkError("Connection reset"), "another process of this launch"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "a process that loads data has ended"),
        (RuntimeError("a fault of ours"), None),
    ],
)
def test_a_lost_process_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str | None
) -> None:
    def command() -> None:
        raise error

    monkeypatch.setenv("WORLD_SIZE", "2")
    if said is None:
        with pytest.raises(RuntimeError, match="a fault of ours"):
            launch.run(command)
        return
    assert launch.run(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert str(error) in line


def test_the_report_of_torchrun_ends_with_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    def command() -> None:
        raise InputError("no such file")

    assert launch.run(command) == 2
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "error: no such file"
