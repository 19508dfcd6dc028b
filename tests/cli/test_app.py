"""The page, its functions without a browser and the whole of it as a Space in headless Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from helpers import ROOT, load_script

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.errors import InputError

gradio = pytest.importorskip("gradio", reason="gradio is not here: install the extra `app`")

HOSTILE = (
    "Aspirin-induced asthma <b>bold</b> <img src=x onerror='window.hit=1'> ${window.hit=2} {{value}} 🧬👩‍🔬 in mice.\n"
    "</mark></p></div><script>window.hit=3</script> &amp; severe renal failure."
)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    return load_script(ROOT / "app" / "app.py")


def test_a_text_is_marked_listed_and_saved(app: ModuleType, tiny_head: Path) -> None:
    document = app.find_entities(app.load([str(tiny_head)]), HOSTILE)
    (expected,) = Annotator(tiny_head).annotate([HOSTILE])
    assert list(document.entities) == expected
    assert len(expected) > 10
    assert [row[:4] for row in app.rows(document)] == [[one.text, one.label, one.start, one.end] for one in expected]
    jsonl, pubtator = (Path(path) for path in app.saved(document))
    assert [one["text"] for one in json.loads(jsonl.read_text())["entities"]] == [one.text for one in expected]
    assert pubtator.read_text().startswith("1|t|Aspirin-induced")
    page = app.marked(document)
    assert set(re.findall(r"</?([a-z]+)", page)) == {"div", "mark", "small", "article", "p"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("", "There is no text"), (" \n\t", "There is no text"), ("a" * 2_000_001, "2,000,001 char"), ("\ud83d", "half")],
)
def test_what_cannot_be_read_is_told_in_a_line(app: ModuleType, tiny_head: Path, text: str, wrong: str) -> None:
    annotator = app.load([str(tiny_head)])
    with pytest.raises(InputError, match=wrong):
        app.find_entities(annotator, text)
    (answer,) = (one for one in app.build(annotator, ["it"]).fns.values() if one.api_name == "find_entities")
    seen, table, *buttons = answer.fn(text)
    assert re.fullmatch(rf'<p role="alert">.*{wrong}.*</p>', seen)
    assert not any(one.visible for one in [table, *buttons])


def test_of_a_long_text_the_page_shows_the_beginning(app: ModuleType) -> None:
    text = "asthma " * 150_000
    entities = [Entity(start, start + 6, "asthma", "Disease", 0.9) for start in range(0, len(text), 7)]
    document = Document("1", text, entities)
    page = app.marked(document)
    assert "first 50,000 of 1,050,000 characters" in page
    assert "first 1,000 of 150,000 entities" in page
    assert page.count("<mark") == 1 + sum(one.end <= 50_000 for one in entities)  # 1: of the legend
    assert len(app.rows(document)) == 1_000
    assert len(json.loads(Path(app.saved(document)[0]).read_text())["entities"]) == 150_000
    assert "Shown are" not in app.marked(Document("1", text[:700], entities[:100]))
    assert "Shown are the first 50,000 of 70,000 characters. The" in app.marked(
        Document("1", text[:70_000], entities[:1])
    )
    assert "Shown are the first 1,000 of 1,200 entities. The" in app.marked(Document("1", text[:8400], entities[:1200]))


def test_models_are_named_on_the_page_as_text(app: ModuleType) -> None:
    assert "<code>a/b</code>, <code>&lt;i&gt;</code>" in app.heading(["a/b", "<i>"])


def test_models_come_from_the_command_line_or_the_environment(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.delenv(app.VARIABLE, raising=False)
    with pytest.raises(InputError, match="no model"):
        app.main()
    monkeypatch.setenv(app.VARIABLE, f"{tmp_path}/one {tmp_path}/two")
    with pytest.raises(InputError, match="/one"):
        app.main()
    monkeypatch.setattr(sys, "argv", ["app.py", "--models", f"{tmp_path}/three"])
    with pytest.raises(InputError, match="/three"):
        app.main()


def test_the_space_asks_for_what_is_tested() -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = config["options"]["install_requires"].split()
    lines = (ROOT / "app" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line[0] not in "#-"] == wanted
    readme = (ROOT / "app" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(readme.split("---\n")[1])
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert header["sdk"] == "gradio"
    assert f"\ngradio=={header['sdk_version']}\n" in pinned
    assert (ROOT / "app" / header["app_file"]).is_file()
    assert len(header["short_description"]) <= 60  # the Hub refuses longer ones
    assert "BIOPTIMUS_MODELS" in readme


# Loaded by Python before the app: names every address outside this machine that is looked up or connected to.
GUARD = """
import socket
def watched(real, address_of):
    def call(*arguments, **named):
        host = address_of(*arguments)
        if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
            print("OUTSIDE", host, flush=True)
        return real(*arguments, **named)
    return call
