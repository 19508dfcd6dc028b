"""Find sentences that contain the new tokens, and their positions, for all tokens in one pass over the corpus.

    bioptimus find-contexts --corpus abstracts.txt.gz --base_model google-bert/bert-base-uncased \\
        --per_token 64 --num_proc 2 --output_dir runs/mine

Reads OUTPUT_DIR/tokenizer, or --tokenizer. With --words, it searches all of the text for the words in a file.

Writes OUTPUT_DIR/contexts: an Arrow data set (`datasets.load_from_disk`) with the columns token, text, start, end and
document, and made.json with the counts. The search runs in parts, which are kept in OUTPUT_DIR/contexts.parts until it
ends: after a kill, the same command continues with the parts that are missing. With --engine ray, the search runs on
any number of machines, and starts over after a kill.
"""

from __future__ import annotations

from bioptimus_hf.artifacts import Run
from bioptimus_hf.contexts.options import ContextsOptions
from bioptimus_hf.corpus.options import Corpus

OPTIONS = (Run, Corpus, ContextsOptions)


def execute(run: Run, corpus: Corpus, options: ContextsOptions) -> None:
    """Find the contexts."""
    from bioptimus_hf.contexts.stage import make_contexts

    make_contexts(run, corpus, options)
