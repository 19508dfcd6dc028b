"""Show what is on this Hub in a browser: repositories, their versions and files, and collections.

Unlike the real Hub, it shows private repositories to everyone, since no one can sign in here.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from .store import Commit, Repository
from .web import KINDS, part, world


def _page(title: str, *parts: str) -> Response:
    return HTMLResponse(f"<!doctype html><title>{escape(title)}</title><h1>{escape(title)}</h1>\n" + "\n".join(parts))


def _list(items: Iterable[tuple[str, str]]) -> str:
    """Return a list of links, each with its text."""
    rows = "".join(f'<li><a href="{escape(url)}">{escape(text)}</a></li>' for url, text in items)
    return f"<ul>{rows}</ul>"


def _found(request: Request) -> Repository:
    kind = request.path_params.get("kind", "models")
    found = world(request).store.repositories.get((kind, f"{part(request, 'owner')}/{part(request, 'name')}"))
    if kind not in KINDS or found is None:
        raise HTTPException(404)
    return found


def _commit(request: Request, found: Repository) -> Commit:
    commit = found.find(part(request, "revision") if "revision" in request.path_params else "main")
    if commit is None:
        raise HTTPException(404)
    return commit


async def front(request: Request) -> Response:
    store, owner = world(request).store, request.path_params.get("owner")
    found = [one for one in store.repositories.values() if owner in (None, one.owner)]
    if owner and not found:
        raise HTTPException(404)
    gathered = [one for one in store.collections.values() if owner in (None, one.owner)]
    links = [(f"/{one.url_path}", f"{one.id} ({one.kind}, {'private' if one.private else 'public'})") for one in found]
    links += [(f"/collections/{one.slug}", f"{one.title} (collection)") for one in gathered]
    return _page(owner or "A Hub on loopback", _list(links) if links else "<p>Nothing has been published here yet.</p>")


async def tree(request: Request) -> Response:
    found = _found(request)
    commit, store = _commit(request, found), world(request).store
    revision = part(request, "revision") if "revision" in request.path_params else "main"
    refs = [ref.partition("/")[2].partition("/")[2] for ref in found.refs if not ref.startswith("refs/pr/")]
    files = [
        (f"/{found.url_path}/blob/{commit.id}/{path}", f"{path} ({entry.size:,} bytes)")
        for path, entry in sorted(commit.files.items())
    ]
    card = (store.read(commit, "README.md") or b"").decode("utf-8", "replace")
    return _page(
        f"{found.id} {revision}",
        f"<p>{'private' if found.private else 'public'}, commit {commit.id}: {escape(commit.title)}</p>",
        "<h2>Versions</h2>",
        _list((f"/{found.url_path}/tree/{name}", name) for name in refs),
        "<h2>Files</h2>",
        _list(files),
        f"<h2>README.md</h2><pre>{escape(card)}</pre>" if card else "",
    )


async def blob(request: Request) -> Response:
    found = _found(request)
    commit, path = _commit(request, found), part(request, "path")
    entry = commit.files.get(path)
    if entry is None:
        raise HTTPException(404)
    content = world(request).store.path(entry).read_bytes()
    shown = (
        f"<p>{entry.size:,} bytes, not shown</p>"
        if entry.sha256
        else f"<pre>{escape(content.decode('utf-8', 'replace'))}</pre>"
    )
    return _page(f"{found.id}: {path}", shown)


async def collection(request: Request) -> Response:
    found = world(request).store.collections.get(part(request, "slug"))
    if found is None:
        raise HTTPException(404)
    return _page(found.title, _list((f"/{item['id']}", item["id"]) for item in found.items))


_REPOSITORIES = ("/{owner}/{name}", "/{kind}/{owner}/{name}")
ROUTES = [
    Route("/", front),
    Route("/collections/{slug:path}", collection),
    *(Route(start + "/blob/{revision}/{path:path}", blob) for start in _REPOSITORIES),
    *(Route(start + end, tree) for start in _REPOSITORIES for end in ("/tree/{revision}", "/commit/{revision}", "")),
    Route("/{owner}", front),
]
