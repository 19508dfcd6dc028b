"""Adapt a BERT encoder to a domain: vocabulary, distilled embeddings, masking curriculum, NER heads."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. A name is imported when it is first asked for, so that `import bioptimus_hf` is instant
# and a user of one part does not load the others.
_PUBLIC = {
    "load_corpus": "corpus.dataset",
    "split_sentences": "corpus.sentences",
    "train_vocabulary": "vocabulary.training",
    "extend_vocabulary": "vocabulary.training",
    "build_tokenizer": "vocabulary.tokenizer",
    "save_tokenizer": "models",
    "compare_vocabularies": "vocabulary.tokenizer",
    "VocabularyDiff": "vocabulary.tokenizer",
    "fertility": "vocabulary.fertility",
    "find_contexts": "contexts.finder",
    "search_documents": "contexts.local",
    "find_contexts_on_ray": "contexts.on_ray",
    "contextual_embeddings": "distillation.contextual",
    "initial_rows": "distillation.initialization",
    "transplant_vocabulary": "distillation.transplant",
    "distill_tokens": "distillation.token_distillation",
    "MaskingStrategy": "pretraining.masking",
    "BioptimusDataCollator": "pretraining.masking",
    "Phase": "pretraining.curriculum",
    "BIOPTIMUS_CURRICULUM": "pretraining.curriculum",
    "CurriculumCallback": "pretraining.callback",
    "follow_curriculum": "pretraining.curriculum",
    "save_masked_lm": "models",
    "tokenize_and_pack": "pretraining.packing",
    "BertForMaskedPositions": "pretraining.modeling",
    "mask_once": "pretraining.run",
    "pretrain": "pretraining.run",
    "decontaminate": "corpus.decontamination",
    "read_test_sentences": "corpus.decontamination",
    "Entity": "corpus.documents",
    "Document": "corpus.documents",
    "DocumentReader": "corpus.formats",
    "write_documents": "corpus.formats",
    "NerTask": "ner.tasks",
    "BLURB_NER": "ner.tasks",
    "load_ner": "ner.tasks",
    "entity_scores": "ner.scores",
    "export_onnx": "annotation.onnx_export",
    "Annotator": "annotation.annotator",
    "About": "publishing.options",
    "Selection": "publishing.options",
    "publish": "publishing.publish",
    "PublishedVersion": "publishing.publish",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
