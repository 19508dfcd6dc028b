"""Show the progress of a training: a bar or a line a minute, and the rows of its log in words."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm
from transformers import ProgressCallback, TrainerState, TrainingArguments

from bioptimus_hf.progress import bars_are_drawn, progress_bar

logger = logging.getLogger(__name__)

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
    """The progress of a `Trainer` as this package shows it, and its log in words.

    The Trainer prints its log as Python dictionaries on stdout, and draws its bar into log files, too.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Begin the bar at the current step."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = progress_bar(
                desc="Training", total=state.max_steps, unit=" steps", initial=state.global_step
            )

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Show nothing: those who evaluate here show it themselves."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a row of the log above the bar, or to the log if there is no bar."""
        logs = logs or {}
        row = [wording.format(logs[name]) for name, wording in _WORDING.items() if name in logs]
        if not row or self.training_bar is None:
            return
        line = f"step {state.global_step} of {state.max_steps}: {', '.join(row)}"
        if bars_are_drawn():
            tqdm.write(line, file=sys.stderr)
        else:
            logger.info("%s", line)
