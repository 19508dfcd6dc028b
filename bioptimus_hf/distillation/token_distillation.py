"""Train the embeddings of new tokens so that a base model reads each as it reads the token's pieces.

Adapts Dobler, Elliott and de Melo, Token Distillation (ICLR 2026, arXiv 2505.20133): one new token replaces its pieces
in a text, and its embedding is trained to reproduce the hidden states of the original text. The embedding is the only
trainable parameter. Since BERT is bidirectional, the states before the token count as well as those after it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.distillation.contextual import DIVERGED, check_layer
from bioptimus_hf.distillation.options import RowTraining
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.models import check_finite, check_tokenizer, evaluating
from bioptimus_hf.progress import progress_bar

_SNIPPET = 50  # pieces of text around a token, including its own, as in the paper
_TOKENS_PER_BATCH = 16
_STEPS = 16  # of Adam per token. More steps on fewer contexts come closer to the target for the same amount of reading
_CONTEXTS_PER_STEP = 2
_LEARNING_RATE = 0.01  # at the first step; decays linearly


class Snippet(NamedTuple):
    """An excerpt of a text in the base's pieces, from [CLS] to [SEP].

    Attributes:
        ids: ids of the pieces.
        first: position of the first piece of the new token.
        last: position of the last piece of the new token.
    """

    ids: list[int]
    first: int
    last: int


class _Example(NamedTuple):
    """A snippet in which the new token replaces its pieces.

    Attributes:
        ids: int64 of shape (length,). The id at `place` is a placeholder.
        place: position of the new token.
        target: hidden states of the original snippet, of shape (length, hidden size); at `place`, their mean over the
            pieces of the token.
    """

    ids: torch.Tensor
    place: int
    target: torch.Tensor


@check_call(contexts=("token", "text", "start", "end"))
def distill_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Dataset,
    start: Mapping[str, torch.Tensor],
    training: RowTraining | None = None,
) -> dict[str, torch.Tensor]:
    """Train the embedding of each new token until the base model's hidden states match those with the token's pieces.

    The loss is the mean squared difference between the states, over all positions of a snippet of 50 pieces around the
    token. Every token gets 16 steps on two of its contexts each. The embedding of a token depends only on its own
    contexts.

    Args:
        model: a BERT, with or without a head. Its weights don't change.
        tokenizer: the tokenizer of the model.
        contexts: rows with `token`, `text`, `start` and `end` (character offsets in `text`), from `find_contexts`.
        start: token to its initial embedding, float of shape (hidden size,). Only these tokens are trained, in this
            order.
        training: layer, precision, seed and maximum number of tokens; by default `RowTraining()`.

    Returns:
        Token to its embedding, float32 of shape (hidden size,), for each token that has a usable context, i.e. one in
        which the token consists of whole pieces that the base knows.

    Raises:
        InputError: the model has no such layer, or an embedding in `start` hasn't its size.
        TrainingDiverged: an embedding contains NaN or infinity.
    """
    training = training or RowTraining()
    check_tokenizer(tokenizer, model.config)
    check_layer(model.config, training.layer)
    size = model.get_input_embeddings().weight.shape[1]
    if wrong := [token for token, row in start.items() if row.shape != (size,)]:
        raise InputError(f"the embedding of {wrong[0]!r} hasn't the model's size, {size}", argument="start")
    encoder, limit = model.base_model, training.max_tokens
    rows: dict[str, torch.Tensor] = {}
    rows_of_token = _rows_by_token(contexts, start, training.seed)
    bar = progress_bar(total=limit or len(rows_of_token), desc="Distilling tokens", unit=" tokens")
    with evaluating(encoder), bar:
        for tokens, snippets in _batches(contexts, rows_of_token, tokenizer):
            remaining = None if limit is None else limit - len(rows)
            usable = [number for number, of_token in enumerate(snippets) if of_token][:remaining]
            if usable:
                examples = [_make_examples(encoder, snippets[number], training) for number in usable]
                names = [tokens[number] for number in usable]
                initial = torch.stack([start[token] for token in names]).float().to(model.device)
                trained = dict(zip(names, _train(encoder, initial, examples, training).cpu(), strict=True))
                check_finite(trained.items(), "token distillation", DIVERGED, error=TrainingDiverged)
                rows |= trained
            bar.update(len(usable) if limit else len(tokens))  # in the unit of the bar's total
            if len(rows) == limit:
                break
    return rows


def _rows_by_token(contexts: Dataset, wanted: Mapping[str, torch.Tensor], seed: int) -> dict[str, list[int]]:
    """Return each token's rows of the contexts in random order, for tokens in the order of `wanted`."""
    found: dict[str, list[int]] = {}
    for row, token in enumerate(contexts.select_columns("token")[:]["token"]):
        found.setdefault(token, []).append(row)
    shuffled = {token: found[token] for token in wanted if token in found}
    for token, rows in shuffled.items():
        random.Random(f"{seed} {token}").shuffle(rows)
    return shuffled


