"""Retry requests to the Hub that are safe to repeat, and report the errors that remain."""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]

from bioptimus_hf.errors import InputError, format_error

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_httpx = importlib.import_module(HTTPError.__module__.partition(".")[0])  # httpx or, with huggingface_hub 2, httpx2
_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts
_TRANSIENT = frozenset({408, 409, 412, 423, 425, 429, 500, 502, 503, 504})  # HTTP statuses


def retry(description: str, action: Callable[[], _Result], *, may_be_absent: bool = False) -> _Result:
    """Run an idempotent action, and retry it a few times after errors that may be transient.

    Args:
        description: what the action does, as a phrase that completes "cannot ...".
        may_be_absent: whether a missing repository is a valid answer. Otherwise it is retried, because the repository
            may have just been created.

    Raises:
        InputError: the action failed for good; the message says what failed and what the Hub answered.
        RepositoryNotFoundError: the repository doesn't exist or isn't visible to this token (with `may_be_absent`).
    """
    for pause in (*_PAUSES, None):
        try:
            return action()
        except (_httpx.ConnectError, _httpx.TimeoutException) as error:
            raise InputError(f"cannot {description}: {constants.ENDPOINT} cannot be reached ({error})") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            absent = isinstance(error, RepositoryNotFoundError)
            if absent and may_be_absent:
                raise
            if pause is None or not (absent or status in _TRANSIENT):
                raise InputError(f"cannot {description}: {_explain(status, error)}") from error
            problem = f"status {status}"
        except (_httpx.TransportError, OSError, RuntimeError, json.JSONDecodeError) as error:
            problem = f"{type(error).__name__}: {format_error(error)}"
            if pause is None:
                raise InputError(f"cannot {description}: {problem}; give the same command again to continue") from error
        logger.warning("%s: %s; retrying in %.0f s", description, problem, pause)
        time.sleep(pause)
    raise AssertionError("not reached")


def _explain(status: int, error: HfHubHTTPError) -> str:
    message = format_error(error.server_message or "no reason given", limit=500)
    if status == 401:
        return f"{constants.ENDPOINT} rejects this token ({message}): create a new one, or run `hf auth login`"
    if status == 403:
        return f"the token lacks permission ({message}): it needs write access to the owner's repositories"
    return f"{constants.ENDPOINT} answered {status} ({message}); give the same command again to continue"
