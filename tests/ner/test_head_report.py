"""Test the report of heads: a page, its content as JSON, and the least score that annotation offers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from head_results import write_task
from helpers import HOSTILE, build_head_of_words, build_tiny_tokenizer
from transformers import AutoConfig

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.artifacts import RECORD, read_record, write_json, write_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import new_head, save_head
from bioptimus_hf.ner.calibration import recommended_min_score
from bioptimus_hf.ner.head_page import head_page
from bioptimus_hf.ner.head_report import DATA, PAGE, report_heads
from bioptimus_hf.ner.options import HeadOptions
from bioptimus_hf.ner.planning import chosen_tasks, load_task
from bioptimus_hf.publishing.consistency import check_results

TAGS = ["O", "B-Disease", "I-Disease"]
ANNOTATED = (
    "Asthma\tB-Disease\nof\tO\nmice\tO\n\nsevere\tB-Disease\nasthma\tI-Disease\n\ncancer\tB-Disease\nin\tO\nmice\tO\n\n"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_task(tmp_path / "data" / "mine", "asthma\tB-Disease\n\n", ANNOTATED, ANNOTATED)
    return tmp_path / "data"


def save(head: Path, data: Path, words: dict[str, str], tasks: tuple[str, ...] = ("mine",), **settings: Any) -> Path:
    """Save a head that gives words their tags as one that was trained on tasks."""
    head.mkdir(parents=True)
    model = build_head_of_words(words, TAGS)
    model.classifier.weight.data[1] *= 1.5  # so that scores differ
    save_head(model, build_tiny_tokenizer(), head)
    joint = len(tasks) > 1
    inputs, tests = {"model": "folder:0"}, {}
    for name in tasks:
        loaded = load_task(chosen_tasks([name])[0], HeadOptions(ner_data=str(data)))
        inputs |= {f"{name}/{split}" if joint else split: value for split, value in loaded.inputs.items()}
        tests[name] = {"f1": 0.5}
    scores = {"tests": tests} if joint else {"test": tests[tasks[0]]}
    write_json(head / "scores.json", {"task": "joint" if joint else tasks[0], "model": "tiny", "seed": 0, **scores})
    merged = {"merged_types": dict.fromkeys(tasks)} if joint else {"merged_type": None}
    write_record(head / RECORD, inputs, {"max_length": 64, **merged, **settings}, facts={}, seconds=0)
    return head


def test_the_report_of_a_head_through_the_command(tmp_path: Path, data: Path, command: Command) -> None:
    run = tmp_path / "run"
    head = save(
        run / "ner" / "mine" / "tiny" / "0", data, {"asthma": "B-Disease", "mice": "I-Disease", "in": "B-Disease"}
    )
    before = read_record(head)
    assert command("report", run, "--ner_data", data).out.strip() == str(head / PAGE)
    report = json.loads((head / DATA).read_text())
    test = report["tasks"]["mine"]["test"]
    assert test["kinds"] == {
        "correct": 1, "wrong type": 0, "wrong boundary": 1, "wrong boundary and type": 0, "missed": 1, "spurious": 1,
    }  # fmt: skip
    assert {name: row["mentions"] for name, row in test["seen"].items()} == {"seen": 1, "unseen": 2}
    assert "F1 33.33 on the test set, but 50.00 in its scores.json" in command.log
    page = (head / PAGE).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "severe asthma" in page

    # The record lists what was added, and the head is the same one.
    after = read_record(head)
    assert {**after, "files": 0} == {**before, "files": 0}
    assert after["files"].keys() - before["files"].keys() == {PAGE, DATA}
    assert [finding.problem for finding in check_results(run)] == [None]
    written = (head / PAGE).stat().st_mtime_ns
    command("report", head, "--ner_data", data)
    assert "1 of 1 heads have a report" in command.log
    assert (head / PAGE).stat().st_mtime_ns == written


def test_annotation_offers_the_best_score_and_applies_it(tmp_path: Path, data: Path, command: Command) -> None:
    head = save(tmp_path / "head", data, {"asthma": "B-Disease", "mice": "I-Disease", "in": "B-Disease"})
    model = build_head_of_words({"asthma": "B-Disease", "of": "B-Disease"}, TAGS)
    model.classifier.weight.data[1, 1] = 0.3  # "of" is found, with a lower score
    save_head(model, build_tiny_tokenizer(), head)
    record = read_record(head)
    write_record(head / RECORD, record["inputs"], record["settings"], facts={}, seconds=0)
    with pytest.raises(InputError, match=r"^min_score: .*head has no best score: run `bioptimus report`"):
        Annotator(head, min_score="best")
    report_heads([head], str(data))
    best = json.loads((head / DATA).read_text())["min_score"]["best"]
    text = "asthma of mice"
    scores = {entity.text: entity.score for entity in next(Annotator(head).annotate([text]))}
    assert scores["of"] < best <= scores["asthma"]
    # The score goes where the configuration goes, but not into a head that is trained anew.
    AutoConfig.from_pretrained(head).save_pretrained(tmp_path / "exported")
    assert recommended_min_score(AutoConfig.from_pretrained(tmp_path / "exported")).best == best
    assert recommended_min_score(new_head(head, TAGS, seed=0)[0].config) is None
    (chosen,) = Annotator(head, min_score="best").annotate([text])
    assert [entity.text for entity in chosen] == ["asthma"]
    assert [chosen] == list(Annotator(head, min_score=best).annotate([text]))

    (tmp_path / "a.txt").write_text(text)
    common = ("annotate", "--models", head, "--input", tmp_path / "a.txt", "--output_dir")
    command(*common, tmp_path / "all")
    assert f"leaving out entities with a score below {best:.2f}" in command.log
    assert "set min_score to best to do so" in command.log
    command(*common, tmp_path / "best", "--min_score", "best")
    assert "leaving out" not in command.log
    assert len(json.loads((tmp_path / "best" / "a.txt.jsonl").read_text())["entities"]) == 1
    assert (
        json.loads((tmp_path / "best" / ".records" / "a.txt.jsonl.json").read_text())["settings"]["min_score"] == best
    )
    assert command(*common, tmp_path / "x", "--min_score", "better", status=2).error.endswith(
        "--min_score: invalid number or best value: 'better'; see --help"
    )


def test_a_joint_head_is_reported_for_each_task(tmp_path: Path, data: Path) -> None:
    other = "cancer\tB-Disease\nin\tO\nmice\tO\n\n"
    write_task(data / "other", other, other, other)
    head = save(tmp_path / "head", data, {"asthma": "B-Disease", "cancer": "B-Disease"}, ("mine", "other"))
    report_heads([head], str(data))
    report = json.loads((head / DATA).read_text())
    assert {name: task["test"]["kinds"]["correct"] for name, task in report["tasks"].items()} == {"mine": 2, "other": 1}
    # A joint head has seen the mentions of all its tasks.
    assert report["tasks"]["mine"]["test"]["seen"]["seen"]["mentions"] == 2
    assert "<h2>other</h2>" in (head / PAGE).read_text()


@pytest.mark.parametrize("annotated", [ANNOTATED, "severe\tB-Disease\nasthma\tO\n\n"], ids=["nothing", "wrong"])
def test_a_head_that_finds_nothing_or_nothing_that_is_correct(
    tmp_path: Path, data: Path, annotated: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_task(data / "mine", ANNOTATED, annotated, annotated)
    head = save(tmp_path / "head", data, {} if annotated == ANNOTATED else {"asthma": "B-Disease"})
    before = (head / "config.json").read_text()
    report_heads([head], str(data))
    assert "finds nothing correct in the development set, so there is no best min_score" in caplog.text
    report = json.loads((head / DATA).read_text())
    assert report["min_score"] is report["tasks"]["mine"]["min_score"] is None
    assert json.loads((head / "config.json").read_text()) == json.loads(before)
    page = (head / PAGE).read_text()
    assert ("No entities are found" if annotated == ANNOTATED else "All of them are wrong") in page


def test_a_new_report_without_a_best_score_removes_that_of_an_earlier_one(tmp_path: Path, data: Path) -> None:
    head = save(tmp_path / "head", data, {"asthma": "B-Disease"})
    report_heads([head], str(data))
    assert recommended_min_score(AutoConfig.from_pretrained(head))
    save_head(build_head_of_words({}, TAGS), build_tiny_tokenizer(), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", head)
    record = read_record(head)
    write_record(head / RECORD, record["inputs"], record["settings"], facts={}, seconds=0)
    report_heads([head], str(data), force=True)
    assert recommended_min_score(AutoConfig.from_pretrained(head)) is None


def test_bad_input_is_named_in_one_line(tmp_path: Path, data: Path) -> None:
    head = save(tmp_path / "head", data, {"asthma": "B-Disease"})
    errors: dict[str, Any] = {
        "is neither a finished head nor a run with heads": lambda: report_heads([tmp_path], str(data)),
        "needed for mine": lambda: report_heads([head]),
        "no train.tsv for task mine": lambda: report_heads([head], str(tmp_path)),
    }
    for words, call in errors.items():
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    write_task(data / "mine", "asthma\tB-Disease\n\n", ANNOTATED, ANNOTATED + "a\tO\n\n")
    with pytest.raises(InputError, match="head was trained with another test set of mine than this one"):
        report_heads([head], str(data))
    (data / "mine" / "dev.tsv").unlink()
    with pytest.raises(InputError, match=r"no dev\.tsv"):
        report_heads([head], str(data))
    write_record(head / RECORD, {}, {}, facts={}, seconds=0)
    with pytest.raises(InputError, match="doesn't record the task data that it was trained on"):
        report_heads([head], str(data))
    assert not (head / PAGE).exists()


def test_the_page_escapes_what_it_shows(tmp_path: Path, data: Path) -> None:
    head = save(tmp_path / "head", data, {"asthma": "B-Disease"})
    report_heads([head], str(data))
    report = json.loads((head / DATA).read_text())
    for row in report["tasks"]["mine"]["test"]["confusions"]:
        row["gold"] = {"text": HOSTILE, "type": "<b>"}
        row["examples"] = [{"number": 1, "text": HOSTILE, "gold": [3, 50], "predicted": [10, 60]}]
    page = head_page({**report, "model": HOSTILE})
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;") > 2
    assert "<code>min_score</code> is <b>0</b>: no other one raises F1" in head_page(
        {**report, "min_score": {"best": 0}}
    )


def test_a_damaged_head_does_not_stop_the_others(tmp_path: Path, data: Path, command: Command) -> None:
    heads = [save(tmp_path / "run" / "ner" / "mine" / "tiny" / seed, data, {"asthma": "B-Disease"}) for seed in "01"]
    content = bytearray((heads[0] / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (heads[0] / "model.safetensors").write_bytes(content)
    error = command("report", tmp_path / "run", "--ner_data", data, status=2).error
    assert error.startswith(
        f"error: 1 of 2 heads have no report: {heads[0]}: {heads[0] / 'model.safetensors'} has changed"
    )
    assert [(head / PAGE).exists() for head in heads] == [False, True]
