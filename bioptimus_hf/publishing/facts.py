"""Gather the facts that a model card states from the records of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import RECORD, read_json, read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import DOCUMENT_WINDOW, MIN_SCORE, PUNCTUATION_IN_WORDS, SENTENCE_WINDOW
from bioptimus_hf.ner.options import JOINT
from bioptimus_hf.ner.results import predictions_file, single_model, tests_of
from bioptimus_hf.pretraining.versions import folder_name
from bioptimus_hf.publishing.heads import average_results, compared_results, differences, heads_of, result_rows
from bioptimus_hf.publishing.options import About
from bioptimus_hf.publishing.recipe import NOT_OPTIONS, SECTIONS, own_curriculum, recipe
from bioptimus_hf.publishing.records import (
    base_of,
    pretraining_of,
    read_version,
    start_of,
)

_LENGTHS = range(6, 16)  # words of an example


def missing_facts(run: Path, about: About, heads: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the fields of `about` that the cards need and that are missing, with the tasks for which they are.

    Args:
        heads: task and version of each head that is published.
    """
    missing: dict[str, list[str]] = {
        name: [] for name in ("license", "language", "corpus", "corpus_license") if not getattr(about, name).strip()
    }
    tokenizer = read_record(run / "tokenizer") if (run / "tokenizer" / RECORD).is_file() else None
    if tokenizer and about.base_model is None and not tokenizer["inputs"]["base_model"].startswith("name:"):
        missing["base_model"] = []
    tasks = sorted({name for task, version in heads for name in tests_of(heads_of(run, version)[task].scores[0])})
    if unlicensed := [task for task in tasks if task not in about.ner_licenses]:
        missing["ner_licenses"] = unlicensed
    return missing


def encoder_facts(run_dir: str | Path, version: str, repo_id: str, about: About) -> dict[str, Any]:
    """Return the facts that `encoder.md` states.

    Raises:
        InputError: a fact is missing; the message says which, and what to do.
    """
    from bioptimus_hf.ner.tables import published_table  # loads datasets, which the report doesn't need

    run = Path(run_dir)
    record = read_version(run / folder_name(version))
    pretraining = pretraining_of(run, record)
    records = {name: read_record(run / name) for name in SECTIONS if (run / name / RECORD).is_file()}
    for name in ("tokenizer", "v0.0"):
        if name not in records:
            raise InputError(f"{run / name / RECORD} is missing, and the model card needs it")
    _check_vocabulary(run, version)
    losses = pretraining["facts"]["validation_losses"]
    if record["metrics"].get("eval_loss") is None or str(record["last_step"]) not in losses:
        raise InputError(
            f"v{version} has no validation loss, which its model card states: pre-train with eval_strategy=steps"
        )
    common = _common_facts(run, version, repo_id, about, record)
    heads = heads_of(run, version)
    results = [row for task, head in heads.items() if task != JOINT for row in result_rows(head.scores)]
    joint_results = result_rows(heads[JOINT].scores) if JOINT in heads else []
    comparison = _comparison(run, version, [*results, *joint_results], list(heads), about)
    averages = average_results(run, version, about.other_encoders)
    single = [row for row in comparison["compared_results"] if single_model(row["model"]) == row["model"]]
    return {
        **common,
        "phases": record["curriculum"],
        "losses": losses,
        "loss": record["metrics"]["eval_loss"],
        "vocabulary": records["tokenizer"]["facts"],
        "contexts": records.get("contexts", {}).get("facts"),
        "distillation": {**records["v0.0"]["settings"], **records["v0.0"]["facts"]},
        "pretraining": pretraining,
        "decontamination": pretraining["facts"].get("decontamination"),
        "heads": list(heads),
        "chosen": {task: head.chosen for task, head in heads.items() if head.chosen},
        "results": results,
        "joint_results": joint_results,
        **comparison,
        "averages": averages,
        "published": published_table([*single, *results], averages) if averages else "",
        "start": start_of(run, pretraining),
        "recipe": recipe({**records, "pretraining": pretraining}, common["base"]),
        "own_curriculum": own_curriculum(pretraining["settings"]["curriculum"]),
    }


