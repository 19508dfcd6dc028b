"""Repeat requests to the Hub for about a minute if that may help, and report the errors that remain in one line.

huggingface_hub and hf-xet repeat some requests themselves, and log it at length. `single_attempts` turns that off, so
that there is one layer of retries, with one limit of time.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from traceback import walk_tb
from typing import Any, TypeVar

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]

from bioptimus_hf.errors import InputError, format_error

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_httpx = importlib.import_module(HTTPError.__module__.partition(".")[0])  # httpx or, with huggingface_hub 2, httpx2
_SECONDS = 60.0  # an action that keeps failing is repeated for this long ...
_ATTEMPTS = 3  # ... and at least this often, since an upload may take longer to fail
_LONGEST_WAIT = 300.0  # seconds that the Hub may ask us to wait before the next request
_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts; the last one is used from then on
_CONNECT, _READ = 10.0, 60.0  # seconds to wait for a connection, and for the next bytes of an answer
_TRANSIENT = frozenset({408, 409, 412, 423, 425, 429, 500, 502, 503, 504})  # HTTP statuses, and unknown ones from 520
_REPEATED_BY_THE_LIBRARY = frozenset({408, 429, 500, 502, 503, 504})
_XET = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}  # hf-xet is compiled, and takes this from the environment alone
_SECRETS = re.compile(r"(?i)bearer [^'\"]+|\b(?:hf_(?:oauth_|jwt_)?|api_org_)[A-Za-z0-9.-]{8,}|(?<=\S)\?\S*=\S*")
_ADVICE = {
    400: "correct what the Hub complains about",
    401: "create a new token, or run `hf auth login`",
    403: "it needs write access to {target}; make such a token in the settings of the Hub",
    404: "check that {target} exists, and that the token may read it",
    407: "give the proxy's user and password in HTTPS_PROXY",
    409: "something else is changing {target}: wait for it, then give the same command again",
    412: "somebody else is committing to {target}: wait until they have finished, then give the same command again",
    413: "a proxy, or the Hub, doesn't accept files of this size",
    429: "too many requests: wait {wait}, then give the same command again to continue",
}
_CONTINUE = "give the same command again to continue"


class HubFailure(Exception):
    """A request that got no answer, or one that says nothing about the request itself.

    Args:
        reason: what happened, in words.
        status: HTTP status, if there was an answer.
        host: who answered; large files have a host of their own.
        wait: seconds that the Hub asks to wait before the next request.
        permanent: whether repeating the request is pointless.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        host: str | None = None,
        wait: float | None = None,
        permanent: bool = False,
    ) -> None:
        super().__init__(reason)
        self.status, self.host, self.wait, self.permanent = status, host or constants.ENDPOINT, wait, permanent

    @classmethod
    def of_answer(cls, response: Any, reason: str | None = None) -> HubFailure:
        """Return the failure that an answer of the Hub describes."""
        status, url = response.status_code, response.url
        return cls(
            reason or _reason(response),
            status=status,
            host=f"{url.scheme}://{url.netloc.decode()}",
            wait=_wait(response.headers),
            permanent=not (_is_transient(status) or response.is_success),
        )


@contextmanager
def single_attempts() -> Iterator[None]:
    """Make each request of huggingface_hub only once, with a timeout, for as long as a `with` block lasts.

    Failures that it would repeat are raised as `HubFailure` instead.
    """
    client = get_session()
    send = client.send
    before = {name: os.environ.get(name) for name in _XET}

    def send_once(request: Any, **options: Any) -> Any:
        given = {name: value for name, value in request.extensions.get("timeout", {}).items() if value is not None}
        request.extensions["timeout"] = {"connect": _CONNECT, "read": _READ, "write": _READ, **given}
        try:
            response = send(request, **options)
        except _httpx.TransportError as error:
            raise _failure(error) from error
        is_page = response.headers.get("content-type", "").startswith("text/html")
        if response.status_code in _REPEATED_BY_THE_LIBRARY:
            failure = HubFailure.of_answer(response)
        elif response.is_success and is_page and "/api/" in request.url.path:
            failure = HubFailure.of_answer(
                response, "with a web page, which comes from a proxy or from the login page of a network"
            )
        else:
            return response
        response.close()  # or its connection stays taken
        raise failure

    client.send = send_once  # type: ignore[method-assign]
    os.environ.update(_XET)
    try:
        yield
    finally:
        client.send = send  # type: ignore[method-assign]
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def retry(description: str, action: Callable[[], _Result], *, target: str, may_be_absent: bool = False) -> _Result:
    """Run an idempotent action, and repeat it for about a minute after errors that may be transient.

    Args:
        description: what the action does, as a phrase that completes "cannot ...".
        target: repository or owner that the token must have access to, for errors.
        may_be_absent: whether a missing repository is a valid answer.

    Raises:
        InputError: the action failed for good; the message says what failed, what the Hub answered and what to do.
        RepositoryNotFoundError: the repository doesn't exist or isn't visible to this token (with `may_be_absent`).
    """
    first: float | None = None
    for attempt in range(1, 10_000):
        try:
            return action()
        except RepositoryNotFoundError as error:
            if may_be_absent:
                raise
            failure = _failure(error)
        except RuntimeError as error:  # of hf-xet, and of huggingface_hub around its errors
            if _is_ours(error):
                raise
            failure = _failure(error)
        except (HubFailure, OSError, _httpx.TransportError, json.JSONDecodeError) as error:
            failure = _failure(error)
        first = time.monotonic() if first is None else first
        pause = _PAUSES[min(attempt, len(_PAUSES)) - 1]
        is_late = time.monotonic() + pause - first > _SECONDS and attempt >= _ATTEMPTS
        if failure.permanent or is_late or (failure.wait or 0) > _LONGEST_WAIT:
            raise InputError(f"cannot {description}: {_explain(failure, target)}") from failure
        pause = max(pause, failure.wait or 0)
        logger.warning("%s: %s; retrying in %.0f s", description, _what(failure), pause)
        time.sleep(pause)
    raise AssertionError("not reached")


