"""Train the heads of many tasks and models, several at the same time, each group after the search of its settings."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import AutoConfig

from bioptimus_hf.artifacts import RECORD, Run, is_finished, verification
from bioptimus_hf.errors import InputError, counted
from bioptimus_hf.ner.head_stage import TrainedHead, report_missing, try_to_train, working_on
from bioptimus_hf.ner.joint import JointData
from bioptimus_hf.ner.options import HeadTraining
from bioptimus_hf.ner.planning import PlannedHead
from bioptimus_hf.ner.search import Search
from bioptimus_hf.ner.workers import results_of
from bioptimus_hf.progress import progress_bar

logger = logging.getLogger(__name__)

_WORTHWHILE = 20_000  # training sentences, times epochs: starting a process takes as long as training on a few thousand
_BYTES = 2e9  # of a process that trains a head, without what follows
_BYTES_PER_BYTE = 5  # of the weights: themselves, gradients, two moments and a copy in fewer bits
# Of a batch, for each piece, layer and number in a state: 80 in bfloat16 and 130 in float32, as measured with MPNet; in
# a whole training more, because freed memory is kept in blocks that don't suit every batch.
_BYTES_PER_STATE = 150
_PIECES_PER_WORD = 1.5
_BAR = {"desc": "Training heads", "unit": " trainings"}
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class HeadGroup:
    """The heads of one task and model, which differ in their seeds.

    Attributes:
        heads: by their folders.
        search: of their settings; None if these are fixed.
        chosen: whether the settings are known: they are fixed, or an earlier command has chosen them.
        missing: folders of the heads that aren't finished.
        tried: folders of the settings that the search has tried, if it has to choose.
    """

    heads: Mapping[Path, PlannedHead]
    search: Search | None
    chosen: bool
    missing: Collection[Path]
    tried: Collection[Path]

    @property
    def task(self) -> str:
        """Name of the task, or `joint`."""
        return next(iter(self.heads.values())).task

    @property
    def sentences(self) -> int:
        """Number of training sentences."""
        dataset = next(iter(self.heads.values())).dataset
        return len(dataset.train if isinstance(dataset, JointData) else dataset["train"])

    @property
    def size(self) -> int:
        """Number of trainings, whatever is finished."""
        return len(self.heads) + (len(self.search.candidates) - 1 if self.search else 0)

    @property
    def width(self) -> int:
        """Number of trainings that don't wait for others, whatever is finished."""
        return max(len(self.heads), len(self.search.candidates) if self.search else 0)

    @property
    def left(self) -> int:
        """Number of jobs: settings to try, and heads to train or to take from the search."""
        search = self.search if not self.chosen else None
        return len(self.missing) + (len(search.candidates) - len(self.tried) if search else 0)

    @property
    def bytes(self) -> float:
        """Memory of a process that trains one of the heads, roughly."""
        head = next(iter(self.heads.values()))
        trainings = [head.training, *(self.search.candidates if self.search else ())]
        train = head.dataset.train if isinstance(head.dataset, JointData) else head.dataset["train"]
        return training_bytes(
            Path(head.encoder),
            pc.list_value_length(train.with_format("arrow")[:]["tokens"]).to_numpy(),
            batch_size=max(cast(int, training.per_device_train_batch_size) for training in trainings),
            max_length=head.settings["max_length"],
            fills_windows=head.settings.get("context") == "document",
        )

    def trainings(self) -> dict[Path, bool]:
        """Return the folder of each training that the heads need, and whether it is finished.

        The head with the first seed is the best one of the search.
        """
        first, *others = self.heads
        found = dict.fromkeys(self.search.trainings(), True) if self.search else {}
        if self.search and not self.chosen:
            found = {folder: folder in self.tried for folder in found}
        if not self.search or (self.chosen and first in self.missing):
            others = [first, *others]
        return found | {folder: folder not in self.missing for folder in others}


