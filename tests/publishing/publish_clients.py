"""Client functions that use this package; each runs in a process of its own, as those of `hub_clients`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from hub_clients import shorten_pauses
from huggingface_hub import HfApi

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing import publish as publish_module
from bioptimus_hf.publishing import retries
from bioptimus_hf.publishing.options import About, Selection

ABOUT = About(
    license="apache-2.0",
    language="en",
    corpus="abstracts of a library",
    corpus_license="CC0-1.0",
    ner_licenses={"own": "CC-BY-4.0"},
    ner_datasets={"own": "lab/entities:own"},
)


def publish(run: str, repo_id: str, **options: Any) -> list[list[str]]:
    """Return repository, tag and commit of each version, or the error."""
    selected = {name: options.pop(name) for name in ("what", "adopt", "collection") if name in options}
    selection = Selection(**{"what": "encoder", **selected})
    try:
        versions = publish_module.publish(
            run, repo_id, selection=selection, **{"about": ABOUT, "dry_run": False, **options}
        )
    except InputError as error:
        return [["error", str(error)]]
    return [[version.repo_id, version.tag, str(version.commit)] for version in versions]


def publish_only(
    run: str, repo_id: str, times: int = 1, seconds: float | None = None, **options: Any
) -> list[list[str]]:
    """Publish one or several times without loading back, which takes seconds and is tested elsewhere.

    Args:
        seconds: how long a failing action is repeated.
    """
    publish_module.load_back = lambda releases, token: None
    if seconds is not None:
        retries._SECONDS, retries._PAUSES = seconds, (0.05,)
    return [version for _ in range(times) for version in publish(run, repo_id, private=False, **options)]


def publish_during_tag(run: str, repo_id: str, older: str, newer: str) -> list[list[list[str]]]:
    """Publish the newer version, and just before it gets its tag the older one, as another process might."""
    published: list[list[list[str]]] = []
    create_tag = HfApi.create_tag

    def interrupted(api: HfApi, *arguments: Any, **options: Any) -> None:
        HfApi.create_tag = create_tag  # type: ignore[method-assign]
        published.append(publish_only(run, repo_id, versions=[older]))
        create_tag(api, *arguments, **options)

    HfApi.create_tag = interrupted  # type: ignore[assignment,method-assign]
    newest = publish_only(run, repo_id, versions=[newer])
    return [*published, newest]


def publish_to_all(run: str, repo_ids: list[str]) -> dict[str, Any]:
    """Publish two versions to each repository, with many short retries."""
    retries._PAUSES = (0.02,) * 20
    shorten_pauses()
    publish_module.load_back = lambda releases, token: None
    return {name: publish(run, name, versions=["0.1", "0.2"], collection="Sweep") for name in repo_ids}


def attempts(cases: dict[str, Any]) -> dict[str, Any]:
    """Publish each case, most of which are rejected."""
    shorten_pauses()
    publish_module.load_back = lambda releases, token: None
    return {name: publish(run, repo_id, **options) for name, (run, repo_id, options) in cases.items()}


def edit(titles: dict[str, str]) -> None:
    """Add a file to repositories with a commit of that title, as an owner may do in the browser."""
    for repo_id, title in titles.items():
        HfApi().upload_file(path_or_fileobj=b"MIT", path_in_repo="LICENSE", repo_id=repo_id, commit_message=title)


def run_stages(commands: list[list[str]], run: str, names: list[str]) -> list[Any]:
    """Run commands; return the inputs of their stages, and the result of `load_in_every_way` by name."""
    logging.disable()
    os.environ.pop("DISABLE_SAFETENSORS_CONVERSION")  # even without it, nothing may request a conversion
    for command in commands:
        assert main(command, own_process=True) == 0, command
    made = sorted(Path(run).rglob("made.json"))
    inputs = {path.parent.relative_to(run).as_posix(): read_record(path.parent)["inputs"] for path in made}
    return [inputs, *map(load_in_every_way, names)]


def load_in_every_way(repo_id: str) -> list[Any]:
    """Return a number for each way in which the library loads a model by name."""
    from transformers import AutoTokenizer

    from bioptimus_hf.annotation.annotator import Annotator
    from bioptimus_hf.models import load_by_name, load_masked_lm, new_head

    model, made_up = load_masked_lm(repo_id)
    head, tokenizer = new_head(repo_id, ["O", "B-X", "I-X"], seed=0)
    weights = [found.bert.embeddings.word_embeddings.weight for found in (model, head)]
    assert weights[0].equal(weights[1])
    try:
        Annotator(repo_id)
        error = ""
    except InputError as rejected:
        error = str(rejected).partition(" was saved as ")[2]
    loaded = load_by_name(AutoTokenizer, repo_id)
    return [made_up, len(tokenizer), len(loaded), error, float(weights[0].double().sum())]


def annotate(repo_id: str, texts: list[str]) -> list[int]:
    """Return the number of entities that a published head finds in each text."""
    from bioptimus_hf.annotation.annotator import Annotator

    return [len(entities) for entities in Annotator(repo_id).annotate(texts)]
