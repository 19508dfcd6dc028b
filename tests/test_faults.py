"""A sample of the cases of faults.py: every kind of file, damage and disturbance, in about a minute."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from processes import Processes

pytestmark = pytest.mark.slow

DRAWN = random.Random(19)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    return Processes(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faults.World]:
    with faults.prepared(tmp_path_factory.mktemp("faults"), export=False) as world:
        yield world


def failures(cases: list[faults.Case]) -> list[faults.Finding]:
    return [finding for _, _, case in cases if (finding := case()).outcome == "failed"]


def test_damaged_files_are_refused_or_repaired(world: faults.World, processes: Processes) -> None:
    cases = list(faults.damages(world, faults.make_unfinished(world, processes)))
    assert {stage for stage, _, _ in cases} >= {*world.stages(), faults.CACHE}
    drawn = faults.sample(cases, DRAWN, 1)
    assert len(drawn) > 35
    assert failures(drawn) == []


def test_disturbed_commands_end_in_the_results_of_undisturbed_ones(world: faults.World, processes: Processes) -> None:
    cases = faults.disturbances(world, processes, DRAWN, 1, stages=["train-vocabulary", "pretrain", "annotate"])
    assert failures(list(cases)) == []


def test_a_fault_without_an_answer_is_a_failure(world: faults.World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judgement itself: without hashes, a flipped bit is used silently."""
    monkeypatch.setattr("bioptimus_hf.artifacts.find_damage", lambda *_, **__: iter(()))
    world.restore()
    finding = faults.damage_finished(world, "v0.4/model.safetensors", "bit flipped")
    assert (finding.stage, finding.outcome) == ("pretrain", "failed")
    assert "neither the same command nor check notices" in finding.detail


def test_a_page_lists_outcomes_and_failures(tmp_path: Path) -> None:
    findings = [
        faults.Finding("pretrain", "removed", "refused"),
        faults.Finding("pretrain", "removed", "failed", "v0.4/config.json", "it was used"),
        faults.Finding(faults.CACHE, "kill -9", "repaired"),
    ]
    faults.write_page(tmp_path / "faults.md", findings, minutes=1.2, full=False)
    page = (tmp_path / "faults.md").read_text()
    assert "| stage | removed | kill -9 |" in page
    assert "| `pretrain` | 1 refused, 1 **failed** |  |" in page
    assert "- pretrain, removed: v0.4/config.json: it was used" in page
