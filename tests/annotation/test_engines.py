"""Engines find the same entities; which of them is chosen, recorded and kept."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import TOKENIZERS, save_architecture
from conftest import Command
from helpers import ROOT, build_tiny_head, build_tiny_tokenizer

from bioptimus_hf.annotation import annotator, engine_choice, extras, loading, onnx_export
from bioptimus_hf.annotation.annotate_files import annotate_files
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.engine_choice import (
    CHOICES,
    MARGIN,
    EngineChoice,
    agreement,
    candidates,
    choose_engine,
    record_engine,
    recorded_engine,
)
from bioptimus_hf.annotation.engines import OpenVinoEngine
from bioptimus_hf.annotation.onnx_export import cached_export, export_onnx
from bioptimus_hf.annotation.options import AnnotationOptions, EngineName, Precision
from bioptimus_hf.artifacts import read_record
from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.errors import InputError

TEXTS = (ROOT / "bioptimus_hf" / "sample" / "corpus.txt").read_text(encoding="utf-8").splitlines()[:12]
TORCH, ONNX, OPENVINO, TORCH_FAST, ONNX_FAST, OPENVINO_FAST = CHOICES
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs the extra `onnx`")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra `openvino`")


@pytest.fixture(scope="module")
def exported(tiny_head: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    folders = {precision: tmp_path_factory.mktemp("engines") / precision for precision in ("fp32", "int8")}
    export_onnx(tiny_head, folders["fp32"], precision="fp32")
    export_onnx(tiny_head, folders["int8"])
    return folders


def spans(found: Iterable[Iterable[Entity]]) -> list[list[tuple[int, int, str]]]:
    return [[(entity.start, entity.end, entity.label) for entity in entities] for entities in found]


class SignalStack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.mark.slow
@needs_openvino
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_engine_that_another_thread_drops_takes_no_signal_stack_away(exported: dict[str, Path]) -> None:
    """The next signal that Python handles would end the process."""
    engines = [OpenVinoEngine(exported["fp32"])]
    thread = threading.Thread(target=engines.clear)
    thread.start()
    thread.join()
    gc.collect()
    stack = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    mapped = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    assert any(int(first, 16) <= (stack.address or 0) < int(last, 16) for first, last in mapped)


@pytest.mark.slow
@needs_openvino
def test_engines_find_the_same_entities(
    exported: dict[str, Path], tiny_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def export(model: str, precision: str) -> Path:
        asked.append((model, precision))
        return exported[precision]

    monkeypatch.setattr(loading, "cached_export", export)
    found = {
        choice: list(Annotator(tiny_head, engine=choice.engine, precision=choice.precision).annotate(TEXTS))
        for choice in CHOICES
    }
    assert sum(map(len, found[TORCH])) > 50
    for choice in (ONNX, OPENVINO):
        assert spans(found[choice]) == spans(found[TORCH])
        for ours, theirs in zip(found[choice], found[TORCH], strict=True):
            assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-5)
    assert agreement(found[TORCH], found[OPENVINO_FAST]) > 0.7  # random weights: scores of labels are close
    assert asked == [(str(tiny_head), weights) for weights in ("fp32", "fp32", "int8", "fp32")]
    assert spans(Annotator(exported["fp32"], engine="openvino").annotate(TEXTS)) == spans(found[TORCH])
    again = Annotator(tiny_head, engine="openvino", precision="fast").annotate(TEXTS)
    assert list(again) == found[OPENVINO_FAST]  # the same bytes


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("name", TOKENIZERS)
def test_heads_of_all_architectures_run_on_all_engines(name: str, tmp_path: Path) -> None:
    save_architecture(name, tmp_path / "head")
    texts = [*(text[:200] for text in TEXTS[:4]), "", "Aspirin " * 100]
    expected = spans(Annotator(tmp_path / "head").annotate(texts))
    assert sum(map(len, expected)) > 5
    for precision in ("fp32", "int8"):
        export_onnx(tmp_path / "head", tmp_path / precision, precision=precision)  # type: ignore[arg-type]
    assert spans(Annotator(tmp_path / "fp32").annotate(texts)) == expected
    assert spans(Annotator(tmp_path / "fp32", engine="openvino").annotate(texts)) == expected
    assert len(list(Annotator(tmp_path / "int8").annotate(texts))) == len(texts)


@pytest.mark.slow
@needs_onnx
def test_a_head_is_exported_once_and_a_damaged_export_is_replaced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    warnings_of_package: Callable[[], list[str]],
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    head = tmp_path / "head"
    build_tiny_head(layers=0).save_pretrained(head)
    build_tiny_tokenizer().save_pretrained(head)
    exports = 0
    real = onnx_export._export

    def export(*arguments: Any) -> None:
        nonlocal exports
        exports += 1
        real(*arguments)

    monkeypatch.setattr(onnx_export, "_export", export)
    caplog.set_level(logging.INFO)
    expected = spans(Annotator(head).annotate(TEXTS))
    for _ in range(2):
        assert spans(Annotator(head, engine="onnx").annotate(TEXTS)) == expected
    assert exports == 1
    assert caplog.text.count("exporting") == 1
    file = cached_export(head, "fp32") / "model.onnx"
    assert file.is_relative_to(tmp_path / "cache" / "bioptimus_hf")
    file.write_bytes(file.read_bytes()[:-9])
    assert spans(Annotator(head, engine="onnx").annotate(TEXTS)) == expected
    assert exports == 2
    assert any("damaged cache" in line for line in warnings_of_package())
    build_tiny_head(layers=0, seed=1).save_pretrained(head)  # other weights in the same folder
    assert spans(Annotator(head, engine="onnx").annotate(TEXTS)) == spans(Annotator(head).annotate(TEXTS)) != expected
    assert exports == 3


@needs_onnx
def test_a_model_that_the_exporter_rejects_is_an_error_by_name(
    tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operation\nof many lines")

    monkeypatch.setattr(torch.onnx, "export", fail)
    (tmp_path / "a.txt").write_text("Aspirin.\n")
    what = ("annotate", "--models", tiny_head, "--input", tmp_path / "a.txt", "--output_dir", tmp_path / "out")
    message = command(*what, "--engine", "onnx", status=2).error
    assert "a bert model can't be exported to ONNX (no such operation of many lines): use --engine torch" in message
    assert not (tmp_path / "out" / "a.txt.jsonl").exists()


@needs_onnx
def test_a_model_that_is_computed_otherwise_is_not_exported(
    tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_export", lambda *_: None)
    monkeypatch.setattr(onnx_export, "_note_origin", lambda *_: None)

    class Wrong:
        def __init__(self, _: Path) -> None:
            pass

        def logits(self, ids: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*ids.shape, 5)

    monkeypatch.setattr(onnx_export, "OnnxEngine", Wrong)
    with pytest.raises(InputError, match="bert model doesn't compute the same once it is exported to ONNX"):
        export_onnx(tiny_head, tmp_path / "onnx", precision="fp32")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("engine", "package", "extra"), [("onnx", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")]
)
def test_an_engine_that_is_not_installed_names_its_extra(
    engine: EngineName, package: str, extra: str, tiny_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "cached_export", lambda *_: tmp_path)
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else importlib.util.find_spec(name))
    with pytest.raises(InputError, match=rf"{package} is not installed: pip install 'bioptimus-hf\[{extra}\]'"):
        Annotator(tiny_head, engine=engine)


def test_engines_that_do_not_fit_are_errors(tiny_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "cached_export", lambda *_: pytest.fail("exported"))
    for engine in ("onnx", "openvino"):
        with pytest.raises(InputError, match=f"engine {engine}: it runs on a CPU only"):
            Annotator(tiny_head, engine=engine, device="meta")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="dtype: is for engine torch without a precision"):
            Annotator(tiny_head, engine=engine, dtype=torch.bfloat16)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="a model object runs on engine torch only"):
            Annotator(build_tiny_head(layers=0), build_tiny_tokenizer(), engine=engine)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dtype: is for engine torch without a precision"):
        Annotator(tiny_head, precision="fast", dtype=torch.bfloat16)
    with pytest.raises(InputError, match="engine: auto needs models in files"):
        Annotator(build_tiny_head(layers=0), build_tiny_tokenizer(), engine="auto")
    with pytest.raises(InputError, match="engine: must be one of torch, onnx, openvino, auto, not 'tensorrt'"):
        Annotator(tiny_head, engine="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="precision: must be one of exact, fast, not 'int8'"):
        Annotator(tiny_head, precision="int8")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "engine", "precision", "message"),
    [
        ("int8", "onnx", "exact", r"int8 is exported in int8, and engine onnx needs fp32 for precision exact"),
        ("int8", None, "exact", r"exported in int8, and engine onnx needs fp32 for precision exact"),
        ("fp32", "onnx", "fast", r"exported in fp32, and engine onnx needs int8 for precision fast"),
        ("int8", "openvino", None, r"exported in int8, and engine openvino needs fp32 for precision exact"),
        ("int8", "openvino", "fast", r"exported in int8, and engine openvino needs fp32 for precision fast"),
        ("fp32", "torch", None, r"which PyTorch can't run: use engine onnx or openvino"),
    ],
)
def test_exported_files_have_one_precision(
    exported: dict[str, Path], weights: str, engine: EngineName | None, precision: Precision | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Annotator(exported[weights], engine=engine, precision=precision)


def test_precision_fast_is_bfloat16_with_torch(tiny_head: Path) -> None:
    half = Annotator(tiny_head, precision="fast").annotate(TEXTS)
    assert list(half) == list(Annotator(tiny_head, dtype=torch.bfloat16).annotate(TEXTS))


# Choosing


class Finding:
    """Finds entities in a given time."""

    def __init__(self, clock: list[float], seconds: float, entities: int, wrong: int = 0) -> None:
        self.clock, self.seconds, self.entities, self.wrong = clock, seconds, entities, wrong
        self.texts: list[str] = []

    def annotate(self, texts: Iterable[str]) -> Iterator[list[Entity]]:
        self.texts = list(texts)
        self.clock[0] += self.seconds
        ends = [number + (number < self.wrong) / 2 for number in range(self.entities)]
        yield [Entity(number, end, "", "Disease", 1.0) for number, end in enumerate(ends)]  # type: ignore[arg-type]
        yield from ([] for _ in self.texts[1:])


def choose(
    engines: Mapping[EngineChoice, tuple[float, int]],
    texts: Iterable[str] = (),
    errors: Mapping[Any, str] | None = None,
) -> EngineChoice:
    """Choose among engines that take some seconds and find some wrong entities of 200."""
    clock = [0.0]

    def load(choice: EngineChoice) -> Finding:
        if errors and choice in errors:
            raise InputError(errors[choice])
        seconds, wrong = engines[choice]
        return Finding(clock, seconds, 200, wrong)

    return choose_engine(load, [*engines, *(errors or {})], texts, clock=lambda: clock[0])


def test_the_fastest_engine_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose({TORCH: (4, 0), ONNX: (2, 0), OPENVINO: (3, 0)}) == ONNX
    (line,) = caplog.messages
    assert line == (
        "engine auto: onnx in fp32, 2.00 times as fast as torch in fp32 on this machine, with 100.0 % the same "
        "entities (tried: openvino in fp32 1.33 times)"
    )


@pytest.mark.parametrize(
    ("engines", "expected"),
    [
        ({TORCH: (2, 0), ONNX: (2, 0)}, TORCH),
        ({TORCH: (2, 0), ONNX: (2 / MARGIN + 0.01, 0)}, TORCH),  # noise
        ({TORCH: (2, 0), ONNX: (2 / MARGIN - 0.01, 0)}, ONNX),
        ({TORCH: (2, 0), ONNX: (1, 1), OPENVINO: (1.5, 0)}, OPENVINO),  # one entity differs: not exact
        ({TORCH: (2, 0), ONNX_FAST: (0.5, 12), OPENVINO_FAST: (0.6, 2)}, OPENVINO_FAST),
        ({TORCH: (2, 0), ONNX_FAST: (0.5, 12), TORCH_FAST: (3, 1)}, TORCH),
        ({TORCH: (2, 0), ONNX_FAST: (0.5, 6)}, ONNX_FAST),  # 3 % is tolerated
        ({ONNX: (2, 0), OPENVINO: (1, 0)}, OPENVINO),
    ],
)
def test_entities_and_speed_decide(engines: Mapping[EngineChoice, tuple[float, int]], expected: EngineChoice) -> None:
    assert choose(engines) == expected


def test_what_cannot_be_loaded_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    errors = dict.fromkeys((OPENVINO, OPENVINO_FAST), "a gpt9 model can't be exported")
    assert choose({TORCH: (4, 0), ONNX: (2, 0)}, errors=errors) == ONNX
    assert sum("a gpt9 model can't be exported" in line for line in caplog.messages) == 1
    caplog.clear()
    assert choose({TORCH: (4, 0)}, errors=errors) == TORCH
    assert "the only one that can run these models" in caplog.text
    with pytest.raises(InputError, match="no such model"):
        choose({}, errors={TORCH: "no such model", ONNX: "no such model"})


def test_the_beginnings_of_the_first_texts_are_tried() -> None:
    clock = [0.0]
    finders: list[Finding] = []

    def load(_: EngineChoice) -> Finding:
        finders.append(Finding(clock, 1, 1))
        return finders[-1]

    def texts() -> Iterator[str]:
        yield from ["a" * 100, "b" * 100_000]
        yield from ["c" * 100] * 14
        pytest.fail("read more than it needs")

    choose_engine(load, [TORCH, ONNX], texts(), clock=lambda: clock[0])
    assert [len(text) for text in finders[1].texts] == [100, 5000, *[100] * 14]
    choose_engine(load, [TORCH, ONNX], clock=lambda: clock[0])
    assert finders[-1].texts[0] == TEXTS[0][:5000]


def test_candidates_are_what_is_installed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    missing: set[str] = set()
    monkeypatch.setattr(engine_choice, "find_spec", lambda name: None if name in missing else object())
    assert candidates("exact") == [TORCH, ONNX, OPENVINO]
    assert candidates("fast") == CHOICES
    assert candidates("fast", on_cpu=False) == [TORCH, TORCH_FAST]
    assert not caplog.messages
    missing.add("openvino")
    assert candidates("exact") == [TORCH, ONNX]
    assert caplog.messages == [
        "engine auto leaves out openvino, which can be faster: pip install 'bioptimus-hf[openvino]'"
    ]
    missing.add("onnxscript")
    assert candidates("fast") == [TORCH, TORCH_FAST]
    assert "leaves out onnx and openvino" in caplog.messages[-1]
    assert "'bioptimus-hf[onnx,openvino]'" in caplog.messages[-1]


def test_agreement_is_the_f1_of_entities() -> None:
    one, two, other = (Entity(start, start + 1, "a", label, 1.0) for start, label in ((0, "A"), (2, "A"), (2, "B")))
    assert agreement([[]], [[]]) == 1
    assert agreement([[one, two]], [[one, two]]) == 1
    assert agreement([[one, two]], [[one, other]]) == 0.5
    assert agreement([[one], [two]], [[two], [one]]) == 0  # each in its text
    assert agreement([[one, two]], [[one]]) == pytest.approx(2 / 3)


# Records


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for name in ("a.txt", "b.txt"):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / name).write_text("\n".join(TEXTS[:3]))
    return tmp_path / "shards"


def run(head: Path, shards: Path, out: Path, **options: Any) -> list[bytes]:
    files = annotate_files(AnnotationOptions(models=[str(head)], input=[str(shards)], output_dir=str(out), **options))
    return [file.read_bytes() for file in files]


def test_a_resumed_run_keeps_the_engine(
    tiny_head: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tried: list[list[str]] = []

    def fastest(_: Annotator, precision: str, texts: Iterable[str]) -> EngineChoice:
        assert precision == "fast"
        tried.append(list(texts))
        return TORCH_FAST

    monkeypatch.setattr(Annotator, "fastest_engine", fastest)
    out = tmp_path / "out"
    first = run(tiny_head, shards, out, engine="auto", precision="fast")
    assert tried == [TEXTS[:3] * 2]  # of the user's own files
    assert read_record(out / ".records" / "a.txt.jsonl.json")["settings"]["bf16"]
    (out / "b.txt.jsonl").unlink()
    assert run(tiny_head, shards, out, engine="auto", precision="fast") == first
    assert run(tiny_head, shards, out, engine="torch", precision="fast") == first
    assert run(tiny_head, shards, out, precision="fast") == first
    assert len(tried) == 1
    assert "engine auto: torch in bf16, as in the files that are already annotated" in caplog.text
    with pytest.raises(InputError, match=r"different bf16 \(true then, false now\)"):
        run(tiny_head, shards, out, engine="auto")  # exact
    assert len(tried) == 1
    run(tiny_head, shards, out, engine="auto", precision="fast", force=True)
    assert len(tried) == 2


def test_results_of_another_engine_are_not_mixed(
    tiny_head: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load(source: str, device: torch.device, **options: Any) -> Any:
        asked.append((options["engine"], options["precision"]))
        return loading.load_engine(source, device)

    monkeypatch.setattr(annotator, "load_engine", load)
    out = tmp_path / "out"
    run(tiny_head, shards, out, engine="openvino")
    (out / "b.txt.jsonl").unlink()
    with pytest.raises(InputError, match=r'different engine \("openvino in fp32" then, not set now\)'):
        run(tiny_head, shards, out)
    run(tiny_head, shards, out, engine="auto")
    assert asked == [("openvino", None), ("openvino", "exact")]


def test_files_that_cannot_be_read_are_not_tried(
    tiny_head: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards / "a.txt").write_bytes(b"\xff\xfe\xff bad\n")

    def fastest(_: Annotator, _precision: str, texts: Iterable[str]) -> EngineChoice:
        assert list(texts) == TEXTS[:3]
        return TORCH

    monkeypatch.setattr(Annotator, "fastest_engine", fastest)
    with pytest.raises(InputError, match=r"1 of 2 files could not be annotated: .*a\.txt"):
        run(tiny_head, shards, tmp_path / "out", engine="auto")


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_record_tells_the_engine(choice: EngineChoice) -> None:
    record = record_engine(choice.engine, choice.precision, exported=False)
    assert recorded_engine(record, exported=False) == choice
    if choice == TORCH:  # as before there was a choice
        assert record == {"bf16": False} == record_engine(None, None, exported=False)
        assert record == record_engine(None, None, exported=True) == record_engine("onnx", "fast", exported=True)
    if choice == TORCH_FAST:
        assert record == {"bf16": True}
    assert recorded_engine({"bf16": False}, exported=True) is None


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_auto_annotates_as_the_engine_that_it_chose(
    exported: dict[str, Path], tiny_head: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "cached_export", lambda _, weights: exported[weights])
    found = list(Annotator(tiny_head, engine="auto", precision=precision).annotate(TEXTS))
    if precision == "exact":
        assert spans(found) == spans(Annotator(tiny_head).annotate(TEXTS))
    assert len(found) == len(TEXTS)
