"""Define the options of the distillation stage and of token distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError

Initializer = Literal["random", "subtoken_mean", "contextual_mean", "contextual_mean_scaled", "token_distillation"]
INITIALIZERS: tuple[Initializer, ...] = get_args(Initializer)
FROM_CONTEXTS: tuple[Initializer, ...] = INITIALIZERS[2:]
"""Initializers that need contexts of the new tokens."""


@check_call()
@dataclass(frozen=True)
class RowTraining:
    """How `distill_tokens` trains the rows of new tokens.

    Attributes:
        max_tokens: maximum number of tokens to train; None for all.
        layer: layer whose hidden states must match; 0 is the output of the embeddings, -1 the last layer.
        seed: seed for the choice and order of each token's contexts.
        bf16: whether to multiply matrices in bfloat16, which is faster on processors that support it.
    """

    max_tokens: int | None = None
    layer: int = -1
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"must be at least 1, not {self.max_tokens}", argument="max_tokens")


@check_call()
@dataclass(frozen=True)
class DistillationOptions:
    """How the embeddings of new tokens are made."""

    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Model to adapt: local folder or name on the Hub; default: the base model of the run's tokenizer",
            "path": True,
        },
    )
    initializer: Initializer = field(
        default="contextual_mean_scaled",
        metadata={
            "help": "How to initialise new tokens: contextual_mean, the mean of the base model's hidden states over "
            "their contexts (the paper); contextual_mean_scaled, the same, scaled to the embedding table; "
            "token_distillation, trained until the base model's states match those with the token's pieces (a few "
            "tokens a second on a CPU); subtoken_mean, the mean of the embeddings of their pieces; or random, noise "
            "with the table's mean and standard deviation"
        },
    )
    layer: int = field(
        default=-1,
        metadata={"help": "Layer whose hidden states are used: -1 is the last one, 0 the output of the embeddings"},
    )
    max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of new tokens to train (token_distillation only), in the order of the vocabulary; "
            "the others start from the mean of the embeddings of their pieces"
        },
    )
    batch_size: int = field(default=64, metadata={"help": "Sentences per batch (contextual means only)"})
    bf16: bool = field(
        default=False, metadata={"help": "Compute in bfloat16, which is faster on processors that support it"}
    )

    def __post_init__(self) -> None:
        if self.initializer not in INITIALIZERS:
            raise InputError(f"{self.initializer!r} is not one of {', '.join(INITIALIZERS)}", argument="initializer")
        if self.max_tokens is not None and self.initializer != "token_distillation":
            raise InputError("only the initializer token_distillation trains tokens", argument="max_tokens")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"must be at least 1, not {self.max_tokens}", argument="max_tokens")
        if self.batch_size < 1:
            raise InputError(f"must be at least 1, not {self.batch_size}", argument="batch_size")
