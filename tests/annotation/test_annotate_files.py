from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pytest
from helpers import ROOT, assert_same_entities, run_until_killed
from tqdm import tqdm

from bioptimus_hf.annotation import annotate_files as module
from bioptimus_hf.annotation import jobs
from bioptimus_hf.annotation.annotate_files import annotate_files
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.inputs import RECORDS, record_of
from bioptimus_hf.annotation.options import AnnotationOptions
from bioptimus_hf.artifacts import read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.corpus import formats
from bioptimus_hf.corpus.formats import READABLE, WRITABLE, DocumentReader
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.calibration import MinScore

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
    assert annotate(tiny_head, shards, out) == [out / "a.txt.jsonl", out / "b.jsonl.gz.jsonl"]
    expected = list(Annotator(str(tiny_head)).annotate(TEXTS))
    first, second = list(DocumentReader(out / "a.txt.jsonl")), list(DocumentReader(out / "b.jsonl.gz.jsonl"))
    for document, entities in zip((*first, *second), expected, strict=True):
        assert_same_entities(document.entities, entities)  # each file was batched separately
    assert [document.text for document in (*first, *second)] == TEXTS
    assert second[0].extra["fields"]["year"] == 1999
    facts = read_record(record_of(out / "a.txt.jsonl"))["facts"]
    left_out = {"skipped": [], "documents_skipped": 0, "replaced": 0}
    assert facts == {"documents": 6, "entities": sum(map(len, expected[:6])), **left_out}

    before = modified(out)
    assert annotate(tiny_head, shards, out) == [out / "a.txt.jsonl", out / "b.jsonl.gz.jsonl"]
    assert modified(out) == before
    assert "2 of 2 files are already annotated" in caplog.text
    (out / "a.txt.jsonl").unlink()
    annotate(tiny_head, shards, out)
    changed = {path for path, time in modified(out).items() if time != before.get(path)}
    assert changed == {out / "a.txt.jsonl", out / RECORDS / "a.txt.jsonl.json"}


def test_other_inputs_and_settings_are_rejected_unless_forced(tiny_head: Path, shards: Path) -> None:
    out = shards.parent / "out"
    annotate(tiny_head, shards, out)
    (shards / "a.txt").write_text("Another text.")
    with pytest.raises(
        InputError, match=r"a\.txt\.jsonl\.json was made with different file .*choose another output_dir"
    ):
        annotate(tiny_head, shards, out)
    with pytest.raises(InputError, match=r"different .*bf16 \(false then, true now\)"):
        annotate(tiny_head, shards, out, precision="fast")
    annotate(tiny_head, shards, out, force=True)
    assert [document.text for document in DocumentReader(out / "a.txt.jsonl")] == ["Another text."]


