"""Replace the vocabulary of a masked language model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.distillation.initialization import pieces_of
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import check_tokenizer, tokens_in_order
from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies


@check_call()
@torch.no_grad()
def transplant_vocabulary(
    model: BertForMaskedLM,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    new_rows: Mapping[str, torch.Tensor],
) -> BertForMaskedLM:
    """Replace a model's input embeddings, tied output embeddings and decoder bias, in place.

    Shared tokens, including special tokens, keep their embedding and bias bit for bit. A new token gets its embedding
    from `new_rows`, and the mean of its pieces' biases (the mean of all biases if it has no pieces).

    Args:
        model: the model to change.
        source: the tokenizer of the model.
        target: the tokenizer that the model will have.
        new_rows: token to its embedding, float of shape (hidden size,), for each token that is only in `target`.

    Returns:
        The same model.

    Raises:
        InputError: the special tokens of the tokenizers differ; the embedding of a new token is missing, zero or not
            finite; or the output embeddings aren't tied to the input embeddings.
    """
    if source.special_tokens_map != target.special_tokens_map:
        raise InputError(
            f"the special tokens of the vocabularies differ: {source.special_tokens_map} "
            f"and {target.special_tokens_map}"
        )
    check_tokenizer(source, model.config)
    table, decoder = model.get_input_embeddings().weight, model.get_output_embeddings()
    if decoder is None or decoder.weight is not table:
        raise InputError("the model doesn't tie its output embeddings to its input embeddings: use a tied model")
    new = compare_vocabularies(source, target).new
    size = table.shape[1]
    unusable = [token for token in new if not _is_usable(new_rows.get(token), size)]
    if unusable:
        raise InputError(
            f"{len(unusable)} new tokens have no usable embedding (missing, zero, not finite or not of size {size}): "
            f"{', '.join(unusable[:5])}"
        )
    rows, bias = _merge(table.clone(), decoder.bias.clone(), source, target, new_rows)
    # mean_resizing would draw random embeddings, which are overwritten below.
    model.resize_token_embeddings(len(target), mean_resizing=False)
    model.get_input_embeddings().weight.copy_(rows)
    model.get_output_embeddings().bias.copy_(bias)
    model.config.pad_token_id = target.pad_token_id
    model.get_input_embeddings().padding_idx = target.pad_token_id
    return model


def _merge(
    old_rows: torch.Tensor,
    old_bias: torch.Tensor,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    new_rows: Mapping[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings of shape (target size, hidden size) and biases of shape (target size,)."""
    old_ids = source.get_vocab()
    pieces = pieces_of(new_rows, source)
    rows, bias = [], []
    for token in tokens_in_order(target):
        if token in old_ids:
            rows.append(old_rows[old_ids[token]])
            bias.append(old_bias[old_ids[token]])
        else:
            rows.append(new_rows[token].to(old_rows))
            bias.append(old_bias[pieces[token]].mean() if pieces[token] else old_bias.mean())
    return torch.stack(rows), torch.stack(bias)


def _is_usable(row: torch.Tensor | None, size: int) -> bool:
    return row is not None and row.shape == (size,) and bool(torch.isfinite(row).all()) and bool(row.any())
