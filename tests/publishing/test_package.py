"""Packages of heads: what is in the wheel, and that it works by its name once it is installed."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import save_architecture
from conftest import Command
from helpers import ROOT, assert_same_entities, build_tiny_head, build_tiny_tokenizer
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from bioptimus_hf import models
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.artifacts import RECORD, read_record, write_json, write_record
from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import Source, find_model, load_token_classifier, save_head
from bioptimus_hf.publishing.options import PackageOptions
from bioptimus_hf.publishing.package import REQUIREMENTS, package_head
from bioptimus_hf.storage import manifest_of

TEXTS = (ROOT / "bioptimus_hf" / "sample" / "corpus.txt").read_text(encoding="utf-8").splitlines()[:8]
NAME = "Disease.finder"
TESTS = {
    "sample": {"f1": 0.81, "precision": 0.8, "recall": 0.82, "support": 960.0},
    "other": {"f1": 0.6, "precision": 0.5, "recall": 0.75, "support": 8.0},
}


def save_tiny_head(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    head = build_tiny_head(layers=1, seed=seed)
    head.config.update(config)
    save_head(head, build_tiny_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The joint head of a run, on its version 0.4."""
    folder = save_tiny_head(tmp_path_factory.mktemp("run") / "0")
    scores = {"task": "joint", "model": "v0.4", "seed": 7, "scorer": "strict", "tests": TESTS}
    write_json(folder / "scores.json", scores)
    inputs = {"model": "name:owner/encoder@abc", "train": "sha256:0"}
    write_record(folder / RECORD, inputs, {"seed": 7}, facts={}, seconds=1, sources={"model": Path("/home/somebody")})
    return folder


@pytest.fixture(scope="module")
def options(head: Path, tmp_path_factory: pytest.TempPathFactory) -> PackageOptions:
    folder = tmp_path_factory.mktemp("wheels")
    (folder / "terms.txt").write_text("You may.\n")
    return PackageOptions(
        str(head),
        NAME,
        "apache-2.0 or LicenseRef-mine",
        license_file=str(folder / "terms.txt"),
        output_dir=str(folder / "dist"),
    )


