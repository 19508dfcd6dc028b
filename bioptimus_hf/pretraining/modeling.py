"""The masked language model of pre-training: it computes what masked positions need, within documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from transformers import BertConfig, BertForMaskedLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertLayer, eager_attention_forward

from bioptimus_hf.models import IGNORED_LABEL
from bioptimus_hf.pretraining.cuda_graphs import Replay

END_TO_END = "end_to_end"  # name of our attention among those of transformers
_CAPACITY = 64  # masked positions of a batch are filled up to a multiple of it, those of a row to a quarter
# Rows of logits at once: as many as stay in the cache of a CPU, or keep a GPU busy.
_ROWS_ON_CPU, _ROWS_ON_GPU = 64, 2048


class BertForMaskedPositions(BertForMaskedLM):
    """`BertForMaskedLM` for blocks packed of documents; the last layer and the head compute masked positions alone.

    Loss and gradients are the parent's, and what is saved is a plain `BertForMaskedLM`.

    Attributes:
        document_start: id of the token, never masked, with which each document in a packed row begins: `[CLS]`. With
            it, attention stays within a document and positions count from its beginning (or that of the row), so that
            the states are those of the document read alone. None, as it is at first: a row is one text.
        replay: what replays all layers but the last in training, where documents are read end to end (`END_TO_END`).
    """

    accepts_loss_kwargs = True  # tells the Trainer to pass num_items_in_batch; it looks for **kwargs otherwise
    document_start: int | None = None
    replay: Replay | None = None

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        # The parent's layer, so that its weights are drawn as the parent draws them; nothing but `forward` differs.
        self.bert.encoder.layer[-1].__class__ = _LastLayer

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> MaskedLMOutput:
        """Predict the positions whose label is not -100 (`IGNORED_LABEL`).

        Args:
            input_ids: int64 of shape (rows, length), as `attention_mask`, `token_type_ids` and `labels`.
            num_items_in_batch: masked positions of the whole optimizer step, over all micro-batches and processes. The
                loss is the sum of the cross-entropies (nats) over it, so that it does not depend on how a step is cut
                into micro-batches; without it, over the masked positions of this batch.

        Returns:
            `loss` alone: logits are never held whole.

        Raises:
            ValueError: there are no labels.
        """
        if labels is None:
            raise ValueError("a model that predicts masked positions alone needs labels to tell which they are")
        starts = torch.zeros_like(input_ids, dtype=torch.bool)
        if self.document_start is not None:
            starts = input_ids == self.document_start
        hidden = self.bert.embeddings(input_ids, token_type_ids, position_ids=_positions(starts))
        attention: dict[str, Any]
        asked: dict[str, Any]
        if self._puts_end_to_end():
            hidden = hidden.flatten(0, 1)[None]
            slots, wanted, attention, asked = _end_to_end(labels, starts, attention_mask)
            chosen = None
        else:
            slots, chosen, wanted = _masked_positions(labels)
            scores = _within_documents(starts, attention_mask, self._dtype_of_attention())
            attention = {"attention_mask": scores}
            of_slots = slots[:, None, :, None].expand(-1, -1, -1, scores.shape[-1])
            asked = {"attention_mask": scores.gather(2, of_slots)}
        *layers, last = self.bert.encoder.layer
        if self.replay and layers and self.training and "cu_seq_lens_k" in attention:
            hidden = self.replay.run(layers, hidden, attention["cu_seq_lens_k"], attention["max_length_k"])
        else:
            for layer in layers:
                hidden = layer(hidden, **attention)
        head = self.cls.predictions
        states = head.transform(last(hidden, slots, chosen, **asked))
        weight, bias = head.decoder.weight, head.bias
        if torch.is_autocast_enabled(states.device.type):
            states, weight, bias = (values.to(self._dtype_of_attention()) for values in (states, weight, bias))
        total: torch.Tensor = _SummedCrossEntropy.apply(states, weight, bias, wanted)  # type: ignore[no-untyped-call]
        count = len(wanted) if num_items_in_batch is None else num_items_in_batch
        return MaskedLMOutput(loss=total / torch.as_tensor(count, device=total.device).clamp(min=1))

    def _dtype_of_attention(self) -> torch.dtype:
        weight = self.bert.embeddings.word_embeddings.weight  # the copies of nn.DataParallel have no other parameters
        device = weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

    def _puts_end_to_end(self) -> bool:
        """Say whether documents are read end to end: where that attention is chosen, and can do it."""
        attention = self.bert.encoder.layer[0].attention.self  # whose own mode counts: one may set it apart
        dropout = attention.training and attention.dropout.p
        half = self._dtype_of_attention() in (torch.float16, torch.bfloat16)
        return self.config._attn_implementation == END_TO_END and half and not dropout

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """Save as the parent, under the parent's name."""
        super().save_pretrained(save_directory, **arguments)
        self.config.architectures = [BertForMaskedLM.__name__]
        self.config.save_pretrained(save_directory)


