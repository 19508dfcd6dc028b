"""Which checkpoint a run resumes from when files are damaged, missing or unreadable, and what is never deleted."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining import checkpoints
from bioptimus_hf.pretraining.checkpoints import MANIFEST, newest_checkpoint, prepare, remove_checkpoints, saving_folder

FILES = ("model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")


def save(
    folder: Path, step: int, *, ranks: int = 1, keep: int | None = None, then: Callable[[], Any] | None = None
) -> None:
    """Save a checkpoint as the Trainer does, with other files.

    Args:
        then: what happens between the files and the manifest.
    """
    checkpoint = saving_folder(folder) / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in FILES:
        (checkpoint / name).write_text(f"{name} of step {step}")
    if then:
        then()
    checkpoints.complete(checkpoint, folder, ranks=ranks, keep=keep)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with checkpoints of steps 20 and 100."""
    save(tmp_path / "run", 20)
    save(tmp_path / "run", 100)
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped": flip,
    "removed": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_damaged_checkpoint_is_not_used_and_not_deleted(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    assert newest_checkpoint(folder) == folder / "checkpoint-100"
    assert caplog.text == ""
    DAMAGES[damage](folder / "checkpoint-100" / name)
    before = content(folder)
    assert newest_checkpoint(folder) == folder / "checkpoint-20"
    (line,) = caplog.messages
    assert line.startswith(f"{folder / 'checkpoint-100' / name} ")
    DAMAGES[damage](folder / "checkpoint-20" / name)
    before = content(folder)
    with pytest.raises(InputError, match=f"checkpoint-100/{name} .*: use force to begin at the first step"):
        newest_checkpoint(folder)
    assert content(folder) == before


def test_every_file_is_in_the_manifest(folder: Path) -> None:
    assert sorted(json.loads((folder / "checkpoint-20" / MANIFEST).read_text())) == sorted(FILES)
    assert {path.name for path in (folder / "checkpoint-20").iterdir()} == {*FILES, MANIFEST}


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_checkpoint_that_cannot_be_read_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It may be readable in a minute, and is the newest."""

    def fail(path: Path) -> str:
        raise OSError(number, os.strerror(number), str(path))

    before = content(folder)
    monkeypatch.setattr("bioptimus_hf.storage.hash_of_file", fail)
    with pytest.raises(InputError, match=rf"checkpoint-100/\S+ can't be read \({os.strerror(number)}\)"):
        newest_checkpoint(folder)
    assert content(folder) == before


@pytest.mark.parametrize("name", ["optimizer.pt", MANIFEST])
def test_a_file_that_really_cannot_be_read(folder: Path, name: str) -> None:
    """A link to itself can't be read by root either."""
    file = folder / "checkpoint-100" / name
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(InputError, match=f"checkpoint-100/{name} can't be read"):
        newest_checkpoint(folder)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-8-backup").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_a_checkpoint_has_no_name_until_it_is_complete(folder: Path) -> None:
    def stop() -> None:
        assert [path.name for path in folder.glob("checkpoint-*") if path.name == "checkpoint-200"] == []
        os._exit(7)

    process = multiprocessing.get_context("fork").Process(target=save, args=(folder, 200), kwargs={"then": stop})
    process.start()
    process.join()
    assert process.exitcode == 7
    assert len(list(folder.glob("saving.partial-*/checkpoint-200"))) == 1
    assert newest_checkpoint(folder) == folder / "checkpoint-100"
    prepare(folder, folder / "checkpoint-100")
    assert {path.name for path in folder.iterdir()} == {"checkpoint-20", "checkpoint-100"}


def test_what_a_living_process_is_saving_is_left_alone(folder: Path) -> None:
    save(folder, 200, then=lambda: prepare(folder, folder / "checkpoint-100"))
    assert newest_checkpoint(folder) == folder / "checkpoint-200"


def test_the_newest_checkpoints_are_kept_and_damaged_ones_too(folder: Path) -> None:
    flip(folder / "checkpoint-100" / "optimizer.pt")
    found = newest_checkpoint(folder)
    prepare(folder, found)
    for step in (60, 90, 100):
        save(folder, step, keep=2)
    names = {path.name.partition("-20")[0] for path in folder.iterdir()}
    assert names == {"checkpoint-90", "checkpoint-100", "checkpoint-100.damaged"}
    assert newest_checkpoint(folder) == folder / "checkpoint-100"


def test_all_processes_must_have_saved_their_random_state(folder: Path) -> None:
    with pytest.raises(InputError, match=r"rng_state_0\.pth is missing: process 0 doesn't see the same output_dir"):
        save(folder, 200, ranks=2)
    assert newest_checkpoint(folder) == folder / "checkpoint-100"


def test_only_checkpoints_are_removed(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    remove_checkpoints(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    save(folder, 7)
    remove_checkpoints(folder)
    assert not folder.exists()
