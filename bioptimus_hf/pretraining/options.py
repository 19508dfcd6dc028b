"""Define the options of pre-training that aren't options of the Trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError


@check_call()
@dataclass(frozen=True)
class PretrainingOptions:
    """What is trained, and on what."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Model to start from: folder, or name on the Hub (name@revision); default: OUTPUT_DIR/v0.0",
            "path": True,
        },
    )
    max_length: int = field(default=128, metadata={"help": "Tokens per block of text"})
    curriculum: str | None = field(
        default=None,
        metadata={
            "help": "YAML list of phases with version, unit, rate, corrupt, share and, for a rate that changes within "
            "the phase, last_rate; default: the four published phases",
            "path": True,
        },
    )
    phases: list[str] | None = field(
        default=None,
        metadata={
            "help": "Run only the phases of these versions, with shares rescaled to add up to 1; usually together with "
            "model OUTPUT_DIR/v<the version before>. This is a separate run, not the rest of a longer one"
        },
    )
    decontaminate: str | None = field(
        default=None,
        metadata={
            "help": "Folder, or data set on the Hub, of NER sets: drop documents that contain a sentence of any "
            "test set in it (test.tsv, or another ending of CoNLL files)",
            "path": True,
        },
    )
    dropout: float = field(
        default=0.0, metadata={"help": "Dropout during training; saved models keep the model's own value"}
    )

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise InputError(f"must be at least 8, not {self.max_length}", argument="max_length")
        if not 0 <= self.dropout < 1:
            raise InputError(f"must be at least 0 and below 1, not {self.dropout}", argument="dropout")
        if self.phases is not None and not self.phases:
            raise InputError("name at least one version", argument="phases")
