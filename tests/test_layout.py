"""The package reads from top to bottom as the pipeline it is: a room imports only from rooms above it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

import bioptimus_hf

PACKAGE = Path(bioptimus_hf.__file__).parent
ROOMS = (
    "errors",
    "argument_checks",
    "storage",
    "plots",
    "progress",
    "hardware",
    "ray_session",
    "artifacts",
    "models",
    "corpus",
    "vocabulary",
    "contexts",
    "distillation",
    "pretraining",
    "ner",
    "annotation",
    "publishing",
    "cli",
)
"""Modules at the top of the package, then its sub-packages, in the order in which data flows through them."""
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")
RESOURCES = {"sample", "recipes", "model_card"}  # files, and where to find them


def imported_rooms(source: str) -> Iterator[str]:
    """Yield the rooms of this package that a source imports from, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide which room is meant"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "bioptimus_hf" and (room := rest.partition(".")[0]) not in {"", "__version__"}:
                yield room


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_from_rooms_above_it(file: Path) -> None:
    room = room_of(file)
    if room in RESOURCES:
        room = "errors"
    assert room in ROOMS, f"{room} needs a place in ROOMS, below everything it imports"
    imported = set(imported_rooms(file.read_text(encoding="utf-8")))
    allowed = {*ROOMS[: ROOMS.index(room)], room, *RESOURCES}
    assert imported <= allowed, f"{file} imports from {sorted(imported - allowed)}, which are below {room}"


def test_no_modules_import_each_other() -> None:
    """Rooms are in order; within a room, too, imports lead one way."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    imports: dict[str, set[str]] = {}
    for name, file in names.items():
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
        ]
        imported = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        imports[name] = ({str(node.module) for node in nodes} | imported) & names.keys() - {name}
    while free := {name for name in imports if not imports[name] & imports.keys()}:
        for name in free:
            del imports[name]
    assert not imports, f"a cycle among {sorted(imports)}"


def test_the_check_sees_every_way_to_import() -> None:
    source = """
import os, bioptimus_hf.corpus.dataset
import bioptimus_hf.vocabulary.training as v
from bioptimus_hf import __version__, errors
from bioptimus_hf.pretraining import masking
def late():
    from bioptimus_hf.cli.options import parse
"""
    assert set(imported_rooms(source)) == {"corpus", "vocabulary", "errors", "pretraining", "cli"}


def test_every_room_is_there_and_is_packaged() -> None:
    assert {room_of(file) for file in FILES} - RESOURCES == set(ROOMS)
    listed = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for room in ROOMS:
        assert (PACKAGE / f"{room}.py").is_file() or f"\n    bioptimus_hf.{room}\n" in listed, room


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
            assigned = [target for one in body if isinstance(one, ast.Assign) for target in one.targets]
            theirs |= {target.id for target in assigned if isinstance(target, ast.Name)}
            assert {alias.name for alias in node.names} <= theirs, f"{node.module} defines not all of these"
        elif node.module.partition(".")[0] == "bioptimus_hf":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), (
                    alias.name
                )


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_nothing_heavy_is_loaded_by_the_package_alone() -> None:
    heavy = {"torch", "transformers", "datasets", "tokenizers", "pyarrow", "numpy", "yaml", "evaluate", "matplotlib"}
    assert not loaded_by("import bioptimus_hf; bioptimus_hf.__version__") & heavy
    assert "numpy" in loaded_by("import bioptimus_hf.vocabulary.training")  # the check sees what is loaded


@pytest.mark.parametrize("name", bioptimus_hf.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(bioptimus_hf, name) is not None
    assert name in dir(bioptimus_hf)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bioptimus_hf.nothing  # noqa: B018


def test_type_checkers_see_the_names_that_are_imported_late() -> None:
    """The names stand twice in __init__.py: for type checkers, and for `__getattr__`."""
    seen = {}
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bioptimus_hf."):
            seen |= {alias.asname: str(node.module).removeprefix("bioptimus_hf.") for alias in node.names}
    assert seen == bioptimus_hf._PUBLIC


USER = """
from bioptimus_hf import Annotator, InputError, MaskingStrategy, Run, entity_scores, train_vocabulary

rate: float = MaskingStrategy("token", 0.15, True).rate
scores: dict[str, float] = entity_scores([["O"]], [["O"]])
vocabulary: int = train_vocabulary([], size=3)
MaskingStrategy("letter", 0.15, True)
Run("runs/mine", sede=1)
"""


def test_a_type_checker_sees_what_public_names_are(tmp_path: Path) -> None:
    """Names behind a module-level `__getattr__` alone would all be `Any`."""
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    others = [
        "torch",
        "transformers",
        "datasets",
        "tokenizers",
        "huggingface_hub",
        "numpy",
        "pyarrow",
        "accelerate",
        "yaml",
        "jinja2",
        "onnx",
    ]
    skipped = "\n".join(f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = True" for name in others)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nfollow_imports = silent\nignore_missing_imports = True\n{skipped}\n")
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "--cache-dir=cache", "user.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    errors = [line for line in ended.stdout.splitlines() if ": error:" in line]
    assert [line.partition(":")[2].partition(":")[0] for line in errors] == ["6", "6", "7", "8"], ended.stdout
    assert 'Missing named argument "like"' in errors[0]
    assert 'expression has type "list[str]"' in errors[1]
    assert "Literal['letter']" in errors[2]
    assert 'Unexpected keyword argument "sede"' in errors[3]


COMPILED = {"contexts/kernels.py"}  # loops that numba compiles


def functions(file: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, number of lines and number of parameters of the functions in a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield node.name, (node.end_lineno or 0) - node.lineno + 1, len(parameters)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_functions_are_short(file: Path) -> None:
    place = file.relative_to(PACKAGE).as_posix()
    longest = 40 if room_of(file) == "cli" else 60
    long = {name: lines for name, lines, _ in functions(file) if lines > longest}
    assert place in COMPILED or not long, f"functions of more than {longest} lines: {long}"