def head_group(run: Run, heads: Mapping[Path, PlannedHead], training: HeadTraining) -> HeadGroup:
    """Fix the settings of a group's heads, as far as they are known, and find those that are missing.

    Raises:
        InputError: a head, or a training of the search, is finished with other inputs or settings; or the settings are
            chosen again, but not for all seeds that are finished.
    """
    (folder, first), *_ = heads.items()
    candidates = training.candidates()
    search = Search(run, first, candidates, training.grid) if training.grid else None
    chosen = search.chosen_before(folder.parent) if search else training
    tried_before: list[Path] = []
    if search and not chosen:
        tried_before = search.tried()
        others = sorted(record.parent for record in folder.parent.glob(f"*/{RECORD}") if record.parent not in heads)
        if run.force and others:
            raise InputError(
                f"{others[0]} would stay as it is, but the settings are chosen again and may change: train all seeds "
                f"again, or move it away",
                argument="seeds",
            )
    settled = {place: head.trained_with(chosen or candidates[0], training.grid) for place, head in heads.items()}
    missing = [
        place for place, head in settled.items() if not is_finished(place, head.inputs, head.settings, force=run.force)
    ]
    return HeadGroup(settled, search, bool(chosen), missing, tried_before)


def training_bytes(
    encoder: Path, lengths: np.ndarray[Any, Any], *, batch_size: int, max_length: int, fills_windows: bool
) -> float:
    """Return roughly how much memory a process takes that trains a head on a CPU.

    Args:
        encoder: folder of the encoder.
        lengths: number of words of each training sentence.
        batch_size: windows in a batch.
        max_length: maximum number of word pieces in a window.
        fills_windows: whether windows hold as many neighbouring sentences as fit, instead of a single one.
    """
    files = list(encoder.glob("*.safetensors")) or encoder.glob("*.bin")
    weights = sum(file.stat().st_size for file in files)
    config = AutoConfig.from_pretrained(encoder)
    # A BERT trains without padding, on random sentences; other encoders pad the longest ones to the same length.
    words = float(lengths.mean() if config.model_type == "bert" else lengths.max())
    pieces = batch_size * (max_length if fills_windows else min(max_length, _PIECES_PER_WORD * words))
    # A few configurations use other names; their heads are planned without the states of a batch.
    states: float = pieces * getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
    return _BYTES + _BYTES_PER_BYTE * weights + _BYTES_PER_STATE * states


