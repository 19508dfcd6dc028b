"""Train only those rows of a word embedding that occur in the training set; the result is that of training all.

A row without a gradient has moments of zero, so AdamW only decays it, by a factor that is the same for all such rows.
The embedding is half of a small encoder: its gradient, moments and updates take as long as those of all layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel


class TrainedRows(nn.Module):
    """An `nn.Embedding` of which some rows are trained. Its state is that of the whole embedding.

    Args:
        whole: the embedding.
        used: ids of the rows to train; in training, no others may be looked up.

    Attributes:
        weight: the rows that are trained, in the order of their ids.
        decay: factor by which the other rows have been decayed since the beginning.
    """

    def __init__(self, whole: nn.Embedding, used: Iterable[int]) -> None:
        super().__init__()
        self.whole = [whole]  # in a list, so that it is no part of this module
        self.ids = torch.tensor(sorted(set(used)))
        self.places = torch.full((whole.num_embeddings,), -1)
        self.places[self.ids] = torch.arange(len(self.ids))
        self.weight = nn.Parameter(whole.weight.detach()[self.ids])
        padding = -1 if whole.padding_idx is None else int(self.places[whole.padding_idx])
        self.padding_idx = padding if padding >= 0 else None
        self.decay = 1.0

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ids, of shape (..., width)."""
        places = self.places[ids]
        if self.training:
            return embedding(places, self.weight, self.padding_idx)
        others = self.whole[0].weight.detach()[ids] * self.decay
        return torch.where((places < 0)[..., None], others, self.weight[places])

    def restored(self) -> nn.Embedding:
        """Return the whole embedding, with the rows as they are now."""
        whole = self.whole[0]
        with torch.no_grad():
            whole.weight.copy_(self._all_rows())
        self.decay = 1.0
        return whole

    def _all_rows(self) -> Tensor:
        rows = self.whole[0].weight.detach() * self.decay
        rows[self.ids] = self.weight.detach()
        return rows

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._all_rows()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        rows = state_dict[f"{prefix}weight"]
        with torch.no_grad():
            self.weight.copy_(rows[self.ids])
            self.whole[0].weight.copy_(rows)
        self.decay = 1.0


def can_train_rows(model: PreTrainedModel) -> bool:
    """Say whether the word embedding of a model is a plain one that is to be trained."""
    whole = model.get_input_embeddings()
    return type(whole) is nn.Embedding and whole.weight.requires_grad and whole.max_norm is None


def train_rows(model: PreTrainedModel, used: Iterable[int]) -> TrainedRows:
    """Replace the word embedding of a model by one of which only the used rows are trained."""
    rows = TrainedRows(model.get_input_embeddings(), used)
    model.set_input_embeddings(rows)
    return rows


def decay_with(rows: TrainedRows, optimizer: torch.optim.Optimizer) -> None:
    """Decay the rows that aren't trained in every step of an optimizer that decays as AdamW does."""

    def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # Found in every step, because loading a state, as Accelerate does at the beginning, makes new groups.
        group = next(group for group in optimizer.param_groups if any(one is rows.weight for one in group["params"]))
        rows.decay *= 1 - float(group["lr"]) * group["weight_decay"]

    optimizer.register_step_pre_hook(decay)