@pytest.fixture(scope="module")
def wheel(options: PackageOptions) -> Path:
    return package_head(options)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in by pip, which compares it with its hashes."""
    pytest.importorskip("pip")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    command += ["--disable-pip-version-check", "--target", str(target), str(wheel)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return target


def assert_nearly_the_same(found: Sequence[list[Entity]], expected: Sequence[list[Entity]]) -> None:
    """Half precision may change a few entities of random weights, for which the scores of tags are close together."""
    here, there = (
        {(number, entity.start, entity.end, entity.label) for number, of_text in enumerate(texts) for entity in of_text}
        for texts in (found, expected)
    )
    assert len(there) > 50
    assert len(here & there) >= 0.98 * max(len(here), len(there))


@pytest.fixture
def installed(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    return site


def test_the_wheel_is_as_the_specifications_say(wheel: Path) -> None:
    name, version, _, tags = parse_wheel_filename(wheel.name)
    assert (name, str(version), [str(tag) for tag in tags]) == ("disease-finder", "0.4", ["py3-none-any"])
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        contents = {name: archive.read(name) for name in archive.namelist()}
    info = "disease_finder-0.4.dist-info"
    assert list(contents)[-1] == f"{info}/RECORD"
    rows = {row[0]: row[1:] for row in csv.reader(contents[f"{info}/RECORD"].decode().splitlines())}
    assert rows.keys() == contents.keys()
    for path, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        expected = ["", ""] if path.endswith("/RECORD") else [f"sha256={digest}", str(len(content))]
        assert rows[path] == expected, path
    metadata = Metadata.from_email(contents[f"{info}/METADATA"], validate=True)
    assert (metadata.name, str(metadata.version)) == ("disease-finder", "0.4")
    assert metadata.summary == "NER head that finds Chemical, Disease"
    assert metadata.license_expression == "Apache-2.0 OR LicenseRef-mine"
    assert metadata.license_files == ["LICENSE"]
    assert contents[f"{info}/licenses/LICENSE"] == b"You may.\n"
    assert {str(one) for one in metadata.requires_dist or ()} == {str(Requirement(one)) for one in REQUIREMENTS}


def test_the_bounds_of_a_package_are_our_own() -> None:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert REQUIREMENTS[1] in config["options"]["install_requires"].split()
    assert all({one.operator for one in Requirement(text).specifier} == {">=", "<"} for text in REQUIREMENTS)


def test_the_card_says_what_the_run_recorded(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        card = archive.read("disease_finder/packaged_head/README.md").decode()
        everything = b"".join(map(archive.read, archive.namelist()))
    assert "| sample | 81.00 % | 80.00 % | 82.00 % | 960 |\n| other | 60.00 % |" in card
    assert "Fine-tuned on `owner/encoder@abc`" in card
    assert "with seed 7" in card
    assert "mentions of Chemical and Disease" in card
    assert "Apache-2.0 OR LicenseRef-mine" in card
    assert b"/home/" not in everything
    assert str(ROOT).encode() not in everything


@pytest.mark.parametrize(
    ("min_score", "said"),
    [
        ({"best": 0.62, "f1": 0.84, "f1_of_all": 0.83, "left_out": 0.1}, "a score below 0.62 changed F1"),
        ({"best": 0.0, "f1": 0.83, "f1_of_all": 0.83, "left_out": 0.0}, None),
        (0.5, None),  # of another program
    ],
)
def test_the_card_states_the_least_score_if_it_leaves_out_anything(
    options: PackageOptions, tmp_path: Path, min_score: Any, said: str | None
) -> None:
    head = save_tiny_head(tmp_path / "head", min_score=min_score)
    with zipfile.ZipFile(package_head(replace(options, head=str(head), output_dir=str(tmp_path)))) as archive:
        card = archive.read("disease_finder/packaged_head/README.md").decode()
    assert said in card if said else "a score below" not in card


def test_an_installed_head_is_used_by_its_name(installed: Path, head: Path) -> None:
    expected = list(Annotator(head).annotate(TEXTS))
    found = list(Annotator("disease-finder").annotate(TEXTS))
    module = importlib.import_module("disease_finder")
    try:
        loaded = list(module.load(batch_size=3).annotate(TEXTS))
        assert module.__version__ == "0.4"
    finally:
        del sys.modules["disease_finder"]
    assert_nearly_the_same(found, expected)
    for one, other in zip(found, loaded, strict=True):
        assert_same_entities(other, one)
    assert find_model("Disease_Finder") == find_model("disease-finder")


@pytest.mark.slow
def test_an_installed_head_works_in_another_environment(wheel: Path, head: Path, tmp_path: Path) -> None:
    """The environment has the wheel, and finds this project and its dependencies where they are installed here."""
    pytest.importorskip("pip")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    site = Path(sysconfig.get_path("purelib", vars={"base": tmp_path / "venv"}))
    (site / "here.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    (tmp_path / "a.txt").write_text(TEXTS[0])
    load = "import disease_finder; print(len(next(disease_finder.load().annotate([open('a.txt').read()]))))"
    annotate = ["annotate", "--models", "disease-finder", "--input", "a.txt", "--output_dir", "found"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    said: list[str] = []
    for command in (install, [python, "-c", load], [python, "-m", "bioptimus_hf.cli", *annotate]):
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path, env=environment
        )
        assert ended.returncode == 0, ended.stderr
        said = [*said, ended.stdout]
    found = json.loads((tmp_path / "found" / "a.txt.jsonl").read_text())["entities"]
    (expected,) = Annotator(head).annotate([TEXTS[0]])
    assert int(said[1]) == len(found) == pytest.approx(len(expected), abs=1)


def test_an_installed_head_may_be_packaged_again(
    installed: Path, options: PackageOptions, wheel: Path, tmp_path: Path
) -> None:
    """Its own name isn't taken, and it can be packaged under another one."""
    assert package_head(replace(options, output_dir=str(tmp_path))).read_bytes() == wheel.read_bytes()
    other = package_head(replace(options, head="disease-finder", name="other-finder", output_dir=str(tmp_path)))
    weights = "packaged_head/model.safetensors"
    with zipfile.ZipFile(other) as archive, zipfile.ZipFile(wheel) as first:
        assert archive.read(f"other_finder/{weights}") == first.read(f"disease_finder/{weights}")
        inputs = json.loads(archive.read("other_finder/packaged_head/made.json"))["inputs"]
    assert inputs == {"model": find_model("disease-finder").identity}


