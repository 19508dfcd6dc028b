"""Layers recorded once as CUDA graphs, and replayed: for steps that a GPU runs faster than Python launches them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import pad


class Replay:
    """Runs layers over documents that stand end to end by replaying what was recorded of them, there and back.

    Two launches then take the place of some hundred a layer. What is recorded is the first batch, with room for more
    documents than it has; one of another shape, or with still more documents, runs as ever. While it is recorded, no
    loss of a batch before may be held that leads to the same weights; and each batch goes all the way back before the
    next one comes.
    """

    def __init__(self) -> None:
        self._shape: tuple[object, ...] | None = None
        self._room = 0
        self._layers: _Layers | None = None

    def run(
        self, layers: Sequence[torch.nn.Module], hidden: torch.Tensor, borders: torch.Tensor, longest: int
    ) -> torch.Tensor:
        """Return what the layers make of hidden states.

        Args:
            layers: the same at each call; of dropout, they have none.
            hidden: of shape (1, length, width), on a GPU, with a gradient.
            borders: begin of each document, and the end of the last; as often as you like: int32.
            longest: at least as many tokens as a document has.
        """
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        shape = (hidden.shape, hidden.dtype, dtype, longest)
        if self._layers is None:
            self._shape = shape
            self._room = 2 << len(borders).bit_length()
            recorded = _Layers(layers, longest)
            sample = (hidden.detach().clone().requires_grad_(), self._filled(borders, hidden))
            with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
                torch.cuda.make_graphed_callables(recorded, sample)  # type: ignore[no-untyped-call]
            self._layers = recorded
        elif shape != self._shape or len(borders) > self._room:
            return _through(layers, hidden, borders, longest)
        for parameter in self._layers.parameters():
            if parameter.grad is not None:  # of a batch before, and perhaps where that of this one will be written
                parameter.grad = parameter.grad.clone()
        found: torch.Tensor = self._layers(hidden, self._filled(borders, hidden))
        return found

    def _filled(self, borders: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Fill up borders by documents without tokens, at the end."""
        return pad(borders, (0, self._room - len(borders)), value=hidden.shape[1])


class _Layers(torch.nn.Module):
    def __init__(self, layers: Sequence[torch.nn.Module], longest: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.longest = longest

    def forward(self, hidden: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
        return _through(self.layers, hidden, borders, self.longest)


def _through(
    layers: Iterable[torch.nn.Module], hidden: torch.Tensor, borders: torch.Tensor, longest: int
) -> torch.Tensor:
    where = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    for layer in layers:
        hidden = layer(hidden, **where)
    return hidden
