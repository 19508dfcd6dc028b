"""Define the options for finding contexts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError


@check_call()
@dataclass(frozen=True)
class ContextsOptions:
    """Which tokens to search for, and where to run the search."""

    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Model without the new tokens, local folder or name on the Hub; by default the base of the run",
            "path": True,
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer that defines what a word is, local folder or name on the Hub; by default the tokenizer "
            "of the run",
            "path": True,
        },
    )
    words: str | None = field(
        default=None,
        metadata={
            "help": "File with words to search for, one per line; by default the tokens that the base model doesn't "
            "have. A word that is also a token of the tokenizer is found inside longer words too (place|bo)",
            "path": True,
        },
    )
    skip_unusable: bool = field(
        default=False, metadata={"help": "Skip words that can never be found, instead of stopping with an error"}
    )
    jsonl: bool = field(default=False, metadata={"help": "Also write contexts.jsonl, with one JSON object per line"})
    per_token: int = field(
        default=64, metadata={"help": "Maximum number of sentences per token, drawn uniformly at random"}
    )
    engine: Literal["local", "ray"] = field(
        default="local",
        metadata={
            "help": "Run the search in processes of this machine, or with Ray on any number of machines, one task per "
            "file (pip install 'bioptimus-hf[ray]'); doesn't change the result"
        },
    )
    address: str | None = field(
        default=None,
        metadata={
            "help": "Ray cluster to use: host:port, or auto on a machine of the cluster; by default Ray is started on "
            "this machine"
        },
    )

    def __post_init__(self) -> None:
        if self.per_token < 1:
            raise InputError(f"must be at least 1, not {self.per_token}", argument="per_token")
        if self.engine == "local" and self.address is not None:
            raise InputError(f"{self.address} is a Ray cluster, which needs the engine ray", argument="address")
