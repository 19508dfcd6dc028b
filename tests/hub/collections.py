"""Serve collections, which are lists of repositories."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .store import Collection, git_id
from .web import HubError, answer, caller, part, signed_in, world


async def create(request: Request) -> Response:
    who, body, store = signed_in(request), await request.json(), world(request).store
    owner, title = body["namespace"], body["title"]
    if not who.writes(owner):
        raise HubError(403, f"Forbidden: this token may not make a collection of {owner}")
    slug = f"{owner}/{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}-{git_id('collection', title.encode())[:24]}"
    if slug in store.collections:
        raise HubError(409, "This collection already exists", slug=slug)
    made = Collection(slug, title, owner, body.get("private", False), body.get("description"), store.now())
    store.collections[slug] = made
    return answer(_describe(made))


async def show(request: Request) -> Response:
    return answer(_describe(_found(request)))


async def add(request: Request) -> Response:
    found, body, store = _found(request), await request.json(), world(request).store
    if not signed_in(request).writes(found.owner):
        raise HubError(403, "Forbidden: this token may not write to this collection")
    kind, id = body["item"]["type"], body["item"]["id"]
    if any((item["type"], item["id"]) == (kind, id) for item in found.items):
        raise HubError(409, "The item is in the collection already")
    who, repository = caller(request), store.repositories.get((f"{kind}s", id))
    if repository is None or (repository.private and not (who and who.sees(repository))):
        raise HubError(404, f"No {kind} named {id}")
    item = {"_id": git_id("item", f"{found.slug} {kind} {id}".encode())[:24], "id": id, "type": kind}
    found.items.append({**item, **({"note": {"text": body["note"]}} if "note" in body else {})})
    found.updated = store.now()
    return answer(_describe(found))


def _found(request: Request) -> Collection:
    found = world(request).store.collections.get(f"{part(request, 'owner')}/{part(request, 'slug')}")
    who = caller(request)
    if found is None or (found.private and not (who and found.owner in {who.user.name, *who.user.orgs})):
        raise HubError(404, "Collection not found")
    return found


def _describe(found: Collection) -> dict[str, Any]:
    return {
        "slug": found.slug,
        "title": found.title,
        "description": found.description,
        "owner": {"name": found.owner, "type": "user"},
        "private": found.private,
        "lastUpdated": found.updated,
        "items": [{**item, "position": position} for position, item in enumerate(found.items)],
        "position": 0,
        "theme": "green",
        "upvotes": 0,
    }


ROUTES = [
    Route("/api/collections", create, methods=["POST"]),
    Route("/api/collections/{owner}/{slug}", show),
    Route("/api/collections/{owner}/{slug}/items", add, methods=["POST"]),
]
