"""Train a planned head and save it with its scores, or score a finished one on another task."""

from __future__ import annotations

import logging
import shutil
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoTokenizer

from bioptimus_hf.artifacts import (
    Run,
    Stage,
    building,
    identity,
    is_finished,
    read_json,
    read_record,
    verify,
    write_json,
)
from bioptimus_hf.corpus.conll_writing import write_conll
from bioptimus_hf.errors import TrainingDiverged
from bioptimus_hf.models import load_by_name, load_token_classifier, new_head, save_head
from bioptimus_hf.ner.finetuning import best_epoch_arguments, finetune
from bioptimus_hf.ner.joint import JointData, keep_types
from bioptimus_hf.ner.options import HeadOptions
from bioptimus_hf.ner.planning import CrossTest, PlannedHead
from bioptimus_hf.ner.prediction import predict_tasks
from bioptimus_hf.ner.results import missing_reason, predictions_file
from bioptimus_hf.ner.scores import SCORER, entity_scores
from bioptimus_hf.ner.tasks import label_names, tags_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedHead:
    """A head that has just been trained, or that was kept from the search of its settings.

    Attributes:
        history: from `finetune`.
        save: saves the weights and the tokenizer to a folder.
        seconds: wall time of the training, if it was done earlier.
    """

    history: Sequence[Mapping[str, float]]
    save: Callable[[Path], None]
    seconds: float = 0.0

    @property
    def best(self) -> Mapping[str, float]:
        """The epoch that was kept."""
        return max(self.history, key=lambda row: row["f1"])


def try_to_train(folder: Path, head: PlannedHead, run: Run, kept: TrainedHead | None = None) -> list[str]:
    """Train one head; if training diverges, keep the reason beside its folder, and return it."""
    try:
        train_head(folder, head, run, kept)
    except TrainingDiverged as error:
        return [report_missing(folder, str(error))]
    if PartialState().is_main_process:
        missing_reason(folder).unlink(missing_ok=True)
    return []


def report_missing(folder: Path, why: str) -> str:
    """Keep the reason why a head is missing beside its folder, and return it with the folder."""
    reason = f"{folder}: {why}"
    if PartialState().is_main_process:
        write_json(missing_reason(folder), {"reason": why})
        logger.error("%s", reason)
    return reason


def train_head(folder: Path, head: PlannedHead, run: Run, kept: TrainedHead | None = None) -> None:
    """Train one head, and save it with its scores.

    Args:
        kept: this very head, if it has been trained before.
    """
    if is_finished(folder, head.inputs, head.settings, force=run.force):
        return  # by another command in the meantime
    with stage_of_all_ranks(folder, head.inputs, head.settings, {"model": Path(head.encoder)}) as stage:
        name = (head.task, head.model, head.seed)
        logger.info("task %s, model %s, seed %d: training", *name)
        trained = kept or fit(head, stage.path, run)
        if not PartialState().is_main_process:
            return
        trained.save(stage.path)
        stage.seconds_before = trained.seconds
        joint = isinstance(head.dataset, JointData)
        tests = _score(stage, stage.path, head.tests, head.settings["max_length"], joint=joint)
        f1 = statistics.fmean(scores["f1"] for scores in tests.values())
        stage.facts |= {"f1": f1, "support": sum(scores["support"] for scores in tests.values())}
        stage.facts |= {"best_epoch": trained.best["epoch"]}
        if isinstance(head.dataset, JointData):
            stage.facts["excluded"] = head.dataset.excluded
        logger.info(
            "task %s, model %s, seed %d: test F1 %.2f (dev %.2f, epoch %d)",
            *(*name, 100 * f1, 100 * trained.best["f1"], trained.best["epoch"]),
        )
        content = {"scorer": SCORER, **({"tests": tests} if joint else {"test": tests[head.task]})}
        write_scores(stage.path, head, trained, content)


