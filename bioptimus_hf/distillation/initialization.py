"""Initialise the embeddings of tokens that a base model doesn't have.

Contextualised weight distillation is described in figure 2 of Pavlova and Makhlouf, BIOptimus (BioNLP 2023,
arXiv 2308.08625).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.distillation.options import INITIALIZERS, Initializer
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import check_tokenizer
from bioptimus_hf.vocabulary.tokenizer import MARK, compare_vocabularies, real_ids


@dataclass(frozen=True)
class NewRows:
    """Input embeddings of the tokens that a base model doesn't have, and how they were made.

    Attributes:
        rows: token to its embedding, float32 of shape (hidden size,), in the order of the new vocabulary.
        without_vectors: tokens without a vector, although the initializer uses vectors; they start from
            `subtoken_mean`.
        unknown: tokens that contain a character the base doesn't know, and have no vector; they start from the mean of
            the base's embedding table.
        initializer: the initializer that made the rows.
        vectors: the vectors it was given.
        seed: the seed it was given.
    """

    rows: dict[str, torch.Tensor]
    without_vectors: list[str]
    unknown: list[str]
    initializer: Initializer
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seed: int = 0


@check_call()
def initial_rows(
    model: BertForMaskedLM,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    *,
    initializer: Initializer,
    vectors: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> NewRows:
    """Make the input embeddings of the tokens that `target` has and `source` doesn't.

    Args:
        model: the base model.
        source: tokenizer of the base model.
        target: tokenizer that the model will have.
        initializer: one of
            "random": normal noise with the embedding table's mean and standard deviation in each dimension;
            "subtoken_mean": the mean of the embeddings of the token's pieces;
            "contextual_mean": `vectors` as they are (the paper);
            "contextual_mean_scaled": `vectors` scaled to the table's mean and standard deviation in each dimension,
            because hidden states of upper layers are longer than embeddings;
            "token_distillation": `vectors` as they are.
        vectors: token to its vector, float of shape (hidden size,): from `contextual_embeddings` for the contextual
            means, from `distill_tokens` for "token_distillation". Other initializers ignore them.
        seed: seed for "random".

    Raises:
        InputError: the initializer is unknown, or it needs vectors and there are none for the new tokens.
    """
    if initializer not in INITIALIZERS:
        raise InputError(f"{initializer!r} is not one of {', '.join(INITIALIZERS)}", argument="initializer")
    check_tokenizer(source, model.config)
    new = compare_vocabularies(source, target).new
    vectors = vectors or {}
    table = model.get_input_embeddings().weight.detach()
    used = table[real_ids(source)]
    mean, std = used.mean(dim=0), used.std(dim=0, correction=0)
    if initializer == "random":
        noise = torch.randn(len(new), table.shape[1], generator=torch.Generator().manual_seed(seed))
        return NewRows(dict(zip(new, mean + std * noise, strict=True)), [], [], initializer, vectors, seed)
    pieces = pieces_of(new, source)
    rows = {token: table[ids].mean(dim=0) if ids else mean.clone() for token, ids in pieces.items()}
    unknown = [token for token, ids in pieces.items() if not ids]
    if initializer == "subtoken_mean" or not new:
        return NewRows(rows, [], unknown, initializer, vectors, seed)
    found = [token for token in new if token in vectors]
    if not found:
        raise InputError(
            f"{initializer} needs contexts, and none were found for the new tokens: search a larger corpus, or use "
            f"another initializer",
            argument="initializer",
        )
    own = torch.stack([vectors[token] for token in found])
    if initializer == "contextual_mean_scaled":
        own = (own - own.mean(dim=0)) / own.std(dim=0, correction=0).clamp(min=1e-6) * std + mean
    rows |= dict(zip(found, own, strict=True))
    without = [token for token in new if token not in vectors]
    unknown = [token for token in unknown if token not in vectors]
    return NewRows(rows, without, unknown, initializer, vectors, seed)


def pieces_of(tokens: Iterable[str], source: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Split tokens with another vocabulary.

    Returns:
        Token to the ids of its pieces; an empty list if the vocabulary lacks one of its characters.
    """
    vocabulary, unknown_id = source.get_vocab(), source.unk_token_id
    pieces: dict[str, list[int]] = {}
    for token in tokens:
        if token.startswith(MARK) and token != MARK:
            pieces[token] = _split_continuation(token.removeprefix(MARK), vocabulary)
        else:
            ids = source.convert_tokens_to_ids(source.tokenize(token))
            pieces[token] = [] if unknown_id in ids else ids
    return pieces


def _split_continuation(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Split the text of a `##` token, longest piece first. A tokenizer would treat it as the start of a word."""
    ids = []
    while text:
        length = next((n for n in range(len(text), 0, -1) if MARK + text[:n] in vocabulary), 0)
        if not length:
            return []
        ids.append(vocabulary[MARK + text[:length]])
        text = text[length:]
    return ids
