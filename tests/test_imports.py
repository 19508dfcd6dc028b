"""A module imports only modules above it, so that the package reads from top to bottom as the pipeline it is."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bioptimus_hf

PACKAGE = Path(bioptimus_hf.__file__).parent
ORDER = (
    "hardware",
    "artifacts",
    "sources",
    "plots",
    "files",
    "corpus",
    "vocabulary",
    "segmentation",
    "kernels",
    "matching",
    "sampling",
    "contexts",
    "coverage",
    "search",
    "cluster",
    "reading",
    "distillation",
    "token_distillation",
    "inspection",
    "masking",
    "curriculum",
    "packing",
    "replay",
    "modeling",
    "trainer",
    "pretraining",
    "conll",
    "scores",
    "entity_f1",
    "decontamination",
    "documents",
    "tagging",
    "pubtator",
    "pubmed",
    "bioc",
    "rendering",
    "formats",
    "ner",
    "published",
    "results",
    "tables",
    "windows",
    "finetuning",
    "onnx_export",
    "annotation",
    "records",
    "cards",
    "staging",
    "loading",
    "retrying",
    "repository",
    "hub",
    "recipes",
)
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported_modules(source: str) -> Iterator[str]:
    """Yield the modules of this package that a source imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            below = f"bioptimus_hf.{node.module}" if node.module else "bioptimus_hf"
            names = [f"{below}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "bioptimus_hf" and rest.partition(".")[0] not in {"", "__version__", "*"}:
                yield rest.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_above_it(module: str) -> None:
    assert module in ORDER, f"give {module} its place in ORDER, below all that it imports"
    imported = set(imported_modules((PACKAGE / f"{module}.py").read_text(encoding="utf-8")))
    above = ORDER[: ORDER.index(module)]
    assert imported <= set(above), f"{module} imports {sorted(imported - set(above))}, which stand below it"


def test_this_test_sees_every_way_to_import() -> None:
    source = """
import os, bioptimus_hf.corpus
import bioptimus_hf.vocabulary as v
from bioptimus_hf import masking, __version__
from bioptimus_hf.hub import publish
from .cards import facts
from . import ner
def late():
    from bioptimus_hf.recipes import parse
"""
    assert set(imported_modules(source)) == {"corpus", "vocabulary", "masking", "hub", "cards", "ner", "recipes"}


def test_no_folder_of_modules_escapes_the_order() -> None:
    """Flat is the rule; the folders hold data alone."""
    nested = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert nested - {f"{module}.py" for module in MODULES} <= {"__init__.py", "sample/__init__.py"}


ROOT = PACKAGE.parent


@pytest.mark.parametrize("file", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda file: file.stem)
def test_what_a_benchmark_imports_of_ours_is_there(file: Path) -> None:
    """Benchmarks are run by hand, and some with packages that are not there when the tests run."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        beside = file.with_name(f"{node.module}.py")
        if beside.is_file():
            body = ast.parse(beside.read_text(encoding="utf-8")).body
            theirs = {one.name for one in body if isinstance(one, ast.ClassDef | ast.FunctionDef)}
            assert {alias.name for alias in node.names} <= theirs, f"{node.module} defines not all of these"
        elif node.module.partition(".")[0] == "bioptimus_hf":
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert set(missing) <= set(MODULES if module is bioptimus_hf else ())


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_nothing_heavy_is_loaded_by_the_package_alone() -> None:
    heavy = {"torch", "transformers", "datasets", "tokenizers", "pyarrow", "numpy", "yaml", "evaluate", "matplotlib"}
    assert not loaded_by("import bioptimus_hf; bioptimus_hf.__version__") & heavy
    assert "numpy" in loaded_by("import bioptimus_hf.vocabulary")  # the check sees what is loaded


@pytest.mark.parametrize("name", bioptimus_hf.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(bioptimus_hf, name) is not None
    assert name in dir(bioptimus_hf)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bioptimus_hf.nothing  # noqa: B018
