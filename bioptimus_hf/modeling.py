"""The masked language model of pre-training: its head on masked positions alone, its attention within documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad
from transformers import BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from bioptimus_hf.masking import IGNORED

_CAPACITY = 64  # masked positions are filled up to a multiple of it


class BertForMaskedPositions(BertForMaskedLM):
    """`BertForMaskedLM` for blocks packed of documents, whose prediction head reads the masked positions alone.

    The loss is the parent's, and what is saved is a plain `BertForMaskedLM`. Of the outputs, `logits` have the shape
    (masked positions of the batch, vocabulary).

    Attributes:
        document_start: id of the token, never masked, with which each document in a packed row begins: `[CLS]`. With
            it, attention stays within a document and positions count from its beginning (or that of the row), so that
            the states are those of the document read alone. None, as it is at first: a row is one text.
    """

    accepts_loss_kwargs = True  # tells the Trainer to pass num_items_in_batch; it looks for **kwargs otherwise
    document_start: int | None = None

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> MaskedLMOutput:
        """Predict the positions whose label is not -100 (`IGNORED`).

        Args:
            input_ids: int64 of shape (rows, length), as `attention_mask`, `token_type_ids` and `labels`.
            num_items_in_batch: masked positions of the whole optimizer step, over all micro-batches and processes. The
                loss is the sum of the cross-entropies (nats) over it, so that it does not depend on how a step is cut
                into micro-batches; without it, over the masked positions of this batch.

        Raises:
            ValueError: there are no labels.
        """
        if labels is None:
            raise ValueError("a model that predicts masked positions alone needs labels to tell which they are")
        positions = None
        if self.document_start is not None:
            starts = input_ids == self.document_start
            attention_mask, positions = _within_documents(starts, attention_mask)
        hidden = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=positions
        )[0]
        chosen = (labels.flatten() != IGNORED).nonzero()[:, 0]
        count = len(chosen)
        # A shape of its own for every batch costs time and memory. What fills it up is the first position, unlabelled.
        chosen = pad(chosen, (0, -count % _CAPACITY))
        wanted = labels.flatten()[chosen]
        wanted[count:] = IGNORED
        logits = self.cls(hidden.flatten(0, 1)[chosen])
        total = cross_entropy(logits.float(), wanted, reduction="sum", ignore_index=IGNORED)
        over = torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch, device=total.device)
        return MaskedLMOutput(loss=total / over.clamp(min=1), logits=logits[:count])

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """Save as the parent, under the parent's name."""
        super().save_pretrained(save_directory, **arguments)
        self.config.architectures = [BertForMaskedLM.__name__]
        self.config.save_pretrained(save_directory)


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set the dropout of a model for a training; its configuration, which is what is saved, stays."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability


def _within_documents(starts: torch.Tensor, attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return who may look at whom, bool of shape (rows, 1, length, length), and the positions within documents."""
    document = starts.cumsum(dim=1)
    within = document[:, :, None] == document[:, None, :]
    if attention_mask is not None:
        within &= attention_mask[:, None, :].bool()
    places = torch.arange(starts.shape[1], device=starts.device)
    begins = torch.where(starts, places, 0).cummax(dim=1).values
    return within[:, None], places - begins
