"""Pre-training as a stage of a run: made once, resumed after a kill or SIGTERM, on one process and on two."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.commands import launch as accelerate_launch
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer
from processes import KILL, TERMINATE, Processes
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed import run as torchrun

from bioptimus_hf.artifacts import Run, identity, read_record, write_json
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.models import save_masked_lm
from bioptimus_hf.pretraining.arguments import PretrainingArguments
from bioptimus_hf.pretraining.options import PretrainingOptions
from bioptimus_hf.pretraining.stage import make_versions
from bioptimus_hf.pretraining.versions import run_of

VERSIONS = ("v0.1", "v0.2", "v0.3", "v0.4")
LOGGED = sorted({*range(3, 41, 3), 10, 20, 30, 40})  # every third step, and at the end of each phase
TEXTS = [
    "Aspirin binding in severe asthma patients was induced by protein expression.",
    "The mice of the renal cells.",
    "Bronchoconstriction (acute) is a disease with cancer therapy on the gene, for patients and failure.",
]
# Per process, of two. Validation is in batches of one, so that the second process has one less.
HALF = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2", "--per_device_eval_batch_size", "1")
# The second of two processes ends its training late: the first one must wait before it deletes the checkpoints.
LATE = """
import os, time
from transformers import trainer
real = trainer.sort_checkpoints
def sort_checkpoints(output_dir, **options):
    there = os.path.isdir(output_dir)
    time.sleep(2 * int(os.environ["RANK"]))
    assert os.path.isdir(output_dir) == there, "the other process did not wait"
    return real(output_dir, **options)
trainer.sort_checkpoints = sort_checkpoints
"""


# Only the first process may choose the checkpoint.
FIRST_DECIDES = """
import os
from bioptimus_hf.pretraining import checkpoints
if os.environ["RANK"] == "1":
    checkpoints.newest_checkpoint = None
