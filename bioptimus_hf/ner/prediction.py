"""Predict the tag of each word of sentences, with its probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import MAX_LENGTH, check_labels_tokens, check_tokenizer, longest_input
from bioptimus_hf.ner.calibration import Floats
from bioptimus_hf.ner.windows import sentence_windows
from bioptimus_hf.progress import progress_bar


@dataclass(frozen=True)
class ScoredTags:
    """The tags that a head predicts for the words of a sentence.

    Attributes:
        tags: of each word.
        scores: their probabilities, float32.
    """

    tags: list[str]
    scores: Floats


@torch.no_grad()
def predict_scored_tags(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    *,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    desc: str = "Tagging",
) -> list[ScoredTags]:
    """Predict exactly one tag for each word of sentences of any length; for arguments and errors see `predict_tags`.

    Args:
        desc: what the progress bar says.
    """
    check_labels_tokens("the model", model)
    check_tokenizer(tokenizer, model.config)
    names = model.config.id2label
    max_length = min(max_length, longest_input(model.config))
    found = [ScoredTags([""] * len(words), np.zeros(len(words), dtype=np.float32)) for words in sentences]
    windows = [
        (number, window)
        for number, of_sentence in enumerate(sentence_windows(sentences, tokenizer, max_length=max_length))
        for window in of_sentence
    ]
    windows.sort(key=lambda pair: -len(pair[1].input_ids))
    was_training = model.training
    model.eval()
    for start in progress_bar(range(0, len(windows), batch_size), desc=desc, unit=" batches", leave=False):
        batch = windows[start : start + batch_size]
        padded = tokenizer.pad(
            {"input_ids": [window.input_ids for _, window in batch]}, padding_side="right", return_tensors="pt"
        )
        best = model(**padded.to(model.device)).logits.float().softmax(-1).max(-1)
        if not bool(best.values.isfinite().all()):
            raise InputError("the model computes NaN: its weights are damaged or its training diverged")
        rows = zip(batch, best.values.cpu().numpy(), best.indices.tolist(), strict=True)
        for (number, window), scores, labels in rows:
            for word, place in enumerate(window.first_pieces, start=window.first_word):
                found[number].tags[word] = names[labels[place]]
                found[number].scores[word] = scores[place]
    model.train(was_training)
    return found
