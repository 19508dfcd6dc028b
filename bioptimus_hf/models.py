"""Find, load, validate and save models and tokenizers, by folder, installed package or name on the Hub.

A name on the Hub is `owner/name` or `owner/name@revision`: a branch, a tag or a commit. PyTorch is
imported only by functions that load weights, since many users of this module read nothing but text.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import PACKAGED, RECORD, identity, moved_revision, read_record, remedy, verify, write_json
from bioptimus_hf.errors import InputError, format_error, lacks_memory
from bioptimus_hf.storage import apply_umask

if TYPE_CHECKING:
    import torch
    from transformers import BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED_LABEL = -100
"""The label of positions that no loss is computed for, as everywhere in transformers."""
MAX_LENGTH = 512
"""The longest input of BERT, for models that state no limit: transformers 5 would save 1e30, which breaks pipelines."""

MIN_SCORE = "min_score"
"""Key in the configuration of a head: the least score of entities that gave the best F1 (see `ner.calibration`)."""

SENTENCE_WINDOW = "sentence_window"
"""Key in the configuration of a head that is trained on single sentences: word pieces in a window, at most."""

DOCUMENT_WINDOW = "document_window"
"""Key in the configuration of a head that is trained with document context: word pieces in a window."""

TAGGING_SCHEME = "tagging_scheme"
"""Key in the configuration of a head: with `IOB2`, an `I-` that doesn't continue an entity isn't one."""
IOB2 = "IOB2"

PUNCTUATION_IN_WORDS = "punctuation_in_words"
"""Key in the configuration of a head: punctuation that is part of words (see `text_words.PunctuationInWords`)."""

HEAD_PACKAGES = "bioptimus_hf.heads"
"""Group of the entry points of installed packages with heads, as `bioptimus package` builds them."""

# The files of a model. Published folders may contain others, such as the state of an optimizer.
_CONFIGURATION = ("config.json", "vocab.txt", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json")
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # transformers unpickles tensors only
_TOKEN_CLASSIFIER = "ForTokenClassification"  # ends the names of such classes in transformers
_OUTPUT_LAYERS = ("classifier", "score")  # what transformers calls the last layer of token classifiers
_STANDARD_DEVIATION = 0.02  # of new weights, for models that state none
_NO_LIMIT = 10**9  # transformers writes 1e30 where no limit is known
# These number positions from the id of the padding token, so that as many positions fewer can be used.
_POSITIONS_AFTER_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
_BERT_SETTINGS = {"clean_text": True, "max_input_chars_per_word": 100}  # the defaults
_HEADS = (
    _TOKEN_CLASSIFIER,
    *("ForSequenceClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForNextSentencePrediction"),
)
_WEIGHTS_OF_HEADS = ("classifier.", "qa_outputs.")
_MANY_SPARE = 1000  # embeddings without a token: a few hundred are common, to make their number divisible
_PACKAGE_NAME = re.compile(r"[a-zA-Z0-9]([\w.-]*[a-zA-Z0-9])?", re.ASCII)
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?")


@dataclass(frozen=True)
class Source:
    """A model or data set that was found.

    Attributes:
        folder: local folder of its files.
        commit: `name@commit` on the Hub; None for a local folder and an installed package.
    """

    folder: str
    commit: str | None = None

    @property
    def identity(self) -> str:
        """The identity of the content, for records."""
        return identity(self.commit or self.folder)

    @property
    def pinned(self) -> str:
        """The name that loads the same content again, even if the revision on the Hub moves in the meantime."""
        return self.commit or self.folder


def is_hub_name(name: str | Path) -> bool:
    """Check whether a string is not a local path and could be a name on the Hub."""
    return not Path(name).exists() and _HUB_NAME.fullmatch(str(name)) is not None


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `name@revision` into name and revision; without a revision, the second value is None."""
    name, _, revision = name.partition("@")
    return name, revision or None


