"""Test publishing to a Hub on loopback with the real client libraries, including everything that may go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import hub_clients
import publish_clients
import pytest
import torch
import yaml
from client_processes import ClientProcesses, client_environment, wait_until
from finished_run import make_run
from helpers import ROOT, build_tiny_bert, tiny_vocabulary
from hub import Cut, Delay, Drop, Hub, Status
from hub.faults import How

from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.publishing.checks import MARK

BOTH_PROTOCOLS = pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
VERSIONS = ["0.1", "0.2", "0.3", "0.4"]
TAGS = [f"v{version}" for version in VERSIONS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "run")


def refs(hub: Hub, repo_id: str) -> dict[str, str]:
    """Return the commits of branches and tags."""
    commits = hub.world.store.repositories["models", repo_id].refs
    return {name.removeprefix("refs/heads/").removeprefix("refs/tags/"): commit for name, commit in commits.items()}


def titles(hub: Hub, repo_id: str, branch: str = "main") -> list[str]:
    """Return the titles of the commits on a branch, oldest first."""
    repository = hub.world.store.repositories["models", repo_id]
    head = repository.commits[repository.refs[f"refs/heads/{branch}"]]
    return [commit.title for commit in repository.history(head)][::-1]


@BOTH_PROTOCOLS
def test_versions_and_heads_are_published_and_used(
    hub: Hub, clients: ClientProcesses, finished: Path, xet: bool
) -> None:
    """The repositories are public with xet, and private with LFS."""
    token, private = hub.token("ada", orgs={"lab": "admin", "rttl-ai": "write"}), not xet
    name = "rttl-ai/BIOptimus" if xet else "lab/encoder"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code, start = readme.partition("```python\n")[2].partition("```")[0] if xet else "", len(hub.requests)
    published = clients.call(
        publish_clients.publish,
        finished,
        name,
        what="all",
        private=private,
        collection=f"Encoders {xet}",
        environment={"token": token, "xet": xet},
    )
    assert [version[:2] for version in published] == [*([name, tag] for tag in TAGS), [f"{name}-own", "v0.4"]]
    read = [request for request in hub.requests[start:] if request.path.endswith("/model.safetensors")]
    assert {request.who for request in read} == {"ada (write)" if private else None}  # public ones are read anonymously
    encoder, head = refs(hub, name), refs(hub, f"{name}-own")
    assert [version[2] for version in published] == [*(encoder[tag] for tag in TAGS), head["v0.4"]]
    assert (encoder["main"], head["main"]) == (encoder["v0.4"], head["v0.4"])
    assert titles(hub, name) == ["initial commit", *TAGS]
    repository = hub.world.store.repositories["models", name]
    assert repository.private == private
    expected = {".gitattributes", "README.md", MARK, "config.json", "history.png", "model.safetensors"}
    expected |= {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    results = {".eval_results/own.yaml"}
    files = [set(repository.commits[encoder[tag]].files) for tag in TAGS]
    assert files == [expected, expected, expected, expected | results]
    assert not list(finished.glob("publishing*"))
    used = clients.call(
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
    texts = ["severe asthma of mice"] * 2
    counts = clients.call(publish_clients.annotate, f"{name}-own", texts, environment={"token": token, "xet": xet})
    assert len(counts) == 2
    (collection,) = [found for found in hub.world.store.collections.values() if found.title == f"Encoders {xet}"]
    assert [item["id"] for item in collection.items] == [name, f"{name}-own"]


@BOTH_PROTOCOLS
def test_publishing_continues_after_a_kill(hub: Hub, clients: ClientProcesses, finished: Path, xet: bool) -> None:
    name, environment = f"ada/killed-{xet}", {"token": hub.token("ada"), "xet": xet}
    match = "POST /v1/xorbs/*" if xet else f"PUT /uploads/models/{name}/*"
    slow = hub.fail(match, Delay(30), skip=1 if xet else 2)  # the weights of the second version
    call = clients.start(publish_clients.publish_only, finished, name, environment=environment)
    wait_until(lambda: slow.happened)
    os.kill(call.pid, signal.SIGKILL)
    with pytest.raises(AssertionError, match="killed"):
        call.result()
    hub.clear_faults()
    assert titles(hub, name) == ["initial commit", "v0.1"]
    again = clients.call(publish_clients.publish_only, finished, name, times=2, environment=environment)
    assert [version[1] for version in again] == TAGS * 2, again
    assert titles(hub, name) == ["initial commit", *TAGS]
    assert not list(finished.glob("publishing*"))


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
FAULTS: tuple[How, ...] = (Status(500), Status(503, after=True), Drop(), Drop(after=True), Cut(100))


@BOTH_PROTOCOLS
def test_every_step_may_fail_in_every_way(hub: Hub, clients: ClientProcesses, finished: Path, xet: bool) -> None:
    """In the repository of each fault, each step fails once; in the last repository, it fails the second time."""
    steps = STEPS + (XET_STEPS if xet else LFS_STEPS)
    names = [f"ada/sweep-{xet}-{number}" for number in range(len(FAULTS) + 1)]
    faults = []
    for name, how in zip(names, (*FAULTS, Status(500)), strict=True):
        later = int(name == names[-1])
        own = [step for step in steps if "{name}" in step]
        faults += [(later, hub.fail(step.format(name=name), how, skip=later)) for step in own]
    # All repositories share these steps, and xet only takes them once.
    faults += [(0, hub.fail(step, Status(502, page=True))) for step in steps if "{name}" not in step]
    environment = {"token": hub.token("ada"), "xet": xet}
    published = clients.call(publish_clients.publish_to_all, finished, names, environment=environment)
    for name in names:
        commits = refs(hub, name)
        assert published[name] == [[name, tag, commits[tag]] for tag in TAGS[:2]], published[name]
        assert commits["main"] == commits["v0.2"]
        assert titles(hub, name) == ["initial commit", "v0.1", "v0.2"]
    assert [fault.match for later, fault in faults if not (later or fault.happened)] == []
    hub.clear_faults()


@BOTH_PROTOCOLS
def test_two_publishers_at_once(hub: Hub, clients: ClientProcesses, finished: Path, xet: bool) -> None:
    name, environment = f"ada/twice-{xet}", {"token": hub.token("ada"), "xet": xet}
    for match in ("POST */commit/*", "POST */tag/*"):
        hub.fail(match, Delay(0.3), times=4)
    calls = [
        clients.start(publish_clients.publish_only, finished, name, versions=VERSIONS[:2], environment=environment)
        for _ in range(2)
    ]
    published = [call.result() for call in calls]
    hub.clear_faults()
    commits = refs(hub, name)
    assert published == [[[name, tag, commits[tag]] for tag in TAGS[:2]]] * 2
    assert titles(hub, name) == ["initial commit", *TAGS[:2]]


def test_two_publishers_of_different_versions(hub: Hub, clients: ClientProcesses, finished: Path) -> None:
    """The older version arrives while the newer one is on main but has no tag yet."""
    environment, name = {"token": hub.token("ada"), "xet": False}, "ada/apart"
    clients.call(publish_clients.publish_only, finished, name, versions=["0.1"], environment=environment)
    both = clients.call(publish_clients.publish_during_tag, finished, name, "0.3", "0.4", environment=environment)
    commits = refs(hub, name)
    assert both == [[[name, tag, commits[tag]]] for tag in ("v0.3", "v0.4")]
    assert (commits["main"], commits["versions"]) == (commits["v0.4"], commits["v0.3"])
    assert titles(hub, name) == ["initial commit", "v0.1", "v0.4"]


@pytest.mark.parametrize("step", ["POST /api/repos/create", "POST */commit/*", "POST */tag/*", "GET */refs"])
def test_two_runs_at_once(hub: Hub, clients: ClientProcesses, finished: Path, tmp_path: Path, step: str) -> None:
    """Of two runs with different weights, one publishes everything and the other one nothing at all."""
    name, environment = (
        f"ada/race-{len(step)}",
        {"token": hub.token("ada"), "xet": False},
    )
    runs = [finished, make_run(tmp_path / "other", seed=1)]
    hub.fail(step, Delay(0.4), times=6)
    calls = [
        clients.start(publish_clients.publish_only, run, name, versions=VERSIONS[:3], environment=environment)
        for run in runs
    ]
    outcomes = [call.result() for call in calls]
    hub.clear_faults()
    commits = refs(hub, name)
    everything = [[name, tag, commits[tag]] for tag in TAGS[:3]]
    assert titles(hub, name) == ["initial commit", *TAGS[:3]]
    assert commits["main"] == commits["v0.3"]
    winner = outcomes.index(everything)
    (problem,) = outcomes[1 - winner]
    assert problem[0] == "error"
    by_commit = r"another run has published there, .*: v0\.\d, \w{7} by ada is of run"
    assert re.search(f"{by_commit}|so it belongs to another run|another run's; tags", problem[1])
    again = [
        clients.call(publish_clients.publish_only, run, name, versions=VERSIONS, environment=environment)
        for run in runs
    ]
    assert again[winner] == [*everything, [name, "v0.4", refs(hub, name)["v0.4"]]]
    assert again[1 - winner][0][0] == "error"


@pytest.mark.parametrize("page", [True, False])
def test_a_tag_that_was_accepted_but_not_created(
    hub: Hub, clients: ClientProcesses, finished: Path, page: bool
) -> None:
    """No version is sent twice, and none after a version without a tag."""
    name, environment = f"ada/untagged-{page}", {"token": hub.token("ada"), "xet": False}

    def publish(*versions: str) -> Any:
        return clients.call(
            publish_clients.publish_only, finished, name, versions=versions, seconds=0.3, environment=environment
        )

    hub.fail(f"POST /api/models/{name}/tag/*", Status(200, page=page), times=10_000)
    (problem,) = publish("0.1", "0.2")
    expected = (
        "answered 200 .with a web page, which comes from a proxy" if page else "accepted the tag v0.1, but doesn't"
    )
    assert re.search(expected, problem[1])
    assert titles(hub, name) == ["initial commit", "v0.1"]
    hub.clear_faults()
    hub.fail(f"POST /api/models/{name}/tag/*", Status(200, page=page))
    commits = [[name, tag, refs(hub, name)[tag]] for tag in TAGS[:2]] if publish("0.1", "0.2") else []
    assert publish("0.1", "0.2") == commits
    assert titles(hub, name) == ["initial commit", *TAGS[:2]]
    for versions in (["0.1", "0.2"], ["0.3"]):
        del hub.world.store.repositories["models", name].refs["refs/tags/v0.1"]  # as an interrupted publisher leaves it
        assert publish(*versions)[-1][0] == name
        assert refs(hub, name)["v0.1"] == commits[0][2]
    assert titles(hub, name) == ["initial commit", *TAGS[:3]]


def test_tags_of_others_that_look_like_versions(hub: Hub, clients: ClientProcesses, finished: Path) -> None:
    name, environment = "ada/labelled", {"token": hub.token("ada"), "xet": False}
    repository = None
    for version, foreign in (("0.1", "v1.0"), ("0.2", "v0.15"), ("0.3", "v0.4")):
        published = clients.call(
            publish_clients.publish_only, finished, name, versions=[version], environment=environment
        )
        repository = hub.world.store.repositories["models", name]
        assert published == [[name, f"v{version}", repository.refs["refs/heads/main"]]]
        repository.refs[f"refs/tags/{foreign}"] = repository.refs["refs/heads/main"]
    assert repository is not None
    assert "refs/heads/versions" not in repository.refs
    before, start = dict(repository.refs), len(hub.requests)
    for versions in (["0.4"], VERSIONS):
        (problem,) = clients.call(
            publish_clients.publish_only, finished, name, versions=versions, environment=environment
        )
        assert re.search(r"the tag v0\.4 already points at .* somebody else's or another run's", problem[1])
    assert repository.refs == before
    assert not [request for request in hub.requests[start:] if "/commit/" in request.path]


def test_a_refused_upload_is_explained_at_once(hub: Hub, clients: ClientProcesses, finished: Path) -> None:
    """Whatever is refused, and however large files are sent, there is one request and one line."""
    uploads = {False: "PUT /uploads/*", True: "POST /v1/xorbs/*"}
    for xet, upload in uploads.items():
        for step in (upload, "POST */commit/*"):
            for status in (400, 401, 403, 404, 413):
                name, environment = f"ada/refused-{xet}-{len(step)}-{status}", {"token": hub.token("ada"), "xet": xet}
                fault = hub.fail(step, Status(status), times=100)
                call = clients.start(
                    publish_clients.publish_only, finished, name, versions=["0.1"], environment=environment
                )
                (problem,) = call.result()
                hub.clear_faults()
                assert fault.happened <= 2, problem  # two large files are sent at once
                assert re.search(f"^cannot publish {name} v0.1: http://127.0.0.1:.* answered {status}", problem[1])
                assert "\n" not in problem[1]
                assert status != 403 or f"it needs write access to {name}" in problem[1]


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "read token": ("finished", "ada/reader", {}),
    "unknown token": ("finished", "ada/nobody", {"token": "hf_" + "x" * 34}),
    "other owner": ("finished", "bob/encoder", {}),
    "other content": ("finished", "ada/bare", {"private": False}),
    "public": ("finished", "ada/bare", {}),
    "adopted": ("finished", "ada/bare", {"private": False, "adopt": True}),
    "adopted again": ("finished", "ada/bare", {"private": False, "adopt": True}),
    "other branch": ("finished", "ada/aside", {"private": False, "adopt": True}),
    "altered": ("finished", "ada/altered", {"versions": ["0.1"]}),
    "other tag": ("finished", "ada/moved", {"adopt": True}),
    "heads alone": ("finished", "ada/alone", {"what": "heads"}),
    "newest": ("finished", "ada/late", {"versions": ["0.4"]}),
    "older": ("finished", "ada/late", {"versions": ["0.2"]}),
    "heads": ("finished", "ada/late", {"what": "heads"}),
    "other run": ("other", "ada/late", {"versions": ["0.4"]}),
    "other version of other run": ("other", "ada/late", {"versions": ["0.3"]}),
    "encoder to head": ("finished", "ada/late-own", {"versions": ["0.1"]}),
    "without heads": ("young", "ada/grown", {"versions": ["0.4"]}),
    "with later heads": ("finished", "ada/grown", {"versions": ["0.4"], "what": "all"}),
    "heads of other run": ("other", "ada/late", {"what": "heads"}),
    "later commit": ("finished", "ada/shared", {"versions": ["0.2"]}),
    "later commit named like a version": ("finished", "ada/titled", {"versions": ["0.2"]}),
    "later commit with a tag": ("finished", "ada/tagged", {"versions": ["0.2"]}),
    "later commit named like this version": ("finished", "ada/named", {"versions": ["0.2"]}),
}
"""What is published in each case, in this order: the run, the repository, and options."""
ERRORS = {
    "read token": "the token lacks permission",
    "unknown token": "rejects this token",
    "other owner": "the token lacks permission",
    "other content": r"ada/bare holds files that this package didn't publish: choose another repo_id, or set adopt",
    "public": r"ada/bare is public, but should be private: publish with private=False",
    "other branch": "ada/aside has a branch versions that holds no version of ours",
    "altered": r"ada/altered: README\.md of v0\.1 arrived changed .* no tag was created",
    "other tag": r"the tag v0\.2 already points at [0-9a-f]{40}, where",
    "heads alone": r"ada/alone v0\.4, which is not published: publish all",
    "other run": r"ada/late v0\.[24] has other weights than .*, so it belongs to another run",
    "other version of other run": r"ada/late v0\.[24] has other weights than .*, so it belongs to another run",
    "encoder to head": r"ada/late-own v0\.4 is a BertForTokenClassification, not a BertForMaskedLM",
    "heads of other run": r"ada/late v0\.4, whose weights are not those of",
    "later commit": r"the last commit of main is not ours \(A word more, ",
    "later commit with a tag": r"the last commit of main is not ours \(A word more, ",
    "later commit named like a version": r"the last commit of main is not ours \(v1\.1, ",
    "later commit named like this version": r"the last commit of main is not ours \(v0\.1, ",
}
"""The errors of the cases that are rejected."""


def test_work_of_others_is_never_undone(
    hub: Hub, clients: ClientProcesses, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hub.token("ada", orgs={"lab": "admin"})
    environment = {"token": token, "xet": False}
    bare = make_bare(tmp_path)
    filled = [["ada/bare", *bare], ["ada/aside", *bare]]
    clients.call(hub_clients.fill_all, filled, {}, "ada/moved", environment=environment)
    aside = hub.world.store.repositories["models", "ada/aside"]
    aside.refs["refs/heads/versions"] = old = min(aside.commits.values(), key=lambda commit: commit.date).id
    keep = hub.world.store.add_regular
    monkeypatch.setattr(
        hub.world.store, "add_regular", lambda content: keep(content.replace(b"ada/altered", b"ada/another"))
    )
    before, other = dict(refs(hub, "ada/bare")), make_run(tmp_path / "other", seed=1)
    young = shutil.copytree(finished, tmp_path / "young")
    shutil.rmtree(young / "ner")
    edits = {"ada/shared": "A word more", "ada/titled": "v1.1", "ada/named": "v0.1", "ada/tagged": "A word more"}
    runs = {"finished": finished, "other": other, "young": young}
    cases = {name: (runs[run], repo_id, options) for name, (run, repo_id, options) in CASES.items()}
    cases["read token"] = (finished, "ada/reader", {"token": hub.token("ada", "read")})
    shared = {name: (finished, name, {"versions": ["0.1"]}) for name in edits}
    clients.call(publish_clients.attempts, shared, environment=environment)
    clients.call(publish_clients.edit, edits, environment=environment)
    tagged = hub.world.store.repositories["models", "ada/tagged"].refs
    tagged["refs/tags/paper"] = tagged["refs/heads/main"]
    edited = {name: dict(refs(hub, name)) for name in edits}
    outcomes = clients.call(publish_clients.attempts, cases, environment=environment)
    errors = {name: outcome[0][1] for name, outcome in outcomes.items() if outcome[0][0] == "error"}
    assert errors.keys() == ERRORS.keys(), errors
    for name, pattern in ERRORS.items():
        assert re.search(pattern, errors[name]), errors[name]

    assert aside.refs["refs/heads/versions"] == old
    assert "v0.1" not in refs(hub, "ada/altered")
    assert {name: refs(hub, name) for name in edits} == edited
    never_created = {"ada/reader", "ada/nobody", "bob/encoder", "ada/alone-own"}
    assert not never_created & {name for _, name in hub.world.store.repositories}

    adopted = refs(hub, "ada/bare")
    assert {name: adopted[name] for name in before} == before  # nothing that was there is touched
    assert titles(hub, "ada/bare", "versions")[-4:] == TAGS
    assert outcomes["adopted"] == outcomes["adopted again"] == [["ada/bare", tag, adopted[tag]] for tag in TAGS]
    clean = hub.world.store.repositories["models", "ada/bare"].commits[adopted["v0.1"]].files
    assert not [name for name in clean if name.endswith((".bin", ".pt"))]

    assert outcomes["with later heads"][:1] == outcomes["without heads"]
    late = refs(hub, "ada/late")
    assert late["main"] == late["v0.4"] != late["v0.2"] == late["versions"]


def make_bare(folder: Path) -> tuple[Path, Path]:
    """Make the files of the weights that the paper's authors published, and of the pull request beside them."""
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


