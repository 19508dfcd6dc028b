from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from helpers import ROOT, assert_same_entities, load_script, run_until_killed

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.corpus.formats import DocumentReader
from bioptimus_hf.errors import InputError

SAMPLE = ROOT / "bioptimus_hf" / "sample"
TEXTS = (SAMPLE / "corpus.txt").read_text(encoding="utf-8").splitlines()[:12]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(ROOT / "scripts" / "annotate.py")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(TEXTS[:6]), encoding="utf-8")
    lines = [json.dumps({"id": str(number), "text": text, "year": 1999}) for number, text in enumerate(TEXTS[6:])]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "notes.md").write_text("not a document")
    return folder


def annotate(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["annotate.py", *map(str, arguments)])
    script.main()


def test_a_folder_of_files_is_annotated_once(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_head: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shards.parent / "out"
    caplog.set_level("INFO")
    annotate(script, monkeypatch, "--models", tiny_head, "--input", shards, "--output_dir", out)
    expected = list(Annotator(str(tiny_head)).annotate(TEXTS))
    first, second = list(DocumentReader(out / "a.jsonl")), list(DocumentReader(out / "b.jsonl"))
    for document, entities in zip((*first, *second), expected, strict=True):
        assert_same_entities(document.entities, entities)  # a file was a batch of its own
    assert [document.text for document in (*first, *second)] == TEXTS
    assert second[0].extra["fields"]["year"] == 1999
    record = json.loads((out / "a.jsonl.made.json").read_text())
    assert (record["documents"], record["entities"]) == (6, sum(map(len, expected[:6])))

    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    annotate(script, monkeypatch, "--models", tiny_head, "--input", shards, "--output_dir", out)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "2 of 2 files are there already" in caplog.text
    (out / "a.jsonl").unlink()
    annotate(script, monkeypatch, "--models", tiny_head, "--input", shards, "--output_dir", out)
    assert {path for path in out.iterdir() if path.stat().st_mtime_ns != before.get(path)} == {
        out / "a.jsonl",
        out / "a.jsonl.made.json",
    }
    (shards / "a.txt").write_text("Another text.")
    with pytest.raises(InputError, match=r"a\.jsonl was made by other models or settings, or of another"):
        annotate(script, monkeypatch, "--models", tiny_head, "--input", shards, "--output_dir", out)
    annotate(script, monkeypatch, "--models", tiny_head, "--input", shards, "--output_dir", out, "--force")
    assert [document.text for document in DocumentReader(out / "a.jsonl")] == ["Another text."]


@pytest.mark.parametrize("format", ["jsonl", "pubtator", "bioc", "conll", "html"])
def test_every_format_is_written(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_head: Path, shards: Path, format: str
) -> None:
    out = shards.parent / "out"
    annotate(script, monkeypatch, "--models", tiny_head, "--input", shards, "--output_dir", out, "--format", format)
    written = sorted(path for path in out.iterdir() if not path.name.endswith(".made.json"))
    assert [path.name.partition(".")[0] for path in written] == ["a", "b"]
    if format == "html":
        assert "Chemical" in written[0].read_text(encoding="utf-8")
        return
    documents = list(DocumentReader(written[0], format=format))
    found = [entity.text for document in documents for entity in document.entities]
    assert len(found) > 10


def test_a_document_that_cannot_be_read(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_head: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Aspirin."}\n{"text": 3}\n{"text": "Asthma."}\n')
    given = ("--models", tiny_head, "--input", tmp_path / "a.jsonl", "--output_dir", tmp_path / "out")
    with pytest.raises(InputError, match=r"a\.jsonl, line 2"):
        annotate(script, monkeypatch, *given)
    assert not list((tmp_path / "out").iterdir())
    annotate(script, monkeypatch, *given, "--on-error", "skip")
    record = json.loads((tmp_path / "out" / "a.jsonl.made.json").read_text())
    assert record["documents"] == 2
    assert "line 2" in record["skipped"][0]
    with pytest.raises(InputError, match=r"a\.jsonl lacks 1 documents that were skipped"):
        annotate(script, monkeypatch, *given)


def test_what_was_done_before_a_fault_is_kept_when_faults_are_skipped(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_head: Path, shards: Path
) -> None:
    (shards / "c.jsonl").write_text('{"text": 3}\n{"text": "Asthma."}\n')
    given = ("--models", tiny_head, "--input", shards, "--output_dir", shards.parent / "out")
    with pytest.raises(InputError, match=r"c\.jsonl, line 1"):
        annotate(script, monkeypatch, *given)
    before = {path: path.stat().st_mtime_ns for path in (shards.parent / "out").iterdir()}
    assert len(before) == 4
    annotate(script, monkeypatch, *given, "--on_error", "skip")
    after = {path: path.stat().st_mtime_ns for path in (shards.parent / "out").iterdir()}
    assert len(after) == 6
    assert before.items() <= after.items()


def test_what_cannot_be_annotated_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_head: Path, shards: Path
) -> None:
    def refused(match: str, *arguments: str | Path) -> None:
        with pytest.raises(InputError, match=match):
            annotate(script, monkeypatch, "--models", tiny_head, *arguments)

    out = shards.parent / "out"
    refused("no document at .*nothing", "--input", shards / "nothing", "--output_dir", out)
    refused("--format xml: choose one of", "--input", shards, "--output_dir", out, "--format", "xml")
    refused("no format", "--input", shards / "notes.md", "--output_dir", out)
    refused("cannot write .*notes.md", "--input", shards / "a.txt", "--output_dir", shards / "notes.md")
    (shards / "a.jsonl").write_text('{"text": "x"}')
    refused("would both become", "--input", shards, "--output_dir", out)
    refused("replaced by its own", "--input", shards / "a.jsonl", "--output_dir", shards)
    assert not out.exists()


def test_annotated_files_are_annotated_again(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_head: Path, shards: Path
) -> None:
    """Their records are no documents, and a name in capitals is one too."""
    (shards / "C.TXT").write_text(TEXTS[0])
    first, second = shards.parent / "first", shards.parent / "second"
    annotate(script, monkeypatch, "--models", tiny_head, "--input", shards, "--output_dir", first)
    assert len(list(first.glob("*.made.json"))) == 3
    for given in (first, f"{first}/*"):
        annotate(script, monkeypatch, "--models", tiny_head, "--input", given, "--output_dir", second)
    names = ["C.jsonl", "a.jsonl", "b.jsonl"]
    assert sorted(path.name for path in second.iterdir() if not path.name.endswith(".made.json")) == names
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_folder_annotated_into_itself_is_done_once(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_head: Path, shards: Path
) -> None:
    (shards / "b.jsonl.gz").unlink()
    for _ in range(2):
        annotate(script, monkeypatch, "--models", tiny_head, "--input", shards, "--output_dir", shards)
    assert sorted(path.name for path in shards.iterdir()) == ["a.jsonl", "a.jsonl.made.json", "a.txt", "notes.md"]


def test_progress_tells_documents_speed_and_the_time_that_is_left(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("Aspirin.\n" * 4)
    size, seen, clock = 36, io.StringIO(), count()
    monkeypatch.setattr(script, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # a second a document
    bar = script.tqdm(total=2 * size, file=seen, unit="B")
    progress = script.Progress(bar)
    for files in (1, 2):
        reader = DocumentReader(tmp_path / "a.txt")
        assert len(list(progress.watch(reader, size, reader))) == 4
        bar.refresh()
        shown = seen.getvalue().rpartition("\r")[2]
        time_left = r"\[\d\d:\d\d<\d\d:\d\d, "
        assert re.search(rf" {files * 36}/72 {time_left}.*, {files * 4} documents, 1\.0/s\]", shown), shown


def test_a_kill_leaves_no_record_of_what_was_there_before(
    script: ModuleType, tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_head, tmp_path / "other")
    (tmp_path / "other" / "notes.txt").write_text("another model")
    (tmp_path / "a.txt").write_text("asthma")

    def annotate(model: Path, *more: str) -> None:
        command = ["annotate.py", "--models", str(model), "--input", str(tmp_path / "a.txt"), "--output_dir"]
        monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "out"), *more])
        script.main()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    annotate(tiny_head)
    with monkeypatch.context() as patch:
        patch.setattr(script, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            annotate(tmp_path / "other", "--force")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jsonl"]
    annotate(tiny_head)
    with pytest.raises(InputError, match="was made by other models"):
        annotate(tmp_path / "other")


@pytest.mark.slow
def test_a_killed_run_goes_on(tiny_head: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    script = ROOT / "scripts" / "annotate.py"
    options = ("--models", str(tiny_head), "--input", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run_until_killed("/out/2.jsonl", script, *options, environment=environment)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.jsonl")}
    assert set(done) == {"0.jsonl", "1.jsonl"}
    again = subprocess.run(
        [sys.executable, str(script), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "2 of 4 files are there already" in again.stderr
    assert done.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.jsonl")}.items()
    for number in range(4):
        texts = [document.text for document in DocumentReader(tmp_path / "out" / f"{number}.jsonl")]
        assert texts == TEXTS