def _is_ours(error: RuntimeError) -> bool:
    """Return whether an error is a bug, which repetition doesn't fix: raised by this package, or not by a network."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    is_bug = isinstance(error, (NotImplementedError, RecursionError))
    return is_bug or frame.f_globals.get("__name__", "").startswith("bioptimus_hf.")


def _failure(error: BaseException) -> HubFailure:
    """Return what an error of huggingface_hub, hf-xet or the network says, wherever it is wrapped."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for link in chain:
        if isinstance(link, HubFailure):
            return link
        if isinstance(link, HfHubHTTPError):
            return HubFailure.of_answer(link.response, link.server_message)
    text = str(error) or type(error).__name__
    # hf-xet and proxies only name a status in the text of an error: "... (403 Forbidden), domain: https://host/..."
    if found := re.search(r"(?i)(?:status\D{0,30}|^)\b([45]\d\d)\b ?([\w ]*)(?:.*domain: (\w+://[^/]+))?", text):
        status = int(found[1])
        return HubFailure(found[2] or text, status=status, host=found[3], permanent=not _is_transient(status))
    if isinstance(error, _httpx.TimeoutException):
        return HubFailure(f"{constants.ENDPOINT} doesn't answer ({type(error).__name__})")
    if isinstance(error, json.JSONDecodeError):
        return HubFailure(f"{constants.ENDPOINT} answered with something else than JSON: is a proxy in between?")
    permanent = any(_is_permanent(link) for link in chain)
    if isinstance(error, _httpx.TransportError):
        return HubFailure(f"{constants.ENDPOINT} can't be reached ({text})", permanent=permanent)
    return HubFailure(f"{type(error).__name__}: {text}", permanent=permanent)


def _is_transient(status: int) -> bool:
    return status in _TRANSIENT or status >= 520


def _is_permanent(error: BaseException) -> bool:
    """Return whether an error will stay: an untrusted certificate, an unknown host, a bad address, or a full disk."""
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_NONAME
    kinds = (ssl.SSLCertVerificationError, _httpx.UnsupportedProtocol, _httpx.LocalProtocolError)
    is_local = isinstance(error, OSError) and error.filename is not None  # a file of this machine
    return isinstance(error, kinds) or is_local or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _reason(response: Any) -> str:
    """Return what the Hub says about an error status."""
    if message := response.headers.get("x-error-message"):
        return str(message)
    try:
        response.read()
        return str(response.json()["error"])
    except (ValueError, LookupError, TypeError, _httpx.HTTPError, _httpx.StreamError):  # the page of a gateway
        return str(response.reason_phrase) or "no reason given"


def _wait(headers: Any) -> float | None:
    """Return the seconds to wait that an answer names: `Retry-After` in seconds or as a date, or `RateLimit`."""
    value = str(headers.get("retry-after", "")).strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            return None
    limit = re.search(r"r=0;\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(limit[1]) + 1 if limit else None


def _what(failure: HubFailure) -> str:
    """Say what happened, without tokens and signed addresses."""
    reason = format_error(_SECRETS.sub("...", str(failure)), limit=300).rstrip(". ")
    return f"{failure.host} answered {failure.status} ({reason})" if failure.status else reason


def _explain(failure: HubFailure, target: str) -> str:
    what, status = _what(failure), failure.status
    if status is None:
        checks = f"check the network{' and HF_ENDPOINT' if 'HF_ENDPOINT' in os.environ else ''}, then "
        return f"{what}; {checks if 'Error:' not in what else ''}{_CONTINUE}"
    if status == 401:
        what = what.replace("answered 401", "answered 401 and rejects this token")
    if status == 403:
        what = what.replace("answered 403", "answered 403: the token lacks permission")
    wait = f"{failure.wait:.0f} s" if failure.wait else "a few minutes"
    default = _CONTINUE if _is_transient(status) or status == 200 else _ADVICE[400]
    return f"{what}: {_ADVICE.get(status, default).format(target=target, wait=wait)}"
