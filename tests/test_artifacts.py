"""Stages on disk: known by what they were made from, complete or absent."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, concatenate_datasets

from bioptimus_hf import artifacts
from bioptimus_hf.artifacts import (
    building,
    check_fresh,
    digest_of_rows,
    fingerprint,
    identity,
    is_finished,
    read_record,
    replace_files,
    replaced_sources,
    sha256_of_file,
    verification,
    verify,
    write_json,
    write_record,
)
from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import atomic_file

INPUTS = {"corpus": "sha256:0123", "base_model": "name:some/model"}
SETTINGS: dict[str, Any] = {"size": 100, "rate": 0.15, "phases": ["0.1", "0.2"], "column": None}


def make(folder: Path, content: str = "hello", **settings: Any) -> None:
    with building(folder, INPUTS, SETTINGS | settings) as stage:
        (stage.path / "data.txt").write_text(content)
        stage.facts["letters"] = len(content)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("inputs", "settings"),
    [
        (INPUTS | {"corpus": "sha256:0124"}, SETTINGS),
        (INPUTS | {"extra": "sha256:0123"}, SETTINGS),
        ({"corpus": INPUTS["corpus"]}, SETTINGS),
        *((INPUTS, SETTINGS | {key: value}) for key, value in (("size", 101), ("rate", 0.2), ("phases", ["0.1"]))),
        (INPUTS, SETTINGS | {"column": "text"}),
        (INPUTS, SETTINGS | {"new": None}),
        (SETTINGS, INPUTS),
    ],
)
def test_fingerprint_changes_with_any_input_and_setting(inputs: dict[str, Any], settings: dict[str, Any]) -> None:
    assert fingerprint(inputs, settings) != fingerprint(INPUTS, SETTINGS)


def test_fingerprint_knows_no_order_of_keys_and_no_difference_between_tuple_and_list() -> None:
    shuffled = dict(reversed(SETTINGS.items())) | {"phases": ("0.1", "0.2")}
    assert fingerprint(dict(reversed(INPUTS.items())), shuffled) == fingerprint(INPUTS, SETTINGS)


def test_identity_is_the_content_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_text("same")
    (tmp_path / "c").write_text("other")
    assert identity(tmp_path / "a") == identity(str(tmp_path / "deep" / "b"))
    assert identity(tmp_path / "a") == f"sha256:{sha256_of_file(tmp_path / 'a')}"
    assert identity(tmp_path / "a") != identity(tmp_path / "c")
    shutil.copytree(tmp_path / "deep", tmp_path / "copy")
    assert identity(tmp_path / "deep") == identity(tmp_path / "copy")
    (tmp_path / "copy" / "b").rename(tmp_path / "copy" / "renamed")
    assert identity(tmp_path / "deep") != identity(tmp_path / "copy")
    assert identity("google-bert/bert-base-uncased") == "name:google-bert/bert-base-uncased"


def test_a_stage_is_known_by_its_fingerprint_not_by_its_place_or_its_clock(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "elsewhere" / "b")
    assert identity(tmp_path / "a") == identity(tmp_path / "elsewhere" / "b")
    make(tmp_path / "c", size=200)
    assert identity(tmp_path / "a") != identity(tmp_path / "c")


def test_made_json_says_how_the_stage_was_made(tmp_path: Path) -> None:
    make(tmp_path / "stage")
    made = read_record(tmp_path / "stage")
    assert made["inputs"] == INPUTS
    assert made["settings"] == SETTINGS
    assert made["facts"] == {"letters": 5}
    assert made["seconds"] >= 0
    assert made["peak_memory_mb"]["process"] > 10
    assert {"python", "torch", "transformers", "tokenizers"} <= made["versions"].keys()
    assert snapshot(tmp_path).keys() == {"stage/made.json", "stage/data.txt"}


def test_a_finished_stage_is_found_again_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "stage")
    with caplog.at_level("INFO"):
        assert is_finished(tmp_path / "stage", INPUTS, SETTINGS)
    assert "skipped" in caplog.text
    assert str(tmp_path / "stage") in caplog.text
    assert not is_finished(tmp_path / "stage", INPUTS, SETTINGS, force=True)


def test_nothing_there_is_not_finished(tmp_path: Path) -> None:
    assert not is_finished(tmp_path / "missing", INPUTS, SETTINGS)
    (tmp_path / "empty").mkdir()
    assert not is_finished(tmp_path / "empty", INPUTS, SETTINGS)
    make(tmp_path / "empty")
    assert (tmp_path / "empty" / "data.txt").is_file()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"size": 101}, "size (100 then, 101 now)"),
        ({"size": 100.0}, "size (100 then, 100.0 now)"),  # equal in Python, not in the fingerprint
        ({"column": "text"}, 'column (null then, "text" now)'),
        ({"new": 1}, "new (not set then, 1 now)"),
        ({"rate": 0.2, "phases": []}, 'phases (["0.1", "0.2"] then, [] now), rate (0.15 then, 0.2 now)'),
    ],
)
def test_another_setting_is_refused_and_named(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    make(tmp_path / "stage")
    with pytest.raises(InputError) as error:
        is_finished(tmp_path / "stage", INPUTS, SETTINGS | changed)
    assert f"was made with different {named}: choose another output_dir, or use force" in str(error.value)
    assert not is_finished(tmp_path / "stage", INPUTS, SETTINGS | changed, force=True)


def test_another_input_is_refused_and_named(tmp_path: Path) -> None:
    make(tmp_path / "stage")
    with pytest.raises(InputError, match=r'different corpus \("sha256:0123" then, "sha256:9" now\)'):
        is_finished(tmp_path / "stage", INPUTS | {"corpus": "sha256:9"}, SETTINGS)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a result of this project: move it away"):
        is_finished(tmp_path, INPUTS, SETTINGS, force=force)


def test_a_finished_stage_without_all_its_bytes_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "stage")
    (tmp_path / "stage" / "data.txt").write_text("hallo")  # only reading would show it
    assert is_finished(tmp_path / "stage", INPUTS, SETTINGS)
    with pytest.raises(
        InputError, match=r"data\.txt has changed since it was written: its hash differs: make it again"
    ):
        verify(tmp_path / "stage")
    with verification(False):
        verify(tmp_path / "stage")
    (tmp_path / "stage" / "data.txt").write_text("hal")
    with pytest.raises(InputError, match=r"data\.txt has 3 bytes instead of 5"):
        is_finished(tmp_path / "stage", INPUTS, SETTINGS)
    (tmp_path / "stage" / "data.txt").unlink()
    with pytest.raises(InputError, match=r"data\.txt is missing: make it again with force"):
        is_finished(tmp_path / "stage", INPUTS, SETTINGS)
    assert not is_finished(tmp_path / "stage", INPUTS, SETTINGS, force=True)


def test_a_record_that_was_changed_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "stage")
    record = tmp_path / "stage" / "made.json"
    record.write_text(record.read_text().replace('"letters": 5', '"letters": 6'))
    with pytest.raises(InputError, match=r"made\.json has changed since it was written"):
        read_record(record)


def test_a_result_shows_that_what_it_was_made_from_has_been_replaced(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with building(tmp_path / "b", {"first": identity(tmp_path / "a")}, {}, sources={"first": tmp_path / "a"}):
        pass
    with building(tmp_path / "c", {"second": identity(tmp_path / "b")}, {}, sources={"second": tmp_path / "b"}):
        pass
    check_fresh(tmp_path / "c")
    shutil.move(tmp_path, moved := tmp_path.with_name(f"{tmp_path.name}-moved"))
    check_fresh(moved / "c")
    make(moved / "a", size=5)
    assert list(replaced_sources(moved / "c")) == [(moved / "b", "first", moved / "a")]
    with pytest.raises(InputError, match=r"b was made from another first than is now in .*a: make it again"):
        check_fresh(moved / "c")
    shutil.rmtree(moved / "a")  # it may have been moved elsewhere
    check_fresh(moved / "c")


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "stage").write_text("a file")
    with pytest.raises(InputError, match="is a file"):
        is_finished(tmp_path / "stage", INPUTS, SETTINGS, force=force)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"inputs": {}}'])
def test_a_broken_made_json_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "made.json").write_text(content)
    with pytest.raises(InputError, match=r"made\.json .*force") as error:
        is_finished(tmp_path, INPUTS, SETTINGS)
    assert "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), building(tmp_path / "file" / "stage", INPUTS, SETTINGS):
        pytest.fail("the stage must not start")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_an_error_leaves_the_old_stage_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    make(tmp_path / "stage")
    before = snapshot(tmp_path)

    def fail() -> None:
        with building(tmp_path / "stage", INPUTS, SETTINGS | {"size": 1}) as stage:
            (stage.path / "data.txt").write_text("half")
            raise error("stopped")

    with pytest.raises(error):
        fail()
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_redoing_replaces_all_of_the_old_stage(tmp_path: Path) -> None:
    make(tmp_path / "stage")
    make(tmp_path / "stage", content="new", size=7)
    assert snapshot(tmp_path).keys() == {"stage/made.json", "stage/data.txt"}
    assert (tmp_path / "stage" / "data.txt").read_text() == "new"
    assert read_record(tmp_path / "stage")["settings"]["size"] == 7


def run_until_killed(code: str, folder: Path) -> None:
    script = "import os, pathlib, shutil, signal, sys\nfrom bioptimus_hf import artifacts\n" + textwrap.dedent(code)
    killed = subprocess.run([sys.executable, "-c", script, str(folder)], check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL


def test_kill_in_the_middle_leaves_the_old_stage(tmp_path: Path) -> None:
    make(tmp_path / "stage")
    before = snapshot(tmp_path / "stage")
    run_until_killed(
        """
        with artifacts.building(sys.argv[1], {}, {}) as stage:
            (stage.path / "data.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path / "stage",
    )
    assert snapshot(tmp_path / "stage") == before
    make(tmp_path / "stage", content="next")  # what the killed one left is no obstacle
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]
    assert (tmp_path / "stage" / "data.txt").read_text() == "next"


