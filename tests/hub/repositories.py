"""Create, describe and delete repositories, and serve their refs, commits and lists of files."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .cards import BadCard, check, metadata, tags
from .store import Commit, Entry, Repository, parents, tree_ids
from .web import (
    HubError,
    answer,
    caller,
    commit_of,
    kind_of,
    no_repository,
    page,
    part,
    repository,
    signed_in,
    world,
)


async def whoami(request: Request) -> Response:
    return answer(world(request).accounts.whoami(signed_in(request)))


async def validate_yaml(request: Request) -> Response:
    body = await request.json()
    errors, warnings = check(body["content"], f"{body.get('repoType', 'model')}s")
    body = {
        "errors": [{"message": error} for error in errors],
        "warnings": [{"message": warning} for warning in warnings],
    }
    return answer(body, 400 if errors else 200)


async def create(request: Request) -> Response:
    who, body, store = signed_in(request), await request.json(), world(request).store
    owner, kind = body.get("organization") or who.user.name, f"{body.get('type') or 'model'}s"
    if not who.writes(owner):
        raise HubError(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {owner!r}")
    id = f"{owner}/{body['name']}"
    found = store.repositories.get((kind, id))
    if found is None:
        private = body.get("visibility") == "private" or body.get("private") is True
        found = store.create(kind, id, private, who.user.name)
        return answer({"url": f"{world(request).endpoint}/{found.url_path}", "name": id})
    message = f"You already created this {kind[:-1]} repo: {id}"
    raise HubError(409, message, url=f"{world(request).endpoint}/{found.url_path}")


async def delete(request: Request) -> Response:
    who, body, store = signed_in(request), await request.json(), world(request).store
    owner = body.get("organization") or who.user.name
    key = (f"{body.get('type') or 'model'}s", f"{owner}/{body['name']}")
    found = store.repositories.get(key)
    if found is None or (found.private and not who.sees(found)):
        raise no_repository(who)
    if not who.manages(owner):
        raise HubError(403, "Forbidden: this token may not delete this repository")
    del store.repositories[key]
    return answer({})


async def settings(request: Request) -> Response:
    found, body = repository(request, manage=True), await request.json()
    if "visibility" in body or "private" in body:
        found.private = body.get("visibility") == "private" or body.get("private") is True
    found.gated = body.get("gated", found.gated)
    return answer({"private": found.private, "gated": found.gated})


def describe(request: Request, found: Repository, commit: Commit) -> dict[str, Any]:
    store, query = world(request).store, request.query_params
    try:
        card = metadata((store.read(commit, "README.md") or b"").decode("utf-8", "replace"))
    except BadCard:
        card = {}
    facts: dict[str, Any] = {
        "_id": f"{len(found.created):x}{commit.id[:22]}",
        "id": found.id,
        "modelId": found.id,
        "author": found.owner,
        "sha": commit.id,
        "private": found.private,
        "gated": found.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": found.created,
        "lastModified": commit.date,
        "tags": tags(card),
        "siblings": [_sibling(path, entry, "blobs" in query) for path, entry in sorted(commit.files.items())],
        "cardData": card or None,
        "evalResults": _results(request, commit),
        **{name: card[name] for name in ("pipeline_tag", "library_name", "model-index") if name in card},
    }
    wanted = query.getlist("expand") or query.getlist("expand[]")
    shown = {"_id", "id", *wanted} if wanted else set(facts) - {"evalResults"}
    return {name: value for name, value in facts.items() if name in shown}


def _sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    sibling: dict[str, Any] = {"rfilename": path, "blobId": entry.oid, "size": entry.size}
    if entry.sha256:
        sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return sibling


def _results(request: Request, commit: Commit) -> list[dict[str, Any]]:
    files = [path for path in sorted(commit.files) if path.startswith(".eval_results/") and path.endswith(".yaml")]
    found = [(path, yaml.safe_load(world(request).store.read(commit, path) or b"")) for path in files]
    return [{"filename": path, "data": entry} for path, entries in found for entry in entries or []]


async def show(request: Request) -> Response:
    found = repository(request)
    revision = part(request, "revision") if "revision" in request.path_params else "main"
    return answer(describe(request, found, commit_of(request, found, revision)))


async def search(request: Request) -> Response:
    kind, who, query = kind_of(request), caller(request), request.query_params
    infos = [
        describe(request, found, found.commits[found.refs["refs/heads/main"]])
        for found in world(request).store.repositories.values()
        if found.kind == kind
        and (not found.private or (who and who.sees(found)))
        and query.get("author", found.owner) == found.owner
        and query.get("search", "").lower() in found.id.lower()
    ]
    wanted = {*query.getlist("filter"), *query.getlist("pipeline_tag")}
    chosen = [info for info in infos if wanted <= {*info.get("tags", ()), info.get("pipeline_tag")}]
    return page(request, chosen[::-1])


async def may_read(request: Request) -> Response:
    repository(request)
    return answer({})


async def may_write(request: Request) -> Response:
    repository(request, write=True)
    return answer({})


async def refs(request: Request) -> Response:
    found = repository(request)

    def named(start: str) -> list[dict[str, str]]:
        chosen = sorted((ref, commit) for ref, commit in found.refs.items() if ref.startswith(start))
        return [{"name": ref.removeprefix(start), "ref": ref, "targetCommit": commit} for ref, commit in chosen]

    listed = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": []}
    if "include_prs" in request.query_params:
        listed["pullRequests"] = named("refs/pr/")
    return answer(listed)


async def create_tag(request: Request) -> Response:
    found, tag = repository(request, write=True), (await request.json())["tag"]
    target = commit_of(request, found)
    return _add_ref(found, f"refs/tags/{tag}", target)


async def create_branch(request: Request) -> Response:
    found, body = repository(request, write=True), await request.body()
    start = (await request.json()).get("startingPoint") if body else None
    return _add_ref(found, f"refs/heads/{part(request, 'revision')}", commit_of(request, found, start or "main"))


def _add_ref(found: Repository, ref: str, target: Commit) -> Response:
    if ref in found.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    found.refs[ref] = target.id
    return answer({})


async def delete_tag(request: Request) -> Response:
    return _delete_ref(request, "refs/tags/")


async def delete_branch(request: Request) -> Response:
    if part(request, "revision") == "main":
        raise HubError(403, "Forbidden: the main branch cannot be deleted")
    return _delete_ref(request, "refs/heads/")


def _delete_ref(request: Request, start: str) -> Response:
    found, ref = repository(request, write=True), start + part(request, "revision")
    if ref not in found.refs:
        raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
    del found.refs[ref]
    return answer({})


async def commits(request: Request) -> Response:
    found = repository(request)
    listed = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": commit.date,
        }
        for commit in found.history(commit_of(request, found))
    ]
    return page(request, listed)


async def tree(request: Request) -> Response:
    found = repository(request)
    commit = commit_of(request, found)
    start = part(request, "path") + "/" if "path" in request.path_params else ""
    inside = [path for path in commit.files if path.startswith(start)]
    if start and not inside:
        raise HubError(404, f"{start} does not exist on {part(request, 'revision')}", "EntryNotFound")
    folders = {folder for path in inside for folder in parents(path) if folder.startswith(start)} - {""}
    every = sorted({*inside, *folders})
    if request.query_params.get("recursive") != "true":
        every = [path for path in every if "/" not in path[len(start) :]]
    expand = request.query_params.get("expand") == "true"
    return page(request, _items(request, found, commit, every, expand))


async def paths_info(request: Request) -> Response:
    found = repository(request)
    commit = commit_of(request, found)
    form = parse_qs((await request.body()).decode())
    there = {*commit.files, *(folder for path in commit.files for folder in parents(path))} - {""}
    paths = [path.strip("/") for path in form.get("paths", [])]
    expand = form.get("expand") == ["true"]
    return answer(_items(request, found, commit, [path for path in paths if path in there], expand))


def _items(request: Request, found: Repository, commit: Commit, paths: list[str], expand: bool) -> list[dict[str, Any]]:
    folders, items = tree_ids(commit.files), []
    for path in paths:
        entry = commit.files.get(path)
        if entry is None:
            item: dict[str, Any] = {"type": "directory", "oid": folders[path], "size": 0, "path": path}
        else:
            item = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
            if entry.sha256:
                item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
                item |= {"xetHash": hash} if (hash := world(request).store.xet_hash(entry.sha256)) else {}
        if expand:
            last = _last_change(found, commit, path)
            item["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
        items.append(item)
    return items


def _last_change(found: Repository, commit: Commit, path: str) -> Commit:
    def at(commit: Commit) -> dict[str, Entry]:
        return {name: entry for name, entry in commit.files.items() if f"{name}/".startswith(f"{path}/")}

    return next(
        earlier
        for earlier in found.history(commit)
        if earlier.parent is None or at(found.commits[earlier.parent]) != at(earlier)
    )


async def missing(request: Request) -> Response:
    """Answer for names without an owner, which don't exist here."""
    kind_of(request)
    raise no_repository(caller(request))


