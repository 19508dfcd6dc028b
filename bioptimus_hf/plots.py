"""Drawings of a run, where matplotlib is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

logger = logging.getLogger(__name__)


def save_plot(
    path: Path,
    draw: Callable[[Any], None],
    *,
    size: tuple[float, float] = (7, 3.5),
    rows: int = 1,
    columns: int = 1,
) -> None:
    """Save what `draw` puts on a `matplotlib.axes.Axes`, or say what to install.

    Args:
        size: width and height in inches.
        rows: of axes, over one another, which then come as an array.
        columns: of axes, beside one another; with rows of more than one, the array has two dimensions.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: pip install 'bioptimus-hf[plots]'", path.name)
        return
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots(rows, columns, sharex=True))
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


def plot_versions(path: Path, results: Mapping[str, Mapping[str, Sequence[float]]], *, reference: str) -> None:
    """Draw F1 over the versions of an encoder, a panel a task, with the reference as a line.

    Args:
        results: of each task, the F1 of each seed (shares) of each version and of the reference, in the order to draw.
        reference: the model that is no version.
    """

    def draw(axes: Any) -> None:
        for place, (task, models) in zip(axes.flat if len(results) > 1 else [axes], results.items(), strict=True):
            versions = [name for name in models if name != reference]
            for name in versions:
                place.plot([name] * len(models[name]), [100 * f1 for f1 in models[name]], ".", color="C0", alpha=0.4)
            means, deviations = zip(*(_percents(models[name]) for name in versions), strict=True)
            place.errorbar(versions, means, yerr=deviations, color="C0", capsize=3, label="versions, mean ± deviation")
            if reference in models:
                mean, deviation = _percents(models[reference])
                place.axhline(mean, color="C1", linestyle="--", label=f"{reference}, mean ± deviation")
                place.axhspan(mean - deviation, mean + deviation, color="C1", alpha=0.15, linewidth=0)
            place.set_title(task)
        place = axes.flat[0] if len(results) > 1 else axes
        place.set_ylabel("strict entity F1 (%)")
        place.legend()

    save_plot(path, draw, size=(1 + 3 * len(results), 3.5), columns=len(results))


def _percents(shares: Sequence[float]) -> tuple[float, float]:
    """Return mean and deviation in percent."""
    return 100 * fmean(shares), 100 * stdev(shares) if len(shares) > 1 else 0.0
