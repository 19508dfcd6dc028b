"""Train a WordPiece vocabulary on a corpus, for the tokenizer of a base model.

    bioptimus train-vocabulary --corpus abstracts.txt.gz --base_model google-bert/bert-base-uncased \\
        --size 30522 --output_dir runs/mine

Writes OUTPUT_DIR/tokenizer: a tokenizer for AutoTokenizer, with a report of how it splits held-out text at every
smaller size too (report.md, report.json, fertility.png).
"""

from __future__ import annotations

from bioptimus_hf.artifacts import Run
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.vocabulary.options import VocabularyOptions

OPTIONS = (Run, Corpus, VocabularyOptions)


def execute(run: Run, corpus: Corpus, options: VocabularyOptions) -> None:
    """Train the vocabulary."""
    from bioptimus_hf.vocabulary.stage import make_tokenizer

    make_tokenizer(run, corpus, options)
