"""Tiny random token classifiers of common architectures, with tokenizers of the kinds that they have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from helpers import CHARACTERS, TAGS, WORDS, tiny_vocabulary
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModelForTokenClassification,
    BertTokenizer,
    CamembertTokenizer,
    DebertaTokenizer,
    DebertaV2Tokenizer,
    GPT2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

TEXTS = [" ".join(WORDS), " ".join(CHARACTERS), "Aspirin-induced asthma. (IL-2, p < 0.05); the patients' cells"] * 9
LONGEST = 64
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "embedding_size": 16,
}


def word_piece(**_: Any) -> BertTokenizer:
    return BertTokenizer(vocab={token: number for number, token in enumerate(tiny_vocabulary())})


def mpnet() -> MPNetTokenizer:
    tokens = ["<s>", "<pad>", "</s>", "[UNK]", *tiny_vocabulary()[7:], "<mask>"]
    return MPNetTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def byte_level(kind: Callable[..., PreTrainedTokenizerBase], *special: str) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=list(special))
    )
    model = json.loads(backend.to_str())["model"]
    return kind(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def modern_bert() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **names)


def sentence_piece(kind: Callable[..., PreTrainedTokenizerBase], *special: str) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    unknown = next(token for token in special if "unk" in token.lower())
    backend.train_from_iterator(
        [text.lower() for text in TEXTS] + TEXTS,
        trainers.UnigramTrainer(vocab_size=180, unk_token=unknown, special_tokens=list(special)),
    )
    pieces = json.loads(backend.to_str())["model"]["vocab"]
    return kind(vocab=[(piece, score) for piece, score in pieces])


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
TOKENIZERS: Mapping[str, Callable[[], PreTrainedTokenizerBase]] = {
    "bert": word_piece,
    "distilbert": word_piece,
    "electra": word_piece,
    "mpnet": mpnet,
    "roberta": lambda: byte_level(RobertaTokenizer, *ROBERTA),
    "deberta": lambda: byte_level(DebertaTokenizer, *BERT),
    "modernbert": modern_bert,
    "gpt2": lambda: byte_level(GPT2Tokenizer, "<|endoftext|>"),
    "xlm-roberta": lambda: sentence_piece(XLMRobertaTokenizer, *ROBERTA),
    "camembert": lambda: sentence_piece(CamembertTokenizer, *ROBERTA),
    "deberta-v2": lambda: sentence_piece(DebertaV2Tokenizer, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "albert": lambda: sentence_piece(AlbertTokenizer, "<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
}
"""How to make a tokenizer for each architecture, named as in `config.model_type`."""


def save_architecture(name: str, folder: Path, *, tags: tuple[str, ...] = TAGS, longest: int = LONGEST) -> None:
    """Save a random token classifier and its tokenizer, as they would come from the Hub."""
    tokenizer = TOKENIZERS[name]()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        name,
        vocab_size=len(tokenizer),
        max_position_embeddings=longest,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        id2label=dict(enumerate(tags)),
        label2id={tag: number for number, tag in enumerate(tags)},
        **SMALL,
    )
    head = AutoModelForTokenClassification.from_config(config).eval()
    output = head.score if hasattr(head, "score") else head.classifier
    torch.nn.init.normal_(output.weight)  # otherwise nearly all words get one tag
    head.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
