"""Build a folder for each version that is published, and check it, before any request is sent to the Hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from bioptimus_hf.artifacts import read_json, sha256_of_file, write_json
from bioptimus_hf.errors import InputError
from bioptimus_hf.plots import plot_history
from bioptimus_hf.pretraining.versions import folder_name
from bioptimus_hf.publishing.cards import encoder_card, evaluation_entries, head_card
from bioptimus_hf.publishing.checks import (
    ENCODER,
    HEAD,
    MARK,
    MODEL_FILES,
    PLOT,
    MissingFacts,
    check_about,
    check_folder,
    check_repo_id,
    check_source,
)
from bioptimus_hf.publishing.facts import encoder_facts, head_facts, missing_facts
from bioptimus_hf.publishing.heads import heads_of
from bioptimus_hf.publishing.options import About, Selection
from bioptimus_hf.publishing.ownership import Signature, sign
from bioptimus_hf.publishing.records import read_version, read_versions, version_key


@dataclass(frozen=True)
class StagedFile:
    """A file to publish: its path in the repository, size in bytes, and SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """A version of one repository, built and checked.

    Attributes:
        repo_id: repository that it is published to.
        version: version of the encoder, such as `0.4`; the tag is `v0.4`.
        architecture: class of the model.
        folder: mirrors what the repository will contain.
        card: text of the model card (README.md).
        files: every file in the folder.
        signature: names version, run and model in the commit.
    """

    repo_id: str
    version: str
    architecture: str
    folder: Path
    card: str
    files: tuple[StagedFile, ...]
    signature: Signature

    @property
    def tag(self) -> str:
        """Name of the tag."""
        return folder_name(self.version)


@dataclass(frozen=True)
class Target:
    """Where the folder of a release is built, and what it will be on the Hub."""

    repo_id: str
    version: str
    folder: Path


def stage(
    run_dir: str | Path,
    repo_id: str,
    work: Path,
    about: About,
    *,
    versions: Sequence[str | float] | None = None,
    selection: Selection,
) -> list[Release]:
    """Build and check a folder for each version to publish: first the encoder's, then the heads', oldest first.

    Args:
        run_dir: folder of the run.
        repo_id: repository of the encoder; that of a head is `<repo_id>-<task>`.
        work: empty folder to build in.
        about: facts for the cards that the run didn't record.
        versions: versions to publish; by default all versions of the run.
        selection: whether to publish the encoder, its heads, or all there is.

    Raises:
        InputError: something is missing, or not fit to be published.
    """
    check_repo_id(repo_id)
    run = Path(run_dir)
    if not run.is_dir():
        raise InputError(f"{run} is not a folder: give the folder of a run")
    check_about(run, about)
    chosen = _choose_versions(run, versions)
    heads = _choose_heads(run, chosen, selection) if selection.what in ("heads", "all") else []
    if missing := missing_facts(run, about, heads):
        raise MissingFacts(missing)
    releases = []
    if selection.what in ("encoder", "all"):
        for version in chosen:
            releases.append(stage_encoder(run, Target(repo_id, version, work / "encoder" / version), about))
    for task, version in heads:
        check_repo_id(f"{repo_id}-{task}")
        releases.append(stage_head(run, task, Target(f"{repo_id}-{task}", version, work / task / version), about))
    return releases


def stage_encoder(run: Path, target: Target, about: About) -> Release:
    """Build and check the folder of one version of the encoder.

    Raises:
        InputError: see `stage`.
    """
    source = run / folder_name(target.version)
    _copy_model(source, target.folder)
    facts = encoder_facts(run, target.version, target.repo_id, about)
    plot = facts["pretraining"]["folder"] / PLOT
    if plot.is_file():
        shutil.copyfile(plot, target.folder / PLOT)
    else:  # matplotlib was missing when the run was made, and may be installed now
        history: Any = read_json(plot.with_suffix(".json"))
        plot_history(target.folder / PLOT, history, {phase["version"]: phase["last_step"] for phase in facts["phases"]})
    _write_results(target.folder, facts["results"], about)
    return _finish(run, target, ENCODER, encoder_card(facts), read_version(source))


def stage_head(run: Path, task: str, target: Target, about: About) -> Release:
    """Build and check the folder of one head.

    Raises:
        InputError: see `stage`.
    """
    facts = head_facts(run, task, target.version, target.repo_id, about)
    _copy_model(heads_of(run, target.version)[task].folder, target.folder)
    _write_results(target.folder, facts["rows"], about)
    record = {name: facts["finetuning"][name] for name in ("fingerprint", "inputs", "settings")}
    return _finish(run, target, HEAD, head_card(facts), record)


def _choose_versions(run: Path, versions: Sequence[str | float] | None) -> list[str]:
    if not versions:
        found: list[str] = [record["version"] for record in read_versions(run)]
        if not found:
            raise InputError(f"{run} holds no version: run `bioptimus pretrain` first")
        return found
    chosen = sorted(dict.fromkeys(map(str, versions)), key=version_key)
    for version in chosen:
        read_version(run / folder_name(version))
    return chosen


def _choose_heads(run: Path, versions: Sequence[str], selection: Selection) -> list[tuple[str, str]]:
    """Return task and version of each head to publish, sorted by task and then by version."""
    found = [(task, version) for version in versions for task in heads_of(run, version)]
    place = f"on {', '.join(map(folder_name, versions))} in {run / 'ner'}"
    for task in selection.tasks or ():
        if task not in {name for name, _ in found}:
            raise InputError(f"no head for {task} {place}")
    if not found and selection.what == "heads":
        raise InputError(f"no head {place}: run `bioptimus finetune-ner` first")
    chosen = [(task, version) for task, version in found if not selection.tasks or task in selection.tasks]
    return sorted(chosen, key=lambda pair: (pair[0], version_key(pair[1])))


def _copy_model(source: Path, folder: Path) -> None:
    check_source(source)
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        try:
            os.link(source / name, folder / name)  # weights are large, and neither folder is written to
        except OSError:
            shutil.copyfile(source / name, folder / name)


def _write_results(folder: Path, rows: Sequence[Mapping[str, Any]], about: About) -> None:
    for task, entries in evaluation_entries(rows, about).items():
        path = folder / ".eval_results" / f"{task}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")


def _finish(run: Path, target: Target, architecture: str, card: str, record: Mapping[str, Any]) -> Release:
    """Write the card and the mark, check the folder, and describe its files."""
    folder = target.folder
    ModelCard(card)  # parses the metadata, and raises if it is invalid
    (folder / "README.md").write_text(card, encoding="utf-8")
    mark = {
        "made_by": "bioptimus_hf",
        "repository": target.repo_id,
        "version": target.version,
        "architecture": architecture,
        "record": dict(record),
    }
    write_json(folder / MARK, mark)
    check_folder(folder, architecture)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [
        StagedFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of_file(path)) for path in paths
    ]
    signature = sign(run, target.version)
    return Release(target.repo_id, target.version, architecture, folder, card, tuple(files), signature)
