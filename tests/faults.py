"""Damage every file of a run, kill, fill the disk, start commands twice, and judge what the commands make of it.

    python tests/faults.py --output docs/faults.md           # a sample of the files, in minutes
    python tests/faults.py --full --output docs/faults.md    # every file

Makes a tiny run and finds its files by walking through its folder: results, records, checkpoints, parts of an
unfinished search, exported and annotated files, and the cache of `datasets`. After each fault, the commands that read
the file are run. Acceptable are only two ends: a command refuses with one line that names file, problem and remedy; or
all results are, byte for byte, those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer
from processes import Ended, Processes

from bioptimus_hf.artifacts import RECORD, identity, read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.contexts import local
from bioptimus_hf.models import save_masked_lm

SAMPLE = ROOT / "bioptimus_hf" / "sample"
STEPS = 8
CACHE = "datasets cache"
_SMALL_PARTS = 0.005  # megabytes in a part of a search, so that there are several
_VOLATILE = {"seconds", "peak_memory_mb", "hardware", "versions", "checksum", "resumed", "files"}  # of a record
_NO_RESULTS = {".locks", "tensorboard", "report.md"}  # report.md contains times
_REMEDY = re.compile(r"`bioptimus ([a-z-]+) --force`")
_ADVICE = re.compile(r"again|--force|choose|move it|free some")


# Faults


def halve(file: Path) -> None:
    """Truncate a file."""
    rewrite(file, file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """Flip a bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    rewrite(file, bytes(content))


def zero(file: Path) -> None:
    """Overwrite the second half with zeros, as a power cut may."""
    content = file.read_bytes()
    half = len(content) // 2
    rewrite(file, content[:half] + bytes(len(content) - half))


def lock_away(file: Path) -> None:
    """Make a file unreadable."""
    file.chmod(0)


def rewrite(file: Path, content: bytes) -> None:
    file.unlink()  # it may be mapped into memory
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": halve,
    "bit flipped": flip,
    "second half zeroed": zero,
    "removed": Path.unlink,
    "unreadable": lock_away,
}
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
FULL_DISK, TWICE = "disk full", "started twice"
COLUMNS = (*DAMAGE, *SIGNALS, FULL_DISK, TWICE)


@contextlib.contextmanager
def permissions_count() -> Iterator[None]:
    """Let root be bound by the permissions of its own files, by giving up two capabilities of Linux for a while."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    before = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    try:
        if libc.capset(header, data):
            raise OSError(ctypes.get_errno(), "capset")
        yield
    finally:
        data[0] = before
        libc.capset(header, data)


# Commands and their ends


@dataclass(frozen=True)
class End:
    """How a command has ended.

    Attributes:
        status: its exit status; negative: a signal; None: an exception that would be a traceback.
        said: all it wrote.
    """

    status: int | None
    said: str

    @property
    def error(self) -> str:
        """The last line."""
        lines = self.said.replace("\r", "\n").strip().splitlines()
        return lines[-1] if lines else ""

    def is_refusal(self, *files: Path) -> bool:
        """Return whether the command refused with one line that names one of the files, and a remedy."""
        named = not files or any(str(file) in self.error for file in files)
        line = self.error.startswith("error: ") and "Traceback" not in self.said
        return self.status == 2 and line and named and bool(_ADVICE.search(self.error))


def run_here(command: list[str]) -> End:
    """Run a command in this process."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            status: int | None = main(command)
    except BaseException:
        status = None
        said.write(traceback.format_exc())
    return End(status, said.getvalue())


def end_of(ended: Ended) -> End:
    return End(ended.status, ended.stderr)


@dataclass(frozen=True)
class Finding:
    """What became of a case.

    Attributes:
        stage: command that made the file, or that was disturbed.
        fault: one of `COLUMNS`.
        outcome: `refused`, `repaired`, `no effect`, `failed`.
        case: file or moment.
        detail: why it failed.
    """

    stage: str
    fault: str
    outcome: str
    case: str = ""
    detail: str = ""


