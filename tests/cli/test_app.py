"""The app as a command, and as a Space: over HTTP, and in headless Chromium where that is installed."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from helpers import HOSTILE, ROOT

from bioptimus_hf.annotation import app
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.options import MODELS_VARIABLE
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.corpus.documents import Entity


def test_models_come_from_the_command_line_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[list[str]] = []
    monkeypatch.setattr(app, "serve", served.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")  # is restored after the test
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)
    assert main(["app"]) == 2
    assert capsys.readouterr().err.startswith("error: --models: no model given: name a NER head, or set the env")
    monkeypatch.setenv(MODELS_VARIABLE, "one two")
    assert main(["app"]) == 0
    assert main(["app", "--models", "three"]) == 0
    assert served == [["one", "two"], ["three"]]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_a_model_that_cannot_be_loaded_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio", reason="needs the extra `app`")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    assert main(["app", "--models", f"{tmp_path}/none"]) == 2
    assert re.fullmatch(rf"error: {tmp_path}/none: .*\n", capsys.readouterr().err)


def test_the_space_requires_what_is_tested() -> None:
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


# Python runs this before the app. It prints every address outside this machine that is looked up or connected to.
GUARD = """
import atexit, socket, sys
atexit.register(lambda: print("PACKAGE", *sys.modules["bioptimus_hf"].__path__, flush=True))
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


@dataclass(frozen=True)
class Space:
    url: str
    log: Path


@pytest.fixture(scope="module")
def space(tiny_head: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """The app running as a Space: with the files that app/README.md copies, and nothing else of the checkout."""
    pytest.importorskip("gradio", reason="needs the extra `app`")
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(ROOT / "app", folder / "space", ignore=shutil.ignore_patterns("__pycache__"))
    package = folder / "space" / "bioptimus_hf"
    shutil.copytree(ROOT / "bioptimus_hf", package, ignore=shutil.ignore_patterns("__pycache__", "model_card"))
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "BIOPTIMUS_MODELS": str(tiny_head),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "files"),
        "PYTHONPATH": str(folder / "guard"),
    }
    url, log = f"http://127.0.0.1:{port}/", folder / "log"
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder / "space", env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(url, running, log)
        yield Space(url, log)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=300) == 0
    finally:
        running.kill()
        running.wait()
    output_text = log.read_text()
    assert str(package) in output_text, "the package of the checkout was used"
    assert "OUTSIDE" not in output_text
    assert "Traceback" not in output_text
    assert not list((folder / "files").rglob("entities.*"))


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
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on the path")
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox doesn't work for root, which containers run as; the page is our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def find(page: Any, text: str, awaited: str) -> None:
    """Enter a text, click the button, and wait for an element of the answer."""
    page.fill("#text textarea", text)
    page.click("#find")
    page.wait_for_selector(awaited)


@pytest.mark.slow
def test_the_space_answers_over_http(space: Space, tiny_head: Path) -> None:
    (expected,) = Annotator(tiny_head).annotate([HOSTILE])
    with urlopen(space.url) as response:
        assert "Find entities" in response.read().decode()
    endpoint = f"{space.url}gradio_api/call/find_entities"
    request = Request(endpoint, json.dumps({"data": [HOSTILE]}).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        event = json.load(response)["event_id"]
    with urlopen(f"{endpoint}/{event}") as response:
        lines = response.read().decode().splitlines()
    assert lines[0] == "event: complete"
    marked, table, *files = json.loads(lines[1].removeprefix("data: "))
    assert marked.count("<mark") > len({entity.label for entity in expected})
    rows = table["value"]["data"]
    assert [row[:4] for row in rows] == [[entity.text, entity.label, entity.start, entity.end] for entity in expected]
    with urlopen(files[0]["value"]["url"]) as response:
        assert json.load(response)["text"] == HOSTILE


@pytest.mark.slow
def test_the_space_works_in_a_browser(space: Space, tiny_head: Path, tmp_path: Path) -> None:
    (expected,) = Annotator(tiny_head).annotate([HOSTILE])
    requested: list[str] = []
    errors: list[str] = []
    backgrounds = set()
    with chromium() as browser:
        for name, width, scheme in (("light", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 390, "light")):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 850})
            page.on("request", lambda request: requested.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(space.url)
            find(page, HOSTILE, "#found mark")
            page.wait_for_selector("#table")
            page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
            backgrounds.add(page.eval_on_selector("#found article mark", "it => getComputedStyle(it).backgroundColor"))
        assert len(backgrounds) == 2  # light and dark
        assert str(tiny_head) in page.inner_text("h1 + p")
        check_answer(page, expected)
        find(page, " ", "#found [role=alert]")
        assert page.is_hidden("#table")
        assert page.is_hidden("#jsonl")
        page.click("text=Loss of PTEN")
        page.wait_for_function("document.querySelector('#text textarea').value.startsWith('Loss')")
        page.click("#find")
        page.wait_for_selector("#found mark")
        assert page.inner_text("#found article p").startswith("Loss")
    assert not errors
    assert not [url for url in requested if not url.startswith((space.url, "data:", "blob:"))]


def check_answer(page: Any, expected: list[Entity]) -> None:
    assert page.evaluate("window.hit") is None
    assert page.locator("#found img, #found script, #found b").count() == 0
    marks = page.locator("#found article mark")
    labels = page.locator("#found article mark small").all_text_contents()
    texts = [text.removesuffix(label) for text, label in zip(marks.all_text_contents(), labels, strict=True)]
    assert list(zip(texts, labels, strict=True)) == [(entity.text, entity.label) for entity in expected]
    table = page.inner_text("#table").split()
    assert [str(expected[0].start), str(expected[0].end)] == table[8:10]
    assert re.fullmatch(r"0\.\d{1,3}", table[10])
    assert float(table[10]) == pytest.approx(expected[0].score, abs=6e-4)  # computed with another number of threads
    with page.expect_download() as download:
        page.click("#jsonl")
    row = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert row["text"] == HOSTILE
    offsets = [(entity["start"], entity["end"]) for entity in row["entities"]]
    assert offsets == [(entity.start, entity.end) for entity in expected]
    with page.expect_download() as download:
        page.click("#pubtator")
    assert download.value.suggested_filename == "entities.pubtator"
