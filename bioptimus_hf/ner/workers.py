"""Do jobs in processes of their own, several at the same time.

Not in a pool of `multiprocessing`: its processes import the main module of the caller, and so would run a script again
that isn't guarded against it.
"""

from __future__ import annotations

import logging
import os
import pickle
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
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Generic, TypeVar

import torch

from bioptimus_hf.errors import InputError
from bioptimus_hf.hardware import THREADS_THAT_WAIT, keep_freed_memory

Job = TypeVar("Job", bound=Callable[[], Any])

_SECONDS_BETWEEN_CHECKS = 1.0  # of whether another process lives
_SECONDS_TO_END = 20.0
# With these, threads of all processes might be bound to the same cores.
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


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
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            # All are started first: to send a job may take until the process has imported what is needed.
            workers += [_Worker(threads) for _ in range(len(workers), min(at_once, len(busy) + len(jobs)))]
            for worker in workers:
                if worker.job is None and jobs:
                    worker.begin(jobs.popleft())
                    busy[worker.connection] = worker
            if not busy:
                return
            ready = wait(list(busy), _SECONDS_BETWEEN_CHECKS)
            for connection in ready:
                yield from busy[connection].receive()  # type: ignore[index]
            for worker in busy.values() if not ready else ():
                worker.check()
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
        environment = {name: value for name, value in os.environ.items() if name not in _BINDING}
        # The same modules are to be found, wherever the caller has found them, and nothing in the folder of the user.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment["PYTHONSAFEPATH"] = "1"
        environment |= {**THREADS_THAT_WAIT, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
        # The parent gets an interrupt, too, and ends this process; it may come while modules are imported.
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"from {__name__} import work; work({other.fileno()}, {threads})"
        )
        self.process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[other.fileno()], env=environment)
        other.close()

    def begin(self, job: Job) -> None:
        """Give it a job."""
        self.job = job
        try:
            self.connection.send(job)
        except ConnectionError:
            raise self._lost() from None

    def receive(self) -> Iterator[tuple[Job, Any]]:
        """Take what the process has sent: something to log, the result of its job, or an error."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, ConnectionError):
            raise self._lost() from None
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

    def check(self) -> None:
        """Raise if the process has ended. Its own child processes may keep the connection open.

        Raises:
            InputError: it has.
        """
        if self.process.poll() is not None and not self.connection.poll():
            raise self._lost()

    def end(self) -> None:
        """Wait until the process has ended, and kill it if that takes too long."""
        try:
            self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.connection.close()

    def _lost(self) -> InputError:
        status = self.process.wait()
        if status >= 0:
            return InputError(f"a process that trained heads ended with status {status}: look for its error above")
        return InputError(
            f"a process that trained heads was killed by signal {-status}, often for lack of memory: train fewer at "
            f"the same time; finished heads are kept",
            argument="at_once",
        )


class _Sender(logging.Handler):
    """Sends records to the process that has started this one."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, without what may not be picklable."""
        try:
            text = record.getMessage()
            if record.exc_info:
                text += f"\n{''.join(traceback.format_exception(*record.exc_info))}".rstrip()
            plain = logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None)
            self._send("log", plain)
        except ConnectionError:
            raise
        except Exception:
            self.handleError(record)


def work(descriptor: int, threads: int) -> None:
    """Do the jobs that come through a connection. This is what the other processes do.

    Args:
        descriptor: number of the file descriptor of the connection.
        threads: of PyTorch.
    """
    connection = Connection(descriptor)
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    lock = threading.Lock()

    def send(kind: str, content: Any) -> None:
        message = ForkingPickler.dumps((kind, content))  # which may log something, and so must not hold the lock
        with lock:
            connection.send_bytes(message)

    try:
        torch.set_num_threads(threads)  # whatever variables of the user say
        keep_freed_memory()
        _send_logs(send)
        while True:
            job = connection.recv()
            try:
                result = job()
            except Exception as error:
                send("error", _portable(error))
            else:
                send("result", result)
    except (KeyboardInterrupt, EOFError, ConnectionError):
        os._exit(128 + signal.SIGTERM)  # nobody is listening any more


def _portable(error: Exception) -> Exception:
    """Return a copy of an error that survives being sent, with its traceback as a note."""
    text = traceback.format_exc()
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(text)
    return copy


def _send_logs(send: Callable[[str, Any], None]) -> None:
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
        time.sleep(_SECONDS_BETWEEN_CHECKS)
    os._exit(1)
