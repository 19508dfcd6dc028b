"""Results of heads in a file, from which benchmarks/five_tasks.py makes the table again."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from head_results import GOLD, save_result
from helpers import ROOT

from bioptimus_hf.ner.experiments import tabulate
from bioptimus_hf.ner.literature import PUBLISHED
from bioptimus_hf.ner.tasks import BLURB_NER

SCRIPT = ROOT / "benchmarks" / "five_tasks.py"
HEADER = "| task | model | F1 |"  # has shorter names of columns there
WRONG = [["B-X", "O", "O"], ["O", "B-Y"]]


Command = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(*arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_the_table_of_a_file_is_that_of_the_runs(run: Command, tmp_path: Path) -> None:
    for task in BLURB_NER:
        for model, predicted in (("base", WRONG), ("v0.4", GOLD)):
            for seed in (0, 1):
                for name in ("all", model):
                    save_result(tmp_path / name / "ner", task, model, seed, predicted)
    save_result(tmp_path / "base" / "ner", "own", "base", 0)
    tabulate(tmp_path / "all" / "ner", ["base", "v0.4"], ["base"])
    expected = (tmp_path / "all" / "ner" / "results.md").read_text()
    file, work = tmp_path / "heads.jsonl", tmp_path / "work"
    options = ("--file", file, "--work", work)
    run(*options, "--add", tmp_path / "v0.4")
    assert (work / "results.md").read_text() != expected
    run(*options, "--add", tmp_path / "base")
    assert (work / "results.md").read_text() == expected
    shutil.rmtree(work)
    run(*options)
    assert (work / "results.md").read_text() == expected
    (row, *_) = json.loads((work / "results.json").read_text())["trainings"]
    assert (row["task"], row["model"], row["seed"]) == (next(iter(BLURB_NER)), "base", 0)
    run(*options, "--models", "v0.4")
    assert "| base |" not in (work / "results.md").read_text()


def test_other_heads_of_the_same_name_and_an_empty_file_are_refused(run: Command, tmp_path: Path) -> None:
    file, work = tmp_path / "heads.jsonl", tmp_path / "work"
    with pytest.raises(SystemExit, match="has no heads of these models"):
        run("--file", file, "--work", work)
    save_result(tmp_path / "one" / "ner", "bc2gm", "v0.4", 0)
    save_result(tmp_path / "two" / "ner", "bc2gm", "v0.4", 0, learning_rate=1.0)
    run("--file", file, "--work", work, "--add", tmp_path / "one")
    before = file.read_bytes()
    with pytest.raises(SystemExit, match=r"bc2gm, v0\.4, seed 0 has other inputs or settings than in the file"):
        run("--file", file, "--work", work, "--add", tmp_path / "two")
    assert file.read_bytes() == before


def test_the_tables_in_results_are_those_of_the_file(run: Command, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in SCRIPT.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        correct, predicted, gold = (sum(ord(digit) - ord("0") for digit in text) for text in line["counts"].values())
        scores = line["test"][line["task"]]
        assert scores["f1"] == pytest.approx(2 * correct / (predicted + gold))
        assert scores["support"] == gold
    run("--work", tmp_path, "--references", "base", "control")
    shown = (SCRIPT.parent / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in (tmp_path / "results.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) >= 3 * (len(BLURB_NER) + 1) + len(PUBLISHED)
    assert [row for row in rows if row not in shown and not row.startswith(HEADER)] == []
