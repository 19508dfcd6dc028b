"""Average results over seeds, and compare models with bootstrap intervals."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from head_results import (
    GOLD,
    WORDS,
    result_of,
    results_of,
    save_result,
)

from bioptimus_hf.artifacts import RECORD, read_record, write_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.differences import (
    _average_differences,
    _Estimate,
    _resampled,
    _simultaneous_intervals,
    paired_differences,
)
from bioptimus_hf.ner.results import HeadResult, averages, read_predictions, read_results, summarize
from bioptimus_hf.ner.scores import entity_counts, entity_scores
from bioptimus_hf.ner.tasks import (
    BLURB_NER,
)


def drawn_counts(rng: np.random.Generator, true: np.ndarray, chance: np.ndarray | float) -> np.ndarray:
    """Return counts of a model that finds each entity with this chance, and predicts as many as there are."""
    return np.stack([rng.binomial(true, chance), true, true], axis=1)


def test_means_and_standard_deviations() -> None:
    rows = summarize([*results_of("t", "base", 0.7, 0.8, 0.9), *results_of("t", "v0.4", 0.8)])
    assert [(row["model"], row["seeds"], row["support"]) for row in rows] == [
        ("base", [0, 1, 2], 1000),
        ("v0.4", [0], 1000),
    ]
    assert rows[0]["f1"] == {"mean": pytest.approx(0.8), "standard_deviation": pytest.approx(0.1)}
    assert rows[1]["f1"]["standard_deviation"] is None


def test_the_average_is_over_seeds_that_all_five_tasks_have() -> None:
    results = [
        result for number, task in enumerate(BLURB_NER) for result in results_of(task, "m", 0.5 + number / 10, 0.6)
    ]
    (row,) = averages(results)
    assert row["seeds"] == [0, 1]
    assert row["f1"]["mean"] == pytest.approx((0.7 + 0.6) / 2)
    assert row["f1"]["standard_deviation"] == pytest.approx(statistics.stdev([0.7, 0.6]))
    (row,) = averages(results[:-1])
    assert row["seeds"] == [0]
    assert averages(results[:-2]) == []


def test_differences_are_paired() -> None:
    results = [*results_of("t", "base", 0.7, 0.8, 0.9), *results_of("t", "m", 0.75, 0.82), *results_of("u", "m", 0.1)]
    (row,) = paired_differences(results, ["base"])
    assert (row["task"], row["model"], row["minus"], row["seeds"]) == ("t", "m", "base", [0, 1])
    assert row["mean"] == pytest.approx(0.035)
    assert row["standard_deviation"] == pytest.approx(statistics.stdev([0.05, 0.02]))
    # There is only one sentence to draw, so only the pairs vary. With two of them, one degree of freedom, this is the
    # interval of Student's t.
    assert row["interval"] == pytest.approx([0.035 - 12.706 * 0.015, 0.035 + 12.706 * 0.015], rel=0.1)


def test_heads_that_were_trained_differently_are_not_paired() -> None:
    counts = np.array([[1, 2, 2]])
    results = [result_of("t", "base", 0, counts, rate=1), result_of("t", "m", 0, counts, rate=2)]
    assert paired_differences(results, ["base"]) == []
    unlike = [replace(result, settings={}, inputs={"train": result.model, "model": result.model}) for result in results]
    assert paired_differences(unlike, ["base"]) == []
    alike = [replace(result, inputs={"train": "t", "model": result.model}) for result in unlike]
    assert len(paired_differences(alike, ["base"])) == 1
    pair = [result_of("t", "base", 1, counts), result_of("t", "m", 1, counts)]
    assert len(paired_differences([*results, *pair], ["base"])) == 1


def test_the_difference_between_equal_predictions_is_zero() -> None:
    counts = drawn_counts(np.random.default_rng(0), np.full(50, 3), 0.5)
    rows = paired_differences(
        [result_of("t", name, seed, counts) for name in ("base", "m", "n") for seed in range(3)], ["base"]
    )
    for row in rows:
        assert (row["mean"], row["interval"], row["simultaneous_interval"]) == (0.0, [0.0, 0.0], [0.0, 0.0])


def test_the_interval_of_a_single_pair_is_the_plain_bootstrap() -> None:
    """Compare with resampling one sentence at a time."""
    rng = np.random.default_rng(1)
    true = rng.integers(0, 4, size=80)
    base, other = (drawn_counts(rng, true, chance) for chance in (0.6, 0.8))
    (row,) = paired_differences(
        [result_of("t", "base", 0, base), result_of("t", "m", 0, other)], ["base"], resamples=4000
    )

    def f1(counts: np.ndarray) -> float:
        right, found, gold = counts.sum(axis=0)
        return float(2 * right / (found + gold))

    by_hand = []
    for _ in range(4000):
        drawn = rng.integers(80, size=80)
        by_hand.append(f1(other[drawn]) - f1(base[drawn]))
    assert row["interval"] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]).tolist(), abs=0.01)


def test_intervals_are_reproducible_and_independent_of_other_tasks_and_models() -> None:
    def cells(*names: str, task: str = "t") -> list[HeadResult]:
        rng = np.random.default_rng(2)
        found = {name: [drawn_counts(rng, np.full(40, 2), 0.7) for _ in range(3)] for name in ("base", "m", "n")}
        return [result_of(task, name, seed, one) for name in names for seed, one in enumerate(found[name])]

    (alone,) = paired_differences(cells("base", "m"), ["base"])
    assert paired_differences(cells("base", "m"), ["base"]) == [alone]
    among_others = paired_differences([*cells("base", "m", task="s"), *cells("n", "base", "m")], ["base"])
    (same,) = [row for row in among_others if (row["task"], row["model"]) == ("t", "m")]
    assert same["interval"] == alone["interval"] == alone["simultaneous_interval"]
    assert same["simultaneous_interval"][0] < alone["interval"][0]
    assert same["simultaneous_interval"][1] > alone["interval"][1]
    assert paired_differences(cells("base", "m", task="s"), ["base"])[0]["interval"] != alone["interval"]


def test_intervals_cover_the_true_difference_about_as_often_as_they_claim() -> None:
    """Compare two equally good models, with test sentences and seeds that vary."""
    rng = np.random.default_rng(3)
    held = {"both": 0, "seeds alone": 0}
    trials = 200
    for trial in range(trials):
        true = rng.integers(0, 4, size=150)
        results = []
        for model in ("base", "m"):
            taste = rng.normal(0, 0.12, size=150)  # shared by the seeds of a model
            for seed in range(5):
                chance = np.clip(0.75 + taste + rng.normal(0, 0.02), 0, 1)
                results.append(result_of(f"t{trial}", model, seed, drawn_counts(rng, true, chance)))
        (row,) = paired_differences(results, ["base"], resamples=200)
        held["both"] += row["interval"][0] <= 0 <= row["interval"][1]
        spread = 1.96 * row["standard_deviation"] / 5**0.5
        held["seeds alone"] += abs(row["mean"]) <= spread
    assert 0.89 <= held["both"] / trials <= 0.985
    assert held["seeds alone"] / trials < 0.87  # this is why test sentences are drawn too


def test_simultaneous_intervals_cover_all_true_differences_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(6)
    held = {"simultaneous": 0, "each alone": 0}
    for _ in range(400):
        shared, *own = rng.normal(0, 1, size=(13, 501))  # twelve comparisons with the same reference
        drawn = [_Estimate(float(one[0]), one[0] + one[1:], 5.0, 0.0) for one in (shared + 2 * np.stack(own))]
        alone = [one.interval() for one in drawn]
        for name, intervals in (("simultaneous", _simultaneous_intervals(drawn)), ("each alone", alone)):
            held[name] += all(low <= 0 <= high for low, high in intervals)
    assert 0.92 <= held["simultaneous"] / 400 <= 0.98
    assert held["each alone"] / 400 < 0.75


def test_how_much_intervals_are_widened() -> None:
    """The average of five tasks with two degrees of freedom each has ten; simultaneous intervals have a lower tail."""
    samples = np.random.default_rng(8).normal(0, 1, (5, 4000))
    drawn = {(task, "m", "base"): _Estimate(0.0, one, 1.0, 0.5) for task, one in zip(BLURB_NER, samples, strict=True)}
    (average,) = _average_differences(drawn).values()
    assert (average.variance, average.variance**2 / average.uncertainty) == pytest.approx((0.2, 10))
    for estimate, quantile in ((average, 2.228 / 5**0.5), (drawn["bc2gm", "m", "base"], 4.303)):
        assert estimate.interval() == pytest.approx([-quantile, quantile], rel=0.1)
    known = replace(average, uncertainty=0.0)
    (_, wide), (_, narrow) = _simultaneous_intervals([average, known])
    level = 2 * scipy.stats.norm.cdf(-narrow / average.samples.std(ddof=1))
    assert level == pytest.approx(0.05, abs=0.005)  # both have the same samples, so together they are as one
    assert wide / narrow == pytest.approx(scipy.stats.t.ppf(level / 2, 10) / scipy.stats.norm.ppf(level / 2))
    (_, stricter), *_ = _simultaneous_intervals([average, *drawn.values()])
    assert stricter > 1.2 * wide
    rounding = _Estimate(0.1, np.full(9, 0.1), 1e-34, 1e-68)
    assert _simultaneous_intervals([rounding, rounding]) == [[0.1, 0.1]] * 2


@pytest.mark.parametrize("training", [0.0, 1.0])
def test_intervals_of_three_seeds_hold_as_often_as_they_claim(training: float) -> None:
    """What three trainings say about their variation is uncertain, and six intervals are read together."""
    rng = np.random.default_rng(7)
    held = {"alone": 0, "together": 0, "not widened": 0}
    trials, resamples, seeds = 400, 400, 3
    for _ in range(trials):
        estimates = []
        for task in "abcdef":
            sentences, own = rng.normal(0, 1), rng.normal(0, seeds**0.5, seeds)  # as far as sentences are drawn
            observed = sentences + own + rng.normal(0, training * (2 * seeds) ** 0.5, seeds)
            by_pair = rng.normal(0, 1, (resamples, 1)) + rng.normal(0, seeds**0.5, (resamples, seeds))
            estimates.append(_resampled(task, observed, observed + by_pair))
        low, high = estimates[0].interval()
        held["alone"] += low <= 0 <= high
        held["together"] += all(low <= 0 <= high for low, high in _simultaneous_intervals(estimates))
        known = [replace(estimate, uncertainty=0.0) for estimate in estimates]
        held["not widened"] += all(low <= 0 <= high for low, high in _simultaneous_intervals(known))
    assert held["alone"] / trials >= 0.93
    assert held["together"] / trials >= 0.93
    assert (held["not widened"] / trials < 0.88) == (training > 0)


def test_two_references_are_compared_once() -> None:
    results = [one for model in ("base", "control", "m") for one in results_of("t", model, 0.5, 0.6)]
    pairs = [(row["model"], row["minus"]) for row in paired_differences(results, ["base", "control"])]
    assert pairs == [("control", "base"), ("m", "base"), ("m", "control")]
    only = paired_differences([*results, *results_of("t", "joint/m", 0.4, 0.5)], ["base", "control"], only="m")
    assert [(row["model"], row["minus"]) for row in only] == pairs[1:]  # and not the joint head with the single ones
    # Without heads of a reference, there is nothing to compare with.
    assert paired_differences(results, ["another"]) == []


def test_settings_chosen_from_the_same_grid_count_as_equal() -> None:
    counts = np.array([[1, 2, 2]])
    grids = {"base": [1, 2], "m": [1, 2], "other": [1, 3]}
    results = [
        result_of("t", model, 0, counts, rate=rate, epochs=5, search={"rate": grids[model]})
        for rate, model in enumerate(grids, start=1)
    ]
    assert [row["model"] for row in paired_differences(results, ["base"])] == ["m"]
    fixed = result_of("t", "fixed", 0, counts, rate=1, epochs=5)
    longer = result_of("t", "longer", 0, counts, rate=1, epochs=6, search={"rate": [1, 2]})
    assert paired_differences([results[0], fixed, longer], ["base"]) == []


def test_the_average_difference_has_an_interval_if_all_five_tasks_have_pairs() -> None:
    rng = np.random.default_rng(4)
    results = [
        result_of(task, model, seed, drawn_counts(rng, np.full(100, 2), chance))
        for task in BLURB_NER
        for model, chance in (("base", 0.6), ("m", 0.7))
        for seed in range(3)
    ]
    rows = paired_differences(results, ["base"])
    assert [row["task"] for row in rows] == [*BLURB_NER, "average"]
    average = rows.pop()
    assert average["mean"] == pytest.approx(statistics.fmean(row["mean"] for row in rows))
    width = {row["task"]: row["interval"][1] - row["interval"][0] for row in [*rows, average]}
    assert width["average"] < min(width[task] for task in BLURB_NER)
    assert average["interval"][0] < average["mean"] < average["interval"][1]
    assert "average" not in {row["task"] for row in paired_differences(results[:-1][6:], ["base"])}


def test_a_full_grid_takes_seconds() -> None:
    rng = np.random.default_rng(5)
    counts = [drawn_counts(rng, np.full(5000, 1), 0.8) for _ in range(10)]
    results = [result_of(task, f"m{n // 5}", n % 5, one) for task in BLURB_NER for n, one in enumerate(counts)]
    start = time.process_time()
    paired_differences(results, ["m0"])
    assert time.process_time() - start < 15


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    predicted = [["I-X", "I-X", "O"], ["O", "B-Y"]]  # read_conll would repair the first tag
    folder = save_result(tmp_path, "t", "m", 7, predicted, rate=1)
    assert read_predictions(folder / "predictions.tsv") == (WORDS, GOLD, predicted)
    (result,) = read_results([folder])
    assert (result.task, result.model, result.seed, result.settings) == ("t", "m", 7, {"rate": 1})
    assert result.scores == entity_scores(GOLD, predicted)
    assert result.counts.tolist() == entity_counts(GOLD, predicted).tolist() == [[0, 0, 1], [1, 1, 1]]


def rewrite(head: Path, name: str, content: str) -> None:
    """Replace a file of a head, and its size and hash in the record."""
    (head / name).write_text(content)
    record = read_record(head)
    write_record(head / RECORD, record["inputs"], record["settings"], facts={}, seconds=0)


def test_unusable_results_are_refused(tmp_path: Path) -> None:
    first = save_result(tmp_path, "t", "m", 0, GOLD)
    other = save_result(tmp_path, "t", "m", 1, GOLD)
    text = (other / "predictions.tsv").read_text()
    rewrite(other, "predictions.tsv", text.replace("B-Y\tB-Y", "O\tB-Y"))
    with pytest.raises(InputError, match=r"m/0 and .*m/1 have different test sets: move the older one away"):
        read_results([first, other])
    rewrite(other, "predictions.tsv", "a\tO\n\n")
    third = save_result(tmp_path, "t", "m", 2, GOLD, rate=2)
    with pytest.raises(InputError, match=r"m/0 and .*m/2 have different inputs or settings and can't be averaged"):
        read_results([first, third])
    with pytest.raises(InputError, match=r"predictions\.tsv doesn't hold the predictions of a head"):
        read_results([other])
    rewrite(other, "scores.json", "{}")
    with pytest.raises(InputError, match=r"scores\.json isn't that of a finished head"):
        read_results([other])


def test_changed_predictions_are_not_tabulated(tmp_path: Path) -> None:
    folder = save_result(tmp_path, "t", "m", 0)
    read_results([folder])
    predictions = folder / "predictions.tsv"
    predictions.write_text(predictions.read_text().replace("B-Y", "B-X"))
    with pytest.raises(InputError, match=r"predictions\.tsv has changed since it was written.*finetune-ner"):
        read_results([folder])
