"""Summarise a run: counts, losses, scores, and the time and memory of every stage.

    bioptimus report --output_dir runs/demo --text "Aspirin provoked bronchoconstriction in two patients."

Prints the report and writes OUTPUT_DIR/report.md. The plot of the losses is OUTPUT_DIR/pretraining/history.png.
"""

from __future__ import annotations

from bioptimus_hf.publishing.options import ReportOptions, RunFolder

OPTIONS = (RunFolder, ReportOptions)


def execute(run: RunFolder, options: ReportOptions) -> None:
    """Write the report and print it."""
    from bioptimus_hf.artifacts import Run
    from bioptimus_hf.publishing.report import make_report

    print(make_report(Run(run.output_dir), options.text, options.note))