def _batches(
    contexts: Dataset, rows_of_token: Mapping[str, Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[str], list[list[Snippet]]]]:
    """Yield batches of tokens, and each token's snippets, at most as many as its training steps use."""
    tokens = list(rows_of_token)
    for begin in range(0, len(tokens), _TOKENS_PER_BATCH):
        batch = tokens[begin : begin + _TOKENS_PER_BATCH]
        owners = [(number, row) for number, token in enumerate(batch) for row in rows_of_token[token]]
        read = contexts.select([row for _, row in owners])[:]
        texts = list(map(with_blanks, read["text"]))
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        snippets: list[list[Snippet]] = [[] for _ in batch]
        for place, (number, _) in enumerate(owners):
            snippet = cut_snippet(
                encoded["input_ids"][place],
                np.array(encoded["offset_mapping"][place]).reshape(-1, 2),
                (read["start"][place], read["end"][place]),
                tokenizer,
            )
            if snippet is not None and len(snippets[number]) < _STEPS * _CONTEXTS_PER_STEP:
                snippets[number].append(snippet)
        yield batch, snippets


def cut_snippet(
    ids: list[int], offsets: npt.NDArray[np.int64], span: tuple[int, int], tokenizer: PreTrainedTokenizerBase
) -> Snippet | None:
    """Cut an excerpt around a span out of a text.

    Args:
        ids: ids of the text's pieces, without special tokens.
        offsets: of shape (length, 2), the first character of each piece and the one after its last.
        span: the first character of the new token and the one after its last.
        tokenizer: tokenizer of the base model.

    Returns:
        The excerpt, or None if the span isn't made of whole, known pieces.
    """
    first, last = np.flatnonzero(offsets[:, 0] == span[0]), np.flatnonzero(offsets[:, 1] == span[1])
    if not (len(first) and len(last) and first[0] <= last[-1]):
        return None
    begin, end = int(first[0]), int(last[-1]) + 1
    if tokenizer.unk_token_id in ids[begin:end]:
        return None
    left = max(0, min(begin - max(0, _SNIPPET - (end - begin)) // 2, len(ids) - _SNIPPET))
    excerpt = ids[left : max(left + _SNIPPET, end)]
    return Snippet([tokenizer.cls_token_id, *excerpt, tokenizer.sep_token_id], begin - left + 1, end - left)


@torch.no_grad()
def _make_examples(encoder: PreTrainedModel, snippets: Sequence[Snippet], training: RowTraining) -> list[_Example]:
    """Read a token's snippets in pieces, then replace the pieces by the new token."""
    ids = [torch.tensor(snippet.ids, device=encoder.device) for snippet in snippets]
    embedded = encoder.get_input_embeddings()(pad_sequence(ids, batch_first=True))
    examples = []
    for states, snippet in zip(_hidden_states(encoder, embedded, _mask(ids), training), snippets, strict=True):
        before, after = slice(snippet.first), slice(snippet.last + 1, len(snippet.ids))
        mean = states[snippet.first : snippet.last + 1].mean(dim=0, keepdim=True)
        new_ids = torch.tensor([*snippet.ids[before], snippet.ids[snippet.first], *snippet.ids[after]])
        target = torch.cat([states[before], mean, states[after]])
        examples.append(_Example(new_ids.to(encoder.device), snippet.first, target))
    return examples


def _train(
    encoder: PreTrainedModel, rows: torch.Tensor, examples: Sequence[Sequence[_Example]], training: RowTraining
) -> torch.Tensor:
    """Train the embeddings of several tokens, of shape (tokens, hidden size), each on its own examples."""
    rows.requires_grad_(True)
    # With the default eps of 1e-8, Adam would follow the rounding errors of an embedding that is already right.
    optimizer = torch.optim.Adam([rows], lr=_LEARNING_RATE, eps=1e-6)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / _STEPS, total_iters=_STEPS - 1)
    table = encoder.get_input_embeddings()
    for step in range(_STEPS):
        places = range(step * _CONTEXTS_PER_STEP, (step + 1) * _CONTEXTS_PER_STEP)
        batch = [
            (number, of_token[place])
            for number, of_token in enumerate(examples)
            for place in sorted({place % len(of_token) for place in places})
        ]
        ids = [example.ids for _, example in batch]
        mask = _mask(ids)
        embedded = table(pad_sequence(ids, batch_first=True))
        tokens = torch.tensor([number for number, _ in batch], device=rows.device)
        embedded[range(len(batch)), [example.place for _, example in batch]] = rows[tokens]
        target = pad_sequence([example.target for _, example in batch], batch_first=True)
        error = ((_hidden_states(encoder, embedded, mask, training) - target) ** 2).mean(dim=2) * mask
        # Examples of other tokens don't affect the gradient of a row, and Adam is insensitive to its scale.
        (rows.grad,) = torch.autograd.grad((error.sum(dim=1) / mask.sum(dim=1)).sum(), rows)
        optimizer.step()
        schedule.step()
    return rows.detach()


def _mask(ids: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return an attention mask of shape (texts, longest text)."""
    return pad_sequence([torch.ones_like(text_ids) for text_ids in ids], batch_first=True)


def _hidden_states(
    encoder: PreTrainedModel, embedded: torch.Tensor, mask: torch.Tensor, training: RowTraining
) -> torch.Tensor:
    """Return the hidden states of the layer, float32 of shape (texts, length, hidden size)."""
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=training.bf16):
        output = encoder(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True)
    states: torch.Tensor = output.hidden_states[training.layer]
    return states.float()
