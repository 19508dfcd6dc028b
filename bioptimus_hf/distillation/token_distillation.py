"""Token distillation: contexts + base BERT -> for each new token the row with which it is read as its pieces were.

After Dobler, Elliott and de Melo, Token Distillation (ICLR 2026, arXiv 2505.20133): the hidden states of a text in
which one new token stands for its pieces are to match those of the text in pieces, and of the whole model only the
token's row is trained. Here it is done for an encoder, so that what stands before the token counts as well.
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
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.distillation.contextual import check_layer

SNIPPET = 50  # pieces around a token, itself among them, as in the paper
_TOKENS_AT_ONCE = 16
_STEPS = 16  # of Adam for each token, on two contexts: more and smaller steps come closer for the same reading
_CONTEXTS_A_STEP = 2
_LEARNING_RATE = 0.01  # of the first step; it falls linearly


class _Snippet(NamedTuple):
    """A piece of text in the base's pieces, [CLS] and [SEP] at its ends; those of the new token are `first` to `last`.

    Both are among them.
    """

    ids: list[int]
    first: int
    last: int


class _Lesson(NamedTuple):
    """A snippet with one new token for its pieces.

    Attributes:
        ids: int64 of shape (length,); what stands at `place` is not read.
        place: of the new token.
        target: of shape (length, hidden size), the states of the text in pieces; at the new token's place their mean
            over its pieces.
    """

    ids: torch.Tensor
    place: int
    target: torch.Tensor


def distill_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Dataset,
    start: Mapping[str, torch.Tensor],
    *,
    max_tokens: int | None = None,
    layer: int = -1,
    seed: int = 0,
    bf16: bool = False,
) -> dict[str, torch.Tensor]:
    """Train each new token's row until the base model's states with it are like those with its pieces.

    The error is the mean square difference of the states, over all places of a snippet of 50 pieces around the token.
    A token's row depends on its own contexts alone: every token has 16 steps of its own, on two contexts each.

    Args:
        model: a BERT, with or without a head; none of its weights is changed.
        tokenizer: its tokenizer.
        contexts: rows `token`, `text`, `start`, `end` (characters of `text`), from `find_contexts`.
        start: token to the row to start from, float of shape (hidden size,); only these tokens are trained.
        max_tokens: how many of them at most, in the order of `start`.
        layer: whose states are to match; -1 is the last.
        seed: of the choice and order of each token's contexts.
        bf16: multiply matrices in bfloat16, which is faster where the processor has it.

    Returns:
        Token to its row, float32 of shape (hidden size,), for every token that has a context whose span is made of
        whole pieces that the base knows: what begins or ends within a piece cannot stand for it.

    Raises:
        InputError: there is no such layer.
    """
    check_layer(model, layer)
    encoder = model.base_model.eval()
    rows: dict[str, torch.Tensor] = {}
    held = _contexts_by_token(contexts, start, seed)
    with tqdm(total=max_tokens or len(held), desc="Distilling tokens", unit=" tokens") as bar:
        for tokens, snippets in _groups(contexts, held, tokenizer):
            left = None if max_tokens is None else max_tokens - len(rows)
            usable = [number for number, each in enumerate(snippets) if each][:left]
            if usable:
                lessons = [_lessons(encoder, snippets[number], layer, bf16) for number in usable]
                chosen = [tokens[number] for number in usable]
                trained = torch.stack([start[token] for token in chosen]).float().to(model.device)
                rows |= dict(zip(chosen, _train(encoder, trained, lessons, layer, bf16).cpu(), strict=True))
            bar.update(len(usable) if max_tokens else len(tokens))  # the bar counts what it is to reach
            if len(rows) == max_tokens:
                break
    return rows


def _contexts_by_token(contexts: Dataset, wanted: Mapping[str, torch.Tensor], seed: int) -> dict[str, list[int]]:
    """Return the rows of the contexts that each token is trained on, tokens in the order of `wanted`."""
    found: dict[str, list[int]] = {}
    for row, token in enumerate(contexts.select_columns("token")[:]["token"]):
        found.setdefault(token, []).append(row)
    held = {token: found[token] for token in wanted if token in found}
    for token, rows in held.items():
        random.Random(f"{seed} {token}").shuffle(rows)
    return held


def _groups(
    contexts: Dataset, held: Mapping[str, Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[str], list[list[_Snippet]]]]:
    """Yield tokens that are trained side by side, and the snippets of each: as many as its steps can use."""
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
                tokenizer,
            )
            if snippet is not None and len(snippets[number]) < _STEPS * _CONTEXTS_A_STEP:
                snippets[number].append(snippet)
        yield group, snippets


def _snippet(
    ids: list[int], offsets: npt.NDArray[np.int64], span: tuple[int, int], tokenizer: PreTrainedTokenizerBase
) -> _Snippet | None:
    """Cut a text around a span, or return nothing where the span is not made of whole, known pieces."""
    first, last = np.flatnonzero(offsets[:, 0] == span[0]), np.flatnonzero(offsets[:, 1] == span[1])
    if not (len(first) and len(last) and first[0] <= last[-1]):
        return None
    begin, end = int(first[0]), int(last[-1]) + 1
    if tokenizer.unk_token_id in ids[begin:end]:
        return None
    left = max(0, min(begin - max(0, SNIPPET - (end - begin)) // 2, len(ids) - SNIPPET))
    cut = ids[left : max(left + SNIPPET, end)]
    return _Snippet([tokenizer.cls_token_id, *cut, tokenizer.sep_token_id], begin - left + 1, end - left)


@torch.no_grad()
def _lessons(encoder: PreTrainedModel, snippets: Sequence[_Snippet], layer: int, bf16: bool) -> list[_Lesson]:
    """Read a token's snippets in pieces, and put the new token in the pieces' place."""
    ids = [torch.tensor(snippet.ids, device=encoder.device) for snippet in snippets]
    embedded = encoder.get_input_embeddings()(pad_sequence(ids, batch_first=True))
    lessons = []
    for states, snippet in zip(_states(encoder, embedded, _mask(ids), layer, bf16), snippets, strict=True):
        before, after = slice(snippet.first), slice(snippet.last + 1, len(snippet.ids))
        own = states[snippet.first : snippet.last + 1].mean(dim=0, keepdim=True)
        new_ids = torch.tensor([*snippet.ids[before], snippet.ids[snippet.first], *snippet.ids[after]])
        target = torch.cat([states[before], own, states[after]])
        lessons.append(_Lesson(new_ids.to(encoder.device), snippet.first, target))
    return lessons


def _train(
    encoder: PreTrainedModel, rows: torch.Tensor, lessons: Sequence[Sequence[_Lesson]], layer: int, bf16: bool
) -> torch.Tensor:
    """Train the rows of some tokens, of shape (tokens, hidden size), each on its own lessons."""
    rows.requires_grad_(True)
    # At its usual 1e-8, Adam would take the rounding errors of a row that is right already for a gradient.
    optimizer = torch.optim.Adam([rows], lr=_LEARNING_RATE, eps=1e-6)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / _STEPS, total_iters=_STEPS - 1)
    table = encoder.get_input_embeddings()
    for step in range(_STEPS):
        places = range(step * _CONTEXTS_A_STEP, (step + 1) * _CONTEXTS_A_STEP)
        batch = [
            (number, each[place])
            for number, each in enumerate(lessons)
            for place in sorted({place % len(each) for place in places})
        ]
        ids = [lesson.ids for _, lesson in batch]
        mask = _mask(ids)
        embedded = table(pad_sequence(ids, batch_first=True))
        tokens = torch.tensor([number for number, _ in batch], device=rows.device)
        embedded[range(len(batch)), [lesson.place for _, lesson in batch]] = rows[tokens]
        target = pad_sequence([lesson.target for _, lesson in batch], batch_first=True)
        error = ((_states(encoder, embedded, mask, layer, bf16) - target) ** 2).mean(dim=2) * mask
        # Of the sum of all errors, the gradient of a row is that of its own ones; Adam does not mind their number.
        (rows.grad,) = torch.autograd.grad((error.sum(dim=1) / mask.sum(dim=1)).sum(), rows)
        optimizer.step()
        schedule.step()
    return rows.detach()


def _mask(ids: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a mask of shape (texts, longest text), 1 where there is text."""
    return pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)


def _states(
    encoder: PreTrainedModel, embedded: torch.Tensor, mask: torch.Tensor, layer: int, bf16: bool
) -> torch.Tensor:
    """Return the states of a layer, float32 of shape (texts, length, hidden size)."""
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=bf16):
        output = encoder(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True)
    states: torch.Tensor = output.hidden_states[layer]
    return states.float()
