"""Define the options of the vocabulary stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError

Policy = Literal["replace", "extend"]


@check_call()
@dataclass(frozen=True)
class VocabularyOptions:
    """How the vocabulary is trained."""

    base_model: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "Model to adapt: local folder or name on the Hub", "path": True},
    )
    size: int = field(default=30522, metadata={"help": "Tokens in the vocabulary"})
    policy: Policy = field(
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
        if self.policy not in get_args(Policy):
            raise InputError(f"{self.policy!r} is not one of {', '.join(get_args(Policy))}", argument="policy")
        for name in ("size", "min_frequency"):
            if getattr(self, name) < 1:
                raise InputError(f"must be at least 1, not {getattr(self, name)}", argument=name)
            if getattr(self, name) >= 2**31:
                raise InputError(f"must be below {2**31}, not {getattr(self, name)}", argument=name)
