"""What a run has recorded, brought together for the cards of what it publishes; nothing in it is invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from bioptimus_hf.artifacts import RECORD, identity, read_json, read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.results import spread
from bioptimus_hf.pretraining.arguments import PretrainingArguments, shaping_settings
from bioptimus_hf.pretraining.callback import PHASE_FILE
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM

_STAGES = {"tokenizer": "train_vocabulary", "contexts": "find_contexts", "v0.0": "distill_embeddings"}
_SCORES = ("f1", "precision", "recall", "conlleval_f1")
# Settings that no option of a script is named after: what they say stands elsewhere in a card.
_NO_OPTIONS = (
    "curriculum", "decontamination", "jsonl", "world_size", "mixed_precision", "sharded", "merged_type", "processes"
)  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a card says that no run can know.

    Attributes:
        license: of the published weights, by its name on the Hub (`apache-2.0`).
        language: of the text, by its ISO 639 code.
        corpus: what the text of pre-training is, and where it comes from.
        corpus_license: under which terms.
        ner_licenses: of the annotated data of each task.
        base_model: name on the Hub (`name@revision`) of the model that was adapted; only where the run got a folder.
        hardware: that the run was made on; only where it was made by a version that did not record it.
        ner_datasets: data set on the Hub of a task, `name` or `name:configuration`; tasks without one have none.
    """

    license: str
    language: str
    corpus: str
    corpus_license: str
    ner_licenses: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None
    hardware: str | None = None
    ner_datasets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """A head of a run, chosen among those of its seeds.

    Attributes:
        folder: of the seed with the best F1 on the validation part, the first of equals; the test part has no say.
        cells: the scores of all seeds.
        made: how the chosen one was made.
    """

    folder: Path
    cells: tuple[dict[str, Any], ...]
    made: dict[str, Any]


def run_versions(run_dir: str | Path) -> list[str]:
    """Return the versions whose phases the run has been through, in their order.

    Raises:
        InputError: there are none.
    """
    found = [read_json(path)["version"] for path in Path(run_dir).glob("v*/" + PHASE_FILE)]
    if not found:
        raise InputError(f"{run_dir} holds no version with a {PHASE_FILE}: run scripts/pretrain.py first")
    return sorted(found, key=version_key)


def version_key(version: str) -> tuple[int, ...]:
    """Return what versions are ordered by: 0.10 is newer than 0.9.

    Raises:
        InputError: it is not made of numbers.
    """
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError as error:
        raise InputError(f"version {version} is not made of numbers, as 0.4: it has no place in an order") from error


def encoder_facts(run_dir: str | Path, version: str, repo_id: str, about: About) -> dict[str, Any]:
    """Return what the card of an encoder is filled from.

    Raises:
        InputError: something is missing (what, and what to do).
    """
    run = Path(run_dir)
    record = read_json(run / f"v{version}" / PHASE_FILE)
    pretraining = pretraining_of(run, record)
    made = {name: read_record(run / name) for name in _STAGES if (run / name / RECORD).is_file()}
    for name in ("tokenizer", "v0.0"):
        if name not in made:
            raise InputError(f"{run / name / RECORD} is missing: a card is written from it")
    if not _same(run / name_of(version) / "vocab.txt", run / "tokenizer" / "vocab.txt"):
        raise InputError(f"{run / name_of(version)} has another vocabulary than {run / 'tokenizer'}")
    losses = pretraining["facts"]["validation_losses"]
    if record["metrics"].get("eval_loss") is None or str(record["last_step"]) not in losses:
        raise InputError(
            f"v{version} has no validation loss, which its card promises: pre-train with --eval_strategy steps"
        )
    results = [row_of(head.cells) for head in heads_of(run, version).values()]
    if not about.hardware and "hardware" not in pretraining:
        raise InputError(f"{pretraining['folder'] / RECORD} does not record the hardware: say what it was (--hardware)")
    return {
        **_common(run, version, repo_id, about, record),
        "phases": record["curriculum"],
        "losses": losses,
        "loss": record["metrics"]["eval_loss"],
        "base": base_of(made["tokenizer"], about),
        "vocabulary": made["tokenizer"]["facts"],
        "contexts": made.get("contexts", {}).get("facts"),
        "distillation": {**made["v0.0"]["settings"], **made["v0.0"]["facts"]},
        "pretraining": pretraining,
        "decontamination": pretraining["facts"].get("decontamination"),
        "results": results,
        "base_results": [row for row in _base_results(run) if row["task"] in {row["task"] for row in results}],
        "start": start_of(run, pretraining),
        "recipe": recipe({**made, "pretraining": pretraining}, base_of(made["tokenizer"], about)),
        "own_curriculum": own_curriculum(pretraining["settings"]["curriculum"]),
    }


