"""Results over seeds: means, paired differences with intervals, tables, figure, and what the script makes of a grid."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer, load_script

from bioptimus_hf.artifacts import RECORD, Run, write_json, write_record
from bioptimus_hf.corpus.conll import write_conll
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.literature import PUBLISHED
from bioptimus_hf.ner.results import Cell, averages, differences, read_cells, read_predictions, summarize
from bioptimus_hf.ner.scores import entity_counts, entity_scores
from bioptimus_hf.ner.tables import published_table, results_table, write_results
from bioptimus_hf.ner.tasks import BLURB_NER
from bioptimus_hf.publishing.report import make_report

SCRIPT = ROOT / "scripts" / "finetune_ner.py"


def cell_of(task: str, model: str, seed: int, counts: np.ndarray, **settings: Any) -> Cell:
    """A cell that is known by the counts of its sentences alone."""
    right, found, true = counts.sum(axis=0).tolist()
    f1 = 2 * right / (found + true)
    scores = {"f1": f1, "conlleval_f1": f1, "precision": right / found, "recall": right / true, "support": float(true)}
    scores["conlleval_f1"] += (1 - f1) / 10  # so that the two are told apart
    return Cell(task, model, seed, "", scores, counts, settings)


def drawn_counts(rng: np.random.Generator, true: np.ndarray, chance: np.ndarray | float) -> np.ndarray:
    """Counts of a model that finds each entity with this chance, and predicts as many as there are."""
    return np.stack([rng.binomial(true, chance), true, true], axis=1)


def of_shares(task: str, model: str, *f1: float, mentions: int = 1000) -> list[Cell]:
    """A cell for each seed with this F1, in one sentence."""
    counts = [np.array([[round(mentions * one), mentions, mentions]]) for one in f1]
    return [cell_of(task, model, seed, one) for seed, one in enumerate(counts)]


# Means


def test_means_and_deviations() -> None:
    rows = summarize([*of_shares("t", "base", 0.7, 0.8, 0.9), *of_shares("t", "v0.4", 0.8)])
    assert [(row["model"], row["seeds"], row["support"]) for row in rows] == [
        ("base", [0, 1, 2], 1000),
        ("v0.4", [0], 1000),
    ]
    assert rows[0]["f1"] == {"mean": pytest.approx(0.8), "deviation": pytest.approx(0.1)}
    assert rows[1]["f1"]["deviation"] is None


def test_average_of_the_five_tasks_is_of_seeds_that_all_have() -> None:
    cells = [cell for number, task in enumerate(BLURB_NER) for cell in of_shares(task, "m", 0.5 + number / 10, 0.6)]
    (row,) = averages(cells)
    assert row["seeds"] == [0, 1]
    assert row["f1"]["mean"] == pytest.approx((0.7 + 0.6) / 2)
    assert row["f1"]["deviation"] == pytest.approx(statistics.stdev([0.7, 0.6]))
    (row,) = averages(cells[:-1])
    assert row["seeds"] == [0]
    assert averages(cells[:-2]) == []


# Differences


def test_differences_are_of_pairs() -> None:
    cells = [*of_shares("t", "base", 0.7, 0.8, 0.9), *of_shares("t", "m", 0.75, 0.82), *of_shares("u", "m", 0.1)]
    (row,) = differences(cells, "base")
    assert (row["task"], row["model"], row["minus"], row["seeds"]) == ("t", "m", "base", [0, 1])
    assert row["mean"] == pytest.approx(0.035)
    assert row["deviation"] == pytest.approx(statistics.stdev([0.05, 0.02]))
    # One sentence is always drawn as it is, so that only the pairs vary: both alike, or one of each.
    assert row["interval"] == pytest.approx([0.035 - 0.015 * 2**0.5, 0.035 + 0.015 * 2**0.5])


def test_cells_of_other_settings_are_no_pair() -> None:
    counts = np.array([[1, 2, 2]])
    cells = [cell_of("t", "base", 0, counts, rate=1), cell_of("t", "m", 0, counts, rate=2)]
    assert differences(cells, "base") == []
    unlike = [replace(cell, settings={}, inputs={"train": cell.model, "model": cell.model}) for cell in cells]
    assert differences(unlike, "base") == []
    assert len(differences([replace(cell, inputs={"train": "t", "model": cell.model}) for cell in unlike], "base")) == 1
    assert len(differences([*cells, cell_of("t", "base", 1, counts), cell_of("t", "m", 1, counts)], "base")) == 1


def test_difference_to_itself_is_none_at_all() -> None:
    counts = drawn_counts(np.random.default_rng(0), np.full(50, 3), 0.5)
    rows = differences([cell_of("t", name, seed, counts) for name in ("base", "m") for seed in range(3)], "base")
    assert (rows[0]["mean"], rows[0]["interval"]) == (0.0, [0.0, 0.0])


def test_interval_is_the_plain_bootstrap_where_there_is_one_pair() -> None:
    """Against resampling by hand, a sentence at a time."""
    rng = np.random.default_rng(1)
    true = rng.integers(0, 4, size=80)
    base, other = (drawn_counts(rng, true, chance) for chance in (0.6, 0.8))
    (row,) = differences([cell_of("t", "base", 0, base), cell_of("t", "m", 0, other)], "base", resamples=4000)

    def f1(counts: np.ndarray) -> float:
        right, found, gold = counts.sum(axis=0)
        return float(2 * right / (found + gold))

    by_hand = []
    for _ in range(4000):
        drawn = rng.integers(80, size=80)
        by_hand.append(f1(other[drawn]) - f1(base[drawn]))
    assert row["interval"] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]).tolist(), abs=0.01)


def test_intervals_repeat_and_do_not_depend_on_what_else_there_is() -> None:
    def cells(*names: str, task: str = "t") -> list[Cell]:
        rng = np.random.default_rng(2)
        found = {name: [drawn_counts(rng, np.full(40, 2), 0.7) for _ in range(3)] for name in ("base", "m", "n")}
        return [cell_of(task, name, seed, one) for name in names for seed, one in enumerate(found[name])]

    (alone,) = differences(cells("base", "m"), "base")
    assert differences(cells("base", "m"), "base") == [alone]
    assert alone in differences([*cells("base", "m", task="s"), *cells("n", "base", "m")], "base")
    assert differences(cells("base", "m", task="s"), "base")[0]["interval"] != alone["interval"]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Two models that are equal, over test sentences of varying difficulty, and seeds with a skill of their own."""
    rng = np.random.default_rng(3)
    held = {"both": 0, "seeds alone": 0}
    trials = 200
    for trial in range(trials):
        true = rng.integers(0, 4, size=150)
        cells = []
        for model in ("base", "m"):
            taste = rng.normal(0, 0.12, size=150)  # of the model for sentences, which its seeds share
            for seed in range(5):
                chance = np.clip(0.75 + taste + rng.normal(0, 0.02), 0, 1)
                cells.append(cell_of(f"t{trial}", model, seed, drawn_counts(rng, true, chance)))
        (row,) = differences(cells, "base", resamples=200)
        held["both"] += row["interval"][0] <= 0 <= row["interval"][1]
        spread = 1.96 * row["deviation"] / 5**0.5
        held["seeds alone"] += abs(row["mean"]) <= spread
    assert 0.89 <= held["both"] / trials <= 0.985
    assert held["seeds alone"] / trials < 0.87  # which is why test sentences are drawn too