def test_kill_while_the_old_stage_is_deleted_leaves_the_new_one_whole(tmp_path: Path) -> None:
    make(tmp_path / "stage")
    run_until_killed(
        """
        def deletes_one_file_and_is_killed(folder, **_):
            next(pathlib.Path(folder).glob("data.txt"), pathlib.Path("none")).unlink(missing_ok=True)
            if os.path.exists(folder):
                os.kill(os.getpid(), signal.SIGKILL)

        shutil.rmtree = deletes_one_file_and_is_killed
        with artifacts.building(sys.argv[1], {}, {}) as stage:
            (stage.path / "data.txt").write_text("new")
        """,
        tmp_path / "stage",
    )
    assert snapshot(tmp_path / "stage").keys() == {"made.json", "data.txt"}
    assert (tmp_path / "stage" / "data.txt").read_text() == "new"
    assert is_finished(tmp_path / "stage", {}, {})
    make(tmp_path / "stage", content="next")
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_write_json_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"β": 1})
    assert "β" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})

    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"β": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"β": 1}


def test_the_digest_of_rows_hangs_on_rows_alone() -> None:
    rows = Dataset.from_dict({"text": [f"β{number}" for number in range(2500)], "start": range(2500)})
    digest = digest_of_rows(rows)
    pieces = concatenate_datasets([rows.select(range(7)), rows.select(range(7, 2500))])
    assert digest_of_rows(pieces) == digest_of_rows(rows.with_format("numpy")) == digest
    order = list(range(2500))
    others = [
        rows.select(order[:-1]),
        rows.select([1, 0, *order[2:]]),
        rows.rename_column("start", "end"),
        Dataset.from_dict({"text": [*rows["text"][:-1], "β"], "start": order}),
    ]
    assert len({digest, *map(digest_of_rows, others)}) == 5


