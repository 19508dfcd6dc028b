"""Run client functions in processes of their own, forked from a process that has already imported the libraries.

Clients read the address of the Hub when they are imported, so they can't run in the process of the tests. Importing
them takes seconds of CPU time; a fork takes milliseconds.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from helpers import ROOT
from hub import Hub

_TIMEOUT = 300.0  # seconds
_IMPORTED = ("hub_clients", "publish_clients", "transformers", "torch", "safetensors.torch")


def client_environment(hub: Hub, *, offline: bool = False, **options: Any) -> dict[str, str]:
    """Return the environment of a client process.

    Args:
        offline: whether the client must only use its cache.
        options: see `Hub.environment`.
    """
    ours = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *(str(ROOT / "tests" / name) for name in ("", "publishing"))]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # counted on a host other than the Hub
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "50ms",  # 3 s by default
    }
    return hub.environment(**options) | ours | ({"HF_HUB_OFFLINE": "1"} if offline else {})


class Call:
    """A client function that is running in a process of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answers = connection.makefile("r", encoding="utf-8")
        self.pid = int(self._answers.readline())

    def result(self) -> Any:
        """Wait for the function to return, check that its output contains no token, and return its result."""
        line = self._answers.readline()
        self._connection.close()
        assert line, "the process was killed"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"] + answer["output"]
        assert "hf_" not in answer["output"].replace("bioptimus_hf_", ""), "a token was printed"
        return answer["result"]


class ClientProcesses:
    """A process from which the clients of one Hub are forked, for as long as a `with` block lasts."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def __enter__(self) -> ClientProcesses:
        self._folder = tempfile.TemporaryDirectory()
        self._address = f"{self._folder.name}/socket"
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._address],
            env=client_environment(self._hub),
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def call(self, client: Callable[..., Any], *arguments: Any, environment: Mapping[str, Any], **options: Any) -> Any:
        """Run a client function, and return its result."""
        return self.start(client, *arguments, environment=environment, **options).result()

    def start(
        self, client: Callable[..., Any], *arguments: Any, environment: Mapping[str, Any], **options: Any
    ) -> Call:
        """Start a client function without waiting for it.

        Args:
            environment: options of `Hub.environment`, such as the token, and `offline`. By default each call has its
                own, empty cache.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_TIMEOUT)
        connection.connect(self._address)
        task = {
            "module": Path(inspect.getfile(client)).stem,
            "function": client.__name__,
            "arguments": arguments,
            "options": options,
            "environment": client_environment(self._hub, **environment),
        }
        connection.sendall(json.dumps(task, default=str).encode() + b"\n")
        return Call(connection)


def _serve(address: str) -> None:
    """Fork a process for each connection."""
    for name in _IMPORTED:
        importlib.import_module(name)
    home = os.environ["HF_HOME"]
    paths = [
        (module, name, value)
        for module in list(sys.modules.values())
        for name, value in list(vars(module).items())
        if isinstance(value, str) and value.startswith(home)
    ]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection, paths, home)
                os._exit(0)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(connection: socket.socket, paths: list[tuple[Any, str, str]], home: str) -> None:
    """Run the function that a connection asks for, with the environment it gives."""
    from huggingface_hub import constants

    connection.sendall(f"{os.getpid()}\n".encode())
    with connection.makefile("r", encoding="utf-8") as lines:
        task = json.loads(lines.readline())
    os.environ.clear()
    os.environ.update(task["environment"])
    for module, name, value in paths:  # as if the libraries had been imported with this environment
        setattr(module, name, os.environ["HF_HOME"] + value.removeprefix(home))
    constants.HF_HUB_DISABLE_XET = "HF_HUB_DISABLE_XET" in os.environ
    constants.HF_HUB_OFFLINE = "HF_HUB_OFFLINE" in os.environ
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
        try:
            client = getattr(importlib.import_module(task["module"]), task["function"])
            answer["result"] = client(*task["arguments"], **task["options"])
        except BaseException:
            answer["error"] = traceback.format_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        output.seek(0)
        answer["output"] = output.read()
    connection.sendall(json.dumps(answer).encode() + b"\n")


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


if __name__ == "__main__":
    _serve(sys.argv[1])
