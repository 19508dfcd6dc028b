"""Test the calibration of scores, and the choice of the least score."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioptimus_hf.ner.calibration import (
    MinScore,
    ScoredEntities,
    best_min_score,
    calibration,
    recommended_min_score,
    scores_by_threshold,
)

entities = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), max_size=40)


def scored(found: list[tuple[float, bool]], missed: int = 0) -> ScoredEntities:
    scores, correct = ([row[side] for row in found] for side in (0, 1))
    return ScoredEntities(np.array(scores, dtype=float), np.array(correct, dtype=bool), sum(correct) + missed)


def test_the_calibration_error_is_the_mean_difference_over_bins() -> None:
    found = calibration(scored([(0.95, True), (0.95, False), (1.0, True), (0.25, False)]))
    # Three entities with a mean score of 0.9667 are correct in two of three cases, and one of 0.25 is wrong.
    assert found["expected_calibration_error"] == pytest.approx((3 * (2.9 / 3 - 2 / 3) + 0.25) / 4)
    assert [row["found"] for row in found["bins"]] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert (found["mean_score"], found["precision"]) == (pytest.approx(0.7875), 0.5)


@given(found=entities)
def test_calibration_agrees_with_its_definition(found: list[tuple[float, bool]]) -> None:
    error = 0.0
    for low in range(10):
        own = [row for row in found if low <= min(int(row[0] * 10), 9) < low + 1]
        error += abs(sum(score for score, _ in own) - sum(correct for _, correct in own))
    result = calibration(scored(found))
    assert sum(row["found"] for row in result["bins"]) == len(found)
    if found:
        assert result["expected_calibration_error"] == pytest.approx(error / len(found))
        assert 0 <= result["expected_calibration_error"] <= 1
    else:
        assert result["expected_calibration_error"] is result["mean_score"] is result["precision"] is None


@given(found=entities, missed=st.integers(0, 5))
def test_no_hundredth_has_a_better_f1(found: list[tuple[float, bool]], missed: int) -> None:
    development = scored(found, missed)
    best = best_min_score([development])
    curve = scores_by_threshold(development)
    if not any(correct for _, correct in found):
        assert best is None
        return
    assert best is not None
    assert best.f1 == max(row["f1"] for row in curve)
    assert best.best == min(row["min_score"] for row in curve if row["f1"] == best.f1)
    kept = [correct for score, correct in found if score >= best.best]
    assert best.f1 == pytest.approx(2 * sum(kept) / (len(kept) + development.mentions))
    assert best.left_out == pytest.approx(1 - len(kept) / len(found))
    assert best.f1_of_all == curve[0]["f1"]


def test_the_least_score_of_several_tasks_has_the_best_mean_f1() -> None:
    first, second = scored([(0.5, False), (0.9, True)]), scored([(0.3, True), (0.8, True)])
    assert best_min_score([first]) == MinScore(0.51, 1.0, pytest.approx(2 / 3), 0.5)
    assert best_min_score([second]) == MinScore(0.0, 1.0, 1.0, 0.0)
    both = best_min_score([first, second])
    assert both is not None
    assert (both.best, both.f1) == (0.0, pytest.approx(5 / 6))


def test_the_configuration_of_a_head_carries_it() -> None:
    best = MinScore(0.62, 0.85, 0.84, 0.1)
    configuration = best.in_configuration({"model_type": "bert"})
    assert configuration["model_type"] == "bert"
    assert recommended_min_score(SimpleNamespace(**configuration)) == best
    for other in ({}, {"min_score": 0.5}, {"min_score": {"best": 7, "f1": 0, "f1_of_all": 0, "left_out": 0}}):
        assert recommended_min_score(SimpleNamespace(**other)) is None