def test_every_stage_takes_models_and_data_sets_of_the_hub(hub: Hub, clients: ClientProcesses, tmp_path: Path) -> None:
    """By name and revision, first from the Hub and then offline from the cache, with a repository of .bin weights."""
    name, texts, sets, run = "ada/as-published", "ada/texts", "ada/sets", tmp_path / "run"
    environment: dict[str, Any] = {"token": hub.token("ada"), "xet": False}
    sample = ROOT / "bioptimus_hf" / "sample"
    files = {f"{part}.tsv": sample / "ner" / f"{part}.tsv" for part in ("train", "dev", "test")}
    lines = [json.dumps({"text": line}) for line in (sample / "corpus.txt").read_text().splitlines()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    data = {texts: {"train.jsonl": tmp_path / "corpus.jsonl"}, sets: files}
    filled = [[name, *make_bare(tmp_path)]]
    commits = clients.call(hub_clients.fill_all, filled, data, "ada/nothing", environment=environment)
    text = ["--corpus", f"{texts}@v1", "--validation_share", "0.1"]
    base, where = ["--base_model", f"{name}@main"], ["--output_dir", str(run), "--force", "true"]
    small = ["--max_length", "32", "--max_steps", "4", "--per_device_train_batch_size", "2", "--save_steps", "100"]
    heads = ["--ner_data", str(sample / "ner"), "--tasks", "sample", "--models", f"bare={name}", "--seeds", "1"]
    commands = [
        ["train-vocabulary", *base, *text, *where, "--size", "1200"],
        ["find-contexts", *base, *text, *where, "--per_token", "2"],
        ["distill", *base, *where],
        ["pretrain", *text, *where, *small, "--model", name, "--decontaminate", f"{sets}@v1"],
        ["finetune-ner", *base, *where, *heads, "--num_train_epochs", "1", "--max_length", "64"],
    ]
    arguments = [commands, str(run), [f"{name}@main", f"{name}@refs/pr/1"]]
    outcomes, requests = [], []
    for offline in (False, True):
        client = {"xet": False, "home": tmp_path / "home", "offline": offline}
        outcomes.append(clients.call(publish_clients.run_stages, *arguments, environment=client))
        requests.append(len(hub.requests))
    assert requests[0] == requests[1]
    assert outcomes[0] == outcomes[1]
    inputs, numbers, request = outcomes[0]
    pinned = f"name:{name}@{refs(hub, name)['main']}"
    assert {inputs[stage]["base_model"] for stage in ("tokenizer", "contexts", "v0.0")} == {pinned}
    assert inputs["pretraining"]["model"] == inputs["ner/sample/bare/0"]["model"] == pinned
    assert inputs["tokenizer"]["corpus"] == f"name:{texts}@{commits[0]}"
    assert inputs["pretraining"]["test_sets"] == f"name:{sets}@{commits[1]}"
    fetched = {request.path for request in hub.requests if f"/{name}/resolve/" in request.path}
    assert not [path for path in fetched if path.endswith((".pt", "README.md"))]
    assert numbers[:3] == [[], 127, 127]
    assert numbers[3].startswith("BertForMaskedLM, not as a trained token classifier")
    assert not [request.path for request in hub.requests if "/discussions" in request.path]
    assert request == numbers  # the pull request has the same weights as safetensors


def test_command(hub: Hub, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = {
        "license": "apache-2.0",
        "language": "en",
        "corpus_description": "abstracts",
        "corpus_license": "CC0-1.0",
        "ner_licenses": "own=CC-BY-4.0",
    }
    options = [part for name, value in card.items() for part in (f"--{name}", value)]
    options += ["--output_dir", str(finished), "--repo_id", "ada/script"]
    start, token = len(hub.requests), hub.token("ada")
    assert main(["publish", *options, "--versions", "0.3", "0.4"]) == 0
    plan = capsys.readouterr().out
    assert len(plan.splitlines()) < 12
    for repository, version in (("script", "v0.3"), ("script", "v0.4"), ("script-own", "v0.4")):
        card = finished / "cards" / f"{repository}-{version}.md"
        assert re.search(rf"\| ada/{repository} \| {version} \| {version} \| \d+ \| \d\.\d MB \| {card} \|", plan)
        assert card.read_text().startswith("---\n")
    assert "**v0.3** (this one)" in (finished / "cards" / "script-v0.3.md").read_text()
    assert "3 versions in 2 private repositories" in plan
    assert "Nothing was sent. Add --push" in plan
    assert len(hub.requests) == start
    (tmp_path / "token").write_text(token)  # as `hf auth login` leaves it
    script = [sys.executable, str(ROOT / "scripts" / "publish.py"), *options]
    done = subprocess.run(
        [*script, "--push", "--what", "encoder", "--versions", "0.1"],
        env=client_environment(hub, home=tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    commit = refs(hub, "ada/script")["v0.1"]
    assert f"| ada/script | v0.1 | {commit} | {hub.endpoint}/ada/script/tree/v0.1 |" in done.stdout
    assert token not in done.stdout + done.stderr
    (url,) = re.findall(r"http://\S+", done.stdout)
    with urllib.request.urlopen(url) as page:
        assert "ada/script v0.1" in page.read().decode()
    assert "signature=" not in done.stderr


def test_workflow(tmp_path: Path) -> None:
    """Run the last step of the workflow with a `python` that prints its arguments: no input is run as a command."""
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())["jobs"]["publish"]
    assert job["permissions"] == {"contents": "read", "actions": "read", "id-token": "write"}
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in job["steps"] if "uses" in step)
    (tmp_path / "bioptimus").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "bioptimus").chmod(0o755)
    inputs = {"REPO_ID": "ada/x; touch own", "VERSIONS": "0.3 0.4", "PUBLIC": "true", "TASK": "own"}
    inputs["CARD"] = "license: mit\nner_licenses: [own=$(touch own)]"
    environment = {**os.environ, **inputs, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-o", "pipefail", "-c", job["steps"][-1]["run"]]
    given = []
    for changed in ({}, {"TASK": "", "PUBLIC": "false", "VERSIONS": "0.3"}):
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment | changed, "text": True}
        given.append(subprocess.check_output(command, **options).splitlines())
    start = ["publish", "--recipe", "card.yaml", "--output_dir", "run", "--repo_id", inputs["REPO_ID"]]
    assert given[0] == [*start, "--versions", "0.3", "0.4", "--push", "--what", "heads", "--tasks", "own", "--public"]
    assert given[1] == [*start, "--versions", "0.3", "--push", "--what", "encoder"]
    recipe = yaml.safe_load((tmp_path / "card.yaml").read_text())
    assert recipe == {"publish": {"license": "mit", "ner_licenses": ["own=$(touch own)"]}}
    assert not (tmp_path / "own").exists()
