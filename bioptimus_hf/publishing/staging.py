"""What is going to be published, in folders of its own: built from a run, and checked before any network call."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, BertConfig

from bioptimus_hf.artifacts import read_json, sha256_of_file, write_json
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.tasks import NER_TASKS
from bioptimus_hf.plots import plot_history
from bioptimus_hf.pretraining.arguments import PretrainingArguments
from bioptimus_hf.pretraining.callback import PHASE_FILE
from bioptimus_hf.publishing.cards import encoder_card, evaluation_entries, head_card
from bioptimus_hf.publishing.facts import (
    About,
    encoder_facts,
    head_facts,
    heads_of,
    name_of,
    run_versions,
    version_key,
)

MARK = "bioptimus_hf.json"  # in every version that is published: by it a repository of ours is known
PLOT = "history.png"
WEIGHTS = "model.safetensors"
_MODEL_FILES = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "vocab.txt")
# What a folder of ours never holds, and a user of the published model should not be made to load.
_STRANGE = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.h5", "*.msgpack", "*.py", "*.safetensors.*")
ENCODER, HEAD = "BertForMaskedLM", "BertForTokenClassification"
_TOKEN = re.compile(rb"\b(?:hf_(?:oauth_|jwt_)?|api_org_)[A-Za-z0-9.-]{20,}")
_PLACES = re.compile(
    rb"(?<![\w.])/(?:home|Users|root|tmp|mnt|scratch|private)/[\w.-]+|[A-Z]:\\\\?Users\b"
    rb"|(?<=\")/[\w.-]+/[\w.-]+"  # any place, where a value begins with it
)
# Accounts that name no person, or as every configuration names its kind of model.
_NOBODY = frozenset({"root", "user", "runner", "ubuntu", "docker", "admin", "bert"})
_SHORTEST_NAME = 3


@dataclass(frozen=True)
class StagedFile:
    """A file that is going to be published."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """A version of one repository, built and checked.

    Attributes:
        repo_id: of the repository.
        version: of the encoder; the tag is `v<version>`.
        architecture: class of the model.
        folder: that mirrors what is going to be published.
        card: the text of its README.md.
        files: all that is in it.
    """

    repo_id: str
    version: str
    architecture: str
    folder: Path
    card: str
    files: tuple[StagedFile, ...]

    @property
    def tag(self) -> str:
        """The name of the tag."""
        return name_of(self.version)


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        InputError: it has no owner, or characters that the Hub does not allow.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"--repo_id {repo_id}: {str(error).split(': ')[0]}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"--repo_id {repo_id}: give it with its owner, as owner/name")


def stage(
    run_dir: str | Path,
    repo_id: str,
    work: Path,
    about: About,
    *,
    what: str = "trunk",
    versions: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> list[Release]:
    """Build and check a folder for each version that is to be published, the oldest version of a repository first.

    Args:
        run_dir: folder of the run.
        repo_id: of the encoder; a head's is `<repo_id>-<task>`.
        work: empty folder to build in.
        about: what the run does not know.
        what: "trunk" (the encoder), "heads" or "all".
        versions: by default all of the run; heads of those that have some.
        tasks: whose heads; by default all that there are.

    Raises:
        InputError: anything is missing, or not fit to be published.
    """
    check_repo_id(repo_id)
    run = Path(run_dir)
    if not run.is_dir():
        raise InputError(f"{run} is no folder that is there: give that of a run (--output_dir)")
    _check_about(run, about)
    chosen = sorted(dict.fromkeys(map(str, versions or run_versions(run))), key=version_key)
    for version in chosen:
        if not (run / name_of(version) / PHASE_FILE).is_file():
            raise InputError(
                f"{run / name_of(version)} has no {PHASE_FILE}, which a phase of pre-training leaves there"
            )
    releases = []
    if what in ("trunk", "all"):
        releases += [stage_encoder(run, version, repo_id, work / "encoder" / version, about) for version in chosen]
    if what in ("heads", "all"):
        for task, version in _heads(run, chosen, tasks):
            check_repo_id(f"{repo_id}-{task}")
            releases.append(stage_head(run, task, version, f"{repo_id}-{task}", work / task / version, about))
    return releases


def _check_about(run: Path, about: About) -> None:
    if about.base_model is not None:
        try:
            validate_repo_id(about.base_model.partition("@")[0])
        except HFValidationError as error:
            raise InputError(f"--base_model_id {about.base_model}: {str(error).split(': ')[0]}") from error
    heads = {path.name for path in (run / "ner").glob("*") if path.is_dir()}
    for option, given in (("--ner_licenses", about.ner_licenses), ("--ner_datasets", about.ner_datasets)):
        for task in given:
            if heads and task not in {*NER_TASKS, *heads}:  # before there are heads, any name may be that of one
                raise InputError(f"{option} {task}=...: known are {', '.join(sorted({*NER_TASKS, *heads}))}")


def stage_encoder(run: Path, version: str, repo_id: str, folder: Path, about: About) -> Release:
    """Build and check the folder of one version of the encoder.

    Raises:
        InputError: as for `stage`.
    """
    source = run / name_of(version)
    _copy_model(source, folder)
    facts = encoder_facts(run, version, repo_id, about)
    plot = facts["pretraining"]["folder"] / PLOT
    if plot.is_file():
        shutil.copyfile(plot, folder / PLOT)
    else:  # matplotlib was not there, and may be now
        history: Any = read_json(plot.with_suffix(".json"))
        plot_history(folder / PLOT, history, {phase["version"]: phase["last_step"] for phase in facts["phases"]})
    record = read_json(source / PHASE_FILE)
    return _finished(folder, repo_id, version, ENCODER, encoder_card(facts), facts["results"], about, record)


def stage_head(run: Path, task: str, version: str, repo_id: str, folder: Path, about: About) -> Release:
    """Build and check the folder of one head.

    Raises:
        InputError: as for `stage`.
    """
    facts = head_facts(run, task, version, repo_id, about)
    _copy_model(heads_of(run, version)[task].folder, folder)
    made = {name: facts["finetuning"][name] for name in ("fingerprint", "inputs", "settings")}
    return _finished(folder, repo_id, version, HEAD, head_card(facts), [facts["row"]], about, made)


def check_folder(folder: Path, architecture: str, owner: str) -> None:
    """Refuse a folder that is not fit to be published by an owner.

    Raises:
        InputError: files are missing or there are others, the model is no plain `architecture`, its vocabulary is not
            the tokenizer's, a weight is no number, or a file tells of the machine or holds a token (which file).
    """
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {*_MODEL_FILES, "README.md", MARK, *([PLOT] if architecture == ENCODER else [])}
    results = {path for path in there if re.fullmatch(r"\.eval_results/[\w.-]+\.yaml", path)}
    for name in sorted(wanted - there):
        raise InputError(f"{folder} lacks {name}" + (": pip install 'bioptimus-hf[plots]'" if name == PLOT else ""))
    for name in sorted(there - wanted - results):
        raise InputError(f"{folder} holds {name}, which is no part of a published model")
    config = read_json(folder / "config.json")
    if config.get("architectures") != [architecture] or config.get("model_type") != "bert" or "auto_map" in config:
        raise InputError(f"{folder / 'config.json'} is not that of a plain {architecture}")
    _check_vocabulary(folder, config["vocab_size"])
    _check_weights(folder / WEIGHTS, architecture)
    for name in sorted(there):
        _check_private(folder / name, owner)


def _heads(run: Path, versions: Sequence[str], tasks: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    found = [(task, version) for version in versions for task in heads_of(run, version)]
    for task in tasks or ():
        if task not in {name for name, _ in found}:
            raise InputError(f"no head for {task} on {', '.join(map(name_of, versions))} in {run / 'ner'}")
    chosen = sorted((task, version) for task, version in found if not tasks or task in tasks)
    if not chosen:
        raise InputError(
            f"no head on {', '.join(map(name_of, versions))} in {run / 'ner'}: run finetune_ner.py first, or "
            f"publish the encoder alone (--what trunk)"
        )
    yield from sorted(chosen, key=lambda pair: (pair[0], version_key(pair[1])))


def _copy_model(source: Path, folder: Path) -> None:
    for name in _MODEL_FILES:
        if not (source / name).is_file():
            raise InputError(f"{source} lacks {name}: it is not as its stage left it")
    strange = sorted(path.name for pattern in _STRANGE for path in source.glob(pattern))
    strange += sorted(path.name + "/" for path in source.iterdir() if path.is_dir())
    if strange:
        raise InputError(f"{source} holds {strange[0]}, which no stage leaves there: move it away")
    folder.mkdir(parents=True)
    for name in _MODEL_FILES:
        try:
            os.link(source / name, folder / name)  # weights are large, and nobody writes into either folder
        except OSError:
            shutil.copyfile(source / name, folder / name)


def _finished(
    folder: Path,
    repo_id: str,
    version: str,
    architecture: str,
    card: str,
    rows: Sequence[dict[str, Any]],
    about: About,
    record: dict[str, Any],
) -> Release:
    ModelCard(card)  # reads its head, and fails where that is not sound
    (folder / "README.md").write_text(card, encoding="utf-8")
    said = {"made_by": "bioptimus_hf", "repository": repo_id, "version": version, "architecture": architecture}
    write_json(folder / MARK, {**said, "record": record})
    for task, entries in evaluation_entries(rows, about).items():
        path = folder / ".eval_results" / f"{task}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    check_folder(folder, architecture, repo_id.partition("/")[0])
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [StagedFile(one.relative_to(folder).as_posix(), one.stat().st_size, sha256_of_file(one)) for one in paths]
    return Release(repo_id, version, architecture, folder, card, tuple(files))


def _check_vocabulary(folder: Path, size: int) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no tokenizer that loads ({' '.join(str(error).split())[:150]})") from error
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    written = {token: number for number, token in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    if len(tokenizer) != size or tokenizer.get_vocab() != written:
        raise InputError(
            f"{folder}: config.json says {size} tokens, the tokenizer has {len(tokenizer)}, vocab.txt {len(written)}, "
            f"and these must be the same ones"
        )


def _check_weights(path: Path, architecture: str) -> None:
    """Refuse weights that are not those of the model that config.json describes: transformers would draw new ones."""
    with torch.device("meta"):
        model = getattr(transformers, architecture)(BertConfig.from_pretrained(str(path.parent)))
    wanted = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    try:
        with safe_open(path, "pt") as weights:
            names = set(weights.keys())
            missing = sorted(wanted.keys() - names - {*(model._tied_weights_keys or ())})
            if missing or names - wanted.keys():
                raise InputError(
                    f"{path} is not of a {architecture}: {', '.join(missing[:3] or sorted(names - wanted.keys())[:3])} "
                    f"{'is missing' if missing else 'is no part of it'}"
                )
            if set(weights.metadata() or {}) - {"format"}:
                raise InputError(f"{path} carries notes beside its weights ({', '.join(weights.metadata())})")
            for name in weights.keys():  # noqa: SIM118 (this is no mapping)
                values = weights.get_tensor(name)
                if values.is_floating_point() and not bool(values.isfinite().all()):
                    raise InputError(f"{path}: {name} holds values that are no numbers, or infinite")
                if tuple(values.shape) != wanted[name]:
                    raise InputError(
                        f"{path}: {name} is of shape {tuple(values.shape)}, and config.json describes {wanted[name]}"
                    )
    except SafetensorError as error:
        raise InputError(f"{path} is no whole file of weights ({error})") from error


@lru_cache(maxsize=1)
def _own_words() -> frozenset[str]:
    """Return the words of the cards' templates, and the names of what is recorded, which tell of no machine."""
    templates = resources.files("bioptimus_hf.model_card").iterdir()
    texts = [one.read_text(encoding="utf-8") for one in templates if one.name.endswith((".md", ".bib"))]
    recorded = {*BertConfig().to_dict(), *(field.name for field in fields(PretrainingArguments))}
    return frozenset(
        {*re.findall(r"[\w-]+", " ".join(texts)), *recorded, "architecture", "record", "inputs", "metrics"}
    )


