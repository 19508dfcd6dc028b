"""Write tables of results, beside published figures, and the plot of the versions."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_results import (
    result_of,
    results_of,
)

from bioptimus_hf.ner.differences import paired_differences
from bioptimus_hf.ner.literature import PIECES, PUBLISHED
from bioptimus_hf.ner.results import averages, summarize
from bioptimus_hf.ner.tables import published_table, results_table, write_results
from bioptimus_hf.ner.tasks import (
    BLURB_NER,
)


def test_table_of_results() -> None:
    results = [
        *results_of("t", "base", 0.7, 0.8, 0.9),
        *results_of("t", "v0.4", 0.75, 0.85, 0.95),
        result_of("u", "m", 0, np.array([[500, 800, 1000]])),
    ]
    table = results_table(summarize(results), paired_differences(results, ["base"]), references=["base"]).splitlines()
    assert table[0].startswith("| task | model | F1 | F1 minus base | conlleval F1 | precision | recall | seeds |")
    assert table[2] == ("| t | base | 80.00 ± 10.00 |  | 82.00 ± 9.00 | 80.00 ± 10.00 | 80.00 ± 10.00 | 3 | 1000 |")
    assert "| t | v0.4 | 85.00 ± 10.00 | +5.00 (+5.00 to +5.00) | 86.50 ± 9.00 |" in table[3]
    assert table[4] == "| u | m | 55.56 |  | 60.00 | 62.50 | 50.00 | 1 | 1000 |"
    assert "strict IOB2 as seqeval" in table[-1]
    assert "conlleval F1: conlleval, which is seqeval's default" in table[-1]
    fewer = [*results[:2], *results[3:6]]
    table_of_fewer = results_table(summarize(fewer), paired_differences(fewer, ["base"]), references=["base"])
    assert "+5.00 (+5.00 to +5.00, 2 pairs)" in table_of_fewer


def test_published_figures_are_compared_on_the_same_test_set_only() -> None:
    mentions = {name: task.mentions[2] for name, task in BLURB_NER.items() if task.mentions}
    results = [result for task in BLURB_NER for result in results_of(task, "m", 0.5, 0.5, mentions=mentions[task])]
    rows = summarize([*results, *results_of("bc2gm", "n", 0.5, mentions=6324), *results_of("mine", "m", 0.5)])
    table = published_table(rows, averages(results)).splitlines()
    assert table[0] == (
        "| model | bc5-chem | bc5-disease | ncbi-disease | bc2gm | jnlpba | average | counted in | protocol | source |"
    )
    # The lenient figure, because the publications don't name their scorer.
    assert table[2].startswith("| m | 54.99 ± 0.00 | 55.00 ± 0.00 |")
    assert table[2].endswith("| 55.00 ± 0.00 | words | mean of 2 seeds | this run |")
    assert table[3] == "| n |  |  |  | other test data |  |  | words | one seed | this run |"
    assert (
        "| PubMedBERT | 93.33 | 85.62 | 87.82 | 84.52 | 79.10 | 86.08 | not stated | mean of 5 seeds | "
        "arXiv 2007.15779, table 6 |" in table
    )
    (pieces,) = [line for line in table if line.startswith("| CompactBioBERT")]
    assert "| 94.31 |  |  | 86.71 |  |  | word pieces | one seed |" in pieces  # no average of two tasks
    assert len(table) == 2 + 2 + len(PUBLISHED) + 2
    unfinished = [*results, *results_of("bc5-chem", "m", 0.5, 0.5, 0.5, 0.5, 0.5, mentions=mentions["bc5-chem"])]
    (row,) = [line for line in published_table(summarize(unfinished), []).splitlines() if line.startswith("| m |")]
    assert row.endswith("| words | mean of 2 to 5 seeds | this run |")
    assert published_table(summarize(results_of("mine", "m", 0.5)), []) == ""


def test_averages_of_published_figures_agree_with_the_sources() -> None:
    complete = [row for row in PUBLISHED if list(row.f1) == list(BLURB_NER)]
    averages_of = {row.model: statistics.fmean(map(float, row.f1.values())) for row in complete}
    assert len(averages_of) == len(complete)
    assert averages_of["BIOptimus v0.1"] == pytest.approx(85.52, abs=0.006)
    assert averages_of["BIOptimus v0.4"] == pytest.approx(86.67, abs=0.006)
    assert averages_of["BERT-base uncased"] == pytest.approx(82.99, abs=0.006)
    assert averages_of["BioBERT v1.1"] == pytest.approx(85.81, abs=0.006)
    assert averages_of["INDUS-small"] == pytest.approx(82.60, abs=0.006)
    assert all(row.f1.keys() <= BLURB_NER.keys() and row.source and row.protocol for row in PUBLISHED)
    assert all(row.counting == PIECES for row in PUBLISHED if row not in complete)


def test_results_are_saved_with_a_plot_of_the_versions(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = [
        result
        for task in ("t", "u", "w")
        for model, f1 in (("base", 0.6), ("v0.4", 0.8), ("v0.10", 0.9), ("v0.1", 0.7), ("other", 0.1))
        for result in results_of(task, model, f1, f1 + 0.02)
        if (task, model[:2]) != ("w", "v0")
    ]
    text = write_results(tmp_path, results, references=["base"])
    assert (tmp_path / "results.md").read_text() == text
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved.keys() == {
        *("scorer", "lenient_scorer", "references", "rows", "averages", "differences", "missing", "resamples"),
        "trainings",
    }
    assert saved["rows"] == summarize(results)
    assert (tmp_path / "versions.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "versions.png").unlink()
    write_results(tmp_path, results_of("t", "v0.1", 0.5), references=["v0.1"])
    assert not (tmp_path / "versions.png").exists()


def test_the_plot_gets_the_versions_in_order_and_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[str]] = {}

    def plot_versions(path: Path, rows: dict[str, Any], f1_of_seeds: Any, *, reference: str) -> None:
        seen.update({task: [row["model"] for row in of_task] for task, of_task in rows.items()})
        assert f1_of_seeds["t", "v0.4"] == [0.8]
        assert reference == "base"

    monkeypatch.setattr("bioptimus_hf.ner.tables.plot_versions", plot_versions)
    models = (("v0.10", 0.9), ("base", 0.6), ("v0.4", 0.8), ("other", 0.1))
    write_results(
        tmp_path, [result for model, f1 in models for result in results_of("t", model, f1)], references=["base"]
    )
    assert seen == {"t": ["base", "v0.4", "v0.10"]}
