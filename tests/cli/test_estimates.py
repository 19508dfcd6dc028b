"""Estimate how long trainings take that aren't finished."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bioptimus_hf.artifacts import write_json
from bioptimus_hf.cli import estimates
from bioptimus_hf.ner.experiments import PlannedTraining


def encoder(folder: Path, layers: int) -> str:
    folder.mkdir()
    write_json(folder / "config.json", {"num_hidden_layers": layers, "hidden_size": 384})
    return str(folder)


def test_trainings_that_are_left_take_as_long_as_finished_ones(tmp_path: Path) -> None:
    small, large = encoder(tmp_path / "small", 6), encoder(tmp_path / "large", 12)

    def training(of: str, work: int, seconds: float | None = None, *, finished: bool = False) -> PlannedTraining:
        return PlannedTraining("task", "model", of, work, finished, seconds)

    left = [training(small, 1000), training(large, 500)]
    done = [training(small, 100, 10.0, finished=True), training(small, 300, 60.0, finished=True)]
    # 0.15 s for a sentence on average, and twice as much with twice the layers.
    assert estimates.seconds_left([*left, *done], bf16=False) == pytest.approx(1000 * 0.15 + 500 * 0.3)
    own = training(large, 10, 1.0, finished=True)
    assert estimates.seconds_left([*left, *done, own], bf16=False) == pytest.approx(1000 * 0.15 + 500 * 0.1)
    assert estimates.seconds_left([*done, training(large, 9, None, finished=True)], bf16=False) == 0
    # Without any, the rough rates.
    options = {"tasks": ["x"], "models": ["m"], "seeds": [1], "num_train_epochs": 1}
    assert estimates.seconds_left(left[:1], bf16=True) == pytest.approx(1000 / 95 * 2 / (os.cpu_count() or 1))
    assert estimates.seconds_left(left[:1], bf16=True) < estimates.seconds_left(left[:1], bf16=False)
    assert estimates.heads({**options, "learning_rate": [1e-4, 2e-4]}) == 1  # the others aren't kept


def test_a_search_takes_a_training_for_each_of_its_settings(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tB-X\n\n" * 5500)
    options = {"ner_data": str(tmp_path), "tasks": ["x"], "models": ["m"], "seeds": [3], "num_train_epochs": 1}
    weights = 12 * 6 * 384**2
    fixed, searched = (
        estimates.seconds("finetune_ner", {**options, **grid}, None, weights, cores=2) or 0
        for grid in ({"learning_rate": 1e-4}, {"learning_rate": [1e-4, 2e-4], "per_device_train_batch_size": [8, 16]})
    )
    start_up = 8
    assert (searched - start_up) / (fixed - start_up) == pytest.approx((4 + 3 - 1) / 3)
