"""Fill model cards with facts that a run recorded. A missing fact is an error, never an empty line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.results import difference_and_interval, mean_and_standard_deviation
from bioptimus_hf.ner.scores import LENIENT_SCORER, SCORER
from bioptimus_hf.publishing.options import About


def encoder_card(facts: Mapping[str, Any]) -> str:
    """Return the model card of an encoder.

    Args:
        facts: from `facts.encoder_facts`.

    Raises:
        InputError: a fact that the card states is missing.
    """
    loss = EvalResult(
        task_type="fill-mask",
        dataset_type="held-out",
        dataset_name="documents held out of the pre-training text",
        metric_type="loss",
        metric_name="validation loss (nats, fixed masks)",
        metric_value=round(facts["loss"], 3),
    )
    scores = [
        result
        for row in facts["results"]
        for result in _eval_results(row, facts["about"], " of heads fine-tuned on this encoder")
    ]
    return _card(
        "encoder.md",
        facts,
        [loss, *scores],
        datasets=None,
        tags=["masked-lm", "domain-adaptation"],
        pipeline_tag="fill-mask",
        base_model=facts["base"]["name"],
    )


def head_card(facts: Mapping[str, Any]) -> str:
    """Return the model card of a NER head.

    Args:
        facts: from `facts.head_facts`.

    Raises:
        InputError: a fact that the card states is missing.
    """
    datasets = [_dataset_of(task, facts["about"])[0] for task in facts["tasks"]]
    return _card(
        "head.md",
        facts,
        [result for row in facts["rows"] for result in _eval_results(row, facts["about"])],
        datasets=list(dict.fromkeys(filter(None, datasets))) or None,
        tags=["named-entity-recognition"],
        pipeline_tag="token-classification",
        base_model=facts["encoder"],
        base_model_relation="finetune",
        base_model_revision=facts["tag"],
    )


def evaluation_entries(rows: Sequence[Mapping[str, Any]], about: About) -> dict[str, list[dict[str, Any]]]:
    """Return the content of `.eval_results/<task>.yaml` for each task: the Hub's newer format for results.

    The format only allows data sets on the Hub. Results of other tasks appear in the card's `model-index` alone.
    """
    entries = {}
    for row in rows:
        dataset, configuration = _dataset_of(row["task"], about)
        if dataset:
            entry = EvalResultEntry(
                dataset_id=dataset,
                task_id=configuration or row["task"],
                value=_rounded_mean(row["f1"]),
                notes=f"strict entity F1, mean over the seeds {', '.join(map(str, row['seeds']))}; {SCORER}",
            )
            entries[row["task"]] = eval_result_entries_to_yaml([entry])
    return entries


def render(template: str, facts: Mapping[str, Any]) -> str:
    """Fill a template of the folder `model_card`.

    Raises:
        InputError: a fact that the template states is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bioptimus_hf.model_card", ""),
        undefined=jinja2.StrictUndefined,  # by default Jinja renders a missing fact as nothing
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": _percent,
        "count": _count,
        "mean_and_standard_deviation": mean_and_standard_deviation,
        "difference": difference_and_interval,
        "duration": _duration,
        "machine": _machine,
        "clause": _clause,
        "listed": _listed,
    }
    try:
        return environment.get_template(template).render(facts)
    except jinja2.UndefinedError as error:
        raise InputError(
            f"the model card {template} states a fact that the run didn't record: {error.message}"
        ) from error


def _card(
    template: str, facts: Mapping[str, Any], results: list[EvalResult], *, tags: list[str], **metadata: Any
) -> str:
    about: About = facts["about"]
    data = ModelCardData(
        language=about.language,
        license=about.license,
        library_name="transformers",
        tags=["bioptimus_hf", "curriculum-learning", *tags],
        model_name=f"{facts['name']} {facts['tag']}",
        eval_results=results,
        **metadata,
    )
    body = render(template, {**facts, "scorer": SCORER, "lenient_scorer": LENIENT_SCORER})
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _eval_results(row: Mapping[str, Any], about: About, of: str = "") -> list[EvalResult]:
    dataset, configuration = _dataset_of(row["task"], about)
    result = EvalResult(
        task_type="token-classification",
        dataset_type=dataset or row["task"],
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
            metric_name=f"entity {metric}{of}, strict, mean over seeds",
            metric_value=_rounded_mean(row[metric]),
        )
        for metric in ("f1", "precision", "recall")
    ]


def _dataset_of(task: str, about: About) -> tuple[str, str]:
    """Return name and configuration of a task's data set on the Hub; both are empty if there is none."""
    name, _, configuration = about.ner_datasets.get(task, "").partition(":")
    return name, configuration


def _rounded_mean(values: Mapping[str, float]) -> float:
    return round(values["mean"], 4)  # as many digits as the tables show


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _clause(text: str) -> str:
    """Return a text that a person gave as one line without a full stop, since the sentence goes on after it."""
    return " ".join(text.split()).removesuffix(".")


def _listed(items: Sequence[str], last: str = "and") -> str:
    """Return items as a sentence lists them: `A`, `A and B`, `A, B and C`.

    Args:
        items: what is listed.
        last: the word before the last one.
    """
    return f" {last} ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def _machine(hardware: Mapping[str, Any]) -> str:
    accelerators = hardware["accelerators"]
    host = f"{hardware['cores']} cores of {hardware['cpu']}"
    return f"{len(accelerators)} x {accelerators[0]} with {host}" if accelerators else host
