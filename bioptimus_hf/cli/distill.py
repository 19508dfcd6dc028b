"""Replace the base model's vocabulary and initialise the embeddings of new tokens from their contexts.

    bioptimus distill --output_dir runs/mine

Reads OUTPUT_DIR/tokenizer and OUTPUT_DIR/contexts, and writes OUTPUT_DIR/v0.0: a BertForMaskedLM with its tokenizer,
and a report on the new embeddings (report.md, report.json, norms.png).
"""

from __future__ import annotations

from bioptimus_hf.artifacts import Run
from bioptimus_hf.distillation.options import DistillationOptions

OPTIONS = (Run, DistillationOptions)


def execute(run: Run, options: DistillationOptions) -> None:
    """Make version 0.0 of the run."""
    from bioptimus_hf.distillation.stage import make_distilled_model

    make_distilled_model(run, options)
