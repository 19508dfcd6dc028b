"""Compare results on a CUDA GPU with those on a CPU; skipped without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import ROOT, build_tiny_bert, build_tiny_head
from safetensors.torch import load_file
from test_modeling import with_and_without_replay
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.distillation.contextual import contextual_embeddings
from bioptimus_hf.models import save_masked_lm
from bioptimus_hf.pretraining.modeling import VARLEN, BertForMaskedPositions, set_dropout

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

TEXT = "Aspirin binding in severe asthma patients was induced by protein expression in the mice. "


def both(**changes: Any) -> tuple[BertForMaskedLM, BertForMaskedPositions]:
    """The plain model and ours, initialised with the same seed, on the GPU."""
    models = []
    for kind in (BertForMaskedLM, BertForMaskedPositions):
        torch.manual_seed(0)
        sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
        models.append(kind(BertConfig(vocab_size=3000, **sizes | changes)).eval().cuda())
    return models[0], models[1]


def rows_and_labels(*, documents: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(7, 3000, (16, 256), generator=generator)
    if documents:
        ids[torch.rand(ids.shape, generator=generator) < 0.01] = 4
    labels = torch.where((torch.rand(ids.shape, generator=generator) < 0.15) & (ids != 4), ids, -100)
    return ids.cuda(), labels.cuda()


def assert_close_in_half_precision(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> None:
    """Compare a loss and the gradients after it: the order of summation depends on the GPU."""
    assert one[0].item() == pytest.approx(other[0].item(), rel=1e-3)
    distance = sum(((a - b) ** 2).sum() for a, b in zip(one[1:], other[1:], strict=True)).sqrt()
    assert distance < 0.02 * sum((a**2).sum() for a in one[1:]).sqrt()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("documents", [False, True])
def test_varlen_attention_has_only_the_errors_of_half_precision(precision: torch.dtype, documents: bool) -> None:
    """Compared with the exact gradient (masks in full precision), and with the errors of masks in half precision."""
    plain, ours = both()
    ids, labels = rows_and_labels(documents=documents)
    ours.document_start = 4 if documents else None
    parameters = list(ours.parameters())
    loss = ours(ids, labels=labels).loss
    if not documents:
        assert loss.item() == pytest.approx(plain(ids, labels=labels).loss.item(), rel=1e-5)
    exact = torch.autograd.grad(loss, parameters)
    errors = []
    for attention in ("sdpa", VARLEN):
        ours.set_attn_implementation(attention)
        with torch.autocast("cuda", dtype=precision):
            rounded = ours(ids, labels=labels).loss
        assert rounded.item() == pytest.approx(loss.item(), rel=1e-3)
        scale = 1024  # so that small gradients don't underflow in fp16
        found = torch.autograd.grad(rounded * scale, parameters)
        errors.append(sum(((a / scale - b) ** 2).sum() for a, b in zip(found, exact, strict=True)).sqrt().item())
    assert 0 < errors[1] < 1.2 * errors[0]


def test_compiled_layers_give_the_same_loss_and_gradient() -> None:
    _, model = both()
    set_dropout(model, 0)
    model.document_start = 4
    model.set_attn_implementation(VARLEN)
    ids, labels = rows_and_labels(documents=True)
    results = []
    for compiled in (False, True):
        if compiled:
            for layer in model.bert.encoder.layer:
                layer.compile()
        for wanted in (labels, labels.roll(1, 0), torch.where(ids % 3 == 0, ids, -100)):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(ids, labels=wanted).loss
            results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, other in zip(results[:3], results[3:], strict=True):
        assert_close_in_half_precision(one, other)


def test_what_is_replayed_gives_the_same_loss_and_gradient() -> None:
    """Batches with few documents, with too many for the recording, of another shape; two per step."""
    _, model = both()
    set_dropout(model.train(), 0)
    model.document_start = 4
    model.set_attn_implementation(VARLEN)
    ids, labels = rows_and_labels(documents=True)
    many = torch.where(ids % 7 == 0, 4, ids)
    batches = [(ids, labels), (ids.roll(1, 0), labels.roll(1, 0)), (many, labels), (ids[:8], labels[:8])] * 2
    for one, other in with_and_without_replay(model, batches, partial(torch.autocast, "cuda", dtype=torch.bfloat16)):
        assert_close_in_half_precision(one, other)


@pytest.fixture
def pretraining(tokenizer: BertTokenizer, tmp_path: Path) -> Any:
    """Run scripts/pretrain.py with one_gpu.yaml, and return the weights of the last version."""
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path / "start")
    (tmp_path / "text.txt").write_text("".join(f"{TEXT * (1 + n % 30)}\n" for n in range(300)))

    def pretrain(name: str, *more: str) -> dict[str, torch.Tensor]:
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(ROOT / "scripts" / "accelerate" / "one_gpu.yaml")]
        command += [str(ROOT / "scripts" / "pretrain.py"), "--corpus", str(tmp_path / "text.txt"), "--model"]
        command += [str(tmp_path / "start"), "--output_dir", str(tmp_path / name), "--max_steps", "24"]
        command += ["--per_device_train_batch_size", "4", "--save_steps", "10", "--validation_share", "0.2", *more]
        environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return load_file(tmp_path / name / "v0.4" / "model.safetensors")

    return pretrain


@pytest.mark.slow
@pytest.mark.parametrize(("length", "more"), [("64", ()), ("512", ("--full_determinism", "true"))])
def test_a_run_launched_on_a_gpu_gives_the_same_bytes_twice(
    pretraining: Any, length: str, more: tuple[str, ...]
) -> None:
    first, second = (pretraining(name, "--max_length", length, *more) for name in ("first", "second"))
    assert all(values.isfinite().all() for values in first.values())
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.slow
def test_a_compiled_run_gives_the_weights_of_a_plain_one(pretraining: Any) -> None:
    plain, compiled = pretraining("plain"), pretraining("compiled", "--torch_compile", "true")
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[name], compiled[name], atol=2e-3) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entities_and_offsets_are_those_of_a_cpu(tokenizer: BertTokenizer, dtype: torch.dtype) -> None:
    head = build_tiny_head(layers=1)
    texts = [TEXT * (1 + number % 40) for number in range(50)]
    on_cpu = list(Annotator(head, tokenizer, device="cpu").annotate(texts))
    on_gpu = list(Annotator(head, tokenizer, device="cuda", dtype=dtype).annotate(texts))
    if dtype == torch.float32:
        assert [[(entity.start, entity.end, entity.label) for entity in found] for found in on_cpu] == [
            [(entity.start, entity.end, entity.label) for entity in found] for found in on_gpu
        ]
    for text, found in zip(texts, on_gpu, strict=True):
        assert all(entity.text == text[entity.start : entity.end] for entity in found)


def test_contextual_embeddings_are_those_of_a_cpu(tokenizer: BertTokenizer) -> None:
    start = TEXT.index("asthma")
    contexts = Dataset.from_dict(
        {"token": ["asthma"] * 8, "text": [TEXT] * 8, "start": [start] * 8, "end": [start + 6] * 8}
    )
    found = [
        contextual_embeddings(build_tiny_bert(len(tokenizer)).to(device), tokenizer, contexts)
        for device in ("cpu", "cuda")
    ]
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][token], found[1][token].cpu(), atol=1e-4) for token in found[0])
