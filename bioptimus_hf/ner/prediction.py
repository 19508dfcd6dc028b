"""Predict a tag for each word of sentences, with its probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.models import MAX_LENGTH, check_labels_tokens, check_tokenizer, evaluating, longest_input
from bioptimus_hf.ner.calibration import Floats
from bioptimus_hf.ner.joint import keep_types, types_of_labels
from bioptimus_hf.ner.packed_bert import can_be_packed, packed, packed_logits
from bioptimus_hf.ner.tasks import documents_of
from bioptimus_hf.ner.windows import (
    Window,
    document_window,
    document_windows,
    sentence_window,
    sentence_windows,
    sentences_by_document,
)
from bioptimus_hf.progress import progress_bar

_PIECES = 1024  # in a batch without padding: enough to keep a CPU busy, and few enough for its cache


@dataclass(frozen=True)
class ScoredTags:
    """The tags that a head predicts for the words of a sentence.

    Attributes:
        tags: of each word.
        scores: their probabilities, float32.
    """

    tags: list[str]
    scores: Floats


@check_call()
def predict_tags(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    *,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    documents: Sequence[Any] | None = None,
) -> list[list[str]]:
    """Predict exactly one tag for each word of sentences of any length.

    Args:
        sentences: words of each sentence.
        batch_size: number of windows in a batch; windows are sorted by length. A BERT in float32 on a CPU reads
            batches of about 1,024 pieces instead.
        max_length: maximum number of word pieces in a window, including those that begin and end it.
        documents: document of each sentence, from `documents_of`, for heads that are trained with document context:
            neighbouring sentences with the same value are read together. By default, each sentence is read by itself.

    Returns:
        The tags of each sentence, one for each word.

    Raises:
        InputError: the model isn't a token classifier, or the tokenizer has more tokens than it has embeddings; or
            there aren't as many documents as sentences.
    """
    found = predict_scored_tags(
        model, tokenizer, sentences, batch_size=batch_size, max_length=max_length, documents=documents
    )
    return [of_sentence.tags for of_sentence in found]


@torch.no_grad()
def predict_scored_tags(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    *,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    documents: Sequence[Any] | None = None,
    desc: str = "Tagging",
) -> list[ScoredTags]:
    """Predict the tags of sentences with their scores; for arguments and errors see `predict_tags`.

    Args:
        desc: what the progress bar says.
    """
    check_labels_tokens("the model", model)
    check_tokenizer(tokenizer, model.config)
    names = model.config.id2label
    windows = list(_numbered_windows(model.config, tokenizer, sentences, documents, max_length))
    ends = np.cumsum([len(words) for words in sentences], dtype=np.int64).tolist()
    tags = [""] * (ends[-1] if ends else 0)
    probabilities = np.zeros(len(tags), dtype=np.float32)
    windows.sort(key=lambda pair: -len(pair[1].input_ids))
    logits_of: Callable[[Any, Sequence[Window]], torch.Tensor]
    if can_be_packed(model):
        logits_of, batches = _logits_packed, list(_batches_of_pieces(windows))
    else:
        logits_of = partial(_logits_padded, tokenizer=tokenizer)
        batches = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
    with evaluating(model):
        for batch in progress_bar(batches, desc=desc, unit=" batches", leave=False):
            logits = logits_of(model, [window for _, window in batch]).float()
            best = logits.argmax(-1)
            scores = logits.softmax(-1).gather(-1, best[:, None])[:, 0].cpu().numpy()
            labels, end = best.tolist(), 0
            for first, window in batch:
                begin, end = end, end + len(window.first_pieces)
                own = slice(first, first + end - begin)
                tags[own] = [names[label] for label in labels[begin:end]]
                probabilities[own] = scores[begin:end]
    return [ScoredTags(tags[begin:end], probabilities[begin:end]) for begin, end in pairwise([0, *ends])]


def _numbered_windows(
    configuration: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    documents: Sequence[Any] | None,
    max_length: int,
) -> Iterator[tuple[int, Window]]:
    """Yield the windows in which a head reads sentences, each with the number of its first word among all words."""
    max_length = min(max_length, longest_input(configuration))
    if (size := document_window(configuration)) is None:
        parts = [[words] for words in sentences]
        size = sentence_window(configuration) or max_length
        windows = sentence_windows(sentences, tokenizer, max_length=min(max_length, size))
    else:
        parts = sentences_by_document(sentences, range(len(sentences)) if documents is None else documents)
        windows = document_windows(parts, tokenizer, max_length=min(max_length, size))
    before = 0
    for part, of_part in zip(parts, windows, strict=True):
        for window in of_part:
            yield before + window.first_word, window
        before += sum(map(len, part))


def _batches_of_pieces(windows: Sequence[tuple[int, Window]]) -> Iterator[list[tuple[int, Window]]]:
    """Cut windows into batches that each end with the window that fills `_PIECES`."""
    batch: list[tuple[int, Window]] = []
    pieces = 0
    for number, window in windows:
        batch.append((number, window))
        pieces += len(window.input_ids)
        if pieces >= _PIECES:
            yield batch
            batch, pieces = [], 0
    if batch:
        yield batch


def _logits_padded(
    model: PreTrainedModel, windows: Sequence[Window], *, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """Return the logits (words, tags) of the words that are labelled in windows, one window after another."""
    padded = tokenizer.pad(
        {"input_ids": [window.input_ids for window in windows]}, padding_side="right", return_tensors="pt"
    )
    logits: torch.Tensor = model(**padded.to(model.device)).logits
    rows = [row for row, window in enumerate(windows) for _ in window.first_pieces]
    return logits[rows, [place for window in windows for place in window.first_pieces]]


def _logits_packed(model: Any, windows: Sequence[Window]) -> torch.Tensor:
    """Return what `_logits_padded` does, without padding."""
    batch = packed([window.input_ids for window in windows])
    starts = (batch["lengths"].cumsum(0) - batch["lengths"]).tolist()
    predicted = torch.tensor(
        [start + place for start, window in zip(starts, windows, strict=True) for place in window.first_pieces],
        dtype=torch.int64,
    )
    return packed_logits(model, batch["input_ids"], batch["lengths"], predicted)


def predict_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Dataset],
    *,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
) -> dict[str, list[list[str]]]:
    """Predict the tags of several tasks with a joint head, as `annotate` does: the best of all tags of the head.

    Tags of types that a task doesn't have are `O` in its predictions. Test sets that consist of the same sentences are
    predicted once.

    Args:
        tasks: data from `load_ner`, by task.
        batch_size: see `predict_tags`.
        max_length: see `predict_tags`.
    """
    predicted: list[tuple[Any, list[list[str]]]] = []  # sentences with their documents, and their tags
    in_context = document_window(model.config) is not None
    kept = {}
    for task, data in tasks.items():
        text = sentences, documents = data["tokens"][:], documents_of(data) if in_context else None
        tags = next((tags for known, tags in predicted if known == text), None)
        if tags is None:
            tags = predict_tags(
                model, tokenizer, sentences, batch_size=batch_size, max_length=max_length, documents=documents
            )
            predicted.append((text, tags))
        kept[task] = keep_types(tags, types_of_labels(data))
    return kept