def test_a_file_that_changes_while_it_is_read(tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record would state the hash of another file than was annotated."""
    file, out = tmp_path / "a.txt", tmp_path / "out"
    file.write_text("\n".join(TEXTS))
    identity = jobs.identity

    def appended(path: Path) -> str:
        found = identity(path)
        with open(path, "a") as opened:
            opened.write("\nAnother document.")
        return found

    monkeypatch.setattr(jobs, "identity", appended)
    with pytest.raises(InputError, match=r"a\.txt changed while it was being read: run the same command again"):
        annotate(tiny_head, file, out)
    assert not (out / "a.txt.jsonl").exists()
    monkeypatch.undo()
    annotate(tiny_head, file, out)
    assert [document.text for document in DocumentReader(out / "a.txt.jsonl")] == [*TEXTS, "Another document."]


@pytest.mark.parametrize("format", WRITABLE)
def test_every_format_is_written(tiny_head: Path, shards: Path, format: str) -> None:
    written = annotate(tiny_head, shards, shards.parent / "out", format=format)
    assert [path.name.partition(".")[0] for path in written] == ["a", "b"]
    if format == "html":
        assert "Chemical" in written[0].read_text(encoding="utf-8")
        return
    if format in ("csv", "tsv"):
        table = pd.read_csv(written[0], sep={"csv": ",", "tsv": "\t"}[format], keep_default_na=False)
        found = list(table["text"])
    elif format == "parquet":
        found = [entity["text"] for entities in pd.read_parquet(written[0])["entities"] for entity in entities]
    else:
        found = [entity.text for document in DocumentReader(written[0], format=format) for entity in document.entities]
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
    with pytest.raises(InputError, match=r"a\.jsonl\.jsonl lacks 1 document of"):
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
    assert names(out) == ["a.txt.conll", "b.jsonl.gz.conll"]


def test_annotated_files_can_be_annotated(tiny_head: Path, shards: Path) -> None:
    """Their records are no documents, and suffixes may be in capitals."""
    (shards / "C.TXT").write_text(TEXTS[0])
    first, second = shards.parent / "first", shards.parent / "second"
    annotate(tiny_head, shards, first)
    assert len(list((first / RECORDS).iterdir())) == 3
    for source in (first, f"{first}/*", f"{first}/**/*"):
        annotate(tiny_head, source, second)
    assert names(first) == ["C.TXT.jsonl", "a.txt.jsonl", "b.jsonl.gz.jsonl"]
    assert names(second) == [f"{name}.jsonl" for name in names(first)]
    assert all((first / name).read_bytes() == (second / f"{name}.jsonl").read_bytes() for name in names(first))


def test_a_folder_annotated_into_itself_is_done_once(tiny_head: Path, shards: Path) -> None:
    (shards / "b.jsonl.gz").unlink()
    for _ in range(2):
        annotate(tiny_head, shards, shards)
    assert names(shards) == ["a.txt", "a.txt.jsonl", "notes.md"]
    assert names(shards / RECORDS) == ["a.txt.jsonl.json"]


def test_progress_shows_documents_speed_and_remaining_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Aspirin.\n" * 4)
    size, shown, clock = 36, io.StringIO(), count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # one second per document
    bar = tqdm(total=2 * size, file=shown, unit="B")
    progress = module._Progress(bar)
    for files in (1, 2):
        reader = DocumentReader(tmp_path / "a.txt")
        assert len(list(jobs._Found(reader, reader, size, progress))) == 4
        bar.refresh()
        line = shown.getvalue().rpartition("\r")[2]
        remaining = r"\[\d\d:\d\d<\d\d:\d\d, "
        assert re.search(rf" {files * 36}/72 {remaining}.*, {files * 4} documents, 1\.0/s\]", line), line
    module._Progress(bar).add(documents=1, entities=0, size=0)
    assert bar.postfix.startswith("1 document, ")


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
        patch.setattr(jobs, "write_record", interrupt)
        with pytest.raises(KeyboardInterrupt):
            annotate(other, source, out, force=True)
    assert names(out) == ["a.txt.jsonl"]
    assert not (out / RECORDS / "a.txt.jsonl.json").exists()
    annotate(tiny_head, source, out)
    with pytest.raises(InputError, match="was made with different model 0"):
        annotate(other, source, out)


def test_an_interrupt_after_a_file_is_finished_leaves_nothing(
    tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record = jobs.write_record

    def write_and_interrupt(*arguments: Any, **named: Any) -> None:
        write_record(*arguments, **named)
        raise KeyboardInterrupt

    source, out = tmp_path / "a.txt", tmp_path / "out"
    source.write_text("asthma")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_record", write_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            annotate(tiny_head, source, out)
    before = modified(out)
    annotate(tiny_head, source, out)
    assert not list(out.rglob("*.begun"))
    done = out / "a.txt.jsonl"
    assert modified(out)[done] == before[done]  # it isn't annotated again


@pytest.mark.slow
def test_a_killed_command_is_resumed(tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    run_until_killed(
        "/out/2.txt.jsonl",
        ROOT / "scripts" / "annotate.py",
        *("--models", str(tiny_head), "--input", str(source), "--output_dir", str(out)),
        environment={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    results = {
        out / name for name in ("0.txt.jsonl", "1.txt.jsonl", ".records/0.txt.jsonl.json", ".records/1.txt.jsonl.json")
    }
    before = modified(out)
    others = {path.name.rpartition("-")[0] or path.name for path in before.keys() - results}
    assert others == {
        f"2.txt.jsonl.partial-{socket.gethostname()}",
        *("annotation.json", "annotation.lock", "2.txt.jsonl.begun"),
    }
    caplog.set_level("INFO")
    annotate(tiny_head, source, out)
    assert "2 of 4 files are already annotated" in caplog.text
    after = modified(out)
    assert names(out) == [f"{number}.txt.jsonl" for number in range(4)]
    assert all(after[path] == before[path] for path in results)
    for number in range(4):
        assert [document.text for document in DocumentReader(out / f"{number}.txt.jsonl")] == TEXTS


def test_hidden_and_unknown_files_of_a_folder(
    tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.txt", ".hidden.txt", "b.rst"):
        (source / name).write_text("asthma")
    assert annotate(tiny_head, source, tmp_path / "out") == [tmp_path / "out" / "a.txt.jsonl"]
    assert f"left out, since the format is unknown: {source / 'b.rst'}" in caplog.text


def bad_record(record: Path, kind: str) -> None:
    content = record.read_text(encoding="utf-8")
    if kind == "folder":
        record.unlink()
        record.mkdir()
    elif kind == "latin-1":
        record.write_bytes(b"\xe9" + content.encode())
    elif kind == "damaged":
        record.write_text(content.replace('"documents": ', '"documents": 1'), encoding="utf-8")
    elif kind == "another version":
        then = json.loads(content)
        del then["facts"]
        del then["checksum"]
        record.write_text(json.dumps(then), encoding="utf-8")
    else:
        record.write_text(kind, encoding="utf-8")


BAD_RECORDS = ("", "{", "{}", "[]", "null", '{"fingerprint": 1, "inputs": [], "settings": 0}', "latin-1", "damaged")


@pytest.mark.parametrize("kind", [*BAD_RECORDS, "folder", "another version"])
def test_a_broken_record_concerns_its_own_file(kind: str, tiny_head: Path, shards: Path) -> None:
    out = shards.parent / "out"
    annotate(tiny_head, shards / "a.txt", out)
    target, before = out / "a.txt.jsonl", (out / "a.txt.jsonl").read_bytes()
    bad_record(record_of(target), kind)
    with pytest.raises(InputError) as error:
        annotate(tiny_head, shards, out)
    aside = f"move {target} and {record_of(target)} away, and run the same command again"
    assert str(error.value).startswith(f"1 of 2 files could not be annotated: {record_of(target)}")
    assert str(error.value).endswith(aside)
    assert "\n" not in str(error.value)
    assert (out / "b.jsonl.gz.jsonl").is_file()
    target.rename(shards.parent / "moved")
    record_of(target).rename(shards.parent / "moved.json")
    annotate(tiny_head, shards, out)
    assert target.read_bytes() == before


@pytest.mark.parametrize("damage", ["emptied", "truncated", "edited"])
def test_a_damaged_result_is_not_taken_for_a_finished_one(damage: str, tiny_head: Path, shards: Path) -> None:
    out = shards.parent / "out"
    target, _ = annotate(tiny_head, shards, out)
    before = target.read_bytes()
    changed = {"emptied": b"", "truncated": before[:-9], "edited": before.replace(b"Chemical", b"chemical")}[damage]
    target.write_bytes(changed)
    with pytest.raises(InputError, match=r"a\.txt\.jsonl has .*: move .* away, and run the same command again"):
        annotate(tiny_head, shards, out)
    assert target.read_bytes() == changed
    annotate(tiny_head, shards, out, force=True)
    assert target.read_bytes() == before


def appended(file: Path) -> None:
    with open(file, "a") as opened:
        opened.write("\nAnother document.")


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def renamed(file: Path) -> None:
    file.with_name("new").write_text("Another document.")
    os.replace(file.with_name("new"), file)


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [appended, truncated, renamed, removed])
@pytest.mark.parametrize("moment", ["before it is read", "while it is read"])
def test_files_that_change(
    change: Callable[[Path], None], moment: str, tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the record of a result says was read is what was read; other files are annotated all the same."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    text = "\n".join(TEXTS * 200)  # more than one buffer
    for name in ("a.txt", "b.txt"):
        (source / name).write_text(text, encoding="utf-8")
    hashed, read = jobs.identity, Annotator.annotate_documents
    done: list[Path] = []

    def identity(path: Path) -> str:
        found = hashed(path)
        if path.name == "a.txt" and moment == "before it is read" and not done:
            done.append(path)
            change(path)
        return found

    def annotated(self: Annotator, documents: Any, **options: Any) -> Any:
        for number, document in enumerate(documents):
            if number == 9 and moment == "while it is read" and not done:
                done.append(source / "a.txt")
                change(source / "a.txt")
            yield document

    monkeypatch.setattr(jobs, "identity", identity)
    monkeypatch.setattr(Annotator, "annotate_documents", annotated)
    if moment == "while it is read" and change in (renamed, removed):  # the open file is still the old one
        annotate(tiny_head, source, out)
        assert [document.text for document in DocumentReader(out / "a.txt.jsonl")] == TEXTS * 200
        if change is renamed:
            with pytest.raises(InputError, match=r"a\.txt\.jsonl\.json was made with different file"):
                annotate(tiny_head, source, out)
        return
    with pytest.raises(InputError, match=r"^1 of 2 files could not be annotated: .*a\.txt (changed while|can't be)"):
        annotate(tiny_head, source, out)
    assert names(out) == ["b.txt.jsonl"]
    if change is not removed:
        annotate(tiny_head, source, out)
        assert [d.text for d in DocumentReader(out / "a.txt.jsonl")] == [
            d.text for d in DocumentReader(source / "a.txt")
        ]
    monkeypatch.setattr(Annotator, "annotate_documents", read)


def test_one_file_that_fails_does_not_stop_the_others(
    tiny_head: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shards.parent / "out"
    (shards / "0.txt.gz").touch()
    (shards / "1.txt").write_text("Aspirin.", encoding="utf-16")
    (shards / "2.txt").write_bytes(b"Aspirin. " * 1_200_000)
    (shards / "3.jsonl").write_text('{"text": 3}\n')
    (shards / "deep").mkdir()
    (shards / "deep" / "4.txt").write_bytes(b"\xff\n")
    with pytest.raises(InputError) as error:
        annotate(tiny_head, shards, out)
    message = str(error.value)
    assert message.startswith(f"5 of 7 files could not be annotated: {shards / '0.txt.gz'} is not a complete gzip file")
    assert message.endswith(" (and 2 more)")
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.partition(",")[0].partition(":")[0].partition(" is")[0] for line in errors] == [
        str(shards / name) for name in ("0.txt.gz", "1.txt", "2.txt", "3.jsonl", "deep/4.txt")
    ]
    assert names(out) == ["a.txt.jsonl", "b.jsonl.gz.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == [".records", "a.txt.jsonl", "b.jsonl.gz.jsonl"]
    assert names(out / RECORDS) == ["a.txt.jsonl.json", "b.jsonl.gz.jsonl.json"]


def test_reading_less_than_half_is_no_success(
    tiny_head: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "_KEPT_ERRORS", 1)  # a record doesn't grow with the errors
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    good, bad = '{"text": "Aspirin."}\n', '{"text": 3}\n'
    given = ["--models", str(tiny_head), "--input", str(source), "--output_dir", str(out), "--on_error", "skip"]
    for lines, status in ((good + bad, 0), (good + bad * 2, 2), (bad, 2)):
        source.write_text(lines)
        caplog.clear()
        assert main(["annotate", *given, "--force"]) == status
        assert main(["annotate", *given]) == status  # the result stays, and is no more complete
        skipped = lines.count("3")
        listed = record_of(out / "a.jsonl.jsonl")
        documents = "1 document" if skipped == 1 else "2 documents"
        assert f"skipped {documents} of 1 file: listed under facts in {listed}" in caplog.text
        facts = read_record(listed)["facts"]
        assert (len(facts["skipped"]), facts["documents_skipped"]) == (1, skipped)
        number = lines.count("Aspirin")
        if status:
            of = f"{number + skipped} document{'s' if number + skipped > 1 else ''}"
            assert f"only {number} of {of} could be read" in capsys.readouterr().err
        assert len(list(DocumentReader(out / "a.jsonl.jsonl"))) == number


def test_records_of_older_versions_list_all_skipped_documents(
    tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Aspirin."}\n{"text": 3}\n')
    (target,) = annotate(tiny_head, tmp_path / "a.jsonl", tmp_path / "out", on_error="skip")
    then = json.loads(record_of(target).read_text())
    del then["facts"]["documents_skipped"]
    del then["checksum"]
    record_of(target).write_text(json.dumps(then))
    before = modified(tmp_path / "out")
    caplog.clear()
    annotate(tiny_head, tmp_path / "a.jsonl", tmp_path / "out", on_error="skip")
    assert "skipped 1 document of 1 file" in caplog.text
    assert modified(tmp_path / "out") == before


def test_files_without_documents(tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An empty shard is nothing unusual, but a call that finds no document at all has failed."""
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text(" \n\n")
    (tmp_path / "b.txt").touch()
    for _ in range(2):
        with pytest.raises(InputError, match=r"^no text in .*a\.txt, .*b\.txt"):
            annotate(tiny_head, f"{tmp_path}/*.txt", tmp_path / "out")
    assert f"{tmp_path / 'a.txt'} has no documents" in caplog.text
    assert "annotated 0" not in caplog.text
    (tmp_path / "c.txt").write_text("Aspirin.")
    assert len(annotate(tiny_head, f"{tmp_path}/*.txt", tmp_path / "out")) == 3


def test_sub_folders_are_mirrored(tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, out = tmp_path / "in", tmp_path / "in" / "results"
    places = ["a.txt", "a.jsonl", "x/a.txt", "x/y/a.txt", "x/y/a.txt.gz", ".hidden/a.txt", "x/.a.txt", "x/y/z.rst"]
    for place in places:
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        content = b'{"text": "Aspirin."}' if place.endswith("jsonl") else b"Aspirin."
        (source / place).write_bytes(gzip.compress(content) if place.endswith("gz") else content)
    expected = [out / f"{place}.jsonl" for place in ("a.jsonl", "a.txt", "x/a.txt", "x/y/a.txt", "x/y/a.txt.gz")]
    assert annotate(tiny_head, source, out) == expected
    assert f"left out, since the format is unknown: {source / 'x/y/z.rst'}" in caplog.text
    ids = [document.id for path in expected for document in DocumentReader(path)]
    assert ids == ["a.jsonl:1", "a.txt:1", "x/a.txt:1", "x/y/a.txt:1", "x/y/a.txt.gz:1"]
    for path in expected:
        assert record_of(path) == path.parent / ".records" / f"{path.name}.json"
        assert record_of(path).is_file()
    before = modified(out)
    (out / "foreign.txt").write_text("Asthma.")
    assert annotate(tiny_head, source, out) == expected  # results are no inputs
    assert f"results go to the folder that contains them: 1 files, for example {out / 'foreign.txt'}" in caplog.text
    assert modified(out).items() >= before.items()
    assert annotate(tiny_head, f"{source}/x/**/*.txt", tmp_path / "other") == [
        tmp_path / "other" / "a.txt.jsonl",
        tmp_path / "other" / "y" / "a.txt.jsonl",
    ]
    (rows,) = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"), data_files="**/*.jsonl").values()
    assert sorted(rows["id"]) == sorted(ids)


def test_files_of_one_name_in_two_folders(tiny_head: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("Aspirin.")
    inputs = [str(tmp_path / "x"), str(tmp_path / "y" / "a.txt")]
    with pytest.raises(InputError, match=r"would both become .*a\.txt\.jsonl: name the folder that contains both"):
        annotate_files(AnnotationOptions([str(tiny_head)], inputs, str(tmp_path / "out")))
    assert len(annotate(tiny_head, tmp_path, tmp_path / "out")) == 2


def test_ids(
    tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the input stay; others are unique in all files."""
    rows = [{"id": "x", "text": "one"}, {"text": "two"}, {"id": "x", "text": "three"}, {"id": "x", "text": "four"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.jsonl").write_text('{"text": "five"}\n')
    (tmp_path / "c.conll").write_text("one\tO\n\ntwo\tO\n")
    datasets.Dataset.from_dict({"text": ["six", "seven"]}).to_parquet(tmp_path / "d.parquet")
    written = annotate(tiny_head, tmp_path, tmp_path / "out")
    ids = [document.id for path in written for document in DocumentReader(path)]
    assert ids == ["x", "a.jsonl:2", "x", "x", "b.jsonl:1", "c.conll:1", "c.conll:2", "d.parquet:1", "d.parquet:2"]
    told = [record.getMessage() for record in caplog.records if "another one has" in record.getMessage()]
    assert told == [f"{tmp_path / 'a.jsonl'}: documents with an id that another one has: 2 (for example 'x')"]
    caplog.clear()
    monkeypatch.setattr(jobs, "_COMPARED_IDS", 2)  # of x, the number of the line, and no more
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"id": "y", "text": "five"}])))
    annotate(tiny_head, tmp_path / "a.jsonl", tmp_path / "few")
    assert [
        message.partition(".jsonl: ")[2] for message in caplog.messages if "another" in message or "first" in message
    ] == [
        "documents with an id that another one has: 2 (for example 'x')",
        "documents whose id was compared with the first 2 ids only: 1 (for example 'y')",
    ]
    (written_as_pubtator, *_) = annotate(tiny_head, tmp_path / "c.conll", tmp_path / "pubtator", format="pubtator")
    assert [document.id for document in DocumentReader(written_as_pubtator)] == ["c.conll:1", "c.conll:2"]


def test_annotations_of_the_input_are_replaced_or_kept(
    tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "Aspirin provoked severe bronchoconstriction."
    (found,) = Annotator(tiny_head).annotate([text])
    assert found
    own = dict(start=found[0].start, end=found[0].end, text=found[0].text, label=found[0].label, score=0.5)
    other = dict(start=8, end=16, text="provoked", label="Verb", score=1.0)
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"text": text, "entities": [own, other]}) + "\n")
    (target,) = annotate(tiny_head, source, tmp_path / "replaced")
    (document,) = DocumentReader(target)
    assert_same_entities(document.entities, found)
    assert f"replaced 2 annotations of 1 input file, for example of {source}: use keep to keep them" in caplog.text
    caplog.clear()
    (target,) = annotate(tiny_head, source, tmp_path / "kept", keep=True)
    (document,) = DocumentReader(target)
    spans = [(entity.start, entity.end, entity.label) for entity in document.entities]
    assert spans == sorted({(8, 16, "Verb"), *((e.start, e.end, e.label) for e in found)})
    assert next(e.score for e in document.entities if e.start == own["start"]) == 0.5  # the input's own
    assert "replaced" not in caplog.text
    with pytest.raises(InputError, match=r"keep \(true then, false now\)"):
        annotate(tiny_head, source, tmp_path / "kept")


def test_kept_relations(tiny_head: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.pubtator"
    source.write_text("1|t|Aspirin in asthma.\n1\t0\t7\tAspirin\tDrug\tD1\n1\tCID\tD1\tD2\n\n")
    (target,) = annotate(tiny_head, source, tmp_path / "out", format="pubtator", keep=True)
    lines = target.read_text().splitlines()
    assert "1\t0\t7\tAspirin\tDrug\tD1" in lines
    (target,) = annotate(tiny_head, source, tmp_path / "replaced", format="pubtator")
    assert "Drug" not in target.read_text()


def test_results_of_older_versions_stay(tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("Aspirin.")
    (target,) = annotate(tiny_head, tmp_path, tmp_path)
    old = tmp_path / "a.jsonl"
    target.rename(old)
    record_of(target).rename(record_of(old))
    before = old.read_bytes()
    assert annotate(tiny_head, tmp_path, tmp_path) == [target]  # the old result is no input
    assert f"for example {old} instead of a.txt.jsonl, annotated again: move the old away" in caplog.text
    assert old.read_bytes() == before == target.read_bytes()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_a_text_without_a_line_break(
    name: str, tiny_head: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = b"Aspirin. " * 3_000_000
    content = b'{"text": "%s"}\n{"text": "x"}' % content if "jsonl" in name else content + b"\nx\n"
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    given = ["--models", str(tiny_head), "--input", str(tmp_path / name), "--output_dir", str(tmp_path / "out")]
    assert main(["annotate", *given]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path / name}, line 1: a document of 27.0 MB, more than the limit of 10: put")
    assert line.endswith("or set --max_document_megabytes")
    assert not (tmp_path / "out").exists()
    assert main(["annotate", *given, "--on_error", "skip"]) == 0
    assert len(list(DocumentReader(tmp_path / "out" / f"{name}.jsonl"))) == 1


def test_other_encodings(tiny_head: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Aspirin in sévère asthma.\n", encoding="utf-16")
    with pytest.raises(InputError, match="UTF-16 text: convert the file, or set encoding to utf-16"):
        annotate(tiny_head, tmp_path / "a.txt", tmp_path / "out", on_error="skip", errors="replace")
    (target,) = annotate(tiny_head, tmp_path / "a.txt", tmp_path / "out", encoding="UTF16")
    assert [document.text for document in DocumentReader(target)] == ["Aspirin in sévère asthma."]
    assert annotate(tiny_head, tmp_path / "a.txt", tmp_path / "out", encoding="utf_16") == [target]  # another spelling
    (tmp_path / "b.txt").write_bytes(b"s\xe9v\xe8re\n")
    (target,) = annotate(tiny_head, tmp_path / "b.txt", tmp_path / "out", errors="replace", force=True)
    assert [document.text for document in DocumentReader(target)] == ["s\ufffdv\ufffdre"]
    with pytest.raises(InputError, match="encoding: unknown encoding 'klingon'"):
        annotate(tiny_head, tmp_path / "b.txt", tmp_path / "out", encoding="klingon")


def test_speed_leaves_out_the_time_to_load_models(
    tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = {"now": 0.0}

    class Slow(Annotator):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            clock["now"] += 1000

        def annotate_documents(self, *arguments: Any, **options: Any) -> Any:
            clock["now"] += 2
            return super().annotate_documents(*arguments, **options)

    monkeypatch.setattr(jobs, "Annotator", Slow)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock["now"]))
    (tmp_path / "a.txt").write_text("The patients.")
    caplog.set_level("INFO")
    annotate(tiny_head, tmp_path / "a.txt", tmp_path / "out")
    assert "annotated 1 document with 1 entity in" in caplog.text
    assert "0.5 documents per second" in caplog.text


def put_brat(folder: Path) -> Path:
    """Write a folder of brat with two documents, one of them in a sub-folder, and a configuration."""
    (folder / "sub").mkdir(parents=True)
    for name, text in (("x", TEXTS[0]), ("sub/y z", TEXTS[1])):
        (folder / f"{name}.txt").write_text(f"{text}\r\n", encoding="utf-8", newline="")
        (folder / f"{name}.ann").write_text(f"T1\tOld 0 4\t{text[:4]}\n", encoding="utf-8")
    (folder / "annotation.conf").write_text("[entities]\nOld\n", encoding="utf-8")
    return folder


def test_a_folder_of_brat_keeps_its_names(tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, out = put_brat(tmp_path / "in"), tmp_path / "out"
    written = annotate(tiny_head, source, out, format="brat")
    names = ["sub/y z.ann", "sub/y z.txt", "x.ann", "x.txt"]
    assert [path.relative_to(out).as_posix() for path in written] == ["sub/y z.txt", "x.txt"]
    found = [path for path in out.rglob("*") if path.is_file() and ".records" not in path.parts]
    assert sorted(path.relative_to(out).as_posix() for path in found) == names
    assert (out / "x.txt").read_bytes() == (source / "x.txt").read_bytes()
    assert [document.id for document in DocumentReader(out / "x.txt")] == ["x"]
    assert any("replaced 2 annotations of 2 input files" in message for message in caplog.messages)
    assert not any(".conf" in message or ".ann" in message for message in caplog.messages)
    caplog.clear()
    before = {path: path.stat().st_mtime_ns for path in found}
    annotate(tiny_head, source, out, format="brat")
    assert {path: path.stat().st_mtime_ns for path in found} == before
    with open(out / "x.ann", "a", encoding="utf-8") as file:
        file.write("T99\tMine 0 4\tbyhand\n")
    with pytest.raises(InputError, match=r"x\.ann has [\d,]+ bytes instead of"):
        annotate(tiny_head, source, out, format="brat")
    # Nothing that someone has edited is overwritten unasked.
    (out / "x.txt").unlink()
    record_of(out / "x.txt").unlink()
    with pytest.raises(InputError, match=r"x\.ann exists but wasn't annotated here"):
        annotate(tiny_head, source, out, format="brat")
    with pytest.raises(InputError, match=r"x\.txt exists but wasn't annotated here"):
        annotate(tiny_head, source, source, format="brat")


def test_kept_annotations_of_brat_belong_to_the_input(tiny_head: Path, tmp_path: Path) -> None:
    source = put_brat(tmp_path / "in")
    for keep in (False, True):
        out = tmp_path / f"out-{keep}"
        annotate(tiny_head, source, out, format="jsonl", keep=keep)
        (document,) = DocumentReader(out / "x.txt.jsonl")
        assert ("Old" in {entity.label for entity in document.entities}) == keep
        assert document.id == "x"
    (source / "x.ann").write_text("", encoding="utf-8")
    annotate(tiny_head, source, tmp_path / "out-False", format="jsonl")
    with pytest.raises(InputError, match="annotations"):
        annotate(tiny_head, source, tmp_path / "out-True", format="jsonl", keep=True)


def test_a_file_of_documents_becomes_a_folder_of_brat(
    tiny_head: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, out = tmp_path / "a.txt", tmp_path / "out"
    file.write_text("\n".join(TEXTS), encoding="utf-8")
    (folder,) = annotate(tiny_head, file, out, format="brat")
    assert folder == out / "a.txt.brat"
    documents = list(DocumentReader(folder))
    assert {document.text for document in documents} == set(TEXTS)
    assert {document.id for document in documents} == {f"a.txt:{number + 1}" for number in range(len(TEXTS))}
    assert sum(len(document.entities) for document in documents) > 10
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    annotate(tiny_head, file, out, format="brat")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    first = next(path for path in sorted(before) if path.suffix == ".ann" and path.stat().st_size)
    content = first.read_bytes()
    first.write_bytes(content[:-2] + b"x\n")
    with pytest.raises(InputError, match="has changed since it was written"):
        annotate(tiny_head, file, out, format="brat")
    # What someone has edited is kept.
    annotate(tiny_head, file, out, format="brat", force=True)
    (kept,) = out.glob("a.txt.brat.kept-*")
    assert (kept / first.name).read_bytes() == content[:-2] + b"x\n"
    assert first.read_bytes() == content
    # Results within the input are no inputs.
    caplog.clear()
    assert annotate(tiny_head, tmp_path, out, format="brat") == [folder]


def test_texts_that_are_documents_become_pairs_of_brat(tiny_head: Path, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text("\n".join(TEXTS[number : number + 3]), encoding="utf-8")
    written = annotate(tiny_head, f"{tmp_path}/*.txt", tmp_path / "out", format="brat", unit="file")
    assert names(tmp_path / "out") == ["0.ann", "0.txt", "1.ann", "1.txt"]
    assert [document.text for path in written for document in DocumentReader(path)] == [
        "\n".join(TEXTS[number : number + 3]) for number in range(2)
    ]


def test_a_type_that_brat_cannot_hold(tiny_head: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    with pytest.raises(InputError, match="'my type' can't be a type in brat"):
        annotate(tiny_head, tmp_path / "a.txt", tmp_path / "out", format="brat", labels=["Chemical=my type"])
    assert not list((tmp_path / "out").rglob("*.brat*"))


@pytest.mark.parametrize(("second", "recorded"), [(0.6, [0.2, 0.6]), (0.2, 0.2)])
def test_the_best_least_score_of_every_head_is_recorded(
    second: float, recorded: Any, tiny_head: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    heads = [shutil.copytree(tiny_head, tmp_path / name) for name in ("one", "other")]
    for head, best in zip(heads, (0.2, second), strict=True):
        config = json.loads((head / "config.json").read_text())
        (head / "config.json").write_text(json.dumps(MinScore(best, 0.9, 0.8, 0.1).in_configuration(config)))
    given = [str(head) for head in heads], [str(tmp_path / "a.txt")], str(tmp_path / "out")
    (path,) = annotate_files(AnnotationOptions(*given, min_score="best"))
    assert read_record(record_of(path))["settings"]["min_score"] == recorded


def test_the_least_score_is_a_setting(tiny_head: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (path,) = annotate(tiny_head, tmp_path / "a.txt", tmp_path / "out")
    scores = [entity.score for document in DocumentReader(path) for entity in document.entities]
    least = sorted(scores)[len(scores) // 2]
    (path,) = annotate(tiny_head, tmp_path / "a.txt", tmp_path / "some", min_score=least)
    kept = [entity.score for document in DocumentReader(path) for entity in document.entities]
    assert kept == [score for score in scores if score >= least]
    assert read_record(record_of(path))["settings"]["min_score"] == least
    with pytest.raises(InputError, match="was made with different min_score"):
        annotate(tiny_head, tmp_path / "a.txt", tmp_path / "some", min_score=1.0)
    with pytest.raises(InputError, match="was made with different context"):
        annotate(tiny_head, tmp_path / "a.txt", tmp_path / "some", min_score=least, context="sentence")
    # Kept annotations of the input have no score to be judged by.
    (again,) = annotate(tiny_head, path, tmp_path / "kept", keep=True, min_score=1.0)
    assert [entity.score for document in DocumentReader(again) for entity in document.entities] == kept
    for wrong in (-1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"^min_score: must be between 0 and 1"):
            annotate(tiny_head, tmp_path / "a.txt", tmp_path / "out", min_score=wrong)
    with pytest.raises(InputError, match=r"^context: must be sentence or document, not 'page'"):
        annotate(tiny_head, tmp_path / "a.txt", tmp_path / "out", context="page")
