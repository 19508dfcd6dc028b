"""Write the recipe and the curriculum that reproduce a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import yaml
from transformers.training_args import TrainingArguments

from bioptimus_hf.pretraining.arguments import SHAPING, PretrainingArguments
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM

SECTIONS = {"tokenizer": "train_vocabulary", "contexts": "find_contexts", "v0.0": "distill", "pretraining": "pretrain"}
"""The section of a recipe for each folder of a run."""
NOT_OPTIONS = frozenset(
    (
        "curriculum",
        "decontamination",
        "jsonl",
        "world_size",
        "mixed_precision",
        "sharded",
        "merged_type",
        "merged_types",
        "processes",
        "search",
        "trainer",
        "document_windows",
    )
)
"""Recorded settings that aren't options of a command; a card states them in other ways."""


def recipe(records: Mapping[str, Mapping[str, Any]], base: Mapping[str, str | None]) -> str:
    """Return a YAML recipe that repeats a run with the same settings.

    The recipe refers to `curriculum.yaml` if the curriculum isn't that of the paper, and to `data/ner` if the
    pre-training text was decontaminated.

    Args:
        records: the record of each stage, by its folder.
        base: name and commit of the model that was adapted.
    """
    content: dict[str, Any] = {
        "output_dir": "runs/again",
        "base_model": f"{base['name']}@{base['commit']}" if base["commit"] else base["name"],
        "corpus": "corpus.txt.gz",
    }
    for folder, section in SECTIONS.items():
        if folder in records:
            settings = records[folder]["settings"]
            if section == "pretrain":
                settings = settings | _stock_values(settings)
            content[section] = {name: value for name, value in settings.items() if name not in NOT_OPTIONS}
    settings = records["pretraining"]["settings"]
    if own_curriculum(settings["curriculum"]):
        content["pretrain"]["curriculum"] = "curriculum.yaml"
    if "decontamination" in settings:
        content["pretrain"]["decontaminate"] = "data/ner"
    return str(yaml.safe_dump(content, sort_keys=False))


def own_curriculum(phases: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a curriculum as YAML, or None if it is that of the paper."""
    if list(phases) == [asdict(phase) for phase in BIOPTIMUS_CURRICULUM]:
        return None
    rows = []
    for phase in phases:
        row = {"version": phase["version"], **phase["masking"], "share": phase["share"]}
        rows.append(row if phase["last_rate"] is None else {**row, "last_rate": phase["last_rate"]})
    return str(yaml.safe_dump(rows, sort_keys=False))


def _stock_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a training left at the stock value where our default differs from it.

    Records only name the arguments that differ from the stock ones.
    """
    stock = {field.name: field.default for field in fields(TrainingArguments)}
    return {
        field.name: stock[field.name]
        for field in fields(PretrainingArguments)
        if field.name in SHAPING and field.default != stock[field.name] and field.name not in settings
    }
