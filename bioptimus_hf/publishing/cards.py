"""Model cards, filled from what a run recorded: a fact that is missing is an error, never an empty line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from bioptimus_hf.artifacts import read_json
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.scores import LENIENT_SCORER, SCORER
from bioptimus_hf.pretraining.callback import PHASE_FILE
from bioptimus_hf.publishing.facts import About


def write_pretrained_card(folder: str | Path, *, model: str) -> None:
    """Write the card of an exported version as its README.md.

    Args:
        folder: made by `CurriculumCallback`, with `phase.json`, `config.json` and `tokenizer_config.json`.
        model: folder or Hub name that the card's examples load the model from.

    Raises:
        InputError: the folder lacks a fact that the card states.
    """
    folder = Path(folder)
    record, config = read_json(folder / PHASE_FILE), read_json(folder / "config.json")
    facts = {
        "version": record["version"],
        "phases": record["curriculum"],
        "settings": {name: value for name, value in record.get("settings", {}).items() if name != "curriculum"},
        "loss": record["metrics"].get("eval_loss"),
        "max_length": config["max_position_embeddings"],
        "mask_token": read_json(folder / "tokenizer_config.json")["mask_token"],
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
    config = read_json(folder / "config.json")
    types = sorted({label.partition("-")[2] for label in config["label2id"]} - {""})
    _write(
        folder,
        "ner.md",
        {**read_json(folder / "scores.json"), "labels": types, "source": model},
        pipeline_tag="token-classification",
    )


def encoder_card(facts: Mapping[str, Any]) -> str:
    """Return the card of an encoder that is published.

    Args:
        facts: from `records.encoder_facts`.

    Raises:
        InputError: a fact that the card states is missing.
    """
    loss = EvalResult(
        task_type="fill-mask",
        dataset_type="held-out",
        dataset_name="documents held out of the text of pre-training",
        metric_type="loss",
        metric_name="validation loss (nats, fixed masks)",
        metric_value=round(facts["loss"], 3),
    )
    scores = [result for row in facts["results"] for result in _results(row, facts["about"])]
    return _published(
        "encoder.md",
        facts,
        [loss, *scores],
        datasets=None,
        pipeline_tag="fill-mask",
        base_model=facts["base"]["name"],
    )


def head_card(facts: Mapping[str, Any]) -> str:
    """Return the card of a head that is published.

    Args:
        facts: from `records.head_facts`.

    Raises:
        InputError: a fact that the card states is missing.
    """
    return _published(
        "head.md",
        facts,
        _results(facts["row"], facts["about"]),
        datasets=[data] if (data := facts["about"].ner_datasets.get(facts["task"], "").partition(":")[0]) else None,
        pipeline_tag="token-classification",
        base_model=facts["encoder"],
        base_model_relation="finetune",
        base_model_revision=facts["tag"],
    )


def evaluation_entries(rows: Sequence[Mapping[str, Any]], about: About) -> dict[str, list[dict[str, Any]]]:
    """Return the results in the Hub's newer form: the content of `.eval_results/<task>.yaml` for each task.

    That form knows nothing but data sets of the Hub: tasks without one are left to the card's `model-index`.
    """
    entries = {}
    for row in rows:
        name, _, configuration = about.ner_datasets.get(row["task"], "").partition(":")
        if name:
            notes = f"strict entity F1, mean over the seeds {', '.join(map(str, row['seeds']))}; {SCORER}"
            task = configuration or row["task"]
            entry = EvalResultEntry(dataset_id=name, task_id=task, value=_rounded(row["f1"]), notes=notes)
            entries[row["task"]] = eval_result_entries_to_yaml([entry])
    return entries


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
    environment.filters |= {
        "percent": _percent,
        "count": _count,
        "spread": _spread,
        "duration": _duration,
        "machine": _machine,
    }
    environment.globals |= {"versions": _versions}
    try:
        return environment.get_template(template).render(facts)
    except jinja2.UndefinedError as error:
        raise InputError(f"the card {template} states a fact that the run has not recorded: {error.message}") from error


def _published(template: str, facts: Mapping[str, Any], results: list[EvalResult], **more: Any) -> str:
    about: About = facts["about"]
    data = ModelCardData(
        language=about.language,
        license=about.license,
        library_name="transformers",
        tags=["bioptimus_hf", "curriculum-learning", "named-entity-recognition"],
        model_name=f"{facts['name']} {facts['tag']}",
        eval_results=results,
        **more,
    )
    scorers = {"scorer": SCORER, "lenient_scorer": LENIENT_SCORER}
    body = render(template, {**facts, **scorers, "hardware": about.hardware})
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _results(row: Mapping[str, Any], about: About) -> list[EvalResult]:
    name, _, configuration = about.ner_datasets.get(row["task"], "").partition(":")
    result = EvalResult(
        task_type="token-classification",
        dataset_type=name or row["task"],
        dataset_name=row["task"],
        dataset_config=configuration or None,
        dataset_split="test",
        metric_type="f1",
        metric_value=None,
        metric_args={"seeds": row["seeds"], "scorer": SCORER},
    )
    return [
        dataclasses.replace(
            result,
            metric_type=metric,
            metric_name=f"entity {metric}, strict, mean over seeds",
            metric_value=_rounded(row[metric]),
        )
        for metric in ("f1", "precision", "recall")
    ]


def _rounded(values: Mapping[str, float]) -> float:
    return round(values["mean"], 4)  # as many digits as the tables show


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _spread(values: Mapping[str, float | None]) -> str:
    mean, deviation = values["mean"], values["deviation"]
    return f"{100 * (mean or 0):.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return (
        f"{seconds:.0f} seconds"
        if minutes < 2
        else f"{minutes:.0f} minutes"
        if minutes < 120
        else f"{minutes / 60:.1f} hours"
    )


def _machine(hardware: Mapping[str, Any]) -> str:
    accelerators = hardware["accelerators"]
    host = f"{hardware['cores']} cores of {hardware['cpu']}"
    return f"{len(accelerators)} x {accelerators[0]} beside {host}" if accelerators else host


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _write(folder: Path, template: str, facts: Mapping[str, Any], *, pipeline_tag: str) -> None:
    data = ModelCardData(library_name="transformers", pipeline_tag=pipeline_tag)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{render(template, facts)}").save(folder / "README.md")
