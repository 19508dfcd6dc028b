"""Reject a repository name, a fact about a run, or a built folder that isn't fit to be published."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, BertConfig

from bioptimus_hf.artifacts import check_fresh, read_json, verify
from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.ner.options import JOINT
from bioptimus_hf.ner.results import BASE, finished_heads, tests_of
from bioptimus_hf.ner.tasks import NER_TASKS
from bioptimus_hf.pretraining.versions import version_numbers
from bioptimus_hf.publishing.options import About

logger = logging.getLogger(__name__)

MARK = "bioptimus_hf.json"  # part of every published version; identifies a repository as ours
PLOT = "history.png"
WEIGHTS = "model.safetensors"
MODEL_FILES = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "vocab.txt")
ENCODER, HEAD = "BertForMaskedLM", "BertForTokenClassification"

# Files that a stage never writes into the folder of a model, and that users shouldn't be made to load.
_FOREIGN = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.h5", "*.msgpack", "*.py", "*.safetensors.*")
_TOKEN = re.compile(rb"\b(?:hf_(?:oauth_|jwt_)?|api_org_)[A-Za-z0-9.-]{20,}")
_LOCAL_PATH = re.compile(
    rb"(?<![\w.])/(?:home|Users|root|tmp|mnt|scratch|private)/[\w.-]+|[A-Z]:\\\\?Users\b"
    rb"|(?<=\")/[\w.-]+/[\w.-]+"  # any absolute path at the start of a JSON value
)


class MissingFacts(InputError):
    """The cards state facts that neither the run nor `About` has.

    Args:
        facts: the fields of `About` that are missing, each with the tasks for which it is missing, if it has tasks.
    """

    def __init__(self, facts: Mapping[str, Sequence[str]]) -> None:
        names = [f"{name} (for {', '.join(tasks)})" if tasks else name for name, tasks in facts.items()]
        super().__init__(f"the model cards state facts that the run doesn't record: give {', '.join(names)}")
        self.facts = facts


def check_repo_id(repo_id: str) -> None:
    """Raise unless a string is the name of a repository with its owner.

    Raises:
        InputError: the owner is missing, or the Hub doesn't allow the name.
    """
    if reason := _reason_against(repo_id):
        raise InputError(f"{repo_id}: {reason}", argument="repo_id")
    if repo_id.count("/") != 1:
        raise InputError(f"{repo_id} lacks an owner: write owner/name", argument="repo_id")


def check_about(run: Path, about: About) -> None:
    """Raise if a fact about a run refers to a model or a task that can't exist.

    Raises:
        InputError: `base_model` can't be a name on the Hub, a task is unknown, or another encoder has no heads or
            the name of a model of the run.
    """
    if about.base_model is not None and (reason := _reason_against(about.base_model.partition("@")[0])):
        raise InputError(
            f"{about.base_model} can't be the base model ({reason}): name it on the Hub (About.base_model, or "
            f"base_model_id)"
        )
    labels = {folder.parts[-2] for folder in finished_heads(run / "ner")}
    own = {label for label in {*labels, *about.other_encoders} if label == BASE or _is_version(run, label)}
    for label in about.other_encoders:
        if label in own:
            raise InputError(
                f"{label} is a model of this run, and not another encoder: leave it out", argument="other_encoders"
            )
        if labels and label not in labels:  # before any head is trained, an encoder may have any label
            known = ", ".join(sorted(labels))
            raise InputError(f"{run / 'ner'} has no heads of {label!r}, only of {known}", argument="other_encoders")
    if others := sorted(labels - own - set(about.other_encoders)):
        message = "heads of %s aren't on the cards: to have them there, describe these encoders (other_encoders)"
        logger.warning(message, ", ".join(others))
    heads = {path.name for path in (run / "ner").glob("*") if path.is_dir()}
    for scores in (run / "ner").glob(f"{JOINT}/*/*/scores.json"):
        heads |= tests_of(read_json(scores)).keys()
    for argument, tasks in (("ner_licenses", about.ner_licenses), ("ner_datasets", about.ner_datasets)):
        for task in tasks:
            if heads and task not in {*NER_TASKS, *heads}:  # before any head is trained, a task may have any name
                known = ", ".join(sorted({*NER_TASKS, *heads}))
                raise InputError(f"{task} is not a task; the known tasks are {known}", argument=argument)


def _is_version(run: Path, label: str) -> bool:
    return bool(version_numbers(label)) and (run / label).is_dir()


def check_source(source: Path) -> None:
    """Raise if the folder of a model isn't as its stage left it.

    Raises:
        InputError: a file is missing or damaged, there are files or folders that no stage writes there, or something
            that the model was made from has been replaced.
    """
    for name in MODEL_FILES:
        if not (source / name).is_file():
            raise InputError(f"{source} lacks {name}: it is not as its stage left it")
    foreign = sorted(path.name for pattern in _FOREIGN for path in source.glob(pattern))
    foreign += sorted(path.name + "/" for path in source.iterdir() if path.is_dir())
    if foreign:
        raise InputError(f"{source} holds {foreign[0]}, which no stage writes there: move it away")
    verify(source)
    check_fresh(source)


def check_folder(folder: Path, architecture: str) -> None:
    """Raise unless a folder is fit to be published.

    Raises:
        InputError: files are missing or unexpected; the model isn't a plain `architecture`; vocabulary and tokenizer
            differ; a weight is NaN or infinite; or a file contains a path of this machine or a token.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {*MODEL_FILES, "README.md", MARK, *([PLOT] if architecture == ENCODER else [])}
    results = {path for path in found if re.fullmatch(r"\.eval_results/[\w.-]+\.yaml", path)}
    for name in sorted(wanted - found):
        raise InputError(f"{folder} lacks {name}" + (": pip install 'bioptimus-hf[plots]'" if name == PLOT else ""))
    for name in sorted(found - wanted - results):
        raise InputError(f"{folder} holds {name}, which doesn't belong to a published model")
    config = read_json(folder / "config.json")
    if config.get("architectures") != [architecture] or config.get("model_type") != "bert" or "auto_map" in config:
        raise InputError(f"{folder / 'config.json'} doesn't describe a plain {architecture}")
    _check_vocabulary(folder, config["vocab_size"])
    _check_weights(folder / WEIGHTS, architecture)
    for name in sorted(found):
        check_private(folder / name)


