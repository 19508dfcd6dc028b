"""Test the report of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finished_run import change, change_facts, make_run

from bioptimus_hf.artifacts import RECORD, Run, identity, read_record, write_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.versions import version_numbers
from bioptimus_hf.publishing.report import make_report


def test_report_covers_a_curriculum_trained_in_several_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    part = shutil.copytree(run / "pretraining", run / "pretraining-0.10")
    made = read_record(part)
    facts = {name: fact for name, fact in made["facts"].items() if name != "decontamination"}
    facts["validation_losses"] = {"0": 6.0, "2": 5.5}
    change(part / "made.json", inputs=made["inputs"] | {"model": identity(run / "v0.4")}, facts=facts)
    shutil.copytree(run / "v0.4", run / "v0.10")
    change(run / "v0.10" / "made.json", fingerprint="0" * 32)
    change_facts(run / "v0.10", version="0.10", last_rate=0.3, last_step=2, metrics={"eval_loss": 5.5})
    report = make_report(Run(str(run)))
    assert (run / "report.md").read_text() == report
    lines = report.splitlines()
    start = lines.index("| version | masking | last step | validation loss |")
    assert lines[start + 2 : start + 9] == [
        "| v0.0 | none yet | 0 | 9.500 |",
        "| v0.4 | before pretraining-0.10 | 0 | 6.000 |",
        "| v0.1 | tokens, 15%, 80/10/10 | 2 | 7.250 |",
        "| v0.2 | words, 15%, 80/10/10 | 4 | 6.500 |",
        "| v0.3 | words, 20%, 80/10/10 | 6 | 6.125 |",
        "| v0.4 | words, 20%, always [MASK] | 8 | 6.000 |",
        "| v0.10 | words, 20% to 30%, always [MASK] | 2 | 5.500 |",
    ]
    assert "- 3 of 90 documents were removed from pretraining because they contain a test sentence" in report
    assert "- **The text of pretraining-0.10 was not searched for test sentences" in report
    assert "| ner/own/v0.4/1 | 330 s | 1,234 MB |" in lines
    assert max(["base", "v0.4", "v0.10"], key=version_numbers) == "v0.10"


def test_each_count_comes_from_its_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    complete = make_report(Run(str(run))).splitlines()
    shutil.rmtree(run / "contexts")
    without = make_report(Run(str(run))).splitlines()
    assert "- 80 contexts" in complete
    assert "- 1.250 word pieces per word with the vocabulary of the base model" in complete
    missing = [line for line in complete if line not in without]
    assert missing == ["- 80 contexts", "| contexts | 330 s | 1,234 MB |"]


def test_what_each_stage_read_and_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "- text of" not in make_report(Run(str(run)))
    text = {"documents": 1234, "words": 56789, "bytes": 400_000, "empty": 0, "replaced": 0}
    change_facts(run / "tokenizer", text=text | {"files": 3, "files_read": 3})
    change_facts(run / "pretraining", text=text | {"files": 3, "files_read": 3})
    change_facts(run / "contexts", text=text | {"files": 3, "files_read": 1, "empty": 5, "replaced": 7})
    change_facts(run / "v0.0", text=text)
    assert [line for line in make_report(Run(str(run))).splitlines() if line.startswith("- text of")] == [
        "- text of tokenizer, pretraining: 1,234 documents, 56,789 words, 0.4 MB in 3 files",
        "- text of contexts: 1,234 documents, 56,789 words, 0.4 MB in 1 of 3 files "
        "(`max_megabytes`); 5 empty documents left out; 7 undecodable bytes replaced",
        "- text of v0.0: 1,234 documents, 56,789 words, 0.4 MB",
    ]


def test_entities_of_a_text_are_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    report = make_report(Run(str(run)), "severe asthma of mice")
    assert f"Entities found by {run / 'ner' / 'own' / 'v0.4' / '0'} in: severe asthma of mice" in report
    lines = report.splitlines()
    assert lines[-5].startswith("- ")
    assert f"`bioptimus annotate --models {run / 'ner' / 'own' / 'v0.4' / '0'} --input FILES" in lines[-3]
    assert lines[-1] == f"This report is in `{run / 'report.md'}`."


def test_a_damaged_head_finds_no_entities(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    head = run / "ner" / "own" / "v0.4" / "0"
    made = read_record(head)
    write_record(head / RECORD, made["inputs"], made["settings"], facts=made["facts"], seconds=330)
    assert "Entities found by" in make_report(Run(str(run)), "severe asthma of mice")
    content = bytearray((head / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (head / "model.safetensors").write_bytes(content)
    report = make_report(Run(str(run)), "severe asthma of mice")
    assert "Entities found by" not in report
    assert f"**No entities are shown, because {head / 'model.safetensors'} has changed since it was written" in report


def test_a_note_comes_before_the_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert make_report(Run(str(run)), note="A small run.").splitlines()[:3] == [f"# {run}", "", "A small run."]


def test_a_run_without_stages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished stage: run a stage first"):
        make_report(Run(str(tmp_path)))