socket.getaddrinfo = watched(socket.getaddrinfo, lambda host, *_: host)
socket.socket.connect = watched(
    socket.socket.connect, lambda _, address: address[0] if isinstance(address, tuple) else None
)
"""


@contextmanager
def a_space(folder: Path, model: Path) -> Iterator[tuple[str, Path]]:
    """Run the app as in a Space: what app/README.md says to copy, and nothing else of the checkout."""
    space = folder / "space"
    shutil.copytree(ROOT / "app", space, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "bioptimus_hf", space / "bioptimus_hf", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "BIOPTIMUS_MODELS": str(model),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "files"),
        "PYTHONPATH": str(folder / "guard"),
    }
    log = folder / "log"
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/", running, log)
        yield f"http://127.0.0.1:{port}/", log
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=300) == 0
    finally:
        running.kill()
        running.wait()


def wait_for(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert running.poll() is None, log.read_text()
        try:
            urlopen(url).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"no answer in two minutes: {log.read_text()}")


@contextmanager
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: install the extra `browser`")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on the path")
    with sync_api.sync_playwright() as playwright:
        # Its sandbox does not work as root, which containers run as; the page is our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def find(page: Any, text: str, awaited: str) -> None:
    """Write a text, click, and wait for something of the answer."""
    page.fill("#text textarea", text)
    page.click("#find")
    page.wait_for_selector(awaited)


@pytest.mark.slow
def test_in_a_browser(tiny_head: Path, tmp_path: Path) -> None:
    (expected,) = Annotator(tiny_head).annotate([HOSTILE])
    with chromium() as browser, a_space(tmp_path, tiny_head) as (url, log):
        asked: list[str] = []
        errors: list[str] = []
        backgrounds = set()
        for name, width, scheme in (("light", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 390, "light")):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 850})
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(url)
            find(page, HOSTILE, "#found mark")
            page.wait_for_selector("#table")
            page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
            backgrounds.add(page.eval_on_selector("#found article mark", "it => getComputedStyle(it).backgroundColor"))
        assert len(backgrounds) == 2  # one in the light, one in the dark
        assert str(tiny_head) in page.inner_text("h1 + p")
        check_what_is_seen(page, expected)
        find(page, " ", "#found [role=alert]")
        assert page.is_hidden("#table")
        assert page.is_hidden("#jsonl")
        page.click("text=Loss of PTEN")
        page.wait_for_function("document.querySelector('#text textarea').value.startsWith('Loss')")
        page.click("#find")
        page.wait_for_selector("#found mark")
        assert page.inner_text("#found article p").startswith("Loss")
        assert not errors
        assert not [one for one in asked if not one.startswith((url, "data:", "blob:"))]
    said = log.read_text()
    assert "OUTSIDE" not in said
    assert "Traceback" not in said
    assert not [path for path in (tmp_path / "files").rglob("entities.*")]


def check_what_is_seen(page: Any, expected: list[Entity]) -> None:
    assert page.evaluate("window.hit") is None
    assert page.locator("#found img, #found script, #found b").count() == 0
    marks = page.locator("#found article mark")
    labels = page.locator("#found article mark small").all_text_contents()
    texts = [text.removesuffix(label) for text, label in zip(marks.all_text_contents(), labels, strict=True)]
    assert list(zip(texts, labels, strict=True)) == [(one.text, one.label) for one in expected]
    table = page.inner_text("#table").split()
    assert [str(expected[0].start), str(expected[0].end)] == table[8:10]
    assert re.fullmatch(r"0\.\d{1,3}", table[10])
    assert float(table[10]) == pytest.approx(expected[0].score, abs=6e-4)  # read there by another number of threads
    with page.expect_download() as download:
        page.click("#jsonl")
    row = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert row["text"] == HOSTILE
    assert [(one["start"], one["end"]) for one in row["entities"]] == [(one.start, one.end) for one in expected]
    with page.expect_download() as download:
        page.click("#pubtator")
    assert download.value.suggested_filename == "entities.pubtator"
