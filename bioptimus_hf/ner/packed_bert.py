"""Compute the logits of a BERT head on a CPU without padding, with faster dropout and a backward pass of our own.

All pieces of a batch form one long row; only attention sees sentences, in groups of similar length. The results are
those of transformers for the same weights, up to rounding; dropout uses other random numbers.

On a CPU, PyTorch draws dropout one number at a time in a single thread, which takes longer than the matrix products
around it. Here each draw of 64 bits gives four numbers, and zeroing is a bitwise `and`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear
from transformers import BertForTokenClassification, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from bioptimus_hf.models import IGNORED_LABEL

_GROUPS = 4  # of sentences of similar length: more have less padding, but each costs a dozen small operations
_LEVELS = 2**15  # resolution of the probability of dropout
_PLAIN = ("torch.nn.modules.", "transformers.models.bert.", "transformers.activations", "bioptimus_hf.ner.")


@dataclass(frozen=True)
class _Group:
    """Sentences that follow one another and that attention pads to the same length.

    Attributes:
        first: place of their first piece in the row of all sentences.
        last: place after their last piece.
        size: number of sentences.
        length: pieces of the longest.
        places: places of the pieces among `size` times `length` padded ones.
        hidden: to add to the scores, of shape (size, 1, 1, length): 0, or minus infinity at padding.
    """

    first: int
    last: int
    size: int
    length: int
    places: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class _Attention:
    """What attention needs to know.

    Attributes:
        groups: all sentences.
        heads: number of attention heads.
        dropout: of the attention probabilities.
    """

    groups: Sequence[_Group]
    heads: int
    dropout: float


class PackedCollator:
    """Make a batch without padding from windows for training: rows of `windows_dataset`."""

    def __call__(self, windows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch.

        Returns:
            `input_ids` of all windows in one row, sorted by the length of the window, of shape (pieces,); `lengths`, of
            shape (windows,); `predicted`, the places of the labelled pieces, and their `labels`, of shape (labelled,).
        """
        windows = sorted(windows, key=lambda window: len(window["input_ids"]))
        batch = packed([window["input_ids"] for window in windows])
        labels = torch.from_numpy(np.concatenate([np.asarray(window["labels"]) for window in windows]))
        predicted = (labels != IGNORED_LABEL).nonzero()[:, 0]
        return {**batch, "predicted": predicted, "labels": labels[predicted]}


