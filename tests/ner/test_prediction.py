"""Test the tags of words with their scores, which are those of annotation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import save_architecture
from helpers import WORDS, build_tiny_head, build_tiny_tokenizer
from transformers import AutoTokenizer, BertForTokenClassification

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.models import load_by_name, load_token_classifier
from bioptimus_hf.ner import prediction
from bioptimus_hf.ner.calibration import score_of_entity
from bioptimus_hf.ner.prediction import predict_scored_tags, predict_tags
from bioptimus_hf.ner.scores import entity_spans
from bioptimus_hf.ner.windows import sentence_windows

SENTENCES = [WORDS[start : start + length] for start, length in ((0, 3), (5, 20), (2, 1), (9, 11))] + [WORDS * 4]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_scores_are_the_probabilities_of_the_tags(name: str, tmp_path: Path) -> None:
    """BERT computes without padding. The last sentence is longer than a window."""
    save_architecture(name, tmp_path)
    model, tokenizer = load_token_classifier(tmp_path), load_by_name(AutoTokenizer, tmp_path)
    found = predict_scored_tags(model, tokenizer, SENTENCES, batch_size=2, max_length=40)
    assert [of_sentence.tags for of_sentence in found] == predict_tags(model, tokenizer, SENTENCES, max_length=40)
    for words, of_sentence in zip(SENTENCES, found, strict=True):
        windows = next(sentence_windows([words], tokenizer, max_length=40))
        logits = [model(torch.tensor([one.input_ids])).logits[0, one.first_pieces] for one in windows]
        best = torch.cat(logits).softmax(-1).max(-1)
        assert of_sentence.tags == [model.config.id2label[label] for label in best.indices.tolist()]
        assert of_sentence.scores == pytest.approx(best.values.detach().numpy(), abs=1e-6)


def test_scores_are_those_of_annotation() -> None:
    model, tokenizer = build_tiny_head(layers=1, seed=2), build_tiny_tokenizer()
    found = predict_scored_tags(model, tokenizer, SENTENCES)
    texts = [" ".join(words) for words in SENTENCES]
    compared = 0
    for annotated, of_sentence in zip(Annotator(model, tokenizer).annotate(texts), found, strict=True):
        scores = [score_of_entity(of_sentence.scores[begin:end]) for begin, end, _ in entity_spans(of_sentence.tags)]
        every = [entity.score for entity in annotated]  # also those that begin with I-
        for score in scores:
            assert any(score == pytest.approx(one, abs=1e-6) for one in every)
        compared += len(scores)
    assert compared > 10


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored_after_an_interrupt(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = build_tiny_head(layers=1).train(training), build_tiny_tokenizer()
    modes: list[bool] = []

    def interrupted(model: BertForTokenClassification, *_: object) -> torch.Tensor:
        modes.append(model.training)
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "packed_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_tags(model, tokenizer, SENTENCES)
    assert (modes, model.training) == ([False], training)