# The run


@dataclass
class World:
    """A tiny run, the states it goes through, and what an undisturbed one looks like.

    Attributes:
        folder: for everything.
        export: whether a head is exported as an ONNX file, which takes long.
        made_by: the command that made each file of the run, by relative path.
        cached_by: the same of each file of the cache.
        results: of an undisturbed run, by relative path; of JSON files, two variants whose differences don't count.
        seconds: time that each command takes.
        remedied: results and faults whose remedy has been tried, once for all files of the result.
    """

    folder: Path
    export: bool = True
    made_by: dict[str, str] = field(default_factory=dict)
    cached_by: dict[str, str] = field(default_factory=dict)
    results: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    remedied: set[tuple[Path, str]] = field(default_factory=set)

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        """The cache of `datasets` in this process."""
        return self.folder / "cache"

    def __post_init__(self) -> None:
        save_masked_lm(build_tiny_bert(len(build_tiny_tokenizer())), build_tiny_tokenizer(), self.folder / "base")
        lines = (SAMPLE / "corpus.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (self.folder / "corpus.txt").write_text("".join(lines[:40]), encoding="utf-8")
        (self.folder / "texts").mkdir()
        for number in range(2):
            (self.folder / "texts" / f"{number}.txt").write_text("".join(lines[number : number + 2]), encoding="utf-8")
        (self.folder / "ner").mkdir()
        for split in ("train", "dev", "test"):
            text = (SAMPLE / "ner" / f"{split}.tsv").read_text(encoding="utf-8").split("\n\n")
            (self.folder / "ner" / f"{split}.tsv").write_text("\n\n".join(text[:12]) + "\n\n", encoding="utf-8")
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(self._recipe()))

    def _recipe(self) -> dict[str, Any]:
        small = {"per_device_train_batch_size": 2, "learning_rate": 1e-3}
        pretrain = {"max_length": 32, "max_steps": STEPS, "logging_steps": 1, "save_steps": 2, "save_total_limit": 2}
        heads = {"ner_data": "ner", "tasks": ["sample"], "models": ["v0.4"], "seeds": 1, "num_train_epochs": 1}
        return {
            "corpus": "corpus.txt",
            "output_dir": "run",
            "base_model": "base",
            "validation_share": 0.1,
            "train_vocabulary": {"size": 160},
            "find_contexts": {"per_token": 2},
            "pretrain": {**pretrain, **small, "report_to": "none"},
            "finetune_ner": {**heads, **small},
        }

    def stages(self) -> dict[str, list[str]]:
        """Return the command of each stage, in order."""
        recipe = ["--recipe", str(self.folder / "recipe.yaml")]
        names = ("train-vocabulary", "find-contexts", "distill", "pretrain", "finetune-ner")
        stages = {name: [name, *recipe] for name in names}
        head = str(self.run / "ner" / "sample" / "v0.4" / "0")
        if self.export and all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
            stages["export-onnx"] = ["export-onnx", "--model", head, "--output_dir", str(self.run / "onnx")]
        texts = ["--input", str(self.folder / "texts"), "--output_dir", str(self.run / "annotated")]
        stages["annotate"] = ["annotate", "--models", head, *texts]
        stages["report"] = ["report", "--output_dir", str(self.run)]
        return stages

    def make(self) -> None:
        """Make the run twice, and keep the state before each stage."""
        for copy in ("first", "second"):
            shutil.rmtree(self.run, ignore_errors=True)
            self.run.mkdir()
            for name, command in self.stages().items():
                if copy == "second":
                    shutil.copytree(self.run, self.folder / "before" / name)
                    if name == "export-onnx":  # takes long; records of one export are enough
                        shutil.copytree(self.folder / "first" / "onnx", self.run / "onnx")
                        continue
                end = run_here(command)
                assert end.status == 0, end.said
                for folder, made_by in ((self.run, self.made_by), (self.cache, self.cached_by)):
                    made_by |= {file: name for file in files_of(folder) if file not in made_by}
            shutil.copytree(self.run, self.folder / copy)
        shutil.copytree(self.cache, self.folder / "first cache")
        first, second = (self.folder / copy for copy in ("first", "second"))
        for name in sorted({*files_of(first)} & {*files_of(second)}):
            if Path(name).parts[0] not in _NO_RESULTS:
                self.results[name] = (first / name).read_bytes(), (second / name).read_bytes()

    def restore(self, state: str = "second") -> None:
        """Put the run and the cache back into a state."""
        remove(self.run)
        shutil.copytree(self.folder / state, self.run)
        remove(self.cache)
        shutil.copytree(self.folder / "first cache", self.cache)

    def differences(self, *, without: Path | None = None) -> list[str]:
        """Return how the results differ from those of an undisturbed run.

        Args:
            without: a file, or the folder of a result, that doesn't count.
        """
        wrong = []
        for name, (first, second) in self.results.items():
            file = self.run / name
            if without is not None and (file == without or without in file.parents):
                continue
            if not file.is_file():
                wrong.append(f"{name} is missing")
            elif not is_same(file, first, second):
                wrong.append(f"{name} differs")
        for name in set(files_of(self.run)) - self.results.keys():
            if Path(name).parts[0] not in _NO_RESULTS and ".kept-" not in name:
                wrong.append(f"{name} is left over")
        return wrong

    def readers(self, file: Path) -> dict[str, list[str]]:
        """Return the commands that read a file's result, because its identity is among their inputs."""
        result = next((folder for folder in file.parents if (folder / RECORD).is_file()), None)
        if result is None or not result.is_relative_to(self.run):
            return {}
        wanted = identity(result)
        found = {}
        for record in [*self.run.rglob(RECORD), *self.run.rglob(".records/*.json")]:
            if wanted in read_record(record)["inputs"].values():
                stage = self.made_by[record.relative_to(self.run).as_posix()]
                found[stage] = self.stages()[stage]
        return {**found, "report": self.stages()["report"]}


