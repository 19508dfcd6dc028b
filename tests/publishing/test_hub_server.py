"""Test with real clients that the Hub of the tests behaves as they expect the real Hub to behave."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_clients
import lz4.frame
import pytest
import torch
from client_processes import ClientProcesses, client_environment
from helpers import ROOT, tiny_vocabulary
from hub import Cut, Delay, Drop, Hub, Status
from hub.faults import How
from hub.store import regular_file, tree_ids
from hub.xet import chunks, text
from transformers import BertConfig, BertForTokenClassification, BertTokenizer

BOTH_PROTOCOLS = pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders of a model that only differ in the weights."""
    folder, vocabulary = tmp_path_factory.mktemp("versions"), {token: i for i, token in enumerate(tiny_vocabulary())}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=512)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=4096,
        id2label={0: "O", 1: "B-Disease", 2: "I-Disease"},
        label2id={"O": 0, "B-Disease": 1, "I-Disease": 2},
    )
    found = {}
    for number in (1, 2):
        torch.manual_seed(number)
        found[f"v0.{number}"] = made = folder / f"v0.{number}"
        BertForTokenClassification(config).save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "README.md").write_text(hub_clients.CARD)
        assert (made / "model.safetensors").stat().st_size > 3_000_000
    return found


def run(clients: ClientProcesses, client: Callable[..., Any], *arguments: Any, **environment: Any) -> Any:
    """Return the result of a client function, which runs in a process of its own."""
    return clients.call(client, *arguments, environment=environment)


@BOTH_PROTOCOLS
def test_versions_are_published_and_loaded(
    hub: Hub, clients: ClientProcesses, versions: dict[str, Path], xet: bool
) -> None:
    token = hub.token("ada", orgs={"lab": "admin"})
    repo, start = f"lab/encoder-{'xet' if xet else 'lfs'}", len(hub.requests)
    published = run(clients, hub_clients.publish, repo, versions, token=token, xet=xet)
    assert (published["me"]["name"], published["me"]["auth"]["accessToken"]["role"]) == ("ada", "write")
    assert published["me"]["orgs"][0]["name"] == "lab"
    assert published["url"] == f"{hub.endpoint}/{repo}"
    assert (published["twice"], published["same tag"]) == ("HfHubHTTPError 409", "HfHubHTTPError 409")
    assert published["tag nowhere"] == "RevisionNotFoundError 404"
    assert published["tags"] == published["commits"]
    assert published["branches"] == {"main": published["commits"]["v0.2"]}
    assert published["titles"] == ["v0.2", "v0.1", "initial commit"]
    assert [file["path"] for file in published["wrong"]] == ["model.safetensors"]
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in published["commits"].values())
    sent = Counter(request.origin for request in hub.requests[start:] if request.received > 3_000_000)
    assert sent == {"cas" if xet else "blobs": 2}  # the weights of each version once, by the right protocol

    start = len(hub.requests)
    loaded = run(clients, hub_clients.load, repo, versions, published["tags"], xet=xet)
    assert loaded["task"] == "token-classification"
    assert (loaded["no revision"], loaded["no repository"], loaded["no owner"]) == ("OSError",) * 3
    fetched = Counter(request.path for request in hub.requests[start:] if request.origin == "blobs")
    assert len(fetched) == 2, fetched
    assert all(path.startswith("/xorbs/" if xet else "/large/") for path in fetched)
    assert {request.who for request in hub.requests[start:]} == {None}


def test_cards_and_collections(hub: Hub, clients: ClientProcesses) -> None:
    seen = run(clients, hub_clients.cards, "ada/cards", token=hub.token("ada"))
    tags = ["chemistry", "en", "license:mit", "region:us", "transformers"]
    assert seen["info"] == ["token-classification", "transformers", "mit", tags]
    assert seen["expanded"] is None
    assert (seen["bad"], seen["bad pushed"]) == ("ValueError",) * 2
    assert '"model-index[0].results[0].dataset.name" is required' in [error["message"] for error in seen["bad index"]]
    assert seen["bad committed"] == 400
    assert seen["found"] == ["ada/cards"]
    assert seen["results"] == 0.5
    assert seen["items"] == [["ada/cards", "the encoder"]]
    assert seen["item of nothing"].endswith(" 404")


