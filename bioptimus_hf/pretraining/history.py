"""Keep the history of a run: the rows of its log, its validation losses and their plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import write_json
from bioptimus_hf.plots import plot_history
from bioptimus_hf.pretraining.curriculum import Phase, phase_ends

HISTORY, PLOT = "history.json", "history.png"

Row = Mapping[str, Any]
"""A row of the log: `step` and, of a training loss, `loss` (nats), `phase`, `rate` and `learning_rate`, or, of a
validation, `eval_loss` (nats)."""
_MEASURED = ("tokens_per_second", "train_runtime", "train_tokens_per_second")


def history_of(log: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of a Trainer's log that are the same for any two runs with the same result.

    Measured times and speeds are left out, and the last row, which is about the session. The order of names is fixed,
    which a checkpoint doesn't keep.
    """
    return [
        {name: value for name, value in sorted(row.items()) if name not in _MEASURED}
        for row in log
        if "loss" in row or "eval_loss" in row
    ]


def validation_losses(history: Sequence[Row]) -> dict[str, float]:
    """Return the validation loss (nats) of each step at which it was measured. Steps are strings, as in JSON."""
    return {str(row["step"]): row["eval_loss"] for row in history if "eval_loss" in row}


def write_history(folder: Path, history: Sequence[Row], curriculum: Sequence[Phase]) -> None:
    """Write `history.json` and, if matplotlib is installed, `history.png`.

    Args:
        folder: must exist.
        history: all rows of a finished run, from `pretrain`.
        curriculum: of the run, whose phases are marked in the plot.
    """
    write_json(folder / HISTORY, history)
    ends = phase_ends(curriculum, history[-1]["step"])
    plot_history(folder / PLOT, history, dict(zip((phase.version for phase in curriculum), ends, strict=True)))
