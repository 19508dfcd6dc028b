"""Define the masked language model of pre-training, which in training computes only what the masked positions need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import cross_entropy, pad
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertLayer, eager_attention_forward
from transformers.training_args import ParallelMode

from bioptimus_hf.hardware import prepare_for_cpu
from bioptimus_hf.models import IGNORED_LABEL
from bioptimus_hf.pretraining.cuda_graphs import Replay

VARLEN = "varlen"
"""Name of our variable-length attention among the attention functions of transformers."""

# The masked positions of a batch are padded to a multiple of this, those of a row to a multiple of a quarter of it.
_CAPACITY = 64
# Rows of logits per pass: as many as stay in the cache of a CPU, or keep a GPU busy.
_ROWS_ON_CPU, _ROWS_ON_GPU = 64, 2048
_FLASH_ATTENTION = (8, 0)  # compute capability that PyTorch's flash attention needs
_WIDEST_HEAD = 256  # the largest head width that it supports; the width must also be a multiple of 8


class BertForMaskedPositions(BertForMaskedLM):
    """`BertForMaskedLM` for packed documents whose last layer and head compute the masked positions only, in training.

    Loss and gradients are those of the parent class, and what is saved is a plain `BertForMaskedLM`.

    Attributes:
        evaluates_logits: whether `forward` returns logits in evaluation, as metrics need. Without them, evaluation
            computes the masked positions only, too.
        document_start: id of the token with which each document in a packed row begins (`[CLS]`); it is never masked.
            If set, attention stays within a document and positions count from the beginning of the document (or of the
            row), so that the states are those of the document read alone. None (the default): a row is one text.
        replay: replays all layers but the last in training, where attention is `VARLEN`.
    """

    accepts_loss_kwargs = True  # tells the Trainer to pass num_items_in_batch; otherwise it looks for **kwargs
    evaluates_logits: bool = True
    document_start: int | None = None
    replay: Replay | None = None

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        # Change the class of the parent's layer, so that its weights are drawn as the parent draws them.
        self.bert.encoder.layer[-1].__class__ = _LastLayer

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> MaskedLMOutput:
        """Predict the positions whose label is not -100, or all positions.

        Args:
            input_ids: int64 of shape (rows, length), as are `attention_mask`, `token_type_ids`, `labels` and
                `position_ids`. Without labels, as a Trainer with label smoothing calls its model, all positions are
                predicted.
            num_items_in_batch: masked positions of the whole optimizer step, over all micro-batches and processes. The
                loss is the sum of the cross-entropies (nats) divided by this number, so that it doesn't depend on how a
                step is divided into micro-batches. By default, the masked positions of this batch.

        Returns:
            In training, `loss` only: the logits are never all in memory. Otherwise also `logits` of shape (rows,
            length, vocabulary), see `evaluates_logits`.
        """
        starts = torch.zeros_like(input_ids, dtype=torch.bool)
        if self.document_start is not None:
            starts = input_ids == self.document_start
        positions = _positions(starts) if position_ids is None else position_ids
        hidden = self.bert.embeddings(input_ids, token_type_ids, position_ids=positions)
        if labels is None or (self.evaluates_logits and not self.training):
            return self._predict_all(hidden, labels, starts, attention_mask, num_items_in_batch)
        states, targets = self._encode(hidden, labels, starts, attention_mask)
        head = self.cls.predictions
        states, weight, bias = head.transform(states), head.decoder.weight, head.bias
        if torch.is_autocast_enabled(states.device.type):
            states, weight, bias = (values.to(self._dtype_of_attention()) for values in (states, weight, bias))
        total: torch.Tensor = _SummedCrossEntropy.apply(states, weight, bias, targets)  # type: ignore[no-untyped-call]
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        return MaskedLMOutput(loss=total / torch.as_tensor(count, device=total.device).clamp(min=1))

    def _predict_all(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor | None,
        starts: torch.Tensor,
        attention_mask: torch.Tensor | None,
        count: torch.Tensor | int | None,
    ) -> MaskedLMOutput:
        """Return the logits of all positions and, with labels, the loss."""
        states, _ = self._encode(hidden, torch.zeros_like(starts, dtype=torch.int64), starts, attention_mask)
        logits = self.cls.predictions(states[: starts.numel()]).view(*starts.shape, -1)
        if labels is None:
            return MaskedLMOutput(logits=logits)
        total = cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="sum", ignore_index=IGNORED_LABEL
        )
        divisor = (labels != IGNORED_LABEL).sum() if count is None else torch.as_tensor(count, device=total.device)
        return MaskedLMOutput(loss=total / divisor.clamp(min=1), logits=logits)

    def _encode(
        self, hidden: torch.Tensor, labels: torch.Tensor, starts: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last layer's states of the masked positions (and of padding after them), and their labels."""
        attention: dict[str, Any]
        last_attention: dict[str, Any]
        if self._concatenates_documents():
            hidden = hidden.flatten(0, 1)[None]
            queries, targets, attention, last_attention = _concatenated(labels, starts, attention_mask)
            selected = None
        else:
            queries, selected, targets = _masked_positions(labels)
            scores = _within_documents(starts, attention_mask, self._dtype_of_attention())
            attention = {"attention_mask": scores}
            rows_of_queries = queries[:, None, :, None].expand(-1, -1, -1, scores.shape[-1])
            last_attention = {"attention_mask": scores.gather(2, rows_of_queries)}
        *layers, last = self.bert.encoder.layer
        if self.replay and layers and self.training and "cu_seq_lens_k" in attention:
            hidden = self.replay.run(layers, hidden, attention["cu_seq_lens_k"], attention["max_length_k"])
        else:
            for layer in layers:
                hidden = layer(hidden, **attention)
        return last(hidden, queries, selected, **last_attention), targets

    def _dtype_of_attention(self) -> torch.dtype:
        weight = self.bert.embeddings.word_embeddings.weight  # the replicas of nn.DataParallel have no `parameters()`
        device = weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

    def _concatenates_documents(self) -> bool:
        """Say whether all documents of a batch form one row: if `VARLEN` attention is chosen and can be used."""
        # The mode of the attention module counts, which may differ from that of the model.
        attention = self.bert.encoder.layer[0].attention.self
        dropout = attention.training and attention.dropout.p
        half = self._dtype_of_attention() in (torch.float16, torch.bfloat16)
        return self.config._attn_implementation == VARLEN and half and not dropout

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """Save as the parent class does, under its name."""
        super().save_pretrained(save_directory, **arguments)
        self.config.architectures = [BertForMaskedLM.__name__]
        self.config.save_pretrained(save_directory)