"""


def command(run: Path, corpus: Path, *more: str) -> list[str]:
    return [
        *("pretrain", "--output_dir", str(run), "--corpus", str(corpus), "--validation_share", "0.2"),
        *("--max_length", "16", "--per_device_train_batch_size", "4", "--max_steps", "40", "--save_steps", "3"),
        *("--logging_steps", "3", "--disable_tqdm", "True", "--report_to", "tensorboard", *more),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_versions(left: Path, right: Path) -> None:
    for version in VERSIONS:
        one, other = weights(left / version), weights(right / version)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def history_of(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((run / "pretraining" / "history.json").read_text())
    return rows


def history_bytes(run: Path) -> bytes:
    return (run / "pretraining" / "history.json").read_bytes()


def assert_logged_to_tensorboard(run: Path) -> None:
    events = EventAccumulator(str(next((run / "tensorboard").iterdir()))).Reload()
    rates = [(event.step, event.value) for event in events.Scalars("train/rate")]
    assert rates[-1] == (40, pytest.approx(0.2))
    assert (
        sorted({event.step for event in events.Scalars("train/loss")}) == LOGGED
    )  # some twice after a damaged checkpoint


@pytest.fixture(autouse=True)
def _one_cache(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in this process uses the cache of the other processes."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", processes.cache)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a run that has come as far as v0.0."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "corpus.txt").write_text("".join(f"{text} {number}.\n" for number in range(20) for text in TEXTS))
    tokenizer = build_tiny_tokenizer()
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, folder / "run" / "v0.0")
    return folder


@pytest.fixture
def corpus(prepared: Path) -> Path:
    return prepared / "corpus.txt"


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Path:
    """A run of the test's own."""
    return Path(shutil.copytree(prepared / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(prepared: Path, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = Path(shutil.copytree(prepared / "run", tmp_path_factory.mktemp("whole") / "run"))
    ended = processes.run(command(run, prepared / "corpus.txt"))
    assert ended.status == 0, ended.stderr
    return run


@pytest.fixture(scope="module")
def whole_on_two(prepared: Path, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two processes, with the same rows per step."""
    run = Path(shutil.copytree(prepared / "run", tmp_path_factory.mktemp("two") / "run"))
    for rank in processes.start_ranks(command(run, prepared / "corpus.txt", *HALF), 2, patch=LATE):
        ended = rank.wait()
        assert ended.status == 0, ended.stderr
    return run


def fails(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    """Run a command that ends with status 2, and return the last line of stderr."""
    assert main(arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_weights(
    run: Path,
    corpus: Path,
    whole: Path,
    processes: Processes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO")
    assert processes.run(command(run, corpus), when=("checkpoint-24/trainer_state.json", KILL)).status == -KILL
    assert not (run / "pretraining").exists()
    (half,) = run.glob("checkpoints/*/saving.partial-*/checkpoint-24")
    assert (half / "model.safetensors").is_file()
    shutil.copytree(run, tmp_path / "anew")
    assert main(command(tmp_path / "anew", corpus, "--force")) == 0
    assert "resuming from" not in caplog.text
    assert_same_versions(tmp_path / "anew", whole)
    assert sorted(path.name for path in (tmp_path / "anew").iterdir()) == sorted(path.name for path in whole.iterdir())
    for label in ("versions of this run", "checkpoints of this run"):
        said = fails(capsys, command(run, corpus, "--per_device_train_batch_size", "2"))
        assert "belongs to another run with different --per_device_train_batch_size (4 then, 2 now): choose" in said, (
            label
        )
        for version in run.glob("v0.[1-4]"):
            shutil.move(version, tmp_path / version.name)
    for version in tmp_path.glob("v0.*"):
        shutil.move(version, run / version.name)
    ended = processes.run(command(run, corpus), when=("history.json", KILL))
    assert ended.status == -KILL
    assert not half.exists()
    assert re.search("resuming from .*checkpoint-21, the newest complete checkpoint", ended.stderr)
    assert "missing keys" not in ended.stderr
    caplog.clear()
    shutil.copytree(run, tmp_path / "damaged")
    weights_of_first = tmp_path / "damaged" / "v0.1" / "model.safetensors"
    weights_of_first.write_bytes(weights_of_first.read_bytes()[:-1] + b"?")
    said = fails(capsys, command(tmp_path / "damaged", corpus))
    assert f"{weights_of_first} has changed since it was written: its hash differs: make it again" in said
    assert main(command(run, corpus)) == 0
    assert re.search("resuming from .*checkpoint-40", caplog.text)
    assert_same_versions(run, whole)
    assert not (run / "checkpoints").exists()
    resumed = [read_record(folder / "pretraining")["facts"]["resumed"] for folder in (run, whole)]
    assert resumed == [True, False]
    assert read_record(whole / "pretraining")["facts"]["text"]["documents"] == 20 * len(TEXTS)
    assert [row["step"] for row in history_of(run) if "loss" in row] == LOGGED
    assert history_bytes(run) == history_bytes(whole)


@pytest.mark.slow
def test_a_finished_run_is_skipped_and_never_mixed_with_another(
    corpus: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    caplog.set_level("INFO")
    before = {path: path.stat().st_mtime_ns for path in run.glob("v*/*.safetensors")}
    assert main(command(run, corpus)) == 0
    assert "already finished" in caplog.text
    assert "learning_rate" in fails(capsys, command(run, corpus, "--learning_rate", "0.5"))
    for option, value, said in (
        ("--resume_from_checkpoint", "elsewhere", "a run resumes from the last checkpoint in its own folder"),
        ("--model", str(run / "v0.3"), f"--model: a phase would write its version to {run / 'v0.3'}"),
        ("--max_length", "1000", "reads 512 tokens at once, not 1000"),
        ("--max_steps", "3", "3 optimizer steps are too few for 4 phases"),
        ("--label_smoothing_factor", "0.1", "the loss of pre-training has no label smoothing"),
        ("--learning_rate", "1e38", "training diverged"),
    ):
        assert said in fails(capsys, command(run, corpus, "--force", option, value))
        assert before == {path: path.stat().st_mtime_ns for path in run.glob("v*/*.safetensors")}
        assert (run / "pretraining" / "history.json").is_file()
    vocabulary = run / "v0.3" / "vocab.txt"
    text = vocabulary.read_text()
    vocabulary.write_text(text[:-1])
    assert re.search(
        r"v0\.3/vocab\.txt has [\d,]+ bytes instead of .*: make it again", fails(capsys, command(run, corpus))
    )
    vocabulary.write_text(text)
    shutil.rmtree(run / "v0.2")
    record = read_record(run / "v0.3")
    write_json(run / "v0.3" / "made.json", {**record, "facts": {**record["facts"], "run": "another"}})
    said = fails(capsys, command(run, corpus))
    assert re.search(r"v0\.2, \S*v0\.3 is missing or belongs to another run: use --force", said)


@pytest.mark.slow
def test_force_replaces_nothing_before_the_new_versions_are_complete(
    run: Path, corpus: Path, whole: Path, processes: Processes, tmp_path: Path
) -> None:
    """Killed within the second phase, and then between the moves of the third and the fourth version."""
    replaced = Path(shutil.copytree(whole, tmp_path / "replaced"))
    (replaced / "v0.2" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in replaced.glob("[vp]*/*")}
    options = command(replaced, corpus, "--learning_rate", "3e-4")
    assert processes.run([*options, "--force"], when=("checkpoint-24/trainer_state.json", KILL)).status == -KILL
    assert {path: path.read_bytes() for path in replaced.glob("[vp]*/*")} == before
    ended = processes.run(options, when=("/replaced/v0.3", KILL))
    assert ended.status == -KILL
    assert re.search("resuming from .*checkpoint-21", ended.stderr)
    assert {version: (replaced / version).is_dir() for version in VERSIONS} == dict.fromkeys(VERSIONS, True) | {
        "v0.3": False
    }
    assert main(options) == 0
    assert main(command(run, corpus, "--learning_rate", "3e-4")) == 0
    assert_same_versions(replaced, run)
    assert history_bytes(replaced) == history_bytes(run)
    for version in VERSIONS:
        assert read_record(replaced / version)["sources"] == read_record(run / version)["sources"]
        assert identity(replaced / version) == identity(run / version)
    names = [path.name for path in replaced.iterdir()]
    (kept,) = (name for name in names if name.startswith("v0.2.kept-"))
    assert (replaced / kept / "notes.txt").read_text() == "mine"
    assert sorted(names) == sorted([*(path.name for path in run.iterdir()), kept])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_gets_sigterm_saves_a_checkpoint_and_is_resumed_from_the_one_before_if_that_is_damaged(
    run: Path, corpus: Path, processes: Processes, request: pytest.FixtureRequest, ranks: int
) -> None:
    """Of two processes, only the first one gets the signal."""
    uninterrupted: Path = request.getfixturevalue("whole" if ranks == 1 else "whole_on_two")
    options = command(run, corpus, *(HALF if ranks == 2 else ()), "--save_steps", "4")
    started = processes.start_ranks(options, ranks, patch=LATE, when=("/run/v0.1", TERMINATE))
    for ended in [process.wait() for process in started]:
        assert ended.status == 128 + TERMINATE, ended.stderr
        assert "run the same command again, without --force, to resume" in ended.stderr
    newest, checkpoint = sorted((run / "checkpoints").glob("*/checkpoint-*"))
    assert newest.name in ("checkpoint-10", "checkpoint-11")  # v0.1 is exported after step 10
    assert checkpoint.name == "checkpoint-8"
    assert (run / "v0.1").is_dir()
    file = newest / "rng_state_1.pth" if ranks == 2 else newest / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for process in processes.start_ranks(options, ranks, patch=LATE + FIRST_DECIDES):
        ended = process.wait()
        assert ended.status == 0, ended.stderr
    assert f"resuming from {checkpoint}" in ended.stderr or ranks == 2  # the second process logs only warnings
    assert history_bytes(run) == history_bytes(uninterrupted)
    assert_logged_to_tensorboard(run)
    assert_logged_to_tensorboard(uninterrupted)
    assert_same_versions(run, uninterrupted)


# The second of two processes dies while the fourth step is saved.
DIES = """
import os, signal, sys
def watch(event, details):
    if event == "open" and os.environ["RANK"] == "1" and str(details[0]).endswith("checkpoint-4/running_loss_1.json"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


@pytest.mark.slow
def test_ranks_end_together_and_leave_what_can_be_resumed(
    run: Path, corpus: Path, whole_on_two: Path, processes: Processes
) -> None:
    """One rank is killed, and then the launcher."""
    options = command(run, corpus, *HALF, "--save_steps", "4")
    first, second = (process.wait() for process in processes.start_ranks(options, 2, patch=DIES))
    assert (first.status, second.status) == (2, -KILL)
    assert first.stderr.splitlines()[-1].startswith("error: another process of this launch has ended")
    assert not list(run.glob("checkpoints/*/checkpoint-4"))
    launch = [str(torchrun.__file__), "--standalone", "--nproc_per_node", "2", "-m", "bioptimus_hf.cli", *options]
    launcher = processes.start(launch, environment={"PYTHONPATH": str(ROOT)})
    while launcher.process.is_alive() and not list(run.glob("checkpoints/*/checkpoint-4")):
        time.sleep(0.05)
    ranks = psutil.Process(launcher.process.pid).children()
    launcher.process.kill()
    assert len(ranks) == 2
    assert psutil.wait_procs(ranks, timeout=60)[1] == []
    for process in processes.start_ranks(options, 2):
        ended = process.wait()
        assert ended.status == 0, ended.stderr
    assert_same_versions(run, whole_on_two)


@pytest.mark.slow
def test_some_phases_of_another_curriculum(run: Path, corpus: Path, processes: Processes, tmp_path: Path) -> None:
    rows = "".join(
        f"- {{version: 1.{number}, unit: word, rate: 0.1, last_rate: 0.{number}, corrupt: true, share: 0.2}}\n"
        for number in range(1, 6)
    )
    (tmp_path / "own.yaml").write_text(rows)
    options = ("--curriculum", str(tmp_path / "own.yaml"), "--phases", "1.2", "1.5", "--model", str(run / "v0.0"))
    options += ("--disable_tqdm", "False", "--report_to", "trackio", "--run_name", "own", "--logging_steps", "1")
    trackio = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    ended = processes.run(command(run, corpus, *options), environment=trackio)
    assert ended.status == 0, ended.stderr
    query = (str(Path(sys.executable).with_name("trackio")), "get", "metric", "--project", "huggingface", "--json")
    query += ("--run", "own", "--metric", "train/rate")
    found = subprocess.run(query, env={**processes.environment, **trackio}, stdout=subprocess.PIPE, check=True)
    logged = [row["value"] for row in json.loads(found.stdout)["values"]]
    assert [logged[step - 1] for step in (1, 20, 21, 40)] == pytest.approx([0.1, 0.2, 0.1, 0.5])
    assert "step 40 of 40: loss" in ended.stderr
    assert "\r" not in ended.stderr
    assert sorted(path.name for path in run.glob("v*")) == ["v0.0", "v1.2", "v1.5"]
    history = json.loads((run / "pretraining-1.2-1.5" / "history.json").read_text())
    rates = {row["step"]: row["rate"] for row in history if "loss" in row}
    assert [rates[step] for step in (1, 20, 21, 40)] == pytest.approx([0.1, 0.2, 0.1, 0.5])
    assert (run / "pretraining-1.2-1.5" / "history.png").read_bytes().startswith(b"\x89PNG")
    assert read_record(run / "v1.5")["facts"]["share"] == 0.5


@pytest.mark.slow
def test_the_function_leaves_what_the_command_leaves(run: Path, corpus: Path, whole: Path) -> None:
    """Folder and seed are those of the run, whatever the arguments say; these aren't changed."""
    arguments = PretrainingArguments(
        output_dir="elsewhere",
        seed=7,
        per_device_train_batch_size=4,
        max_steps=40,
        logging_steps=3,
        disable_tqdm=True,
    )
    folder = make_versions(
        Run(str(run)), Corpus([str(corpus)], validation_share=0.2), PretrainingOptions(max_length=16), arguments
    )
    assert (arguments.output_dir, arguments.seed) == ("elsewhere", 7)
    assert folder == run / "pretraining"
    files = [sorted(path.relative_to(one) for path in one.rglob("v*/*")) for one in (run, whole)]
    assert files[0] == files[1]
    assert_same_versions(run, whole)
    for version in VERSIONS:
        assert identity(run / version) == identity(whole / version)
        assert run_of(run / version) == read_record(folder)["fingerprint"]
    assert {path.name for path in folder.iterdir()} == {"made.json", "history.json", "history.png"}
    for name in ("inputs", "settings", "fingerprint"):
        assert read_record(folder)[name] == read_record(whole / "pretraining")[name]
    assert read_record(run / "v0.1")["settings"] == {**read_record(folder)["settings"], "version": "0.1"}


@pytest.mark.slow
def test_accelerate_launches_the_script(run: Path, corpus: Path, whole: Path, processes: Processes) -> None:
    """The script itself, in a process of its own."""
    _, *options = command(run, corpus)
    configuration = ("--config_file", str(ROOT / "scripts" / "accelerate" / "cpu.yaml"))
    script = str(ROOT / "scripts" / "pretrain.py")
    ended = processes.run([str(accelerate_launch.__file__), *configuration, script, *options])
    assert ended.status == 0, ended.stderr
    assert_same_versions(run, whole)
    assert (run / "pretraining" / "history.json").is_file()


# accelerate shards on accelerators only: let processes on a CPU pass for GPUs, and say when they shard.
SHARDED_ON_CPU = """
import os, runpy, sys
import accelerate.accelerator
from accelerate import DistributedType, PartialState
begin, prepare = PartialState.__init__, accelerate.accelerator.fsdp2_prepare_model
def __init__(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
def fsdp2_prepare_model(*args):
    print("sharded", file=sys.stderr)
    return prepare(*args)
PartialState.__init__ = __init__
accelerate.accelerator.fsdp2_prepare_model = fsdp2_prepare_model
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_two_ranks_train_as_one(
    run: Path,
    corpus: Path,
    whole: Path,
    processes: Processes,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    sharded: bool,
) -> None:
    assert read_record(whole / "pretraining")["facts"]["validation_blocks"] % 2
    if sharded:
        (tmp_path / "cpu.py").write_text(SHARDED_ON_CPU)
        launch = [str(accelerate_launch.__file__), "--num_processes", "2", "--mixed_precision", "no"]
        launch += ["--config_file", str(ROOT / "scripts" / "accelerate" / "fsdp.yaml"), str(tmp_path / "cpu.py")]
        _, *options = command(run, corpus, "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "1")
        script = str(ROOT / "scripts" / "pretrain.py")
        ended = processes.run([*launch, script, *options], environment={"ACCELERATE_USE_CPU": "true"})
        assert ended.status == 0, ended.stderr
        assert ended.stderr.count("sharded") == 2
    two = run if sharded else request.getfixturevalue("whole_on_two")
    for left, right in zip(history_of(whole), history_of(two), strict=True):
        assert left.keys() == right.keys()
        for name in {"loss", "grad_norm", "eval_loss"} & left.keys():
            assert left[name] == pytest.approx(right[name], rel=2e-3), (left["step"], name)
    for version in ("v0.1", "v0.4"):
        one, other = weights(whole / version), weights(two / version)
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
