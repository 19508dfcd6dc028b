"""Accept files: decide how each is uploaded, receive large ones by the LFS protocol, and commit."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .cards import check
from .store import Commit, Entry, Repository, large_file
from .web import HubError, World, answer, commit_of, part, repository, signed_in, world

LARGEST_REGULAR = 10_000_000


async def preupload(request: Request) -> Response:
    found, body = repository(request, write=True), await request.json()
    commit, store = commit_of(request, found), world(request).store
    attributes = (store.read(commit, ".gitattributes") or b"").decode()
    large = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    ignored = body.get("gitIgnore") or (store.read(commit, ".gitignore") or b"").decode()
    ignored = [line.strip() for line in ignored.splitlines() if line.strip() and not line.startswith("#")]
    return answer({"files": [_plan(file, commit, large, ignored) for file in body["files"]]})


def _plan(file: dict[str, Any], commit: Commit, large: list[str], ignored: list[str]) -> dict[str, Any]:
    path, there = file["path"], commit.files.get(file["path"])
    sample = base64.b64decode(file["sample"])
    lfs = _matches(path, large) or file["size"] > LARGEST_REGULAR or b"\0" in sample
    plan = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": _matches(path, ignored)}
    return {**plan, **({"oid": there.sha256 or there.oid} if there else {})}


def _matches(path: str, patterns: list[str]) -> bool:
    """Return whether a pattern matches a path, its name, or a folder that contains it."""
    tries = {path, *path.split("/"), *(path[:end] for end, letter in enumerate(path) if letter == "/")}
    return any(fnmatchcase(name, pattern.strip("/")) for name in tries for pattern in patterns)


async def commit(request: Request) -> Response:
    found, revision = repository(request, write=True), part(request, "revision")
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    header = lines[0]["value"]
    commit_of(request, found)
    ref = found.branch(revision)
    if ref is None:
        raise HubError(400, f"Only branches accept commits, and {revision} is not a branch")
    head = found.commits[found.refs[ref]]
    if not head.id.startswith(header.get("parentCommit") or ""):
        raise HubError(412, "The branch has moved since the parent commit: fetch it and retry")
    files = _changed(world(request), found, head, [(line["key"], line["value"]) for line in lines[1:]])
    asked = request.query_params.get("create_pr") in {"1", "true"}
    if asked:
        ref = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in found.refs)}"
        found.refs[ref] = head.id
    author, date = signed_in(request).user.name, world(request).store.now()
    made = found.commit(ref, files, header["summary"], header.get("description", ""), author, date)
    url = f"{world(request).endpoint}/{found.url_path}"
    body = {"success": True, "commitOid": made.id, "commitUrl": f"{url}/commit/{made.id}", "hookOutput": ""}
    return answer({**body, **({"pullRequestUrl": f"{url}/discussions/{ref.rpartition('/')[2]}"} if asked else {})})


def _changed(world: World, found: Repository, head: Commit, changes: list[tuple[str, Any]]) -> dict[str, Entry]:
    """Return the files of a commit; all are checked before any is stored."""
    files, contents = dict(head.files), {}
    for key, value in changes:
        path = value["path"]
        if key in {"deletedFile", "deletedFolder"}:
            gone = [name for name in files if name == path or (key == "deletedFolder" and _inside(name, path))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
            continue
        if path.startswith("/") or {"", ".", "..", ".git"} & {*path.split("/")}:
            raise HubError(400, f"Invalid path: {path}")
        if key == "file":
            contents[path] = base64.b64decode(value["content"])
            if len(contents[path]) > LARGEST_REGULAR:
                raise HubError(400, f"{path} is larger than 10 MB and must be uploaded as a large file")
        elif key == "lfsFile":
            files[path] = _uploaded(world, found, value)
    if "README.md" in contents:
        errors, _ = check(contents["README.md"].decode("utf-8", "replace"), found.kind)
        if errors:
            raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
    return files | {path: world.store.add_regular(content) for path, content in contents.items()}


def _inside(name: str, folder: str) -> bool:
    return name.startswith(folder.rstrip("/") + "/")


def _uploaded(world: World, found: Repository, value: dict[str, Any]) -> Entry:
    sha256 = value["oid"]
    if sha256 not in found.large:
        raise HubError(400, f"{value['path']}: the large file {sha256} was never uploaded")
    size = world.store.large(sha256).stat().st_size
    if value.get("size", size) != size:
        raise HubError(400, f"{value['path']}: the large file {sha256} has {size} bytes, not {value['size']}")
    return large_file(sha256, size)


async def batch(request: Request) -> Response:
    found, body = repository(request, write=True), await request.json()
    multipart = "multipart" in body.get("transfers", ())
    objects = [_object(world(request), found, item["oid"], item["size"], multipart) for item in body["objects"]]
    media = {"Content-Type": "application/vnd.git-lfs+json"}
    return answer({"transfer": "basic", "objects": objects}, headers=media)


def _object(world: World, found: Repository, oid: str, size: int, multipart: bool) -> dict[str, Any]:
    if oid in found.large:
        return {"oid": oid, "size": size}
    path, verify = f"/{found.kind}/{found.id}/{oid}", f"{world.endpoint}/{found.url_path}.git/info/lfs/objects/verify"
    upload: dict[str, Any] = {"href": world.signed(world.blobs, f"/uploads{path}")}
    if multipart and size > world.part_size:
        numbers = range(1, -(-size // world.part_size) + 1)
        parts = {f"{number:05}": world.signed(world.blobs, f"/parts{path}/{number}") for number in numbers}
        href = world.signed(world.endpoint, f"/api/complete_multipart{path}")
        upload = {"href": href, "header": {"chunk_size": str(world.part_size), **parts}}
    return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": verify}}}


async def verify(request: Request) -> Response:
    found, body = repository(request, write=True), await request.json()
    path = world(request).store.large(body["oid"])
    if body["oid"] not in found.large or path.stat().st_size != body["size"]:
        raise HubError(404, f"The large file {body['oid']} was not uploaded completely")
    return answer({})


async def put(request: Request) -> Response:
    """Receive a large file in one part."""
    store, sha256 = world(request).store, request.path_params["sha256"]
    partial = store.folder / "parts" / f"{sha256}-{id(request):x}"
    with partial.open("wb") as file:
        async for block in request.stream():
            file.write(block)
    keep_large(world(request), _target(request), sha256, partial)
    return Response()


async def put_part(request: Request) -> Response:
    content = await request.body()
    (_part(request, request.path_params["number"])).write_bytes(content)
    return Response(headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})


async def complete(request: Request) -> Response:
    """Join the parts of a large file."""
    body, sha256 = await request.json(), request.path_params["sha256"]
    paths = [_part(request, item["partNumber"]) for item in body["parts"]]
    for path, item in zip(paths, body["parts"], strict=True):
        if not path.exists() or hashlib.md5(path.read_bytes()).hexdigest() != item["etag"].strip('"'):
            raise HubError(400, f"Part {item['partNumber']} differs from what was uploaded")
    whole = _part(request, "whole")
    whole.write_bytes(b"".join(path.read_bytes() for path in paths))
    keep_large(world(request), _target(request), sha256, whole)
    for path in paths:
        path.unlink()
    return answer({})


def _part(request: Request, number: object) -> Path:
    return world(request).store.folder / "parts" / f"{request.path_params['sha256']}.{number}"


def _target(request: Request) -> tuple[str, str]:
    return request.path_params["kind"], f"{request.path_params['owner']}/{request.path_params['name']}"


def keep_large(world: World, repository: tuple[str, str], sha256: str, partial: Path) -> None:
    """Store a large file of a repository if its content has the expected sha256."""
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256 or repository not in world.store.repositories:
        partial.unlink()
        raise HubError(400, f"The content has the sha256 {found}, not {sha256}")
    os.replace(partial, world.store.large(sha256))
    world.store.repositories[repository].large.add(sha256)


def _lfs_routes() -> Iterator[Route]:
    for start in ("", "/{kind}"):
        lfs = start + "/{owner}/{name}.git/info/lfs/objects"
        yield Route(f"{lfs}/batch", batch, methods=["POST"])
        yield Route(f"{lfs}/verify", verify, methods=["POST"])


_FILE = "/{kind}/{owner}/{name}/{sha256}"
ROUTES = [
    Route("/api/{kind}/{owner}/{name}/preupload/{revision}", preupload, methods=["POST"]),
    Route("/api/{kind}/{owner}/{name}/commit/{revision}", commit, methods=["POST"]),
    Route("/api/complete_multipart" + _FILE, complete, methods=["POST"]),
    *_lfs_routes(),
]
BLOB_ROUTES = [
    Route("/uploads" + _FILE, put, methods=["PUT"]),
    Route("/parts" + _FILE + "/{number}", put_part, methods=["PUT"]),
]
