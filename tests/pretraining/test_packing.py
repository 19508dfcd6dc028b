"""Documents become blocks of tokens without loss, and from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, load_dataset
from transformers import BertTokenizer

from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining import packing
from bioptimus_hf.pretraining.packing import tokenize_and_pack

TEXTS = [
    "Aspirin binding in severe asthma patients was induced by protein expression.",
    "The mice of the renal cells.",
    "",
    "Bronchoconstriction (acute) is a disease with cancer therapy on the gene, for patients and failure.",
]


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("max_length", [8, 16, 500])
@pytest.mark.parametrize("copies", [1, 5, 700])
def test_packing_loses_nothing(tokenizer: BertTokenizer, max_length: int, num_proc: int | None, copies: int) -> None:
    """Also if blocks cross the borders of what is tokenized at once, a thousand documents."""
    texts = TEXTS * copies
    documents = Dataset.from_dict({"text": texts, "document": range(len(texts))})
    packed = tokenize_and_pack(documents, tokenizer, max_length=max_length, num_proc=num_proc)["input_ids"][:]
    expected = [number for text in texts for number in tokenizer(text)["input_ids"]]
    assert [number for block in packed for number in block] == expected
    assert all(len(block) == max_length for block in packed[:-1])
    assert 0 < len(packed[-1]) <= max_length


def test_no_documents_make_no_blocks(tokenizer: BertTokenizer) -> None:
    documents = Dataset.from_dict({"text": TEXTS}).select([])
    assert len(tokenize_and_pack(documents, tokenizer, max_length=16)) == 0


def test_packed_tokens_take_two_bytes(
    tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on disk: the blocks are views of the file."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    (tmp_path / "text.txt").write_text("\n".join([" ".join(TEXTS * 5)] * 1000))
    documents = load_dataset("text", data_files=str(tmp_path / "text.txt"), split="train", cache_dir=str(tmp_path))
    packed = tokenize_and_pack(documents, tokenizer, max_length=128)
    assert str(packed.features["input_ids"].feature.dtype) == "uint16"
    tokens = sum(map(len, packed["input_ids"]))
    (cached,) = tmp_path.rglob("tokens-*/rows.arrow")
    assert cached.stat().st_size < 2.2 * tokens


def test_the_cache_is_aware_of_text_and_tokenizer(
    tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 5))
    (tmp_path / "other.txt").write_text("\n".join(TEXTS * 6))
    calls: list[int] = []
    original = packing._tokenizer

    def noted(backend: str) -> Any:
        calls.append(1)
        return original(backend)

    monkeypatch.setattr(packing, "_tokenizer", noted)

    def pack(file: str, max_length: int = 16) -> int:
        documents = load_dataset("text", data_files=str(tmp_path / file), split="train", cache_dir=str(tmp_path))
        before = len(calls)
        tokenize_and_pack(documents, tokenizer, max_length=max_length)
        return len(calls) - before

    assert pack("text.txt") == 1
    tokenizer(TEXTS[:2], truncation=True, max_length=8, padding=True)  # changes its state, but not its output
    assert pack("text.txt") == 0
    assert pack("text.txt", max_length=32) == 0  # the same tokens, in other blocks
    assert pack("other.txt") == 1
    tokenizer.add_tokens(["zzz"])
    assert pack("text.txt") == 1


@pytest.mark.parametrize("max_length", [4, 513])
def test_a_length_the_model_cannot_read_is_rejected(tokenizer: BertTokenizer, max_length: int) -> None:
    with pytest.raises(InputError, match="max_length: must be between 8 and the model's 512"):
        tokenize_and_pack(Dataset.from_dict({"text": TEXTS}), tokenizer, max_length=max_length)