@check_call()
def find_model(name: str | Path) -> Source:
    """Find a model, and download its configuration, tokenizer and weights if they aren't in the cache.

    Args:
        name: local folder, name of an installed package with a head, or name on the Hub: the first of these that
            exists. Offline, or with HF_HUB_OFFLINE=1, the cache is used.

    Raises:
        InputError: neither a local folder nor an installed package nor available on the Hub; or files of the package
            are missing.
    """
    if Path(name).exists():
        return Source(str(name))
    if packaged := _packaged_head(str(name)):
        return Source(str(packaged))
    found = _download(str(name), "model", (*_CONFIGURATION, *_SAFETENSORS))
    if not any(Path(found.folder).glob(_SAFETENSORS[0])):
        found = _download(str(name), "model", (*_CONFIGURATION, *_PICKLED))
    return found


def _packaged_head(name: str) -> Path | None:
    """Return the folder of a head that is installed as a package; None if no package of this name has one."""
    if not _PACKAGE_NAME.fullmatch(name):
        return None
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    for point in package.entry_points.select(group=HEAD_PACKAGES):
        folder = Path(str(package.locate_file(point.module))) / PACKAGED
        if not (folder / RECORD).is_file():
            raise InputError(f"{name}: {folder / RECORD} is missing: {remedy(folder)}")
        return folder
    return None


def find_files(name: str | Path, patterns: Sequence[str]) -> Source:
    """Find a data set, and download files that aren't in the cache.

    Args:
        name: local folder or name on the Hub.
        patterns: of the files to download.

    Raises:
        InputError: neither a local folder nor available on the Hub.
    """
    return Source(str(name)) if Path(name).exists() else _download(str(name), "dataset", patterns)


def base_of_run(run_dir: str | Path, given: str | None = None) -> Source:
    """Find the model that a run adapts.

    Args:
        run_dir: folder of the run, whose `tokenizer` records the base model.
        given: local folder or name on the Hub; default: the recorded one.

    Raises:
        InputError: no model is recorded or given, or it isn't the one that was adapted.
    """
    folder = Path(run_dir) / "tokenizer"
    record: dict[str, Any] = read_record(folder) if (folder / RECORD).is_file() else {"inputs": {}, "facts": {}}
    adapted = record["inputs"].get("base_model")
    kind, _, name = str(adapted).partition(":")
    recorded = record["facts"].get("base_model") or (name if kind == "name" else None)
    if not (given or recorded):
        raise InputError(f"{folder} doesn't record the base model of the run: name it", argument="base_model")
    source = find_model(str(given or recorded))
    if adapted and source.identity != adapted:
        advice = f"name {recorded}" if given and recorded else "it may have changed since: name the original model"
        if moved := moved_revision(str(adapted), source.identity):
            advice = moved
        raise InputError(
            f"{given or recorded} isn't the model that {folder} was made for; {advice}", argument="base_model"
        )
    return source


def load_by_name(kind: Any, name: str | Path, **arguments: Any) -> Any:
    """Load a model or tokenizer with `kind.from_pretrained`.

    Args:
        kind: a class of transformers, such as `AutoTokenizer`.
        name: local folder or name on the Hub.
        arguments: passed to `from_pretrained`.

    Raises:
        InputError: it isn't available, or is of another kind.
    """
    folder = find_model(name).folder
    with _one_line(lambda error: _unavailable(str(name), "model", error)):
        loaded = kind.from_pretrained(folder, **arguments)
    # Without its files, transformers silently makes a tokenizer of the special tokens alone.
    if isinstance(loaded, transformers.PreTrainedTokenizerBase) and len(loaded) <= len(loaded.all_special_tokens):
        raise InputError(
            f"{name} has no vocabulary: give a folder with tokenizer.json or vocab.txt, or a name on the Hub"
        )
    if isinstance(loaded, transformers.BertTokenizer):
        _restore_settings(loaded, Path(folder) / "tokenizer.json")
    return loaded


