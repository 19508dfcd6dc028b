from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import socket
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from helpers import ROOT, assert_same_entities, run_until_killed
from tqdm import tqdm

from bioptimus_hf.annotation import annotate_files as module
from bioptimus_hf.annotation.annotate_files import RECORDS, annotate_files, record_of
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.options import AnnotationOptions
from bioptimus_hf.artifacts import read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.corpus.formats import READABLE, WRITABLE, DocumentReader
from bioptimus_hf.errors import InputError

SAMPLE = ROOT / "bioptimus_hf" / "sample"
TEXTS = (SAMPLE / "corpus.txt").read_text(encoding="utf-8").splitlines()[:12]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(TEXTS[:6]), encoding="utf-8")
    lines = [json.dumps({"id": str(number), "text": text, "year": 1999}) for number, text in enumerate(TEXTS[6:])]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "notes.md").write_text("not a document")
    return folder


def annotate(model: Path, source: str | Path, output_dir: Path, **options: Any) -> list[Path]:
    return annotate_files(AnnotationOptions([str(model)], [str(source)], str(output_dir), **options))


def modified(folder: Path) -> dict[Path, int]:
    """Return the time of the last change of each file, including records."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_folder_is_annotated_once(tiny_head: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = shards.parent / "out"
    caplog.set_level("INFO")
    assert annotate(tiny_head, shards, out) == [out / "a.jsonl", out / "b.jsonl"]
    expected = list(Annotator(str(tiny_head)).annotate(TEXTS))
    first, second = list(DocumentReader(out / "a.jsonl")), list(DocumentReader(out / "b.jsonl"))
    for document, entities in zip((*first, *second), expected, strict=True):
        assert_same_entities(document.entities, entities)  # each file was batched separately
    assert [document.text for document in (*first, *second)] == TEXTS
    assert second[0].extra["fields"]["year"] == 1999
    facts = read_record(record_of(out / "a.jsonl"))["facts"]
    assert facts == {"documents": 6, "entities": sum(map(len, expected[:6])), "skipped": []}

    before = modified(out)
    assert annotate(tiny_head, shards, out) == [out / "a.jsonl", out / "b.jsonl"]
    assert modified(out) == before
    assert "2 of 2 files are already annotated" in caplog.text
    (out / "a.jsonl").unlink()
    annotate(tiny_head, shards, out)
    changed = {path for path, time in modified(out).items() if time != before.get(path)}
    assert changed == {out / "a.jsonl", out / RECORDS / "a.jsonl.json"}


def test_other_inputs_and_settings_are_rejected_unless_forced(tiny_head: Path, shards: Path) -> None:
    out = shards.parent / "out"
    annotate(tiny_head, shards, out)
    (shards / "a.txt").write_text("Another text.")
    with pytest.raises(InputError, match=r"a\.jsonl\.json was made with different file .*choose another output_dir"):
        annotate(tiny_head, shards, out)
    with pytest.raises(InputError, match=r"different .*bf16 \(false then, true now\)"):
        annotate(tiny_head, shards, out, bf16=True)
    annotate(tiny_head, shards, out, force=True)
    assert [document.text for document in DocumentReader(out / "a.jsonl")] == ["Another text."]


def test_a_file_that_changes_while_it_is_read(tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record would state the hash of another file than was annotated."""
    file, out = tmp_path / "a.txt", tmp_path / "out"
    file.write_text("\n".join(TEXTS))
    identity = module.identity

    def appended(path: Path) -> str:
        found = identity(path)
        with open(path, "a") as opened:
            opened.write("\nAnother document.")
        return found

    monkeypatch.setattr(module, "identity", appended)
    with pytest.raises(InputError, match=r"a\.txt changed while it was being read: run the same command again"):
        annotate(tiny_head, file, out)
    assert not (out / "a.jsonl").exists()
    monkeypatch.undo()
    annotate(tiny_head, file, out)
    assert [document.text for document in DocumentReader(out / "a.jsonl")] == [*TEXTS, "Another document."]


@pytest.mark.parametrize("format", WRITABLE)
def test_every_format_is_written(tiny_head: Path, shards: Path, format: str) -> None:
    written = annotate(tiny_head, shards, shards.parent / "out", format=format)
    assert [path.name.partition(".")[0] for path in written] == ["a", "b"]
    if format == "html":
        assert "Chemical" in written[0].read_text(encoding="utf-8")
        return
    documents = list(DocumentReader(written[0], format=format))
    found = [entity.text for document in documents for entity in document.entities]
    assert len(found) > 10


