"""Export the model at the end of each phase as a version, and tell which run a version belongs to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.artifacts import (
    RECORD,
    differences,
    fingerprint,
    read_record,
    sha256_of_file,
    write_record,
)
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.models import check_finite, save_masked_lm
from bioptimus_hf.storage import atomic_folder, remove_leftovers, replace_folder

DIVERGED = (
    "training diverged. Nothing was saved at this step, and earlier checkpoints are intact; try a lower learning_rate "
    "or more warmup_steps"
)
"""How the error ends that begins with the step and what isn't finite."""

_LABEL = re.compile(r"v(\d+(?:\.\d+)*)")


def folder_name(version: str) -> str:
    """Return the name of a version's folder, which is also its label in tables and its tag on the Hub."""
    return f"v{version}"


def version_numbers(label: str) -> tuple[int, ...]:
    """Return the numbers in the label of a version, as a sort key: (0, 10) for `v0.10`, and () for any other label."""
    match = _LABEL.fullmatch(label)
    return tuple(map(int, match[1].split("."))) if match else ()


@dataclass(frozen=True)
class Provenance:
    """What a run of pre-training is made from; its fingerprint identifies the run.

    Attributes:
        inputs: identities of the inputs.
        settings: settings that shape the result.
        sources: folders of inputs that are results themselves, see `artifacts.write_record`.
    """

    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    sources: Mapping[str, Path] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The identity of the run."""
        return fingerprint(self.inputs, self.settings)

    def seen_from(self, staging: Path, place: Path) -> Provenance:
        """Return the same for results that are written in one folder and then moved to another.

        Their records hold paths of the sources relative to the results, which must be right in the end.
        """
        sources = {name: staging / os.path.relpath(source, place) for name, source in self.sources.items()}
        return replace(self, sources=sources)


@dataclass(frozen=True)
class VersionRecord:
    """What the record of a version says.

    Attributes:
        facts: about the phase that ends with the version, see `PhasePlan.facts_of`, and its `metrics`.
        provenance: what the run is made from, if known.
        seconds: training time so far.
    """

    facts: Mapping[str, Any]
    provenance: Provenance | None
    seconds: float

    def write(self, folder: Path) -> None:
        """Write the record of the weights and the tokenizer in a folder.

        Besides inputs and settings of the run, it has `version` among the settings and `content` among the inputs, so
        that different weights never have the same fingerprint. Its facts also name the `run` by its fingerprint.
        """
        run = self.provenance or Provenance({}, {"curriculum": self.facts["curriculum"]})
        write_record(
            folder / RECORD,
            {**run.inputs, "content": content_of(folder)},
            {**run.settings, "version": self.facts["version"]},
            facts={**self.facts, "run": self.provenance.fingerprint if self.provenance else None},
            seconds=self.seconds,
            sources=run.sources,
        )


def export_version(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: VersionRecord,
    *,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save weights, tokenizer and record of a version atomically.

    Args:
        folder: is replaced when the new version is complete.
        model: is saved as a plain `BertForMaskedLM`.
        tokenizer: is saved beside the model.
        record: what the record says.
        weights: weights to save, by default those of the model.

    Raises:
        TrainingDiverged: weights contain NaN or infinity.
        InputError: the folder can't be written.
    """
    check_finite(
        (weights or model.state_dict()).items(), f"step {record.facts['last_step']}", DIVERGED, error=TrainingDiverged
    )
    with atomic_folder(folder) as temporary:
        save_masked_lm(model, tokenizer, temporary, weights=weights)
        record.write(temporary)


def check_replaceable(folders: Iterable[Path]) -> None:
    """Raise if a result couldn't be put in its place, before it is made.

    Raises:
        InputError: there is a file, a symbolic link or a folder that isn't a result, or nothing can be written.
    """
    for folder in folders:
        problem = None
        if folder.is_symlink():
            problem = "is a symbolic link, which a folder is to replace"
        elif folder.exists() and not folder.is_dir():
            problem = "is a file, but a folder of that name is needed"
        elif folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
            problem = "is not a result of this project"
        elif folder.parent.exists() and not os.access(folder.parent, os.W_OK | os.X_OK):
            raise InputError(f"nothing can be written to {folder.parent}: choose another output_dir")
        if problem:
            raise InputError(f"{folder} {problem}: move it away, or choose another output_dir")


def move_versions(staging: Path, versions: Iterable[Path]) -> None:
    """Put versions that were exported to another folder into their places; a call after a kill does the rest."""
    for version in versions:
        remove_leftovers(version)
        if (staging / version.name).is_dir():
            replace_folder(version, staging / version.name)


def content_of(folder: Path) -> str:
    """Return a hash of the files of a version: weights, configuration and tokenizer, but neither record nor README."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return fingerprint(
        {name: sha256_of_file(path) for name, path in files.items() if name not in (RECORD, "README.md")}, {}
    )


def check_unchanged(folder: Path) -> None:
    """Raise if the files of a version have changed since it was exported.

    Raises:
        InputError: they have, or there is no record.
    """
    if read_record(folder)["inputs"].get("content") != content_of(folder):
        raise InputError(f"the files in {folder} have changed since it was exported: make the version again with force")


def check_exportable(model: Any) -> None:
    """Raise if a model's weights aren't those of a whole model.

    Raises:
        InputError: it is a PEFT model, which trains adapters.
    """
    if hasattr(model, "peft_config"):
        raise InputError(
            "the versions of a PEFT model would lack its adapters: set export_dir to None, and save the merged model "
            "yourself at the end of each phase"
        )


def whole_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Return the complete weights (on the first process) of a model sharded over processes; None for other models."""
    if not issubclass(type(model), FSDPModule):
        return None
    weights: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {name: values for name, values in weights.items() if name not in model.all_tied_weights_keys}


def run_of(folder: Path) -> str | None:
    """Return the fingerprint of the run that a version belongs to; None if there is no such version."""
    run: str | None = read_record(folder)["facts"].get("run") if (folder / RECORD).is_file() else None
    return run


def check_no_other_run(versions: Iterable[Path], checkpoints: Path, provenance: Provenance) -> None:
    """Raise if a new run would overwrite versions, or abandon checkpoints, of another run.

    Args:
        versions: folders that the new run writes.
        checkpoints: folder for the checkpoints of the new run, beside those of other runs.
        provenance: what the new run is made from.

    Raises:
        InputError: there is another run; the message says how it differs.
    """
    for place in other_runs(versions, checkpoints, provenance):
        changed = ""
        if (place / RECORD).is_file():
            record = read_record(place)
            then = {
                "inputs": {name: value for name, value in record["inputs"].items() if name != "content"},
                "settings": {name: value for name, value in record["settings"].items() if name != "version"},
            }
            changed = f" with different {differences(then, provenance.inputs, provenance.settings)}"
        raise InputError(
            f"{place} belongs to another run{changed}: choose another output_dir, or use force to replace it"
        )


def other_runs(versions: Iterable[Path], checkpoints: Path, provenance: Provenance) -> list[Path]:
    """Return the existing versions, and folders of checkpoints to resume from, that belong to another run."""
    others = [version for version in versions if version.exists() and run_of(version) != provenance.fingerprint]
    states = checkpoints.parent.glob("*/checkpoint-*/trainer_state.json")
    folders = sorted({state.parents[1] for state in states} - {checkpoints})
    return [*others, *folders]
