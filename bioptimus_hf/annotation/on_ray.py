"""Annotate files with Ray on any number of machines: results and records are those of one machine.

A file is the unit of work. Workers are actors, which load the models once and then get one file after the other. They
write the results themselves, to a file system that all machines share. If a worker or its machine is lost, another one
gets the file; a file that costs one worker after the other fails, and the others go on.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.engines import is_exported
from bioptimus_hf.annotation.jobs import Job, Progress, Provenance, annotate_file, discard, load_annotator
from bioptimus_hf.annotation.options import AnnotationOptions, RunnerOptions
from bioptimus_hf.artifacts import verification
from bioptimus_hf.corpus.formats import UnwritableError
from bioptimus_hf.errors import InputError, counted, format_error, lacks_memory
from bioptimus_hf.hardware import THREADS_THAT_WAIT
from bioptimus_hf.models import find_model
from bioptimus_hf.ray_session import connected, missing_package
from bioptimus_hf.storage import Holder, holder_of

logger = logging.getLogger(__name__)

_PACKAGE = "bioptimus_hf"
_MAX_ATTEMPTS = 5  # at a file, or at loading the models, before it is blamed for the death of the workers
_SECONDS_BETWEEN_REPORTS = 1.0  # of a worker
_SECONDS_TO_WAIT = 60.0  # for the first worker, before a line says so


def annotate_on_ray(
    jobs: Sequence[Job],
    provenance: Provenance,
    options: AnnotationOptions,
    runner: RunnerOptions,
    lock: Path,
    progress: Progress,
) -> Generator[tuple[Job, Mapping[str, Any] | InputError]]:
    """Annotate files with Ray, and yield each with the facts of its record, or with its error, as they are finished.

    Args:
        jobs: the files.
        provenance: models and settings.
        options: what is annotated, and how.
        runner: the cluster, and how its processors are used.
        lock: the lock of the output folder, which this process holds. Workers look for it to check that they see the
            same folder.
        progress: is told what the workers have done.

    Raises:
        InputError: Ray isn't installed, or not at that address; no machine has enough processors; a machine doesn't see
            the input, the models or the output folder; the models can't be loaded.
    """
    with connected(runner.address):
        share = _share_of(runner, options, len(jobs))
        holder = holder_of(lock)
        assert holder is not None
        workers = _Workers(_Call(provenance, options, lock, holder, os.getcwd(), share), len(jobs))
        try:
            yield from workers.annotate(jobs, progress)
        finally:
            workers.stop()


@dataclass(frozen=True)
class _Share:
    """What a worker gets of the cluster.

    Attributes:
        workers: number of workers.
        cpus: processors of each, which is also its number of threads.
        gpus: GPUs of each.
    """

    workers: int
    cpus: int
    gpus: float


@dataclass(frozen=True)
class _Call:
    """What all workers are told.

    Attributes:
        provenance: models and settings.
        options: what is annotated, and how.
        lock: the lock of the output folder.
        holder: who holds it.
        folder: the folder that relative paths start from.
        share: what a worker gets of the cluster.
    """

    provenance: Provenance
    options: AnnotationOptions
    lock: Path
    holder: Holder
    folder: str
    share: _Share


@dataclass
class _Report:
    """What a worker has done since its last report.

    Attributes:
        documents: number of documents annotated.
        entities: number of entities found in them.
        size: number of bytes of the input that were read.
        records: what was logged: logger, level and message.
        result: at the end, the facts of the record of the file, or its error. It is a value because Ray logs exceptions
            at length and wraps them.
        stops_all: whether the error concerns all files.
    """

    documents: int = 0
    entities: int = 0
    size: int = 0
    records: list[tuple[str, int, str]] = field(default_factory=list)
    result: Mapping[str, Any] | InputError | None = None
    stops_all: bool = False

    def add(self, documents: int, entities: int, size: int) -> None:
        """See `Progress.add`."""
        self.documents += documents
        self.entities += entities
        self.size += size


class _StoppingError(InputError):
    """An error that concerns all files, such as a machine that doesn't see them."""


