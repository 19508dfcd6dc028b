"""Heads of any encoder: train them, annotate with them, and compare with the pipeline of transformers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from architectures import LONGEST, TOKENIZERS, save_architecture
from conftest import Command
from helpers import ROOT
from hypothesis import given, settings
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.models import longest_input
from bioptimus_hf.ner.word_pieces import words_of

from .test_annotator import any_text, offsets

SAMPLE = ROOT / "bioptimus_hf" / "sample"
SHORT = [
    "Aspirin-induced asthma (IL-2) in the patients' cells.",
    "p<0.05; 漢字 caf\u00e9",
    "  in the\tmice\n",
    "The severe disease, bronchoconstriction",
]
WORD_PIECE = ("bert", "distilbert", "electra", "mpnet")
Heads = Callable[[str], Path]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Heads:
    """Return a function that gives the folder of a head of an architecture."""
    root = tmp_path_factory.mktemp("architectures")

    def saved(name: str) -> Path:
        if not (root / name).is_dir():
            save_architecture(name, root / name)
        return root / name

    return saved


def tag_words(folder: Path, words: list[str]) -> list[str]:
    """Return the tag of each word as transformers gives it: that of its first piece."""
    head, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        labels = head(**encoded).logits[0].argmax(-1).tolist()
    pieces = encoded.word_ids()
    return [head.config.id2label[labels[pieces.index(word)]] for word in range(len(words))]


def assemble(spans: list[tuple[int, int]], tags: list[str]) -> list[tuple[int, int, str]]:
    """Return the entities that the tags of words stand for."""
    entities: list[tuple[int, int, str]] = []
    for (start, end), tag, before in zip(spans, tags, ["O", *tags], strict=False):
        if tag.startswith("I-") and before[2:] == tag[2:]:
            start = entities.pop()[0]
        if tag != "O":
            entities.append((start, end, tag[2:]))
    return entities


@pytest.mark.parametrize("name", WORD_PIECE)
def test_entities_equal_those_of_the_pipeline(name: str, heads: Heads) -> None:
    """The pipeline knows which pieces are one word for WordPiece only, and says so."""
    texts = [*(text[:40] for text in load_corpus(SAMPLE / "corpus.txt")["text"][:40]), *SHORT]
    ner = pipeline("ner", model=str(heads(name)), aggregation_strategy="first", device="cpu")
    found = list(map(offsets, Annotator(heads(name)).annotate(texts)))
    assert sum(map(len, found)) > 50
    assert found == [[(group["start"], group["end"], group["entity_group"]) for group in ner(text)] for text in texts]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_get_the_tags_of_their_first_pieces(name: str, heads: Heads) -> None:
    """What a head has learned of words that were given as such, it applies to the words of a text."""
    found = list(map(offsets, Annotator(heads(name)).annotate(SHORT)))
    assert sum(map(len, found)) > 4
    for text, entities in zip(SHORT, found, strict=True):
        spans = words_of(text)
        assert entities == assemble(spans, tag_words(heads(name), [text[start:end] for start, end in spans]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_offsets_are_exact(name: str, heads: Heads) -> None:
    annotator = Annotator(heads(name))

    @given(any_text)
    @settings(max_examples=40, deadline=None)
    def check(text: str) -> None:
        (found,) = annotator.annotate([text])
        for entity in found:
            assert text[entity.start : entity.end] == entity.text
            assert entity.text == entity.text.strip() != ""
        for entity, following in pairwise(found):
            assert entity.end <= following.start

    check()


@pytest.mark.parametrize("text", ["", " ", "\n", "a", "IL-2", "the (IL-2).", "漢字", " a漢b ", "🧬 DNA", "caf\u00e9 x"])
def test_words_are_those_of_bert(text: str) -> None:
    """All tokenizers divide texts into the same words."""
    tokenizer = TOKENIZERS["bert"]()
    encoding = tokenizer(text, add_special_tokens=False)
    spans = [tuple(encoding.word_to_chars(word)) for word in dict.fromkeys(encoding.word_ids())]
    assert words_of(text) == spans


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_head_is_trained_saved_and_used(name: str, heads: Heads, tmp_path: Path, command: Command) -> None:
    tags = {"Aspirin": "B-Chemical", "induced": "O", "severe": "O", "asthma": "B-Disease", ".": "O"}
    (tmp_path / "data").mkdir()
    for split in ("train", "dev", "test"):
        sentence = "".join(f"{word}\t{tag}\n" for word, tag in tags.items())
        (tmp_path / "data" / f"{split}.tsv").write_text(f"{sentence}\n" * 8)
    options = ("--num_train_epochs", 12, "--learning_rate", 0.02, "--max_length", LONGEST, "--seeds", 1)
    where = ("--output_dir", tmp_path / "run", "--ner_data", tmp_path / "data", "--tasks", "mine")
    trained = AutoModelForTokenClassification.from_pretrained(heads(name))
    trained.base_model.save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(heads(name)).save_pretrained(tmp_path / "encoder")
    command("finetune-ner", "--models", f"tiny={tmp_path / 'encoder'}", *where, *options)
    folder = tmp_path / "run" / "ner" / "mine" / "tiny" / "0"
    head, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(head) is type(trained)
    assert tokenizer.model_max_length == longest_input(head.config)
    after_blank = tokenizer("the asthma", add_special_tokens=False)
    apart = tokenizer(["the", "asthma"], is_split_into_words=True, add_special_tokens=False)
    assert apart["input_ids"] == after_blank["input_ids"]
    (found,) = Annotator(folder).annotate(["Aspirin induced severe asthma."])
    assert [(entity.text, entity.label) for entity in found] == [("Aspirin", "Chemical"), ("asthma", "Disease")]