def files_of(folder: Path) -> Iterator[str]:
    """Yield all files below a folder, by relative path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    assert not folder.exists()


def is_same(file: Path, first: bytes, second: bytes) -> bool:
    """Compare a file with those of two undisturbed runs; in JSON, what differs between these two doesn't count."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    if content in (first, second):
        return True
    if first == second and file.name not in (RECORD, "results.json") and file.parent.name != ".records":
        return False
    if file.suffix != ".json":
        return first != second
    try:
        return _agrees(json.loads(content), json.loads(first), json.loads(second))
    except ValueError:
        return False


def _agrees(value: Any, first: Any, second: Any) -> bool:
    if all(isinstance(one, dict) for one in (value, first, second)):
        return value.keys() == first.keys() == second.keys() and all(
            key in _VOLATILE or _agrees(value[key], first[key], second[key]) for key in value
        )
    if all(isinstance(one, list) for one in (value, first, second)):
        return len(value) == len(first) == len(second) and all(map(_agrees, value, first, second))
    return first != second or value == first


# Damage


def damage_finished(world: World, name: str, fault: str) -> Finding:
    """Damage a file of a finished run, and run what reads it."""
    stage = world.made_by[name]
    file = world.run / name
    readers = world.readers(file)
    DAMAGE[fault](file)

    def finding(outcome: str, detail: str = "") -> Finding:
        return Finding(stage, fault, outcome, name, detail)

    with permissions_count():
        checked = run_here(["check", str(world.run)])
        noticed = checked.status == 2 and str(file) in checked.said
        again = run_here(world.stages()[stage])
        if again.status == 0 and not world.differences():
            return finding("repaired")
        if again.status != 0 and not again.is_refusal(*names_of(file)):
            return finding("failed", f"the same command: {again.error}")
        if again.status == 0 and not noticed:
            return finding("failed", f"neither the same command nor check notices: {world.differences()}")
        for reader, command in readers.items():
            end = run_here(forced(world, reader, command))
            wrong = world.differences(without=file)
            if file.name == RECORD and not file.exists():  # like files that a user brings, which have no record
                wrong = [what for what in wrong if RECORD not in what and ".records/" not in what]
            if end.status == 0 and wrong:
                return finding("failed", f"{reader} uses it: {wrong}")
            if end.status != 0 and not end.is_refusal(*names_of(file)):
                return finding("failed", f"{reader}: {end.error}")
    if (key := (file.parent, fault)) not in world.remedied:
        world.remedied.add(key)
        return follow_remedy(world, again, finding) or finding("refused")
    return finding("refused")


