"""What a base model makes of new tokens in their contexts: contexts + base BERT -> a vector for each token.

Pavlova and Makhlouf, BIOptimus (BioNLP 2023, arXiv 2308.08625), figure 2: f is the mean of the base model's states over
the pieces of a word, g the mean over its contexts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.contexts.kernels import hash_texts
from bioptimus_hf.contexts.matching import utf8_buffers
from bioptimus_hf.errors import InputError

Pieces = Literal["mean", "first", "last"]
PIECES: tuple[str, ...] = get_args(Pieces)
_BATCHES_HELD = 64  # of sentences whose text is read and put in order at once


@torch.no_grad()
def contextual_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Dataset,
    *,
    layer: int = -1,
    pieces: Pieces = "mean",
    batch_size: int = 64,
    bf16: bool = False,
) -> dict[str, torch.Tensor]:
    """Read contexts with a base model; make one state of those of a token's pieces (f), then average over contexts (g).

    A sentence that holds several tokens of interest is read once. Sentences are read by length, so that little is
    padded. A sentence longer than the model reads is cut into windows with an overlap, and a span is read in the window
    that leaves it the most context on its shorter side. Of a context that is not being read, 32 bytes are held.

    Args:
        model: a BERT, with or without a head.
        tokenizer: its tokenizer.
        contexts: rows `token`, `text`, `start`, `end` (characters of `text`), from `find_contexts`.
        layer: whose states are read; 0 is the embeddings' output, -1 the last layer.
        pieces: what is taken of a token's pieces: the mean (the paper), the first or the last.
        batch_size: sentences read at once.
        bf16: multiply matrices in bfloat16, which is faster where the processor has it. The sums stay in float64.

    Returns:
        Token to its vector, float32 of shape (hidden size,), for every token that has a context.

    Raises:
        InputError: there is no such layer, `pieces` is unknown, or a span holds no piece of its text.
    """
    check_layer(model, layer)
    if pieces not in PIECES:
        raise InputError(f"--pieces {pieces}: choose one of {', '.join(PIECES)}")
    encoder = model.base_model.eval()
    # Many tokenizers of the Hub name no limit, which transformers 5 takes for 1e30.
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    index = _index(contexts)
    sums = torch.zeros(len(index.tokens), model.config.hidden_size, dtype=torch.float64)
    counts = torch.zeros(len(index.tokens), dtype=torch.int64)
    with tqdm(total=len(index.firsts) - 1, desc="Reading contexts", unit=" sentences") as bar:
        for texts, spans in _batches(contexts, index, tokenizer, batch_size):
            encoded, places = _encode(texts, spans, tokenizer, limit)
            inputs = {name: values.to(model.device) for name, values in encoded.items()}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                states = encoder(**inputs, output_hidden_states=True).hidden_states[layer].cpu()
            window, first, last, token = torch.tensor(places).unbind(dim=1)
            sums.index_add_(0, token, _of_pieces(states.double(), window, first, last, pieces))
            counts.index_add_(0, token, torch.ones_like(token))
            bar.update(len(texts))
    means = (sums / counts.unsqueeze(1)).float()
    return {name: means[number] for number, name in enumerate(index.tokens)}


def check_layer(model: PreTrainedModel, layer: int) -> None:
    """Refuse a layer that the model does not have."""
    layers = model.config.num_hidden_layers
    if not -(layers + 1) <= layer <= layers:
        raise InputError(f"--layer {layer}: the model has layers 0 (embeddings) to {layers}, or -1 (last) and down")


class _Index(NamedTuple):
    """Which contexts there are, without their text.

    Attributes:
        tokens: all that have contexts.
        token, start, end: of each context, by the length of its sentence, the longest first; number of the token, and
            its characters.
        row: of each context in the data set.
        firsts: where each sentence begins in these, and where the last one ends.
    """

    tokens: tuple[str, ...]
    token: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]


def _index(contexts: Dataset) -> _Index:
    tokens: dict[str, int] = {}
    columns: list[tuple[Any, ...]] = [(np.empty(0, dtype=np.uint64), *np.empty((4, 0), dtype=np.int32))]
    for table in contexts.with_format("arrow").iter(batch_size=10_000):
        content, offsets = utf8_buffers(pa.concat_arrays(table["text"].chunks))
        token = [tokens.setdefault(name, len(tokens)) for name in table["token"].to_pylist()]
        spans = (table[name].to_numpy().astype(np.int32) for name in ("start", "end"))
        hashes = hash_texts(content, offsets, np.uint64(0))
        columns.append((hashes, -np.diff(offsets).astype(np.int32), np.array(token, dtype=np.int32), *spans))
    hashes, shorter, numbers, start, end = (np.concatenate(column) for column in zip(*columns, strict=True))
    row = np.lexsort((numbers, hashes, shorter))
    edges = np.flatnonzero(np.diff(hashes[row]) != 0) + 1
    firsts = np.concatenate([[0], edges, [len(row)]]) if len(row) else np.zeros(1, dtype=np.int64)
    return _Index(tuple(tokens), numbers[row], start[row], end[row], row, firsts)


def _batches(
    contexts: Dataset, index: _Index, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[tuple[list[str], list[list[tuple[int, int, int]]]]]:
    """Yield sentences with their spans (token, start, end), the longest first: memory runs out at once or never.

    They are in the order of their bytes already, and within some batches of them are put in that of their pieces.
    """
    sentences = len(index.firsts) - 1
    held = _BATCHES_HELD * batch_size
    for begin in range(0, sentences, held):
        numbers = np.arange(begin, min(begin + held, sentences))
        texts = contexts.select(index.row[index.firsts[numbers]])["text"][:]
        lengths = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
        order = sorted(range(len(texts)), key=lambda number: (-lengths[number], texts[number]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            spans = [_spans(index, int(numbers[number])) for number in chosen]
            yield [texts[number] for number in chosen], spans


def _spans(index: _Index, sentence: int) -> list[tuple[int, int, int]]:
    held = slice(*index.firsts[sentence : sentence + 2].tolist())
    columns = (column[held].tolist() for column in (index.token, index.start, index.end))
    return list(zip(*columns, strict=True))


def _of_pieces(
    states: torch.Tensor, window: torch.Tensor, first: torch.Tensor, last: torch.Tensor, pieces: Pieces
) -> torch.Tensor:
    """Return one state for each span, of shape (spans, hidden size)."""
    if pieces == "first":
        return states[window, first]
    if pieces == "last":
        return states[window, last]
    before = torch.nn.functional.pad(states.cumsum(dim=1), (0, 0, 1, 0))
    return (before[window, last + 1] - before[window, first]) / (last + 1 - first).unsqueeze(1)


def _encode(
    texts: list[str], spans: list[list[tuple[int, int, int]]], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int, int]]]:
    """Encode sentences in windows of at most `limit` pieces, and place each span.

    Returns:
        What the model takes, and for each span: window, first piece, last piece, number of the token.
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
    for sample, of_sample in enumerate(spans):
        for number, start, end in of_sample:
            found = [
                place
                for place in (_place(*window, start, end) for window in windows.get(sample, ()))
                if place is not None
            ]
            if not found:
                raise InputError(f"a context's span {start}:{end} holds no piece of its text {texts[sample][:80]!r}")
            _, window, first, last = max(found, key=lambda place: (place[0], -place[1]))
            places.append((window, first, last, number))
    return dict(encoded), places


def _place(window: int, pieces: Any, offsets: Any, start: int, end: int) -> tuple[int, int, int, int] | None:
    """Return how many pieces stand on the span's shorter side, the window, and the span's first and last piece."""
    inside = pieces[(offsets[pieces, 1] > start) & (offsets[pieces, 0] < end)]
    if not len(inside):
        return None
    first, last = int(inside[0]), int(inside[-1])
    return min(first - int(pieces[0]), int(pieces[-1]) - last), window, first, last
