"""Average a base model's hidden states over the contexts of new tokens.

Figure 2 of Pavlova and Makhlouf, BIOptimus (BioNLP 2023, arXiv 2308.08625): f is the mean of the hidden states over the
pieces of a word, and g the mean of f over the word's contexts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.contexts.kernels import hash_texts
from bioptimus_hf.contexts.matching import utf8_buffers
from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.models import check_finite, check_tokenizer, evaluating
from bioptimus_hf.progress import progress_bar

DIVERGED = "the base model may be damaged, or bfloat16 too coarse for it: try another layer, or without bf16"
"""How the error ends that begins with the token whose vector isn't finite."""

_BATCHES_PER_CHUNK = 64  # batches whose sentences are loaded and sorted together


class _Span(NamedTuple):
    """A token's occurrence in a sentence.

    Attributes:
        token: number of the token in `_Index.tokens`.
        start: offset of the first character.
        end: offset after the last character.
    """

    token: int
    start: int
    end: int


@check_call(contexts=("token", "text", "start", "end"))
@torch.no_grad()
def contextual_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Dataset,
    *,
    layer: int = -1,
    batch_size: int = 64,
    bf16: bool = False,
) -> dict[str, torch.Tensor]:
    """Average the hidden states of each token over its pieces, then over its contexts.

    A sentence that is a context of several tokens is read once. Sentences are batched by length to reduce padding.
    Those that are too long for the model are split into overlapping windows; a token is read in the window where its
    shorter side context is longest. Texts stay on disk until they are read: in memory, a context takes 32 bytes.

    Args:
        model: a BERT, with or without a head.
        tokenizer: the tokenizer of the model.
        contexts: rows with `token`, `text`, `start` and `end` (character offsets in `text`), from `find_contexts`.
        layer: layer whose hidden states are averaged; 0 is the output of the embeddings, -1 the last layer.
        batch_size: sentences per batch.
        bf16: whether to multiply matrices in bfloat16, which is faster on processors that support it. Sums are float64
            in any case.

    Returns:
        Token to its vector, float32 of shape (hidden size,), for every token that has a context.

    Raises:
        InputError: the model has no such layer, or a context contains no piece between `start` and `end`.
        TrainingDiverged: the hidden states of a token contain NaN or infinity.
    """
    check_tokenizer(tokenizer, model.config)
    check_layer(model.config, layer)
    encoder = model.base_model
    # Many tokenizers on the Hub set no limit, for which transformers 5 uses 1e30.
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    index = _build_index(contexts)
    sums = torch.zeros(len(index.tokens), model.config.hidden_size, dtype=torch.float64)
    counts = torch.zeros(len(index.tokens), dtype=torch.int64)
    bar = progress_bar(total=len(index.firsts) - 1, desc="Reading contexts", unit=" sentences")
    with evaluating(encoder), bar:
        for texts, spans in _batches(contexts, index, tokenizer, batch_size):
            encoded, places = _encode(texts, spans, tokenizer, limit)
            inputs = {name: values.to(model.device) for name, values in encoded.items()}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                states = encoder(**inputs, output_hidden_states=True).hidden_states[layer].cpu()
            window, first, last, token = torch.tensor(places).unbind(dim=1)
            sums.index_add_(0, token, _mean_of_pieces(states.double(), window, first, last))
            counts.index_add_(0, token, torch.ones_like(token))
            bar.update(len(texts))
    means = (sums / counts.unsqueeze(1)).float()
    vectors = {token: means[number] for number, token in enumerate(index.tokens)}
    check_finite(vectors.items(), "hidden states", DIVERGED, error=TrainingDiverged)
    return vectors


def check_layer(config: PretrainedConfig, layer: int) -> None:
    """Check that a model of this configuration has a layer.

    Raises:
        InputError: it hasn't.
    """
    layers = config.num_hidden_layers
    if not -(layers + 1) <= layer <= layers:
        raise InputError(
            f"the model has no layer {layer}: use 0 (embeddings) to {layers}, or -1 (last) to {-layers - 1}",
            argument="layer",
        )


class _Index(NamedTuple):
    """All contexts without their texts, sorted by decreasing length of the sentence.

    Attributes:
        tokens: tokens that have contexts.
        token: int32 of shape (contexts,), position in `tokens`.
        start: int32 of shape (contexts,), first character.
        end: int32 of shape (contexts,), character after the last.
        row: int64 of shape (contexts,), row in the data set.
        firsts: int64 of shape (sentences + 1,); contexts firsts[i] to firsts[i + 1] - 1 belong to sentence i.
    """

    tokens: tuple[str, ...]
    token: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]


