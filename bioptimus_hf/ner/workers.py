"""Do jobs in processes of their own, several at the same time.

Not in a pool of `multiprocessing`: its processes import the main module of the caller, and so would run a script again
that isn't guarded against it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Generic, TypeVar

import torch

from bioptimus_hf.errors import InputError
from bioptimus_hf.hardware import keep_freed_memory

Job = TypeVar("Job", bound=Callable[[], Any])

_SECONDS_BETWEEN_LOOKS = 1.0  # at the process that has started this one
_SECONDS_TO_END = 20.0


def results_of(jobs: deque[Job], *, at_once: int = 1, threads: int = 1) -> Iterator[tuple[Job, Any]]:
    """Do jobs, and yield each with what it returns, in the order in which they end.

    What the jobs log is logged by this process. An error of a job, or an interrupt, ends the others.

    Args:
        jobs: to do, in this order; more may be added while results are yielded. They are pickled if there is more than
            one at a time.
        at_once: how many to do at the same time. A single one is done in this process.
        threads: of PyTorch for each job.

    Raises:
        InputError: a process was killed, often for lack of memory.
    """
    if at_once == 1:
        yield from _results_here(jobs, threads)
        return
    workers: list[_Worker[Job]] = []
    try:
        while True:
            idle = [worker for worker in workers if worker.job is None]
            while jobs and (idle or len(workers) < at_once):
                if not idle:
                    workers.append(_Worker(threads))
                    idle = workers[-1:]
                idle.pop().begin(jobs.popleft())
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                yield from busy[connection].receive()  # type: ignore[index]
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


def _results_here(jobs: deque[Job], threads: int) -> Iterator[tuple[Job, Any]]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        while jobs:
            job = jobs.popleft()
            yield job, job()
    finally:
        torch.set_num_threads(before)


class _Worker(Generic[Job]):
    """A process that does jobs.

    Attributes:
        job: that it is doing, or None.
    """

    def __init__(self, threads: int) -> None:
        self.job: Job | None = None
        self.connection, other = Pipe()
        # The same modules are to be found, wherever the caller has found them.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        environment["PYTHONSAFEPATH"] = "1"  # nothing else is found first in the folder of the user
        environment |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}
        code = f"from {__name__} import work; work({other.fileno()})"
        self.process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[other.fileno()], env=environment)
        other.close()

    def begin(self, job: Job) -> None:
        """Give it a job."""
        self.job = job
        self.connection.send(job)

    def receive(self) -> Iterator[tuple[Job, Any]]:
        """Take what the process has sent: something to log, the result of its job, or an error."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, ConnectionError):
            status = self.process.wait()
            how = f"was killed by signal {-status}, often for lack of memory" if status < 0 else "has ended"
            raise InputError(
                f"a process that trained heads {how}: train fewer at the same time; finished heads are kept",
                argument="at_once",
            ) from None
        if kind == "error":
            raise content
        if kind == "log":
            logger = logging.getLogger(content.name)
            if logger.isEnabledFor(content.levelno):
                logger.handle(content)
            return
        job, self.job = self.job, None
        if job is not None:
            yield job, content

    def end(self) -> None:
        """Wait until the process has ended, and kill it if that takes too long."""
        try:
            self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.connection.close()


class _Sender(logging.Handler):
    """Sends records to the process that has started this one."""

    def __init__(self, send: Callable[[tuple[str, Any]], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; its arguments may be objects that can't be pickled."""
        text = record.getMessage()
        if record.exc_info:
            text += f"\n{''.join(traceback.format_exception(*record.exc_info))}".rstrip()
        record.msg, record.args, record.exc_info, record.exc_text = text, None, None, None
        self._send(("log", record))


def work(descriptor: int) -> None:
    """Do the jobs that come through a connection. This is what the other processes do.

    Args:
        descriptor: number of the file descriptor of the connection.
    """
    connection = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process has it, too, and ends this one
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    lock = threading.Lock()

    def send(message: tuple[str, Any]) -> None:
        with lock:
            connection.send(message)

    keep_freed_memory()
    _send_logs(send)
    try:
        while True:
            job = connection.recv()
            try:
                answer = ("result", job())
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = ("error", error)
            send(answer)
    except (KeyboardInterrupt, EOFError, ConnectionError):
        os._exit(128 + signal.SIGTERM)  # nobody is listening any more


def _send_logs(send: Callable[[tuple[str, Any]], None]) -> None:
    import datasets  # noqa: F401  (which sets up its logger)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.basicConfig(level=logging.WARNING, handlers=[_Sender(send)])
    logging.getLogger("bioptimus_hf").setLevel(logging.INFO)
    # The first process says how far all jobs are.
    logging.getLogger("bioptimus_hf.progress").setLevel(logging.WARNING)
    for library in ("transformers", "huggingface_hub", "datasets"):  # they print what they log
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
