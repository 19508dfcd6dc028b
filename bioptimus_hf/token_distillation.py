"""Token distillation: contexts + base BERT -> for each new token the row with which it is read as its pieces were.

After Dobler, Elliott and de Melo, Token Distillation (ICLR 2026, arXiv 2505.20133): the hidden states of a text in
which one new token stands for its pieces are to match those of the text in pieces, and of the whole model only the
token's row is trained. Here it is done for an encoder, so that what stands before the token counts as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.reading import check_layer

logger = logging.getLogger(__name__)

SNIPPET = 50  # pieces around a token, itself among them, as in the paper
_TOKENS_AT_ONCE = 16
_CONTEXTS_A_STEP = 2  # of each token; the same reading in more, smaller steps comes closer to the states


class _Snippet(NamedTuple):
    """A piece of text in the base's pieces, [CLS] and [SEP] at its ends; `first:last` are those of the new token."""

    ids: list[int]
    first: int
    last: int


class _Batch(NamedTuple):
    """Snippets with one new token for its pieces.

    Attributes:
        token: number of each snippet's token among those that are trained together.
        ids: int64 of shape (snippets, length), padded.
        place: of the new token in each.
        mask: of shape (snippets, length), 1 where there is text.
        target: of shape (snippets, length, hidden size), the states of the text in pieces; at the new token's place
            their mean over its pieces.
    """

    token: torch.Tensor
    ids: torch.Tensor
    place: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor


def distill_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Dataset,
    start: Mapping[str, torch.Tensor],
    *,
    layer: int = -1,
    epochs: int = 2,
    learning_rate: float = 0.01,
    seed: int = 0,
    bf16: bool = False,
) -> dict[str, torch.Tensor]:
    """Train each new token's row until the base model's states with it are like those with its pieces.

    The error is the mean square difference of the states, over all places of a snippet of 50 pieces around the token.
    A token's row depends on its own contexts alone: tokens are trained side by side, each with its own steps of Adam.

    Args:
        model: a BERT, with or without a head; it is left as it is.
        tokenizer: its tokenizer.
        contexts: rows `token`, `text`, `start`, `end` (characters of `text`), from `find_contexts`.
        start: token to the row to start from, float of shape (hidden size,); only these tokens are trained.
        layer: whose states are to match; -1 is the last.
        epochs: how often each context is used.
        learning_rate: of the first step; it falls to 0 linearly.
        seed: of the order of the contexts.
        bf16: multiply matrices in bfloat16, which is faster where the processor has it.

    Returns:
        Token to its row, float32 of shape (hidden size,), for every token that has a context whose span is made of
        whole pieces of the base: what begins or ends within a piece cannot stand for it.

    Raises:
        InputError: there is no such layer.
    """
    check_layer(model, layer)
    encoder = model.base_model.eval()
    rows: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    held = _contexts_by_token(contexts, start)
    with tqdm(total=len(held), desc="Distilling tokens", unit=" tokens") as bar:
        for tokens, snippets in _groups(contexts, held, tokenizer):
            order = [torch.randperm(len(each), generator=generator).tolist() for each in snippets]
            snippets = [[each[number] for number in chosen] for each, chosen in zip(snippets, order, strict=True)]
            batches = list(_batches(encoder, tokenizer, snippets, layer, bf16))
            if batches:
                trained = torch.stack([start[token] for token in tokens]).float().to(model.device)
                trained = _train(encoder, trained, batches * epochs, layer, learning_rate, bf16).cpu()
                rows |= {token: row for token, row, each in zip(tokens, trained, snippets, strict=True) if each}
            bar.update(len(tokens))
    return rows


