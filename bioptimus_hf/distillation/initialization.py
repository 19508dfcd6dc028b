"""Contextualised weight distillation: a vector for each new token -> BERT with a new vocabulary.

Pavlova and Makhlouf, BIOptimus (BioNLP 2023, arXiv 2308.08625), figure 2. The vectors are those of `reading`, or of
`token_distillation`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from bioptimus_hf.errors import InputError
from bioptimus_hf.vocabulary.tokenizer import MARK, compare_vocabularies, real_ids

logger = logging.getLogger(__name__)

Initializer = Literal["random", "subtoken_mean", "contextual_mean", "contextual_mean_scaled", "token_distillation"]
INITIALIZERS: tuple[Initializer, ...] = get_args(Initializer)
FROM_CONTEXTS: tuple[Initializer, ...] = INITIALIZERS[2:]


@dataclass(frozen=True)
class NewRows:
    """Input embeddings for the tokens that a base model does not have.

    Attributes:
        rows: token to its row, float32 of shape (hidden size,).
        fallen_back: tokens that an initialiser made from contexts had no vector for; they have their `subtoken_mean`.
        unknown: tokens of which the base has no piece at all; they have the mean of the base's table.
    """

    rows: dict[str, torch.Tensor]
    fallen_back: list[str]
    unknown: list[str]


def initial_rows(
    model: BertForMaskedLM,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    *,
    initializer: Initializer,
    vectors: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> NewRows:
    """Make the input embeddings of the tokens that `target` has and `source` has not.

    Args:
        model: the base model, whose tokenizer is `source`.
        initializer: "random" (normal with the table's mean and deviation in each dimension), "subtoken_mean" (mean of
            the rows of the token's pieces), "contextual_mean" (the paper: `vectors` as they are),
            "contextual_mean_scaled" (`vectors` brought to the table's mean and deviation in each dimension; the states
            of an upper layer are longer than the rows of the table) or "token_distillation" (`vectors` as they are).
        vectors: from `reading.contextual_embeddings` for the contextual means, or from
            `token_distillation.distill_tokens`.
        seed: of the noise of "random".

    Returns:
        A row for each new token, and which of them had to fall back on something else.

    Raises:
        InputError: the initialiser is unknown, or is made from contexts and there are no vectors.
    """
    if initializer not in INITIALIZERS:
        raise InputError(f"--initializer {initializer}: choose one of {', '.join(INITIALIZERS)}")
    new = compare_vocabularies(source, target).new
    table = model.get_input_embeddings().weight.detach()
    used = table[real_ids(source)]
    mean, deviation = used.mean(dim=0), used.std(dim=0, correction=0)
    if initializer == "random":
        noise = torch.randn(len(new), table.shape[1], generator=torch.Generator().manual_seed(seed))
        return NewRows(dict(zip(new, mean + deviation * noise, strict=True)), [], [])
    pieces = pieces_of(new, source)
    rows = {token: table[ids].mean(dim=0) if ids else mean.clone() for token, ids in pieces.items()}
    unknown = [token for token, ids in pieces.items() if not ids]
    if initializer == "subtoken_mean":
        return NewRows(rows, [], unknown)
    found = [token for token in new if token in (vectors or {})]
    if not new:
        return NewRows({}, [], [])
    if not vectors or not found:
        raise InputError(
            f"{initializer} needs contexts of the new tokens, and none of them has any that can be used: find contexts "
            f"in more text, or take another --initializer"
        )
    read = torch.stack([vectors[token] for token in found])
    if initializer == "contextual_mean_scaled":
        read = (read - read.mean(dim=0)) / read.std(dim=0, correction=0).clamp(min=1e-6) * deviation + mean
    rows |= dict(zip(found, read, strict=True))
    missing = [token for token in new if token not in vectors]
    return NewRows(rows, missing, [token for token in unknown if token not in vectors])


def pieces_of(tokens: Iterable[str], source: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return the ids of the pieces into which a vocabulary cuts each token; none where it lacks a character."""
    vocabulary, unknown = source.get_vocab(), source.unk_token_id
    pieces: dict[str, list[int]] = {}
    for token in tokens:
        if token.startswith(MARK) and token != MARK:
            pieces[token] = _continuing_pieces(token.removeprefix(MARK), vocabulary)
        else:
            ids = source.convert_tokens_to_ids(source.tokenize(token))
            pieces[token] = [] if unknown in ids else ids
    return pieces


def _continuing_pieces(rest: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Cut what continues a word, the longest piece first; a tokenizer would take it for a word's start."""
    ids = []
    while rest:
        length = next((n for n in range(len(rest), 0, -1) if MARK + rest[:n] in vocabulary), 0)
        if not length:
            return []
        ids.append(vocabulary[MARK + rest[:length]])
        rest = rest[length:]
    return ids
