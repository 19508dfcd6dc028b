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
from urllib.request import urlopen

import pytest
import yaml
from helpers import HOSTILE, ROOT, assert_same_entities

from bioptimus_hf.annotation import app
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.options import MODELS_VARIABLE
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.corpus.formats import WRITABLE


def test_models_come_from_the_command_line_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[tuple[list[str], str | None]] = []
    monkeypatch.setattr(app, "serve", lambda models, labels, context: served.append((models, context)))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)
    assert main(["app"]) == 2
    assert capsys.readouterr().err.startswith("error: --models: no model given: name a NER head, or set the env")
    monkeypatch.setenv(MODELS_VARIABLE, "one two")
    assert main(["app"]) == 0
    assert main(["app", "--models", "three", "--context", "sentence"]) == 0
    assert served == [(["one", "two"], None), (["three"], "sentence")]
    assert main(["app", "--models", "three", "--context", "page"]) == 2
    assert "--context" in capsys.readouterr().err
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_a_model_that_cannot_be_loaded_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio", reason="needs the extra `app`")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["app", "--models", f"{tmp_path}/none"]) == 2
    assert re.fullmatch(rf"error: {tmp_path}/none: .*\n", capsys.readouterr().err)


def test_an_interrupt_ends_the_app_with_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "serve", interrupted)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["app", "--models", "one"]) == 0
    assert capsys.readouterr() == ("stopped: the page is no longer served\n", "")


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


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the command sets is restored after the test."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))


@dataclass(frozen=True)
class Space:
    url: str
    files: Path

    def downloads(self) -> list[Path]:
        """The files to download that are there now."""
        return sorted(self.files.rglob("entities.*"))


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
    (folder / "temporary").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "BIOPTIMUS_MODELS": str(tiny_head),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "files"),
        "TMPDIR": str(folder / "temporary"),
        "PYTHONPATH": str(folder / "guard"),
    }
    url, log = f"http://127.0.0.1:{port}/", folder / "log"
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder / "space", env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(url, running, log)
        yield Space(url, folder / "files")
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=300) == 0
    finally:
        running.kill()
        running.wait()
    # Nothing of what users got wrong, and nothing of another machine, is in the log.
    assert log.read_text().splitlines() == [
        f"Serving the page at {url} until interrupted (Ctrl-C)",
        "stopped: the page is no longer served",
        f"PACKAGE {package}",
    ]
    assert not [path for place in ("files", "temporary") for path in (folder / place).rglob("*")]


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


def write_lines(path: Path, number: int, text: str = HOSTILE) -> Path:
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": f"{n} {text}"}) + "\n" for n in range(1, number + 1)))
    return path


