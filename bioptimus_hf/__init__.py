"""Adapt a BERT encoder to a domain: vocabulary, distilled embeddings, masking curriculum, NER heads."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what editors and type checkers see of the names below
    from bioptimus_hf.annotation.annotate_files import annotate_files as annotate_files
    from bioptimus_hf.annotation.annotator import Annotator as Annotator
    from bioptimus_hf.annotation.onnx_export import export_onnx as export_onnx
    from bioptimus_hf.annotation.options import AnnotationOptions as AnnotationOptions
    from bioptimus_hf.annotation.options import RunnerOptions as RunnerOptions
    from bioptimus_hf.artifacts import Run as Run
    from bioptimus_hf.contexts.finder import find_contexts as find_contexts
    from bioptimus_hf.contexts.local import search_documents as search_documents
    from bioptimus_hf.contexts.on_ray import find_contexts_on_ray as find_contexts_on_ray
    from bioptimus_hf.contexts.options import ContextsOptions as ContextsOptions
    from bioptimus_hf.contexts.query import ContextQuery as ContextQuery
    from bioptimus_hf.contexts.stage import make_contexts as make_contexts
    from bioptimus_hf.corpus.dataset import load_corpus as load_corpus
    from bioptimus_hf.corpus.decontamination import decontaminate as decontaminate
    from bioptimus_hf.corpus.decontamination import read_test_sentences as read_test_sentences
    from bioptimus_hf.corpus.documents import Document as Document
    from bioptimus_hf.corpus.documents import Entity as Entity
    from bioptimus_hf.corpus.formats import DocumentReader as DocumentReader
    from bioptimus_hf.corpus.formats import write_documents as write_documents
    from bioptimus_hf.corpus.options import Corpus as Corpus
    from bioptimus_hf.corpus.reading import ReadOptions as ReadOptions
    from bioptimus_hf.corpus.sentences import split_sentences as split_sentences
    from bioptimus_hf.distillation.contextual import contextual_embeddings as contextual_embeddings
    from bioptimus_hf.distillation.initialization import initial_rows as initial_rows
    from bioptimus_hf.distillation.options import DistillationOptions as DistillationOptions
    from bioptimus_hf.distillation.options import RowTraining as RowTraining
    from bioptimus_hf.distillation.stage import make_distilled_model as make_distilled_model
    from bioptimus_hf.distillation.token_distillation import distill_tokens as distill_tokens
    from bioptimus_hf.distillation.transplant import transplant_vocabulary as transplant_vocabulary
    from bioptimus_hf.errors import InputError as InputError
    from bioptimus_hf.errors import TrainingDiverged as TrainingDiverged
    from bioptimus_hf.models import find_model as find_model
    from bioptimus_hf.models import load_masked_lm as load_masked_lm
    from bioptimus_hf.models import load_token_classifier as load_token_classifier
    from bioptimus_hf.models import new_head as new_head
    from bioptimus_hf.models import save_head as save_head
    from bioptimus_hf.models import save_masked_lm as save_masked_lm
    from bioptimus_hf.models import save_tokenizer as save_tokenizer
    from bioptimus_hf.ner.experiments import make_heads as make_heads
    from bioptimus_hf.ner.finetuning import best_epoch_arguments as best_epoch_arguments
    from bioptimus_hf.ner.finetuning import finetune as finetune
    from bioptimus_hf.ner.head_report import report_heads as report_heads
    from bioptimus_hf.ner.joint import join_tasks as join_tasks
    from bioptimus_hf.ner.options import HeadOptions as HeadOptions
    from bioptimus_hf.ner.options import HeadTraining as HeadTraining
    from bioptimus_hf.ner.prediction import predict_tags as predict_tags
    from bioptimus_hf.ner.scores import entity_scores as entity_scores
    from bioptimus_hf.ner.tasks import BLURB_NER as BLURB_NER
    from bioptimus_hf.ner.tasks import NerTask as NerTask
    from bioptimus_hf.ner.tasks import load_ner as load_ner
    from bioptimus_hf.pretraining.arguments import PretrainingArguments as PretrainingArguments
    from bioptimus_hf.pretraining.callback import CurriculumCallback as CurriculumCallback
    from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM as BIOPTIMUS_CURRICULUM
    from bioptimus_hf.pretraining.curriculum import Phase as Phase
    from bioptimus_hf.pretraining.curriculum import follow_curriculum as follow_curriculum
    from bioptimus_hf.pretraining.loop import CurriculumLoop as CurriculumLoop
    from bioptimus_hf.pretraining.masking import BioptimusDataCollator as BioptimusDataCollator
    from bioptimus_hf.pretraining.masking import MaskingStrategy as MaskingStrategy
    from bioptimus_hf.pretraining.masking import mask_once as mask_once
    from bioptimus_hf.pretraining.modeling import BertForMaskedPositions as BertForMaskedPositions
    from bioptimus_hf.pretraining.options import PretrainingOptions as PretrainingOptions
    from bioptimus_hf.pretraining.packing import tokenize_and_pack as tokenize_and_pack
    from bioptimus_hf.pretraining.run import pretrain as pretrain
    from bioptimus_hf.pretraining.stage import make_versions as make_versions
    from bioptimus_hf.publishing.consistency import Finding as Finding
    from bioptimus_hf.publishing.consistency import check_results as check_results
    from bioptimus_hf.publishing.options import About as About
    from bioptimus_hf.publishing.options import PackageOptions as PackageOptions
    from bioptimus_hf.publishing.options import Selection as Selection
    from bioptimus_hf.publishing.package import package_head as package_head
    from bioptimus_hf.publishing.publish import PublishedVersion as PublishedVersion
    from bioptimus_hf.publishing.publish import publish as publish
    from bioptimus_hf.publishing.report import make_report as make_report
    from bioptimus_hf.vocabulary.fertility import fertility as fertility
    from bioptimus_hf.vocabulary.options import VocabularyOptions as VocabularyOptions
    from bioptimus_hf.vocabulary.stage import make_tokenizer as make_tokenizer
    from bioptimus_hf.vocabulary.tokenizer import VocabularyDiff as VocabularyDiff
    from bioptimus_hf.vocabulary.tokenizer import build_tokenizer as build_tokenizer
    from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies as compare_vocabularies
    from bioptimus_hf.vocabulary.training import extend_vocabulary as extend_vocabulary
    from bioptimus_hf.vocabulary.training import train_vocabulary as train_vocabulary

# The module of each public name. It is imported when the name is first used, so that `import bioptimus_hf` is instant
# and nobody loads parts they don't use.
_PUBLIC = {
    "InputError": "errors",
    "TrainingDiverged": "errors",
    "Run": "artifacts",
    "find_model": "models",
    "load_masked_lm": "models",
    "load_token_classifier": "models",
    "new_head": "models",
    "save_head": "models",
    "save_masked_lm": "models",
    "save_tokenizer": "models",
    "Corpus": "corpus.options",
    "Document": "corpus.documents",
    "Entity": "corpus.documents",
    "DocumentReader": "corpus.formats",
    "ReadOptions": "corpus.reading",
    "write_documents": "corpus.formats",
    "load_corpus": "corpus.dataset",
    "split_sentences": "corpus.sentences",
    "decontaminate": "corpus.decontamination",
    "read_test_sentences": "corpus.decontamination",
    "VocabularyOptions": "vocabulary.options",
    "make_tokenizer": "vocabulary.stage",
    "extend_vocabulary": "vocabulary.training",
    "train_vocabulary": "vocabulary.training",
    "VocabularyDiff": "vocabulary.tokenizer",
    "build_tokenizer": "vocabulary.tokenizer",
    "compare_vocabularies": "vocabulary.tokenizer",
    "fertility": "vocabulary.fertility",
    "ContextsOptions": "contexts.options",
    "make_contexts": "contexts.stage",
    "ContextQuery": "contexts.query",
    "find_contexts": "contexts.finder",
    "search_documents": "contexts.local",
    "find_contexts_on_ray": "contexts.on_ray",
    "DistillationOptions": "distillation.options",
    "RowTraining": "distillation.options",
    "make_distilled_model": "distillation.stage",
    "contextual_embeddings": "distillation.contextual",
    "initial_rows": "distillation.initialization",
    "transplant_vocabulary": "distillation.transplant",
    "distill_tokens": "distillation.token_distillation",
    "PretrainingOptions": "pretraining.options",
    "PretrainingArguments": "pretraining.arguments",
    "BioptimusDataCollator": "pretraining.masking",
    "MaskingStrategy": "pretraining.masking",
    "mask_once": "pretraining.masking",
    "BIOPTIMUS_CURRICULUM": "pretraining.curriculum",
    "Phase": "pretraining.curriculum",
    "follow_curriculum": "pretraining.curriculum",
    "CurriculumCallback": "pretraining.callback",
    "CurriculumLoop": "pretraining.loop",
    "tokenize_and_pack": "pretraining.packing",
    "BertForMaskedPositions": "pretraining.modeling",
    "make_versions": "pretraining.stage",
    "pretrain": "pretraining.run",
    "HeadOptions": "ner.options",
    "HeadTraining": "ner.options",
    "BLURB_NER": "ner.tasks",
    "NerTask": "ner.tasks",
    "load_ner": "ner.tasks",
    "entity_scores": "ner.scores",
    "report_heads": "ner.head_report",
    "join_tasks": "ner.joint",
    "best_epoch_arguments": "ner.finetuning",
    "finetune": "ner.finetuning",
    "predict_tags": "ner.prediction",
    "make_heads": "ner.experiments",
    "AnnotationOptions": "annotation.options",
    "RunnerOptions": "annotation.options",
    "Annotator": "annotation.annotator",
    "annotate_files": "annotation.annotate_files",
    "export_onnx": "annotation.onnx_export",
    "About": "publishing.options",
    "Selection": "publishing.options",
    "PackageOptions": "publishing.options",
    "package_head": "publishing.package",
    "PublishedVersion": "publishing.publish",
    "publish": "publishing.publish",
    "Finding": "publishing.consistency",
    "check_results": "publishing.consistency",
    "make_report": "publishing.report",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
