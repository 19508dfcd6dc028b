"""Contextualised weight distillation: a vector for each new token -> BERT with a new vocabulary.

Pavlova and Makhlouf, BIOptimus (BioNLP 2023, arXiv 2308.08625), figure 2. The vectors are those of `reading`, or of
`token_distillation`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from transformers import AutoConfig, BertForMaskedLM, PreTrainedTokenizerBase, set_seed

from bioptimus_hf.artifacts import InputError
from bioptimus_hf.sources import UNREADABLE, check_finite, find_model, why
from bioptimus_hf.vocabulary import MARK, compare_vocabularies, real_ids, tokens_in_order

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


def load_masked_lm(name: str, *, kind: type[BertForMaskedLM] = BertForMaskedLM, seed: int = 0) -> tuple[Any, list[str]]:
    """Load a base model with a masked-LM head, in float32.

    A model without such a head (a sentence encoder, say) gets a new one: BERT's own initialisation, drawn from `seed`.

    Args:
        name: folder, or name on the Hub, as `sources.find_model` takes it.
        kind: `BertForMaskedLM` or a subclass of it.

    Returns:
        The model, and the names of the weights that it had to make up.

    Raises:
        InputError: there is no such model, it is no BERT, or a weight of it is missing or not finite.
    """
    set_seed(seed)
    try:
        folder = find_model(name).folder
        model_type = AutoConfig.from_pretrained(folder).model_type
        if model_type == "bert":
            # By default the dtype of the file would be kept, and half precision trains badly.
            model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except UNREADABLE as error:
        raise InputError(f"{name} cannot be loaded as a BertForMaskedLM ({why(error)})") from error
    if model_type != "bert":
        raise InputError(f"{name} is a {model_type} model, which cannot become a BertForMaskedLM: give a BERT")
    made_up = sorted(info["missing_keys"])
    strange = [key for key in made_up if not key.startswith("cls.")]
    if strange:
        raise InputError(f"{name} lacks weights of a BERT encoder ({', '.join(strange[:3])}): give another base model")
    if made_up:
        logger.warning("%s has no masked-LM head: it gets a new one (%s)", name, ", ".join(made_up))
    check_finite(model.named_parameters(), f"{name} is not usable: give another base model")
    return model, made_up


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


@torch.no_grad()
def transplant_vocabulary(
    model: BertForMaskedLM,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    new_rows: Mapping[str, torch.Tensor],
) -> BertForMaskedLM:
    """Replace a model's vocabulary, in place: input rows, tied output rows, decoder bias.

    Tokens of both vocabularies, special tokens among them, keep row and bias bit for bit. A new token gets its row from
    `new_rows` and as bias the mean of its pieces' biases.

    Args:
        source: the model's tokenizer.
        target: the tokenizer that it is to have.
        new_rows: a row, float of shape (hidden size,), for each token of `target` that `source` has not.

    Returns:
        The same model.

    Raises:
        InputError: the tokenizers' special tokens differ, a new token has no row or one that is zero or not finite, or
            the model does not tie its output to its input.
    """
    if source.special_tokens_map != target.special_tokens_map:
        raise InputError(
            f"the special tokens of the vocabularies differ: {source.special_tokens_map} "
            f"and {target.special_tokens_map}"
        )
    table, decoder = model.get_input_embeddings().weight, model.get_output_embeddings()
    if decoder.weight is not table:
        raise InputError("the model does not tie its output to its input embeddings: only tied models are supported")
    new = compare_vocabularies(source, target).new
    bad = [token for token in new if not _usable(new_rows.get(token))]
    if bad:
        raise InputError(
            f"{len(bad)} new tokens have no usable row (missing, zero or not finite): {', '.join(bad[:5])}"
        )
    old_ids = source.get_vocab()
    old_rows, old_bias = table.clone(), decoder.bias.clone()
    order = tokens_in_order(target)
    pieces = pieces_of(new, source)
    rows = torch.stack(
        [old_rows[old_ids[token]] if token in old_ids else new_rows[token].to(old_rows) for token in order]
    )
    bias = torch.stack(
        [old_bias[old_ids[token]] if token in old_ids else _mean_bias(old_bias, pieces[token]) for token in order]
    )
    # mean_resizing would draw new rows at random; every row is written below.
    model.resize_token_embeddings(len(target), mean_resizing=False)
    model.get_input_embeddings().weight.copy_(rows)
    model.get_output_embeddings().bias.copy_(bias)
    model.config.pad_token_id = target.pad_token_id
    model.get_input_embeddings().padding_idx = target.pad_token_id
    return model


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


def _usable(row: torch.Tensor | None) -> bool:
    return row is not None and bool(torch.isfinite(row).all()) and bool(row.any())


def _mean_bias(bias: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    return bias[pieces].mean() if pieces else bias.mean()