@pytest.mark.slow
def test_programs_call_the_space(space: Space, tiny_head: Path, tmp_path: Path) -> None:
    client_api = pytest.importorskip("gradio_client", reason="needs the extra `app`")
    client = client_api.Client(space.url, verbose=False, download_files=tmp_path / "got")
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(named) == ["/annotate", "/annotate_file"]
    (expected,) = Annotator(tiny_head).annotate([HOSTILE])
    found = client.predict(HOSTILE, api_name="/annotate")
    assert_same_entities([Entity(**row) for row in found], expected, tolerance=1e-4)
    lowest = sorted(entity.score for entity in expected)[len(expected) // 2] - 1e-3
    high = client.predict(text=HOSTILE, min_score=lowest, api_name="/annotate")
    assert [row["start"] for row in high] == [entity.start for entity in expected if entity.score >= lowest]

    table = tmp_path / "table.csv"
    table.write_text("name,title,abstract\nx,Asthma,renal failure\n")
    file = client_api.handle_file(table)
    columns = {"text_column": "title, abstract", "id_column": "name"}
    for format in WRITABLE:
        written = client.predict(file, format=format, **columns, api_name="/annotate_file")
        assert Path(written).stat().st_size > 0, format
    written = client.predict(file, **columns, api_name="/annotate_file")
    row = json.loads(Path(written).read_text())
    assert (row["id"], row["text"]) == ("x", "Asthma\nrenal failure")

    wrong: dict[str, tuple[str, dict[str, Any]]] = {
        "table.csv has no column 'text'": ("/annotate_file", {"file": file}),
        "encoding: unknown encoding": ("/annotate_file", {"file": file, "encoding": "none"}),
        "format: must be one of jsonl": ("/annotate_file", {"file": file, "format": "docx"}),
        "unit: must be": ("/annotate_file", {"file": file, "unit": "word"}),
        "format 'docx' can't be used": ("/annotate_file", {"file": file, "input_format": "docx"}),
        "The text is empty": ("/annotate", {"text": " "}),
    }
    for message, (name, arguments) in wrong.items():
        with pytest.raises(client_api.exceptions.AppError, match=message) as error:
            client.predict(**arguments, api_name=name)
        assert "\n" not in str(error.value)
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file_of_zeros:
        file_of_zeros.truncate(101 << 20)
    with pytest.raises(Exception, match=r"413|[Ff]ile size|Too Large"):
        client.predict(client_api.handle_file(huge), api_name="/annotate_file")


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
        find(page, " ", "#status [role=alert]")
        page.wait_for_selector("#results", state="hidden")
        page.click("text=Loss of PTEN")
        page.wait_for_function("document.querySelector('#text textarea').value.startsWith('Loss')")
        page.click("#find")
        page.wait_for_selector("#found mark")
        assert page.inner_text("#found article p").startswith("Loss")
    assert not errors
    assert not [url for url in requested if not url.startswith((space.url, "data:", "blob:"))]


def open_files(browser: Any, space: Space, *files: Path) -> Any:
    """Open the page at the width of a phone, and upload files."""
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(space.url)
    page.get_by_role("tab", name="Files").click()
    upload(page, *files)
    return page


def upload(page: Any, *files: Path) -> None:
    page.set_input_files("#files input[type=file]", [str(file) for file in files])
    page.wait_for_selector(f"#files >> text={files[-1].stem}")


def shown_document(page: Any, id: str) -> None:
    page.wait_for_function(f"document.querySelector('#found h2')?.innerText == {json.dumps(id)}")


def text_shown(page: Any) -> str:
    """The text of the document without the labels beside its entities."""
    text: str = page.evaluate(
        "(() => { const p = document.querySelector('#found article p').cloneNode(true);"
        " p.querySelectorAll('small').forEach(label => label.remove()); return p.textContent; })()"
    )
    return text


@pytest.mark.slow
def test_files_are_annotated_in_a_browser(space: Space, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("id,title\nt1,Asthma of mice\n")
    of_others = space.downloads()
    with chromium() as browser:
        page = open_files(browser, space, table)
        page.wait_for_selector("#problems [role=alert] >> text=has no column 'text'")
        page.fill("#columns input, #columns textarea", "title")
        page.wait_for_selector("#problems", state="hidden")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
        page.click("#find-files")
        page.wait_for_selector("#found mark")
        assert text_shown(page) == "Asthma of mice"
        assert page.is_hidden("#pager")
        page.close()

        page = open_files(browser, space, write_lines(tmp_path / "p.jsonl", 30))
        page.click("#find-files")
        shown_document(page, "d1")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
        page.click("#next")
        shown_document(page, "d2")
        page.fill("#number input", "30")
        page.press("#number input", "Enter")
        shown_document(page, "d30")
        assert page.is_disabled("#next")
        page.click("#previous")
        shown_document(page, "d29")
        number = page.locator("#found article mark").count()
        label = page.locator("#found article mark small").first.inner_text()
        page.click(f"#labels label:has-text('{label} (')")
        page.wait_for_function(f"document.querySelectorAll('#found article mark').length < {number}")
        page.click("#save")
        with page.expect_download() as download:
            page.click("#download")
        rows = [json.loads(line) for line in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]
        assert [row["id"] for row in rows] == [f"d{n}" for n in range(1, 31)]
        assert label not in {entity["label"] for row in rows for entity in row["entities"]}
        page.fill("#min-score input[type=number]", "1")
        page.press("#min-score input[type=number]", "Enter")
        page.wait_for_function("document.querySelectorAll('#found article mark').length == 0")
        page.wait_for_selector("#download", state="hidden")  # it was made with another threshold
        assert len(space.downloads()) == len(of_others) + 1
        page.close()
        for _ in range(60):
            if space.downloads() == of_others:
                break
            time.sleep(0.5)
        assert space.downloads() == of_others, "the files of a user who left are still there"


@pytest.mark.slow
def test_two_users_at_once_and_a_button_to_stop(space: Space, tmp_path: Path) -> None:
    many = write_lines(tmp_path / "many.jsonl", 20_000)
    with chromium() as browser:
        one = open_files(browser, space, many)
        one.click("#find-files")
        one.wait_for_selector("#status [role=progressbar]")
        other = open_files(browser, space, write_lines(tmp_path / "few.jsonl", 3, "asthma of mice"))
        other.click("#find-files")
        shown_document(other, "d1")
        assert text_shown(other) == "1 asthma of mice"
        assert one.is_visible("#stop")
        one.click("#stop")
        one.wait_for_selector("#status >> text=Stopped")
        shown_document(one, "d1")
        assert text_shown(one) == f"1 {HOSTILE}"
        assert 0 < int(one.locator("#number").inner_text().split()[-1].replace(",", "")) < 20_000
        upload(one, write_lines(tmp_path / "bad.foo", 1))
        one.wait_for_selector("#problems [role=alert] >> text=bad.foo")


def check_answer(page: Any, expected: list[Entity]) -> None:
    assert page.evaluate("window.hit") is None
    assert page.locator("#found img, #found script, #found b").count() == 0
    marks = page.locator("#found article mark")
    labels = page.locator("#found article mark small").all_text_contents()
    texts = [text.removesuffix(label) for text, label in zip(marks.all_text_contents(), labels, strict=True)]
    assert list(zip(texts, labels, strict=True)) == [(entity.text, entity.label) for entity in expected]
    cells = page.inner_text("#table").split()
    place = cells.index("end") + 3  # after the entity and its label
    assert float(cells[place]) == pytest.approx(expected[0].score, abs=6e-4)  # with another number of threads
    assert [str(expected[0].start), str(expected[0].end)] == cells[place + 1 : place + 3]
    page.click("#save")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "entities.jsonl"
    row = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert row["text"] == HOSTILE
    offsets = [(entity["start"], entity["end"]) for entity in row["entities"]]
    assert offsets == [(entity.start, entity.end) for entity in expected]
