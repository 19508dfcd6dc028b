"""Run the Hub as a server in a thread, with three origins on loopback, and control it from tests."""

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

from . import collections, downloads, pages, repositories, uploads, xet
from .accounts import OrgRole, Role
from .faults import Fault, Faults, How, Log, Request
from .store import Store
from .web import HubError, World, answer_error, bearer, caller, plain_404, signature


class Hub:
    """A Hub on loopback that runs for the duration of a `with` block.

    Args:
        folder: where the state is stored and restored from; by default it is discarded at the end.
        port: port of the main origin; by default any free port.
    """

    def __init__(self, folder: Path | None = None, port: int = 0) -> None:
        self._given, self._port = folder, port
        self._log = Log()

    def __enter__(self) -> Hub:
        self._folder = self._given or Path(tempfile.mkdtemp(prefix="hub-"))
        # One port per origin: a client mustn't send its token to another origin.
        self._sockets = [socket.create_server(("127.0.0.1", port)) for port in (self._port, 0, 0)]
        ports = dict(
            zip((listener.getsockname()[1] for listener in self._sockets), ("hub", "blobs", "cas"), strict=True)
        )
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
        """Stop answering for good."""
        self._server.should_exit = True
        self._thread.join()
        for listener in self._sockets:
            listener.close()

    @property
    def folder(self) -> Path:
        """Where the state is stored."""
        return self._folder

    @property
    def endpoint(self) -> str:
        return self.world.endpoint

    @property
    def requests(self) -> list[Request]:
        """All requests so far, to any origin; may be cleared."""
        return self._log.requests

    @property
    def leaks(self) -> list[Request]:
        """The requests that sent a token of the Hub to another origin; a sound client sends none."""
        return [request for request in self.requests if request.leak]

    @property
    def outside(self) -> list[Request]:
        """The requests for other hosts, which arrive here because the Hub is the proxy of its clients."""
        return [request for request in self.requests if request.method == "CONNECT" or "://" in request.path]

    def token(self, name: str, role: Role = "write", orgs: dict[str, OrgRole] | None = None) -> str:
        """Return the token of a user for a role; the user is created if necessary."""
        return self.world.accounts.token(name, role, orgs or {})

    def fail(self, match: str, how: How, times: int = 1, skip: int = 0) -> Fault:
        """Make the next requests that match fail, after the first `skip` of them."""
        fault = Fault(match, how, times, skip)
        self._log.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Let no further request fail."""
        self._log.faults.clear()

    def environment(self, token: str | None = None, *, xet: bool = True, home: Path | None = None) -> dict[str, str]:
        """Return the environment of a client of this Hub, in which it can't reach any other host.

        Args:
            token: token of the client; by default it is anonymous.
            xet: whether large files are uploaded by xet or by the LFS protocol.
            home: HF_HOME of the client; by default a new folder, with an empty cache.
        """
        removed = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(removed)}
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
    """HTTP, with a way to close the connection during a request."""

    def __init__(self, config: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        app = self.app

        async def droppable(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "drop": self.transport.abort}, receive, send)

        self.app = droppable


class _Origins:
    """Three applications that share one state, and have one port each."""

    def __init__(self, world: World, ports: dict[int, str]) -> None:
        modules = (repositories, uploads, xet, downloads)
        routes: dict[str, list[BaseRoute]] = {
            "hub": [*collections.ROUTES, *(route for module in modules for route in module.ROUTES), *pages.ROUTES],
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
                caller(request)  # an invalid token is rejected on every route
            elif origin == "blobs" and request.headers.get("authorization"):
                raise HubError(400, "Only one authentication method is allowed, and the address is signed")
            signed = origin == "blobs" or scope["path"].startswith("/api/complete_multipart/")
            if signed and request.query_params.get("signature") != signature(scope["path"]):
                raise HubError(403, "The signature doesn't match this address")
        except HubError as error:
            await answer_error(request, error)(scope, receive, send)
            return
        await app(scope, receive, send)

    return guarded
