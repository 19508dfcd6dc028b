"""Run commands in processes that are forked from one that has imported the libraries, so that each starts at once.

What is tested is a process of its own, with its own memory, signals, exit status and stderr; only the seconds that
Python takes to import PyTorch and transformers are spent once. Use a real script where these seconds are the point.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = (
    "bioptimus_hf.pretraining.stage",
    "bioptimus_hf.cli.pretrain",
    "transformers.trainer",
    "matplotlib.figure",
    "torch.utils.tensorboard",
    "torch.distributed.run",
)


@dataclass(frozen=True)
class Ended:
    """How a process has ended.

    Attributes:
        status: exit status; negative: the signal that killed it.
        stderr: everything that it wrote to stdout and stderr.
    """

    status: int
    stderr: str


@dataclass
class Started:
    """A process that may still be running."""

    process: Any
    output: Path

    def wait(self, timeout: float = 300) -> Ended:
        """Wait for the end of the process, and kill it if it takes too long."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return Ended(self.process.exitcode, self.output.read_text(encoding="utf-8"))


class Processes:
    """Starts commands.

    Args:
        folder: for the output of the processes, and the cache of `datasets` that they share.

    Attributes:
        cache: that cache.
        environment: environment of the processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "datasets"
        self._number = 0
        before = dict(os.environ)
        self.environment = {**before, "HF_DATASETS_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        os.environ.update(self.environment)
        try:
            _CONTEXT.set_forkserver_preload(list(_IMPORTED))
            forkserver.ensure_running()  # which inherits the environment
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        patch: str = "",
        when: tuple[str, int] | None = None,
    ) -> Started:
        """Start a command.

        Args:
            command: command of `bioptimus` and its options; or a script, by its path.
            environment: variables to set.
            patch: Python code to execute first.
            when: end of a path, and a signal that the process sends to itself as soon as it opens a file of that path,
                or renames something to it.
        """
        self._number += 1
        output = self.folder / f"{self._number}.txt"
        process = _CONTEXT.Process(target=_execute, args=(list(command), dict(environment or {}), output, patch, when))
        process.start()
        return Started(process, output)

    def launch(self, command: Sequence[object], ranks: int, **environment: str) -> None:
        """Run a script in processes of its own, several as `torchrun` starts them. It is to end without an error."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks] if ranks > 1 else []
        done = subprocess.run(
            [sys.executable, *map(str, [*launcher, *command])],
            env={**self.environment, "ACCELERATE_USE_CPU": "true", **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def run(self, command: Sequence[str], **options: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.start(command, **options).wait()

    def start_ranks(self, command: Sequence[str], number: int, **options: Any) -> list[Started]:
        """Start a command in several processes that train together."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        group = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_PORT": port}
        group |= {"MASTER_ADDR": "127.0.0.1", **options.pop("environment", {})}
        return [
            self.start(command, environment={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options)
            for rank in range(number)
        ]


def _execute(
    command: list[str], environment: dict[str, str], output: Path, patch: str, when: tuple[str, int] | None
) -> None:
    os.environ.update(environment)
    if patch:
        exec(patch, {})
    from bioptimus_hf.cli.__main__ import entry

    with open(output, "wb") as file:  # from here on, a signal hits the command and not its preparation
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if when is not None:
        end, number = when

        def watch(event: str, details: Any) -> None:
            nonlocal end
            if event in ("open", "os.rename") and end and str(details[event == "os.rename"]).endswith(end):
                end = ""
                os.kill(os.getpid(), number)

        sys.addaudithook(watch)
    name, *options = command
    if name.endswith(".py"):
        sys.argv = command
        runpy.run_path(name, run_name="__main__")
    else:
        sys.argv = ["bioptimus", *options]
        entry(name)


KILL, TERMINATE = signal.SIGKILL, signal.SIGTERM
