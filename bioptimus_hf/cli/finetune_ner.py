"""Fine-tune an NER head for every task, model and seed, and tabulate strict entity F1.

    bioptimus finetune-ner --ner_data data/ner --tasks all --models base v0.1 v0.2 v0.3 v0.4 --seeds 5 \\
        --output_dir runs/mine --cross_test bc5-disease:ncbi-disease ncbi-disease:bc5-disease

Writes each head to OUTPUT_DIR/ner/TASK/MODEL/SEED (a model for pipeline("ner"), scores.json, predictions.tsv), and the
tables to OUTPUT_DIR/ner (results.md, results.json, versions.png): mean and standard deviation over seeds, and paired
differences from the first model with 95 % bootstrap intervals. Finished heads are skipped. Cross-tests, which score
heads on the test set of another task, go to OUTPUT_DIR/cross_test in the same way. With --joint, one head learns the
types of all tasks (OUTPUT_DIR/ner/joint/MODEL/SEED); its scores stand beside those of single heads.
"""

from __future__ import annotations

from bioptimus_hf.artifacts import Run
from bioptimus_hf.ner.options import HeadOptions, HeadTraining

OPTIONS = (Run, HeadOptions, HeadTraining)


def execute(run: Run, options: HeadOptions, training: HeadTraining) -> None:
    """Train the heads."""
    from bioptimus_hf.ner.experiments import make_heads

    make_heads(run, options, training)
