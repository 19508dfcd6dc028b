"""Test that Ray leaves the results and records of one machine, even if actors, machines or the driver are lost."""

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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, address_of, run_checks_apart

from bioptimus_hf.annotation import on_ray as module
from bioptimus_hf.annotation.annotate_files import annotate_files
from bioptimus_hf.annotation.inputs import RECORDS
from bioptimus_hf.annotation.jobs import Job, Provenance, load_annotator
from bioptimus_hf.annotation.options import AnnotationOptions, RunnerOptions
from bioptimus_hf.artifacts import identity, read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import holder_of, locked

TEXTS = (ROOT / "bioptimus_hf" / "sample" / "corpus.txt").read_text(encoding="utf-8").splitlines()
MACHINE = {"seconds", "peak_memory_mb", "hardware", "checksum"}
"""What the record of a result says about the machine, and a hash of the record itself."""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Create files that can be annotated, also in a sub-folder."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.txt", "b.txt", "c.txt", "deep/d.txt")):
        (folder / name).write_text("\n".join(TEXTS[number * 4 : number * 4 + 4]), encoding="utf-8")
    return folder


def annotate(
    head: Path, source: str | Path, output_dir: Path, runner: RunnerOptions | None = None, **options: Any
) -> list[Path]:
    return annotate_files(AnnotationOptions([str(head)], [str(source)], str(output_dir), **options), runner)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def assert_same(folder: Path, expected: Path, *, without: tuple[str, ...] = ()) -> None:
    """Check that two folders have the same results, byte for byte, and records that differ in the machine alone."""
    names = [name for name in files_in(expected) if not any(part in name for part in without)]
    assert files_in(folder) == names
    for name in names:
        if RECORDS not in name:
            assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
            continue
        record, other = (json.loads((place / name).read_text()) for place in (folder, expected))
        assert record.keys() == other.keys()
        assert {key for key in record if record[key] != other[key]} <= MACHINE, name


def messages(caplog: pytest.LogCaptureFixture, out: Path) -> set[str]:
    """Return what was logged; the name of the output folder is left out."""
    records = [record for record in caplog.records if record.name.startswith("bioptimus_hf")]
    texts = [record.getMessage().replace(str(out), "OUT") for record in records if record.levelno >= logging.WARNING]
    assert len(texts) == len(set(texts))
    return set(texts)


@pytest.mark.slow
def test_on_a_cluster() -> None:
    run_checks_apart(__file__, "not without_a_machine")


@pytest.mark.slow
def test_a_machine_is_lost() -> None:
    run_checks_apart(__file__, "without_a_machine")


