"""Show the progress of a training: a bar, and the rows of its log in words."""

from __future__ import annotations

import sys
from typing import Any

from transformers import ProgressCallback, TrainerState, TrainingArguments

_WORDING = {
    "loss": "loss {:.4g}",
    "rate": "masking rate {:.0%}",
    "learning_rate": "learning rate {:.3g}",
    "tokens_per_second": "{:,} tokens/s",
    "eval_loss": "validation loss {:.4g}",
    "eval_precision": "validation precision {:.2%}",
    "eval_recall": "recall {:.2%}",
    "eval_f1": "F1 {:.2%}",
}


class TrainingProgress(ProgressCallback):
    """The progress bar of transformers, except that the log appears in words and on stderr, as everything but results.

    The Trainer prints its log as Python dictionaries on stdout.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a row of the log above the bar."""
        logs = logs or {}
        row = [wording.format(logs[name]) for name, wording in _WORDING.items() if name in logs]
        if row and self.training_bar is not None:
            self.training_bar.write(f"step {state.global_step} of {state.max_steps}: {', '.join(row)}", file=sys.stderr)
