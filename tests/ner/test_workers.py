"""Train heads at the same time, in processes of their own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import add
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from head_results import save_encoder, write_small_task
from safetensors.torch import load_file, save_file
from transformers import BertConfig, MPNetConfig, PerceiverConfig, PretrainedConfig

from bioptimus_hf.artifacts import RECORD, Run
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.ner import experiments, grid, workers
from bioptimus_hf.ner.experiments import make_heads, planned_trainings
from bioptimus_hf.ner.options import HeadOptions, HeadTraining
from bioptimus_hf.ner.workers import results_of
from bioptimus_hf.progress import ProgressLines

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TRAINING = HeadTraining(learning_rate=[1e-3, 1e-2], per_device_train_batch_size=2, num_train_epochs=2)


@dataclass(frozen=True)
class Log:
    """A job that logs something and returns a value."""

    text: str

    def __call__(self) -> str:
        logging.getLogger("bioptimus_hf.test").info("%s with %d threads", self.text, torch.get_num_threads())
        logging.getLogger("bioptimus_hf.progress").info("a line a minute")
        return self.text.upper()


def test_jobs_that_are_added_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    """They are done by two processes, and what they log is logged here."""
    caplog.set_level("INFO")
    jobs: deque[Callable[[], Any]] = deque([partial(add, 1, 2), partial(add, 3, 4)])
    found = []
    for _, result in results_of(jobs, at_once=2, threads=1):
        found.append(result)
        if len(found) == 2:
            jobs.append(partial(add, 5, 6))
    assert (sorted(found[:2]), found[2:]) == ([3, 7], [11])
    assert caplog.messages == []
    assert not [child for child in psutil.Process().children() if "workers" in " ".join(child.cmdline())]


class Needy(Exception):
    """An error that can't be made again from its pickle."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


def fail() -> None:
    """Fail, after a mistake of a library that logging only prints."""
    logging.getLogger("library").warning("x", FutureWarning)
    raise Needy(reason="a reason")


def leave_a_child() -> None:
    """Die, and leave a process that keeps the connection open."""
    if not os.fork():
        time.sleep(20)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def jobs_here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """This module as other processes import it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return __import__("test_workers")


def test_logs_and_threads(jobs_here: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    caplog.set_level("INFO")
    jobs = deque([jobs_here.Log("some text")] * 2)
    assert [result for _, result in results_of(jobs, at_once=2, threads=1)] == ["SOME TEXT"] * 2
    assert caplog.messages == ["some text with 1 threads"] * 2


def test_an_error_of_a_job_ends_the_others(jobs_here: Any) -> None:
    jobs: deque[Callable[[], Any]] = deque([jobs_here.fail, partial(time.sleep, 100)])
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"^Needy: a reason\n") as caught:
        list(results_of(jobs, at_once=2))
    assert time.monotonic() - began < 90
    assert "Traceback" in caught.value.__notes__[0]


def test_errors_are_sent_as_they_are_if_possible() -> None:
    locked = ValueError("with a lock")
    locked.lock = threading.Lock()  # type: ignore[attr-defined]
    for error, sent in ((InputError("no", argument="a"), InputError), (locked, RuntimeError)):
        found = workers._portable(error)
        assert type(found) is sent
    assert str(found) == "ValueError: with a lock"


def test_a_process_that_is_killed_is_noticed(jobs_here: Any) -> None:
    expected = "^at_once: a process that trained heads was killed by signal 9, often for lack of memory"
    jobs: deque[Callable[[], Any]] = deque([jobs_here.leave_a_child, partial(time.sleep, 100)])
    began = time.monotonic()
    with pytest.raises(InputError, match=expected):
        list(results_of(jobs, at_once=2))
    assert time.monotonic() - began < 90
    worker: Any = workers._Worker(1)
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(InputError, match=expected):
        worker.begin(partial(len, "x" * 20_000_000))
    worker.end()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def options(base: Path, tmp_path_factory: pytest.TempPathFactory) -> HeadOptions:
    folder = tmp_path_factory.mktemp("data")
    for task in ("a", "b"):
        write_small_task(folder / task)
    return HeadOptions(ner_data=str(folder), tasks=["a", "b"], models=[f"x={base}", f"y={base}"], seeds=[2], at_once=2)


def weights(root: Path) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("ner/**/model.safetensors")}
    return found | {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("ner/**/predictions.tsv")
    }


def test_heads_do_not_depend_on_how_many_are_trained_at_once(
    options: HeadOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same number of threads they are the same, byte for byte, and so are tables, whatever the order."""
    for number, name in ((1, "one"), (2, "two")):
        monkeypatch.setattr(experiments, "plan_parallelism", lambda *_, number=number: (number, 1))
        make_heads(Run(str(tmp_path / name)), options, TRAINING)
    assert len(weights(tmp_path / "one")) == 2 * 2 * 2 * 2
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    tables = [(tmp_path / name / "ner" / "results.md").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]
    assert not list((tmp_path / "two" / "ner_search").rglob("*.safetensors"))


