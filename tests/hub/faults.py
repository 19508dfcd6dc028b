"""Log all requests, and make those fail that a test chooses.

A fault is chosen by method and path: `"POST */commit/*"`, `"PUT *"`, `"* /api/*"`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Status:
    """Answer with an error: `after` the request took effect, or instead; with `page`, as the HTML page of a gateway."""

    code: int
    after: bool = False
    page: bool = False


@dataclass(frozen=True)
class Drop:
    """Close the connection without an answer: `after` the request took effect, or instead."""

    after: bool = False


@dataclass(frozen=True)
class Cut:
    """Close the connection once this many bytes of the request body have arrived."""

    after_bytes: int


@dataclass(frozen=True)
class Delay:
    """Wait before handling the request."""

    seconds: float


How = Status | Drop | Cut | Delay


@dataclass
class Fault:
    """A failure of the next `times` requests that match, after the first `skip` of them."""

    match: str
    how: How
    times: int = 1
    skip: int = 0
    happened: int = 0

    def hits(self, method: str, path: str) -> bool:
        """Count a request, and return whether it fails."""
        methods, _, paths = self.match.partition(" ")
        if self.happened == self.times or methods not in {"*", method} or not fnmatchcase(path, paths):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.happened += 1
        return True


@dataclass
class Request:
    """One line of the log. The token itself is never stored."""

    origin: str  # hub, blobs or cas
    method: str
    path: str
    authorization: bool
    leak: bool = False  # a token of the Hub was sent to another origin
    who: str | None = None  # "ada (write)"; None without a valid token
    received: int = 0  # bytes of the request body
    status: int | None = None  # None: no answer


@dataclass
class Log:
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


class Faults:
    """Middleware that logs every request, and then handles it or makes it fail."""

    def __init__(self, app: ASGIApp, log: Log, origin: Callable[[int], str]) -> None:
        self._app, self._log, self._origin = app, log, origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["raw_path"].decode()
        authorization = any(name == b"authorization" for name, _ in scope["headers"])
        request = Request(self._origin(scope["server"][1]), method, path, authorization)
        self._log.requests.append(request)
        fault = next((fault for fault in self._log.faults if fault.hits(method, path)), None)
        how = fault.how if fault else None
        cut = how.after_bytes if isinstance(how, Cut) else None

        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                request.received += len(message.get("body", b""))
            if cut is not None and request.received >= cut:
                await _drop(scope)
                return {"type": "http.disconnect"}
            return message

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]  # before the client sees it
            await send(message)

        async def lost(message: Message) -> None:
            pass

        if isinstance(how, Delay):
            await asyncio.sleep(how.seconds)
        effective = not isinstance(how, Status | Drop) or how.after
        inner = {**scope, "log": request, "path": path}  # routes see the raw path, including "%2F"
        try:
            if effective:
                await self._app(inner, received, lost if isinstance(how, Status | Drop) else answered)
            elif isinstance(how, Status):  # otherwise the client fails while sending, without reading the answer
                async for _ in HttpRequest(scope, received).stream():
                    pass
        except ClientDisconnect:
            return
        if isinstance(how, Status):
            message = "A test made this request fail."
            answer = (
                HTMLResponse(f"<p>{message}</p>", how.code) if how.page else JSONResponse({"error": message}, how.code)
            )
            await answer(scope, received, answered)
        elif isinstance(how, Drop):
            await _drop(scope)


async def _drop(scope: Any) -> None:
    scope["drop"]()
    await asyncio.sleep(0.01)  # until the server notices; otherwise it answers with an error
