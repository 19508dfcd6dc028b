"""What `pip install .` brings: the modules, the sample and the templates, usable far from the checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from importlib import metadata, resources
from pathlib import Path

import pytest
from doc_blocks import check_output, read_blocks, substituted
from helpers import ROOT, build_tiny_bert, build_tiny_tokenizer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bioptimus_hf
from bioptimus_hf.models import save_masked_lm


def requirements() -> list[Requirement]:
    """Return what setup.cfg asks for, extras included."""
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line for text in lists for line in text.split("\n") if line and not line.startswith("%(")]
    return [Requirement(line) for line in lines]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(importlib.util.find_spec(module) for module in ("pip", "setuptools")):
        pytest.skip("pip and setuptools are needed to build a wheel")
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in ("bioptimus_hf", "model_card"):
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    for file in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / file).is_file():
            shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(source / "out"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr
    (path,) = (source / "out").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture(scope="module")
def facts(installed: Path) -> Message:
    (path,) = installed.glob("*.dist-info/METADATA")
    return Parser().parsestr(path.read_text(encoding="utf-8"))


def test_wheel_holds_all_of_the_package(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(folder).as_posix() for path in paths}

    expected = files(ROOT / "bioptimus_hf") | {f"model_card/{name}" for name in files(ROOT / "model_card")}
    assert files(installed / "bioptimus_hf") == expected
    assert {"py.typed", "sample/corpus.txt", "sample/README.md", "sample/ner/train.tsv"} <= expected
    assert "model_card/encoder.md" in expected
    # Nothing else: tests and scripts belong to the checkout.
    assert {path.name for path in installed.iterdir()} == {
        "bioptimus_hf",
        f"bioptimus_hf-{bioptimus_hf.__version__}.dist-info",
    }


OUTSIDE = """
import json, sys
from importlib import metadata, resources
import bioptimus_hf
from bioptimus_hf.corpus.dataset import load_corpus
import bioptimus_hf.cli.options
package = resources.files("bioptimus_hf")
print(json.dumps({
    "at": bioptimus_hf.__file__,
    "version": metadata.version("bioptimus-hf"),
    "documents": len((package / "sample" / "corpus.txt").read_text(encoding="utf-8").splitlines()),
    "ner": sorted(file.name for file in (package / "sample" / "ner").iterdir()),
    "cards": sorted(file.name for file in resources.files("bioptimus_hf.model_card").iterdir() if file.suffix == ".md"),
}))
"""


def test_installed_package_works_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    # -I and -S keep out the folder of the tests and the editable install; dependencies come from this environment.
    paths = [str(installed), *(path for path in sys.path if path.endswith("site-packages"))]
    code = f"import sys; sys.path[:0] = {paths!r}\n{OUTSIDE}"
    command = [sys.executable, "-I", "-S", "-c", code]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert Path(seen["at"]).is_relative_to(installed)
    assert seen["version"] == bioptimus_hf.__version__
    assert seen["documents"] >= 80
    assert seen["ner"] == ["dev.tsv", "test.tsv", "train.tsv"]
    assert "encoder.md" in seen["cards"]


@pytest.mark.slow
def test_the_method_in_python_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """The blocks of docs/python.md, one after the other, with a BERT of random weights as the base model."""
    save_masked_lm(build_tiny_bert(len(build_tiny_tokenizer())), build_tiny_tokenizer(), tmp_path / "base")
    blocks = read_blocks("docs/python.md", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    code = "".join(substituted(block.code) for block in blocks if block.language == "python")
    (tmp_path / "method.py").write_text(code, encoding="utf-8")
    paths = [str(installed), *(path for path in sys.path if path.endswith("site-packages"))]
    start = f"import runpy, sys; sys.path[:0] = {paths!r}; runpy.run_path('method.py', run_name='__main__')"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr
    for block in blocks:
        check_output(block, ended.stdout)
    for left in (
        "tokenizer",
        "contexts",
        "v0.0",
        "v0.4",
        "ner/sample/v0.4/0",
        "annotated/corpus.txt.jsonl",
        "report.md",
    ):
        assert (tmp_path / "runs" / "python" / left).exists(), left
    assert (tmp_path / "out" / "v0.4" / "model.safetensors").is_file()


def test_templates_are_found_in_the_checkout_too() -> None:
    assert (resources.files("bioptimus_hf.model_card") / "encoder.md").is_file()


def test_metadata(facts: Message, installed: Path) -> None:
    assert facts["Name"] == "bioptimus-hf"
    assert facts["Version"] == bioptimus_hf.__version__
    assert facts["License-Expression"] == "Apache-2.0"
    assert facts["License-File"] == "LICENSE"
    assert facts["Requires-Python"] == "<3.14,>=3.11"
    assert set(facts.get_all("Provides-Extra", [])) == {
        "app", "bench", "browser", "docs", "hub", "onnx",
        "openvino", "plots", "ray", "style", "test"
    }  # fmt: skip
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in (text := licence.read_text(encoding="utf-8"))
    assert "END OF TERMS AND CONDITIONS" in text
    if (ROOT / "README.md").is_file():
        assert facts["Description-Content-Type"] == "text/markdown"
        assert str(facts.get_payload()).strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_every_dependency_is_bounded_above_and_met_here() -> None:
    for requirement in requirements():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, f"{requirement} needs a lower and an upper bound"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:  # of an extra that is not installed here
            continue
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version} is installed"


def test_constraints_are_exact_and_within_the_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    pinned = {}
    for line in lines:
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"{line}: one exact version, without a local tag"
            name, _, version = line.partition("==")
            pinned[canonicalize_name(name)] = version
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} excludes the tested {pinned[name]}"


def test_pyproject_holds_the_build_system_alone() -> None:
    headings = re.findall(r"^\[.*\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["[build-system]"]


def test_version_stands_in_one_place_and_is_cited() -> None:
    version = bioptimus_hf.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "version = attr: bioptimus_hf.__version__" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
