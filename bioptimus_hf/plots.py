"""Drawings of a run, where matplotlib is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def save_plot(path: Path, draw: Callable[[Any], None], *, size: tuple[float, float] = (7, 3.5)) -> None:
    """Save what `draw` puts on a `matplotlib.axes.Axes`, or say what to install.

    Args:
        size: width and height in inches.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: pip install 'bioptimus-hf[plots]'", path.name)
        return
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=150)