def names_of(file: Path) -> tuple[Path, ...]:
    """Return what an error may name instead of a file: its folder, or the annotated file that a record describes."""
    return file, file.parent.parent / file.stem if file.parent.name == ".records" else file.parent


def forced(world: World, name: str, command: list[str]) -> list[str]:
    """Return a command that reads its inputs, though its result is finished."""
    if name == "export-onnx":
        remove(world.folder / "exported")
        return [*command[:-1], str(world.folder / "exported")]
    return command if name == "report" else [*command, "--force"]


def follow_remedy(world: World, end: End, finding: Callable[[str, str], Finding]) -> Finding | None:
    """Do what the error says, and return a finding if that doesn't lead to an undisturbed run."""
    named = _REMEDY.search(end.error)
    if named is None:
        return None
    remedied = run_here([*world.stages()[named[1]], "--force"])
    if remedied.status != 0:
        return finding("failed", f"the remedy: {remedied.error}")
    later = list(world.stages())[list(world.stages()).index(named[1]) + 1 :]
    for name in later:
        if name != "export-onnx" and (end := run_here(world.stages()[name])).status != 0:
            return finding("failed", f"after the remedy, {name}: {end.error}")
    wrong = world.differences(without=world.run / "onnx")
    return finding("failed", f"after the remedy: {wrong}") if wrong else None


def damage_unfinished(world: World, state: str, stage: str, name: str, fault: str) -> Finding:
    """Damage a file that an interrupted stage left, and run the stage again."""
    file = world.run / name
    DAMAGE[fault](file)
    with permissions_count():
        end = run_here(world.stages()[stage])
    if end.status == 0:
        wrong = differences_up_to(world, stage)
        if (
            wrong in ([f"{name} differs"], [f"{name} is missing"])
            and str(file) in run_here(["check", str(world.run)]).said
        ):
            return Finding(stage, fault, "refused", f"{state}: {name}")  # by what reads it
        return Finding(stage, fault, "failed" if wrong else "repaired", f"{state}: {name}", ", ".join(wrong))
    if not end.is_refusal(*names_of(file)):
        return Finding(stage, fault, "failed", f"{state}: {name}", end.error)
    if fault != "removed" and not file.exists():
        return Finding(stage, fault, "failed", f"{state}: {name}", "the command deleted what it couldn't read")
    return Finding(stage, fault, "refused", f"{state}: {name}")


def differences_up_to(world: World, stage: str) -> list[str]:
    """Return how the results of a stage and those before it differ from those of an undisturbed run."""
    stages = list(world.stages())
    wanted = stages[: stages.index(stage) + 1]
    later = {f"{name} is missing" for name in world.results if world.made_by[name] not in wanted}
    return [wrong for wrong in world.differences() if wrong not in later]


def damage_cache(world: World, name: str, fault: str) -> Finding:
    """Damage a file in the cache of `datasets`, and redo the stage that wrote it."""
    file = world.cache / name
    DAMAGE[fault](file)
    with permissions_count():
        end = run_here([*world.stages()[world.cached_by[name]], "--force"])
    if end.status != 0:
        refused = end.is_refusal(file, file.parent)
        return Finding(CACHE, fault, "refused" if refused else "failed", name, "" if refused else end.error)
    wrong = world.differences()
    return Finding(CACHE, fault, "failed" if wrong else "no effect", name, ", ".join(wrong))