def check_bert(name: str | Path, *, length: int = 0) -> Any:
    """Check that a model is a BERT with weights, without loading them, and return its configuration.

    Args:
        name: local folder or name on the Hub.
        length: number of tokens that it must be able to read at once.

    Raises:
        InputError: it isn't available, isn't a BERT, was fine-tuned for a task, has no weights or damaged files, or has
            too few positions.
    """
    folder = Path(find_model(name).folder)
    verify(folder)  # it may be a version of another run
    with _one_line(lambda error: _unavailable(str(name), "model", error)):
        config = transformers.AutoConfig.from_pretrained(folder)
        _check_type(name, config)
        check_encoder(name, config)
        files = [file for pattern in (*_SAFETENSORS, *_PICKLED) for file in folder.glob(pattern)]
        for file in files:
            if file.suffix == ".safetensors":
                with safe_open(file, "np") as weights:  # compares the size of the file with its header
                    _check_weights_of_encoder(name, config, weights.keys())
    if not files:
        raise InputError(f"{name} has no weights: give a folder with model.safetensors, or a name on the Hub")
    if length > config.max_position_embeddings:
        raise InputError(
            f"{name} reads {config.max_position_embeddings} tokens at once, not {length}", argument="max_length"
        )
    return config


def check_base(name: str | Path) -> Any:
    """Check that a model can become what a run makes of it, without loading it, and return its configuration.

    Args:
        name: local folder or name on the Hub.

    Raises:
        InputError: as for `check_bert`, or it doesn't tie its output embeddings to its input embeddings.
    """
    config = check_bert(name)
    if not config.tie_word_embeddings:
        raise InputError(f"{name} doesn't tie its output embeddings to its input embeddings: give a tied BERT")
    return config


@check_call()
def load_masked_lm(
    name: str | Path, *, kind: type[BertForMaskedLM] | None = None, seed: int = 0
) -> tuple[Any, list[str]]:
    """Load a BERT with a masked-LM head, in float32.

    A model without such a head, for instance a sentence encoder, gets a new one, initialised from `seed`. The caller's
    random state stays as it is.

    Args:
        name: local folder or name on the Hub.
        kind: `BertForMaskedLM` (the default) or a subclass.

    Returns:
        The model, and the names of the weights that were newly initialised.

    Raises:
        InputError: the model isn't available, isn't a BERT or was fine-tuned for a task, or a weight of the encoder is
            missing or not finite.
    """
    import torch

    folder = find_model(name).folder
    with _one_line(lambda error: _not_loaded(name, "BertForMaskedLM", error)):
        config = transformers.AutoConfig.from_pretrained(folder)
        _check_type(name, config)
        check_encoder(name, config)
        with _random_state(seed):
            # Without a dtype, transformers would keep that of the file, and half precision trains badly.
            model, info = (kind or transformers.BertForMaskedLM).from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
    _check_weights_of_encoder(name, config, info["unexpected_keys"])
    initialised = sorted(info["missing_keys"])
    missing = [key for key in initialised if not key.startswith("cls.")]
    if missing:
        raise InputError(f"{name} lacks weights of a BERT encoder ({', '.join(missing[:3])}): give another base model")
    if initialised:
        logger.warning("%s has no masked-LM head, a new one is initialised (%s)", name, ", ".join(initialised))
    check_finite(model.named_parameters(), name, "give another base model")
    return model, initialised