@pytest.mark.parametrize(("option", "format"), [("format", "txt"), ("format", "docx"), ("input_format", "html")])
def test_formats_of_the_other_direction_are_rejected(option: str, format: str) -> None:
    formats = WRITABLE if option == "format" else READABLE
    with pytest.raises(InputError, match=f"^{option}: must be one of {', '.join(formats)}, not '{format}'"):
        AnnotationOptions(["head"], ["a.txt"], "out", **{option: format})  # type: ignore[arg-type]


def test_the_output_folder_is_a_data_set(tiny_head: Path, tmp_path: Path) -> None:
    """Records lie in a hidden folder, which `datasets` ignores."""
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text("\n".join(TEXTS[number::2]), encoding="utf-8")
    out = tmp_path / "out"
    written = annotate(tiny_head, f"{tmp_path}/*.txt", out)
    expected = [(document.text, len(document.entities)) for path in written for document in DocumentReader(path)]
    assert sum(number for _, number in expected) > 10
    for arguments in ((str(out),), ("json", None, str(out))):
        (rows,) = datasets.load_dataset(*arguments, cache_dir=str(tmp_path / "cache")).values()
        assert rows.column_names == ["id", "text", "entities"]
        assert [(row["text"], len(row["entities"])) for row in rows] == expected
        assert {"start", "end", "text", "label", "score"} == set(rows[0]["entities"][0])


def test_parquet_and_json_lines_may_name_their_text_column(tiny_head: Path, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"abstract": TEXTS[:3], "year": [1999, 2000, 2001]})
    rows.to_parquet(tmp_path / "a.parquet")
    rows.to_json(tmp_path / "b.jsonl")
    out = tmp_path / "out"
    first, second = annotate(tiny_head, f"{tmp_path}/*.*", out, text_column="abstract")
    expected = list(Annotator(tiny_head).annotate(TEXTS[:3]))
    for written in (first, second):
        documents = list(DocumentReader(written))
        assert [document.text for document in documents] == TEXTS[:3]
        for document, entities in zip(documents, expected, strict=True):
            assert_same_entities(document.entities, entities)
    with pytest.raises(InputError, match="different text_column"):
        annotate(tiny_head, f"{tmp_path}/*.*", out)
    with pytest.raises(InputError, match=r"a\.parquet.*'text'"):
        annotate(tiny_head, tmp_path / "a.parquet", tmp_path / "other")


