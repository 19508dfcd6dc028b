"""Pre-train through the masking curriculum: one run, with a version at the end of each phase.

    bioptimus pretrain --corpus abstracts.txt.gz --output_dir runs/mine --num_train_epochs 4
    accelerate launch -m bioptimus_hf.cli pretrain --recipe recipe.yaml
    bioptimus pretrain --corpus abstracts.txt.gz --output_dir runs/mine --phases 0.3 0.4 --model runs/mine/v0.2

Reads OUTPUT_DIR/v0.0; writes OUTPUT_DIR/v0.1 ... v0.4 and OUTPUT_DIR/pretraining (history.json, history.png). The same
command resumes an interrupted run from its last checkpoint. After SIGTERM, a checkpoint is saved first, and the exit
status is 143.

With --decontaminate FOLDER, documents that contain a test sentence of the NER sets there are dropped, and listed in
OUTPUT_DIR/pretraining/decontamination.tsv.
"""

from __future__ import annotations

from bioptimus_hf.artifacts import Run
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.pretraining.arguments import PretrainingArguments
from bioptimus_hf.pretraining.options import PretrainingOptions

OPTIONS = (Run, Corpus, PretrainingOptions, PretrainingArguments)


def execute(run: Run, corpus: Corpus, options: PretrainingOptions, arguments: PretrainingArguments) -> None:
    """Tokenize, train and export."""
    from bioptimus_hf.pretraining.stage import make_versions

    make_versions(run, corpus, options, arguments)