def head_facts(run_dir: str | Path, task: str, version: str, repo_id: str, about: About) -> dict[str, Any]:
    """Return the facts that `head.md` states.

    Raises:
        InputError: a fact is missing, or the version has no head for this task.
    """
    from bioptimus_hf.ner.tasks import NER_TASKS  # loads datasets, which the report doesn't need

    run = Path(run_dir)
    heads = heads_of(run, version)
    head = heads.get(task)
    if head is None:
        raise InputError(f"{run / 'ner'} has no head for {task} on v{version}: run `bioptimus finetune-ner` first")
    tasks = list(tests_of(head.scores[0]))
    for name in tasks:
        if name not in about.ner_licenses:
            raise InputError(
                f"the model card states the licence of the data of {name}: add it", argument="ner_licenses"
            )
    licenses = {name: about.ner_licenses[name] for name in tasks}
    rows = result_rows(head.scores)
    single = [row for name in tasks if task == JOINT and name in heads for row in result_rows(heads[name].scores)]
    record = read_version(run / folder_name(version))
    config = read_json(head.folder / "config.json")
    settings = head.record["settings"]
    return {
        **_common_facts(run, version, repo_id, about, record),
        "task": task,
        "tasks": tasks,
        "own_tasks": [name for name in tasks if name not in NER_TASKS],
        "joint": task == JOINT,
        "encoder": repo_id.removesuffix(f"-{task}"),
        "example": _example(head.folder, tasks[0]),
        "labels": sorted({label.partition("-")[2] for label in config["label2id"]} - {""}),
        "rows": rows,
        "scores": [
            {"seed": score["seed"], "task": name, "test": test}
            for score in head.scores
            for name, test in tests_of(score).items()
        ],
        "seed": settings["seed"],
        "finetuning": head.record,
        "options": {
            name: " ".join(map(str, head.grid.get(name, [value])))
            for name, value in settings.items()
            if name not in {*NOT_OPTIONS, "seed"}
        },
        "chosen": head.chosen,
        "ner_license": "; ".join(f"{name}: {terms}" if task == JOINT else terms for name, terms in licenses.items()),
        "min_score": config.get(MIN_SCORE),
        "sentence_window": config.get(SENTENCE_WINDOW),
        "document_window": config.get(DOCUMENT_WINDOW),
        "punctuation_in_words": config.get(PUNCTUATION_IN_WORDS),
        "decontamination": pretraining_of(run, record)["facts"].get("decontamination"),
        "excluded": sum(head.record["facts"].get("excluded", {}).values()),
        **_comparison(run, version, rows, [task], about),
        "averages": [],
        "single_results": single,
    }


def _example(folder: Path, task: str) -> str | None:
    """Return a sentence of a public test set whose mentions a head finds; other texts may be confidential."""
    from bioptimus_hf.ner.tasks import NER_TASKS  # loads datasets, which the report doesn't need

    name = predictions_file(task) if folder.parts[-3] == JOINT else "predictions.tsv"
    if task not in NER_TASKS or not (folder / name).is_file():
        return None
    for block in (folder / name).read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines()]
        if (
            len(rows) in _LENGTHS
            and all(gold == found for _, gold, found in rows)
            and any(tag != "O" for *_, tag in rows)
        ):
            return " ".join(token for token, *_ in rows)
    return None


def _comparison(
    run: Path, version: str, own: Sequence[Mapping[str, Any]], tasks: Sequence[str], about: About
) -> dict[str, Any]:
    """Return the facts that compare the heads of a version with those of other encoders.

    Args:
        own: result rows of the version.
        tasks: names of their tasks, and `joint` for joint heads.
    """

    def kind(row: Mapping[str, Any]) -> tuple[str, bool]:
        return row["task"], single_model(row["model"]) != row["model"]

    rows = [row for row in compared_results(run, about.other_encoders) if kind(row) in set(map(kind, own))]
    labels = {single_model(row["model"]) for row in rows}
    return {
        "compared_results": rows,
        "other_encoders": {label: what for label, what in about.other_encoders.items() if label in labels},
        "differences": differences(run, version, tasks, about.other_encoders),
    }


def _check_vocabulary(run: Path, version: str) -> None:
    own, made = run / folder_name(version) / "vocab.txt", run / "tokenizer" / "vocab.txt"
    if not (own.is_file() and made.is_file() and own.read_bytes() == made.read_bytes()):
        raise InputError(f"{own} differs from {made}: the version was made with another vocabulary")


def _common_facts(run: Path, version: str, repo_id: str, about: About, record: Mapping[str, Any]) -> dict[str, Any]:
    folder = run / folder_name(version)
    return {
        "about": about,
        "base": base_of(read_record(run / "tokenizer"), about),
        "repo_id": repo_id,
        "name": repo_id.partition("/")[2],
        "version": version,
        "tag": folder_name(version),
        "masking": record["masking"],
        "max_length": read_json(folder / "config.json")["max_position_embeddings"],
        "mask_token": read_json(folder / "tokenizer_config.json")["mask_token"],
    }
