"""Requests to the Hub that may be made twice, made again where they fail for a reason that may pass."""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]

from bioptimus_hf.errors import InputError

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")
_httpx = importlib.import_module(HTTPError.__module__.partition(".")[0])  # httpx or, with huggingface_hub 2, httpx2
_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between tries
_PASSING = frozenset({408, 409, 412, 423, 425, 429, 500, 502, 503, 504})


def again(what: str, act: Callable[[], _Answer], *, may_be_absent: bool = False) -> _Answer:
    """Do what may be done twice, a few times over where it fails for reasons that may pass.

    Args:
        may_be_absent: whether a repository that is not there, or not for this token, is an answer. Elsewhere it may be
            one that has just been made.

    Raises:
        InputError: it failed for good (at what, where and why).
        RepositoryNotFoundError: where it may be absent.
    """
    for pause in (*_PAUSES, None):
        try:
            return act()
        except (_httpx.ConnectError, _httpx.TimeoutException) as error:
            raise InputError(f"cannot {what}: {constants.ENDPOINT} cannot be reached ({error})") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            absent = isinstance(error, RepositoryNotFoundError)
            if absent and may_be_absent:
                raise
            if pause is None or not (absent or status in _PASSING):
                raise InputError(f"cannot {what}: {_reason(status, error)}") from error
            problem = f"status {status}"
        except (_httpx.TransportError, OSError, RuntimeError, json.JSONDecodeError) as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if pause is None:
                raise InputError(f"cannot {what}: {problem}; give the same command again to go on") from error
        logger.warning("%s: %s; trying again in %.0f s", what, problem, pause)
        time.sleep(pause)
    raise AssertionError("not reached")


def _reason(status: int, error: HfHubHTTPError) -> str:
    said = " ".join((error.server_message or "no reason given").split())
    if status == 401:
        return f"{constants.ENDPOINT} does not know this token ({said}): make a new one, or run `hf auth login`"
    if status == 403:
        return f"the token may not do this ({said}): it needs write access to the owner's repositories"
    return f"{constants.ENDPOINT} answered {status} ({said}); give the same command again to go on"
