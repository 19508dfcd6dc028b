"""Replace the vocabulary of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from bioptimus_hf.distillation.initialization import pieces_of
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import tokens_in_order
from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies


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


def _usable(row: torch.Tensor | None) -> bool:
    return row is not None and bool(torch.isfinite(row).all()) and bool(row.any())


def _mean_bias(bias: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    return bias[pieces].mean() if pieces else bias.mean()