def test_a_head_that_diverges_in_its_process_is_a_gap(options: HeadOptions, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "huge")
    weights = load_file(base / "model.safetensors")
    huge = {name: values * 1e30 for name, values in weights.items()}
    save_file(huge, tmp_path / "huge" / "model.safetensors", metadata={"format": "pt"})
    models = [f"huge={tmp_path / 'huge'}", f"x={base}"]
    with pytest.raises(TrainingDiverged, match=r"^4 of 8 heads are missing in the tables: .*diverged"):
        make_heads(Run(str(tmp_path / "run")), replace(options, models=models), HeadTraining(num_train_epochs=1))
    results = json.loads((tmp_path / "run" / "ner" / "results.json").read_text())
    assert [(row["task"], row["model"], row["seeds"]) for row in results["rows"]] == [
        *(("a", "x", [0, 1]), ("b", "x", [0, 1])),
    ]
    assert results["missing"].keys() == {f"{task}/huge/{seed}" for task in "ab" for seed in (0, 1)}


COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a shell ignore it
from bioptimus_hf.cli.__main__ import entry
entry("finetune-ner")
"""


def start(options: HeadOptions, run: Run, said: Path) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own, as a shell does."""
    command = ["--ner_data", options.ner_data, "--tasks", *options.tasks, "--models", *options.models]
    command += ["--seeds", 2, "--at_once", 2, "--output_dir", run.root, "--num_train_epochs", 2]
    command += ["--learning_rate", 1e-3, 1e-2, "--per_device_train_batch_size", 2]
    with open(said, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, command)],
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            start_new_session=True,
        )


def test_processes_end_with_the_command_and_it_resumes(options: HeadOptions, tmp_path: Path) -> None:
    run, options = Run(str(tmp_path / "run")), replace(options, tasks=["a"])
    started = start(options, run, tmp_path / "said.txt")
    while started.poll() is None and len(list(run.root.glob(f"ner_search/*/*/*/*/{RECORD}"))) < 2:
        time.sleep(0.05)
    workers = psutil.Process(started.pid).children()
    started.kill()
    assert started.wait(60) == -signal.SIGKILL
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
    make_heads(run, replace(options, at_once=1), TRAINING)
    results = json.loads((run.root / "ner" / "results.json").read_text())
    assert [(row["model"], row["seeds"]) for row in results["rows"]] == [("x", [0, 1]), ("y", [0, 1])]
    assert not list(run.root.rglob("*.partial*"))


def test_an_interrupt_while_processes_start(options: HeadOptions, tmp_path: Path) -> None:
    """All processes of the terminal get it."""
    started = start(options, Run(str(tmp_path / "run")), tmp_path / "said.txt")
    process = psutil.Process(started.pid)
    while started.poll() is None and len(workers := process.children()) < 2:
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(60) == 128 + signal.SIGINT
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    text = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("interrupted: run the same command again")