def test_an_atomic_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("two")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert path.read_text() == "one"
    assert [one.name for one in path.parent.iterdir()] == ["file.txt"]


def test_the_record_of_a_file_is_checked_like_that_of_a_folder(tmp_path: Path) -> None:
    record = tmp_path / "file.json"
    assert not is_finished(record, INPUTS, SETTINGS)
    write_record(record, INPUTS, SETTINGS, facts={"lines": 3}, seconds=1)
    assert read_record(record)["facts"] == {"lines": 3}
    assert is_finished(record, INPUTS, SETTINGS)
    with pytest.raises(InputError, match="was made with different size"):
        is_finished(record, INPUTS, {**SETTINGS, "size": 1})


def test_an_error_names_its_argument() -> None:
    error = InputError("must be above 0, not -1", argument="per_token")
    assert str(error) == "per_token: must be above 0, not -1"
    copied = pickle.loads(pickle.dumps(error))  # as from a worker process
    assert (str(copied), copied.argument) == (str(error), "per_token")


def test_files_are_added_to_a_result_and_an_interruption_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with building(tmp_path / "0", {"corpus": "x"}, {"size": 1}) as stage:
        (stage.path / "config.json").write_text("old")
    made = read_record(tmp_path / "0")
    replace_files(tmp_path / "0", {"config.json": b"new", "report.html": b"page"})
    verify(tmp_path / "0")
    after = read_record(tmp_path / "0")
    assert {**after, "files": 0} == {**made, "files": 0}
    assert sorted(after["files"]) == ["config.json", "report.html"]

    def fail(path: Path) -> None:
        raise KeyboardInterrupt

    for written in ("config.json", "report.html", "made.json"):
        with monkeypatch.context() as patch:
            real = artifacts.atomic_file
            patch.setattr(artifacts, "atomic_file", lambda path: real(path) if path.name != written else fail(path))  # noqa: B023
            with pytest.raises(KeyboardInterrupt):
                replace_files(tmp_path / "0", {"config.json": b"newer", "report.html": b"other"})
        verify(tmp_path / "0")
    replace_files(tmp_path / "0", {"config.json": b"newer", "report.html": b"other"})
    assert sorted(read_record(tmp_path / "0")["files"]) == ["config.json", "report.html"]