def test_documents_that_cannot_be_read_are_errors_or_skipped(tiny_head: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_text('{"text": "Aspirin."}\n{"text": 3}\n{"text": "Asthma."}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2"):
        annotate(tiny_head, source, out)
    assert not out.exists()
    (target,) = annotate(tiny_head, source, out, on_error="skip")
    facts = read_record(record_of(target))["facts"]
    assert facts["documents"] == 2
    assert "line 2" in facts["skipped"][0]
    with pytest.raises(InputError, match=r"a\.jsonl lacks 1 documents"):
        annotate(tiny_head, source, out)


def test_files_finished_before_an_error_are_kept(tiny_head: Path, shards: Path) -> None:
    out = shards.parent / "out"
    (shards / "c.jsonl").write_text('{"text": 3}\n{"text": "Asthma."}\n')
    with pytest.raises(InputError, match=r"c\.jsonl, line 1"):
        annotate(tiny_head, shards, out)
    before = modified(out)
    assert len(before) == 4
    annotate(tiny_head, shards, out, on_error="skip")
    after = modified(out)
    assert len(after) == 6
    assert before.items() <= after.items()


def test_impossible_requests_are_rejected(tiny_head: Path, shards: Path) -> None:
    def rejected(match: str, source: Path, output_dir: Path, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            annotate(tiny_head, source, output_dir, **options)

    out = shards.parent / "out"
    rejected("no documents at .*nothing", shards / "nothing", out)
    rejected("format: must be one of jsonl, .*, not 'xml'", shards, out, format="xml")
    rejected("input_format: must be one of txt, .*, not 'html'", shards, out, input_format="html")
    rejected("on_error: must be one of raise, skip", shards, out, on_error="stop")
    rejected("batch_size: must be at least 1, not 0", shards, out, batch_size=0)
    rejected("unknown format", shards / "notes.md", out)
    rejected("cannot write .*notes.md", shards / "a.txt", shards / "notes.md")
    (shards / "a.jsonl").write_text('{"text": "x"}')
    rejected("would both become", shards, out)
    rejected("overwritten by its annotated copy", shards / "a.jsonl", shards)
    with pytest.raises(InputError, match="models: must name at least one"):
        AnnotationOptions([], [str(shards)], str(out))
    assert not out.exists()


def test_the_command_reports_errors_in_one_line(
    tiny_head: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shards.parent / "out"
    given = ["--models", str(tiny_head), "--input", str(shards), "--output_dir", str(out)]
    assert main(["annotate", *given, "--batch_size", "0"]) == 2
    assert capsys.readouterr().err == "error: --batch_size: must be at least 1, not 0\n"
    assert main(["annotate", *given, "--format", "conll"]) == 0
    assert names(out) == ["a.conll", "b.conll"]


def test_annotated_files_can_be_annotated(tiny_head: Path, shards: Path) -> None:
    """Their records are no documents, and suffixes may be in capitals."""
    (shards / "C.TXT").write_text(TEXTS[0])
    first, second = shards.parent / "first", shards.parent / "second"
    annotate(tiny_head, shards, first)
    assert len(list((first / RECORDS).iterdir())) == 3
    for source in (first, f"{first}/*", f"{first}/**/*"):
        annotate(tiny_head, source, second)
    assert names(second) == ["C.jsonl", "a.jsonl", "b.jsonl"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names(second))


def test_a_folder_annotated_into_itself_is_done_once(tiny_head: Path, shards: Path) -> None:
    (shards / "b.jsonl.gz").unlink()
    for _ in range(2):
        annotate(tiny_head, shards, shards)
    assert names(shards) == ["a.jsonl", "a.txt", "notes.md"]
    assert names(shards / RECORDS) == ["a.jsonl.json"]


def test_progress_shows_documents_speed_and_remaining_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Aspirin.\n" * 4)
    size, shown, clock = 36, io.StringIO(), count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # one second per document
    bar = tqdm(total=2 * size, file=shown, unit="B")
    progress = module.Progress(bar)
    for files in (1, 2):
        reader = DocumentReader(tmp_path / "a.txt")
        assert len(list(progress.watch(reader, size, reader))) == 4
        bar.refresh()
        line = shown.getvalue().rpartition("\r")[2]
        remaining = r"\[\d\d:\d\d<\d\d:\d\d, "
        assert re.search(rf" {files * 36}/72 {remaining}.*, {files * 4} documents, 1\.0/s\]", line), line


def test_a_kill_leaves_no_record_of_a_replaced_file(
    tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, source, out = tmp_path / "other", tmp_path / "a.txt", tmp_path / "out"
    shutil.copytree(tiny_head, other)
    (other / "notes.txt").write_text("another model")
    source.write_text("asthma")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    annotate(tiny_head, source, out)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_record", interrupt)
        with pytest.raises(KeyboardInterrupt):
            annotate(other, source, out, force=True)
    assert names(out) == ["a.jsonl"]
    assert not (out / RECORDS / "a.jsonl.json").exists()
    annotate(tiny_head, source, out)
    with pytest.raises(InputError, match="was made with different model 0"):
        annotate(other, source, out)


@pytest.mark.slow
def test_a_killed_command_is_resumed(tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    run_until_killed(
        "/out/2.jsonl",
        ROOT / "scripts" / "annotate.py",
        *("--models", str(tiny_head), "--input", str(source), "--output_dir", str(out)),
        environment={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    results = {out / name for name in ("0.jsonl", "1.jsonl", ".records/0.jsonl.json", ".records/1.jsonl.json")}
    before = modified(out)
    others = {path.name.rpartition("-")[0] or path.name for path in before.keys() - results}
    assert others == {
        f"2.jsonl.partial-{socket.gethostname()}",
        *("annotation.json", "annotation.lock", "2.jsonl.begun"),
    }
    caplog.set_level("INFO")
    annotate(tiny_head, source, out)
    assert "2 of 4 files are already annotated" in caplog.text
    after = modified(out)
    assert names(out) == [f"{number}.jsonl" for number in range(4)]
    assert all(after[path] == before[path] for path in results)
    for number in range(4):
        assert [document.text for document in DocumentReader(out / f"{number}.jsonl")] == TEXTS


def test_hidden_and_unknown_files_of_a_folder(
    tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.txt", ".hidden.txt", "b.csv"):
        (source / name).write_text("asthma")
    assert annotate(tiny_head, source, tmp_path / "out") == [tmp_path / "out" / "a.jsonl"]
    assert f"left out, since the format is unknown: {source / 'b.csv'}" in caplog.text