_REPOSITORY = "/api/{kind}/{owner}/{name}"
ROUTES = [
    Route("/api/whoami-v2", whoami),
    Route("/api/validate-yaml", validate_yaml, methods=["POST"]),
    Route("/api/repos/create", create, methods=["POST"]),
    Route("/api/repos/delete", delete, methods=["DELETE"]),
    Route("/api/{kind}", search),
    Route("/api/{kind}/{name}", missing),
    Route(_REPOSITORY, show),
    Route(_REPOSITORY + "/revision/{revision}", show),
    Route(_REPOSITORY + "/settings", settings, methods=["PUT"]),
    Route(_REPOSITORY + "/auth-check", may_read),
    Route(_REPOSITORY + "/auth-check/write", may_write),
    Route(_REPOSITORY + "/refs", refs),
    Route(_REPOSITORY + "/tag/{revision}", create_tag, methods=["POST"]),
    Route(_REPOSITORY + "/tag/{revision}", delete_tag, methods=["DELETE"]),
    Route(_REPOSITORY + "/branch/{revision}", create_branch, methods=["POST"]),
    Route(_REPOSITORY + "/branch/{revision}", delete_branch, methods=["DELETE"]),
    Route(_REPOSITORY + "/commits/{revision}", commits),
    Route(_REPOSITORY + "/tree/{revision}", tree),
    Route(_REPOSITORY + "/tree/{revision}/{path}", tree),
    Route(_REPOSITORY + "/paths-info/{revision}", paths_info, methods=["POST"]),
]
