"""What this package does with a Hub, each function in a process of its own, as those of `hub_clients`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing import publish as hub
from bioptimus_hf.publishing import retries as retrying
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
    chosen = {name: options.pop(name) for name in ("what", "tasks", "adopt", "collection") if name in options}
    options = {"about": ABOUT, "dry_run": False, "selection": Selection(**{"what": "encoder", **chosen}), **options}
    try:
        published = hub.publish(run, repo_id, **options)
    except InputError as error:
        return [["error", str(error)]]
    return [[one.repo_id, one.tag, str(one.commit)] for one in published]


def publish_blindly(run: str, repo_id: str, times: int = 1, **options: Any) -> list[list[str]]:
    """Publish without loading back, which takes seconds and is tested elsewhere; perhaps again and again."""
    hub.load_back = lambda releases, token: None
    return [one for _ in range(times) for one in publish(run, repo_id, private=False, **options)]


def publish_apart(run: str, repo_id: str, older: str, newer: str) -> list[list[list[str]]]:
    """Publish a version, and an older one, as another process might, while the tag of the newer is yet to be made."""
    found: list[list[list[str]]] = []
    create_tag = HfApi.create_tag

    def late(api: HfApi, *arguments: Any, **options: Any) -> None:
        HfApi.create_tag = create_tag  # type: ignore[method-assign]
        found.append(publish_blindly(run, repo_id, versions=[older]))
        create_tag(api, *arguments, **options)

    HfApi.create_tag = late  # type: ignore[assignment,method-assign]
    newest = publish_blindly(run, repo_id, versions=[newer])
    return [*found, newest]


def sweep(run: str, repo_ids: list[str]) -> dict[str, Any]:
    """Publish the same to many repositories, one after the other, in little time."""
    retrying._PAUSES = (0.02,) * 20
    pause = time.sleep
    time.sleep = lambda seconds: pause(min(seconds, 0.02))  # the client pauses too
    hub.load_back = lambda releases, token: None
    return {name: publish(run, name, versions=["0.1", "0.2"], collection="Sweep") for name in repo_ids}


def attempts(cases: dict[str, Any]) -> dict[str, Any]:
    """Publish another thing each time; most are refused."""
    hub.load_back = lambda releases, token: None
    return {name: publish(run, repo_id, **options) for name, (run, repo_id, options) in cases.items()}


def edit(repo_id: str, title: str) -> None:
    """Add a file, as an owner may in the browser."""
    HfApi().upload_file(path_or_fileobj=b"MIT", path_in_repo="LICENSE", repo_id=repo_id, commit_message=title)


def stages(scripts: str, commands: list[list[str]], run: str, names: list[str]) -> list[Any]:
    """Run scripts in this process; return what their stages were made of, and what `entry_points` does with names."""
    logging.disable()
    for name, *options in commands:
        sys.argv = [name, *options]
        with contextlib.suppress(SystemExit):  # what it failed to make is missed below
            runpy.run_path(f"{scripts}/{name}.py", run_name="__main__")
    made = sorted(Path(run).rglob("made.json"))
    inputs = {path.parent.relative_to(run).as_posix(): read_record(path.parent)["inputs"] for path in made}
    return [inputs, *map(entry_points, names)]


def entry_points(repo_id: str) -> list[Any]:
    """Return a number of each way that the library loads a model by name."""
    from transformers import AutoTokenizer

    from bioptimus_hf.annotation.annotator import Annotator
    from bioptimus_hf.models import load_by_name, load_masked_lm, new_head

    model, made_up = load_masked_lm(repo_id)
    head, tokenizer = new_head(repo_id, ["O", "B-X", "I-X"], seed=0)
    weights = [one.bert.embeddings.word_embeddings.weight for one in (model, head)]
    assert weights[0].equal(weights[1])
    words = len(list(Annotator(repo_id).annotate(["asthma"])))
    return [made_up, len(tokenizer), len(load_by_name(AutoTokenizer, repo_id)), words, float(weights[0].double().sum())]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments, options = json.loads(sys.argv[2])
    print(json.dumps(globals()[sys.argv[1]](*arguments, **options)))
