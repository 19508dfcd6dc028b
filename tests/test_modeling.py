"""The head on masked positions, and attention within documents, against the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import build_tiny_bert
from datasets import Dataset
from transformers import BertTokenizer

from bioptimus_hf.masking import BioptimusDataCollator, MaskingStrategy
from bioptimus_hf.modeling import BertForMaskedPositions
from bioptimus_hf.packing import tokenize_and_pack

TEXTS = [
    "Aspirin binding in severe asthma patients was induced by protein expression.",
    "The mice of the renal cells.",
    "Bronchoconstriction (acute) is a disease with cancer therapy on the gene, for patients and failure.",
]


def masked_head(tokenizer: BertTokenizer) -> BertForMaskedPositions:
    plain = build_tiny_bert(len(tokenizer))
    model = BertForMaskedPositions(plain.config)
    model.load_state_dict(plain.state_dict())
    return model.eval()


def test_the_head_on_masked_positions_gives_the_plain_models_loss_and_gradient(tokenizer: BertTokenizer) -> None:
    blocks = tokenize_and_pack(Dataset.from_dict({"text": TEXTS * 12}), tokenizer, max_length=16)
    plain, ours = build_tiny_bert(len(tokenizer)), masked_head(tokenizer)
    batch = BioptimusDataCollator(tokenizer, MaskingStrategy("word", 0.2, True))(
        [{"input_ids": block} for block in blocks["input_ids"]]
    )
    expected = plain(**batch).loss
    got = ours(**batch).loss
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    got.backward()
    for (name, reference), mine in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert torch.allclose(reference.grad, mine.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), torch.tensor(7)])
def test_a_batch_without_masked_positions_has_no_loss_and_no_gradient(tokenizer: BertTokenizer, items: Any) -> None:
    model = masked_head(tokenizer)
    labels = torch.full((1, 3), -100)
    loss = model(input_ids=torch.tensor([[4, 40, 5]]), labels=labels, num_items_in_batch=items).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("padding", [0, 5])
def test_a_packed_document_is_read_as_if_alone(tokenizer: BertTokenizer, padding: int) -> None:
    """A row that begins in the middle of a document, holds a whole one, and ends in the middle of a third."""
    first, second, third = tokenizer(TEXTS)["input_ids"]
    parts = [first[9:], second, third[:11]]
    row = torch.tensor([[number for part in parts for number in part]])
    masked = row.clone()
    labels = torch.full_like(row, -100)
    for place in (1, 4, len(parts[0]) + 3, row.shape[1] - 2):
        labels[0, place] = row[0, place]
        masked[0, place] = tokenizer.mask_token_id
    attention = torch.ones_like(row)
    filler = (0, padding)
    batch = {
        "input_ids": torch.nn.functional.pad(masked, filler, value=tokenizer.pad_token_id),
        "attention_mask": torch.nn.functional.pad(attention, filler),
        "labels": torch.nn.functional.pad(labels, filler, value=-100),
    }
    model, plain = masked_head(tokenizer), build_tiny_bert(len(tokenizer))
    model.document_start = tokenizer.cls_token_id
    got = model(**batch).logits
    begin, expected = 0, []
    for part in parts:
        place = slice(begin, begin + len(part))
        logits = plain(masked[:, place]).logits[0]
        expected.append(logits[labels[0, place] != -100])
        begin += len(part)
    assert torch.allclose(got, torch.cat(expected), atol=1e-5)
    model.document_start = None
    assert not torch.allclose(model(**batch).logits, got, atol=1e-5)
