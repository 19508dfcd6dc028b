"""Models and data that may be a folder or a name on the Hub, maybe with `@revision`: found, fetched, identified."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from bioptimus_hf.artifacts import MADE, identity, read_made, write_json
from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

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


def new_head(base: str | Path, labels: Sequence[str], *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Put a new linear head on an encoder; the same seed gives the same head.

    Args:
        base: folder or Hub name (`name@revision`) of a BERT, with or without another head (which is dropped).
        labels: names of the tags, in the order of their ids.

    Returns:
        A `BertForTokenClassification` in float32 and its tokenizer.

    Raises:
        InputError: there is no such model, it is no BERT, or a weight of it is missing or not finite.
    """
    set_seed(seed)
    try:
        folder = find_model(base).folder
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, loaded = AutoModelForTokenClassification.from_pretrained(
            folder,
            id2label=dict(enumerate(labels)),
            label2id={name: number for number, name in enumerate(labels)},
            dtype=torch.float32,  # by default that of the file, and half precision trains badly
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except UNREADABLE as error:
        raise InputError(f"{base} cannot be loaded as a BertForTokenClassification ({why(error)})") from error
    if not isinstance(model, BertForTokenClassification):
        raise InputError(f"{base} is a {model.config.model_type} model: give a BERT")
    wrong = [f"{name} has another shape" for name, *_ in loaded["mismatched_keys"]]
    wrong += [f"{name} is missing" for name in sorted(loaded["missing_keys"])]
    if wrong := [what for what in wrong if not what.startswith("classifier.")]:
        raise InputError(f"{base} cannot be loaded as a BertForTokenClassification ({wrong[0]})")
    check_finite(model.named_parameters(), f"{base} is not usable: give another model to fine-tune")
    if "classifier.weight" not in loaded["missing_keys"]:  # one of its own, of another task or of another size
        set_seed(seed)
        torch.nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
        torch.nn.init.zeros_(model.classifier.bias)
    return model, tokenizer


def save_head(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a model and its tokenizer so that `pipeline("ner", model=folder)` needs nothing else."""
    model.save_pretrained(folder)
    tokenizer.model_max_length = min(MAX_LENGTH, model.config.max_position_embeddings)
    save_tokenizer(tokenizer, folder)


MAX_LENGTH = 512  # where the base names no limit, BERT's own; v5 would save 1e30, and long texts crash pipelines


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a tokenizer so that `AutoTokenizer` of transformers 4 and 5 loads it.

    transformers 5 no longer writes `vocab.txt`, and its empty list of extra special tokens is an error in version 4.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for how_it_was_loaded in ("is_local", "local_files_only"):  # which transformers would save with it
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("extra_special_tokens") == []:
        del config["extra_special_tokens"]
        write_json(path, config)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens_in_order(tokenizer)), encoding="utf-8")


def tokens_in_order(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return all tokens in the order of their ids, so that a token's place is its id.

    Raises:
        InputError: no token has some id below the largest.
    """
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if tokens and vocabulary[tokens[-1]] != len(tokens) - 1:
        raise InputError(
            f"{type(tokenizer).__name__} has holes in its ids: {len(tokens)} tokens up to id "
            f"{vocabulary[tokens[-1]]}; give a tokenizer that numbers its tokens without gaps"
        )
    return tokens


def load_masked_lm(name: str, *, kind: type[BertForMaskedLM] = BertForMaskedLM, seed: int = 0) -> tuple[Any, list[str]]:
    """Load a base model with a masked-LM head, in float32.

    A model without such a head (a sentence encoder, say) gets a new one: BERT's own initialisation, drawn from `seed`.

    Args:
        name: folder, or name on the Hub, as `sources.find_model` takes it.
        kind: `BertForMaskedLM` or a subclass of it.

    Returns:
        The model, and the names of the weights that it had to make up.

    Raises:
        InputError: there is no such model, it is no BERT, or a weight of it is missing or not finite.
    """
    set_seed(seed)
    try:
        folder = find_model(name).folder
        model_type = AutoConfig.from_pretrained(folder).model_type
        if model_type == "bert":
            # By default the dtype of the file would be kept, and half precision trains badly.
            model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except UNREADABLE as error:
        raise InputError(f"{name} cannot be loaded as a BertForMaskedLM ({why(error)})") from error
    if model_type != "bert":
        raise InputError(f"{name} is a {model_type} model, which cannot become a BertForMaskedLM: give a BERT")
    made_up = sorted(info["missing_keys"])
    strange = [key for key in made_up if not key.startswith("cls.")]
    if strange:
        raise InputError(f"{name} lacks weights of a BERT encoder ({', '.join(strange[:3])}): give another base model")
    if made_up:
        logger.warning("%s has no masked-LM head: it gets a new one (%s)", name, ", ".join(made_up))
    check_finite(model.named_parameters(), f"{name} is not usable: give another base model")
    return model, made_up


IGNORED = -100  # label of a position that is not predicted, as everywhere in transformers


def save_masked_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save weights (safetensors; by default those that the model holds) and the whole tokenizer."""
    model.save_pretrained(folder, state_dict=weights)
    save_tokenizer(tokenizer, folder)
