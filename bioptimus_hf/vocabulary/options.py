"""Options for training a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bioptimus_hf.errors import InputError


@dataclass(frozen=True)
class VocabularyOptions:
    """How the vocabulary is trained."""

    base_model: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "Model to adapt: local folder or name on the Hub", "path": True},
    )
    size: int = field(default=30522, metadata={"help": "Tokens in the vocabulary"})
    policy: Literal["replace", "extend"] = field(
        default="replace",
        metadata={
            "help": "Train a new vocabulary (the paper), or keep the base's tokens with their ids and add the words "
            "that save the most pieces"
        },
    )
    min_frequency: int = field(
        default=2,
        metadata={
            "help": "Minimum count of a pair to be merged, of a character to be in the alphabet, or of a "
            "word to be added"
        },
    )

    def __post_init__(self) -> None:
        for name in ("size", "min_frequency"):
            if getattr(self, name) < 1:
                raise InputError(f"must be at least 1, not {getattr(self, name)}", argument=name)
