"""Hold published F1 on the five BLURB tasks, with source and protocol, for comparison with our own results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bioptimus_hf.ner.tasks import BLURB_NER


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Attributes:
        model: name in the source.
        f1: entity F1 of tasks in `BLURB_NER`, in percent as printed.
        source: the table.
        protocol: what the source says about seeds and standard deviations.
        counting: what entities are counted in: `WORDS`, `PIECES` or `NOT_STATED`.
    """

    model: str
    f1: Mapping[str, str]
    source: str
    protocol: str
    counting: str


WORDS, PIECES, NOT_STATED = "words", "word pieces", "not stated"


def _rows(source: str, protocol: str, figures: Mapping[str, str], counting: str = NOT_STATED) -> tuple[Published, ...]:
    """Return rows with the figures of the five tasks; `-` is one that we couldn't look up."""
    rows = {model: zip(BLURB_NER, row.split(), strict=True) for model, row in figures.items()}
    return tuple(
        Published(model, {task: f1 for task, f1 in row if f1 != "-"}, source, protocol, counting)
        for model, row in rows.items()
    )


PUBLISHED = (
    *_rows(
        "arXiv 2308.08625, table 5",
        "seeds and standard deviation not given",
        {
            "BIOptimus v0.1": "93.52 83.41 88.44 83.53 78.71",
            "BIOptimus v0.2": "93.87 83.43 87.99 84.16 79.12",
            "BIOptimus v0.3": "93.70 85.06 88.17 84.54 79.28",
            "BIOptimus v0.4": "94.10 84.98 89.54 85.25 79.46",
        },
    ),
    # Other tables have 80.06 for PubMedBERT on JNLPBA, and other figures for other models: never mix the two versions.
    *_rows(
        "arXiv 2007.15779, table 6",
        "mean of 5 seeds",
        {
            "BERT-base uncased": "89.25 81.44 85.67 80.90 77.69",
            "RoBERTa-base": "89.43 80.65 86.62 80.90 77.86",
            "ClinicalBERT": "90.80 83.04 86.32 81.71 78.07",
            "BlueBERT": "91.19 83.69 88.04 81.87 77.71",
            "SciBERT uncased": "92.49 84.54 88.10 83.36 78.68",
            "BioBERT v1.1": "92.85 84.70 89.13 83.82 78.55",
            "PubMedBERT": "93.33 85.62 87.82 84.52 79.10",
        },
    ),
    *_rows(
        "arXiv 2405.10725, table 4",
        "mean of 10 seeds, standard deviation 0.1 to 0.6",
        {
            "PubMedBERT, rerun": "93.2 85.4 88.2 84.3 79.3",
            "BioLinkBERT-base, rerun": "93.3 85.3 88.2 84.7 78.9",
            "INDUS-base": "93.3 85.2 88.3 84.0 80.3",
            "INDUS-small": "90.7 81.3 85.6 79.7 75.7",
            "MiniLM, 6 layers": "86.1 77.4 83.1 77.1 73.4",
            "TinyBERT, 4 layers": "84.6 74.0 81.2 74.7 70.3",
        },
    ),
    # Their published code (ner.py) gives each word piece the tag of its word and scores the pieces with seqeval.
    *_rows(
        "arXiv 2209.03182, as listed by Papers with Code",
        "one seed",
        {
            "CompactBioBERT, 6 layers": "94.31 - - 86.71 -",
            "DistilBioBERT, 6 layers": "- - - 86.60 -",
            "BioDistilBERT": "- - - 86.97 -",
            "BioMobileBERT": "- - - 85.26 -",
        },
        PIECES,
    ),
)
"""Copied from the named tables. None of them names its scorer, so we compare our conlleval F1 with them."""
