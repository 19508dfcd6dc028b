"""Summarise a run, or show what NER heads get wrong and how far their scores can be trusted.

    bioptimus report --output_dir runs/demo --text "Aspirin provoked bronchoconstriction in two patients."
    bioptimus report runs/mine/ner/ncbi-disease/v0.4/0 --ner_data data/ner

Without HEADS, prints counts, losses, scores, time and memory of every stage, and writes OUTPUT_DIR/report.md. The plot
of the losses is OUTPUT_DIR/pretraining/history.png.
With HEADS, finds the entities of the development and test set again, with their scores, and writes report.html and
report.json into the folder of each head: the kinds of errors, the scores by length, by type and for mentions that
weren't seen in training, the most frequent confusions, and the calibration of the scores. The min_score with the best
F1 on the development set is stored with the head, for `bioptimus annotate --min_score best`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bioptimus_hf.errors import InputError
from bioptimus_hf.publishing.options import ReportOptions, RunFolder


@dataclass(frozen=True)
class HeadsToReport:
    """Which heads to report, and what they were trained on.

    Raises:
        InputError: another of them is given without heads.
    """

    heads: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders of NER heads (RUN/ner/TASK/MODEL/SEED), or of runs, whose heads are all reported",
            "positional": True,
            "path": True,
        },
    )
    ner_data: str | None = field(
        default=None,
        metadata={
            "help": "Folder or data set on the Hub that the heads were trained on, as for finetune-ner",
            "path": True,
        },
    )
    tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Tasks that NER_DATA doesn't have under their names: NAME=SOURCE, a file such as labels.jsonl, or "
            "FILE.yaml, as for finetune-ner",
            "path": True,
        },
    )
    force: bool = field(default=False, metadata={"help": "Make reports of heads again that are there"})
    no_verify: bool = field(default=False, metadata={"help": "Read heads without comparing them with their hashes"})

    def __post_init__(self) -> None:
        for name in ("ner_data", "tasks", "force", "no_verify"):
            if getattr(self, name) and not self.heads:
                raise InputError("is for the report of heads: name their folders, too", argument=name)


OPTIONS = (HeadsToReport, RunFolder, ReportOptions)


def execute(heads: HeadsToReport, run: RunFolder, options: ReportOptions) -> None:
    """Write the reports; print that of a run, and where those of heads are.

    Raises:
        InputError: an option of the report of a run is given with heads.
    """
    if heads.heads:
        from bioptimus_hf.ner.head_report import report_heads

        for name in ("text", "note"):
            if getattr(options, name):
                raise InputError("is for the report of a run: leave it out, or the heads", argument=name)
        pages = report_heads(heads.heads, heads.ner_data, heads.tasks, force=heads.force, no_verify=heads.no_verify)
        print(*pages, sep="\n")
        return
    from bioptimus_hf.artifacts import Run
    from bioptimus_hf.publishing.report import make_report

    print(make_report(Run(run.output_dir), options.text, options.note))
