"""What is computed without padding is what transformers computes."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from helpers import build_tiny_head, build_tiny_tokenizer, tiny_vocabulary
from torch.nn.functional import cross_entropy
from transformers import BertForTokenClassification

from bioptimus_hf.ner import prediction
from bioptimus_hf.ner.packed_bert import PackedCollator, _kept, can_be_packed, packed_logits
from bioptimus_hf.ner.prediction import predict_tags


def windows(seed: int, number: int) -> list[dict[str, list[int]]]:
    """Windows of random pieces; some pieces of each have a label."""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        length = draw.choice([3, 4, 7, 7, 20, 61])
        labels = [draw.choice([-100, 0, 1, 2]) for _ in range(length - 1)]
        rows.append({"input_ids": draw.choices(range(1, len(tiny_vocabulary())), k=length), "labels": [1, *labels]})
    return rows


class AdaptedLinear(torch.nn.Linear):
    """Stands for the layers that adapters (LoRA) and quantization put in the place of `nn.Linear`."""


def without_dropout(head: BertForTokenClassification) -> BertForTokenClassification:
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return head.train()


def padded_logits(head: BertForTokenClassification, rows: list[dict[str, list[int]]]) -> torch.Tensor:
    """Logits of the labelled pieces, as transformers computes them, in the order of a `PackedCollator`."""
    tokenizer = build_tiny_tokenizer()
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    batch = tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, padding_side="right", return_tensors="pt")
    logits = head(**batch).logits
    labelled = [(n, place) for n, row in enumerate(rows) for place, label in enumerate(row["labels"]) if label >= 0]
    return torch.stack([logits[place] for place in labelled])


def gradients(head: BertForTokenClassification, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    head.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in head.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("layers", "number"), [(2, 16), (1, 1), (3, 5), (0, 3)])
def test_logits_and_gradients_are_those_of_transformers(layers: int, number: int) -> None:
    head = without_dropout(build_tiny_head(layers=layers))
    assert can_be_packed(head)
    for seed in range(3):
        rows = windows(seed, number)
        batch = PackedCollator()(rows)
        labels = batch.pop("labels")
        logits, expected = packed_logits(head, **batch), padded_logits(head, rows)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        found, wanted = (gradients(head, cross_entropy(one, labels)) for one in (logits, expected))
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
        with torch.autocast("cpu", torch.bfloat16):
            half = packed_logits(head, **batch)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05 * expected.detach().abs().max().item())


def test_gradients_in_bfloat16_do_not_depend_on_the_length_of_a_batch() -> None:
    """PyTorch adds up the gradients of a layer normalisation in bfloat16: of 16,000 pieces, half get lost."""
    head = without_dropout(build_tiny_head(layers=2))
    batch = PackedCollator()(windows(0, 900))
    labels = batch.pop("labels")
    wanted = gradients(head, cross_entropy(packed_logits(head, **batch), labels))
    with torch.autocast("cpu", torch.bfloat16):
        logits = packed_logits(head, **batch)
    for name, found in gradients(head, cross_entropy(logits.float(), labels)).items():
        if not name.endswith("key.bias"):  # whose gradient is zero but for rounding
            assert float((found - wanted[name]).norm() / wanted[name].norm()) < 0.03, name


def test_gradients_go_through_the_dropout_of_the_forward_pass() -> None:
    """With the same random numbers, the loss is a smooth function, whose slope the gradient must be."""
    head = build_tiny_head(layers=2).train()
    batch = PackedCollator()(windows(1, 9))
    labels = batch.pop("labels")

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return cross_entropy(packed_logits(head, **batch), labels)

    assert not torch.equal(loss(), cross_entropy(packed_logits(head, **batch), labels))  # there is dropout
    for name, weight in head.named_parameters():
        if name.endswith(("key.bias", "token_type_embeddings.weight")):
            continue  # no slope to measure
        found = gradients(head, loss())[name]
        direction, step = found / found.norm(), 0.3 / math.sqrt(found.numel())
        with torch.no_grad():
            weight += step * direction
            above = loss()
            weight -= 2 * step * direction
            below = loss()
            weight += step * direction
        assert float((above - below) / (2 * step)) == pytest.approx(float(found.norm()), rel=0.05, abs=1e-4), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_number_is_dropped_with_the_same_probability(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kept = _kept(torch.empty(400, 1001, dtype=dtype), 0.1)
    assert kept.element_size() == dtype.itemsize
    assert set(kept.unique().tolist()) == {0, -1}
    for start in range(4):  # the four numbers of a draw
        some = kept.flatten()[start::4]
        assert float((some == 0).float().mean()) == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / len(some)))
    both = ((kept.flatten()[:-1] == 0) & (kept.flatten()[1:] == 0)).float().mean()
    assert float(both) == pytest.approx(0.01, abs=5 * math.sqrt(0.0099 / kept.numel()))


def test_tags_do_not_depend_on_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    head, tokenizer, draw = build_tiny_head(layers=2), build_tiny_tokenizer(), random.Random(0)
    sentences = [["".join(draw.choices("abcde", k=draw.randint(1, 9))) for _ in range(n % 23)] for n in range(60)]
    found: list[Any] = []
    for packs in (True, False):
        if not packs:
            monkeypatch.setattr(prediction, "can_be_packed", lambda _: False)
        found.append(predict_tags(head, tokenizer, sentences, batch_size=7, max_length=20))
    assert found[0] == found[1]
    assert len({tag for tags in found[0] for tag in tags}) > 2


def test_other_models_are_left_to_transformers() -> None:
    head = build_tiny_head(layers=1)
    assert not can_be_packed(head.bfloat16())
    head.float().config.hidden_act = "relu"
    assert not can_be_packed(head)
    head = build_tiny_head(layers=1)
    query = head.bert.encoder.layer[0].attention.self.query
    head.bert.encoder.layer[0].attention.self.query = AdaptedLinear(query.in_features, query.out_features)
    assert not can_be_packed(head)


def test_a_forward_or_hook_of_the_user_is_not_skipped() -> None:
    head, tokenizer = build_tiny_head(layers=1), build_tiny_tokenizer()
    (before,) = predict_tags(head, tokenizer, [["the", "asthma"]])
    forward = type(head).forward

    def zero(**inputs: Any) -> Any:
        outputs = forward(head, **inputs)
        outputs.logits[..., 0] = 1e9
        return outputs

    head.forward = zero  # type: ignore[method-assign]
    (after,) = predict_tags(head, tokenizer, [["the", "asthma"]])
    assert after == [head.config.id2label[0]] * 2 != before
    del head.forward
    assert can_be_packed(head)
    head.classifier.register_forward_hook(lambda module, given, output: -output)
    assert not can_be_packed(head)
