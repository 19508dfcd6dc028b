"""Check all results of a run: damage, results that were made from something else, and other text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bioptimus_hf.artifacts import RECORD, building, identity, write_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing.consistency import Finding, check_results

READ = {"text_column": "text", "max_megabytes": None, "errors": "strict", "validation_share": 0.1}
CORPUS = {"corpus": "sha256:0"}


def make(folder: Path, inputs: dict[str, str] | None = None, *sources: Path, **settings: Any) -> Path:
    """Make a result of two files."""
    made_from = {source.name: identity(source) for source in sources}
    by_name = {source.name: source for source in sources}
    with building(folder, {**(inputs or {}), **made_from}, settings, sources=by_name) as stage:
        (stage.path / "inner").mkdir()
        (stage.path / "data.txt").write_text("some data")
        (stage.path / "inner" / "more.txt").write_text("more data")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a tokenizer, contexts, a model and a head, each made from the one before."""
    tokenizer = make(tmp_path / "tokenizer", CORPUS, **READ, size=100)
    contexts = make(tmp_path / "contexts", CORPUS, tokenizer, **READ, per_token=4)
    model = make(tmp_path / "v0.0", {}, contexts, tokenizer)
    make(tmp_path / "ner" / "task" / "v0.0" / "0", {}, model)
    return tmp_path


def problems(run: Path, **options: Any) -> dict[str, str]:
    """Return what is wrong, by the path of the result."""
    found = check_results(run, **options)
    return {finding.result.relative_to(run).as_posix(): finding.problem for finding in found if finding.problem}


def test_a_run_as_it_was_written(run: Path) -> None:
    expected = ["contexts", "ner/task/v0.0/0", "tokenizer", "v0.0"]
    assert check_results(run) == [Finding(run / name, 2, None) for name in expected]


def test_damage_is_found_in_any_file(run: Path) -> None:
    for name in ("data.txt", "inner/more.txt"):
        file = run / "contexts" / name
        content = file.read_text()
        file.write_text(content.replace("data", "date"))
        assert problems(run) == {
            "contexts": f"{file} has changed since it was written: its hash differs: make it again "
            f"(`bioptimus find-contexts --force`)"
        }
        assert problems(run, hashes=False) == {}
        file.write_text(content[:3])
        assert f"{file} has 3 bytes instead of 9" in problems(run, hashes=False)["contexts"]
        file.unlink()
        assert f"{file} is missing" in problems(run, hashes=False)["contexts"]
        file.write_text(content)
    assert problems(run) == {}


@pytest.mark.parametrize("damage", ["fact", "half", "nothing"])
def test_damage_is_found_in_records(run: Path, damage: str) -> None:
    record = run / "v0.0" / RECORD
    content = record.read_text()
    changed = {
        "fact": content.replace('"size": 9', '"size": 8', 1),
        "half": content[: len(content) // 2],
        "nothing": "",
    }
    record.write_text(changed[damage])
    found = problems(run)
    assert str(record) in found["v0.0"]
    assert "`bioptimus distill --force`" in found["v0.0"]
    assert found.keys() == {"v0.0", "ner/task/v0.0/0"}  # which was made from it


def test_a_damaged_record_of_the_tokenizer_hides_nothing_else(run: Path) -> None:
    (run / "tokenizer" / RECORD).write_text("")
    (run / "contexts" / "data.txt").unlink()
    found = problems(run)
    assert "`bioptimus train-vocabulary --force`" in found["tokenizer"]
    assert "data.txt is missing" in found["contexts"]


def test_results_of_something_that_was_replaced_are_stale(run: Path) -> None:
    make(run / "tokenizer", CORPUS, **READ, size=200)
    stale = f"{run / 'contexts'} was made from another tokenizer than is now in {run / 'tokenizer'}"
    # The head and its model are as stale as the contexts that they were made from.
    assert problems(run) == {"contexts": stale, "v0.0": stale, "ner/task/v0.0/0": stale}
    make(run / "contexts", CORPUS, run / "tokenizer", **READ, per_token=4)
    assert problems(run).keys() == {"v0.0", "ner/task/v0.0/0"}
    make(run / "tokenizer", CORPUS, **READ, size=100)
    make(run / "contexts", CORPUS, run / "tokenizer", **READ, per_token=4)
    assert problems(run) == {}  # the model is that of these inputs again


@pytest.mark.parametrize(
    ("corpus", "share", "said"),
    [
        ("sha256:1", 0.1, 'corpus ("sha256:0" then, "sha256:1" now)'),
        ("sha256:0", 0.2, "validation_share (0.1 then, 0.2 now)"),
    ],
)
def test_stages_that_read_other_text_are_reported(run: Path, corpus: str, share: float, said: str) -> None:
    settings = {**READ, "validation_share": share}
    make(run / "pretraining", {"corpus": corpus}, run / "v0.0", **settings)
    found = problems(run)
    assert found == {"pretraining": f"reads other text than the tokenizer was trained on, with different {said}"}


def test_words_of_your_own_may_be_searched_for_in_any_text(run: Path) -> None:
    inputs = {"corpus": "sha256:1", "words": "sha256:2"}
    make(run / "contexts", inputs, run / "tokenizer", **{**READ, "validation_share": None})
    assert "contexts" not in problems(run)


def test_what_is_being_written_or_was_kept_is_no_result(run: Path) -> None:
    (run / "tokenizer" / "mine.txt").write_text("not ours")
    make(run / "tokenizer", CORPUS, **READ, size=100)
    (kept,) = run.glob("tokenizer.kept-*")
    assert (kept / "mine.txt").read_text() == "not ours"
    make(run / "v0.1.partial-elsewhere-1", {})
    make(run / "v0.2.replaced", {})  # restored, or removed, by the next command
    assert [finding.problem for finding in check_results(run)] == [None] * 4


def test_records_of_annotated_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    record = tmp_path / ".records" / "a.jsonl.json"
    record.parent.mkdir()
    write_record(record, {}, {}, facts={}, seconds=0, files=[tmp_path / "a.jsonl"])
    assert check_results(tmp_path) == [Finding(record, 1, None)]
    (tmp_path / "a.jsonl").write_text("[]\n")
    assert "a.jsonl has changed since it was written" in problems(tmp_path)[".records/a.jsonl.json"]


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no results: name the folder of a run, or of annotated files"):
        check_results(str(tmp_path))


def test_a_stage_that_lost_its_record_or_its_folder_is_found(run: Path) -> None:
    (run / "contexts" / RECORD).unlink()
    found = problems(run)
    assert found.keys() == {"contexts", "v0.0"}
    assert found["contexts"] == "has no made.json, so nothing in it can be checked"
    assert found["v0.0"] == f"was made from a contexts that is no longer in {run / 'contexts'}"
    shutil.rmtree(run / "contexts")
    assert problems(run).keys() == {"v0.0"}


def test_the_place_of_a_run_does_not_matter(run: Path) -> None:
    moved = run.rename(run.with_name("x.replaced"))
    assert len(check_results(moved)) == 4
