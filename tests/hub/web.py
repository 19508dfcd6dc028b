"""Provide what all routes share: state, authentication, errors, pages, signed addresses."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .accounts import Accounts, Caller
from .store import Commit, Repository, Store

KINDS = ("models", "datasets", "spaces")


@dataclass(frozen=True)
class Grant:
    """The permissions of a xet token."""

    who: str | None
    repository: tuple[str, str]
    write: bool


@dataclass
class World:
    """The state of the Hub, and the addresses of its three origins."""

    store: Store
    endpoint: str
    blobs: str
    cas: str
    accounts: Accounts = field(default_factory=Accounts)
    grants: dict[str, Grant] = field(default_factory=dict)  # by xet token
    page_size: int = 1000
    part_size: int = 1 << 30  # larger files are uploaded in parts of this size

    def signed(self, base: str, path: str) -> str:
        """Return an address with which anyone may access a path."""
        return f"{base}{path}?signature={signature(path)}"


def signature(path: str) -> str:
    return hmac.new(b"loopback", path.encode(), hashlib.sha256).hexdigest()


class HubError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **more}
        self.headers: dict[str, str] = {}


def answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    headers = {"X-Error-Message": str(error).encode("ascii", "replace").decode(), **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return answer(error.body, error.status, headers)


def plain_404(request: Request, error: Exception) -> Response:
    return Response("Not Found", 404, media_type="text/plain")


def answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(body, default=str), status, headers, "application/json")  # YAML has dates, JSON none


def world(request: Request) -> World:
    found: World = request.app.state.world
    return found


def part(request: Request, name: str) -> str:
    """Return a parameter of the path, decoded only now: `refs%2Fpr%2F1` is one parameter."""
    return unquote(request.path_params[name])


def bearer(request: Request) -> str | None:
    header = request.headers.get("authorization")
    return None if header is None else header.removeprefix("Bearer ")


def caller(request: Request) -> Caller | None:
    """Return the caller, or None for an anonymous one.

    Raises:
        HubError: the token is invalid; then even public repositories are inaccessible.
    """
    token = bearer(request)
    if token is None:
        return None
    found = world(request).accounts.caller(token)
    if found is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    request.scope["log"].who = str(found)
    return found


def signed_in(request: Request) -> Caller:
    found = caller(request)
    if found is None:
        raise HubError(401, "Invalid username or password.")
    return found


def kind_of(request: Request) -> str:
    kind = request.path_params.get("kind", "models")
    if kind not in KINDS:
        raise HTTPException(404)
    return str(kind)


def no_repository(who: Caller | None) -> HubError:
    """Give the same answer for a missing and a private repository."""
    if who is None:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def repository(request: Request, write: bool = False, manage: bool = False) -> Repository:
    """Return the repository of a path.

    Raises:
        HubError: it doesn't exist, or the caller lacks permission.
    """
    key = (kind_of(request), "/".join(part(request, name) for name in ("owner", "name") if name in request.path_params))
    who, found = caller(request), world(request).store.repositories.get(key)
    if found is None or (found.private and not (who and who.sees(found))):
        raise no_repository(who)
    if write or manage:
        if who is None:
            raise no_repository(who)
        if not (who.manages if manage else who.writes)(found.owner):
            raise HubError(403, "Forbidden: this token may not write to this repository")
    return found


def commit_of(request: Request, found: Repository, revision: str | None = None) -> Commit:
    """Return the commit of a revision, which is by default that of the path."""
    revision = part(request, "revision") if revision is None else revision
    commit = found.find(revision)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def page(request: Request, items: Sequence[Any]) -> Response:
    """Answer with a page of a list, and link to the next page."""
    query = dict(request.query_params)
    start = int(query.get("cursor", 0))
    end = start + min(int(query.get("limit", world(request).page_size)), world(request).page_size)
    headers = {}
    if end < len(items):
        path = f"{world(request).endpoint}{request.scope['path']}"
        headers["Link"] = f'<{path}?{urlencode({**query, "cursor": end})}>; rel="next"'
    return answer(items[start:end], headers=headers)