def test_average_difference_has_an_interval_where_all_five_have_pairs() -> None:
    rng = np.random.default_rng(4)
    cells = [
        cell_of(task, model, seed, drawn_counts(rng, np.full(100, 2), chance))
        for task in BLURB_NER
        for model, chance in (("base", 0.6), ("m", 0.7))
        for seed in range(3)
    ]
    rows = differences(cells, "base")
    assert [row["task"] for row in rows] == [*BLURB_NER, "average"]
    average = rows.pop()
    assert average["mean"] == pytest.approx(statistics.fmean(row["mean"] for row in rows))
    width = {row["task"]: row["interval"][1] - row["interval"][0] for row in [*rows, average]}
    assert width["average"] < min(width[task] for task in BLURB_NER)
    assert average["interval"][0] < average["mean"] < average["interval"][1]
    assert "average" not in {row["task"] for row in differences(cells[:-1][6:], "base")}


def test_a_full_grid_takes_seconds() -> None:
    rng = np.random.default_rng(5)
    counts = [drawn_counts(rng, np.full(5000, 1), 0.8) for _ in range(10)]
    cells = [cell_of(task, f"m{n // 5}", n % 5, one) for task in BLURB_NER for n, one in enumerate(counts)]
    start = time.process_time()
    differences(cells, "m0")
    assert time.process_time() - start < 15


