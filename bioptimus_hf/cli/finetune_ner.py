"""Fine-tune an NER head for every task, model and seed, and tabulate strict entity F1.

    bioptimus finetune-ner --ner_data data/ner --tasks all --models base v0.1 v0.2 v0.3 v0.4 --seeds 5 \\
        --output_dir runs/mine --learning_rate 5e-5 1e-4 --per_device_train_batch_size 16 32 --cross_test all

    bioptimus finetune-ner --tasks labels.jsonl --output_dir runs/mine

Writes each head to OUTPUT_DIR/ner/TASK/MODEL/SEED (a model for pipeline("ner"), scores.json, predictions.tsv), and the
tables to OUTPUT_DIR/ner (results.md, results.json, versions.png): mean and standard deviation over seeds, and paired
differences from the first model with 95 % bootstrap intervals. Finished heads are skipped. If a setting has several
values, all combinations are tried for each task and model with the first seed, and the one with the best F1 on the
development set is used for all seeds. Cross-tests, which score heads on the test set of another task, go to
OUTPUT_DIR/cross_test in the same way. With --joint, one head learns the types of all tasks
(OUTPUT_DIR/ner/joint/MODEL/SEED); its scores stand beside those of single heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bioptimus_hf.artifacts import Run
from bioptimus_hf.cli import estimates
from bioptimus_hf.errors import counted
from bioptimus_hf.ner.options import HeadOptions, HeadTraining


@dataclass(frozen=True)
class Preview:
    """Preview."""

    dry_run: bool = field(
        default=False, metadata={"help": "Say how many trainings are left and how long they will take, and stop"}
    )


OPTIONS = (Run, HeadOptions, HeadTraining, Preview)


def execute(run: Run, options: HeadOptions, training: HeadTraining, preview: Preview) -> None:
    """Train the heads, or say what there is to train."""
    from bioptimus_hf.ner.experiments import make_heads, planned_trainings

    if not preview.dry_run:
        make_heads(run, options, training)
        return
    trainings, at_once = planned_trainings(run, options, training)
    finished = [one for one in trainings if one.finished]
    print(f"{run.root}: {counted(len(trainings), 'training')}, {len(finished)} finished", flush=True)
    if left := len(trainings) - len(finished):
        measured = sum(one.seconds is not None for one in finished)
        source = f"judging by {counted(measured, 'finished training')}" if measured else "by a rough estimate"
        seconds = estimates.seconds_left(trainings, bf16=training.bf16, at_once=at_once)
        print(f"{left} left: {estimates.duration(seconds)}, {source}")
