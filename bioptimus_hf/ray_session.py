"""Connect to a Ray cluster, or start Ray on this machine, and run a task for each item."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from bioptimus_hf.errors import InputError, format_error

_MAX_ATTEMPTS = 10  # at a task, before it is blamed for the death of the workers that ran it
_SECONDS_FOR_THREADS = 30  # that the threads of Ray Data get to end
_LASTING_THREADS = {"Prefetcher", "data-usage-metrics-poller", "tqdm_monitor"}
"""Threads that nothing ends: one of Ray Data that waits for work if the iteration was interrupted, its telemetry in a
process that connected to Ray itself, and that of a progress bar. None of them calls Ray."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine and stop it at the end.

    Args:
        address: `host:port` of the head of a cluster that this machine belongs to, or `auto`. If it is None, an
            existing connection of this process is used; without one, Ray is started.

    Raises:
        InputError: Ray isn't installed, there is no cluster at the address, or the process is already connected.
    """
    try:
        import ray.data
    except ImportError as error:
        raise InputError("Ray is not installed: pip install 'bioptimus-hf[ray]'") from error
    with _quiet("ray.data"):
        if ray.is_initialized():
            if address is not None:
                raise InputError(f"this process is already connected to Ray: omit {address}", argument="address")
            yield
            return
        if address is not None:
            _check_address(address)
        with (
            _restored(),
            tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ):
            _initialise(address, folder)
            try:
                yield
            finally:
                ray.shutdown()


def run_tasks(
    task: Callable[[pa.Table], pa.Table], items: Sequence[dict[str, Any]], num_proc: int | None
) -> Generator[pa.Table]:
    """Run a task for each item with Ray Data, and yield the results as the tasks end.

    Ray repeats a task elsewhere if a worker or a machine is lost, so a task must be a pure function of its item.

    Args:
        task: converts a table with one row, the item, to a table with one row.
        items: the inputs of the tasks.
        num_proc: maximum number of tasks at a time; by default one per processor of the cluster.

    Raises:
        InputError: a worker can't import a package.
    """
    import ray.data

    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        task, batch_size=None, batch_format="pyarrow", concurrency=num_proc
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_no_progress_timeout_s = -1  # a large file takes long, and returns nothing before its end
    before = threading.enumerate()
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from (batch.slice(row, 1) for row in range(len(batch)))
    except ray.exceptions.RayError as error:
        raise missing_package(error) or error from None
    finally:
        # If the iteration is interrupted, Ray Data doesn't wait for its threads. When one of them calls Ray after
        # `ray.shutdown`, Ray ends the whole process silently.
        deadline = time.monotonic() + _SECONDS_FOR_THREADS
        for thread in threading.enumerate():
            if thread not in before and thread.name not in _LASTING_THREADS:
                thread.join(max(0.0, deadline - time.monotonic()))


def missing_package(error: Exception) -> InputError | None:
    """Return what to say if an error of Ray is that a worker can't import a package; None for any other error."""
    reason = str(error).strip().rpartition("\n")[2]
    if not reason.startswith(("ImportError", "ModuleNotFoundError")):
        return None
    return InputError(f"{reason}: install the same bioptimus-hf[ray] on all machines of the cluster")


def check_attempts(item: object) -> None:
    """Raise if one worker after the other died of this item; called by a task. Ray would retry forever."""
    from ray._private.worker import global_worker

    attempts = global_worker.core_worker.get_current_task_attempt_number()
    if attempts >= _MAX_ATTEMPTS:
        raise InputError(
            f"{item}: {attempts} workers died while reading it, either because memory ran out or because of the file"
        )


def _initialise(address: str | None, folder: str) -> None:
    """Connect to a cluster, or start Ray with its files in a folder."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        if address is not None:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
            return
        # Ray creates its sockets in this folder, and their paths must be short.
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=folder)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = format_error(error)
        if address is None:
            raise InputError(f"Ray can't be started on this machine: {reason}") from error
        raise InputError(f"no Ray cluster at {address}: {reason}", argument="address") from error


def _check_address(address: str) -> None:
    """Raise if nothing listens at the address: Ray would try for minutes, and then end the process."""
    if address.startswith("ray://"):
        raise InputError(
            f"Ray Data doesn't work through {address}: run this on a machine of the cluster, for example with "
            f"`ray job submit`, and give auto or host:port",
            argument="address",
        )
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"no Ray cluster at {address}: {error}", argument="address") from error


@contextmanager
def _restored() -> Iterator[None]:
    """Undo what `ray.init` changes in this process and `ray.shutdown` doesn't restore.

    Meanwhile, Ray doesn't print when a worker or machine dies, which is for the caller to report or to ignore.
    """
    from ray._private import worker

    printing = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    variables = {name: os.environ.get(name) for name in ("PYTHONBREAKPOINT", "RAY_USAGE_STATS_ENABLED")}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        worker.print_to_stdstream = printing
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        # Ray sets its handler only in the main thread. A handler of None was set by C code, and can't be restored.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger from writing to the screen; it still writes to its file."""
    own = [handler for handler in logging.getLogger(name).handlers if handler not in logging.getLogger().handlers]
    handlers = [handler for handler in own if isinstance(handler, logging.StreamHandler)]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
