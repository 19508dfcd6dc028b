"""Draw the figures of a run with matplotlib, if it is installed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)


def save_plot(
    path: Path | IO[bytes],
    draw: Callable[[Any], None],
    *,
    size: tuple[float, float] = (7, 3.5),
    rows: int = 1,
    columns: int = 1,
) -> None:
    """Save a figure; without matplotlib, warn once what to install and save nothing.

    Args:
        path: a file to write, or one that is open for writing.
        draw: draws on the `matplotlib.axes.Axes`; for several rows or columns, on an array of them, as
            `Figure.subplots` returns it.
        size: width and height in inches.
        rows: number of rows of axes.
        columns: number of columns of axes.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _warn_without_matplotlib()
        return
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots(rows, columns, sharex=True))
    figure.savefig(path, dpi=150)


@functools.cache
def _warn_without_matplotlib() -> None:
    logger.warning("plots are not drawn, because matplotlib is not installed: pip install 'bioptimus-hf[plots]'")


def plot_history(path: Path, history: Sequence[Mapping[str, Any]], ends: Mapping[str, int]) -> None:
    """Plot losses, masking rate and learning rate of a pre-training over its steps.

    Args:
        history: rows of the log, from `pretraining.pretrain`.
        ends: last step of each version's phase.
    """

    def draw(axes: Any) -> None:
        panels = (("loss", "eval_loss"), ("rate",), ("learning_rate",))
        names = {"loss": "training", "eval_loss": "validation, masked once"}
        for panel, keys in zip(axes, panels, strict=True):
            for key in keys:
                rows = [row for row in history if key in row]
                panel.plot([row["step"] for row in rows], [row[key] for row in rows], label=names.get(key))
            for end in ends.values():
                panel.axvline(end, color="grey", linewidth=0.5)
        for version, end in ends.items():
            axes[0].annotate(f"v{version}", (end, 1), xycoords=("data", "axes fraction"), ha="right", va="top")
        for panel, label in zip(axes, ("cross-entropy (nats)", "masking rate", "learning rate"), strict=True):
            panel.set_ylabel(label)
        axes[1].set_ylim(bottom=0)
        axes[0].legend()
        axes[-1].set_xlabel("optimizer step")

    save_plot(path, draw, size=(8, 7), rows=3)


def plot_versions(
    path: Path,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    f1_of_seeds: Mapping[tuple[str, str], Sequence[float]],
    *,
    reference: str,
) -> None:
    """Plot F1 over the versions of an encoder, one panel for each task, with the reference as a line.

    Args:
        rows: from `ner.results.summarize`, by task, with the versions in the order to draw, and maybe the reference.
        f1_of_seeds: F1 of each seed (shares between 0 and 1), by task and model.
        reference: the model to draw as a line.
    """

    def draw(axes: Any) -> None:
        panels = axes.flat if len(rows) > 1 else [axes]
        for panel, (task, of_task) in zip(panels, rows.items(), strict=True):
            versions = [row for row in of_task if row["model"] != reference]
            for row in versions:
                f1 = f1_of_seeds[task, row["model"]]
                panel.plot([row["model"]] * len(f1), [100 * value for value in f1], ".", color="C0", alpha=0.4)
            means, standard_deviations = zip(*(_percent(row["f1"]) for row in versions), strict=True)
            panel.errorbar(
                [row["model"] for row in versions],
                means,
                yerr=standard_deviations,
                color="C0",
                capsize=3,
                label="versions, mean ± standard deviation",
            )
            for row in of_task:
                if row["model"] == reference:
                    mean, standard_deviation = _percent(row["f1"])
                    panel.axhline(mean, color="C1", linestyle="--", label=f"{reference}, mean ± standard deviation")
                    low, high = mean - standard_deviation, mean + standard_deviation
                    panel.axhspan(low, high, color="C1", alpha=0.15, linewidth=0)
            panel.set_title(task)
        panel = axes.flat[0] if len(rows) > 1 else axes
        panel.set_ylabel("strict entity F1 (%)")
        panel.legend()

    save_plot(path, draw, size=(1 + 3 * len(rows), 3.5), columns=len(rows))


def plot_calibration(file: IO[bytes], bins: Sequence[Mapping[str, Any]]) -> None:
    """Plot the precision of entities over their scores, and how many there are.

    Args:
        file: open for writing.
        bins: from `ner.calibration.calibration`.
    """

    def draw(axes: Any) -> None:
        reliability, counts = axes
        filled = [row for row in bins if row["found"]]
        width = bins[0]["high"] - bins[0]["low"]
        reliability.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="score = precision")
        reliability.bar(
            [row["low"] for row in filled],
            [row["precision"] for row in filled],
            width=width,
            align="edge",
            edgecolor="white",
            label="precision of the entities",
        )
        reliability.plot(
            [row["mean_score"] for row in filled],
            [row["precision"] for row in filled],
            "o",
            color="C1",
            label="mean score",
        )
        reliability.set_ylabel("precision")
        reliability.set_ylim(0, 1.02)
        reliability.legend(loc="upper left")
        counts.bar(
            [row["low"] for row in bins], [row["found"] for row in bins], width=width, align="edge", color="grey"
        )
        counts.set_ylabel("entities found")
        counts.set_xlabel("score")
        counts.set_xlim(0, 1)

    save_plot(file, draw, size=(5, 5), rows=2)


def plot_min_scores(file: IO[bytes], curve: Sequence[Mapping[str, float]], best: float) -> None:
    """Plot precision, recall and F1 over the least score of entities that are kept.

    Args:
        file: open for writing.
        curve: from `ner.calibration.scores_by_threshold`.
        best: the least score with the highest F1.
    """

    def draw(axes: Any) -> None:
        scores = [row["min_score"] for row in curve]
        for name, label in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
            axes.plot(scores, [100 * row[name] for row in curve], label=label)
        axes.axvline(best, color="grey", linestyle="--", linewidth=1, label=f"best F1: {best:.2f}")
        axes.set_xlabel("least score")
        axes.set_ylabel("development set (%)")
        axes.legend(loc="lower left")

    save_plot(file, draw, size=(5, 3.5))


def _percent(spread: Mapping[str, float | None]) -> tuple[float, float]:
    """Return mean and standard deviation (0 if there is none) in percent."""
    return 100 * (spread["mean"] or 0.0), 100 * (spread["standard_deviation"] or 0.0)