class _LastLayer(BertLayer):
    """A layer of BERT whose queries, and all that follows attention, are those of the masked positions alone.

    Nothing reads its other states. Keys and values are of the whole row.
    """

    def forward(
        self, hidden: torch.Tensor, slots: torch.Tensor, chosen: torch.Tensor | None, **where: Any
    ) -> torch.Tensor:
        """Return states of shape (positions, width).

        Args:
            hidden: of shape (rows, length, width).
            slots: columns of hidden that ask, of shape (rows, slots).
            chosen: which of these, rows put end to end, are wanted; None: all.
            where: what attention is told of who may see what.
        """
        attention = self.attention.self

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.view(*states.shape[:2], -1, attention.attention_head_size).transpose(1, 2)

        asking = hidden.gather(1, slots[:, :, None].expand(-1, -1, hidden.shape[-1]))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        context, _ = attend(
            attention,
            heads(attention.query(asking)),
            heads(attention.key(hidden)),
            heads(attention.value(hidden)),
            where.pop("attention_mask", None),
            dropout=attention.dropout.p if self.training else 0.0,
            scaling=attention.scaling,
            **where,
        )
        context, asking = context.flatten(2).flatten(0, 1), asking.flatten(0, 1)
        if chosen is not None:
            context, asking = context[chosen], asking[chosen]
        states: torch.Tensor = self.feed_forward_chunk(self.attention.output(context, asking))
        return states