def head_facts(run_dir: str | Path, task: str, version: str, repo_id: str, about: About) -> dict[str, Any]:
    """Return what the card of a head is filled from.

    Raises:
        InputError: as for `encoder_facts`, or there is no head for this task on this version.
    """
    run = Path(run_dir)
    head = heads_of(run, version).get(task)
    if head is None:
        raise InputError(f"no head for {task} on v{version} in {run / 'ner'}: run scripts/finetune_ner.py first")
    record = read_json(run / name_of(version) / PHASE_FILE)
    config = read_json(head.folder / "config.json")
    return {
        **_common(run, version, repo_id, about, record),
        "task": task,
        "encoder": repo_id.removesuffix(f"-{task}"),
        "labels": sorted({label.partition("-")[2] for label in config["label2id"]} - {""}),
        "row": row_of(head.cells),
        "cells": head.cells,
        "seed": head.made["settings"]["seed"],
        "finetuning": head.made,
        "options": {name: value for name, value in head.made["settings"].items() if name not in {*_NO_OPTIONS, "seed"}},
        "ner_license": _ner_license(task, about),
        "decontamination": pretraining_of(run, record)["facts"].get("decontamination"),
        "base_results": [row for row in _base_results(run) if row["task"] == task],
    }


def name_of(version: str) -> str:
    """Return the name of a version's folder and tag."""
    return f"v{version}"


