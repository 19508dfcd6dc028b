"""Serve files: small ones directly, large ones by a redirect to another origin, as the Hub does."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from .repositories import missing
from .web import HubError, caller, commit_of, part, repository, world


async def resolve(request: Request) -> Response:
    found, store = repository(request), world(request).store
    who = caller(request)
    if found.gated and not (who and who.sees(found)):
        raise HubError(403 if who else 401, "Access to this model is restricted", "GatedRepo")
    commit, path = commit_of(request, found), part(request, "path")
    entry = commit.files.get(path)
    if entry is None:
        error = HubError(404, "Entry not found", "EntryNotFound")
        error.headers["X-Repo-Commit"] = commit.id  # with this header, clients cache that the file doesn't exist
        raise error
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    if entry.sha256 is None:
        return FileResponse(store.path(entry), headers={**headers, "ETag": f'"{entry.oid}"'}, media_type="text/plain")
    headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    if hash := store.xet_hash(entry.sha256):
        token = f"{world(request).endpoint}/api/{found.kind}/{quote(found.id)}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": hash, "Link": f'<{token}>; rel="xet-auth"'}
    location = world(request).signed(world(request).blobs, f"/large/{entry.sha256}")
    return Response(status_code=302, headers={**headers, "Location": location})


async def large(request: Request) -> Response:
    path = world(request).store.large(request.path_params["sha256"])
    return FileResponse(path, headers={"ETag": f'"{path.name}"'}, media_type="application/octet-stream")


_FILE = "/resolve/{revision}/{path:path}"
ROUTES = [
    Route("/{name}" + _FILE, missing),
    Route("/{owner}/{name}" + _FILE, resolve),
    Route("/{kind}/{owner}/{name}" + _FILE, resolve),
]
BLOB_ROUTES = [Route("/large/{sha256}", large)]