def plan_parallelism(groups: Sequence[HeadGroup], epochs: int, wanted: int | None) -> tuple[int, int]:
    """Return how many heads to train at the same time, and with how many threads each.

    On a CPU, two heads with a thread each take less time than one after the other with two threads. The number of
    threads depends on the machine and on all trainings of the groups, finished or not: heads that were trained with
    another one would differ in their last bits.

    Args:
        groups: to train.
        epochs: of each training.
        wanted: the number of heads that was asked for.

    Raises:
        InputError: several were asked for, but a launcher has started this process, or there is an accelerator.
    """
    cores = torch.get_num_threads()
    width = sum(group.width for group in groups)
    state = PartialState()
    if state.distributed_type != DistributedType.NO or state.device.type != "cpu":
        if wanted and wanted > 1:
            raise InputError("several heads at the same time need a CPU and no launcher", argument="at_once")
        return 1, cores
    if wanted:
        at_once = min(wanted, width)
        return at_once, max(1, cores // at_once)
    if sum(group.size * group.sentences * epochs for group in groups) < _WORTHWHILE:
        return 1, cores
    needed = max(group.bytes for group in groups)
    at_once = max(1, min(width, cores, int(_memory() // needed)))
    fitting = max(1, int(psutil.virtual_memory().available // needed))
    if fitting < at_once:
        logger.warning(
            "little memory is free: only %s instead of %d will be trained at the same time",
            *(counted(fitting, "head"), at_once),
        )
    return min(at_once, fitting), cores // at_once


def _memory() -> float:
    """Return how many bytes of memory this machine or container has."""
    limits = [psutil.virtual_memory().total]
    for file in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(Path(file).read_text(encoding="utf-8")))
    return min(limits)


def train_groups(
    groups: Sequence[HeadGroup], run: Run, grid: Mapping[str, Sequence[Any]], *, at_once: int, threads: int
) -> Iterator[tuple[HeadGroup, list[str]]]:
    """Train the heads that are missing, and yield each group that is complete, with the reasons why heads are missing.

    Args:
        grid: values of the settings that searches choose from.
        at_once: how many heads are trained at the same time.
        threads: of PyTorch for each of them.
    """
    jobs: deque[_Training] = deque()
    progress = [_Progress(group, grid, run) for group in groups]
    if at_once > 1:
        progress.sort(key=lambda one: -one.group.sentences)  # so that no long training is left for the end
    with ExitStack() as locks, progress_bar(total=sum(group.left for group in groups), **_BAR) as bar:
        for number, of_group in enumerate(progress):
            locks.push(of_group.locks)
            jobs += [_Training(number, job) for job in of_group.first_jobs()]
            if not of_group.left:
                yield of_group.end()
        for training, result in results_of(jobs, at_once=at_once, threads=threads):
            bar.update()
            of_group = progress[training.group]
            # Before the jobs of other groups, which begin after this one.
            jobs.extendleft(_Training(training.group, job) for job in reversed(of_group.next_jobs(result)))
            if not of_group.left:
                yield of_group.end()


@dataclass(frozen=True)
class _Training:
    """A job, and the number of the group that it is for."""

    group: int
    job: Callable[[], Any]

    def __call__(self) -> Any:
        return self.job()


@dataclass
class _Progress:
    """How far the work on a group is.

    Attributes:
        left: number of jobs that haven't ended.
        tried: folders of the settings that have been tried.
        reasons: why heads are missing.
        locks: of the search.
    """

    group: HeadGroup
    grid: Mapping[str, Sequence[Any]]
    run: Run
    left: int = 0
    tried: set[Path] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    locks: ExitStack = field(default_factory=ExitStack)

    def first_jobs(self) -> list[Callable[[], Any]]:
        """Return the trainings that need nothing else, of the search or of heads."""
        search = self.group.search
        if search is None or self.group.chosen:
            return self._train(self.group.heads)
        self.locks.enter_context(working_on(search.root, self.run))
        search.begin()
        self.tried = set(self.group.tried)
        rest = [folder for folder in search.trainings() if folder not in self.tried]
        self.left = len(rest)
        return [partial(_try_setting, search, folder) for folder in rest] or self._train_with_best(search)

    def next_jobs(self, result: Any) -> list[Callable[[], Any]]:
        """Note what a job has returned, and return the jobs that can be done now.

        Args:
            result: the folder of a setting that has been tried, or the reasons why a head is missing.
        """
        self.left -= 1
        search = self.group.search
        if search is None or not isinstance(result, Path):
            self.reasons += result
            return []
        self.tried.add(result)
        search.keep_best(self.tried)
        return [] if self.left else self._train_with_best(search)

    def end(self) -> tuple[HeadGroup, list[str]]:
        """Clear up after the last job, and return the group with the reasons why heads are missing."""
        if self.group.search:
            self.group.search.forget()  # also what a killed command has left
        self.locks.close()
        return self.group, self.reasons

    def _train_with_best(self, search: Search) -> list[Callable[[], Any]]:
        """Return the trainings of the heads, now that all settings have been tried."""
        chosen = search.choose()
        if chosen is None:
            self.reasons = [report_missing(folder, search.reasons()) for folder in self.group.missing]
            return []
        return self._train({folder: head.trained_with(chosen, self.grid) for folder, head in self.group.heads.items()})

    def _train(self, heads: Mapping[Path, PlannedHead]) -> list[Callable[[], Any]]:
        search = self.group.search
        missing = {folder: heads[folder] for folder in self.group.missing}
        self.left = len(missing)
        return [
            partial(_train_head, folder, head, self.run, search.kept(head) if search else None)
            for folder, head in missing.items()
        ]


def _try_setting(search: Search, folder: Path) -> Path:
    PartialState(cpu=not torch.accelerator.is_available())
    search.try_setting(folder, search.trainings()[folder])
    return folder


def _train_head(folder: Path, head: PlannedHead, run: Run, kept: TrainedHead | None) -> list[str]:
    PartialState(cpu=not torch.accelerator.is_available())
    with verification(not run.no_verify), working_on(folder, run):
        return try_to_train(folder, head, run, kept)
