"""Check the report on new embeddings: counts, neighbours by hand, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import tiny_vocabulary
from transformers import BertForMaskedLM, BertTokenizer

from bioptimus_hf.distillation.initialization import NewRows, initial_rows
from bioptimus_hf.distillation.report import RowsReport, inspect_rows
from bioptimus_hf.vocabulary.tokenizer import build_tokenizer

NEW = ["cardiopathy", "bronchospasm", "zebrafish", "##opath", "β"]


@pytest.fixture
def target(tokenizer: BertTokenizer) -> BertTokenizer:
    return build_tokenizer([*tiny_vocabulary(), *NEW], like=tokenizer)


def report(model: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer) -> tuple[NewRows, RowsReport]:
    table = model.get_input_embeddings().weight.detach()
    vectors = {
        "cardiopathy": 3 * table[tokenizer.convert_tokens_to_ids("asthma")],  # the same direction
        "bronchospasm": table[tokenizer.convert_tokens_to_ids("renal")],
        "##opath": torch.ones(table.shape[1]),
    }
    new = initial_rows(model, tokenizer, target, initializer="contextual_mean", vectors=vectors)
    return new, inspect_rows(model, tokenizer, target, new)


def test_counts_and_neighbours(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer) -> None:
    before = tiny_bert.get_input_embeddings().weight.detach().clone()
    new, found = report(tiny_bert, tokenizer, target)
    assert torch.equal(tiny_bert.get_input_embeddings().weight, before)
    assert found.counts == {
        "words and starts of words": {"hidden states in contexts": 2, "mean of the pieces": 1, "mean of the table": 1},
        "continuations (##)": {"hidden states in contexts": 1},
    }
    assert set(found.neighbours) == {"cardiopathy", "bronchospasm"}  # the others fell back on something else
    assert found.neighbours["cardiopathy"]["after"][0] == "asthma"
    assert found.neighbours["bronchospasm"]["after"][0] == "renal"
    pieces = set(tokenizer.tokenize("cardiopathy"))
    nearest = found.neighbours["cardiopathy"]["before"]
    assert len(nearest) == len(found.neighbours["cardiopathy"]["after"]) == 6
    assert not pieces & set(nearest)
    table = before[[tokenizer.convert_tokens_to_ids(piece) for piece in tokenizer.tokenize("cardiopathy")]]
    cosines = torch.nn.functional.cosine_similarity(table.mean(dim=0).unsqueeze(0), before)
    by_hand = [tokenizer.convert_ids_to_tokens(number) for number in cosines.argsort(descending=True).tolist()]
    special = set(tokenizer.all_special_tokens) | {"[unused0]", "[unused1]"}
    assert nearest == [token for token in by_hand if token not in pieces | special][:6]
    assert found.new_norms == pytest.approx([float(row.norm()) for row in new.rows.values()])
    assert len(found.cosines) == 6
    assert found.cosines["contextual_mean, contextual_mean_scaled"] <= 1


def test_report_as_markdown_json_and_plot(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer, tmp_path: Path
) -> None:
    _, found = report(tiny_bert, tokenizer, target)
    page = found.markdown()
    assert "| words and starts of words | hidden states in contexts | 2 |" in page
    assert "| cardiopathy |" in page
    assert "2 tokens: `zebrafish`, `β`" in page
    facts = json.loads(json.dumps(found.facts()))
    assert facts["new_norms"]["0"] <= facts["new_norms"]["50"] <= facts["new_norms"]["100"]
    pytest.importorskip("matplotlib", reason="plots are an extra")
    found.plot(tmp_path / "norms.png")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


def test_without_new_tokens(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    new = initial_rows(tiny_bert, tokenizer, tokenizer, initializer="subtoken_mean")
    found = inspect_rows(tiny_bert, tokenizer, tokenizer, new)
    assert (found.counts, found.new_norms, found.neighbours, found.cosines) == ({}, [], {}, {})
    assert "# New embeddings" in found.markdown()


def test_without_vectors(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer) -> None:
    new = initial_rows(tiny_bert, tokenizer, target, initializer="subtoken_mean")
    found = inspect_rows(tiny_bert, tokenizer, target, new)
    assert list(found.cosines) == ["random, subtoken_mean"]
    assert found.counts["words and starts of words"] == {"mean of the pieces": 3, "mean of the table": 1}