def _check_private(path: Path, owner: str) -> None:
    """Refuse a file that tells where or by whom it was made, but for the owner, or holds a token of the Hub."""
    if path.suffix == ".safetensors" or path.name in ("vocab.txt", "tokenizer.json"):
        return  # numbers, and pieces of words, among which anybody's name may be
    content = path.read_bytes()
    places, names = {str(Path.cwd())}, {socket.gethostname()}
    with contextlib.suppress(KeyError, OSError, RuntimeError):  # a number without an account, as in a container
        names.add(getpass.getuser())
        places.add(str(Path.home()))
    names, places = names - _NOBODY - {owner}, places - {"/"}
    names -= _own_words()  # which stand in every card
    found = _TOKEN.search(content) or _PLACES.search(content)
    words = "|".join(re.escape(name) for name in sorted(names) if len(name) >= _SHORTEST_NAME)
    found = found or next((match for one in places if (match := re.search(re.escape(one).encode(), content))), None)
    if not found and words:
        found = re.search(rf"(?<![\w-])(?:{words})(?![\w-])".encode(), content)
    if found:
        said = "a token" if _TOKEN.fullmatch(found[0]) else repr(found[0].decode(errors="replace"))
        raise InputError(
            f"{path.name} would publish {said}, which is of this machine: take it out of what was recorded"
        )