def pretraining_of(run: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the run was made that a version's `phase.json` names.

    Raises:
        InputError: it is not there.
    """
    for path in sorted(run.glob(f"pretraining*/{RECORD}")):
        made = read_record(path.parent)
        if made["fingerprint"] == record.get("run"):
            return {**made, "folder": path.parent}
    raise InputError(
        f"v{record['version']} is of a run that {run} holds no {RECORD} of: give the folder it was made in"
    )


def start_of(run: Path, pretraining: Mapping[str, Any]) -> str | None:
    """Return the version of the run that a pre-training started from, as `v0.0`; None where it is another model."""
    wanted = pretraining["inputs"]["model"]
    folders = sorted(folder for folder in run.glob("v*") if folder.is_dir())
    return next((folder.name for folder in folders if identity(folder) == wanted), None)


def own_curriculum(phases: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a curriculum in YAML, as `--curriculum` takes it; None for that of the paper."""
    if list(phases) == [asdict(phase) for phase in BIOPTIMUS_CURRICULUM]:
        return None
    rows = []
    for phase in phases:
        row = {"version": phase["version"], **phase["masking"], "share": phase["share"]}
        rows.append(row if phase["last_rate"] is None else {**row, "last_rate": phase["last_rate"]})
    return str(yaml.safe_dump(rows, sort_keys=False))


def heads_of(run: Path, version: str) -> dict[str, Head]:
    """Return the heads on a version, by task.

    Raises:
        InputError: one of them was trained on other weights than the version's, or otherwise than another seed's, or
            lacks a score.
    """
    groups = _cells(run, name_of(version))
    encoder = identity(run / name_of(version)) if groups else ""
    found = {}
    for task, cells in groups.items():
        folders = list(cells)
        for folder in folders:
            if read_record(folder)["inputs"].get("model") != encoder:
                raise InputError(f"{folder} is a head on other weights than {run / name_of(version)}: train it anew")
        _check_cells(cells)
        best = max(folders, key=lambda one: (_best_f1(cells[one]), -int(cells[one]["seed"])))
        found[task] = Head(best, tuple(cells.values()), read_record(best))
    return found


def row_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of a table: the results of a task's heads of several seeds, in shares between 0 and 1."""
    first = cells[0]
    return {
        "task": first["task"],
        "model": first["model"],
        "seeds": [cell["seed"] for cell in cells],
        "support": int(first["test"]["support"]),
        **{name: spread([cell["test"][name] for cell in cells]) for name in _SCORES},
    }


def base_of(tokenizer: Mapping[str, Any], about: About) -> dict[str, str | None]:
    """Return the name and commit of the model that was adapted.

    Raises:
        InputError: the run was given a folder, and nobody says which model that was.
    """
    kind, _, name = tokenizer["inputs"]["base_model"].partition(":")
    if kind == "name":
        name, _, commit = name.partition("@")
        return {"name": name, "commit": commit or None}
    if about.base_model is None:
        raise InputError("the run was given its base model as a folder: name that model on the Hub (--base_model_id)")
    name, _, commit = about.base_model.partition("@")
    return {"name": name, "commit": commit or None}


def recipe(made: Mapping[str, Mapping[str, Any]], base: Mapping[str, str | None]) -> str:
    """Return a recipe, in YAML, that makes a run with the settings of this one.

    It names `curriculum.yaml` where the curriculum is not the paper's, and `data/ner` where that data was kept out.
    """
    name = f"{base['name']}@{base['commit']}" if base["commit"] else base["name"]
    sections = {**_STAGES, "pretraining": "pretrain"}
    content: dict[str, Any] = {"base_model": name}
    for stage, section in sections.items():
        if stage in made:
            settings = made[stage]["settings"] | (_unrecorded(made[stage]["settings"]) if section == "pretrain" else {})
            content[section] = {key: value for key, value in settings.items() if key not in _NO_OPTIONS}
    settings = made["pretraining"]["settings"]
    if own_curriculum(settings["curriculum"]):
        content["pretrain"]["curriculum"] = "curriculum.yaml"
    if "decontamination" in settings:
        content["pretrain"]["decontaminate"] = "data/ner"
    return str(yaml.safe_dump(content, sort_keys=False))


def _unrecorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a training that it did not record since they are stock, where our defaults are others."""
    stock = TrainingArguments(use_cpu=True).to_dict()
    ours = shaping_settings(PretrainingArguments(use_cpu=True))
    return {name: stock[name] for name in ours if name in stock and name not in settings}


def _common(run: Path, version: str, repo_id: str, about: About, record: Mapping[str, Any]) -> dict[str, Any]:
    folder = run / name_of(version)
    return {
        "about": about,
        "repo_id": repo_id,
        "name": repo_id.partition("/")[2],
        "version": version,
        "tag": name_of(version),
        "masking": record["masking"],
        "max_length": read_json(folder / "config.json")["max_position_embeddings"],
        "mask_token": read_json(folder / "tokenizer_config.json")["mask_token"],
    }


def _cells(run: Path, label: str) -> dict[str, dict[Path, dict[str, Any]]]:
    """Return the scores of the finished heads on a model, by task and folder."""
    groups: dict[str, dict[Path, dict[str, Any]]] = {}
    paths = [path for path in (run / "ner").glob(f"*/{label}/*/scores.json") if path.parts[-2].isdecimal()]
    for path in sorted(paths, key=lambda path: (path.parts[-4], int(path.parts[-2]))):
        groups.setdefault(path.parts[-4], {})[path.parent] = read_json(path)
    return groups


def _check_cells(cells: Mapping[Path, Mapping[str, Any]]) -> None:
    first = None
    for folder, cell in cells.items():
        if not {*_SCORES, "support"} <= cell.get("test", {}).keys() or not cell["validation"]:
            raise InputError(f"{folder / 'scores.json'} lacks a score, which the card promises: train it anew")
        made = read_record(folder)
        training = made["inputs"], {name: value for name, value in made["settings"].items() if name != "seed"}
        if training != (first := first or training):
            raise InputError(f"{folder} was trained on other data or with other settings than the seeds before it")


def _base_results(run: Path) -> list[dict[str, Any]]:
    """Return the results of the model that was adapted; a head that is called `base` may be on another."""
    if not (run / "tokenizer" / RECORD).is_file():
        return []
    adapted = read_record(run / "tokenizer")["inputs"]["base_model"]
    rows = []
    for cells in _cells(run, "base").values():
        own = {folder: cell for folder, cell in cells.items() if read_record(folder)["inputs"]["model"] == adapted}
        if own:
            _check_cells(own)
            rows.append(row_of(list(own.values())))
    return rows


def _ner_license(task: str, about: About) -> str:
    if task not in about.ner_licenses:
        raise InputError(f"the card names the licence of the data of {task}: give it (--ner_licenses {task}=...)")
    return about.ner_licenses[task]


def _best_f1(cell: Mapping[str, Any]) -> float:
    return max(float(epoch["f1"]) for epoch in cell["validation"])


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()