@pytest.mark.parametrize(
    ("config", "fills_windows", "gigabytes"),
    [
        (MPNetConfig(), False, (11, 15)),  # with weights: measured 12.3 on BC5, whose longest sentence has 239 pieces
        (BertConfig(), False, (3, 5)),  # no padding, so that the longest sentence doesn't matter
        (BertConfig(), True, (20, 27)),
        (BertConfig(num_hidden_layers=6, hidden_size=384), False, (2, 3)),  # measured 2.2
    ],
)
def test_memory_of_a_training(
    config: PretrainedConfig, fills_windows: bool, gigabytes: tuple[int, int], tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    words = np.array([24] * 999 + [160])
    found = grid.training_bytes(tmp_path, words, batch_size=32, max_length=512, fills_windows=fills_windows)
    assert gigabytes[0] < found / 1e9 < gigabytes[1]
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    more = grid.training_bytes(tmp_path, words, batch_size=32, max_length=512, fills_windows=fills_windows)
    assert more == found + 5000
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    of_a_pickle = grid.training_bytes(tmp_path, words, batch_size=32, max_length=512, fills_windows=fills_windows)
    assert of_a_pickle == more
    short = grid.training_bytes(tmp_path, words, batch_size=32, max_length=16, fills_windows=fills_windows)
    assert short < found


def test_memory_of_a_training_with_a_configuration_of_other_names(tmp_path: Path) -> None:
    PerceiverConfig().save_pretrained(tmp_path)
    found = grid.training_bytes(tmp_path, np.array([24]), batch_size=32, max_length=512, fills_windows=False)
    assert 2e9 <= found < 3e9


def test_how_many_heads_share_the_cores(options: HeadOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(str(tmp_path))

    def at_once(number: int | None, cores: int, gigabytes: int = 100, training: HeadTraining = TRAINING) -> int:
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
        memory = SimpleNamespace(available=gigabytes * 1e9, total=gigabytes * 1e9)
        monkeypatch.setattr(grid.psutil, "virtual_memory", lambda: memory)
        return planned_trainings(run, replace(options, at_once=number), training)[1]

    assert at_once(None, cores=2) == 1, "starting processes takes longer than these trainings"
    monkeypatch.setattr(grid, "_WORTHWHILE", 1)
    width = 2 * 2 * 2  # seeds or settings
    assert [at_once(None, cores=cores) for cores in (1, 2, 64)] == [1, 2, width]
    assert at_once(None, cores=64, gigabytes=10) == 4
    large = replace(TRAINING, per_device_train_batch_size=[8, 2**20])
    assert at_once(None, cores=64, gigabytes=10, training=large) == 1
    assert at_once(8, cores=64, gigabytes=10, training=large) == width, "what is asked for is done"
    assert [at_once(number, cores=2) for number in (1, 3, 99)] == [1, 3, width]
    monkeypatch.setattr(grid, "PartialState", lambda: SimpleNamespace(distributed_type="MULTI_CPU", device=CPU))
    assert at_once(None, cores=2) == 1
    with pytest.raises(InputError, match="at_once: several heads at the same time need a CPU and no launcher"):
        at_once(2, cores=2)
    with pytest.raises(InputError, match="at_once: must be at least 1, not 0"):
        replace(options, at_once=0)


def test_threads_depend_on_the_plan_alone(
    options: HeadOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither on what is finished nor on the memory that is free: heads would differ in their last bits."""
    monkeypatch.setattr(grid, "_WORTHWHILE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    run, one = Run(str(tmp_path)), replace(options, tasks=["a"], models=options.models[:1], at_once=None)
    trained: list[tuple[int, int]] = []
    results = grid.results_of

    def noted(jobs: Any, *, at_once: int, threads: int) -> Any:
        trained.append((at_once, threads))
        return results(jobs, at_once=1, threads=1)

    monkeypatch.setattr(grid, "results_of", noted)
    memory = SimpleNamespace(total=32e9, available=32e9)
    monkeypatch.setattr(grid.psutil, "virtual_memory", lambda: memory)
    make_heads(run, one, TRAINING)
    make_heads(run, one, TRAINING)
    shutil.rmtree(run.root / "ner" / "a" / "x" / "0")
    make_heads(run, one, TRAINING)
    memory.available = 2e9
    make_heads(run, one, TRAINING)
    assert trained == [(2, 4), (2, 4), (2, 4), (1, 4)]


def test_progress_counts_what_is_done(options: HeadOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bars: list[ProgressLines] = []

    def progress_bar(**named: Any) -> ProgressLines:
        bars.append(ProgressLines(**named))
        return bars[-1]

    monkeypatch.setattr(grid, "progress_bar", progress_bar)
    run, one = Run(str(tmp_path)), replace(options, tasks=["a"], models=options.models[:1], at_once=1)
    make_heads(run, one, TRAINING)
    make_heads(run, replace(one, seeds=[3]), TRAINING)
    assert [(bar.n, bar.total) for bar in bars] == [(4, 4), (1, 1)]