class _LastLayer(BertLayer):
    """A layer of BERT that computes queries, and everything after attention, for the masked positions only.

    Nothing reads the states of the other positions. Keys and values are those of the whole row.
    """

    def forward(
        self, hidden: torch.Tensor, queries: torch.Tensor, selected: torch.Tensor | None, **attention: Any
    ) -> torch.Tensor:
        """Return states of shape (positions, width).

        Args:
            hidden: of shape (rows, length, width).
            queries: columns of `hidden` to compute, of shape (rows, queries per row).
            selected: indices of the wanted states among the concatenated rows of queries; None: all.
            attention: arguments of the attention function that say which positions may be attended to.
        """
        module = self.attention.self

        def heads(states: torch.Tensor) -> torch.Tensor:
            return states.view(*states.shape[:2], -1, module.attention_head_size).transpose(1, 2)

        residual = hidden.gather(1, queries[:, :, None].expand(-1, -1, hidden.shape[-1]))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention_forward)
        context, _ = attend(
            module,
            heads(module.query(residual)),
            heads(module.key(hidden)),
            heads(module.value(hidden)),
            attention.pop("attention_mask", None),
            dropout=module.dropout.p if self.training else 0.0,
            scaling=module.scaling,
            **attention,
        )
        context, residual = context.flatten(2).flatten(0, 1), residual.flatten(0, 1)
        if selected is not None:
            context, residual = context[selected], residual[selected]
        states: torch.Tensor = self.feed_forward_chunk(self.attention.output(context, residual))
        return states