# Processes


def interrupt(world: World, processes: Processes, stage: str, fault: str, moment: float) -> Finding:
    """Send a signal to a stage after a share of its time, then run the same command again."""
    command = world.stages()[stage]
    started = processes.start(command, patch=_patch())
    while not started.output.exists() and started.process.is_alive():
        time.sleep(0.01)
    time.sleep(moment * world.seconds[f"{stage} alone"])
    if started.process.is_alive():
        os.kill(started.process.pid, SIGNALS[fault])
    end = end_of(started.wait())
    case = f"after {moment:.0%} of the time"
    if "Traceback" in end.said:
        return Finding(stage, fault, "failed", case, f"a traceback: {end.said[-2000:]}")
    again = end_of(processes.run(command, patch=_patch()))
    if again.status != 0:
        return Finding(stage, fault, "failed", case, f"ended with {end.status}; then {again.error}")
    wrong = differences_up_to(world, stage)
    return Finding(stage, fault, "failed" if wrong else "repaired", case, ", ".join(wrong))


def fill_disk(world: World, processes: Processes, stage: str, limit: int) -> Finding:
    """Let no file grow beyond a limit, as on a full disk; then run the same command without it."""
    command = world.stages()[stage]
    patch = (
        f"{_patch()}; import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    end = end_of(processes.run(command, patch=patch))
    case = f"after {limit:,} bytes"
    if end.status != 0 and not end.is_refusal():
        return Finding(stage, FULL_DISK, "failed", case, f"ended with {end.status}: {end.error}")
    again = end_of(processes.run(command, patch=_patch()))
    if again.status != 0:
        return Finding(stage, FULL_DISK, "failed", case, f"{end.error}; then {again.error}")
    wrong = differences_up_to(world, stage)
    outcome = "failed" if wrong else "no effect" if end.status == 0 else "refused"
    return Finding(stage, FULL_DISK, outcome, case, ", ".join(wrong))


def start_twice(world: World, processes: Processes, stage: str) -> Finding:
    """Start a stage again while a first process, which has been paused, is working on it."""
    command = world.stages()[stage]
    used_while_locked = {"annotate": "0.txt.jsonl.json", "finetune-ner": "scores.json"}.get(stage, RECORD)
    first = processes.start(command, patch=_patch(), when=(used_while_locked, signal.SIGSTOP))
    while first.process.is_alive() and not is_stopped(first.process.pid):
        time.sleep(0.02)
    stopped = first.process.is_alive()
    second = end_of(processes.run(command, patch=_patch()))
    if stopped:
        os.kill(first.process.pid, signal.SIGCONT)
    end = end_of(first.wait())
    case = "while the first process was paused"
    named = f"process {first.process.pid} on" in second.error
    if not stopped or not second.is_refusal() or not named:
        return Finding(stage, TWICE, "failed", case, f"the second ended with {second.status}: {second.error}")
    wrong = [f"the first: {end.error}"] if end.status else differences_up_to(world, stage)
    return Finding(stage, TWICE, "failed" if wrong else "refused", case, ", ".join(wrong))


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _patch() -> str:
    return f"import bioptimus_hf.contexts.local as local; local._MEGABYTES_PER_PART = {_SMALL_PARTS}"


# All of it


@contextlib.contextmanager
def prepared(folder: Path, *, export: bool = True) -> Iterator[World]:
    """Make a run in a folder, with a cache of its own."""
    before = datasets.config.HF_DATASETS_CACHE, local._MEGABYTES_PER_PART, torch.get_num_threads()
    torch.set_num_threads(1)
    local._MEGABYTES_PER_PART = _SMALL_PARTS
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    try:
        world = World(folder, export)
        world.make()
        gc.freeze()  # trainings collect garbage, and there is a lot to look through
        yield world
    finally:
        gc.unfreeze()
        datasets.config.HF_DATASETS_CACHE, local._MEGABYTES_PER_PART, threads = before
        torch.set_num_threads(threads)


def make_unfinished(world: World, processes: Processes) -> dict[str, list[str]]:
    """Keep the states that killed commands leave, and return their files, by stage."""
    ends = {"find-contexts": "part-000002.parquet", "pretrain": "v0.3", "annotate": "1.txt.jsonl"}
    files = {}
    for stage, end in ends.items():
        world.restore(f"before/{stage}")
        before = set(files_of(world.run))
        processes.run(world.stages()[stage], patch=_patch(), when=(end, signal.SIGKILL))
        files[stage] = sorted(set(files_of(world.run)) - before)
        assert files[stage], f"the {stage} that was killed has left nothing"
        shutil.copytree(world.run, world.folder / "unfinished" / stage)
    return files


Case = tuple[str, str, Callable[[], Finding]]
"""Stage, fault, and what returns the finding."""


def damages(world: World, unfinished: dict[str, list[str]]) -> Iterator[Case]:
    """Yield a case for each file and kind of damage."""
    for fault in DAMAGE:
        world.restore()
        for name in files_of(world.run):
            if is_worth_it(world.run / name, fault) and Path(name).parts[0] != "tensorboard":
                yield world.made_by[name], fault, bound(world, "second", damage_finished, name, fault)
        for name in files_of(world.cache):
            if is_worth_it(world.cache / name, fault):
                yield CACHE, fault, bound(world, "second", damage_cache, name, fault)
        for stage, names in unfinished.items():
            state = f"unfinished/{stage}"
            for name in names:
                if is_worth_it(world.folder / state / name, fault):
                    yield stage, fault, bound(world, state, damage_unfinished, state, stage, name, fault)


def is_worth_it(file: Path, fault: str) -> bool:
    """Return whether a fault changes a file."""
    return file.stat().st_size > 0 or fault in ("removed", "unreadable")


def bound(world: World, state: str, act: Callable[..., Finding], *arguments: Any) -> Callable[[], Finding]:
    """Return a function that restores a state, and then acts on it."""

    def case() -> Finding:
        world.restore(state)
        return act(world, *arguments)

    return case


def disturbances(
    world: World, processes: Processes, draw: random.Random, moments: int, *, stages: Sequence[str]
) -> Iterator[Case]:
    """Yield cases in which processes are killed, run out of disk, or meet.

    Args:
        moments: at which each signal is sent, and sizes of the disk.
        stages: to disturb.
    """
    for stage in stages:
        command = world.stages()[stage]
        times = 1 if stage == "export-onnx" else moments  # it takes long
        before = f"before/{stage}"
        world.restore(before)
        began = time.monotonic()
        assert processes.run(command, patch=_patch()).status == 0
        world.seconds[f"{stage} alone"] = time.monotonic() - began
        largest = max(
            ((world.run / name).stat().st_size for name, maker in world.made_by.items() if maker == stage), default=1
        )
        for fault in SIGNALS:
            for _ in range(times):
                yield stage, fault, bound(world, before, interrupt, processes, stage, fault, draw.uniform(0, 1))
        for _ in range(times):
            limit = int(largest * draw.uniform(0.05, 1))
            yield stage, FULL_DISK, bound(world, before, fill_disk, processes, stage, limit)
        if stage not in ("report", "export-onnx"):
            yield stage, TWICE, bound(world, before, start_twice, processes, stage)


def sample(cases: list[Case], draw: random.Random, each: int) -> list[Case]:
    """Draw some cases of each stage and fault."""
    groups = defaultdict(list)
    for case in cases:
        groups[case[:2]].append(case)
    return [case for group in groups.values() for case in draw.sample(group, min(each, len(group)))]


def table(findings: list[Finding]) -> str:
    """Return the outcomes by stage and fault, as Markdown."""
    stages = list(dict.fromkeys(finding.stage for finding in findings))
    columns = [fault for fault in COLUMNS if any(finding.fault == fault for finding in findings)]
    counts = Counter((finding.stage, finding.fault, finding.outcome) for finding in findings)
    lines = [f"| stage | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 1)}"]
    for stage in stages:
        cells = []
        for fault in columns:
            outcomes = ("refused", "repaired", "no effect", "failed")
            found = {outcome: counts[stage, fault, outcome] for outcome in outcomes}
            said = [f"{number} {outcome}" for outcome, number in found.items() if number]
            cells.append(", ".join(said).replace("failed", "**failed**"))
        lines.append(f"| `{stage}` | {' | '.join(cells)} |" if stage != CACHE else f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


PAGE = """# Faults

What the commands do when files are damaged, processes are killed, the disk is full, or a second process starts. Written
by

    {command}

in {minutes:.0f} minutes: {cases} cases on a tiny run, whose files the program finds itself. {sampled}

| outcome | |
| --- | --- |
| refused | status 2 and one line: the file, what is wrong, and what to do, which leads to undisturbed results |
| repaired | the same command, given again, ends with results that are byte for byte those of an undisturbed run |
| no effect | the commands end with such results though the fault is there |
| **failed** | anything else |

{table}

- Damage: of each file of a finished run, of the state that a killed search, pre-training or annotation leaves, and of
  the cache of `datasets`. The command that made the file is run again, then those that read it, `check` and `report`.
  What the error advises is tried once for each result and kind of damage.
  A file that can't be read has no permissions; root gives up the privilege to ignore them.
- `kill -9`, SIGTERM, SIGINT: at random moments; then the same command again.
- Disk full: no file can grow beyond a random size (`RLIMIT_FSIZE`); then the same command again without the limit.
- Started twice: the first process is paused while it writes; the second must say at once which process holds the lock.
- "Byte for byte" leaves out times, memory, speeds and versions in records and histories, and `report.md`.
"""


def write_page(path: Path, findings: list[Finding], *, minutes: float, full: bool) -> None:
    sampled = "All files." if full else "A sample of the files: `--full` takes all of them."
    command = f"python tests/faults.py{' --full' if full else ''} --output docs/faults.md"
    page = PAGE.format(command=command, minutes=minutes, cases=len(findings), sampled=sampled, table=table(findings))
    failed = [finding for finding in findings if finding.outcome == "failed"]
    if failed:
        page += "\n## Failures\n\n" + "".join(
            f"- {one.stage}, {one.fault}: {one.case}: {one.detail}\n" for one in failed
        )
    path.write_text(page, encoding="utf-8")


def execute(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    draw = random.Random(arguments.seed)
    findings = []
    with tempfile.TemporaryDirectory(prefix="bioptimus-faults-") as folder:
        processes = Processes(Path(folder))
        with prepared(Path(folder)) as world:
            cases = list(damages(world, make_unfinished(world, processes)))
            cases = cases if arguments.full else sample(cases, draw, 2)
            stages = arguments.only or list(world.stages())
            if arguments.only:
                cases = [case for case in cases if case[0] in arguments.only]
            cases += disturbances(world, processes, draw, 3 if arguments.full else 2, stages=stages)
            for number, (_, _, case) in enumerate(cases):
                finding = case()
                findings.append(finding)
                place = f"{number + 1}/{len(cases)} {time.monotonic() - began:.0f} s"
                print(place, finding.stage, finding.fault, finding.outcome, finding.case, finding.detail, flush=True)
    if arguments.output:
        write_page(arguments.output, findings, minutes=(time.monotonic() - began) / 60, full=arguments.full)
    print(table(findings))
    return int(any(finding.outcome == "failed" for finding in findings))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every file")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the random moments")
    parser.add_argument("--only", nargs="+", help="only these stages")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(execute(parse()))