# Files

GOLD = [["B-X", "I-X", "O"], ["O", "B-Y"]]
WORDS = [["a\u2028", "b c", "d"], ["e", "\x85f"]]


def save_cell(root: Path, task: str, model: str, seed: int, predicted: list[list[str]], **settings: Any) -> Path:
    folder = root / task / model / str(seed)
    folder.mkdir(parents=True)
    write_json(folder / "scores.json", {"task": task, "model": model, "seed": seed})
    write_conll(folder / "predictions.tsv", list(zip(WORDS, GOLD, predicted, strict=True)))
    write_record(folder / RECORD, {}, {"seed": seed, **settings}, facts={}, seconds=0.0)
    return folder


def test_cells_are_read_as_they_were_written(tmp_path: Path) -> None:
    predicted = [["I-X", "I-X", "O"], ["O", "B-Y"]]  # read_conll would mend the first tag
    folder = save_cell(tmp_path, "t", "m", 7, predicted, rate=1)
    assert read_predictions(folder / "predictions.tsv") == (WORDS, GOLD, predicted)
    (cell,) = read_cells([folder])
    assert (cell.task, cell.model, cell.seed, cell.settings) == ("t", "m", 7, {"rate": 1})
    assert cell.scores == entity_scores(GOLD, predicted)
    assert cell.counts.tolist() == entity_counts(GOLD, predicted).tolist() == [[0, 0, 1], [1, 1, 1]]


def test_unusable_cells_are_refused(tmp_path: Path) -> None:
    first = save_cell(tmp_path, "t", "m", 0, GOLD)
    other = save_cell(tmp_path, "t", "m", 1, GOLD)
    text = (other / "predictions.tsv").read_text()
    (other / "predictions.tsv").write_text(text.replace("B-Y\tB-Y", "O\tB-Y"))
    with pytest.raises(InputError, match=r"m/0 and .*m/1 are scored on unlike test data: move the older one away"):
        read_cells([first, other])
    (other / "predictions.tsv").write_text("a\tO\n\n")
    third = save_cell(tmp_path, "t", "m", 2, GOLD, rate=2)
    with pytest.raises(InputError, match=r"m/0 and .*m/2 are of other inputs or settings, and have no mean"):
        read_cells([first, third])
    with pytest.raises(InputError, match=r"predictions\.tsv does not hold the predictions of a head"):
        read_cells([other])
    (other / "scores.json").write_text("{}")
    with pytest.raises(InputError, match=r"scores\.json is not of a finished head"):
        read_cells([other])


# Tables


def test_table_of_results() -> None:
    cells = [
        *of_shares("t", "base", 0.7, 0.8, 0.9),
        *of_shares("t", "v0.4", 0.75, 0.85, 0.95),
        cell_of("u", "m", 0, np.array([[500, 800, 1000]])),
    ]
    table = results_table(summarize(cells), differences(cells, "base"), reference="base").splitlines()
    assert table[0].startswith("| task | model | F1 | F1 minus base | conlleval F1 | precision | recall | seeds |")
    assert table[2] == ("| t | base | 80.00 ± 10.00 |  | 82.00 ± 9.00 | 80.00 ± 10.00 | 80.00 ± 10.00 | 3 | 1000 |")
    assert "| t | v0.4 | 85.00 ± 10.00 | +5.00 (+5.00 to +5.00) | 86.50 ± 9.00 |" in table[3]
    assert table[4] == "| u | m | 55.56 |  | 60.00 | 62.50 | 50.00 | 1 | 1000 |"
    assert "strict IOB2 as seqeval" in table[-1]
    assert "conlleval F1: conlleval, which is seqeval's default" in table[-1]
    fewer = [*cells[:2], *cells[3:6]]
    assert "+5.00 (+5.00 to +5.00, 2 pairs)" in results_table(
        summarize(fewer), differences(fewer, "base"), reference="b"
    )


