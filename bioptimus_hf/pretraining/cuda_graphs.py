"""Record layers as CUDA graphs and replay them, for steps that a GPU runs faster than Python can launch them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import pad


class Replay:
    """Runs layers over concatenated documents by replaying a recording of their forward and backward pass.

    Two launches then replace about a hundred per layer. The first batch is recorded, with room for more documents than
    it has; a batch of another shape, or with more documents than that, runs without the recording. During recording,
    no loss of an earlier batch on the same weights may be alive. Finish each backward pass before the next batch.
    """

    def __init__(self) -> None:
        self._shape: tuple[object, ...] | None = None
        self._room = 0
        self._layers: _Layers | None = None

    def run(
        self, layers: Sequence[torch.nn.Module], hidden: torch.Tensor, borders: torch.Tensor, longest: int
    ) -> torch.Tensor:
        """Run the layers.

        Args:
            layers: the same at each call, without dropout.
            hidden: of shape (1, length, width), on a GPU, with a gradient.
            borders: int32; the first token of each document, and the end of the last, which may be repeated.
            longest: an upper bound of the tokens per document.

        Returns:
            Hidden states of the same shape.
        """
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        shape = (hidden.shape, hidden.dtype, dtype, longest)
        if self._layers is None:
            self._shape = shape
            self._room = 2 << len(borders).bit_length()
            recorded = _Layers(layers, longest)
            sample = (hidden.detach().clone().requires_grad_(), self._padded(borders, hidden))
            with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
                torch.cuda.make_graphed_callables(recorded, sample)  # type: ignore[no-untyped-call]
            self._layers = recorded
        elif shape != self._shape or len(borders) > self._room:
            return _run_layers(layers, hidden, borders, longest)
        for parameter in self._layers.parameters():
            if parameter.grad is not None:  # may be the memory into which the replay writes the next gradient
                parameter.grad = parameter.grad.clone()
        found: torch.Tensor = self._layers(hidden, self._padded(borders, hidden))
        return found

    def _padded(self, borders: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Append empty documents."""
        return pad(borders, (0, self._room - len(borders)), value=hidden.shape[1])


class _Layers(torch.nn.Module):
    def __init__(self, layers: Sequence[torch.nn.Module], longest: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.longest = longest

    def forward(self, hidden: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
        return _run_layers(self.layers, hidden, borders, self.longest)


def _run_layers(
    layers: Iterable[torch.nn.Module], hidden: torch.Tensor, borders: torch.Tensor, longest: int
) -> torch.Tensor:
    attention = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    for layer in layers:
        hidden = layer(hidden, **attention)
    return hidden
