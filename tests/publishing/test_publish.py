"""Publishing to the Hub on loopback, by real clients in processes of their own, with what goes wrong on the way."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hub_clients
import publish_clients
import pytest
import torch
import yaml
from finished_run import change, make_run
from helpers import ROOT, build_tiny_bert, tiny_vocabulary
from hub import Cut, Delay, Drop, Hub, Status
from hub.faults import How
from huggingface_hub import constants
from publish_clients import ABOUT
from safetensors.torch import load_file, save_file

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing import load_back as loading
from bioptimus_hf.publishing.checks import MARK
from bioptimus_hf.publishing.facts import head_facts
from bioptimus_hf.publishing.heads import heads_of
from bioptimus_hf.publishing.options import Selection
from bioptimus_hf.publishing.publish import load_back, publish
from bioptimus_hf.publishing.staging import Release

BOTH_WAYS = pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
VERSIONS = ["0.1", "0.2", "0.3", "0.4"]
TAGS = [f"v{version}" for version in VERSIONS]
CARD = ("license", "language", "corpus_description", "corpus_license", "ner_licenses")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return shutil.copytree(finished, tmp_path / "run")


def command_of(client: Callable[..., Any], *arguments: Any, **options: Any) -> list[str]:
    given = json.dumps([arguments, options], default=str)
    return [sys.executable, inspect.getfile(client), client.__name__, given]


def call(hub: Hub, client: Callable[..., Any], *arguments: Any, environment: dict[str, Any], **options: Any) -> Any:
    """Return what a client function gives in a process of its own, which never tells its token."""
    ended = subprocess.run(
        command_of(client, *arguments, **options),
        env={**environment_of(hub, **environment)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "hf_" not in ended.stdout.replace("bioptimus_hf_", "") + ended.stderr.replace("bioptimus_hf_", "")
    return json.loads(ended.stdout.splitlines()[-1])


def environment_of(hub: Hub, **options: Any) -> dict[str, str]:
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}  # which are elsewhere
    return hub.environment(**options) | ours


def refs(hub: Hub, repo_id: str) -> dict[str, str]:
    """Return the commits of branches and tags."""
    found = hub.world.store.repositories["models", repo_id].refs
    return {name.removeprefix("refs/heads/").removeprefix("refs/tags/"): commit for name, commit in found.items()}


def titles(hub: Hub, repo_id: str, branch: str = "main") -> list[str]:
    repository = hub.world.store.repositories["models", repo_id]
    commit = repository.commits[repository.refs[f"refs/heads/{branch}"]]
    return [one.title for one in repository.history(commit)][::-1]


@BOTH_WAYS
def test_versions_and_heads_are_published_and_used(hub: Hub, finished: Path, xet: bool) -> None:
    """Public by xet, private by LFS."""
    token, private = hub.token("ada", orgs={"lab": "admin", "rttl-ai": "write"}), not xet
    name = "rttl-ai/BIOptimus" if xet else "lab/encoder"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code, start = readme.partition("```python\n")[2].partition("```")[0] if xet else "", len(hub.requests)
    published = call(
        hub,
        publish_clients.publish,
        finished,
        name,
        what="all",
        private=private,
        collection=f"Encoders {xet}",
        environment={"token": token, "xet": xet},
    )
    assert [one[:2] for one in published] == [*([name, tag] for tag in TAGS), [f"{name}-own", "v0.4"]]
    read = [request for request in hub.requests[start:] if request.path.endswith("/model.safetensors")]
    assert {request.who for request in read} == {"ada (write)" if private else None}  # what is public, as anybody
    its, heads = refs(hub, name), refs(hub, f"{name}-own")
    assert [one[2] for one in published] == [*(its[tag] for tag in TAGS), heads["v0.4"]]
    assert (its["main"], heads["main"]) == (its["v0.4"], heads["v0.4"])
    assert titles(hub, name) == ["initial commit", *TAGS]
    repository = hub.world.store.repositories["models", name]
    assert repository.private == private
    expected = {".gitattributes", "README.md", MARK, "config.json", "history.png", "model.safetensors"}
    expected |= {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    results = {".eval_results/own.yaml"}
    files = [set(repository.commits[its[tag]].files) for tag in TAGS]
    assert files == [expected, expected, expected, expected | results]
    assert not list(finished.glob("publishing-*"))
    used = call(
        hub,
        hub_clients.use,
        name,
        finished,
        VERSIONS,
        f"{name}-own",
        [False, hub.token("eve")] * private,
        code,
        environment={"token": token if private else None, "xet": xet},
    )
    assert used == {
        "refused": 2 * private,
        "different": 4,
        "newest": True,
        "entities": ["Disease"],
        "filled": 5,
        "printed": int(xet),
        "base": [name, "v0.4"],
        "results": [["lab/entities", "own", 0.625]],
    }
    (collection,) = [one for one in hub.world.store.collections.values() if one.title == f"Encoders {xet}"]
    assert [item["id"] for item in collection.items] == [name, f"{name}-own"]


@BOTH_WAYS
def test_a_publisher_that_was_killed_is_finished_by_the_next(hub: Hub, finished: Path, xet: bool) -> None:
    token, name = hub.token("ada"), f"ada/killed-{xet}"
    environment = environment_of(hub, token=token, xet=xet)
    match = "POST /v1/xorbs/*" if xet else f"PUT /uploads/models/{name}/*"
    slow = hub.fail(match, Delay(30), skip=1 if xet else 2)  # the second version's weights
    command = command_of(publish_clients.publish_blindly, finished, name)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not slow.happened and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    hub.mend()
    assert slow.happened
    assert titles(hub, name) == ["initial commit", "v0.1"]
    client = {"token": token, "xet": xet}
    again = call(hub, publish_clients.publish_blindly, finished, name, times=2, environment=client)
    assert [one[1] for one in again] == TAGS * 2, again
    assert titles(hub, name) == ["initial commit", *TAGS]
    for left in finished.glob("publishing-*"):
        shutil.rmtree(left)


STEPS = (
    "POST /api/validate-yaml",
    "GET /api/models/{name}",
    "POST /api/repos/create",
    "GET /api/models/{name}/tree/*",
    "GET /api/models/{name}/refs",
    "POST /api/models/{name}/preupload/*",
    "POST /api/models/{name}/commit/*",
    "POST /api/models/{name}/tag/*",
    "POST /api/collections",
    "POST /api/collections/*/items",
)
LFS_STEPS = ("POST /{name}.git/info/lfs/objects/batch", "PUT /uploads/models/{name}/*", "POST /{name}.git/*/verify")
XET_STEPS = ("GET /api/models/{name}/xet-write-token/*", "POST /v1/xorbs/*", "POST /v1/shards")
WAYS: tuple[How, ...] = (Status(500), Status(503, after=True), Drop(), Drop(after=True), Cut(100))


@BOTH_WAYS
def test_every_step_may_fail_in_any_way(hub: Hub, finished: Path, xet: bool) -> None:
    """A repository for each way, in which each step fails once; in the last one not at the first time, but the next."""
    steps = STEPS + (XET_STEPS if xet else LFS_STEPS)
    names = [f"ada/sweep-{xet}-{number}" for number in range(len(WAYS) + 1)]
    faults = []
    for name, how in zip(names, (*WAYS, Status(500)), strict=True):
        later = int(name == names[-1])
        own = [step for step in steps if "{name}" in step]
        faults += [(later, hub.fail(step.format(name=name), how, skip=later)) for step in own]
    # What all repositories share, and xet does once for all of them, with its own pauses of seconds in between.
    faults += [(0, hub.fail(step, Status(502, page=True))) for step in steps if "{name}" not in step]
    client = {"token": hub.token("ada"), "xet": xet}
    done = call(hub, publish_clients.sweep, finished, names, environment=client)
    for name in names:
        commits = refs(hub, name)
        assert done[name] == [[name, tag, commits[tag]] for tag in TAGS[:2]], done[name]
        assert commits["main"] == commits["v0.2"]
        assert titles(hub, name) == ["initial commit", "v0.1", "v0.2"]
    assert [fault.match for later, fault in faults if not (later or fault.happened)] == []
    hub.mend()


@BOTH_WAYS
def test_two_publishers_at_once(hub: Hub, finished: Path, xet: bool) -> None:
    token, name = hub.token("ada"), f"ada/twice-{xet}"
    command = command_of(publish_clients.publish_blindly, finished, name, versions=VERSIONS[:2])
    for match in ("POST */commit/*", "POST */tag/*"):
        hub.fail(match, Delay(0.3), times=4)
    both = [
        subprocess.Popen(command, env=environment_of(hub, token=token, xet=xet), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in both]
    hub.mend()
    commits = refs(hub, name)
    assert said == [[[name, tag, commits[tag]] for tag in TAGS[:2]]] * 2
    assert titles(hub, name) == ["initial commit", *TAGS[:2]]


def test_two_publishers_of_different_versions(hub: Hub, finished: Path) -> None:
    """The older one comes while the newer is on main, and has no tag yet."""
    environment, name = {"token": hub.token("ada"), "xet": False}, "ada/apart"
    call(hub, publish_clients.publish_blindly, finished, name, versions=["0.1"], environment=environment)
    both = call(hub, publish_clients.publish_apart, finished, name, "0.3", "0.4", environment=environment)
    commits = refs(hub, name)
    assert both == [[[name, tag, commits[tag]]] for tag in ("v0.3", "v0.4")]
    assert (commits["main"], commits["versions"]) == (commits["v0.4"], commits["v0.3"])
    assert titles(hub, name) == ["initial commit", "v0.1", "v0.4"]


def test_what_is_refused_by_the_state_of_the_hub(
    hub: Hub, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hub.token("ada", orgs={"lab": "admin"})
    environment = {"token": token, "xet": False}
    bare = make_bare(tmp_path)
    filled = [["ada/bare", *bare], ["ada/aside", *bare]]
    call(hub, hub_clients.fill_all, filled, {}, "ada/moved", environment=environment)
    aside = hub.world.store.repositories["models", "ada/aside"]
    aside.refs["refs/heads/versions"] = old = min(aside.commits.values(), key=lambda commit: commit.date).id
    keep = hub.world.store.add_regular
    monkeypatch.setattr(hub.world.store, "add_regular", lambda one: keep(one.replace(b"ada/altered", b"ada/another")))
    before, other = dict(refs(hub, "ada/bare")), make_run(tmp_path / "other", seed=1)
    young = shutil.copytree(finished, tmp_path / "young")
    shutil.rmtree(young / "ner")
    cases: dict[str, tuple[Path, str, dict[str, Any]]] = {
        "reader": (finished, "ada/reader", {"token": hub.token("ada", "read")}),
        "nobody's token": (finished, "ada/nobody", {"token": "hf_" + "x" * 34}),
        "someone else's": (finished, "bob/encoder", {}),
        "foreign": (finished, "ada/bare", {"private": False}),
        "visible": (finished, "ada/bare", {}),
        "adopted": (finished, "ada/bare", {"private": False, "adopt": True}),
        "adopted again": (finished, "ada/bare", {"private": False, "adopt": True}),
        "a branch of theirs": (finished, "ada/aside", {"private": False, "adopt": True}),
        "altered": (finished, "ada/altered", {"versions": ["0.1"]}),
        "moved": (finished, "ada/moved", {"adopt": True}),
        "heads alone": (finished, "ada/alone", {"what": "heads"}),
        "newest": (finished, "ada/late", {"versions": ["0.4"]}),
        "older": (finished, "ada/late", {"versions": ["0.2"]}),
        "heads": (finished, "ada/late", {"what": "heads"}),
        "another run": (other, "ada/late", {"versions": ["0.4"]}),
        "another version of another run": (other, "ada/late", {"versions": ["0.3"]}),
        "an encoder where a head is": (finished, "ada/late-own", {"versions": ["0.1"]}),
        "without heads": (young, "ada/grown", {"versions": ["0.4"]}),
        "heads trained since": (finished, "ada/grown", {"versions": ["0.4"], "what": "all"}),
        "heads of another run": (other, "ada/late", {"what": "heads"}),
        "written by others": (finished, "ada/shared", {"versions": ["0.2"]}),
        "as if a version": (finished, "ada/titled", {"versions": ["0.2"]}),
        "tagged by others": (finished, "ada/tagged", {"versions": ["0.2"]}),
        "as if this version": (finished, "ada/named", {"versions": ["0.2"]}),
    }
    theirs = {"ada/shared": "A word more", "ada/titled": "v1.1", "ada/named": "v0.1", "ada/tagged": "A word more"}
    shared = {name: (finished, name, {"versions": ["0.1"]}) for name in theirs}
    call(hub, publish_clients.attempts, shared, environment=environment)
    for name, title in theirs.items():
        call(hub, publish_clients.edit, name, title, environment=environment)
    tagged = hub.world.store.repositories["models", "ada/tagged"].refs
    tagged["refs/tags/paper"] = tagged["refs/heads/main"]
    edited = {name: dict(refs(hub, name)) for name in theirs}
    seen = call(hub, publish_clients.attempts, cases, environment=environment)
    error = {name: ended[0][1] for name, ended in seen.items() if ended[0][0] == "error"}
    assert "the token lacks permission" in error.pop("reader")
    assert "rejects this token" in error.pop("nobody's token")
    assert "the token lacks permission" in error.pop("someone else's")
    assert "ada/bare holds files that this package didn't publish: choose another repo_id" in error.pop("foreign")
    assert "ada/bare is public, but should be private: publish with private=False" in error.pop("visible")
    assert "ada/aside has a branch versions that holds no version of ours" in error.pop("a branch of theirs")
    assert aside.refs["refs/heads/versions"] == old
    assert re.search(r"ada/altered: README\.md of v0\.1 arrived changed .* no tag was", error.pop("altered"))
    assert "v0.1" not in refs(hub, "ada/altered")
    assert re.search(r"the tag v0\.2 already points at [0-9a-f]{40}, where", error.pop("moved"))
    assert "ada/alone v0.4, which is not published: publish all" in error.pop("heads alone")
    for case in ("another run", "another version of another run"):
        assert re.search(r"ada/late v0\.[24] has other weights than .*, so it belongs to another run", error.pop(case))
    assert "ada/late-own v0.4 is a BertForTokenClassification" in error.pop("an encoder where a head is")
    assert "ada/late v0.4, whose weights are not those of" in error.pop("heads of another run")
    for case in ("written by others", "tagged by others"):
        assert "the last commit of main is not ours (A word more, " in error.pop(case)
    assert "the last commit of main is not ours (v1.1, " in error.pop("as if a version")
    assert "the last commit of main is not ours (v0.1, " in error.pop("as if this version")
    assert {name: refs(hub, name) for name in theirs} == edited
    assert not error
    unmade = {"ada/reader", "ada/nobody", "bob/encoder", "ada/alone-own"}
    assert not unmade & {id for _, id in hub.world.store.repositories}

    adopted = refs(hub, "ada/bare")
    assert {name: adopted[name] for name in before} == before  # nothing that was there is touched
    assert titles(hub, "ada/bare", "versions")[-4:] == TAGS
    assert seen["adopted"] == seen["adopted again"] == [["ada/bare", tag, adopted[tag]] for tag in TAGS]
    clean = hub.world.store.repositories["models", "ada/bare"].commits[adopted["v0.1"]].files
    assert not [name for name in clean if name.endswith((".bin", ".pt"))]

    assert seen["heads trained since"][:1] == seen["without heads"]
    late = refs(hub, "ada/late")
    assert late["main"] == late["v0.4"] != late["v0.2"] == late["versions"]


def make_bare(folder: Path) -> tuple[Path, Path]:
    """Make the layout of the weights that are on the Hub already, and that of the pull request beside them."""
    bare, request = folder / "bare", folder / "request"
    model = build_tiny_bert(127, seed=5)
    model.save_pretrained(request)
    bare.mkdir()
    shutil.copyfile(request / "config.json", bare / "config.json")
    torch.save(model.state_dict(), bare / "pytorch_model.bin")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"state": torch.zeros(1000)}, bare / name)
    (bare / "vocab.txt").write_text("".join(f"{token}\n" for token in tiny_vocabulary()))
    (request / "config.json").unlink()
    return bare, request


def test_a_bare_repository_loads_everywhere(hub: Hub, tmp_path: Path) -> None:
    """Once from the Hub, once from the cache alone: scripts and library, models and data sets, by name and revision."""
    name, texts, sets, run = "ada/as-published", "ada/texts", "ada/sets", tmp_path / "run"
    environment: dict[str, Any] = {"token": hub.token("ada"), "xet": False}
    sample = ROOT / "bioptimus_hf" / "sample"
    files = {f"{part}.tsv": sample / "ner" / f"{part}.tsv" for part in ("train", "dev", "test")}
    lines = [json.dumps({"text": line}) for line in (sample / "corpus.txt").read_text().splitlines()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    data = {texts: {"train.jsonl": tmp_path / "corpus.jsonl"}, sets: files}
    filled = [[name, *make_bare(tmp_path)]]
    commits = call(hub, hub_clients.fill_all, filled, data, "ada/nothing", environment=environment)
    text = ["--corpus", f"{texts}@v1", "--validation_share", "0.1"]
    base, where = ["--base_model", f"{name}@main"], ["--output_dir", str(run), "--force", "true"]
    small = ["--max_length", "32", "--max_steps", "4", "--per_device_train_batch_size", "2", "--save_steps", "100"]
    heads = ["--ner_data", str(sample / "ner"), "--tasks", "sample", "--models", f"bare={name}", "--seeds", "1"]
    commands = [
        ["train_vocabulary", *base, *text, *where, "--size", "1200"],
        ["find_contexts", *base, *text, *where, "--per_token", "2"],
        ["distill_embeddings", *base, *where],
        ["pretrain", *text, *where, *small, "--model", name, "--decontaminate", f"{sets}@v1"],
        ["finetune_ner", *base, *where, *heads, "--num_train_epochs", "1", "--max_length", "64"],
    ]
    home = tmp_path / "home"
    made, seen = [], []
    for offline in ("0", "1"):
        client = {**environment_of(hub, xet=False, home=home), "HF_HUB_OFFLINE": offline}
        del client["DISABLE_SAFETENSORS_CONVERSION"]  # nothing may ask for one, although this is not set
        names = [f"{name}@main", f"{name}@refs/pr/1"]
        command = command_of(publish_clients.stages, ROOT / "scripts", commands, run, names)
        ended = subprocess.run(command, env=client, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        made.append(json.loads(ended.stdout.splitlines()[-1]))
        seen.append(len(hub.requests))
    assert seen[0] == seen[1]
    assert made[0] == made[1]
    inputs, numbers, request = made[0]
    its = f"name:{name}@{refs(hub, name)['main']}"
    assert {inputs[stage]["base_model"] for stage in ("tokenizer", "contexts", "v0.0")} == {its}
    assert inputs["pretraining"]["model"] == inputs["ner/sample/bare/0"]["model"] == its
    assert inputs["tokenizer"]["corpus"] == f"name:{texts}@{commits[0]}"
    assert inputs["pretraining"]["test_sets"] == f"name:{sets}@{commits[1]}"
    fetched = {request.path for request in hub.requests if f"/{name}/resolve/" in request.path}
    assert not [path for path in fetched if path.endswith((".pt", "README.md"))]
    assert numbers[:3] == [[], 127, 127]
    assert not [one.path for one in hub.requests if "/discussions" in one.path]
    assert request == numbers  # there as safetensors, and the same


def spoil_nan(run: Path) -> None:
    weights = load_file(run / "v0.2" / "model.safetensors")
    weights["bert.embeddings.LayerNorm.bias"][3] = float("nan")
    save_file(weights, run / "v0.2" / "model.safetensors", metadata={"format": "pt"})


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no phase.json": (lambda run: (run / "v0.2" / "phase.json").unlink(), r"v0\.2 has no phase\.json"),
    "no vocab.txt": (lambda run: (run / "v0.2" / "vocab.txt").unlink(), r"v0\.2 lacks vocab\.txt"),
    "an optimizer": (lambda run: (run / "v0.2" / "optimizer.pt").touch(), r"v0\.2 holds optimizer\.pt"),
    "a folder": (lambda run: (run / "v0.2" / "checkpoints").mkdir(), r"v0\.2 holds checkpoints/"),
    "no metric": (
        lambda run: change(run / "v0.2" / "phase.json", metrics={}),
        "no validation loss, which its model card",
    ),
    "vocabulary": (
        lambda run: change(run / "v0.2" / "config.json", vocab_size=126),
        "must have the same tokens, but have 126, 127 and 127",
    ),
    "rows": (lambda run: shorten(run / "v0.2"), r"has shape \(127.*, but config\.json describes \(126"),
    "no classifier": (
        lambda run: rename(run, "classifier.weight", None),
        r"is not a BertForTokenClassification: classifier\.weight missing",
    ),
    "another tensor": (
        lambda run: rename(run, "classifier.bias", "classifier.extra"),
        r"is not a BertForTokenClassification: classifier\.bias missing",
    ),
    "a further tensor": (
        lambda run: rename(run, "classifier.bias", "classifier.extra", keep=True),
        r"is not a BertForTokenClassification: classifier\.extra unexpected",
    ),
    "NaN": (spoil_nan, "LayerNorm.bias contains NaN or infinite values"),
    "cut off": (lambda run: (run / "v0.2" / "model.safetensors").write_bytes(b"x" * 99), "is damaged or incomplete"),
    "other class": (
        lambda run: change(run / "v0.2" / "config.json", architectures=["X"]),
        "doesn't describe a plain Bert",
    ),
    "own code": (lambda run: change(run / "v0.2" / "config.json", auto_map={}), "doesn't describe a plain Bert"),
    "a path": (lambda run: change(run / "v0.2" / "config.json", name="/home/ada/x"), "config.json would publish '/ho"),
    "any path": (lambda run: change(run / "v0.2" / "config.json", n="/data/ada"), "config.json would publish '/data/"),
    "a token": (
        lambda run: change(run / "v0.2" / "config.json", n="hf_" + 30 * "a"),
        "config.json would publish a tok",
    ),
    "a newer token": (
        lambda run: change(run / "v0.2" / "config.json", n="hf_jwt_" + 30 * "a"),
        "config.json would publish a tok",
    ),
    "seeds apart": (
        lambda run: change(run / "ner/own/v0.4/1/made.json", settings={"learning_rate": 1.0, "seed": 1}),
        "trained on other data or with other settings than the other seeds",
    ),
    "no run": (
        lambda run: shutil.rmtree(run / "pretraining"),
        r"no record \(made\.json\) of the pre-training of v0\.2",
    ),
    "no hardware": (lambda run: without_hardware(run), "the run didn't record: .* 'hardware'"),
    "other heads": (
        lambda run: (run / "v0.4" / "config.json").write_text("{}"),
        "was trained on weights other than those of",
    ),
    "a head's score": (
        lambda run: change(
            run / "ner/own/v0.4/0/scores.json", test=dict.fromkeys(("f1", "precision", "recall", "support"), 0.5)
        ),
        "lacks a score that the model card states",
    ),
}


def rename(run: Path, name: str, other: str | None, *, keep: bool = False) -> None:
    """Rename a tensor of the heads, or leave it out, or copy it."""
    for file in run.glob("ner/own/v0.4/*/model.safetensors"):
        weights = load_file(file)
        values = weights[name].clone()
        if not keep:
            del weights[name]
        save_file({**weights, **({other: values} if other else {})}, file, metadata={"format": "pt"})


def shorten(version: Path) -> None:
    lines = (version / "vocab.txt").read_text().splitlines()[:-1]
    for folder in (version, version.parent / "tokenizer"):
        (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines))
    content = json.loads((version / "tokenizer.json").read_text())
    content["model"]["vocab"] = {line: number for number, line in enumerate(lines)}
    (version / "tokenizer.json").write_text(json.dumps(content))
    change(version / "config.json", vocab_size=126)


def without_hardware(run: Path) -> None:
    made = json.loads((run / "pretraining" / "made.json").read_text())
    del made["hardware"]
    (run / "pretraining" / "made.json").write_text(json.dumps(made))


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_not_fit_to_be_published_never_reaches_the_network(run_dir: Path, case: str) -> None:
    spoil, said = SPOILED[case]
    spoil(run_dir)
    with pytest.raises(InputError, match=said) as error:
        publish(run_dir, "ada/encoder", versions=["0.2", "0.4"], selection=Selection(), about=ABOUT)
    assert "\n" not in str(error.value)


def test_heads_that_are_not_finished_are_not_counted(run_dir: Path) -> None:
    heads = run_dir / "ner" / "own" / "v0.4"
    shutil.copytree(heads / "0", heads / "0.replaced")
    shutil.copytree(heads / "0", heads / "2.partial")
    (heads / "2.partial" / "made.json").unlink()
    assert [len(head.scores) for head in heads_of(run_dir, "0.4").values()] == [2]


def test_what_was_adapted_is_known_by_its_weights(run_dir: Path) -> None:
    """A head that is filed as `base` may be on another model."""
    shutil.copytree(run_dir / "ner" / "own" / "v0.4", run_dir / "ner" / "own" / "base")
    for own in (False, True):
        for seed in "01":
            made = run_dir / "ner" / "own" / "base" / seed / "made.json"
            adapted = read_record(run_dir / "tokenizer")["inputs"]["base_model"]
            change(made, inputs={"train": "sha256:1", "model": adapted if own else "name:other/model@1"})
        facts = head_facts(run_dir, "own", "0.4", "ada/encoder-own", ABOUT)
        assert [row["seeds"] for row in facts["base_results"]] == ([[0, 1]] if own else [])


@pytest.mark.parametrize("repo_id", ["encoder", "a/b/c", "ada/a--b", "ada/.x", "ada/x y", ""])
def test_a_repository_needs_a_name_that_can_be(finished: Path, repo_id: str) -> None:
    with pytest.raises(InputError, match=f"repo_id: {re.escape(repo_id)}"):
        publish(finished, repo_id, about=ABOUT)


def test_what_a_run_cannot_know_is_asked_for(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="about: the cards state a licence, a language and the text"):
        publish(finished, "ada/encoder")
    (tmp_path / "file").touch()
    for place in ("nowhere", "file"):
        with pytest.raises(InputError, match="is not a folder: give the folder of a run"):
            publish(tmp_path / place, "ada/encoder", about=ABOUT)
    for name in ("no name at all", "a/b/c"):
        with pytest.raises(InputError, match=f"base_model_id: {name}: "):
            publish(finished, "ada/encoder", about=replace(ABOUT, base_model=name))
    more = {**ABOUT.ner_licenses, "jnlpba": "of a task without a head"}
    assert publish(finished, "ada/encoder", versions=["0.1"], about=replace(ABOUT, ner_licenses=more))
    with pytest.raises(InputError, match=r"ner_datasets: ner=\.\.\.: the known tasks are bc2gm, .*, own"):
        publish(finished, "ada/encoder", about=replace(ABOUT, ner_datasets={"ner": "lab/entities"}))
    numbers: list[Any] = [0.1]  # as YAML has them
    assert publish(finished, "ada/encoder", versions=numbers, about=ABOUT)[0].tag == "v0.1"
    with pytest.raises(InputError, match=r"v0\.9 has no phase\.json"):
        publish(finished, "ada/encoder", versions=["0.9"], about=ABOUT)
    with pytest.raises(InputError, match=r"no head for ner on v0\.1"):
        publish(finished, "ada/encoder", versions=["0.1"], selection=Selection("heads", tasks=["ner"]), about=ABOUT)
    with pytest.raises(InputError, match=r"no head on v0\.1 .* \(what=encoder\)"):
        publish(finished, "ada/encoder", versions=["0.1"], selection=Selection(), about=ABOUT)


def test_what_keeps_from_pushing_is_said_at_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    push = partial(publish, finished, "ada/encoder", versions=["0.1"], about=ABOUT, dry_run=False)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, but publishing needs the Hub"):
        push()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=r"^no token to publish with: set HF_TOKEN"):
        push()
    monkeypatch.setenv("HF_OIDC_RESOURCE", "ada/encoder")
    with pytest.raises(InputError, match=r"^the trusted publisher gave no token .*not running in a supported"):
        push()
    monkeypatch.setattr("bioptimus_hf.publishing.repository._TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        for port in (9, silent.getsockname()[1]):
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
            began = time.monotonic()
            with pytest.raises(
                InputError, match=f"cannot look up ada/encoder: http://127.0.0.1:{port} cannot be reached"
            ):
                push(token="hf_none")
            assert time.monotonic() - began < 30


def script(hub: Hub, *options: str, **environment: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "publish.py"), *options]
    env = environment_of(hub) | environment
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


def test_the_script(hub: Hub, finished: Path, tmp_path: Path) -> None:
    values = ("apache-2.0", "en", "abstracts", "CC0-1.0", "own=CC-BY-4.0")
    card = [part for name, value in zip(CARD, values, strict=True) for part in (f"--{name}", value)]
    options = ["--output_dir", str(finished), "--repo_id", "ada/script", *card]
    start, token = len(hub.requests), hub.token("ada")
    plan = script(hub, *options, "--versions", "0.3", "0.4").stdout
    for part in ("## ada/script (private), tag v0.3", "| model.safetensors |", "## ada/script-own (private), tag v0.4"):
        assert part in plan
    assert "**v0.3** (this one)" in plan
    assert "Nothing was sent. Add --push" in plan
    assert len(hub.requests) == start
    (tmp_path / "token").write_text(token)  # as `hf auth login` leaves it
    done = script(hub, *options, "--push", "--what", "encoder", "--versions", "0.1", HF_HOME=str(tmp_path))
    commit = refs(hub, "ada/script")["v0.1"]
    assert f"| ada/script | v0.1 | {commit} | {hub.endpoint}/ada/script/tree/v0.1 |" in done.stdout
    assert token not in done.stdout + done.stderr
    assert "signature=" not in done.stderr


def test_what_is_loaded_back_is_compared(run_dir: Path) -> None:
    """A folder can stand for a repository, since the libraries take both."""
    encoder, head = "BertForMaskedLM", "BertForTokenClassification"
    ours, theirs = run_dir / "v0.1", run_dir / "v0.2"
    assert loading.differences(str(ours), encoder, "v0.1", ours) == []
    assert "bert.embeddings.word_embeddings.weight" in loading.differences(str(theirs), encoder, "v0.1", ours)
    found, meant = run_dir / "ner/own/v0.4/0", run_dir / "meant"
    shutil.copytree(found, meant)
    change(meant / "config.json", id2label={"0": "O", "1": "B-Drug", "2": "I-Drug"})
    assert loading.differences(str(found), head, "v0.4", meant) == ["the labels"]
    change(meant / "config.json", model_type="electra")
    assert "the model class ElectraForTokenClassification" in loading.differences(str(meant), head, "v0.4", found)
    content = json.loads((theirs / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["asthma"], words["mice"] = words["mice"], words["asthma"]
    (theirs / "tokenizer.json").write_text(json.dumps(content))
    shutil.copyfile(ours / "model.safetensors", theirs / "model.safetensors")
    assert loading.differences(str(theirs), encoder, "v0.1", ours) == ["the tokenizer"]


def test_loading_back_is_tried_again_but_not_where_it_differs(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release(str(finished / "v0.1"), "0.1", "BertForMaskedLM", finished / "v0.2", "", ())
    with pytest.raises(InputError, match=r"the version loaded back is not what was published: v0\.1 differs in bert"):
        load_back([release], None)
    environments = []

    def run(command: list[str], env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
        environments.append(env)
        return subprocess.CompletedProcess(command, int(len(environments) < 3), "", "the Hub is away")

    monkeypatch.setattr("bioptimus_hf.publishing.publish.subprocess.run", run)
    monkeypatch.setattr("bioptimus_hf.publishing.retries.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "mine")
    load_back([release], None)
    assert [one.get("HF_TOKEN") for one in environments] == [None] * 3
    assert {one["HF_HUB_DISABLE_IMPLICIT_TOKEN"] for one in environments} == {"1"}
    assert len({one["HF_HOME"] for one in environments}) == 3
    load_back([release], "theirs")
    assert environments[-1]["HF_TOKEN"] == "theirs"


def test_the_workflow(tmp_path: Path) -> None:
    """What it runs, with a `python` that says what it was given: no input is read as a command."""
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())["jobs"]["publish"]
    assert job["permissions"] == {"contents": "read", "actions": "read", "id-token": "write"}
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in job["steps"] if "uses" in step)
    (tmp_path / "python").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "python").chmod(0o755)
    inputs = {"REPO_ID": "ada/x; touch own", "VERSIONS": "0.3 0.4", "PUBLIC": "true", "TASK": "own"}
    inputs["CARD"] = "license: mit\nner_licenses: [own=$(touch own)]"
    environment = {**os.environ, **inputs, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-o", "pipefail", "-c", job["steps"][-1]["run"]]
    given = []
    for changed in ({}, {"TASK": "", "PUBLIC": "false", "VERSIONS": "0.3"}):
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment | changed, "text": True}
        given.append(subprocess.check_output(command, **options).splitlines())
    start = ["scripts/publish.py", "--recipe", "card.yaml", "--output_dir", "run", "--repo_id", inputs["REPO_ID"]]
    assert given[0] == [*start, "--versions", "0.3", "0.4", "--push", "--what", "heads", "--tasks", "own", "--public"]
    assert given[1] == [*start, "--versions", "0.3", "--push", "--what", "encoder"]
    recipe = yaml.safe_load((tmp_path / "card.yaml").read_text())
    assert recipe == {"publish": {"license": "mit", "ner_licenses": ["own=$(touch own)"]}}
    assert not (tmp_path / "own").exists()