def test_published_figures_stand_beside_those_of_the_same_test_part_alone() -> None:
    mentions = {name: task.mentions[2] for name, task in BLURB_NER.items() if task.mentions}
    cells = [cell for task in BLURB_NER for cell in of_shares(task, "m", 0.5, 0.5, mentions=mentions[task])]
    rows = summarize([*cells, *of_shares("bc2gm", "n", 0.5, mentions=6324), *of_shares("mine", "m", 0.5)])
    table = published_table(rows, averages(cells)).splitlines()
    assert table[0] == (
        "| model | bc5-chem | bc5-disease | ncbi-disease | bc2gm | jnlpba | average | protocol | source |"
    )
    # The lenient figure, since the scorer of the published ones is not known.
    assert table[2].startswith("| m | 54.99 ± 0.00 | 55.00 ± 0.00 |")
    assert table[2].endswith("| 55.00 ± 0.00 | mean of 2 seeds | here |")
    assert table[3] == "| n |  |  |  | other test data |  |  | one seed | here |"
    assert (
        "| PubMedBERT | 93.33 | 85.62 | 87.82 | 84.52 | 79.10 | 86.08 | mean of 5 seeds | arXiv 2007.15779, table 6 |"
        in table
    )
    assert len(table) == 2 + 2 + len(PUBLISHED) + 2
    unfinished = [*cells, *of_shares("bc5-chem", "m", 0.5, 0.5, 0.5, mentions=mentions["bc5-chem"])]
    (row,) = [one for one in published_table(summarize(unfinished), []).splitlines() if one.startswith("| m |")]
    assert row.endswith("| mean of 2 to 5 seeds | here |")
    assert published_table(summarize(of_shares("mine", "m", 0.5)), []) == ""


def test_published_figures_average_to_what_their_sources_say() -> None:
    averages_of = {row.model: statistics.fmean(map(float, row.f1.values())) for row in PUBLISHED}
    assert len(averages_of) == len(PUBLISHED)
    assert averages_of["BIOptimus v0.1"] == pytest.approx(85.52, abs=0.006)
    assert averages_of["BIOptimus v0.4"] == pytest.approx(86.67, abs=0.006)
    assert averages_of["BERT-base uncased"] == pytest.approx(82.99, abs=0.006)
    assert averages_of["BioBERT v1.1"] == pytest.approx(85.81, abs=0.006)
    assert averages_of["INDUS-small"] == pytest.approx(82.60, abs=0.006)
    assert all(list(row.f1) == list(BLURB_NER) and row.source and row.protocol for row in PUBLISHED)


