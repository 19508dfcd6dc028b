"""Provide `scores.entity_scores` as a metric for `evaluate`, loaded by path and without a network.

import evaluate
from importlib import resources

metric = evaluate.load(str(resources.files("bioptimus_hf.ner") / "entity_f1.py"))
metric.compute(predictions=[["B-Chemical", "O"]], references=[["B-Chemical", "O"]])
metric.compute(predictions=[["B", "O"]], references=[["B", "O"]], merged_type="Chemical")
"""

from __future__ import annotations

import datasets
import evaluate

from bioptimus_hf.ner.scores import entity_scores


class EntityF1(evaluate.Metric):
    """Strict IOB2 precision, recall and F1 of entities, overall and by type, and those of conlleval."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=self.__class__.__doc__,
            citation="",
            inputs_description="predictions and references: the tags (O, B-<type>, I-<type>) of each sentence, also "
            "in IOBES or BILOU, or without types; merged_type: count all types as this one.",
            features=datasets.Features(predictions=tags, references=tags),
        )

    def _compute(
        self, predictions: list[list[str]], references: list[list[str]], merged_type: str | None = None
    ) -> dict[str, float]:
        return entity_scores(references, predictions, merged_type=merged_type)
