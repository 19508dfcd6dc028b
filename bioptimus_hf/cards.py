"""Model cards, filled from what a run recorded: a fact that is missing is an error, never an empty line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from bioptimus_hf.artifacts import InputError
from bioptimus_hf.curriculum import PHASE_FILE


def write_pretrained_card(folder: str | Path, *, model: str) -> None:
    """Write the card of an exported version as its README.md.

    Args:
        folder: made by `CurriculumCallback`, with `phase.json`, `config.json` and `tokenizer_config.json`.
        model: folder or Hub name that the card's examples load the model from.

    Raises:
        InputError: the folder lacks a fact that the card states.
    """
    folder = Path(folder)
    record, config = _read(folder / PHASE_FILE), _read(folder / "config.json")
    facts = {
        "version": record["version"],
        "phases": record["curriculum"],
        "settings": {name: value for name, value in record.get("settings", {}).items() if name != "curriculum"},
        "loss": record["metrics"].get("eval_loss"),
        "max_length": config["max_position_embeddings"],
        "mask_token": _read(folder / "tokenizer_config.json")["mask_token"],
        "source": model,
    }
    _write(folder, "pretrained.md", facts, pipeline_tag="fill-mask")


def write_ner_card(folder: str | Path, *, model: str) -> None:
    """Write the card of a fine-tuned head as its README.md.

    Args:
        folder: made by `scripts/finetune_ner.py`, with `scores.json` and `config.json`.
        model: folder or Hub name that the card's examples load the model from.

    Raises:
        InputError: the folder lacks a fact that the card states.
    """
    folder = Path(folder)
    config = _read(folder / "config.json")
    types = sorted({label.partition("-")[2] for label in config["label2id"]} - {""})
    _write(
        folder,
        "ner.md",
        {**_read(folder / "scores.json"), "labels": types, "source": model},
        pipeline_tag="token-classification",
    )


def render(template: str, facts: Mapping[str, Any]) -> str:
    """Fill a template of `model_card/`.

    Raises:
        InputError: a fact that the template states is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bioptimus_hf.model_card", ""),
        undefined=jinja2.StrictUndefined,  # Jinja itself renders a missing fact as nothing
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda share, digits=0: f"{100 * share:.{digits}f} %"
    try:
        return environment.get_template(template).render(facts)
    except jinja2.UndefinedError as error:
        raise InputError(f"the card {template} states a fact that the run has not recorded: {error.message}") from error


def _write(folder: Path, template: str, facts: Mapping[str, Any], *, pipeline_tag: str) -> None:
    data = ModelCardData(library_name="transformers", pipeline_tag=pipeline_tag)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{render(template, facts)}").save(folder / "README.md")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is missing: a card is written from it")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