def fit(head: PlannedHead, folder: Path, run: Run) -> TrainedHead:
    """Train a head. Checkpoints are kept in `folder` meanwhile.

    Raises:
        TrainingDiverged: see `finetune`.
    """
    state = PartialState()
    tags = head.dataset.tags if isinstance(head.dataset, JointData) else label_names(head.dataset["train"])
    model, tokenizer = new_head(head.encoder, tags, seed=head.seed)
    checkpoints = folder / "checkpoints"
    arguments = best_epoch_arguments(
        checkpoints, seed=head.seed, use_cpu=not torch.accelerator.is_available(), **asdict(head.training)
    )
    try:
        history = finetune(
            model,
            tokenizer,
            head.dataset,
            arguments,
            max_length=head.settings["max_length"],
            context=head.settings.get("context", "sentence"),
            num_proc=run.num_proc,
        )
        state.wait_for_everyone()  # the Trainer of a slower process may still list its checkpoints
    finally:
        if state.is_main_process:
            shutil.rmtree(checkpoints, ignore_errors=True)
    return TrainedHead(history, lambda path: save_head(model, tokenizer, path))


def write_scores(folder: Path, head: PlannedHead, trained: TrainedHead | None, content: Mapping[str, Any]) -> None:
    """Write what a head is, `content`, and how it scored on the development set after each epoch, if it was trained."""
    name = {"task": head.task, "model": head.model, "seed": head.seed}
    validation = {"best_epoch": trained.best["epoch"], "validation": list(trained.history)} if trained else {}
    write_json(folder / "scores.json", {**name, **content, **validation})


def score_elsewhere(head: Path, test: CrossTest, run: Run, options: HeadOptions) -> None:
    """Score a finished head on the test set of another task."""
    own = read_json(head / "scores.json")
    folder = run.root / "cross_test" / f"{test.task}-on-{test.other}" / head.parent.name / head.name
    inputs = {**test.inputs, "head": identity(head)}
    settings: dict[str, Any] = {"max_length": options.window, "seed": own["seed"]}
    if test.types:
        settings["types"] = list(test.types)
    if is_finished(folder, inputs, settings, force=run.force):
        return
    with working_on(folder, run), building(folder, inputs, settings, sources={"head": head}) as stage:
        verify(head)
        scores = _score(stage, head, {test.other: test.test}, options.window, types=test.types)[test.other]
        content = {"task": f"{test.task}, tested on {test.other}", "model": own["model"], "seed": own["seed"]}
        record = read_record(head)
        trained = {"inputs": record["inputs"], "settings": record["settings"]}
        write_json(stage.path / "scores.json", {**content, "scorer": SCORER, "test": scores, "trained": trained})
        logger.info("%s, model %s, seed %d: F1 %.2f", *content.values(), 100 * scores["f1"])


def working_on(folder: Path, run: Run) -> AbstractContextManager[Path]:
    """Keep other launches from writing a head."""
    return run.working_on(folder.relative_to(run.root).as_posix(), writes=PartialState().is_main_process)


@contextmanager
def stage_of_all_ranks(
    folder: Path, inputs: Mapping[str, str], settings: Mapping[str, Any], sources: Mapping[str, Path]
) -> Iterator[Stage]:
    """Build a stage that all processes of a launch write to; the main process begins and ends it."""
    state = PartialState()
    state.wait_for_everyone()  # another process may still be checking whether the stage is finished
    building_it = building(folder, inputs, settings, sources=sources) if state.is_main_process else nullcontext()
    with building_it as stage:
        (path,) = broadcast_object_list([str(stage.path) if stage else ""])
        yield stage or Stage(Path(path))
        state.wait_for_everyone()
    state.wait_for_everyone()


def _score(
    stage: Stage,
    head: Path,
    tests: Mapping[str, Dataset],
    max_length: int,
    *,
    joint: bool = False,
    types: Collection[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Score a saved head on test sets, by task, and save its predictions.

    Args:
        types: the only ones that count, if given.
    """
    model = load_token_classifier(head).to(PartialState().device)
    tokenizer = load_by_name(AutoTokenizer, str(head))
    predicted = predict_tasks(model, tokenizer, tests, max_length=max_length)
    scores = {}
    for task, test in tests.items():
        file = stage.path / (predictions_file(task) if joint else "predictions.tsv")
        gold, found = tags_of(test), predicted[task]
        if types:
            gold, found = keep_types(gold, types), keep_types(found, types)
        write_conll(file, list(zip(test["tokens"][:], gold, found, strict=True)))
        scores[task] = entity_scores(gold, found)
    return scores
