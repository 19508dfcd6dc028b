from __future__ import annotations

import importlib
import json
import os
import re
import signal
from pathlib import Path

import pytest
from helpers import HOSTILE

from bioptimus_hf.annotation import app, extras
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.errors import InputError


@pytest.fixture(autouse=True)
def _gradio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    pytest.importorskip("gradio", reason="needs the extra `app`")


def test_a_text_is_marked_listed_and_saved(tiny_head: Path) -> None:
    document = app.find_entities(Annotator(tiny_head), HOSTILE)
    (expected,) = Annotator(tiny_head).annotate([HOSTILE])
    assert list(document.entities) == expected
    assert len(expected) > 10
    rows = [[entity.text, entity.label, entity.start, entity.end] for entity in expected]
    assert [row[:4] for row in app.table_rows(document)] == rows
    jsonl, pubtator = map(Path, app.save_downloads(document))
    saved = json.loads(jsonl.read_text())["entities"]
    assert [entity["text"] for entity in saved] == [entity.text for entity in expected]
    assert pubtator.read_text().startswith("1|t|Aspirin-induced")
    tags = re.findall(r"</?([a-z]+)", app.marked_text(document))
    assert set(tags) == {"div", "mark", "small", "article", "p"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("", "text is empty"), (" \n\t", "text is empty"), ("a" * 2_000_001, "2,000,001 char"), ("\ud83d", "half")],
)
def test_texts_that_cannot_be_annotated_are_answered_in_one_line(tiny_head: Path, text: str, wrong: str) -> None:
    annotator = Annotator(tiny_head)
    with pytest.raises(InputError, match=wrong):
        app.find_entities(annotator, text)
    endpoints = app.build_page(annotator, ["model"]).fns.values()
    (answer,) = (endpoint for endpoint in endpoints if endpoint.api_name == "find_entities")
    shown, table, *buttons = answer.fn(text)
    assert re.fullmatch(rf'<p role="alert">.*{wrong}.*</p>', shown)
    assert not any(component.visible for component in [table, *buttons])


def test_the_page_shows_the_beginning_of_a_long_text() -> None:
    text = "asthma " * 150_000
    entities = [Entity(start, start + 6, "asthma", "Disease", 0.9) for start in range(0, len(text), 7)]
    document = Document("1", text, entities)
    page = app.marked_text(document)
    assert "first 50,000 of 1,050,000 characters" in page
    assert "first 1,000 of 150,000 entities" in page
    assert page.count("<mark") == 1 + sum(entity.end <= 50_000 for entity in entities)  # one in the legend
    assert len(app.table_rows(document)) == 1_000
    assert len(json.loads(Path(app.save_downloads(document)[0]).read_text())["entities"]) == 150_000

    def shown(characters: int, number: int) -> str:
        return app.marked_text(Document("1", text[:characters], entities[:number]))

    assert "Showing" not in shown(700, 100)
    assert "Showing the first 50,000 of 70,000 characters. The" in shown(70_000, 1)
    assert "Showing the first 1,000 of 1,200 entities. The" in shown(8400, 1200)


def test_names_of_models_are_escaped() -> None:
    assert "<code>a/b</code>, <code>&lt;i&gt;</code>" in app.heading(["a/b", "<i>"])


def test_importing_the_page_changes_no_environment_and_no_signal_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED")
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    importlib.reload(app)
    assert dict(os.environ) == environment
    assert signal.getsignal(signal.SIGTERM) == handler


def test_without_gradio_the_extra_is_named(tiny_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gradio is not installed: pip install 'bioptimus-hf\[app\]'"):
        app.serve([str(tiny_head)])
