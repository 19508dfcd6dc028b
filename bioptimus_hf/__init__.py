"""Adapt a BERT encoder to a domain: vocabulary, distilled embeddings, masking curriculum, NER heads."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. A name is imported when it is first asked for, so that `import bioptimus_hf` is instant
# and a user of one part does not load the others.
_PUBLIC = {
    "load_corpus": "corpus",
    "split_sentences": "corpus",
    "train_vocabulary": "vocabulary",
    "extend_vocabulary": "vocabulary",
    "build_tokenizer": "vocabulary",
    "save_tokenizer": "vocabulary",
    "compare_vocabularies": "vocabulary",
    "VocabularyDiff": "vocabulary",
    "fertility": "segmentation",
    "find_contexts": "contexts",
    "search_documents": "search",
    "find_contexts_on_ray": "cluster",
    "contextual_embeddings": "reading",
    "initial_rows": "distillation",
    "transplant_vocabulary": "distillation",
    "distill_tokens": "token_distillation",
    "MaskingStrategy": "masking",
    "BioptimusDataCollator": "masking",
    "Phase": "curriculum",
    "BIOPTIMUS_CURRICULUM": "curriculum",
    "CurriculumCallback": "curriculum",
    "follow_curriculum": "curriculum",
    "save_masked_lm": "curriculum",
    "tokenize_and_pack": "packing",
    "BertForMaskedPositions": "modeling",
    "mask_once": "pretraining",
    "pretrain": "pretraining",
    "decontaminate": "decontamination",
    "read_test_sentences": "decontamination",
    "Entity": "documents",
    "Document": "documents",
    "DocumentReader": "formats",
    "write_documents": "formats",
    "NerTask": "ner",
    "BLURB_NER": "ner",
    "load_ner": "ner",
    "entity_scores": "scores",
    "export_onnx": "onnx_export",
    "Annotator": "annotation",
    "About": "records",
    "publish": "hub",
    "PublishedVersion": "hub",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
