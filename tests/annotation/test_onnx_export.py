from __future__ import annotations

import logging
import shutil
import statistics
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
import torch
from conftest import Command
from helpers import ROOT, build_head_of_words, build_tiny_head, build_tiny_tokenizer
from transformers import BertTokenizer

from bioptimus_hf.annotation import extras, onnx_export
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.engines import OnnxEngine
from bioptimus_hf.annotation.onnx_export import export_onnx
from bioptimus_hf.annotation.options import EngineName, MinimumScore
from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_head
from bioptimus_hf.storage import LOCKS, locked

TEXTS = (ROOT / "bioptimus_hf" / "sample" / "corpus.txt").read_text(encoding="utf-8").splitlines()[:12]


@pytest.fixture(scope="module")
def exported(tiny_head: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny head in both precisions; also checks that logging is as it was before."""
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    folders = {precision: tmp_path_factory.mktemp("onnx") / precision for precision in ("fp32", "int8")}
    names = ["torch.onnx", "onnxscript", "onnxruntime", *logging.root.manager.loggerDict]
    before = {name: logging.getLogger(name).level for name in names}
    filters = list(logging.getLogger().filters)
    export_onnx(tiny_head, folders["fp32"], precision="fp32")
    export_onnx(tiny_head, folders["int8"])
    assert before == {name: logging.getLogger(name).level for name in names}
    assert filters == logging.getLogger().filters
    return folders


def offsets(entities: list[Entity]) -> list[tuple[int, int, str]]:
    return [(entity.start, entity.end, entity.label) for entity in entities]


@pytest.mark.slow
def test_an_onnx_file_finds_the_same_entities(exported: dict[str, Path], tiny_head: Path) -> None:
    exact, full, quantized = (
        [offsets(entities) for entities in Annotator(folder).annotate(TEXTS)]
        for folder in (tiny_head, exported["fp32"], exported["int8"])
    )
    assert full == exact
    same = sum(len({*left} & {*right}) for left, right in zip(exact, quantized, strict=True))
    assert same > 0.5 * sum(map(len, exact))  # random weights, for which the labels' scores are close to each other
    sizes = {precision: (folder / "model.onnx").stat().st_size for precision, folder in exported.items()}
    assert sizes["int8"] < sizes["fp32"]
    assert not list(exported["int8"].glob("*.safetensors"))


@pytest.mark.slow
def test_an_onnx_file_runs_on_the_cpu_only(
    exported: dict[str, Path], tiny_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="runs on a CPU only"):
        Annotator(exported["int8"], device="meta")
    with pytest.raises(InputError, match="runs on a CPU only"):
        Annotator(exported["int8"], dtype=torch.bfloat16)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert Annotator([tiny_head, exported["int8"]]).device == torch.device("cpu")
    assert Annotator(tiny_head).device == torch.device("meta")


@pytest.mark.slow
def test_the_same_export_is_skipped(
    exported: dict[str, Path], tiny_head: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx_export, "_export", lambda *_: pytest.fail("exported again"))
    caplog.set_level("INFO")
    export_onnx(tiny_head, exported["int8"])
    assert "skipped" in caplog.text
    with pytest.raises(InputError, match="is not empty"):
        export_onnx(tiny_head, exported["int8"], precision="fp32")


def test_an_export_that_fails_leaves_nothing(tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(onnx_export, "_export", fail)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(tiny_head, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        export_onnx(tiny_head, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_export", "_quantise"])
def test_a_full_disk_leaves_nothing(tiny_head: Path, tmp_path: Path, step: str) -> None:
    """When the file is written, or an intermediate file, whose writer checks nothing."""
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    program = f"""
    import resource, sys
    from bioptimus_hf.annotation import onnx_export
    from bioptimus_hf.cli.__main__ import main
    real = onnx_export.{step}
    def until_the_disk_is_full(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        real(*arguments)
    onnx_export.{step} = until_the_disk_is_full
    sys.exit(main(["export-onnx", "--model", {str(tiny_head)!r}, "--output_dir", "onnx"]))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "disk" in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_head_that_computes_nan_is_not_exported(
    tmp_path: Path, precision: Literal["fp32", "int8"], command: Command
) -> None:
    """Its weights are finite, but too large."""
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    head = build_tiny_head(layers=1)
    with torch.no_grad():
        head.bert.encoder.layer[0].output.dense.weight.fill_(3e38)
    head.save_pretrained(tmp_path / "head")
    build_tiny_tokenizer().save_pretrained(tmp_path / "head")
    export = ("export-onnx", "--model", tmp_path / "head", "--output_dir", tmp_path / "onnx", "--precision", precision)
    assert "computes NaN or infinity" in command(*export, status=2).error
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.slow
def test_a_damaged_onnx_file_is_refused(exported: dict[str, Path], tmp_path: Path, command: Command) -> None:
    (tmp_path / "text.txt").write_text(TEXTS[0])
    for name in ("model.onnx", "config.json", "tokenizer.json"):
        folder = tmp_path / Path(name).stem
        shutil.copytree(exported["int8"], folder)
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        text, found = tmp_path / "text.txt", tmp_path / "found"
        error = command("annotate", "--models", folder, "--input", text, "--output_dir", found, status=2).error
        assert error.startswith(f"error: {folder / name} has changed since it was written: its hash differs")
        assert error.endswith("export it again to a new folder (`bioptimus export-onnx`)")
        assert not list(found.glob("*.jsonl"))


def test_missing_packages_are_named_with_their_extra(
    tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxruntime, onnxscript are not installed: .*'bioptimus-hf\[onnx\]'"):
        export_onnx(tiny_head, tmp_path / "onnx")
    with pytest.raises(InputError, match=r"onnxruntime is not installed: pip install 'bioptimus-hf\[onnx\]'"):
        OnnxEngine(tiny_head)


def test_outlier_features_are_scaled_down_and_logits_stay_the_same() -> None:
    head, tokenizer = build_tiny_head(layers=1).eval(), build_tiny_tokenizer()
    inputs = tokenizer(TEXTS[:2], padding=True, truncation=True, max_length=64, return_tensors="pt")
    layer = head.bert.encoder.layer[0]
    with torch.no_grad():
        layer.attention.output.LayerNorm.bias[3] = 60
        before = head(**inputs).logits
        onnx_export._level(head, tokenizer)
        states: list[torch.Tensor] = []
        layer.intermediate.dense.linear.register_forward_pre_hook(lambda _, given: states.append(given[0]))
        after = head(**inputs).logits
    assert torch.allclose(before, after, atol=1e-4)
    assert states[0].abs().max() < 6
    assert isinstance(layer.attention.self.query, torch.nn.Linear), "its inputs have no outliers"


def test_one_process_at_a_time_exports_to_a_folder(tiny_head: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file: choose another folder"):
        export_onnx(tiny_head, tmp_path / "file")
    with locked(tmp_path / LOCKS / "onnx.lock", tmp_path / "onnx"):
        with pytest.raises(InputError, match="onnx is being written by process"):
            export_onnx(tiny_head, tmp_path / "onnx")
        assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_files_of_two_exports_are_not_mixed(exported: dict[str, Path], tmp_path: Path) -> None:
    """Whether or not there is still a record with the hashes of the files."""
    other = build_tiny_head(layers=1, tags=["O", "B-Gene", "I-Gene", "B-Cell", "I-Cell"])  # as many labels
    other.save_pretrained(tmp_path / "head")
    vocabulary = [token for token in build_tiny_tokenizer().get_vocab()]
    swapped = {token: number for number, token in enumerate([*vocabulary[:-2], vocabulary[-1], vocabulary[-2]])}
    BertTokenizer(vocab=swapped, model_max_length=512).save_pretrained(tmp_path / "head")
    export_onnx(tmp_path / "head", tmp_path / "other", precision="fp32")
    Annotator(tmp_path / "other")
    mistakes = {
        "config.json": "comes from another export",
        "tokenizer.json": "tokenizer: it has other tokens",
        "model.onnx": "comes from another export",
    }
    for name, says in mistakes.items():
        mixed = tmp_path / f"mixed-{name.partition('.')[0]}"
        shutil.copytree(exported["fp32"], mixed)
        shutil.copy(tmp_path / "other" / name, mixed)
        with pytest.raises(InputError, match=f"{name} has .*: export it again to a new folder"):
            Annotator(mixed)
        (mixed / "made.json").unlink()
        with pytest.raises(InputError, match=says):
            Annotator(mixed)


@pytest.mark.slow
def test_an_exported_head_keeps_its_labels(tmp_path: Path) -> None:
    labels = ["LABEL_0", "LABEL_1", "LABEL_2"]
    words = {"renal": "LABEL_1", "failure": "LABEL_2"}
    build_head_of_words(words, labels, other="LABEL_0").save_pretrained(tmp_path / "head")
    build_tiny_tokenizer().save_pretrained(tmp_path / "head")
    export_onnx(tmp_path / "head", tmp_path / "onnx", precision="fp32")
    meant = {"LABEL_0": "O", "LABEL_1": "B-Disease", "LABEL_2": "I-Disease"}
    (found,) = Annotator(tmp_path / "onnx", labels=meant).annotate(["the renal failure of mice"])
    assert [(entity.text, entity.label) for entity in found] == [("renal failure", "Disease")]
    with pytest.raises(InputError, match="labels that name no entity type"):
        Annotator(tmp_path / "onnx")


@pytest.mark.slow
def test_an_exported_head_keeps_its_windows_and_its_best_score(tmp_path: Path) -> None:
    head = build_tiny_head(layers=1)
    head.config.document_window = 20
    text = " ".join(TEXTS[:4])
    (entities,) = Annotator(head, build_tiny_tokenizer()).annotate([text])
    best = statistics.median(entity.score for entity in entities[: len(entities) // 2 * 2])  # between two scores
    head.config.min_score = {"best": best, "f1": 0.8, "f1_of_all": 0.7, "left_out": 0.1}
    save_head(head, build_tiny_tokenizer(), tmp_path / "head")
    export_onnx(tmp_path / "head", tmp_path / "onnx", precision="fp32")

    def found(folder: str, engine: EngineName, min_score: MinimumScore) -> list[tuple[int, int, str]]:
        return offsets(*Annotator(tmp_path / folder, engine=engine, min_score=min_score).annotate([text]))

    assert found("head", "torch", 0) == offsets(entities)
    assert len(entities) > len(found("head", "torch", "best"))
    engines: list[EngineName] = ["onnx", *(["openvino"] if find_spec("openvino") else [])]  # type: ignore[list-item]
    for engine in engines:
        for least in (0.0, "best"):
            assert found("onnx", engine, least) == found("head", "torch", least)
    head.config.document_window = None
    assert offsets(*Annotator(head, build_tiny_tokenizer()).annotate([text])) != offsets(entities), (
        "this proves nothing"
    )
