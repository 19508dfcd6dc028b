"""The README and docs/: their code runs, their figures are those of RESULTS.md, and their links lead somewhere."""

from __future__ import annotations

import gzip
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import datasets
import pytest
from doc_blocks import check_options, check_output, read_blocks, run, substituted
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer

import bioptimus_hf
from bioptimus_hf.cli.__main__ import COMMANDS, main
from bioptimus_hf.models import save_masked_lm

PACKAGE = ROOT / "bioptimus_hf"
SAMPLE = PACKAGE / "sample"
PAGES = ["README.md", *sorted(f"docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md"))]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
BLOCKS = {page: read_blocks(page, text) for page, text in TEXTS.items()}

NOT_RUN = {  # blocks that are marked; they are few, and each is a decision
    "README.md": 4,
    "docs/adapt.md": 1,
    "docs/annotate.md": 6,
    "docs/contexts.md": 1,
    "docs/data.md": 3,
    "docs/ner.md": 4,
    "docs/publish.md": 4,
}
STARTS_FROM_NOTHING = ("README.md", "docs/adapt.md")  # they make runs/mine
TRAINS_HEADS = ("docs/ner.md",)
FROM_A_WHEEL = ("docs/python.md",)  # run by test_packaging.py, where the package is installed


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages take for granted: text, NER data, and a finished run."""
    folder = tmp_path_factory.mktemp("docs")
    tokenizer = build_tiny_tokenizer()
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, folder / "base")
    text = (SAMPLE / "corpus.txt").read_text(encoding="utf-8")
    documents = text.splitlines()
    with gzip.open(folder / "abstracts.txt.gz", "wt", encoding="utf-8") as file:  # enough for one in a hundred
        file.writelines(f"{document} Copy {copy}.\n" for copy in range(4) for document in documents)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "abstracts.txt").write_text(text, encoding="utf-8")
    (folder / "words.txt").write_text("asthma\naspirin\n")
    lines = [json.dumps({"id": str(number), "text": document}) for number, document in enumerate(documents[:4])]
    (folder / "abstracts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "pubmed").mkdir()
    with gzip.open(folder / "pubmed" / "one.xml.gz", "wt", encoding="utf-8") as file:
        file.write(
            "<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>Aspirin in asthma."
            "</ArticleTitle></Article></MedlineCitation></PubmedArticle></PubmedArticleSet>"
        )
    for task, sentences in (("task-a", 96), ("task-b", 96), ("mine", None)):
        for file in sorted((SAMPLE / "ner").glob("*.tsv")):
            target = folder / "data" / "ner" / task / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(f"{lines}\n\n" for lines in file.read_text().strip().split("\n\n")[:sentences]))
    (folder / "scripts").symlink_to(ROOT / "scripts")
    return folder


@pytest.fixture(scope="session")
def finished(prepared: Path) -> Path:
    """The folder of a finished run whose head knows the entities that the pages show."""
    run_folder = prepared / "runs" / "mine"
    common = ["--output_dir", str(run_folder)]
    base, text = ["--base_model", str(prepared / "base")], ["--corpus", str(prepared / "abstracts.txt.gz")]
    heads = ["--tasks", f"task-a={SAMPLE / 'ner'}", "--models", "v0.4"]
    for command in (
        ["train-vocabulary", *common, *base, *text, "--size", "1200"],
        ["find-contexts", *common, *text, "--per_token", "4", "--num_proc", "1"],
        ["distill", *common],
        ["pretrain", *common, *text, "--max_steps", "4", "--max_length", "32", "--per_device_train_batch_size", "4"],
        ["finetune-ner", *common, *heads, "--seeds", "1", "--num_train_epochs", "10", "--learning_rate", "5e-3"],
    ):
        assert main(command) == 0, command
    return run_folder


def stage_in_this_process(command: list[str]) -> None:
    assert main(command[command.index("bioptimus_hf.cli") + 1 :]) == 0, command


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in FROM_A_WHEEL and any(block.is_code for block in BLOCKS[page])]
)
def test_the_code_of_a_page_runs(
    page: str,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for entry in prepared.iterdir():
        if entry.name != "runs":
            (tmp_path / entry.name).symlink_to(entry)
    if page not in STARTS_FROM_NOTHING or page == "README.md":
        run_folder = request.getfixturevalue("finished")
        shutil.copytree(run_folder / "ner" / "task-a" / "v0.4" / "0", tmp_path / "runs/demo/ner/sample/v0.4/0")
        if page not in STARTS_FROM_NOTHING:
            unwanted = shutil.ignore_patterns("ner") if page in TRAINS_HEADS else None
            shutil.copytree(run_folder, tmp_path / "runs" / "mine", ignore=unwanted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # A process for each stage costs seconds; the command's own tests start them.
    monkeypatch.setattr("bioptimus_hf.cli.run.run_stage", stage_in_this_process)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        kind, _, value = block.marker.partition(": ")
        if kind == "file":
            Path(value).write_text(substituted(block.code), encoding="utf-8")
        elif block.marker and block.is_code:
            compile(block.code, block.place, "exec") if block.language == "python" else check_options(block.code)
        elif block.is_code:
            capsys.readouterr()
            run(block, substituted(block.code), namespace)
            check_output(block, capsys.readouterr().out)


def test_every_block_is_run_or_says_why_not(record_property: pytest.RecordProperty) -> None:  # type: ignore[name-defined]
    blocks = [block for page in PAGES for block in BLOCKS[page]]
    code = [block for block in blocks if block.is_code]
    marked = [block for block in code if block.marker]
    record_property("blocks", f"{len(code)} in Python and shell, {len(code) - len(marked)} of them run")
    counts = {page: count for page in PAGES if (count := sum(block.page == page for block in marked))}
    assert counts == NOT_RUN, [f"{block.place}: {block.marker}" for block in marked]
    for block in blocks:
        named = block.language == "yaml" and block.marker.startswith("file: ")
        # A diff is that of tests/pretraining/test_published_scripts.py.
        assert block.is_code or named or block.language == "diff", (
            f"{block.place}: a block is in python, bash, text after one of these, diff, or yaml with the name of a file"
        )


def test_the_check_sees_blocks() -> None:
    page = "<!-- needs: GPU -->\n```python\n1\n```\n\n```bash\nbioptimus demo \\\n  --help  # all\n```\n"
    page += "\n```text\nout\n```\n"
    first, second = read_blocks("page", page)
    assert (first.marker, first.line, second.marker, second.output) == ("needs: GPU", 2, "", ("out",))
    with pytest.raises(AssertionError, match="not a known marker"):
        read_blocks("page", page.replace("needs: GPU", "needs: luck"))
    with pytest.raises(AssertionError, match="mark the block"):
        run(second, "make demo\n", {})
    with pytest.raises(bioptimus_hf.errors.InputError, match="unknown option --hlep"):
        check_options("bioptimus demo --hlep")


def test_make_has_the_targets_that_the_pages_name() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {name for text in TEXTS.values() for name in re.findall(r"(?:^|`)make (\w+)", text, re.M)}
    assert {"demo", "test"} <= named <= targets


def test_every_command_is_shown_on_a_page() -> None:
    assert [name for name in COMMANDS if not re.search(rf"^bioptimus {name}\b", "".join(TEXTS.values()), re.M)] == []


def test_modules_that_the_architecture_names_exist() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", TEXTS["docs/architecture.md"], re.M)
    named = [f"{room}/{module}.py" for room, modules in rows for module in re.findall(r"`(\w+)`", modules)]
    assert len(named) > 30
    assert [path for path in named if not (PACKAGE / path).is_file()] == []


def test_extras_that_the_pages_name_exist() -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    named = {name for text in TEXTS.values() for name in re.findall(r"\.\[(\w+)\]'", text)}
    assert {"onnx", "app", "ray"} <= named <= set(config["options.extras_require"])


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_the_results(page: str) -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    figures = re.findall(r"\d+\.\d+ ± \d+\.\d+|[+-]?\d+\.\d+ \([+-]\d+\.\d+ to [+-]\d+\.\d+\)", TEXTS[page])
    assert [figure for figure in figures if figure not in results] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    source = config["metadata"]["url"]
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[page]):
        path = link.partition("#")[0]
        if path.startswith(source):
            path = re.sub(rf"^{re.escape(source)}(/(blob|tree)/main)?/?", "", path)
            assert (ROOT / path).exists(), link
        elif not path.startswith("https://"):
            assert page != "README.md", f"{link} doesn't work on PyPI"
            assert (ROOT / page).with_name(path).is_file(), link


def test_the_reference_has_every_public_name() -> None:
    listed = re.findall(r"^::: bioptimus_hf\.(\w+)$", TEXTS["docs/api.md"], re.M)
    assert sorted(listed) == sorted(set(bioptimus_hf.__all__) - {"__version__"})
    for name in listed:
        value = getattr(bioptimus_hf, name)
        assert not callable(value) or (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "mkdocstrings_handlers")):
        pytest.skip("needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in set(bioptimus_hf.__all__) - {"__version__"}:
        assert f'id="bioptimus_hf.{name}"' in reference, name
