"""What is behind the web page, without a server; tests/cli/test_app.py has the page itself."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
import signal
import threading
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from bioptimus_hf.annotation import app, extras, page_html, sessions
from bioptimus_hf.annotation.annotate_files import annotate_files
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.options import AnnotationOptions
from bioptimus_hf.annotation.results import Results, View, save
from bioptimus_hf.annotation.sessions import Run, Sessions, Workshop
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.formats import WRITABLE, DocumentReader
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.calibration import MinScore

TEXT = "aspirin in severe asthma of patients, renal failure of mice"


@pytest.fixture
def workshop(tiny_head: Path) -> Iterator[Workshop]:
    with Workshop(Annotator(tiny_head)) as workshop:
        yield workshop


def write_lines(path: Path, number: int, text: str = TEXT) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": f"{n} {text}", "n": n}) + "\n" for n in range(number)))
    return path


def annotated(workshop: Workshop, *files: Path, **options: str) -> Run:
    run = Run()
    deque(workshop.annotate_files(files, None, ReadOptions(annotations="optional", **options), run), 0)
    return run


def documents(run: Run, view: View | None = None) -> list[Document]:
    return list(run.results.documents(view or View()))


def test_a_text_is_marked_and_listed(workshop: Workshop, tiny_head: Path) -> None:
    document = workshop.annotate_text(HOSTILE)
    (expected,) = Annotator(tiny_head).annotate([HOSTILE])
    assert list(document.entities) == expected
    assert len(expected) > 10
    (part,) = page_html.parts(document)
    rows = [[entity.text, entity.label, round(entity.score, 3), entity.start, entity.end] for entity in expected]
    assert page_html.table_rows(document, part) == rows
    tags = re.findall(r"</?([a-z]+[0-9]?)", page_html.marked_text(document, part, heading=True))
    assert set(tags) == {"div", "mark", "small", "article", "p", "h2"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("", "text is empty"), (" \n\t", "text is empty"), ("a" * 2_000_001, "2,000,001 char"), ("\ud83d", "half")],
)
def test_texts_that_cannot_be_annotated_are_answered_in_one_line(workshop: Workshop, text: str, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong) as error:
        workshop.annotate_text(text)
    assert "\n" not in str(error.value)


def test_the_recommended_score_is_shown() -> None:
    assert page_html.recommendation({}) == page_html.recommendation({"a": 0.0}) == ""
    shown = page_html.recommendation({"a": 0.4249, "b": 0.0, "<i>": 0.9})
    assert shown == "Best F1 on the development set: 0.42 for <code>a</code>, 0.90 for <code>&lt;i&gt;</code>"


def test_what_users_give_is_escaped() -> None:
    assert "<code>a/b</code>, <code>&lt;i&gt;</code>" in page_html.heading(["a/b", "<i>"])
    run = Run(errors=["<i>"], notes=["<b>"])
    run.results.extend([Document("<u>", "x")])
    shown = page_html.summary(run) + page_html.marked_text(Document("<u>", "x"), (0, 1), heading=True)
    assert not re.search("<[ibu]>", shown)


def test_files_give_what_the_command_gives(workshop: Workshop, tiny_head: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", 300)
    (result,) = annotate_files(AnnotationOptions([str(tiny_head)], [str(file)], str(tmp_path / "found")))
    run = annotated(workshop, file)
    written = save(tmp_path / "downloads", "jsonl", run.results.documents(View()))
    for ours, theirs in zip(written.read_text().splitlines(), result.read_text().splitlines(), strict=True):
        row, expected = json.loads(ours), json.loads(theirs)
        scores = [entity.pop("score") for entity in row["entities"]]
        assert scores == pytest.approx([entity.pop("score") for entity in expected["entities"]], abs=1e-5)
        assert row == expected
    assert run.share == 1
    assert (run.errors, run.notes) == ([], [])
    assert run.results.labels.total() == sum(len(document.entities) for document in documents(run))


def test_ids_are_unique_in_several_files(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{TEXT}\n{TEXT}\n")
    run = annotated(workshop, tmp_path / "a.txt", tmp_path / "b.txt")
    assert [document.id for document in documents(run)] == ["a.txt:1", "a.txt:2", "b.txt:1", "b.txt:2"]
    whole = annotated(workshop, tmp_path / "a.txt", unit="file")
    assert [(document.id, document.text) for document in documents(whole)] == [("a", f"{TEXT}\n{TEXT}\n")]


def test_stopping_keeps_the_results_so_far(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_CHARACTERS_AT_ONCE", 500)
    run, shares = Run(), []
    for _ in workshop.annotate_files([write_lines(tmp_path / "p.jsonl", 300)], None, ReadOptions(), run):
        shares.append(run.share)
        if len(shares) == 3:
            run.stopped.set()
    assert len(shares) == 3
    assert 0 < len(run.results) < 60
    assert [document.id for document in documents(run)] == [f"d{n}" for n in range(len(run.results))]
    assert "Stopped: " in page_html.summary(run)


def test_errors_and_notes_name_the_file_alone_and_reach_its_user_alone(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    good = write_lines(tmp_path / "good.jsonl", 3)
    odd = tmp_path / "odd.jsonl"
    odd.write_text(good.read_text() + "no JSON\n")
    broken, empty, unknown = tmp_path / "broken.xml", tmp_path / "empty.txt", tmp_path / "x.foo"
    broken.write_text("<PubmedArticleSet><PubmedArticle>")
    empty.write_text("\n")
    unknown.write_bytes(b"\0\1")
    run = annotated(workshop, good, broken, odd, empty, unknown)
    assert len(run.results) == 6
    assert [error.partition(":")[0].partition(",")[0] for error in run.errors] == ["broken.xml", "empty.txt", "x.foo"]
    assert [note.partition(":")[0] for note in run.notes] == ["odd.jsonl"]
    assert "skipped 1 document" in run.notes[0]
    assert not any(re.search(r"/tmp|\n", line) for line in (*run.errors, *run.notes))
    assert not logged
    logging.getLogger("bioptimus_hf.corpus.hub").warning("about something else")
    assert [record.getMessage() for record in logged] == ["about something else"]
    run = Run()
    deque(workshop.annotate_files([odd], None, ReadOptions(), run, on_error="raise"), 0)
    assert run.errors[0].startswith("odd.jsonl, line 4:")


def test_replaced_annotations_are_counted(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.ann").write_text("T1\tChemical 0 7\taspirin\n")  # uploads are in folders of their own
    run = annotated(workshop, tmp_path / "a.txt", tmp_path / "sub" / "a.ann")
    assert [document.text for document in documents(run)] == [TEXT]
    assert run.notes == ["a.txt: replaced 1 annotation of the file"]


def test_files_are_checked_when_they_are_uploaded(workshop: Workshop, tmp_path: Path) -> None:
    good, bad = write_lines(tmp_path / "good.jsonl", 3), tmp_path / "bad.csv"
    bad.write_text("title,abstract\na,b\n")
    (line,) = workshop.check_files([good, bad], None, ReadOptions())
    assert line.startswith("bad.csv")
    assert "text_column" in line
    assert not workshop.check_files([good, bad], None, ReadOptions(text_column=["title", "abstract"]))[1:]
    assert not workshop.check_files([bad], None, ReadOptions(text_column=["title", "abstract"]))


def test_documents_are_filtered_without_the_model(tmp_path: Path) -> None:
    results = Results()
    entities = [Entity(n, n + 1, "a", "AB"[n % 2], n / 10) for n in range(10)]
    results.extend(Document(str(n), "a" * 10, entities, extra={"fields": {"n": n}}) for n in range(5))
    assert len(results) == 5
    assert results.document(4, View()) == Document("3", "a" * 10, entities, extra={"fields": {"n": 3}})
    view = View(0.35, frozenset("A"))
    assert [entity.start for entity in results.document(1, view).entities] == [4, 6, 8]
    assert not results.document(1, View(0, frozenset())).entities
    written = save(tmp_path, "jsonl", results.documents(view))
    read = list(DocumentReader(written))
    assert [[entity.start for entity in document.entities] for document in read] == [[4, 6, 8]] * 5


@pytest.mark.parametrize("format", WRITABLE)
def test_results_are_saved_in_every_format(workshop: Workshop, tmp_path: Path, format: str) -> None:
    run = annotated(workshop, write_lines(tmp_path / "in" / "p.jsonl", 3))
    path = save(tmp_path / "out", format, run.results.documents(View()))
    assert path.stat().st_size > 0
    if format == "brat":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
        path = tmp_path / "entities.brat"
    if format not in ("csv", "tsv", "html", "conll"):  # conll is tokens, the others are for people and tables
        found = [[(e.text, e.label) for e in document.entities] for document in DocumentReader(path)]
        assert found == [[(e.text, e.label) for e in document.entities] for document in documents(run)]


def test_a_document_that_a_format_cannot_hold_is_an_error_of_one_line(tmp_path: Path) -> None:
    document = Document("1", "a", extra={"fields": {"text": "b"}})
    with pytest.raises(InputError, match=r"^entities\.jsonl: document 1: its field 'text'"):
        save(tmp_path, "jsonl", [document])
    assert not list(tmp_path.iterdir())


def test_users_have_results_of_their_own(tmp_path: Path) -> None:
    users = Sessions(tmp_path)
    for name in "ab":
        users.begin(name).results.extend([Document(name, name)])
    paths = [users.save(name, "jsonl", View()) for name in "ab"]
    assert [json.loads(path.read_text())["id"] for path in paths] == ["a", "b"]
    first = users.run("a")
    users.begin("a")
    assert first is not None
    assert first.stopped.is_set()  # one run at a time
    users.end("a")
    assert users.run("a") is None
    with pytest.raises(InputError, match="annotate once more"):
        users.save("a", "jsonl", View())
    assert [path.exists() for path in paths] == [False, True]
    users.close()
    assert not list(tmp_path.iterdir())


def test_users_annotate_at_once(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_CHARACTERS_AT_ONCE", 200)
    files = [write_lines(tmp_path / str(n) / "p.jsonl", 40, f"{TEXT} {n}") for n in range(3)]
    runs = [Run() for _ in files]

    def work(file: Path, run: Run) -> None:
        deque(workshop.annotate_files([file], None, ReadOptions(), run), 0)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(files, runs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for file, run in zip(files, runs, strict=True):
        alone = annotated(workshop, file)
        assert [document.text for document in documents(run)] == [document.text for document in documents(alone)]
        assert run.results.labels == alone.results.labels


@given(st.lists(st.tuples(st.integers(0, 95), st.integers(1, 5), st.booleans()), max_size=40), st.integers(8, 60))
def test_long_documents_are_shown_in_parts_that_divide_no_entity(
    places: list[tuple[int, int, bool]], size: int
) -> None:
    text = "ab cd\nefg " * 10
    entities = [Entity(start, start + length, text[start : start + length], "A") for start, length, _ in places]
    document = Document("1", text, entities)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_html, "PART_CHARACTERS", size)
        parts = page_html.parts(document)
    assert [0, *(end for _, end in parts)] == [*(start for start, _ in parts), len(text)]
    rows = [row for part in parts for row in page_html.table_rows(document, part)]
    inner = {cut for cut, _ in parts[1:]}
    divided = [entity for entity in entities if any(entity.start < cut < entity.end for cut in inner)]
    assert len(rows) == len(entities) - len(divided)
    # Only a chain of overlapping entities as long as a part can't be kept together.
    assert not divided or len({place for start, length, _ in places for place in range(start, start + length)}) >= size


def test_all_of_a_long_text_is_shown() -> None:
    text = "asthma é " * 50_000
    entities = [Entity(start, start + 6, "asthma", "Disease", 0.9) for start in range(0, len(text), 9)]
    document = Document("1", text, entities)
    parts = page_html.parts(document)
    assert len(parts) == 3 + 1
    shown = [page_html.marked_text(document, part, heading=False) for part in parts]
    paragraphs = [re.search(r'<p dir="auto">(.*)</p>', html, re.DOTALL) for html in shown]
    plain = [re.sub("<small>.*?</small>|<[^>]*>", "", match[1]) for match in paragraphs if match]
    assert "".join(plain) == text
    assert 'title="Disease, 449991 to 449997, score 0.90"' in shown[-1]
    assert page_html.parts(Document("1", text[:100_000])) == [(0, 100_000)]


def test_importing_the_app_changes_no_environment_and_no_signal_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    importlib.reload(app)
    assert dict(os.environ) == environment
    assert signal.getsignal(signal.SIGTERM) == handler


def test_the_models_of_the_page_read_what_is_asked_for(tiny_head: Path) -> None:
    with pytest.raises(InputError, match="context: must be sentence or document, not 'page'"):
        app.serve([str(tiny_head)], context="page")  # type: ignore[arg-type]


def test_the_page_is_told_what_heads_recommend(
    tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pytest.importorskip("bioptimus_hf.annotation.page", reason="needs the extra `app`")
    head = tmp_path / "head"
    shutil.copytree(tiny_head, head)
    config = json.loads((head / "config.json").read_text())
    offer = MinScore(best=0.42, f1=0.8, f1_of_all=0.7, left_out=0.1)
    (head / "config.json").write_text(json.dumps(offer.in_configuration(config)))
    real = page.build_page
    built: list[Any] = []

    def build(*arguments: Any) -> None:
        built.append(real(*arguments))
        raise InputError("enough")

    monkeypatch.setattr(page, "build_page", build)
    with pytest.raises(InputError, match="enough"):
        app.serve([str(tiny_head), str(head)])
    (slider,) = (one for one in built[0].blocks.values() if getattr(one, "elem_id", None) == "min-score")
    assert (slider.value, slider.info) == (0, f"Best F1 on the development set: 0.42 for <code>{head}</code>")


def test_without_gradio_the_extra_is_named(tiny_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gradio is not installed: pip install 'bioptimus-hf\[app\]'"):
        app.serve([str(tiny_head)])
