"""Atomic files and folders, manifests, and locks between real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import (
    RECORD,
    atomic_file,
    atomic_folder,
    find_damage,
    hash_of_file,
    holder_of,
    locked,
    manifest_of,
    remove_leftovers,
    remove_result,
)

HOLD = """
import sys, time
from pathlib import Path
from bioptimus_hf.storage import locked
with locked(Path(sys.argv[1]), Path("the result")):
    if "fork" in sys.argv:
        import os
        if os.fork() == 0:
            time.sleep(600)
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holding(lock: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Hold a lock in another process."""
    command = [sys.executable, "-c", HOLD, str(lock), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def write_result(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    manifest = manifest_of([folder / name for name in files], folder)
    (folder / RECORD).write_text(json.dumps({"files": manifest}))


def test_every_kind_of_damage_is_found(tmp_path: Path) -> None:
    write_result(tmp_path / "r", same="abc", longer="abc", flipped="abc", gone="abc")
    manifest = json.loads((tmp_path / "r" / RECORD).read_text())["files"]
    (tmp_path / "r" / "longer").write_text("abcd")
    (tmp_path / "r" / "flipped").write_text("abd")
    (tmp_path / "r" / "gone").unlink()
    (tmp_path / "r" / "more").write_text("not ours")

    def found(*, hashes: bool) -> dict[str, str]:
        return {file.name: problem for file, problem in find_damage(tmp_path / "r", manifest, hashes=hashes)}

    assert found(hashes=False) == {"longer": "has 4 bytes instead of 3", "gone": "is missing"}
    assert found(hashes=True).keys() == {"longer", "gone", "flipped"}
    (tmp_path / "r" / "same").unlink()
    (tmp_path / "r" / "same").mkdir()
    assert "can't be read" in found(hashes=True)["same"] or "bytes instead" in found(hashes=True)["same"]


def test_the_hash_is_xxh3(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert hash_of_file(tmp_path / "empty") == "99aa06d3014798d86001c324468d497f"  # from the specification of XXH3


def test_files_of_others_are_kept_when_a_result_is_replaced(tmp_path: Path) -> None:
    write_result(tmp_path / "r", ours="old")
    (tmp_path / "r" / "notes").mkdir()
    (tmp_path / "r" / "notes" / "mine.txt").write_text("mine")
    with atomic_folder(tmp_path / "r") as folder:
        (folder / "ours").write_text("new")
    assert (tmp_path / "r" / "ours").read_text() == "new"
    (kept,) = tmp_path.glob("r.kept-*/notes/mine.txt")
    assert kept.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"r", kept.parts[-3]}
    write_result(tmp_path / "s", ours="old")
    remove_result(tmp_path / "s")
    assert not list(tmp_path.glob("s*"))


def test_what_a_dead_process_left_is_removed_and_what_it_was_replacing_restored(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for owner in (
        f"{socket.gethostname()}-{dead.pid}",
        f"elsewhere-{dead.pid}",
        f"{socket.gethostname()}-{os.getpid()}",
    ):
        (tmp_path / f"r.partial-{owner}").mkdir()
    (tmp_path / "r.replaced").mkdir()
    remove_leftovers(tmp_path / "r")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"r", f"r.partial-elsewhere-{dead.pid}", f"r.partial-{socket.gethostname()}-{os.getpid()}"}


def test_names_are_final_only_after_the_bytes_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "r") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("a")
    assert synced == [str(folder / "inner" / "a"), str(folder / "inner"), str(folder), str(tmp_path)]
    synced.clear()
    with atomic_file(tmp_path / "f") as file:
        file.write_text("f")
    assert synced == [str(file), str(tmp_path)]


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with holding(tmp_path / "x.lock") as process:
        began = time.monotonic()
        with pytest.raises(InputError) as error, locked(tmp_path / "x.lock", tmp_path / "x"):
            pass
        assert time.monotonic() - began < 5
        assert f"{tmp_path / 'x'} is being written by process {process.pid} on {socket.gethostname()}" in str(
            error.value
        )
        with pytest.raises(InputError), locked(tmp_path / "x.lock", tmp_path / "x", take_over=True):
            pass  # it is alive
    with locked(tmp_path / "x.lock", tmp_path / "x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_leaves_no_folders(tmp_path: Path) -> None:
    with locked(tmp_path / "run" / ".locks" / "x.lock", tmp_path / "x"):
        assert (tmp_path / "run" / ".locks" / "x.json").is_file()
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    with locked(tmp_path / "run" / ".locks" / "x.lock", tmp_path / "x"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_the_lock_of_a_dead_process_is_taken_over_even_if_its_workers_live(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holding(tmp_path / "x.lock", "fork") as process:
        process.kill()
        process.wait()
        with (
            locked(tmp_path / "x.lock", tmp_path / "x"),
            pytest.raises(InputError),
            locked(tmp_path / "x.lock", tmp_path / "x"),
        ):
            pass
        assert f"process {process.pid}" in caplog.text
        assert "taken over" in caplog.text


def test_the_lock_of_another_host_is_taken_over_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(
        json.dumps(
            {"pid": 12, "host": "elsewhere", "boot": "other", "space": "", "started": "1", "since": "2026-01-01 00:00"}
        )
    )
    with (
        pytest.raises(InputError, match=r"by process 12 on elsewhere since 2026-01-01 .*run .* with take_over"),
        locked(tmp_path / "x.lock", tmp_path / "x"),
    ):
        pass
    with locked(tmp_path / "x.lock", tmp_path / "x", take_over=True):
        assert json.loads((tmp_path / "x.json").read_text())["pid"] == os.getpid()
    with locked(tmp_path / "x.lock", tmp_path / "x"):
        pass


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), locked(tmp_path / "file" / "x.lock", tmp_path / "x"):
        pass


def test_without_a_readable_record_everything_is_kept(tmp_path: Path) -> None:
    write_result(tmp_path / "r", ours="old")
    (tmp_path / "r" / RECORD).write_text("{")
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with atomic_folder(tmp_path / "r") as folder:
        (folder / "ours").write_text("new")
    (kept,) = tmp_path.glob("r.kept-*")
    assert {path.name for path in kept.iterdir()} == {"ours", "notes.txt", RECORD}
    assert (tmp_path / "r" / "ours").read_text() == "new"


def test_links_and_empty_folders_are_kept_and_no_name_is_used_twice(tmp_path: Path) -> None:
    for number in range(2):
        write_result(tmp_path / "r", ours="old")
        (tmp_path / "r" / "link").symlink_to("nowhere")
        (tmp_path / "r" / "empty").mkdir()
        (tmp_path / "r" / "notes.txt").write_text(str(number))
        remove_result(tmp_path / "r")
    kept = sorted(tmp_path.glob("r.kept-*"))
    assert [{path.name for path in folder.iterdir()} for folder in kept] == [{"link", "empty", "notes.txt"}] * 2
    assert {(folder / "notes.txt").read_text() for folder in kept} == {"0", "1"}


def test_what_an_earlier_process_of_the_same_number_left_is_removed(tmp_path: Path) -> None:
    """In a container that is started again, everything has the number it had before."""
    leftover = tmp_path / f"r[1].partial-{socket.gethostname()}-{os.getpid()}"
    leftover.mkdir()
    os.utime(leftover, (1, 1))
    (tmp_path / "r[1].replaced").mkdir()
    with atomic_folder(tmp_path / "r[1]") as folder:
        assert folder == leftover
        (folder / "ours").touch()
    assert (tmp_path / "r[1]" / "ours").exists()


def test_a_holder_whose_lock_was_taken_over_leaves_it_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock, record = tmp_path / "x.lock", tmp_path / "x.json"
    with locked(lock, tmp_path / "x"):
        new = {**json.loads(record.read_text()), "host": "elsewhere", "boot": "other"}
        record.write_text(json.dumps(new))
    assert json.loads(record.read_text()) == new
    assert lock.exists()
    assert "taken over while this process held it" in caplog.text


def test_the_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holding(tmp_path / "x.lock"):
        monkeypatch.setattr("psutil.boot_time", lambda: time.time() - 5)
        with pytest.raises(InputError), locked(tmp_path / "x.lock", tmp_path / "x"):
            pass


def test_a_process_of_before_a_restart_is_dead(tmp_path: Path) -> None:
    lock, record = tmp_path / "x.lock", tmp_path / "x.json"
    with locked(lock, tmp_path / "x"):
        before = {**json.loads(record.read_text()), "boot": "before"}
        record.write_text(json.dumps(before))
    with locked(lock, tmp_path / "x"):
        assert json.loads(record.read_text())["boot"] != "before"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_of_a_result_follows_the_umask(tmp_path: Path, umask: int) -> None:
    """safetensors and temporary files are readable by their owner alone."""
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "result") as folder:
            save_file({"weights": torch.zeros(2)}, folder / "model.safetensors")
            inner = Path(tempfile.mkdtemp(dir=folder))
            (inner / "script").touch(0o700)
        with atomic_file(tmp_path / "alone.txt") as file:
            file.write_text("x")
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert found.pop("script") == 0o700 | 0o666 & ~umask
    assert {found[name] for name in ("model.safetensors", "alone.txt")} == {0o666 & ~umask}
    assert {found["result"], found[inner.name]} == {0o777 & ~umask}


def test_leftovers_of_other_machines_are_for_the_holder_of_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    elsewhere, here = (tmp_path / f"a.txt.partial-{host}-{os.getpid()}" for host in ("elsewhere", socket.gethostname()))
    other, no_process = tmp_path / "b.txt.partial-elsewhere-1", tmp_path / "a.txt.partial-elsewhere-x"
    for leftover in (elsewhere, here, other, no_process):
        leftover.touch()
    assert remove_leftovers(file) == []
    assert remove_leftovers(file, everywhere=True) == [elsewhere]
    assert sorted(tmp_path.iterdir()) == sorted([here, other, no_process])  # this process may be writing


def test_a_dead_process_that_its_parent_has_not_noticed_writes_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        leftover = tmp_path / f"a.txt.partial-{socket.gethostname()}-{process.pid}"
        leftover.touch()
        assert remove_leftovers(tmp_path / "a.txt") == [leftover]


def test_the_holder_of_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "a.lock"
    assert holder_of(lock) is None
    with locked(lock, tmp_path):
        holder = holder_of(lock)
        assert holder is not None
        assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
        (tmp_path / "file").touch()
        assert holder_of(tmp_path / "file" / "a.lock") is None  # can't be read
    assert holder_of(lock) is None
