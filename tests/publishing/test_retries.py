"""Test which errors of the Hub are repeated, for how long, and what is said about those that remain."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hub import Delay, Drop, Hub, Status
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing import retries
from bioptimus_hf.publishing.retries import retry, single_attempts

httpx = retries._httpx
TOKEN = "hf_" + "a" * 34


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)
    return clock


def answer(status: int, **headers: str) -> Callable[[], None]:
    """Return an action that fails as huggingface_hub does after an answer with this status."""

    def fail() -> None:
        headers["content-type"] = "application/json"
        request = httpx.Request("PUT", "https://storage.example/x?signature=secret")
        response = httpx.Response(status, headers=headers, content=b'{"error": "No reason."}', request=request)
        try:
            from huggingface_hub.utils import hf_raise_for_status

            hf_raise_for_status(response)
        except Exception as error:
            raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from error  # as it does

    return fail


def raises(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def message(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        retry("publish ada/x v0.1", action, target="ada/x")
    text = str(error.value)
    assert "\n" not in text
    assert "secret" not in text
    assert TOKEN not in text
    assert text.startswith("cannot publish ada/x v0.1: ")
    return text.removeprefix("cannot publish ada/x v0.1: ")


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "(No reason): correct what the Hub complains about"),
        (401, "answered 401 and rejects this token (No reason): create a new token, or run `hf auth login`"),
        (403, "answered 403: the token lacks permission (No reason): it needs write access to ada/x"),
        (404, "(No reason): check that ada/x exists"),
        (413, "doesn't accept files of this size"),
        (422, "correct what the Hub complains about"),
    ],
)
def test_permanent_answers_end_at_once(clock: Clock, status: int, advice: str) -> None:
    text = message(answer(status))
    assert text.startswith(f"https://storage.example answered {status}")
    assert advice in text
    assert clock.pauses == []


@pytest.mark.parametrize("status", [408, 409, 412, 423, 425, 429, 500, 502, 503, 504, 520, 524])
def test_transient_answers_are_repeated_for_a_minute(clock: Clock, status: int) -> None:
    text = message(answer(status))
    assert text.startswith(f"https://storage.example answered {status} (No reason): ")
    assert "give the same command again" in text
    assert clock.pauses[:4] == [1, 2, 4, 8]
    assert 50 <= clock.now <= 60


def test_an_action_that_takes_long_is_repeated_at_least_twice(clock: Clock) -> None:
    def upload() -> None:
        clock.now += 1000
        answer(503)()

    message(upload)
    assert len(clock.pauses) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "100"},
        {"retry-after": "a date"},
        {"ratelimit": '"api";r=0;t=99'},
    ],
)
def test_the_hub_says_how_long_to_wait(clock: Clock, headers: dict[str, str]) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    headers = {name: value.replace("a date", date) for name, value in headers.items()}
    outcomes = iter([answer(429, **headers), lambda: "done"])
    assert retry("publish", lambda: next(outcomes)(), target="ada/x") == "done"
    assert clock.pauses == [pytest.approx(100, abs=60)]


def test_a_wait_of_more_than_minutes_is_an_error(clock: Clock) -> None:
    assert "too many requests: wait 3600 s, then give the same" in message(answer(429, **{"retry-after": "3600"}))
    assert clock.pauses == []


PERMANENT = {
    "unknown host": (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "can't be reached (Name or"),
    "certificate": (ssl.SSLCertVerificationError("CERTIFICATE_VERIFY_FAILED"), "can't be reached (CERTIFICATE"),
}


@pytest.mark.parametrize("case", PERMANENT)
def test_errors_of_the_network_that_stay(clock: Clock, case: str) -> None:
    cause, expected = PERMANENT[case]

    def fail() -> None:
        try:
            raise cause
        except OSError as error:
            raise httpx.ConnectError(str(error.args[-1])) from error

    text = message(fail)
    assert expected in text
    assert "check the network" in text
    assert clock.pauses == []


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("Connection refused"),
        httpx.ReadTimeout("timed out"),
        httpx.RemoteProtocolError("Server disconnected"),
        json.JSONDecodeError("Expecting value", "<html>", 0),
        RuntimeError("Data processing error: connection reset"),
        ConnectionError("reset"),
    ],
)
def test_errors_of_the_network_that_may_pass(clock: Clock, error: Exception) -> None:
    message(raises(error))
    assert 50 <= clock.now <= 60


def test_bugs_are_raised_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only errors from outside this package are of the network."""
    for error in (RecursionError("too deep"), NotImplementedError("not here")):
        with pytest.raises(type(error), match=str(error)):
            retry("publish ada/x v0.1", raises(error), target="ada/x")
    monkeypatch.setitem(globals(), "__name__", "bioptimus_hf.publishing.publish")
    with pytest.raises(RuntimeError, match="of ours"):
        retry("publish ada/x v0.1", raises(RuntimeError("of ours")), target="ada/x")
    assert clock.pauses == []


def test_statuses_that_only_the_text_names(clock: Clock) -> None:
    text = "Network error: HTTP status client error (403 Forbidden), domain: https://cas.example/v1/xorbs/default/7804"
    assert "https://cas.example answered 403: the token lacks permission (Forbidden)" in message(
        raises(RuntimeError(text))
    )
    assert clock.pauses == []
    message(raises(RuntimeError(text.replace("403 Forbidden", "503 Service Unavailable"))))
    assert clock.pauses


def test_no_token_and_no_signed_address_is_shown(clock: Clock) -> None:
    for text in (
        f"Illegal header value b'Bearer {TOKEN}\\n'",
        f"403 for https://blobs.example/x?signature=secret&x=1 with {TOKEN}",
        "Illegal header value b'Bearer secret\\n'",
    ):
        message(raises(httpx.LocalProtocolError(text)))


def test_a_missing_repository_may_be_an_answer(clock: Clock) -> None:
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub.example/api"))
    missing = RepositoryNotFoundError("not found", response=response)
    with pytest.raises(RepositoryNotFoundError):
        retry("look up ada/x", raises(missing), target="ada/x", may_be_absent=True)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Iterator[HfApi]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield HfApi(endpoint=hub.endpoint, token=hub.token("ada"))
    hub.clear_faults()


@pytest.mark.parametrize("how", [Status(503), Status(429), Drop()])
def test_the_library_repeats_nothing(
    hub: Hub, api: HfApi, caplog: pytest.LogCaptureFixture, how: Status | Drop
) -> None:
    api.create_repo("ada/once", exist_ok=True)
    fault = hub.fail("GET */ada/once/tree/*", how, times=3)
    with caplog.at_level(logging.INFO), single_attempts():
        for _ in range(2):
            with pytest.raises(retries.HubFailure):
                list(api.list_repo_tree("ada/once"))
    assert fault.happened == 2
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]
    started = time.monotonic()
    assert len(list(api.list_repo_tree("ada/once"))) == 1  # outside of the block, it repeats requests as before
    assert fault.happened == 3
    assert time.monotonic() - started > 0.9


def test_a_silent_hub_is_given_up(hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.create_repo("ada/silent", exist_ok=True)
    hub.fail("GET */ada/silent/tree/*", Delay(3))
    monkeypatch.setattr(retries, "_READ", 0.2)
    with single_attempts(), pytest.raises(retries.HubFailure, match="doesn't answer"):
        list(api.list_repo_tree("ada/silent"))
