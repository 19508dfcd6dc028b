"""The Hub as a server in a thread: three origins on loopback, and what a test may do with it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import downloads, gatherings, repositories, uploads, xet
from .accounts import OrgRole, Role
from .faults import Fault, Faults, How, Log, Request
from .store import Store
from .web import HubError, World, answer_error, bearer, caller, plain_404, signature


class Hub:
    """A Hub of its own on loopback, for as long as a `with` block lasts.

    Args:
        folder: where the state is kept, and found again; by default it is thrown away at the end.
        port: of the main origin; by default one that is free.
    """

    def __init__(self, folder: Path | None = None, port: int = 0) -> None:
        self._given, self._port = folder, port
        self._log = Log()

    def __enter__(self) -> Hub:
        self._folder = self._given or Path(tempfile.mkdtemp(prefix="hub-"))
        # One port an origin: a client must not carry its token from one to another.
        self._sockets = [socket.create_server(("127.0.0.1", port)) for port in (self._port, 0, 0)]
        ports = dict(zip((one.getsockname()[1] for one in self._sockets), ("hub", "blobs", "cas"), strict=True))
        endpoint, blobs, cas = (f"http://127.0.0.1:{port}" for port in ports)
        self.world = World(Store(self._folder / "hub", self._given is not None), endpoint, blobs, cas)
        app = Faults(_Origins(self.world, ports), self._log, ports.__getitem__)
        config = uvicorn.Config(
            app, http=_Protocol, ws="none", lifespan="off", log_level="error", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=(self._sockets,), daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def stop(self) -> None:
        """Stop answering, for good."""
        self._server.should_exit = True
        self._thread.join()
        for one in self._sockets:
            one.close()

    @property
    def endpoint(self) -> str:
        return self.world.endpoint

    @property
    def requests(self) -> list[Request]:
        """All requests so far, to any of the origins. Clear it as you like."""
        return self._log.requests

    @property
    def leaks(self) -> list[Request]:
        """The requests that carried a token of the Hub to another origin: none, if the client is sound."""
        return [request for request in self.requests if request.leak]

    @property
    def outside(self) -> list[Request]:
        """The requests meant for other hosts, which come here because the Hub is the proxy of its clients."""
        return [request for request in self.requests if request.method == "CONNECT" or "://" in request.path]

    def token(self, name: str, role: Role = "write", orgs: dict[str, OrgRole] | None = None) -> str:
        """Return the token of a user for a role; both come to be as they are asked for."""
        return self.world.accounts.token(name, role, orgs or {})

    def fail(self, match: str, how: How, times: int = 1, skip: int = 0) -> Fault:
        """Let the next requests that match go wrong, the first `skip` of them excepted."""
        fault = Fault(match, how, times, skip)
        self._log.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Let no further request fail."""
        self._log.faults.clear()

    def environment(self, token: str | None = None, *, xet: bool = True, home: Path | None = None) -> dict[str, str]:
        """Return the environment of a client of this Hub, which then reaches nothing else.

        Args:
            token: of the user that the client is; by default it is nobody.
            xet: how large files go up; by the LFS protocol otherwise.
            home: the client's HF_HOME; by default a fresh one, with an empty cache.
        """
        theirs = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(theirs)}
        proxies = {f"{name}_PROXY": self.endpoint for name in ("HTTP", "HTTPS", "ALL")}
        return {
            **kept,
            **proxies,
            "NO_PROXY": "127.0.0.1,localhost",
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home or tempfile.mkdtemp(prefix="home-", dir=self._folder)),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            **({} if xet else {"HF_HUB_DISABLE_XET": "1"}),
            **({"HF_TOKEN": token} if token else {}),
        }


class _Protocol(H11Protocol):
    """HTTP, with a way to close a connection under a request."""

    def __init__(self, config: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        app = self.app

        async def droppable(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "drop": self.transport.abort}, receive, send)

        self.app = droppable


class _Origins:
    """Three applications over one state, told apart by the port."""

    def __init__(self, world: World, ports: dict[int, str]) -> None:
        modules = (repositories, uploads, xet, downloads)
        routes: dict[str, list[BaseRoute]] = {
            "hub": [*gatherings.ROUTES, *(route for module in modules for route in module.ROUTES)],
            "blobs": [*uploads.BLOB_ROUTES, *downloads.BLOB_ROUTES, *xet.BLOB_ROUTES],
            "cas": list(xet.CAS_ROUTES),
        }
        self._world, self._ports = world, ports
        self._apps = {name: _application(world, name, found) for name, found in routes.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._apps[self._ports[scope["server"][1]]](scope, receive, send)
        if scope["method"] not in {"GET", "HEAD"}:
            self._world.store.save()


def _application(world: World, origin: str, routes: list[BaseRoute]) -> ASGIApp:
    app = Starlette(routes=routes, exception_handlers={HubError: answer_error, 404: plain_404, 405: plain_404})
    app.router.redirect_slashes = False
    app.state.world = world

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        request = HttpRequest({**scope, "app": app})
        scope["log"].leak = origin != "hub" and world.accounts.caller(bearer(request) or "") is not None
        try:
            if origin == "hub":
                caller(request)  # a wrong token opens nothing, whatever the route
            elif origin == "blobs" and request.headers.get("authorization"):
                raise HubError(400, "Only one way to prove who you are is allowed, and the signature is one")
            signed = origin == "blobs" or scope["path"].startswith("/api/complete_multipart/")
            if signed and request.query_params.get("signature") != signature(scope["path"]):
                raise HubError(403, "The signature does not fit this address")
        except HubError as error:
            await answer_error(request, error)(scope, receive, send)
            return
        await app(scope, receive, send)

    return guarded