def packed(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return `input_ids` and `lengths` of rows of pieces, which should be sorted by length."""
    return {
        "input_ids": torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])),
        "lengths": torch.tensor([len(row) for row in rows]),
    }


def can_be_packed(model: PreTrainedModel) -> bool:
    """Say whether `packed_logits` can compute a model: a plain BERT head on a CPU.

    It reads weights past the modules that hold them, and would miss what adapters, quantization, hooks or another
    `forward` of one of them do.
    """
    config = model.config
    return (
        type(model) in (BertForTokenClassification, PackedBertForTokenClassification)
        and model.device.type == "cpu"
        and model.dtype == torch.float32
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and all(map(_is_plain, model.modules()))
    )


def _is_plain(module: torch.nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return type(module).__module__.startswith(_PLAIN) and "forward" not in vars(module) and not any(hooks)


class PackedBertForTokenClassification(BertForTokenClassification):
    """`BertForTokenClassification` that reads batches of a `PackedCollator`; its weights have the same names."""

    def forward(self, input_ids: Tensor, lengths: Tensor, predicted: Tensor) -> TokenClassifierOutput:
        """Return the logits of the predicted places, of shape (predicted, tags); see `packed_logits`."""
        return TokenClassifierOutput(logits=packed_logits(self, input_ids, lengths, predicted))


def packed_logits(
    model: BertForTokenClassification, input_ids: Tensor, lengths: Tensor, predicted: Tensor | None = None
) -> Tensor:
    """Return the logits of the places in a packed batch, in bfloat16 where autocast says so.

    Args:
        model: for which `can_be_packed` is true.
        input_ids: pieces of all windows in one row, of shape (pieces,).
        lengths: pieces of each window, of shape (windows,).
        predicted: places in this row whose logits are wanted; None: all of them.

    Returns:
        Logits of shape (predicted, tags).
    """
    half = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if half else torch.float32
    embeddings, training = model.bert.embeddings, model.training
    starts = lengths.cumsum(0) - lengths
    positions = torch.arange(len(input_ids)) - starts.repeat_interleave(lengths)
    states = embeddings.word_embeddings(input_ids) + embeddings.token_type_embeddings.weight[0]
    states = states + embedding(positions, embeddings.position_embeddings.weight)
    norm = embeddings.LayerNorm
    states = layer_norm(states, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    states = _dropped(states.to(dtype), embeddings.dropout.p * training)
    groups = _groups(lengths, dtype)
    layers = list(model.bert.encoder.layer)
    for layer in layers:
        module = layer.attention.self
        attention = _Attention(groups, module.num_attention_heads, module.dropout.p * training)
        chosen = predicted if layer is layers[-1] else None
        dropout = layer.output.dropout.p * training
        states = _Layer.apply(states, attention, dropout, chosen, *_weights(layer))  # type: ignore[no-untyped-call]
    if predicted is not None and not layers:
        states = states[predicted]
    states = _dropped(states, model.dropout.p * training)
    return linear(states, model.classifier.weight.to(dtype), model.classifier.bias.to(dtype))


def _weights(layer: Any) -> list[Any]:
    module, output = layer.attention.self, layer.attention.output
    modules = [module.query, module.key, module.value, output.dense, output.LayerNorm]
    modules += [layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm]
    return [weight for each in modules for weight in (each.weight, each.bias)] + [output.LayerNorm.eps]


def _groups(lengths: Tensor, dtype: torch.dtype) -> list[_Group]:
    counts = lengths.tolist()
    size = -(-len(counts) // _GROUPS)
    groups, first = [], 0
    for start in range(0, len(counts), size):
        some = lengths[start : start + size]
        length = int(some.max())
        real = torch.arange(length) < some[:, None]
        last = first + int(some.sum())
        hidden = torch.zeros(real.shape, dtype=dtype).masked_fill_(~real, -torch.inf)
        groups.append(_Group(first, last, len(some), length, real.flatten().nonzero()[:, 0], hidden[:, None, None]))
        first = last
    return groups


def _kept(like: Tensor, dropout: float) -> Tensor:
    """Return integers as wide as the numbers of a tensor: all bits where a number is kept, none where it is dropped."""
    count = like.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    # Numbers of 15 bits, shifted so that those below zero are to be dropped; their sign is then all that is left.
    numbers.bitwise_right_shift_(1).add_(_LEVELS // 2 - round(dropout * _LEVELS))
    numbers.bitwise_right_shift_(15).bitwise_not_()
    return numbers.view(like.shape).to(_integers(like))


def _integers(like: Tensor) -> torch.dtype:
    return torch.int32 if like.dtype == torch.float32 else torch.int16


def _zero(values: Tensor, kept: Tensor | None) -> Tensor:
    """Zero in place what was dropped."""
    if kept is not None:
        values.view(kept.dtype).bitwise_and_(kept)
    return values


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, dropout: float) -> Tensor:
        context.kept, context.scale = _kept(values, dropout), 1 / (1 - dropout)
        return _zero(values * context.scale, context.kept)

    @staticmethod
    def backward(context: Any, outer: Tensor) -> tuple[Tensor, None]:
        return _zero(outer * context.scale, context.kept), None


def _dropped(values: Tensor, dropout: float) -> Tensor:
    return _Dropout.apply(values, dropout) if dropout else values  # type: ignore[no-untyped-call,no-any-return]


class _Layer(torch.autograd.Function):
    """A layer of BERT; the last one computes attention for all places, and the rest for the chosen ones only."""

    @staticmethod
    def forward(
        context: Any,
        states: Tensor,
        attention: _Attention,
        dropout: float,
        chosen: Tensor | None,
        *weights: Any,
    ) -> Tensor:
        """Return states of shape (chosen, width).

        Args:
            states: of shape (pieces, width), in the precision to compute in.
            attention: of the batch.
            dropout: after both blocks.
            chosen: places to compute; None: all.
            weights: see `_weights`.
        """
        dtype = states.dtype
        query, query_bias, key, key_bias, value, value_bias, *rest, epsilon = weights
        qkv_weight = torch.cat([query, key, value]).to(dtype)
        qkv_bias = torch.cat([query_bias, key_bias, value_bias]).to(dtype)
        out, out_bias, norm, norm_bias, up, up_bias, down, down_bias, last_norm, last_norm_bias = rest
        out, up, down, out_bias, up_bias, down_bias = (
            w.to(dtype) for w in (out, up, down, out_bias, up_bias, down_bias)
        )
        attended, saved = _attend(linear(states, qkv_weight, qkv_bias), attention)
        residual = states
        if chosen is not None:
            attended, residual = attended[chosen], states[chosen]
        scale = 1 / (1 - dropout)
        width = states.shape[-1:]
        block = linear(attended, out, out_bias)
        kept = _kept(block, dropout) if dropout else None
        summed = torch.add(residual, _zero(block, kept), alpha=scale)
        middle, mean, deviation = torch.native_layer_norm(summed, width, norm, norm_bias, epsilon)
        inner = linear(middle, up, up_bias)
        active = gelu(inner)
        block = linear(active, down, down_bias)
        last_kept = _kept(block, dropout) if dropout else None
        last_summed = torch.add(middle, _zero(block, last_kept), alpha=scale)
        result, last_mean, last_deviation = torch.native_layer_norm(
            last_summed, width, last_norm, last_norm_bias, epsilon
        )
        context.attention, context.scale, context.chosen = attention, scale, chosen
        context.attended = (attended, saved)
        context.first = (states, qkv_weight, out, kept, summed, mean, deviation, norm, norm_bias)
        context.second = (middle, inner, active, up, down, last_kept, last_summed)
        context.last = (last_mean, last_deviation, last_norm, last_norm_bias)
        return result

    @staticmethod
    def backward(context: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of states and weights."""
        states, qkv_weight, out, kept, summed, mean, deviation, norm, norm_bias = context.first
        middle, inner, active, up, down, last_kept, last_summed = context.second
        last_mean, last_deviation, last_norm, last_norm_bias = context.last
        attended, saved = context.attended
        outer, last_norm_grad, last_norm_bias_grad = _norm_backward(
            outer.contiguous(), last_summed, last_mean, last_deviation, last_norm, last_norm_bias
        )
        block = _zero(outer * context.scale, last_kept)
        down_grads = block.t() @ active, block.sum(0)
        block = torch.ops.aten.gelu_backward(block @ down, inner)
        up_grads = block.t() @ middle, block.sum(0)
        outer = torch.addmm(outer, block, up)
        outer, norm_grad, norm_bias_grad = _norm_backward(outer, summed, mean, deviation, norm, norm_bias)
        block = _zero(outer * context.scale, kept)
        out_grads = block.t() @ attended, block.sum(0)
        block = block @ out
        if context.chosen is not None:
            block = torch.zeros_like(states).index_copy_(0, context.chosen, block)
            outer = torch.zeros_like(states).index_copy_(0, context.chosen, outer)
        block = _attend_backward(block, saved, context.attention)
        qkv_grads = zip((block.t() @ states).chunk(3), block.sum(0).chunk(3), strict=True)
        outer = torch.addmm(outer, block, qkv_weight)
        grads = [grad for pair in qkv_grads for grad in pair]
        grads += [*out_grads, norm_grad, norm_bias_grad, *up_grads, *down_grads, last_norm_grad, last_norm_bias_grad]
        return outer, None, None, None, *(grad.float() for grad in grads), None


def _norm_backward(outer: Tensor, values: Tensor, mean: Tensor, scale: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of what layer normalisation was given: values, weight and bias.

    In bfloat16, PyTorch 2 adds those of weight and bias up in bfloat16, and loses most of them in a long batch.

    Args:
        outer: of shape (pieces, width), like `values`.
        mean: of each row of `values`, in float32, of shape (pieces, 1).
        scale: the inverse of its standard deviation.
        weights: weight and bias.
    """
    half = values.dtype != torch.float32
    wanted = [True, not half, not half]
    grads = torch.ops.aten.native_layer_norm_backward(outer, values, values.shape[1:], mean, scale, *weights, wanted)
    if not half:
        return tuple(grads)
    return grads[0], ((values - mean).mul_(scale).mul_(outer)).sum(0), outer.sum(0, dtype=torch.float32)


def _attend(projected: Tensor, attention: _Attention) -> tuple[Tensor, list[tuple[Any, ...]]]:
    """Return the attention's results, and what its backward pass needs, for each group.

    Args:
        projected: queries, keys and values side by side, of shape (pieces, 3 times width).
    """
    width, dtype = projected.shape[1] // 3, projected.dtype
    attended = projected.new_empty(len(projected), width)
    scaling = (width // attention.heads) ** -0.5
    saved: list[tuple[Any, ...]] = []
    for group in attention.groups:
        padded = projected.new_zeros(group.size * group.length, 3 * width)
        padded.index_copy_(0, group.places, projected[group.first : group.last])
        three = padded.view(group.size, group.length, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = three.reshape(3, group.size * attention.heads, group.length, -1)
        scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(scaling)
        scores.view(group.size, attention.heads, group.length, -1).add_(group.hidden)
        shares = scores.softmax(-1).to(dtype)
        kept = _kept(shares, attention.dropout) if attention.dropout else None
        dropped = shares if kept is None else _zero(shares.clone(), kept)
        found = torch.bmm(dropped, value).view(group.size, attention.heads, group.length, -1).transpose(1, 2)
        attended[group.first : group.last] = found.reshape(-1, width).index_select(0, group.places)
        saved.append((query, key, value, shares, dropped, kept))
    if attention.dropout:
        attended *= 1 / (1 - attention.dropout)
    return attended, saved


def _attend_backward(outer: Tensor, saved: Sequence[tuple[Any, ...]], attention: _Attention) -> Tensor:
    """Return the gradient of `projected`, see `_attend`."""
    width = outer.shape[1]
    gradient = outer.new_empty(len(outer), 3 * width)
    scaling = (width // attention.heads) ** -0.5
    if attention.dropout:
        outer = outer * (1 / (1 - attention.dropout))
    for group, (query, key, value, shares, dropped, kept) in zip(attention.groups, saved, strict=True):
        padded = outer.new_zeros(group.size * group.length, width)
        padded.index_copy_(0, group.places, outer[group.first : group.last])
        found = padded.view(group.size, group.length, attention.heads, -1).transpose(1, 2).reshape(query.shape)
        of_shares = _zero(torch.bmm(found, value.transpose(1, 2)), kept)
        scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype).mul_(scaling)
        three = torch.stack(
            [
                torch.bmm(scores, key),
                torch.bmm(scores.transpose(1, 2), query),
                torch.bmm(dropped.transpose(1, 2), found),
            ]
        )
        three = three.view(3, group.size, attention.heads, group.length, -1).permute(1, 3, 0, 2, 4)
        gradient[group.first : group.last] = three.reshape(-1, 3 * width).index_select(0, group.places)
    return gradient