def check_results_records_and_messages_are_those_of_one_machine(
    machines: Any,
    tiny_head: Path,
    shards: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With relative paths, documents and files that can't be read, an empty file, and annotations of the input."""
    (shards / "bad.jsonl").write_text('{"text": "Aspirin."}\n{"text": 3}\n{"text": "Asthma.", "id": "2"}\n')
    (shards / "empty.txt").write_text(" \n")
    (shards / "deep" / "packed.txt.gz").write_bytes(b"")
    entity = {"start": 0, "end": 7, "text": "Aspirin", "label": "Drug"}
    (shards / "given.jsonl").write_text(json.dumps({"text": "Aspirin.", "id": "1", "entities": [entity]}) + "\n")
    monkeypatch.chdir(shards.parent)
    given = ["annotate", "--models", os.path.relpath(tiny_head), "--input", "in", "--on_error", "skip"]
    ended = {}
    for name, more in (("local", []), ("ray", ["--runner", "ray", "--address", address_of(machines)])):
        caplog.clear()
        capsys.readouterr()
        status = main([*given, "--output_dir", name, *more])
        output = capsys.readouterr()
        error = output.err.splitlines()[-1]  # above, in this process, there is a bar of transformers
        ended[name] = status, error.replace(name, "OUT"), messages(caplog, Path(name))
        assert output.out == ""
    assert ended["ray"] == ended["local"]
    assert ended["ray"][0] == 2
    assert any("packed.txt.gz is not a complete gzip file" in line for line in ended["ray"][2])
    assert_same(shards.parent / "ray", shards.parent / "local")
    facts = read_record(shards.parent / "ray" / RECORDS / "given.jsonl.jsonl.json")["facts"]
    assert facts["replaced"] == 1


def check_an_unknown_address(tiny_head: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shards.parent / "out"
    given = ["annotate", "--models", str(tiny_head), "--input", str(shards), "--output_dir", str(out)]
    assert main([*given, "--runner", "ray", "--address", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith("error: --address: no Ray cluster at 127.0.0.1:1: ")
    assert not out.exists()


def check_a_killed_driver(machines: Any, tiny_head: Path, shards: Path) -> None:
    """What was finished stays as it is, and the rest is annotated when the same command is given again."""
    out, local = shards.parent / "out", shards.parent / "local"
    annotate(tiny_head, shards, local)
    runner = RunnerOptions("ray", address_of(machines), num_actors=1)
    arguments = ["--models", tiny_head, "--input", shards, "--output_dir", out, "--runner", "ray"]
    arguments += ["--address", runner.address, "--num_actors", 1]
    command = [sys.executable, "-m", "bioptimus_hf.cli", "annotate", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 300
        while not list(out.glob("*.jsonl")) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        driver.kill()
    finished = {path: path.stat().st_mtime_ns for path in (out / RECORDS).glob("*.txt.jsonl.json")}
    annotate(tiny_head, shards, out, runner)
    assert_same(out, local)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}


@pytest.mark.usefixtures("connection")
def check_actors_that_die(
    tiny_head: Path,
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One file costs an actor once, in the middle, and is annotated by another; one file costs every actor."""
    out, local, once = shards.parent / "out", shards.parent / "local", shards.parent / "once"
    (shards / "bad.jsonl").write_text('{"text": "Aspirin."}\n{"text": 3}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl, line 2"):
        annotate(tiny_head, shards, local)

    class Mortal(module._Worker):
        def _result(self, job: Job | None) -> Any:
            self.deadly = job is not None and (
                job.file.name == "b.txt" or (job.file.name == "d.txt" and not once.exists())
            )
            return super()._result(job)

        def add(self, documents: int, entities: int, size: int) -> None:
            super().add(documents, entities, size)
            if self.deadly and documents:
                time.sleep(2)  # until it is reported
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(module, "_Worker", Mortal)
    monkeypatch.setattr(module, "_MAX_ATTEMPTS", 2)
    expected = (
        r"^2 of 5 files could not be annotated: \S*b\.txt: 2 actors died while .*; \S*bad\.jsonl, line 2: no text"
    )
    caplog.set_level("INFO")
    with pytest.raises(InputError, match=expected):
        annotate(tiny_head, shards, out, RunnerOptions("ray"))
    assert capfd.readouterr().out == ""  # Ray would print that a worker died
    assert_same(out, local, without=("b.txt",))
    tried_again = [record.getMessage() for record in caplog.records if "tried again" in record.getMessage()]
    assert sorted(Path(line.partition(":")[0]).name for line in tried_again) == ["b.txt", "d.txt"]
    (counts,) = [message for message in caplog.messages if message.startswith("annotated")]
    assert counts.startswith("annotated 12 documents")  # once each


@pytest.mark.usefixtures("connection")
def check_actors_that_die_while_they_load_the_models(
    tiny_head: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(module._Worker):
        def _load(self) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(module, "_Worker", Deadly)
    monkeypatch.setattr(module, "_MAX_ATTEMPTS", 2)
    with pytest.raises(InputError, match=r"^2 actors died when they were to load the models, .*: use fewer actors"):
        annotate(tiny_head, shards, shards.parent / "out", RunnerOptions("ray", num_actors=1))
    assert not (shards.parent / "out").exists()


@pytest.mark.usefixtures("connection")
def check_a_package_that_is_missing_on_a_machine(
    tiny_head: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotInstalled:
        def __reduce__(self) -> tuple[Any, ...]:
            return __import__, ("bioptimus_nowhere",)

    class Worker(module._Worker):
        missing = NotInstalled()

    monkeypatch.setattr(module, "_Worker", Worker)
    with pytest.raises(InputError, match=r"^ModuleNotFoundError: .*: install the same bioptimus-hf\[ray\] on all"):
        annotate(tiny_head, shards, shards.parent / "out", RunnerOptions("ray"))


def check_that_annotation_goes_on_without_a_machine(
    machines: Any, tiny_head: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine is lost in the middle of a file."""
    out, local, stalled, lost = (shards.parent / name for name in ("out", "local", "stalled", "lost"))
    annotate(tiny_head, shards, local)
    (doomed,) = machines.worker_nodes
    doomed_id = doomed.node_id

    class Stalling(module._Worker):
        def add(self, documents: int, entities: int, size: int) -> None:
            import ray

            super().add(documents, entities, size)
            if ray.get_runtime_context().get_node_id() == doomed_id:
                stalled.touch()
                time.sleep(600)
            while not lost.exists():  # so that the other machine has time to start
                time.sleep(0.05)

    def lose() -> None:
        while not stalled.exists():
            time.sleep(0.05)
        machines.remove_node(doomed, allow_graceful=False)
        lost.touch()

    monkeypatch.setattr(module, "_Worker", Stalling)
    threading.Thread(target=lose, daemon=True).start()
    annotate(tiny_head, shards, out, RunnerOptions("ray", address_of(machines), num_actors=2))
    assert lost.exists()
    assert_same(out, local)
    assert [message.endswith("died: tried again") for message in messages(caplog, out)] == [True]


@pytest.fixture
def worker(tiny_head: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A worker in this process, for a driver in this process, which holds the lock of the output folder."""
    out = shards.parent / "out"
    options = AnnotationOptions([str(tiny_head)], [str(shards)], str(out))
    provenance = Provenance({"model 0": identity(tiny_head)}, {"keep": False, "input_format": None})
    lock = out / RECORDS / "annotation.lock"
    package = logging.getLogger("bioptimus_hf")
    before = package.level
    monkeypatch.chdir(shards.parent)
    with locked(lock, out):
        holder = holder_of(lock)
        assert holder is not None
        made = module._Worker(module._Call(provenance, options, lock, holder, str(shards), module._Share(1, 1, 0.0)))
        yield made
    for handler in [handler for handler in package.handlers if isinstance(handler, module._Collector)]:
        package.removeHandler(handler)
    package.setLevel(before)


def last(worker: Any, job: Job | None = None) -> Any:
    return list(worker.annotate(job))[-1]


def change(worker: Any, **values: Any) -> None:
    worker._call = replace(worker._call, **values)


def test_a_worker_reports_what_it_has_done(worker: Any, shards: Path) -> None:
    job = Job(Path("a.txt"), shards.parent / "out" / "a.txt.jsonl", "a.txt:")
    assert set(last(worker).result) == {"host"}
    reports = list(worker.annotate(job))
    facts = reports[-1].result
    amounts = [
        sum(values) for values in zip(*((one.documents, one.entities, one.size) for one in reports), strict=True)
    ]
    assert amounts == [4, facts["entities"], (shards / "a.txt").stat().st_size]
    assert not reports[-1].stops_all
    (shards / "a.txt").write_text("\n")
    report = last(worker, job)
    assert report.records == [("bioptimus_hf.annotation.jobs", logging.WARNING, "a.txt has no documents")]
    (shards / "a.txt").write_bytes(b"\xff\n")
    report = last(worker, job)
    assert str(report.result).startswith("a.txt, line 1: not valid UTF-8")
    assert type(report.result) is InputError
    assert not report.stops_all


def assert_stops_all(worker: Any, message: str, job: Job | None = None) -> None:
    report = last(worker, job)
    assert report.stops_all
    assert isinstance(report.result, InputError)
    assert message in str(report.result)
    assert f"(on {os.uname().nodename})" in str(report.result)
    assert "\n" not in str(report.result)


def test_a_machine_with_another_output_folder(worker: Any) -> None:
    """A folder of the same name isn't enough: it must be the folder that the driver has locked."""
    change(worker, holder=replace(worker._call.holder, pid=1))
    assert_stops_all(worker, "out isn't what it is on")
    shutil.rmtree(Path(worker._call.options.output_dir) / RECORDS)
    assert_stops_all(
        worker, "every machine of the cluster must see the input, the models and output_dir under the same"
    )
    worker._call.lock.parent.mkdir()


def test_a_machine_with_another_model(worker: Any) -> None:
    change(worker, provenance=replace(worker._call.provenance, models={"model 0": "folder:0"}))
    assert_stops_all(worker, f"{worker._call.options.models[0]} isn't what it is on {worker._call.holder.host}")


def test_a_machine_without_the_model(worker: Any) -> None:
    change(worker, options=replace(worker._call.options, models=["/nowhere/model"]))
    assert_stops_all(worker, "/nowhere/model")


def test_a_machine_without_the_input(worker: Any, shards: Path) -> None:
    job = Job(shards / "gone.txt", shards.parent / "out" / "gone.txt.jsonl", "gone.txt:")
    assert_stops_all(worker, "gone.txt isn't what it is on", job)
    report = last(worker, replace(job, readable=False))  # the driver can't read it either
    assert "gone.txt can't be read" in str(report.result)
    assert not report.stops_all


def test_a_folder_that_a_machine_cannot_write_to(worker: Any, shards: Path) -> None:
    (shards.parent / "out" / "deep").touch()
    job = Job(shards / "deep" / "d.txt", shards.parent / "out" / "deep" / "d.txt.jsonl", "d.txt:")
    assert_stops_all(worker, "can't write", job)


def test_a_machine_whose_gpu_cannot_be_used(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_annotator", lambda options, device: load_annotator(options, "cpu"))
    change(worker, share=module._Share(1, 1, 1.0))
    assert_stops_all(worker, "PyTorch can't use the GPU")


def test_errors_of_options_keep_their_argument(worker: Any) -> None:
    change(worker, options=replace(worker._call.options, labels=["Nothing=O"]))
    report = last(worker)
    assert report.stops_all
    assert report.result.argument == "labels"


@pytest.mark.parametrize("job", [None, Job(Path("a.txt"), Path("a.txt.jsonl"), "a.txt:")])
def test_memory_that_runs_out(worker: Any, job: Job | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    if job:
        last(worker)
    monkeypatch.setattr(module, "annotate_file" if job else "load_annotator", exhausted)
    report = last(worker, job)
    assert str(report.result).startswith("out of memory on ")
    assert report.stops_all == (job is None)


@pytest.mark.parametrize(
    ("nodes", "options", "files", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 4}], {}, 100, (12, 1, 0)),
        ([{"CPU": 8}, {"CPU": 4}], {}, 2, (3, 4, 0)),
        ([{"CPU": 8}, {"CPU": 4}], {}, 1, (1, 8, 0)),
        ([{"CPU": 8}, {"CPU": 4}], {"cpus_per_actor": 3}, 100, (3, 3, 0)),
        ([{"CPU": 8}, {"CPU": 4}], {"num_actors": 2}, 100, (2, 1, 0)),
        ([{"CPU": 8}, {}, {"CPU": 16, "GPU": 2}], {}, 100, (2, 1, 1)),
        ([{"CPU": 8}, {}, {"CPU": 16, "GPU": 2}], {"gpus_per_actor": 0.5}, 100, (4, 1, 0.5)),
        ([{"CPU": 8}, {}, {"CPU": 16, "GPU": 2}], {"gpus_per_actor": 0.0}, 100, (24, 1, 0)),
        ([{}], {"num_actors": 3}, 100, (3, 1, 0)),  # machines may be added later
        ([{}], {}, 100, "no machine of the cluster has 1 processor for an actor"),
        ([{"CPU": 2}], {"cpus_per_actor": 4}, 100, "no machine of the cluster has 4 processors for an actor"),
        ([{"CPU": 2}], {"gpus_per_actor": 1.0}, 100, "has 1 processor and 1 GPUs for an actor"),
    ],
)
def check_how_the_cluster_is_shared(
    nodes: list[dict[str, float]], options: dict[str, Any], files: int, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = {"Alive": False, "Resources": {"CPU": 99, "GPU": 9}}
    monkeypatch.setattr("ray.nodes", lambda: [dead, *({"Alive": True, "Resources": node} for node in nodes)])
    annotation, runner = AnnotationOptions(["head"], ["in"], "out"), RunnerOptions("ray", **options)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            module._share_of(runner, annotation, files)
        return
    share = module._share_of(runner, annotation, files)
    assert (share.workers, share.cpus, share.gpus) == expected


def check_exported_models_leave_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").touch()
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4, "GPU": 1}}])
    share = module._share_of(RunnerOptions("ray"), AnnotationOptions([str(tmp_path)], ["in"], "out"), 9)
    assert (share.workers, share.cpus, share.gpus) == (4, 1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "cluster"}, "runner: must be one of local, ray, not 'cluster'"),
        ({"address": "auto"}, "address: auto is for Ray: set runner to ray"),
        ({"num_actors": 2}, "num_actors: 2 is for Ray: set runner to ray"),
        ({"runner": "ray", "num_actors": 0}, "num_actors: must be at least 1, not 0"),
        ({"runner": "ray", "cpus_per_actor": -1}, "cpus_per_actor: must be at least 1, not -1"),
        (
            {"runner": "ray", "gpus_per_actor": 1.5},
            "gpus_per_actor: must be between 0 and 1, or a whole number, not 1.5",
        ),
        ({"runner": "ray", "gpus_per_actor": float("nan")}, "gpus_per_actor: must be between"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        RunnerOptions(**options)


def test_without_ray_installed(tiny_head: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed: pip install 'bioptimus-hf\[ray\]'"):
        annotate(tiny_head, shards, shards.parent / "out", RunnerOptions("ray"))
