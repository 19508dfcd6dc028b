"""Choose the settings of a head's training from a grid, by its F1 on the development set.

Every setting is tried with one seed. The test set isn't scored, and only the best head of a task and model is kept
until it has become one of the results, so that it isn't trained twice.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from accelerate import PartialState

from bioptimus_hf.artifacts import RECORD, Run, building, fingerprint, is_finished, read_json, read_record, verification
from bioptimus_hf.errors import TrainingDiverged
from bioptimus_hf.ner.head_stage import TrainedHead, fit, stage_of_all_ranks, working_on, write_scores
from bioptimus_hf.ner.options import HeadTraining
from bioptimus_hf.ner.planning import PlannedHead
from bioptimus_hf.ner.results import SEARCH

logger = logging.getLogger(__name__)

FOLDER = "ner_search"
"""Folder of the trainings of all searches of a run."""
_KEPT = "weights"


@dataclass(frozen=True)
class Search:
    """The search of the settings for the heads of one task and model.

    Attributes:
        run: that the heads belong to.
        head: with the first seed, which tries the settings. Its own settings of the training aren't used.
        candidates: settings to choose from.
        grid: what they were made from.
    """

    run: Run
    head: PlannedHead
    candidates: Sequence[HeadTraining]
    grid: Mapping[str, Sequence[Any]]

    @property
    def root(self) -> Path:
        """The folder of all trainings of this search."""
        return self.run.root / FOLDER / self.head.task / self.head.model

    def trainings(self) -> dict[Path, PlannedHead]:
        """Return the head to train with each candidate, by its folder."""
        return {
            self.root / _folder_name(candidate) / str(self.head.seed): self.head.trained_with(candidate)
            for candidate in self.candidates
        }

    def tried(self) -> list[Path]:
        """Return the folders of the candidates that have been tried.

        Raises:
            InputError: one has been tried with other inputs, or other settings besides those in the grid.
        """
        return [
            folder
            for folder, head in self.trainings().items()
            if is_finished(folder, head.inputs, head.settings, force=self.run.force)
        ]

    def chosen_before(self, heads: Path) -> HeadTraining | None:
        """Return the settings that finished heads were trained with, if they were chosen by the same search.

        Args:
            heads: folder of the heads of this task and model, by seed.
        """
        for record in [] if self.run.force else map(read_record, sorted(heads.glob(f"*/{RECORD}"))):
            for candidate in self.candidates:
                head = self.head.trained_with(candidate, self.grid)
                settings = {**head.settings, "seed": record["settings"].get("seed")}
                if record["fingerprint"] == fingerprint(head.inputs, settings):
                    return candidate
        return None

    def begin(self) -> None:
        """Prepare the search: with force, an interrupted one might have left a head that isn't to be used."""
        if self.run.force:
            self.forget()

    def choose(self) -> HeadTraining | None:
        """Return the best settings, once all have been tried, or None if training always diverged.

        They are the first of those with the highest F1 on the development set.
        """
        best = self._best(self.trainings())
        if best is None:
            return None
        folder, dev_f1 = best
        chosen = self.trainings()[folder].training
        values = ", ".join(f"{name} {getattr(chosen, name)}" for name in self.grid)
        if PartialState().is_main_process:
            logger.info("task %s, model %s: chosen: %s (dev F1 %.2f)", *self._name(), values, 100 * dev_f1)
        return chosen

    def keep_best(self, tried: Collection[Path]) -> None:
        """Delete the weights of all heads but the best one.

        Args:
            tried: folders of the trainings that have ended; other processes may be writing the weights of others.
        """
        best = self._best(tried)
        if best and PartialState().is_main_process:
            for folder in set(tried) - {best[0]}:
                shutil.rmtree(self.root / _KEPT / folder.parent.name, ignore_errors=True)

    def _best(self, tried: Collection[Path]) -> tuple[Path, float] | None:
        """Return the folder of the best training, and its F1 on the development set."""
        scores: dict[Path, float] = {}
        for folder in [folder for folder in self.trainings() if folder in tried]:
            dev_f1 = read_record(folder)["facts"].get("dev_f1")
            if dev_f1 is not None:
                scores[folder] = dev_f1
        return max(scores.items(), key=itemgetter(1)) if scores else None

    def reasons(self) -> str:
        """Return why there is nothing to choose: each training diverged, and the first one because of this."""
        records = [read_json(folder / "scores.json") for folder in self.trainings()]
        return f"training diverged with all {len(records)} settings of the grid; with the first: {records[0]['reason']}"

    def kept(self, head: PlannedHead) -> TrainedHead | None:
        """Return a head as the search trained it, or None if it didn't or hasn't kept it."""
        folder = self._kept(head)
        settings = {name: value for name, value in head.settings.items() if name != SEARCH}
        if not (folder / RECORD).is_file():
            return None
        record = read_record(folder)
        if record["fingerprint"] != fingerprint(head.inputs, settings):
            return None
        trained = self.root / _folder_name(head.training) / str(head.seed)
        return TrainedHead(record["facts"]["history"], partial(_copy_head, folder), read_record(trained)["seconds"])

    def forget(self) -> None:
        """Delete the weights that the search has kept."""
        if PartialState().is_main_process and (self.root / _KEPT).is_dir():
            shutil.rmtree(self.root / _KEPT)

    def try_setting(self, folder: Path, head: PlannedHead) -> None:
        """Train a head with one of the settings, and keep its weights and its scores on the development set.

        Args:
            folder: from `trainings`.
            head: from `trainings`.
        """
        with verification(not self.run.no_verify), working_on(folder, self.run):
            if not is_finished(folder, head.inputs, head.settings, force=self.run.force):
                self._try(folder, head)

    def _try(self, folder: Path, head: PlannedHead) -> None:
        with stage_of_all_ranks(folder, head.inputs, head.settings, {"model": Path(head.encoder)}) as stage:
            name = (*self._name(), folder.parent.name)
            logger.info("task %s, model %s: trying %s", *name)
            main = PartialState().is_main_process
            try:
                trained = fit(head, stage.path, self.run)
            except TrainingDiverged as error:
                stage.facts["diverged"] = str(error)
                if main:
                    logger.error("%s: %s", folder, error)
                    write_scores(stage.path, head, None, {"reason": str(error)})
                return
            if main:
                dev_f1, epoch = trained.best["f1"], trained.best["epoch"]
                stage.facts |= {"dev_f1": dev_f1, "best_epoch": epoch}
                logger.info("task %s, model %s, %s: dev F1 %.2f, epoch %d", *name, 100 * dev_f1, epoch)
                write_scores(stage.path, head, trained, {})
                self._keep(head, trained)

    def _keep(self, head: PlannedHead, trained: TrainedHead) -> None:
        with building(self._kept(head), head.inputs, head.settings, sources={"model": Path(head.encoder)}) as stage:
            trained.save(stage.path)
            stage.facts["history"] = list(trained.history)

    def _kept(self, head: PlannedHead) -> Path:
        return self.root / _KEPT / _folder_name(head.training)

    def _name(self) -> tuple[str, str]:
        return self.head.task, self.head.model


def searched(root: Path) -> Iterator[Path]:
    """Yield the folders of all trainings of searches in a run."""
    for record in sorted((root / FOLDER).glob(f"*/*/*/*/{RECORD}")):
        if record.parent.name.isdecimal():
            yield record.parent


def _folder_name(training: HeadTraining) -> str:
    """Return the name of the folder of a candidate."""
    return f"learning_rate-{training.learning_rate}-batch-{training.per_device_train_batch_size}"


def _copy_head(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(RECORD), dirs_exist_ok=True)