class _Worker:
    """The actor. It works in a second thread, so that it can report meanwhile.

    Args:
        call: what all workers are told.
    """

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._annotator: Annotator | None = None
        self._report = _Report()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1)
        package = logging.getLogger(_PACKAGE)
        package.setLevel(logging.INFO)
        package.addHandler(_Collector(self))

    def annotate(self, job: Job | None) -> Iterator[_Report]:
        """Annotate a file, or only load the models if there is none, and yield reports; the last one has the result."""
        future = self._thread.submit(self._result, job)
        while not wait([future], _SECONDS_BETWEEN_REPORTS).done:
            report = self._take()
            if report.documents or report.records:
                yield report
        result, stops_all = future.result()
        yield replace(self._take(), result=result, stops_all=stops_all)

    def log(self, record: logging.LogRecord) -> None:
        """Keep a record for the next report."""
        with self._lock:
            self._report.records.append((record.name, record.levelno, record.getMessage()))

    def begin(self) -> None:
        """See `Progress.begin`; the driver does it."""

    def add(self, documents: int, entities: int, size: int) -> None:
        """See `Progress.add`."""
        with self._lock:
            self._report.add(documents, entities, size)

    def _take(self) -> _Report:
        with self._lock:
            report, self._report = self._report, _Report()
        return report

    def _result(self, job: Job | None) -> tuple[Mapping[str, Any] | InputError, bool]:
        """Return the facts of the record, or an error, and whether it concerns all files."""
        options, host = self._call.options, socket.gethostname()
        try:
            with verification(not options.no_verify):
                annotator = self._annotator = self._annotator or self._load()
                if job is None:
                    return {"host": host}, False
                self._check_sight(job)
                return annotate_file(job, annotator, self._call.provenance, options, self), False
        except (UnwritableError, _StoppingError) as error:
            return _plain(error, f" (on {host})"), True
        except InputError as error:
            return _plain(error), False
        except Exception as error:
            if not lacks_memory(error):
                raise
            what = "loading the models" if job is None else f"annotating {job.file}"
            return InputError(f"out of memory on {host} when {what}: use a smaller batch_size or fewer actors"), not job

    def _load(self) -> Annotator:
        """Load the models, after checking that this machine sees what the driver sees."""
        call = self._call
        torch.set_num_threads(call.share.cpus)
        with suppress(OSError):  # then relative paths aren't found either
            os.chdir(call.folder)
        if holder_of(call.lock) != call.holder:
            raise self._blind(call.options.output_dir)
        try:
            for model, identity in zip(call.options.models, call.provenance.models.values(), strict=True):
                if find_model(model).identity != identity:
                    raise self._blind(model)
            annotator = load_annotator(call.options, None if call.share.gpus else "cpu")
        except _StoppingError:
            raise
        except InputError as error:
            stopping = _StoppingError(str(error))
            stopping.argument = error.argument
            raise stopping from error
        if call.share.gpus and annotator.device.type == "cpu":
            raise _StoppingError("PyTorch can't use the GPU: install a build that can, or set gpus_per_actor to 0")
        return annotator

    def _check_sight(self, job: Job) -> None:
        """Raise if the file, which the driver could read a moment ago, can't be read here."""
        if job.readable and not os.access(job.file, os.R_OK):
            raise self._blind(job.file)

    def _blind(self, path: str | Path) -> _StoppingError:
        return _StoppingError(
            f"{path} isn't what it is on {self._call.holder.host}: every machine of the cluster must see the input, "
            f"the models and output_dir under the same paths"
        )