def test_permissions(hub: Hub, clients: ClientProcesses) -> None:
    owner = hub.token("ada", orgs={"lab": "admin"})
    tokens: dict[str, str | bool] = {
        "admin": owner,
        "admin, to read": hub.token("ada", "read"),
        "writer": hub.token("bob", orgs={"lab": "write"}),
        "reader": hub.token("cyd", orgs={"lab": "read"}),
        "stranger": hub.token("dan"),
        "wrong": "hf_wrong",
        "none": False,
    }
    files = {"README.md": hub_clients.CARD}
    run(clients, hub_clients.fill, "lab/private", files, True, token=owner)
    missing, hidden = "RepositoryNotFoundError 401", "RepositoryNotFoundError 404"
    refused, invalid = "HfHubHTTPError 403", "HfHubHTTPError 401"
    assert run(clients, hub_clients.access, "lab/private", tokens) == {
        "admin": ["", "", ""],
        "admin, to read": ["", refused, refused],
        "writer": ["", "", refused],
        "reader": ["", refused, refused],
        "stranger": [hidden] * 3,
        "wrong": [invalid] * 3,
        "none": [missing] * 3,
    }
    run(clients, hub_clients.fill, "lab/public", files, False, token=owner)
    others = {name: tokens[name] for name in ("stranger", "wrong", "none")}
    assert run(clients, hub_clients.access, "lab/public", others) == {
        "stranger": ["", refused, refused],
        "wrong": [invalid] * 3,
        "none": ["", missing, missing],
    }
    gated = run(clients, hub_clients.gate, "lab/public", tokens["stranger"], token=owner)
    assert gated == ["", "GatedRepoError 403", "GatedRepoError 401"]


def test_history(hub: Hub, clients: ClientProcesses) -> None:
    hub.world.page_size, start = 3, len(hub.requests)
    try:
        seen = run(clients, hub_clients.history, "ada/history", token=hub.token("ada"))
    finally:
        hub.world.page_size = 1000
    texts = [f"data/{number // 3}/{number}.txt" for number in range(9)]
    assert seen["paths"] == sorted([".gitattributes", "data", "data/0", "data/1", "data/2", "weights.bin", *texts])
    assert seen["top"] == [".gitattributes", "data", "weights.bin"]
    assert seen["below"] == texts[3:6]
    assert seen["no folder"] == "RemoteEntryNotFoundError 404"
    assert seen["files"] == [".gitattributes", "4.txt", "again.bin", *texts[4:], "weights.bin"]
    assert seen["last"] == {"4.txt": "copies", "data": "fewer"}
    assert (seen["stale"], seen["nowhere"]) == ("HfHubHTTPError 412", "RevisionNotFoundError 404")
    assert (seen["gone"], seen["same branch"]) == ("RemoteEntryNotFoundError 404", "HfHubHTTPError 409")
    assert seen["refs"] == ["refs/heads/main", "refs/heads/try/out", "refs/pr/1"]
    assert (seen["no tag"], seen["deleted"]) == ("RevisionNotFoundError 404", "RepositoryNotFoundError 404")
    assert sum(request.path.endswith("/tree/main") for request in hub.requests[start:]) > 5  # pages


