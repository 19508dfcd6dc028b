"""Train a head for every task, model and seed, score heads on other tasks, and write the tables of results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import Run, is_finished, replaced_sources, verification
from bioptimus_hf.errors import TrainingDiverged
from bioptimus_hf.ner.head_stage import score_elsewhere, try_to_train, working_on
from bioptimus_hf.ner.options import HeadOptions, HeadTraining
from bioptimus_hf.ner.planning import (
    chosen_tasks,
    find_encoders,
    load_cross_tests,
    load_task,
    plan_heads,
    plan_joint_heads,
)
from bioptimus_hf.ner.results import (
    HeadResult,
    check_comparable,
    finished_heads,
    missing_heads,
    missing_reason,
    read_head,
    read_results,
    single_model,
)
from bioptimus_hf.ner.tables import write_results
from bioptimus_hf.ner.tasks import NER_TASKS

logger = logging.getLogger(__name__)


@check_call()
def make_heads(run: Run, options: HeadOptions, training: HeadTraining) -> Path:
    """Train the heads that are missing, score them, and tabulate the results of all finished heads of the run.

    Each head is saved with its scores and predictions in `ner/<task>/<model>/<seed>` of the run, a joint head in
    `ner/joint/<model>/<seed>`, a cross-test in `cross_test/<task>-on-<other>/<model>/<seed>`. Beside them,
    `results.md`, `results.json` and `versions.png` hold the mean and standard deviation over seeds and the paired
    differences from the first model. Finished heads are skipped. All inputs are opened before the first training. Works
    under `accelerate launch`.

    Returns:
        The folder `ner` of the run.

    Raises:
        TrainingDiverged: some trainings did; all other heads are finished, and the tables name those that are missing.
        InputError: a task, model or option can't be used, or finished heads have other inputs or
            settings and `run.force` is false.
    """
    with verification(not run.no_verify):
        return _make_heads(run, options, training)


def _make_heads(run: Run, options: HeadOptions, training: HeadTraining) -> Path:
    # The first call decides about the process group: without it, each process would consider itself the main one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    tasks = {task.name: load_task(task, options) for task in chosen_tasks(options.tasks)}
    encoders = find_encoders(run, options)
    cross_tests = load_cross_tests(tasks, options)
    seeds = options.seeds_from(run.seed)
    root = run.root / "ner"
    settings = {**asdict(training), "max_length": options.max_length, "processes": state.num_processes}
    plan = plan_joint_heads if options.joint else plan_heads
    heads = plan(root, tasks, encoders, seeds, settings)
    missing = {
        folder: head
        for folder, head in heads.items()
        if not is_finished(folder, head.inputs, head.settings, force=run.force)
    }
    if state.is_main_process:
        for folder in heads.keys() - missing.keys():  # which is wanted, and not a later one that diverged
            missing_reason(folder).unlink(missing_ok=True)
    earlier = [folder for folder in finished_heads(root) if folder not in heads]
    finished = [(folder, result) for folder in earlier for result in read_head(folder)]
    check_comparable([*finished, *((folder, setup) for folder, head in heads.items() for setup in head.setups)])
    diverged: list[str] = []
    for name in dict.fromkeys(head.task for head in heads.values()):
        for folder, head in missing.items():
            if head.task == name:
                with working_on(folder, run):
                    diverged += try_to_train(folder, head, run, options, training)
        if state.is_main_process:
            tabulate(root, list(encoders))
    if cross_tests and state.is_main_process:
        without = missing_heads(root)
        for test in cross_tests:
            for label, seed in product(encoders, seeds):
                of_task = root / test.task / label / str(seed)
                if of_task not in without:
                    score_elsewhere(of_task, test, run, options)
        tabulate(run.root / "cross_test", list(encoders))
    if diverged:
        raise TrainingDiverged(f"{len(diverged)} of {len(missing)} heads are missing in the tables: {diverged[0]}")
    return root


def tabulate(root: Path, models: Sequence[str]) -> None:
    """Write the tables of all finished heads below `root`; the first of `models` is the reference.

    Known tasks and the given models come first, in their order.
    """
    tasks = [*NER_TASKS, *(f"{task}, tested on {other}" for task, other in product(NER_TASKS, repeat=2))]

    def order(result: HeadResult) -> tuple[Any, ...]:
        model = single_model(result.model)
        ranks = [
            (known.index(name) if name in known else len(known), name)
            for name, known in ((result.task, tasks), (model, list(models)))
        ]
        return (*ranks, result.model != model, result.seed)

    heads = finished_heads(root)
    missing = missing_heads(root) | {
        head: f"made from another {name} than is now in {source}"
        for head in heads
        for _, name, source in replaced_sources(head)
    }
    results = sorted(read_results(head for head in heads if head not in missing), key=order)
    text = write_results(root, results, reference=models[0], missing=missing)
    logger.info("saved %s\n%s", root / "results.md", text)