class _Collector(logging.Handler):
    """Hands log records to the worker."""

    def __init__(self, worker: _Worker) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record for the next report."""
        self._worker.log(record)


@dataclass
class _Task:
    """A file that is being annotated, or a worker that is loading the models.

    Attributes:
        worker: the actor.
        host: its machine, if it has loaded the models.
        job: the file; None while the models are loaded.
        done: what has been reported. If it has a result, only the end of the stream of reports is left.
    """

    worker: Any
    host: str = ""
    job: Job | None = None
    done: _Report = field(default_factory=_Report)


class _Workers:
    """The workers as the driver sees them.

    Args:
        call: what they are told.
        files: number of files.
    """

    def __init__(self, call: _Call, files: int) -> None:
        import ray

        self._ray = ray
        share = call.share
        environment = {**THREADS_THAT_WAIT, "RAYON_NUM_THREADS": str(share.cpus)}  # the latter is of tokenizers
        actor = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, runtime_env={"env_vars": environment})(_Worker)
        self._start: Callable[[], Any] = functools.partial(actor.remote, call)
        self._number = min(share.workers, files)
        self._tasks: dict[Any, _Task] = {}
        self._waiting: deque[Job] = deque()
        self._attempts: Counter[Path] = Counter()
        self._failed_starts = 0
        self._said: set[tuple[str, int, str]] = set()

    def annotate(
        self, jobs: Iterable[Job], progress: Progress
    ) -> Generator[tuple[Job, Mapping[str, Any] | InputError]]:
        """Annotate files, and yield them with their facts or errors."""
        self._waiting.extend(jobs)
        for _ in range(self._number):
            self._submit(_Task(self._start()))
        while self._waiting or any(task.job for task in self._tasks.values()):
            for stream in self._ready():
                task = self._tasks[stream]
                try:
                    report = self._ray.get(next(stream))
                except StopIteration:
                    self._continue(stream, task)
                except self._ray.exceptions.RayTaskError as error:
                    raise missing_package(error) or error from None
                except self._ray.exceptions.RayError as error:
                    if failed := self._replace(stream, task, error, progress):
                        yield failed
                else:
                    self._note(task, report, progress)
                    if task.job and report.result is not None:
                        yield task.job, report.result

    def stop(self) -> None:
        """Stop the workers, and remove what they leave."""
        for task in self._tasks.values():
            self._ray.kill(task.worker)
            if task.job and task.done.result is None:
                discard(task.job.target)

    def _ready(self) -> list[Any]:
        """Wait for reports, and return the streams that have one."""
        streams = list(self._tasks)
        ready, _ = self._ray.wait(streams, num_returns=1, timeout=_SECONDS_TO_WAIT)
        if not ready and not any(task.host for task in self._tasks.values()):
            logger.info("waiting for the cluster: it has started none of %s yet", counted(len(streams), "actor"))
        return self._ray.wait(streams, num_returns=len(streams), timeout=0)[0] if ready else []

    def _submit(self, task: _Task) -> None:
        self._tasks[task.worker.annotate.options(num_returns="streaming").remote(task.job)] = task

    def _continue(self, stream: Any, task: _Task) -> None:
        """Give the next file to a worker that has finished one, or end it if there is none."""
        del self._tasks[stream]
        if self._waiting:
            job = self._waiting.popleft()
            job = replace(job, readable=os.access(job.file, os.R_OK))
            self._submit(_Task(task.worker, task.host, job))
        else:
            self._ray.kill(task.worker)

    def _note(self, task: _Task, report: _Report, progress: Progress) -> None:
        """Log what a worker logged, unless another one has said the same, and add to the progress.

        Raises:
            InputError: an error that concerns all files.
        """
        for name, level, message in report.records:
            if (name, level, message) not in self._said:
                self._said.add((name, level, message))
                logging.getLogger(name).log(level, "%s", message)
        amounts = report.documents, report.entities, report.size
        task.done.add(*amounts)
        progress.add(*amounts)
        task.done.result = report.result
        if isinstance(report.result, InputError):
            if report.stops_all:
                raise report.result
        elif report.result is not None and task.job is None:
            task.host = report.result["host"]
            progress.begin()
            self._failed_starts = 0

    def _replace(self, stream: Any, task: _Task, error: Exception, progress: Progress) -> tuple[Job, InputError] | None:
        """Replace a worker that has died, and put its file back into the queue; return the file if it fails for good.

        Raises:
            InputError: one worker after the other died before it had loaded the models.
        """
        del self._tasks[stream]
        self._ray.kill(task.worker)  # it may be out of reach and still alive
        if missing := missing_package(error):
            raise missing
        if task.job is None:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_ATTEMPTS:
                raise InputError(
                    f"{self._failed_starts} actors died when they were to load the models, probably because memory ran "
                    f"out: use fewer actors ({_reason(error)})"
                )
        self._submit(_Task(self._start()))
        if task.job is None or task.done.result is not None:
            return None
        job, done = task.job, task.done
        progress.add(-done.documents, -done.entities, -done.size)
        self._attempts[job.file] = attempts = self._attempts[job.file] + 1
        if attempts >= _MAX_ATTEMPTS:
            discard(job.target)
            return job, InputError(
                f"{job.file}: {attempts} actors died while annotating it, either because memory ran out or because of "
                f"the file; the last one on {task.host} ({_reason(error)})"
            )
        logger.warning("%s: the actor that annotated it on %s died: tried again", job.file, task.host)
        self._waiting.append(job)
        return None


def _share_of(runner: RunnerOptions, options: AnnotationOptions, files: int) -> _Share:
    """Return how many workers there are, and what each gets.

    By default, workers take all processors of the cluster: one each, or more if there are fewer files. If the cluster
    has GPUs, workers take one each.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = runner.gpus_per_actor
    if gpus is None:
        on_cpu = options.engine in ("onnx", "openvino") or any(map(is_exported, options.models))
        gpus = float(any(node.get("GPU") for node in nodes) and not on_cpu)
    if gpus:
        nodes = [node for node in nodes if node.get("GPU", 0) >= gpus]

    def room(cpus: int) -> int:
        return sum(int(min(node.get("CPU", 0) // cpus, node["GPU"] // gpus if gpus else 1e9)) for node in nodes)

    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    fitting = (number for number in range(most, 0, -1) if room(number) >= files and not gpus)
    cpus = runner.cpus_per_actor or next(fitting, 1)
    workers = runner.num_actors or room(cpus)
    if not workers:
        wanted = f"{counted(cpus, 'processor')}{f' and {gpus:g} GPUs' if gpus else ''}"
        raise InputError(f"no machine of the cluster has {wanted} for an actor: lower cpus_per_actor or gpus_per_actor")
    logger.info(
        "annotating on Ray with %s of %s%s",
        *(counted(min(workers, files), "actor"), counted(cpus, "processor"), f" and {gpus:g} GPU" if gpus else ""),
    )
    return _Share(workers, cpus, gpus)


def _plain(error: InputError, place: str = "") -> InputError:
    """Return an error of a class that can be sent, whatever the arguments of its own class."""
    plain = InputError(f"{error}{place}")
    plain.argument = error.argument
    return plain


def _reason(error: Exception) -> str:
    """Return what Ray says about the death of an actor, without its description of the actor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return format_error(lines[-1] if lines else error, limit=150)