@BOTH_PROTOCOLS
def test_large_files_in_parts(hub: Hub, clients: ClientProcesses, tmp_path: Path, xet: bool) -> None:
    """Upload many parts by LFS; by xet, every kind of chunk, and a repeated one."""
    noise = bytes(number * number % 251 for number in range(1, 300_001))
    floats = b"".join(bytes([number % 256, number // 7 % 256, 0, 63]) for number in range(300_001))
    content = noise + floats + bytes(1_000_000) + noise + b"x"
    (tmp_path / "x.bin").write_bytes(content)
    hub.world.part_size, start = 500_000, len(hub.requests)
    try:
        repo = f"ada/large-{xet}"
        first = run(clients, hub_clients.large, repo, tmp_path / "x.bin", token=hub.token("ada"), xet=xet)
        again = run(clients, hub_clients.large, f"{repo}-too", tmp_path / "x.bin", token=hub.token("ada"), xet=xet)
    finally:
        hub.world.part_size = 1 << 30
    assert first == again
    assert bool(first["xet"]) == xet
    paths = [request.path for request in hub.requests[start:]]
    number = -(-len(content) // 500_000)
    assert sum(path.startswith("/parts/") for path in paths) == (0 if xet else 2 * number)
    assert sum(path.startswith("/v1/shards") for path in paths) == (2 if xet else 0)


@pytest.mark.parametrize(
    ("match", "how", "xet", "outcome", "commits"),
    [
        ("POST */preupload/*", Status(429), False, "", 1),
        ("POST */preupload/*", Drop(), False, "", 1),
        ("POST */objects/batch", Status(503, after=True), False, "", 1),
        ("PUT /uploads/*", Cut(300_000), False, "", 1),
        ("PUT /uploads/*", Status(500), False, "", 1),
        ("PUT /uploads/*", Drop(after=True), False, "", 1),
        ("POST */commit/*", Status(500), False, "HfHubHTTPError 500", 1),
        ("POST */commit/*", Status(500, after=True), False, "HfHubHTTPError 500", 1),
        ("POST */commit/*", Drop(after=True), False, "RemoteProtocolError", 1),
        ("POST */commit/*", Delay(1), True, "", 1),
        ("POST */commit/*", Drop(), True, "", 1),
        ("POST */commit/*", Status(503, after=True), True, "", 2),  # the client repeats a successful commit
        ("GET */xet-write-token/*", Status(503), True, "", 1),
        ("POST /v1/xorbs/*", Cut(300_000), True, "", 1),
        ("POST /v1/xorbs/*", Status(500, after=True), True, "", 1),
        ("POST /v1/shards", Drop(after=True), True, "", 1),
        ("GET /xorbs/*", Status(503), True, "", 1),
        ("GET /large/*", Drop(), False, "", 1),
    ],
)
def test_faults(
    hub: Hub, clients: ClientProcesses, tmp_path: Path, match: str, how: How, xet: bool, outcome: str, commits: int
) -> None:
    number = len(hub.requests)
    (tmp_path / "x.bin").write_bytes(b"%d\0" % number + bytes(i * i % 253 for i in range(600_000)))
    token, repo = hub.token("ada"), f"ada/fault-{number}"
    fault, start = hub.fail(match, how), time.monotonic()
    seen = run(clients, hub_clients.upload_twice, repo, tmp_path, token=token, xet=xet)
    assert seen == {"outcome": outcome, "commits": commits}
    assert fault.happened == 1
    assert not isinstance(how, Delay) or time.monotonic() - start > how.seconds


def test_the_command_line(hub: Hub, clients: ClientProcesses, versions: dict[str, Path]) -> None:
    printed = run(clients, hub_clients.command, "ada/by-hand", versions["v0.1"], token=hub.token("ada"))
    assert "ada" in printed[0]
    assert "v1" in printed[3]
    assert "classifier.weight" in printed[5:]
    back = versions["v0.1"].with_name("v0.1-back")
    assert all((back / file.name).read_bytes() == file.read_bytes() for file in versions["v0.1"].iterdir())


def ask(url: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Send a single request without any client library."""
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, headers, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_invalid_requests_are_rejected() -> None:
    """Sound clients never send these."""
    with Hub() as hub:
        auth = {"Authorization": f"Bearer {hub.token('ada')}"}
        repo = f"{hub.endpoint}/api/models/ada/m"
        assert ask(f"{hub.endpoint}/api/repos/create", "POST", {"name": "m"}, **auth)[0] == 200
        for path in ("/api/agent-harnesses", "/api/telemetry/a/b/c", "/api/models/ada/m/likers", "/x/y/z"):
            assert ask(hub.endpoint + path, "HEAD")[0] == 404
            assert ask(hub.endpoint + path, "POST", b"")[0] == 404

        def commit(*lines: tuple[str, dict[str, Any]]) -> tuple[int, str]:
            header = ("header", {"summary": "s"})
            body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in (header, *lines))
            status, _, content = ask(f"{repo}/commit/main", "POST", body.encode(), **auth)
            return status, json.loads(content).get("error", "")

        sha256 = hashlib.sha256(b"content").hexdigest()
        status, message = commit(("lfsFile", {"path": "x.bin", "algo": "sha256", "oid": sha256, "size": 7}))
        assert (status, message) == (400, f"x.bin: the large file {sha256} was never uploaded")
        assert commit(("file", {"path": "a/../b", "content": "", "encoding": "base64"}))[0] == 400
        assert json.loads(ask(repo)[2])["siblings"] == [{"rfilename": ".gitattributes"}]

        batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": sha256, "size": 7}]}
        answer = json.loads(ask(f"{hub.endpoint}/ada/m.git/info/lfs/objects/batch", "POST", batch, **auth)[2])
        href = answer["objects"][0]["actions"]["upload"]["href"]
        assert ask(href.partition("?")[0], "PUT", b"content")[0] == 403
        assert ask(href, "PUT", b"other")[0] == 400
        assert not hub.leaks
        assert ask(href, "PUT", b"content", **auth)[0] == 400  # a token must not be sent here
        assert [leak.method for leak in hub.leaks] == ["PUT"]
        assert ask(href, "PUT", b"content")[0] == 200
        assert commit(("lfsFile", {"path": "x.bin", "algo": "sha256", "oid": sha256, "size": 8}))[0] == 400
        assert commit(("lfsFile", {"path": "x.bin", "algo": "sha256", "oid": sha256, "size": 7}))[0] == 200
        assert ask(f"{hub.endpoint}/ada/m/resolve/main/x.bin", Range="bytes=2-4")[::2] == (206, b"nte")
        assert hub.token("ada") not in repr(hub.requests)


def test_faults_are_counted_and_cleared() -> None:
    with Hub() as hub:
        fault = hub.fail("GET /api/models/*", Status(503), times=2, skip=1)
        assert [ask(f"{hub.endpoint}/api/models/a/b")[0] for _ in range(4)] == [401, 503, 503, 401]
        assert fault.happened == 2
        assert [request.status for request in hub.requests] == [401, 503, 503, 401]
        hub.fail("* *", Drop())
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            ask(hub.endpoint)
        assert hub.requests[-1].status is None
        hub.fail("* *", Status(500))
        hub.clear_faults()
        assert ask(f"{hub.endpoint}/api/models/a/b")[0] == 401


def test_state_is_restored_from_a_folder(tmp_path: Path) -> None:
    ids, files = [], {"a.txt": "a", "x/b.bin": "\0"}
    for folder, new in (("kept", True), ("kept", False), ("other", True)):
        with Hub(tmp_path / folder) as hub:
            if new:
                call = [sys.executable, hub_clients.__file__, "fill", json.dumps([["ada/kept", files, False], {}])]
                subprocess.run(call, env=client_environment(hub, token=hub.token("ada"), xet=False), check=True)
            assert ask(f"{hub.endpoint}/ada/kept/resolve/main/x/b.bin")[2] == b"\0"
            ids.append(json.loads(ask(f"{hub.endpoint}/api/models/ada/kept")[2])["sha"])
    assert len(set(ids)) == 1  # the same requests give the same ids


def test_ids_equal_those_of_git(tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("needs git for comparison")
    names = ("a.txt", "b/c.txt", "b.txt", "b/d/e.txt", "b-c/f.txt", "b0")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for arguments in (["init", "-q"], ["add", "."]):
        subprocess.run([git, *arguments], cwd=tmp_path, check=True)
    written = subprocess.run([git, "write-tree"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert tree_ids({name: regular_file(name.encode()) for name in names})[""] == written.stdout.strip()


def test_invalid_xet_uploads_are_rejected() -> None:
    content = bytes(number * number % 251 for number in range(999))
    grouped = b"".join(content[place::4] for place in range(4))
    packed = [content, lz4.frame.compress(content), lz4.frame.compress(grouped)]
    headers = [struct.pack("<BHBBHB", 0, len(chunk), 0, scheme, 999, 0) for scheme, chunk in enumerate(packed)]
    xorb = b"".join(header + chunk for header, chunk in zip(headers, packed, strict=True)) + b"XETBLOB and more"
    assert [chunk.content for chunk in chunks(xorb)] == [content] * 3
    sha256 = hashlib.sha256(content * 2)

    def shard(xorb: bytes, sha256: bytes, end: int = 3) -> bytes:
        name = struct.pack(">4Q", *struct.unpack("<4Q", sha256))  # the hash of the file may be anything
        piece = xorb + struct.pack("<4I", 0, len(content) * (end - 1), 1, end)
        return bytes(48) + bytes(32) + struct.pack("<2I8x", 1 << 30, 1) + piece + name + bytes(16) + b"\xff" * 48

    with Hub() as hub:
        auth = {"Authorization": f"Bearer {hub.token('ada')}"}
        ask(f"{hub.endpoint}/api/repos/create", "POST", {"name": "m"}, **auth)
        grants = {}
        for access in ("read", "write"):
            grant = json.loads(ask(f"{hub.endpoint}/api/models/ada/m/xet-{access}-token/main", **auth)[2])
            grants[access] = {"Authorization": f"Bearer {grant['accessToken']}"}
        shards, xorbs = f"{hub.world.cas}/v1/shards", f"{hub.world.cas}/v1/xorbs/default/{text(bytes(32))}"
        good = shard(bytes(32), sha256.digest())
        assert ask(xorbs, "POST", xorb, **grants["read"])[0] == 403
        assert ask(xorbs, "POST", xorb, **auth)[0] == 401
        assert len(hub.leaks) == 1
        assert ask(xorbs, "POST", xorb[:-500], **grants["write"])[0] == 400
        assert ask(shards, "POST", good, **grants["write"])[0] == 400  # the xorb was never uploaded
        assert ask(xorbs, "POST", xorb, **grants["write"])[0] == 200
        assert ask(shards, "POST", shard(bytes(32), bytes(32)), **grants["write"])[0] == 400
        assert ask(shards, "POST", shard(bytes(32), sha256.digest(), 2), **grants["write"])[0] == 400
        assert ask(shards, "POST", good, **grants["write"])[0] == 200
        assert hub.world.store.large(sha256.hexdigest()).read_bytes() == content * 2


def test_hub_run_by_hand(tmp_path: Path) -> None:
    """What it prints is what a shell needs, and it has the owner that the documentation publishes to."""
    command = [sys.executable, "-m", "tests.hub", "--folder", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            _, endpoint, token = process.stdout.readline().split()
            endpoint, headers = endpoint.partition("=")[2], {"Authorization": f"Bearer {token.partition('=')[2]}"}
            assert json.loads(ask(f"{endpoint}/api/whoami-v2", **headers)[2])["name"] == "me"
            body = json.dumps({"name": "encoder"}).encode()
            url = json.loads(ask(f"{endpoint}/api/repos/create", "POST", body, **headers)[2])["url"]
            assert [ask(page)[0] for page in (endpoint, url, f"{url}/tree/main", f"{endpoint}/me")] == [200] * 4
            assert ask(f"{endpoint}/you/encoder")[0] == 404
            lines = [process.stdout.readline() for _ in range(4)]
            assert lines[0].startswith("export HF_HOME=")
            assert all(line.startswith("# ") for line in lines[1:])
        finally:
            process.terminate()
