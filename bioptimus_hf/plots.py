"""Drawings of a run, where matplotlib is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def save_plot(path: Path, draw: Callable[[Any], None], *, size: tuple[float, float] = (7, 3.5), rows: int = 1) -> None:
    """Save what `draw` puts on a `matplotlib.axes.Axes`, or say what to install.

    Args:
        size: width and height in inches.
        rows: of axes, over one another, which then come as an array.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: pip install 'bioptimus-hf[plots]'", path.name)
        return
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots(rows, sharex=True))
    figure.savefig(path, dpi=150)


def plot_history(path: Path, history: Sequence[Mapping[str, Any]], ends: Mapping[str, int]) -> None:
    """Draw losses, masking rate and learning rate of a pre-training over its steps.

    Args:
        history: rows of the log, from `pretraining.pretrain`.
        ends: the last step of each version's phase.
    """

    def draw(axes: Any) -> None:
        panels = (("loss", "eval_loss"), ("rate",), ("learning_rate",))
        names = {"loss": "training", "eval_loss": "validation, masked once"}
        for place, keys in zip(axes, panels, strict=True):
            for key in keys:
                rows = [row for row in history if key in row]
                place.plot([row["step"] for row in rows], [row[key] for row in rows], label=names.get(key))
            for end in ends.values():
                place.axvline(end, color="grey", linewidth=0.5)
        for version, end in ends.items():
            axes[0].annotate(f"v{version}", (end, 1), xycoords=("data", "axes fraction"), ha="right", va="top")
        for place, label in zip(axes, ("cross-entropy (nats)", "masking rate", "learning rate"), strict=True):
            place.set_ylabel(label)
        axes[1].set_ylim(bottom=0)
        axes[0].legend()
        axes[-1].set_xlabel("optimizer step")

    save_plot(path, draw, size=(8, 7), rows=3)