@check_call()
def new_head(base: str | Path, labels: Sequence[str], *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Put a new linear token-classification head on an encoder; the same seed gives the same head.

    The caller's random state stays as it is.

    Args:
        base: local folder or name on the Hub of any encoder that transformers has token classifiers for. A head of
            another task is replaced, with a warning: its encoder has been fine-tuned.
        labels: names of the tags, in the order of their ids.

    Returns:
        A token classifier in float32, and its tokenizer, which encodes each word as if it followed a blank.

    Raises:
        InputError: the model isn't available, there are no token classifiers of its kind, it has no fast tokenizer or
            one with more tokens than it has embeddings, or a weight of the encoder is missing or not finite.
    """
    import torch

    folder = find_model(base).folder
    with _one_line(lambda error: _not_loaded(base, "token classifier", error)):
        check_can_label_tokens(base)
        tokenizer = _load_word_tokenizer(folder)
        with _random_state(seed):
            model, info = transformers.AutoModelForTokenClassification.from_pretrained(
                folder,
                id2label=dict(enumerate(labels)),
                label2id={name: number for number, name in enumerate(labels)},
                dtype=torch.float32,  # as in load_masked_lm
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    wrong = [f"{name} has another shape" for name, *_ in info["mismatched_keys"]]
    wrong += [f"{name} is missing" for name in sorted(info["missing_keys"])]
    if wrong := [problem for problem in wrong if problem.startswith(f"{model.base_model_prefix}.")]:
        raise InputError(f"{base} can't be loaded as a {type(model).__name__} ({wrong[0]})")
    check_finite(model.named_parameters(), base, "give another model to fine-tune")
    check_tokenizer(tokenizer, model.config, name=str(base))
    name, output = next((name, getattr(model, name)) for name in _OUTPUT_LAYERS if hasattr(model, name))
    if f"{name}.weight" not in info["missing_keys"]:  # the head of another task, of any size
        logger.warning("%s has the head of another task, which is replaced; its encoder was fine-tuned for it", base)
        with _random_state(seed):
            torch.nn.init.normal_(output.weight, std=getattr(model.config, "initializer_range", _STANDARD_DEVIATION))
        if output.bias is not None:
            torch.nn.init.zeros_(output.bias)
    # The encoder may have been saved from another head.
    for of_other_head in (MIN_SCORE, SENTENCE_WINDOW, DOCUMENT_WINDOW, TAGGING_SCHEME, PUNCTUATION_IN_WORDS):
        vars(model.config).pop(of_other_head, None)
    if tokenizer.pad_token_id is None:  # as in GPT-2
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def check_can_label_tokens(name: str | Path) -> Any:
    """Check that transformers has token classifiers of a model's kind, and return its configuration.

    Args:
        name: local folder or name on the Hub.

    Raises:
        InputError: it isn't available, or there are none.
    """
    folder = find_model(name).folder
    with _one_line(lambda error: _unavailable(str(name), "model", error)):
        config = transformers.AutoConfig.from_pretrained(folder)
    if type(config) not in transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise InputError(f"{name} is a {config.model_type} model, which can't label tokens: give an encoder")
    return config


def longest_input(config: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Return how many tokens a model reads at once, including those that begin and end a text.

    Args:
        config: configuration of the model.
        tokenizer: its tokenizer, which may state a lower limit.
    """
    positions = getattr(config, "max_position_embeddings", None) or -1
    if positions > 0 and config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    stated = positions if tokenizer is None else int(tokenizer.model_max_length)
    return min((limit for limit in (positions, stated) if 0 < limit < _NO_LIMIT), default=MAX_LENGTH)


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the content of `tokenizer.json`.

    Raises:
        InputError: it is a slow tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{type(tokenizer).__name__} doesn't report the offsets of its tokens: use a fast tokenizer")
    return json.loads(backend.to_str())


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into evaluation mode, and back into its own mode afterwards, also after an error or an interrupt."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _load_word_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that encodes each word of a sentence given as words as it would after a blank.

    Byte-level BPE would otherwise silently encode it like the rest of a longer word.

    Raises:
        InputError: it is a slow tokenizer.
    """
    tokenizer: PreTrainedTokenizerBase = load_by_name(transformers.AutoTokenizer, folder)
    if _put_blank_before_words(describe_tokenizer(tokenizer)["pre_tokenizer"]):
        tokenizer = load_by_name(transformers.AutoTokenizer, folder, add_prefix_space=True)
        description = describe_tokenizer(tokenizer)
        if _put_blank_before_words(description["pre_tokenizer"]):  # some classes ignore the argument
            changed = Tokenizer.from_str(json.dumps(description))
            tokenizer.backend_tokenizer.pre_tokenizer = changed.pre_tokenizer
    return tokenizer


def _put_blank_before_words(step: Any) -> bool:
    """Change the description of a pre-tokenizer so that each word begins as after a blank; tell if it was changed."""
    if not isinstance(step, dict):
        return False
    changed = False
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        step["add_prefix_space"] = changed = True
    if step["type"] == "Metaspace" and step["prepend_scheme"] == "never":
        step["prepend_scheme"], changed = "always", True
    return any([changed, *map(_put_blank_before_words, step.get("pretokenizers", []))])


def _check_type(name: str | Path, config: Any) -> None:
    if config.model_type != "bert":
        raise InputError(f"{name} is a {config.model_type} model, which can't become a BertForMaskedLM: give a BERT")


def check_encoder(name: str | Path, config: Any) -> None:
    """Raise if a model was fine-tuned for a task, and is therefore not what an adaptation or comparison starts from.

    Args:
        name: what to call the model in the error.
        config: its configuration.

    Raises:
        InputError: it was saved with the head of a task.
    """
    for kind in config.architectures or []:
        if kind.endswith(_HEADS):
            raise _not_an_encoder(name, kind)


def _check_weights_of_encoder(name: str | Path, config: Any, weights: Iterable[str]) -> None:
    """Raise if a model whose configuration doesn't name its kind has the weights of a task's head."""
    if not config.architectures and any(key.startswith(_WEIGHTS_OF_HEADS) for key in weights):
        raise _not_an_encoder(name, "model with the head of a task")


def _not_an_encoder(name: str | Path, kind: str) -> InputError:
    return InputError(
        f"{name} is a {kind}, fine-tuned for a task: give the encoder that it was made from; or, if you mean to start "
        f"from the fine-tuned one, save it alone (model.base_model.save_pretrained) and give that folder"
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any, *, name: str = "the model") -> None:
    """Check that a tokenizer can be that of a model, and warn if it probably isn't.

    Sizes and the padding token are all there is to compare: a cased and an uncased vocabulary of the same size, for
    instance, can't be told apart.

    Args:
        config: configuration of the model.
        name: what to call the model.

    Raises:
        InputError: the tokenizer has a token that the model has no embedding for.
    """
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    spare = config.vocab_size - size
    if spare < 0:
        raise InputError(
            f"it has {size} tokens, but {name} has {config.vocab_size} embeddings: give the tokenizer of this model",
            argument="tokenizer",
        )
    if spare >= _MANY_SPARE:
        _warn_once(
            f"the tokenizer has {size} tokens, and {name} {config.vocab_size} embeddings: is it another model's?"
        )
    pad = getattr(config, "pad_token_id", None)
    if None not in (pad, tokenizer.pad_token_id) and pad != tokenizer.pad_token_id:
        _warn_once(
            f"the tokenizer pads with id {tokenizer.pad_token_id}, and {name} expects {pad}: is it another model's?"
        )


@lru_cache(maxsize=1000)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


@contextmanager
def _one_line(describe: Callable[[Exception], InputError]) -> Iterator[None]:
    """Raise, in place of the errors of the libraries that read models, one that describes them in a line.

    Args:
        describe: makes an InputError of such an error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of many kinds, without a common base class
        if lacks_memory(error):
            raise
        raise describe(error) from error


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seed the generator that initialises weights, on the CPU, and restore its state afterwards.

    `torch.manual_seed` and `set_seed` would change the random numbers of the whole process, on every device.
    """
    import torch

    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


@check_call()
def load_token_classifier(name: str | Path, **arguments: Any) -> Any:
    """Load a trained token classifier in float32.

    transformers would initialise missing weights at random, and go on.

    Args:
        name: local folder or name on the Hub.
        arguments: passed to `from_pretrained`.

    Raises:
        InputError: the model isn't available, is of another kind, or lacks weights; or a weight has another shape or
            isn't finite.
    """
    import torch

    model, info = load_by_name(
        transformers.AutoModelForTokenClassification,
        name,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # reported below
        output_loading_info=True,
        **arguments,
    )
    check_token_classifier(name, model)
    saved_as = model.config.architectures or []
    keys = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    # The weights of other heads may have the same names: a sequence classifier lacks none.
    if keys or not all(kind.endswith(_TOKEN_CLASSIFIER) for kind in saved_as):
        lacks = f", and lacks weights of one ({', '.join(keys[:3])})" if keys else ""
        raise InputError(
            f"{name} was saved as {', '.join(saved_as) or 'an unknown kind of model'}, not as a trained token "
            f"classifier{lacks}: give a NER head; an encoder has to be fine-tuned first"
        )
    return model


def check_token_classifier(name: str | Path, model: Any) -> None:
    """Raise if a model can't label tokens or contains weights that aren't finite.

    Args:
        name: what to call the model in the error.

    Raises:
        InputError: it is of another kind, or a weight is NaN or infinite.
    """
    check_labels_tokens(name, model)
    check_finite(model.state_dict().items(), name, "training diverged. Give another head, or train it again")


def check_labels_tokens(name: str | Path, model: Any) -> None:
    """Raise if a model isn't a token classifier.

    Raises:
        InputError: it is of another kind.
    """
    if not any(kind.__name__.endswith(_TOKEN_CLASSIFIER) for kind in type(model).__mro__):
        raise InputError(f"{name} is a {type(model).__name__}, not a token classifier: give a fine-tuned NER head")


def check_finite(
    weights: Iterable[tuple[str, torch.Tensor]],
    source: str | Path,
    advice: str,
    *,
    error: type[InputError] = InputError,
) -> None:
    """Raise if a weight contains NaN or infinity.

    Args:
        weights: names and tensors.
        source: the model, or the step of its training, which the error begins with.
        advice: how the error ends: the cause, or what to do.
        error: kind of the error.

    Raises:
        InputError: a weight isn't finite.
    """
    for name, values in weights:
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise error(f"{source}: {name} contains NaN or infinity: {advice}")


@check_call()
def save_masked_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save a model (safetensors) and its tokenizer.

    Args:
        weights: to save instead of those of the model.

    Raises:
        InputError: the tokenizer has more tokens than the model has embeddings.
    """
    check_tokenizer(tokenizer, model.config)
    model.save_pretrained(folder, state_dict=weights)
    apply_umask(Path(folder), _SAFETENSORS[0])
    save_tokenizer(tokenizer, folder)


@check_call()
def save_head(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a token classifier and its tokenizer, so that `pipeline("ner", model=folder)` needs nothing else.

    Raises:
        InputError: the model isn't a token classifier, or the tokenizer has more tokens than it has embeddings.
    """
    check_labels_tokens("the model", model)
    check_tokenizer(tokenizer, model.config)
    model.save_pretrained(folder)
    apply_umask(Path(folder), _SAFETENSORS[0])
    tokenizer.model_max_length = longest_input(model.config)
    save_tokenizer(tokenizer, folder)


@check_call()
def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a tokenizer so that `AutoTokenizer` loads it in transformers 4 and 5.

    transformers 5 no longer writes the `vocab.txt` of WordPiece, and writes an empty list of extra special tokens,
    which is an error in version 4. Its `BertTokenizer` has no arguments for some settings, and forgets them when it is
    loaded; a plain fast tokenizer reads them from `tokenizer.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("is_local", "local_files_only"):  # how the tokenizer was loaded, which transformers would save too
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    changed = dict(config)
    if config.get("extra_special_tokens") == []:
        del changed["extra_special_tokens"]
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    if config.get("tokenizer_class") == "TokenizersBackend" or (
        config.get("tokenizer_class") == "BertTokenizer" and _bert_settings(description) not in (None, _BERT_SETTINGS)
    ):
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"  # in both versions; the other name is of version 5
    if changed != config:
        write_json(path, changed)
    if isinstance(tokenizer.backend_tokenizer.model, WordPiece):
        tokens = "".join(f"{token}\n" for token in tokens_in_order(tokenizer))
        (folder / "vocab.txt").write_text(tokens, encoding="utf-8")


def set_bert_settings(tokenizer: PreTrainedTokenizerBase, *, clean_text: bool, max_input_chars_per_word: int) -> None:
    """Change the settings of a BERT tokenizer that the class of transformers has no arguments for.

    Args:
        clean_text: whether the normaliser deletes control characters.
        max_input_chars_per_word: a longer word becomes [UNK].
    """
    backend = tokenizer.backend_tokenizer
    if backend.normalizer.clean_text != clean_text:
        normalizer = backend.normalizer
        normalizer.clean_text = clean_text
        backend.normalizer = normalizer
    if backend.model.max_input_chars_per_word != max_input_chars_per_word:
        model = backend.model
        model.max_input_chars_per_word = max_input_chars_per_word
        backend.model = model


def _restore_settings(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Set what `tokenizer.json` says and transformers 5 forgets when it loads a BERT tokenizer."""
    if path.is_file() and (settings := _bert_settings(json.loads(path.read_text(encoding="utf-8")))):
        set_bert_settings(tokenizer, **settings)


def _bert_settings(description: dict[str, Any]) -> dict[str, Any] | None:
    """Return these settings of a tokenizer described as JSON, or None if it isn't a BERT tokenizer."""
    normalizer, model = description.get("normalizer") or {}, description["model"]
    if (normalizer.get("type"), model.get("type")) != ("BertNormalizer", "WordPiece"):
        return None
    defaults = {**normalizer, **model}
    return {name: defaults.get(name, default) for name, default in _BERT_SETTINGS.items()}


def tokens_in_order(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return all tokens in the order of their ids: the index of a token is its id.

    Raises:
        InputError: the ids have gaps.
    """
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if tokens and vocabulary[tokens[-1]] != len(tokens) - 1:
        raise InputError(
            f"the ids of {type(tokenizer).__name__} have gaps: {len(tokens)} tokens up to id "
            f"{vocabulary[tokens[-1]]}; give a tokenizer that numbers its tokens without gaps"
        )
    return tokens


def _download(given: str, kind: str, patterns: Sequence[str]) -> Source:
    name, revision = split_revision(given)
    try:
        folder = snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(patterns))
    except (HFValidationError, HfHubHTTPError, HTTPError, OSError) as error:
        raise _unavailable(given, "model" if kind == "model" else "data", error) from error
    return Source(folder, f"{name}@{Path(folder).name}")


def _not_loaded(name: str | Path, kind: str, error: Exception) -> InputError:
    advice = f": {remedy(Path(name))}" if (Path(name) / RECORD).is_file() else ""
    return InputError(f"{name} can't be loaded as a {kind} ({format_error(error)}){advice}")


def _unavailable(given: str, kind: str, error: Exception) -> InputError:
    folder = Path(given)
    if folder.is_dir():
        inner = sorted(path.parent for path in folder.glob("*/config.json"))
        close = f": did you mean {inner[0]}?" if inner else ""
        if (folder / RECORD).is_file():
            close = f": {remedy(folder)}"
        return InputError(f"{given}: no {kind} can be loaded from this folder ({format_error(error)}){close}")
    reason = format_error(error)
    if isinstance(error, LocalEntryNotFoundError):
        unset = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub can't be reached: check the network"
        reason = f"it isn't in the cache, and {unset}"
    package = ", not an installed package with a head" if kind == "model" and _PACKAGE_NAME.fullmatch(given) else ""
    return InputError(f"{given}: not a local {kind} folder{package} and not available on the Hub ({reason})")
