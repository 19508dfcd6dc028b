"""Say what saved tokenizers and models compute; runs in any version of transformers.

python saved_models.py REQUEST.json    # the arguments of `describe`; prints what it returns
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline


def describe(tokenizers: Sequence[str], encoders: Sequence[str], head: str, texts: Sequence[str]) -> dict[str, Any]:
    """Load folders as a user would, and return token ids, offsets, logits, and what pipelines find in texts."""
    return {
        "version": transformers.__version__,
        "tokens": {folder: _tokens(folder, texts) for folder in tokenizers},
        "logits": {folder: _logits(folder, texts) for folder in encoders},
        "ner": [
            [_plain(entity) for entity in found]
            for found in pipeline("ner", model=head, aggregation_strategy="first", device="cpu")(list(texts))
        ],
        "fill-mask": {
            folder: [_plain(guess) for guess in pipeline("fill-mask", model=folder, device="cpu")("[MASK] in mice.")]
            for folder in encoders
        },
    }


def _tokens(folder: str, texts: Sequence[str]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(list(texts), return_offsets_mapping=True, truncation=True)
    return {
        "ids": encoded["input_ids"],
        "types": encoded["token_type_ids"],
        "offsets": [[list(place) for place in of_text] for of_text in encoded["offset_mapping"]],
        "decoded": tokenizer.batch_decode(encoded["input_ids"]),
        "special": {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.all_special_tokens},
        "max_length": tokenizer.model_max_length,
        "size": len(tokenizer),
    }


@torch.no_grad()
def _logits(folder: str, texts: Sequence[str]) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
    logits: list[Any] = model(**batch).logits.tolist()
    return logits


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Turn NumPy's numbers into Python's."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}


if __name__ == "__main__":
    print(json.dumps(describe(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
