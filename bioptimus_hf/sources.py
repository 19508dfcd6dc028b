"""Models and data that may be a folder or a name on the Hub, maybe with `@revision`: found, fetched, identified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]

from bioptimus_hf.artifacts import MADE, InputError, identity, read_made

# What a model is read from. Published folders may hold other things, such as the state of an optimizer.
_CONFIGURATION = ("config.json", "vocab.txt", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json")
_SAFE = ("model*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # which transformers unpickles as mere tensors

_TOKEN_CLASSIFIER = "ForTokenClassification"  # ends the name of every such class of transformers

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


def base_of_run(run: str | Path, given: str | None = None) -> Source:
    """Find the model that a run adapts.

    Args:
        run: folder of the run, whose `tokenizer` records it.
        given: folder or Hub name, as for `find_model`; by default the recorded one.

    Raises:
        InputError: the run records no model and none is given; or the model is not the one that was adapted.
    """
    folder = Path(run) / "tokenizer"
    made: dict[str, Any] = read_made(folder) if (folder / MADE).is_file() else {"inputs": {}, "facts": {}}
    adapted = made["inputs"].get("base_model")
    kind, _, name = str(adapted).partition(":")
    recorded = made["facts"].get("base_model") or (name if kind == "name" else None)
    if not (given or recorded):
        raise InputError(f"{folder} does not record the base model of the run: name it with --base_model")
    source = find_model(str(given or recorded))
    if adapted and source.identity != adapted:
        raise InputError(
            f"{given or recorded} is not the model that {folder} was made for"
            + (f", which is {recorded}" if given and recorded else "; it may have changed since: name that one")
            + ("" if given else " with --base_model")
        )
    return source


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


def load_token_classifier(name: str | Path, **arguments: Any) -> Any:
    """Load a token classifier whose weights are all in its files, in float32.

    Args:
        name: folder or Hub name, as for `find_model`.
        arguments: passed on to `from_pretrained`.

    Raises:
        InputError: there is no such model; it is another kind of model, whose classifier transformers would initialise
            at random; or some weights are missing, of another shape, or not finite.
    """
    import torch  # here, since what reads text alone does not need it
    from transformers import AutoModelForTokenClassification

    model, loaded = load_by_name(
        AutoModelForTokenClassification,
        name,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # reported below
        output_loading_info=True,
        **arguments,
    )
    check_token_classifier(name, model)
    saved_as = model.config.architectures or []
    keys = sorted([*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])])
    # Heads of other tasks may carry the same names: a sequence classifier's loads without a missing weight.
    if keys or not all(kind.endswith(_TOKEN_CLASSIFIER) for kind in saved_as):
        lacks = f", and lacks weights of one ({', '.join(keys[:3])})" if keys else ""
        raise InputError(
            f"{name} was saved as {', '.join(saved_as) or 'an unknown kind of model'}, not as a trained token "
            f"classifier{lacks}: give a NER head; an encoder has to be fine-tuned first"
        )
    return model


def check_token_classifier(name: str | Path, model: Any) -> None:
    """Refuse a model that cannot label tokens, or whose weights are NaN or infinite.

    Args:
        name: what the error calls the model.

    Raises:
        InputError: it is another kind of model, or a weight is not finite (which one).
    """
    if not any(kind.__name__.endswith(_TOKEN_CLASSIFIER) for kind in type(model).__mro__):
        raise InputError(f"{name} is a {type(model).__name__}, not a token classifier: give a fine-tuned NER head")
    check_finite(model.state_dict().items(), f"{name}: its training diverged; give another head, or train it again")


def check_finite(weights: Iterable[tuple[str, Any]], advice: str) -> None:
    """Refuse weights that contain NaN or infinity.

    Args:
        weights: names and tensors.
        advice: follows the name of the weight in the error.

    Raises:
        InputError: some weight is not finite.
    """
    for name, values in weights:
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise InputError(f"{name} contains NaN or infinity. {advice}")


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