def attend_end_to_end(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int = 0,
    max_length_k: int = 0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within documents that stand end to end in one row: what lies outside of a document costs nothing.

    It is PyTorch's flash attention for sequences of different lengths, as a function that transformers can be told to
    use (`set_attn_implementation`). Without borders it is that of transformers which reads a mask.

    Args:
        query: of shape (1, heads, asking, head width), half precision, on a GPU.
        key: of shape (1, heads, length, head width), as `value`.
        cu_seq_lens_q: begin of each document among those that ask, and the end of the last: int32.
        cu_seq_lens_k: the same, among all.
        max_length_q: at least as many as any document has among those that ask; `max_length_k` likewise.

    Returns:
        States of shape (1, asking, heads, head width); no weights.
    """
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        states, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
        return states, None
    asking, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))
    found = varlen_attn(asking, keys, values, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scale=scaling)
    return found[None], None  # type: ignore[call-overload]


ALL_ATTENTION_FUNCTIONS.register(END_TO_END, attend_end_to_end)


class _SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropies (nats) of a linear prediction, summed, whose gradient takes the place of the logits.

    Three passes over logits in full precision, and as much memory, are saved: what is kept for the way back is the
    gradient, in the precision of the states, of a few rows at a time.
    """

    @staticmethod
    def forward(
        context: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Return a float32 scalar.

        Args:
            states: of shape (positions, width); those from the labelled ones on count for nothing.
            weight: of shape (vocabulary, width).
            bias: of shape (vocabulary,).
            wanted: labels, int64 of shape (labelled,).
        """
        logits = torch.addmm(bias, states, weight.t())
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        at_once = _ROWS_ON_CPU if logits.device.type == "cpu" else _ROWS_ON_GPU
        for first in range(0, len(wanted), at_once):
            labels = wanted[first : first + at_once, None]
            some = logits[first : first + len(labels)]
            logs = some.log_softmax(-1, dtype=torch.float32)
            total -= logs.gather(1, labels).sum()
            some.copy_(logs.exp_().scatter_add_(1, labels, torch.full_like(labels, -1, dtype=logs.dtype)))
        logits[len(wanted) :] = 0
        context.save_for_backward(states, weight, logits)
        return total

    @staticmethod
    def backward(context: Any, outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Return the gradients of states, weight and bias.

        Raises:
            RuntimeError: a second derivative is asked for (`create_graph`), which would come out wrong.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("the loss of BertForMaskedPositions has no second derivative: use BertForMaskedLM")
        states, weight, gradient = context.saved_tensors
        outer = outer.to(states.dtype)
        return gradient @ weight * outer, gradient.t() @ (states * outer), gradient.sum(0) * outer, None


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set the dropout of a model for a training; its configuration, which is what is saved, stays."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability


def _masked_positions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where the masked positions are, and their labels.

    A shape of its own for every batch would cost time and memory, so that other positions fill up.

    Returns:
        Columns, of shape (rows, slots): in each row the masked ones, then others. Indices into these, rows put end to
        end, of the masked ones, then of others. The labels of the masked ones.
    """
    masked = labels != IGNORED_LABEL
    slots = max(int(masked.sum(1).max()), 1)
    slots = min(slots + -slots % (_CAPACITY // 4), labels.shape[1])
    columns = masked.sort(dim=1, descending=True, stable=True).indices[:, :slots]
    wanted = labels.gather(1, columns).flatten()
    chosen = (wanted != IGNORED_LABEL).nonzero()[:, 0]
    return columns, pad(chosen, (0, -len(chosen) % _CAPACITY)), wanted[chosen]


def _within_documents(starts: torch.Tensor, attention_mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to attention scores, of shape (rows, 1, length, length)."""
    document = starts.cumsum(dim=1)
    within = document[:, :, None] == document[:, None, :]
    if attention_mask is not None:
        within &= attention_mask[:, None, :].bool()
    # Numbers and not booleans, which the plain attention (eager) would add as 0 and 1.
    scores = torch.zeros(within.shape, dtype=dtype, device=starts.device)
    return scores.masked_fill_(~within, torch.finfo(dtype).min)[:, None]


def _positions(starts: torch.Tensor) -> torch.Tensor:
    """Return positions within documents, of shape (rows, length)."""
    places = torch.arange(starts.shape[1], device=starts.device)
    return places - torch.where(starts, places, 0).cummax(dim=1).values


def _end_to_end(
    labels: torch.Tensor, starts: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any], dict[str, Any]]:
    """Return where the masked positions are when rows are put end to end, their labels, and the documents' borders.

    What `attention_mask` hides is a document of its own, so that a row with a hole in it becomes two.

    Both numbers differ from batch to batch, and are filled up: positions by the last one of all, documents by empty
    ones at the end.

    Returns:
        Places, of shape (1, masked positions and fillers). The labels of the masked ones. What `attend_end_to_end` is
        told where all ask, and where those places do.
    """
    starts = starts.clone()
    starts[:, 0] = True
    if attention_mask is not None:
        starts[:, 1:] |= attention_mask[:, 1:] != attention_mask[:, :-1]
    size, length = labels.numel(), labels.shape[1]
    labels = labels.flatten()
    places = (labels != IGNORED_LABEL).nonzero()[:, 0]
    wanted = labels[places]
    places = pad(places, (0, -len(places) % _CAPACITY if len(places) else _CAPACITY), value=size - 1)
    begins = starts.flatten().nonzero()[:, 0]
    borders = pad(begins, (0, 1 + -len(begins) % _CAPACITY), value=size)
    everyone = borders.int()
    lengths = {"max_length_q": length, "max_length_k": length}
    among_all = {"cu_seq_lens_q": everyone, "cu_seq_lens_k": everyone, **lengths}
    # The last document has the fillers too, which may be more than a row is long.
    lengths["max_length_q"] = length + _CAPACITY
    among_places = {"cu_seq_lens_q": torch.searchsorted(places, borders).int(), "cu_seq_lens_k": everyone, **lengths}
    return places[None], wanted, among_all, among_places