def _contexts_by_token(contexts: Dataset, wanted: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """Return the rows of each token's contexts, tokens in the order of `wanted`."""
    found: dict[str, list[int]] = {}
    for row, token in enumerate(contexts.select_columns("token")[:]["token"]):
        found.setdefault(token, []).append(row)
    return {token: found[token] for token in wanted if token in found}


def _groups(
    contexts: Dataset, held: Mapping[str, Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[str], list[list[_Snippet]]]]:
    """Yield tokens that are trained together, and the snippets of each."""
    tokens = list(held)
    for begin in range(0, len(tokens), _TOKENS_AT_ONCE):
        group = tokens[begin : begin + _TOKENS_AT_ONCE]
        numbers = [(number, row) for number, token in enumerate(group) for row in held[token]]
        read = contexts.select([row for _, row in numbers])[:]
        encoded = tokenizer(read["text"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        snippets: list[list[_Snippet]] = [[] for _ in group]
        for place, (number, _) in enumerate(numbers):
            snippet = _snippet(
                encoded["input_ids"][place],
                np.array(encoded["offset_mapping"][place]).reshape(-1, 2),
                (read["start"][place], read["end"][place]),
                (tokenizer.cls_token_id, tokenizer.sep_token_id),
            )
            if snippet is not None:
                snippets[number].append(snippet)
        yield group, snippets


def _snippet(ids: list[int], offsets: np.ndarray, span: tuple[int, int], ends: tuple[int, int]) -> _Snippet | None:
    """Cut a text around a span, or return nothing where the span is not made of whole pieces."""
    first, last = np.flatnonzero(offsets[:, 0] == span[0]), np.flatnonzero(offsets[:, 1] == span[1])
    if not (len(first) and len(last) and first[0] <= last[-1]):
        return None
    begin, end = int(first[0]), int(last[-1]) + 1
    left = max(0, min(begin - max(0, SNIPPET - (end - begin)) // 2, len(ids) - SNIPPET))
    cut = ids[left : max(left + SNIPPET, end)]
    return _Snippet([ends[0], *cut, ends[1]], begin - left + 1, end - left)


@torch.no_grad()
def _batches(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    snippets: Sequence[Sequence[_Snippet]],
    layer: int,
    bf16: bool,
) -> Iterator[_Batch]:
    """Yield a batch for each step: the next contexts of every token that has more, and what they look like in pieces.

    A token with few contexts has them in turn, so that all take as many steps.
    """
    steps = max(-(-len(each) // _CONTEXTS_A_STEP) for each in snippets)
    for step in range(steps):
        chosen = [
            (number, each[place % len(each)])
            for number, each in enumerate(snippets)
            if each
            for place in range(step * _CONTEXTS_A_STEP, (step + 1) * _CONTEXTS_A_STEP)
        ]
        ids = pad_sequence(
            [torch.tensor(snippet.ids) for _, snippet in chosen],
            batch_first=True,
            padding_value=tokenizer.pad_token_id,
        ).to(encoder.device)
        states = _states(encoder, encoder.get_input_embeddings()(ids), ids != tokenizer.pad_token_id, layer, bf16)
        targets, student = [], []
        for state, (_, snippet) in zip(states, chosen, strict=True):
            first, last, length = snippet.first, snippet.last, len(snippet.ids)
            own = state[first : last + 1].mean(dim=0, keepdim=True)
            targets.append(torch.cat([state[:first], own, state[last + 1 : length]]))
            student.append(torch.tensor([*snippet.ids[: first + 1], *snippet.ids[last + 1 :]]))
        padded = pad_sequence(student, batch_first=True, padding_value=tokenizer.pad_token_id).to(encoder.device)
        yield _Batch(
            token=torch.tensor([number for number, _ in chosen], device=encoder.device),
            ids=padded,
            place=torch.tensor([snippet.first for _, snippet in chosen], device=encoder.device),
            mask=padded != tokenizer.pad_token_id,
            target=pad_sequence(targets, batch_first=True),
        )


def _train(
    encoder: PreTrainedModel,
    rows: torch.Tensor,
    batches: Sequence[_Batch],
    layer: int,
    learning_rate: float,
    bf16: bool,
) -> torch.Tensor:
    rows.requires_grad_(True)
    optimizer = torch.optim.Adam([rows], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / len(batches), total_iters=len(batches) - 1)
    table = encoder.get_input_embeddings()
    for batch in batches:
        embedded = table(batch.ids)
        embedded[torch.arange(len(batch.ids)), batch.place] = rows[batch.token]
        states = _states(encoder, embedded, batch.mask, layer, bf16)
        error = ((states - batch.target) ** 2).mean(dim=2) * batch.mask
        of_snippet = error.sum(dim=1) / batch.mask.sum(dim=1)
        # The tokens' errors are added up, so that each row's gradient is that of its own error.
        share = 1 / torch.bincount(batch.token, minlength=len(rows))[batch.token]
        (rows.grad,) = torch.autograd.grad((of_snippet * share).sum(), rows)
        optimizer.step()
        schedule.step()
    return rows.detach()


def _states(
    encoder: PreTrainedModel, embedded: torch.Tensor, mask: torch.Tensor, layer: int, bf16: bool
) -> torch.Tensor:
    """Return the states of a layer, float32 of shape (snippets, length, hidden size)."""
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=bf16):
        output = encoder(inputs_embeds=embedded, attention_mask=mask.long(), output_hidden_states=True)
    states: torch.Tensor = output.hidden_states[layer]
    return states.float()