def test_results_are_saved_with_a_figure_of_the_versions(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = [
        cell
        for task in ("t", "u", "w")
        for model, f1 in (("base", 0.6), ("v0.4", 0.8), ("v0.10", 0.9), ("v0.1", 0.7), ("other", 0.1))
        for cell in of_shares(task, model, f1, f1 + 0.02)
        if (task, model[:2]) != ("w", "v0")
    ]
    text = write_results(tmp_path, cells, reference="base")
    assert (tmp_path / "results.md").read_text() == text
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved.keys() == {*("scorer", "lenient_scorer", "reference", "rows", "averages", "differences", "resamples")}
    assert saved["rows"] == summarize(cells)
    assert (tmp_path / "versions.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "versions.png").unlink()
    write_results(tmp_path, of_shares("t", "v0.1", 0.5), reference="v0.1")
    assert not (tmp_path / "versions.png").exists()


def test_figure_holds_versions_in_order_and_the_reference_as_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    monkeypatch.setattr("bioptimus_hf.ner.tables.plot_versions", lambda path, results, reference: seen.update(results))
    models = (("v0.10", 0.9), ("base", 0.6), ("v0.4", 0.8), ("other", 0.1))
    write_results(tmp_path, [cell for model, f1 in models for cell in of_shares("t", model, f1)], reference="base")
    assert {task: list(found) for task, found in seen.items()} == {"t": ["base", "v0.4", "v0.10"]}


# The script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(SCRIPT)


def test_one_number_counts_seeds_and_several_are_them(script: ModuleType) -> None:
    assert script.chosen_seeds([5]) == [0, 1, 2, 3, 4]
    assert script.chosen_seeds([1]) == [0]
    assert script.chosen_seeds([0, 1, 2]) == [0, 1, 2]
    assert script.chosen_seeds([7, 7]) == [7]
    with pytest.raises(InputError, match=r"--seeds 0: give how many \(1: seed 0 alone\), or two or more seeds"):
        script.chosen_seeds([0])


def test_sources_and_files_of_tasks(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{name: mine, source: lab/set}")
    (tmp_path / "own.yaml").write_text("{name: own}")
    (own,) = script.chosen_tasks([str(tmp_path / "own.yaml")])
    assert (own.folder, own.source) == ("own", "")  # as for a task by its name
    chosen = script.chosen_tasks(["bc2gm=lab/bc2gm@v1", "x=data", str(tmp_path / "mine.yaml"), "jnlpba-types"])
    assert [(task.name, task.folder, task.source) for task in chosen] == [
        ("bc2gm", "BC2GM", "lab/bc2gm@v1"),
        ("x", "x", "data"),
        ("mine", "", "lab/set"),
        ("jnlpba-types", "JNLPBA", ""),
    ]
    assert chosen[0].mentions == BLURB_NER["bc2gm"].mentions
    assert script.source_of(chosen[1], script.Options("other")) == "data"
    assert script.source_of(chosen[3], script.Options("other")) == "other"
    with pytest.raises(InputError, match="--ner_data is needed for jnlpba-types"):
        script.source_of(chosen[3], script.Options())
    with pytest.raises(InputError, match="--tasks: x is given twice"):
        script.chosen_tasks(["x=data", "x=other"])
    with pytest.raises(InputError, match="--tasks x=: give a folder or a data set"):
        script.chosen_tasks(["x="])


def write_task(folder: Path, entity: str, kind: str = "Disease") -> None:
    folder.mkdir(parents=True)
    for name, copies in (("train", 20), ("dev", 3), ("test", 4)):
        (folder / f"{name}.tsv").write_text(f"{entity}\tB-{kind}\nhelps\tO\n\n" * copies)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = build_tiny_tokenizer()
    build_tiny_bert(len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_heads_are_scored_on_one_anothers_test_parts(
    script: ModuleType,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_task(tmp_path / "data" / "a", "asthma")
    write_task(tmp_path / "data" / "b", "cancer")
    run = tmp_path / "run"
    command = [
        *("finetune_ner.py", "--ner_data", str(tmp_path / "data"), "--tasks", "a", "--models", "base", f"v0.1={base}"),
        *("--base_model", str(base), "--seeds", "2", "--num_train_epochs", "1", "--learning_rate", "1e-2"),
        *("--output_dir", str(run), "--cross_test", "a:b"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    cell = run / "cross_test" / "a-on-b" / "v0.1" / "1"
    scores = json.loads((cell / "scores.json").read_text())
    assert (scores["task"], scores["model"], scores["seed"]) == ("a, tested on b", "v0.1", 1)
    assert scores["test"]["support"] == 4.0
    assert sorted(path.name for path in cell.iterdir()) == ["made.json", "predictions.tsv", "scores.json"]
    assert (cell / "predictions.tsv").read_text().startswith("cancer\tB-Disease\t")
    for table, task in ((run / "ner", "a"), (run / "cross_test", "a, tested on b")):
        content = json.loads((table / "results.json").read_text())
        assert [(row["task"], row["model"], row["seeds"]) for row in content["rows"]] == [
            (task, model, [0, 1]) for model in ("base", "v0.1")
        ]
        # The very same weights: nothing may differ.
        (difference,) = content["differences"]
        assert (difference["model"], difference["mean"], difference["interval"]) == ("v0.1", 0.0, [0.0, 0.0])
        assert f"| {task} | v0.1 |" in (table / "results.md").read_text()

    # Heads that were trained in unlike ways are no pair elsewhere either.
    monkeypatch.setattr(sys, "argv", [*command, "--models", f"v0.2={base}", "--weight_decay", "0"])
    script.main()
    content = json.loads((run / "cross_test" / "results.json").read_text())
    assert [row["model"] for row in content["rows"]] == ["v0.2", "base", "v0.1"]
    assert content["differences"] == []
    for table in ("ner/a", "cross_test/a-on-b"):
        shutil.rmtree(run / table / "v0.2")

    # Another task of the same name is not the one that was trained on.
    elsewhere = tmp_path / "data" / "b"
    monkeypatch.setattr(sys, "argv", [*command[:-1], f"a:a={elsewhere}"])
    script.main()
    assert (run / "cross_test" / "a-on-a" / "base" / "0" / "predictions.tsv").read_text().startswith("cancer\t")
    monkeypatch.setattr(sys, "argv", [*command, f"a:b={tmp_path / 'data' / 'a'}"])
    with pytest.raises(InputError, match="--cross_test: b stands for two test parts"):
        script.main()
    shutil.rmtree(run / "cross_test" / "a-on-a")
    monkeypatch.setattr(sys, "argv", command)

    before = {path: path.stat().st_mtime_ns for path in run.rglob("made.json")}
    caplog.set_level(logging.INFO)
    script.main()
    assert caplog.text.count("finished with the same inputs and settings, skipped") == len(before) == 8
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("made.json")}

    report = make_report(Run(str(run)))
    assert "| a | v0.1 |" in report
    assert "| a, tested on b | v0.1 |" in report


def test_cross_tests_that_cannot_be_are_refused_before_any_training(
    script: ModuleType, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path / "data" / "a", "asthma")
    write_task(tmp_path / "data" / "c", "aspirin", "Chemical")
    for pair, says in (
        ("a:c", "--cross_test a:c: a has Disease, c has Chemical: only tasks of the same types"),
        ("c:a", "--cross_test c:a: give task:other, where task is one of --tasks"),
        ("a", "--cross_test a: give task:other"),
        ("a:nothing", "no train.tsv for the task nothing"),
    ):
        arguments = [
            *("finetune_ner.py", "--ner_data", str(tmp_path / "data"), "--tasks", "a", "--base_model", str(base)),
            *("--models", "base", "--output_dir", str(tmp_path / "run"), "--cross_test", pair),
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(InputError, match=says):
            script.main()
    assert not (tmp_path / "run").exists()


def test_rows_come_in_the_order_of_tasks_and_models(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("jnlpba", "bc5-chem", "own", "ncbi-disease-on-bc5-disease"):
        for model in ("earlier", "v0.1", "base"):
            for seed in (10, 9):
                save_cell(tmp_path, task, model, seed, GOLD)
    seen: list[Cell] = []
    monkeypatch.setattr(script, "write_results", lambda root, cells, reference: seen.extend(cells))
    script.tabulate(tmp_path, ["base", "v0.1"])
    assert list(dict.fromkeys(cell.task for cell in seen)) == [
        *("bc5-chem", "jnlpba", "ncbi-disease-on-bc5-disease", "own"),
    ]
    assert [(cell.model, cell.seed) for cell in seen[:6]] == [
        *(("base", 9), ("base", 10), ("v0.1", 9), ("v0.1", 10), ("earlier", 9), ("earlier", 10)),
    ]
