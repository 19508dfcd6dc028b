"""Models and data that may be a folder or a name on the Hub, maybe with `@revision`: found, fetched, identified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]

from bioptimus_hf.artifacts import InputError, identity

# What a model is read from. Published folders may hold other things, such as the state of an optimizer.
_CONFIGURATION = ("config.json", "vocab.txt", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json")
_SAFE = ("model*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # which transformers unpickles as mere tensors

UNREADABLE = (OSError, ValueError, UnpicklingError)
"""What transformers raises for a folder that does not hold what is wanted."""


@dataclass(frozen=True)
class Source:
    """A model or data, wherever it was asked for.

    Attributes:
        folder: where its files are on this machine.
        commit: that it is of, as `name@commit`; None for a folder.
    """

    folder: str
    commit: str | None = None

    @property
    def identity(self) -> str:
        """What makes it itself, for `artifacts`."""
        return identity(self.commit or self.folder)


def find_model(name: str | Path) -> Source:
    """Find a model, and fetch what is missing of it: its configuration, its tokenizer and one form of its weights.

    Args:
        name: a folder, or a name on the Hub: `owner/name` or `owner/name@revision` (a branch, a tag, a commit). With
            HF_HUB_OFFLINE=1, or without a network, it is what the cache holds.

    Raises:
        InputError: it is neither.
    """
    if Path(name).exists():
        return Source(str(name))
    found = _fetched(str(name), "model", (*_CONFIGURATION, *_SAFE))
    if not any(Path(found.folder).glob(_SAFE[0])):
        found = _fetched(str(name), "model", (*_CONFIGURATION, *_PICKLED))
    return found


def load_by_name(kind: Any, name: str | Path, **arguments: Any) -> Any:
    """Load a model or tokenizer (`kind.from_pretrained`) from a folder or by its name on the Hub (`name@revision`).

    Raises:
        InputError: it cannot be had, or is not of this kind.
    """
    from transformers import PreTrainedTokenizerBase  # here, since what reads text alone does not need it

    folder = find_model(name).folder
    try:
        loaded = kind.from_pretrained(folder, **arguments)
    except UNREADABLE as error:
        raise _not_had(str(name), "a model", error) from error
    # Without its files, transformers makes a tokenizer of the special tokens alone, and says nothing.
    if isinstance(loaded, PreTrainedTokenizerBase) and len(loaded) <= len(loaded.all_special_tokens):
        raise InputError(f"{name} holds no vocabulary: give a folder with tokenizer.json or vocab.txt, or a Hub name")
    return loaded


def why(error: Exception) -> str:
    """Return in a line why something cannot be read."""
    if isinstance(error, UnpicklingError):  # whose message tells how to read it nevertheless
        return "its weights are no mere tensors, and might run code when they are read"
    return " ".join(str(error).split())[:200]


def find_files(name: str | Path, patterns: Sequence[str]) -> Source:
    """Find a folder of data, and fetch what is missing of it.

    Args:
        name: a folder, or the name of a data set on the Hub, as for `find_model`.
        patterns: of the files that are wanted.

    Raises:
        InputError: it is neither.
    """
    if Path(name).exists():
        return Source(str(name))
    return _fetched(str(name), "dataset", patterns)


def split_revision(name: str) -> tuple[str, str | None]:
    """Return a name on the Hub, and the revision that may stand behind it."""
    name, _, revision = name.partition("@")
    return name, revision or None


def _fetched(given: str, kind: str, patterns: Sequence[str]) -> Source:
    name, revision = split_revision(given)
    try:
        folder = snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(patterns))
    except (HFValidationError, HfHubHTTPError, HTTPError, OSError) as error:
        raise _not_had(given, "a model" if kind == "model" else "data", error) from error
    return Source(folder, f"{name}@{Path(folder).name}")


def _not_had(given: str, what: str, error: Exception) -> InputError:
    return InputError(f"{given}: neither a folder of {what} nor one to be had from the Hub ({why(error)})")