def _build_index(contexts: Dataset) -> _Index:
    tokens: dict[str, int] = {}
    columns: list[tuple[Any, ...]] = [(np.empty(0, dtype=np.uint64), *np.empty((4, 0), dtype=np.int32))]
    for table in contexts.with_format("arrow").iter(batch_size=10_000):
        content, offsets = utf8_buffers(pa.concat_arrays(table["text"].chunks))
        numbers = [tokens.setdefault(name, len(tokens)) for name in table["token"].to_pylist()]
        spans = (table[name].to_numpy().astype(np.int32) for name in ("start", "end"))
        hashes = hash_texts(content, offsets, np.uint64(0))
        columns.append((hashes, -np.diff(offsets).astype(np.int32), np.array(numbers, dtype=np.int32), *spans))
    hashes, negative_length, token, start, end = (np.concatenate(column) for column in zip(*columns, strict=True))
    row = np.lexsort((token, hashes, negative_length))
    edges = np.flatnonzero(np.diff(hashes[row]) != 0) + 1
    firsts = np.concatenate([[0], edges, [len(row)]]) if len(row) else np.zeros(1, dtype=np.int64)
    return _Index(tuple(tokens), token[row], start[row], end[row], row, firsts)


def _batches(
    contexts: Dataset, index: _Index, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[tuple[list[str], list[list[_Span]]]]:
    """Yield batches of sentences and of their spans, longest first, so that memory runs out at once or never.

    The index sorts sentences by bytes. Within a chunk of batches, they are sorted by pieces.
    """
    sentences = len(index.firsts) - 1
    chunk = _BATCHES_PER_CHUNK * batch_size
    for begin in range(0, sentences, chunk):
        numbers = np.arange(begin, min(begin + chunk, sentences))
        texts = [with_blanks(text) for text in contexts.select(index.row[index.firsts[numbers]])["text"][:]]
        lengths = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda place: (-lengths[place], texts[place]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield [texts[place] for place in batch], [_spans(index, int(numbers[place])) for place in batch]


def _spans(index: _Index, sentence: int) -> list[_Span]:
    contexts = slice(*index.firsts[sentence : sentence + 2].tolist())
    columns = (column[contexts].tolist() for column in (index.token, index.start, index.end))
    return [_Span(*values) for values in zip(*columns, strict=True)]


def _mean_of_pieces(
    states: torch.Tensor, window: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """Average hidden states over the pieces of each span.

    Args:
        states: of shape (windows, length, hidden size).
        window: int64 of shape (spans,), the window of each span.
        first: int64 of shape (spans,), its first piece.
        last: int64 of shape (spans,), its last piece.

    Returns:
        Means of shape (spans, hidden size).
    """
    cumulative = torch.nn.functional.pad(states.cumsum(dim=1), (0, 0, 1, 0))
    return (cumulative[window, last + 1] - cumulative[window, first]) / (last + 1 - first).unsqueeze(1)


def _encode(
    texts: list[str], spans: list[list[_Span]], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int, int]]]:
    """Encode sentences in windows of at most `limit` pieces, and locate each span.

    Returns:
        The inputs of the model, and for each span: window, first piece, last piece, number of the token.
    """
    encoded = tokenizer(
        texts,
        padding=True,
        truncation=True,
        max_length=limit,
        stride=limit // 4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    offsets = encoded.pop("offset_mapping").numpy()
    special = encoded.pop("special_tokens_mask").numpy()
    windows: dict[int, list[tuple[int, Any, Any]]] = {}
    for window, sample in enumerate(encoded.pop("overflow_to_sample_mapping").tolist()):
        windows.setdefault(sample, []).append((window, np.flatnonzero(special[window] == 0), offsets[window]))
    places = []
    for sample, spans_of_text in enumerate(spans):
        for span in spans_of_text:
            located = [_locate(*window, span) for window in windows.get(sample, ())]
            candidates = [place for place in located if place is not None]
            if not candidates:
                raise InputError(
                    f"a context contains no piece between {span.start} and {span.end}: {texts[sample][:80]!r}"
                )
            _, window, first, last = max(candidates, key=lambda place: (place[0], -place[1]))
            places.append((window, first, last, span.token))
    return dict(encoded), places


def _locate(window: int, pieces: Any, offsets: Any, span: _Span) -> tuple[int, int, int, int] | None:
    """Locate a span in a window; None if the window doesn't contain it.

    Args:
        window: number of the window.
        pieces: int64, positions in the window that aren't special tokens.
        offsets: int64 of shape (length, 2), the characters of each position.
        span: the span.

    Returns:
        Number of pieces on the shorter side of the span, the window, and the first and last piece of the span.
    """
    inside = pieces[(offsets[pieces, 1] > span.start) & (offsets[pieces, 0] < span.end)]
    if not len(inside):
        return None
    first, last = int(inside[0]), int(inside[-1])
    return min(first - int(pieces[0]), int(pieces[-1]) - last), window, first, last