def varlen_attention(
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
    """Attend within each document of a concatenated row; other positions cost nothing.

    This is PyTorch's flash attention for sequences of different lengths, as an attention function for transformers
    (`set_attn_implementation`), which prescribes the arguments. Without document boundaries, it is the attention of
    transformers that reads a mask (`sdpa`).

    Args:
        module: passed on to that attention.
        query: of shape (1, heads, queries, head width), in half precision, on a GPU.
        key: of shape (1, heads, length, head width), as `value`.
        attention_mask: only used without document boundaries.
        scaling: factor of the attention scores.
        cu_seq_lens_q: first query of each document, and the end of the last document: int32.
        cu_seq_lens_k: the same for the keys.
        max_length_q: an upper bound of the queries per document; `max_length_k` likewise.

    Returns:
        States of shape (1, queries, heads, head width); no attention weights.
    """
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        states, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
        return states, None
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    found = varlen_attn(queries, keys, values, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scale=scaling)
    return found[None], None  # type: ignore[call-overload]


ALL_ATTENTION_FUNCTIONS.register(VARLEN, varlen_attention)


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies (nats) of a linear layer, whose gradient overwrites the logits in the forward pass.

    This saves three passes over logits in full precision, and their memory: only the gradient is kept for the backward
    pass, in the precision of the states.
    """

    @staticmethod
    def forward(
        context: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Return a float32 scalar.

        Args:
            states: of shape (positions, width); those after the labelled ones are padding.
            weight: of shape (vocabulary, width).
            bias: of shape (vocabulary,).
            targets: labels, int64 of shape (labelled,).
        """
        logits = torch.addmm(bias, states, weight.t())
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        rows = _ROWS_ON_CPU if logits.device.type == "cpu" else _ROWS_ON_GPU
        for first in range(0, len(targets), rows):
            labels = targets[first : first + rows, None]
            some = logits[first : first + len(labels)]
            logs = some.log_softmax(-1, dtype=torch.float32)
            total -= logs.gather(1, labels).sum()
            some.copy_(logs.exp_().scatter_add_(1, labels, torch.full_like(labels, -1, dtype=logs.dtype)))
        logits[len(targets) :] = 0
        context.save_for_backward(states, weight, logits)
        return total

    @staticmethod
    def backward(context: Any, outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """Return the gradients of states, weight and bias.

        Raises:
            RuntimeError: a second derivative is requested (`create_graph`), which would be wrong.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("the loss of BertForMaskedPositions has no second derivative: use BertForMaskedLM")
        states, weight, gradient = context.saved_tensors
        outer = outer.to(states.dtype)
        return gradient @ weight * outer, gradient.t() @ (states * outer), gradient.sum(0) * outer, None


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set the dropout of a model, but not of its configuration, which is what is saved."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability


def prepare_model(
    model: BertForMaskedPositions,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    *,
    dropout: float = 0.0,
) -> None:
    """Make a model read packed documents separately, with the attention that is fastest on the training device.

    Args:
        model: is changed.
        tokenizer: its `[CLS]` marks the beginning of a document.
        arguments: of the training that follows; with CUDA graphs, pinned memory is turned off.
        dropout: probability during training; the configuration, which is saved, keeps its own.
    """
    model.document_start = tokenizer.cls_token_id
    model.evaluates_logits = False  # nothing reads them
    model.replay = None  # may be left over from an earlier training
    set_dropout(model, dropout)
    device = arguments.device
    prepare_for_cpu(model, device, dropout=dropout)
    width = model.config.hidden_size // model.config.num_attention_heads
    nvidia = device.type == "cuda" and torch.version.hip is None
    flash = nvidia and torch.cuda.get_device_capability(device) >= _FLASH_ATTENTION
    if flash and width % 8 == 0 and width <= _WIDEST_HEAD:
        model.set_attn_implementation(VARLEN)
        # CUDA graphs are recorded on a single GPU with the default compiler only: several GPUs replicate the model,
        # shard it, or exchange gradients during the backward pass, and other compilers may record graphs themselves.
        alone = arguments.parallel_mode == ParallelMode.NOT_PARALLEL and not arguments.gradient_checkpointing
        usual = arguments.torch_compile_backend == "inductor" and arguments.torch_compile_mode is None
        if arguments.torch_compile and usual and alone:
            model.replay = Replay()
            arguments.dataloader_pin_memory = False  # a thread that pins memory would interrupt the recording


def _masked_positions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the masked positions of each row, and their labels.

    Both are padded with other positions: a new shape for every batch would cost time and memory.

    Returns:
        Columns of shape (rows, queries per row): in each row the masked ones, then others. Indices, into the
        concatenated rows of columns, of the masked ones, then padding. The labels of the masked ones.
    """
    masked = labels != IGNORED_LABEL
    width = max(int(masked.sum(1).max()), 1)
    width = min(width + -width % (_CAPACITY // 4), labels.shape[1])
    columns = masked.sort(dim=1, descending=True, stable=True).indices[:, :width]
    targets = labels.gather(1, columns).flatten()
    selected = (targets != IGNORED_LABEL).nonzero()[:, 0]
    return columns, pad(selected, (0, -len(selected) % _CAPACITY)), targets[selected]


def _within_documents(starts: torch.Tensor, attention_mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask to add to the attention scores, of shape (rows, 1, length, length)."""
    document = starts.cumsum(dim=1)
    within = document[:, :, None] == document[:, None, :]
    if attention_mask is not None:
        within &= attention_mask[:, None, :].bool()
    # Numbers rather than booleans, which eager attention would add as 0 and 1.
    scores = torch.zeros(within.shape, dtype=dtype, device=starts.device)
    return scores.masked_fill_(~within, torch.finfo(dtype).min)[:, None]


def _positions(starts: torch.Tensor) -> torch.Tensor:
    """Return positions within documents, of shape (rows, length)."""
    places = torch.arange(starts.shape[1], device=starts.device)
    return places - torch.where(starts, places, 0).cummax(dim=1).values


def _concatenated(
    labels: torch.Tensor, starts: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any], dict[str, Any]]:
    """Return the masked positions and the document boundaries of a batch whose rows are concatenated.

    What `attention_mask` hides is a document of its own, so that a row with a gap becomes two.

    The numbers of positions and of documents vary from batch to batch, so both are padded: positions with the last one
    of the batch, documents with empty ones at the end.

    Returns:
        Positions, of shape (1, masked positions and padding). The labels of the masked ones. Arguments of
        `varlen_attention` with queries at all positions, and with queries at those positions.
    """
    starts = starts.clone()
    starts[:, 0] = True
    if attention_mask is not None:
        starts[:, 1:] |= attention_mask[:, 1:] != attention_mask[:, :-1]
    size, length = labels.numel(), labels.shape[1]
    labels = labels.flatten()
    positions = (labels != IGNORED_LABEL).nonzero()[:, 0]
    targets = labels[positions]
    padding = -len(positions) % _CAPACITY if len(positions) else _CAPACITY
    positions = pad(positions, (0, padding), value=size - 1)
    begins = starts.flatten().nonzero()[:, 0]
    borders = pad(begins, (0, 1 + -len(begins) % _CAPACITY), value=size)
    all_keys = borders.int()
    lengths = {"max_length_q": length, "max_length_k": length}
    from_all = {"cu_seq_lens_q": all_keys, "cu_seq_lens_k": all_keys, **lengths}
    # The last document also has the padding, which may be longer than a row.
    lengths["max_length_q"] = length + _CAPACITY
    queries = torch.searchsorted(positions, borders).int()
    return positions[None], targets, from_all, {"cu_seq_lens_q": queries, "cu_seq_lens_k": all_keys, **lengths}