def _reason_against(name: str) -> str | None:
    """Return why the Hub doesn't allow a name, or None if it does."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return str(error).split(": ")[0]
    return None


def _check_vocabulary(folder: Path, size: int) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer in {folder} can't be loaded ({format_error(error, limit=150)})") from error
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    written = {token: number for number, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    if len(tokenizer) != size or tokenizer.get_vocab() != written:
        raise InputError(
            f"{folder}: config.json, the tokenizer and vocab.txt must have the same tokens, but have {size}, "
            f"{len(tokenizer)} and {len(written)}"
        )


def _check_weights(path: Path, architecture: str) -> None:
    """Raise if the weights don't match config.json: transformers would initialise what is missing at random."""
    with torch.device("meta"):
        model = getattr(transformers, architecture)(BertConfig.from_pretrained(str(path.parent)))
    shapes = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    try:
        with safe_open(path, "pt") as weights:
            names = set(weights.keys())
            missing = sorted(shapes.keys() - names - {*(model._tied_weights_keys or ())})
            if missing:
                raise InputError(f"{path} is not a {architecture}: {', '.join(missing[:3])} missing")
            if unexpected := sorted(names - shapes.keys()):
                raise InputError(f"{path} is not a {architecture}: {', '.join(unexpected[:3])} unexpected")
            if set(weights.metadata() or {}) - {"format"}:
                raise InputError(f"{path} contains metadata beside its weights ({', '.join(weights.metadata())})")
            for name in weights.keys():  # noqa: SIM118 (not a mapping)
                values = weights.get_tensor(name)
                if values.is_floating_point() and not bool(values.isfinite().all()):
                    raise InputError(f"{path}: {name} contains NaN or infinite values")
                if tuple(values.shape) != shapes[name]:
                    raise InputError(
                        f"{path}: {name} has shape {tuple(values.shape)}, but config.json describes {shapes[name]}"
                    )
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or incomplete ({error})") from error


def check_private(path: Path) -> None:
    """Raise if a file contains a path of this machine or a token of the Hub.

    Raises:
        InputError: it does. Weights and vocabularies aren't searched.
    """
    if path.suffix == ".safetensors" or path.name in ("vocab.txt", "tokenizer.json"):
        return  # numbers, and tokens that may look like anything
    content = path.read_bytes()
    if _TOKEN.search(content):
        raise InputError(f"{path.name} would publish a token: remove it from what was recorded")
    own = [str(place).encode() for place in _own_folders() if str(place) != "/"]
    match = _LOCAL_PATH.search(content)
    local = match[0] if match else next((place for place in own if place in content), None)
    if local:
        raise InputError(
            f"{path.name} would publish {local.decode(errors='replace')!r}, a path of this machine: remove it from "
            f"what was recorded"
        )


def _own_folders() -> list[Path]:
    try:
        return [Path.cwd(), Path.home()]
    except RuntimeError:  # a user without a home directory, as in some containers
        return [Path.cwd()]
