"""Save checkpoints that are complete before their names appear, and find the one to resume from by its manifest."""

from __future__ import annotations

import json
import logging
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

from bioptimus_hf.artifacts import RECORD, write_json
from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import (
    apply_umask,
    damage_of,
    manifest_of,
    remove_leftovers,
    sync,
    sync_entries,
    temporary_name,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""Name of the file in a checkpoint that lists size and hash of all others. It is written last."""
_NAME = re.compile(r"checkpoint-(\d+)")
_SAVING = "saving"
_OURS = re.compile(rf"checkpoint-\d+(\.damaged-\w+)?|{_SAVING}\.partial-.*|{re.escape(RECORD)}")


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run whose files are as its manifest says; None if the run has none at all.

    Raises:
        InputError: a checkpoint can't be read at the moment, or all are damaged. Nothing is changed or deleted.
    """
    problem = None
    try:
        for checkpoint in _checkpoints(folder):
            found = _damage(checkpoint)
            if found is None:
                return checkpoint
            logger.warning("%s: %s isn't used", found, checkpoint.name)
            problem = problem or found
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} can't be read ({error.strerror or error}), so it isn't known where the run "
            f"stopped: make it readable and run the same command again, or use force to begin at the first step"
        ) from error
    if problem:
        raise InputError(
            f"{problem}, and there is no complete checkpoint before it: use force to begin at the first step"
        )
    return None


def prepare(folder: Path, resumed: Path | None) -> None:
    """Prepare a folder of checkpoints for a run that begins or goes on.

    What dead processes were saving is removed. Checkpoints that are newer than the one that the run resumes from are
    damaged: they are renamed, since others are going to get their names.
    """
    if not folder.is_dir():
        return
    remove_leftovers(folder / _SAVING)
    for checkpoint in _checkpoints(folder):
        if resumed is None or _step(checkpoint) > _step(resumed):
            checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}"))


def saving_folder(folder: Path) -> Path:
    """Return the folder to write a checkpoint into, under its own name, before it is complete."""
    return temporary_name(folder / _SAVING)


def complete(checkpoint: Path, folder: Path, *, ranks: int, keep: int | None) -> None:
    """Write the manifest of a checkpoint, move it to its place once all is on disk, and remove older ones.

    Args:
        checkpoint: in the folder from `saving_folder`. All processes have written what they save.
        folder: of the checkpoints.
        ranks: processes whose random states must be in it; 0 if not all of them write to this folder.
        keep: number of checkpoints to keep; None keeps all.

    Raises:
        InputError: random states are missing.
    """
    for rank in range(ranks):
        name = "rng_state.pth" if ranks == 1 else f"rng_state_{rank}.pth"
        if not (checkpoint / name).is_file():
            raise InputError(
                f"{checkpoint / name} is missing: process {rank} doesn't see the same output_dir. Choose one on a disk "
                f"that all machines share, or save_on_each_node"
            )
    files = [file for file in checkpoint.rglob("*") if file.is_file()]
    write_json(checkpoint / MANIFEST, manifest_of(files, checkpoint))
    apply_umask(checkpoint)
    sync(checkpoint)
    checkpoint.rename(folder / checkpoint.name)
    sync_entries(folder)
    checkpoint.parent.rmdir()
    for old in _checkpoints(folder)[keep:] if keep else ():
        _remove(old)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints and the record of a run, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name):
            _remove(path)
    if not any(folder.iterdir()):
        folder.rmdir()


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:  # training needn't end for it
        logger.warning("%s couldn't be removed: %s", path, error)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, the newest first."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _damage(checkpoint: Path) -> str | None:
    """Return which file of a checkpoint is damaged or missing, and how; None if all are as they were written.

    Raises:
        OSError: a file is there, but can't be read.
    """
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name, recorded in manifest.items():
            problem = damage_of(checkpoint / name, recorded, hashes=True)
            if problem:
                return f"{checkpoint / name} {problem}"
    except FileNotFoundError:
        return f"{path} is missing"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{path} is damaged"
    return None if manifest else f"{path} is empty"