def test_the_command_records_name_version_and_hash(installed: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    annotate = ("annotate", "--models", "disease-finder", "--input", "a.txt", "--output_dir", "found")
    command(*annotate)
    record = read_record(tmp_path / "found" / ".records" / "a.txt.jsonl.json")
    name, _, digest = record["inputs"]["model 0"].partition("@")
    assert name == "package:disease-finder==0.4"
    assert len(digest) == 32
    assert "already annotated" in command(*annotate).log
    command("check", "found")
    # Given by its folder it is the same model; another head is another one.
    assert find_model(installed / "disease_finder" / "packaged_head").identity == record["inputs"]["model 0"]
    save_tiny_head(tmp_path / "disease-finder", seed=1)  # a folder comes first
    assert find_model("disease-finder") == Source("disease-finder")
    assert "was made with different model 0 (" in command(*annotate, status=2).error


@pytest.mark.parametrize("damage", ["changed", "record", "missing"])
def test_a_damaged_package_is_refused(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    for file in site.rglob("*"):
        target = tmp_path / file.relative_to(site)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "disease_finder" / "packaged_head" / ("config.json" if damage == "changed" else RECORD)
    if damage == "missing":
        file.unlink()
    else:
        file.write_text(file.read_text().replace("e", "E", 1))
    with pytest.raises(InputError, match=r"install its package again \(pip install --force-reinstall\)$") as error:
        Annotator("disease-finder")
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_head_gives_the_same_bytes(
    options: PackageOptions, wheel: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = package_head(replace(options, output_dir=str(tmp_path)))
    assert again.read_bytes() == wheel.read_bytes()
    caplog.set_level("INFO")
    before = wheel.stat().st_mtime_ns
    assert package_head(options) == wheel
    assert wheel.stat().st_mtime_ns == before
    assert f"{wheel}: already built" in caplog.text


def test_another_wheel_is_replaced_only_with_force(options: PackageOptions, wheel: Path, tmp_path: Path) -> None:
    other = replace(options, output_dir=str(tmp_path), license="MIT")
    path = package_head(other)
    mit = path.read_bytes()
    with pytest.raises(InputError, match=r"exists with other contents: .*use force to replace it"):
        package_head(replace(other, license=options.license))
    assert path.read_bytes() == mit
    package_head(replace(other, license=options.license, force=True))
    assert path.read_bytes() == wheel.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_weights_are_in_half_precision_and_load_in_float32(head: Path, installed: Path) -> None:
    folder = Path(find_model("disease-finder").folder)
    stored, original = load_file(folder / "model.safetensors"), load_file(head / "model.safetensors")
    assert {values.dtype for values in stored.values()} == {torch.float16}
    assert stored.keys() == original.keys()
    for name, values in original.items():
        torch.testing.assert_close(stored[name].float(), values, rtol=2**-11, atol=2**-25)
    for model in (load_token_classifier(folder), AutoModelForTokenClassification.from_pretrained(folder)):
        assert model.dtype == torch.float32


def test_weights_beyond_the_range_of_float16_are_kept(
    options: PackageOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_tiny_head(layers=0)
    with torch.no_grad():
        model.classifier.bias[0] = 1e5
    save_head(model, build_tiny_tokenizer(), tmp_path / "head")
    path = package_head(replace(options, head=str(tmp_path / "head"), output_dir=str(tmp_path)))
    assert (
        "kept 1 tensor in float32, with values beyond the range of float16: for example classifier.bias" in caplog.text
    )
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    packaged = tmp_path / "disease_finder" / "packaged_head"
    assert load_token_classifier(packaged).classifier.bias[0] == 1e5
    assert "but for 1 tensor with values beyond its range" in (packaged / "README.md").read_text()
    assert "0.1.0" in path.name  # of a head that isn't from a run


def test_a_head_from_the_hub_of_another_architecture(
    options: PackageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_architecture("roberta", tmp_path / "head")
    settings = json.loads((tmp_path / "head" / "tokenizer_config.json").read_text())
    # As in many tokenizers on the Hub.
    settings["model_max_length"] = 24
    settings |= {"name_or_path": "/home/them/model", "special_tokens_map_file": "/root/.cache/map.json"}
    write_json(tmp_path / "head" / "tokenizer_config.json", settings)
    local = list(Annotator(tmp_path / "head").annotate(TEXTS))
    hub = Source(str(tmp_path / "head"), "them/head@abc")
    monkeypatch.setattr(models, "_download", lambda *_: hub)
    path = package_head(replace(options, head="them/head", output_dir=str(tmp_path), version="2"))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    packaged = tmp_path / "disease_finder" / "packaged_head"
    assert read_record(packaged)["inputs"] == {"model": "name:them/head@abc"}
    assert "https://huggingface.co/them/head/tree/abc" in (packaged / "README.md").read_text()
    assert_nearly_the_same(list(Annotator(packaged).annotate(TEXTS)), local)
    assert json.loads((packaged / "tokenizer_config.json").read_text())["model_max_length"] == 24
    assert not [file for file in packaged.iterdir() if b"them/model" in file.read_bytes()]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"license": " "}, "license: the licence of the weights is missing: give an SPDX identifier"),
        ({"license": "free"}, "license: 'free' is not a licence that SPDX knows"),
        ({"version": "new"}, "version: 'new' is not a version"),
        ({"name": "disease finder"}, "name: 'disease finder' can't name a package"),
        ({"name": "-x"}, "name: '-x' can't name a package"),
        ({"name": "3d"}, "name: '3d' can't name a package, since `import 3d` is not Python"),
        ({"name": "Class"}, "name: 'Class' can't name a package, since `import class`"),
        ({"output_dir": ""}, "output_dir: is empty"),
        ({"name": "numpy"}, "name: numpy .* is installed and isn't a head"),
        ({"name": "scikit.learn"}, "name: scikit-learn .* is installed"),
        ({"name": "json"}, "name: `import json` already imports another module"),
        ({"head": "nobody/none"}, "nobody/none: not a local model folder and not available on the Hub"),
        ({"head": "none"}, "none: not a local model folder, not an installed package with a head and not available on"),
        ({"head": str(ROOT)}, f"{ROOT}: no model can be loaded from this folder"),
        ({"license_file": "none"}, "license_file: none can't be read"),
    ],
)
def test_what_can_not_become_a_package(
    options: PackageOptions, tmp_path: Path, changes: dict[str, str], error: str
) -> None:
    with pytest.raises(InputError, match=rf"^{error}") as caught:
        package_head(replace(options, **{"output_dir": str(tmp_path / "dist"), **changes}))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_namespace_of_another_package_is_taken_and_a_folder_is_not(
    options: PackageOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("theirs/part", "own_folder", "their_part-1.dist-info"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "their_part-1.dist-info" / "METADATA").write_text("Name: their-part\nVersion: 1\n")
    (tmp_path / "their_part-1.dist-info" / "top_level.txt").write_text("theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="name: `import theirs` already imports another module"):
        package_head(replace(options, name="theirs"))
    path = package_head(replace(options, name="own-folder", output_dir=str(tmp_path / "dist")))
    assert path.name == "own_folder-0.4-py3-none-any.whl"


def test_heads_that_are_not_fit_for_a_package(options: PackageOptions, head: Path, tmp_path: Path) -> None:
    dist = {"output_dir": str(tmp_path / "dist")}
    private = save_tiny_head(tmp_path / "private", note="/home/somebody/secret")
    with pytest.raises(InputError, match=r"config\.json would publish '/home/somebody', a path of this machine"):
        package_head(replace(options, head=str(private), **dist))
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "model.onnx").touch()
    with pytest.raises(InputError, match="give the head that it was exported from"):
        package_head(replace(options, head=str(exported), **dist))
    changed = save_tiny_head(tmp_path / "0")
    files = manifest_of([changed / "config.json"], changed)
    write_record(changed / RECORD, {}, {}, facts={}, seconds=1)
    (changed / "config.json").write_text((changed / "config.json").read_text() + " ")
    assert manifest_of([changed / "config.json"], changed) != files
    with pytest.raises(InputError, match=r"config\.json has .* bytes instead of .*finetune-ner --force"):
        package_head(replace(options, head=str(changed), **dist))
    assert not (tmp_path / "dist").exists()


def test_the_command_prints_the_wheel_and_its_size(head: Path, tmp_path: Path, command: Command) -> None:
    given = ("package", head, "--name", "finder", "--output_dir", tmp_path)
    assert command(*given, status=2).error.startswith("error: --license: the licence of the weights is missing")
    (line,) = command(*given, "--license", "mit").out.splitlines()
    assert line == f"{tmp_path}/finder-0.4-py3-none-any.whl: 0.1 MB"
    error = command(*given, "--license", "MIT-0", status=2).error
    assert error.endswith("exists with other contents: choose another --output_dir, or use --force to replace it")
