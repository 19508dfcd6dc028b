"""Read what the stages of a run recorded: its versions, their pre-training and the model that was adapted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import RECORD, identity, read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.versions import folder_name, version_numbers
from bioptimus_hf.publishing.options import About


def version_key(version: str) -> tuple[int, ...]:
    """Return a sort key for versions, by which 0.10 is newer than 0.9.

    Raises:
        InputError: the version isn't made of numbers separated by dots.
    """
    numbers = version_numbers(folder_name(version))
    if not numbers:
        raise InputError(f"version {version} is not of the form 0.4, so versions can't be sorted")
    return numbers


def is_version(folder: Path) -> bool:
    """Return whether a folder holds a version that pre-training finished."""
    return (folder / RECORD).is_file() and "version" in read_record(folder)["facts"]


def read_version(folder: Path) -> dict[str, Any]:
    """Return the facts in the record of a version, with the `inputs` and `settings` it was made from.

    Raises:
        InputError: the folder holds no finished version.
    """
    if not is_version(folder):
        raise InputError(f"{folder} has no {RECORD} of a version: it is not one that pre-training finished")
    record = read_record(folder)
    return {**record["facts"], "inputs": record["inputs"], "settings": record["settings"]}


def read_versions(run: Path) -> list[dict[str, Any]]:
    """Return the records of all versions of a run, the oldest first."""
    records = [read_version(folder) for folder in run.glob("v*") if is_version(folder)]
    return sorted(records, key=lambda record: version_key(record["version"]))


def pretraining_of(run: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of the pre-training that made a version, with its folder under `folder`.

    Raises:
        InputError: the run doesn't hold that pre-training.
    """
    for path in sorted(run.glob(f"pretraining*/{RECORD}")):
        made = read_record(path.parent)
        if made["fingerprint"] == record.get("run"):
            return {**made, "folder": path.parent}
    raise InputError(
        f"{run} holds no record ({RECORD}) of the pre-training of v{record['version']}: give the run's folder"
    )


def start_of(run: Path, pretraining: Mapping[str, Any]) -> str | None:
    """Return the version of the run that a pre-training started from, such as `v0.0`, or None for another model."""
    wanted = pretraining["inputs"]["model"]
    folders = sorted(folder for folder in run.glob("v*") if folder.is_dir())
    return next((folder.name for folder in folders if identity(folder) == wanted), None)


def base_of(tokenizer: Mapping[str, Any], about: About) -> dict[str, str | None]:
    """Return the name and commit of the model that was adapted.

    Args:
        tokenizer: record of the tokenizer.

    Raises:
        InputError: the run was given a folder, and `about` doesn't say which model it is.
    """
    kind, _, name = tokenizer["inputs"]["base_model"].partition(":")
    if kind != "name":
        if about.base_model is None:
            raise InputError(
                "the run was given its base model as a folder: name the base model on the Hub (About.base_model, or "
                "base_model_id)"
            )
        name = about.base_model
    name, _, commit = name.partition("@")
    return {"name": name, "commit": commit or None}
