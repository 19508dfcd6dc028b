#!/usr/bin/env python
r"""Train a WordPiece vocabulary on a corpus, for a base model's tokenizer.

    python scripts/train_vocabulary.py --corpus abstracts.txt.gz --base_model google-bert/bert-base-uncased \
        --size 30522 --output_dir runs/mine

Writes OUTPUT_DIR/tokenizer: a tokenizer that AutoTokenizer loads, with vocab.txt and made.json, and a report of how it
cuts the held-out part of the corpus at every size up to its own (report.md, report.json, fertility.png).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer

from bioptimus_hf.artifacts import building, is_finished, write_json
from bioptimus_hf.cli.launch import run
from bioptimus_hf.cli.options import CorpusOptions, RunOptions, StageOptions, parse
from bioptimus_hf.models import find_model, load_by_name, save_tokenizer
from bioptimus_hf.vocabulary.fertility import report_vocabulary
from bioptimus_hf.vocabulary.tokenizer import build_tokenizer, compare_vocabularies
from bioptimus_hf.vocabulary.training import extend_vocabulary, train_vocabulary

logger = logging.getLogger("train_vocabulary")


@dataclass
class Options:
    """What shapes the vocabulary."""

    base_model: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "Folder or Hub name of the model whose vocabulary is to be replaced"},
    )
    size: int = field(
        default=30522,
        metadata={
            "help": "Tokens; the paper's is unknown, this default is bert-base-uncased's. A small corpus needs fewer"
        },
    )
    policy: Literal["replace", "extend"] = field(
        default="replace",
        metadata={
            "help": "Train a vocabulary that replaces the base's, of which shared tokens keep their embeddings (the "
            "paper); or keep all of it, with its ids, and add the words that save the most pieces, up to --size"
        },
    )
    min_frequency: int = field(
        default=2, metadata={"help": "Least count of a pair of pieces to be merged, or of a word to be added"}
    )


def main() -> None:
    """Train, measure and save."""
    run_options, stage, corpus, options = parse(
        RunOptions, StageOptions, CorpusOptions, Options, section="train_vocabulary", description=__doc__
    )
    folder = Path(run_options.output_dir) / "tokenizer"
    base_model = find_model(options.base_model)
    inputs = {**corpus.inputs(), "base_model": base_model.identity}
    settings = {
        **corpus.settings(),
        "size": options.size,
        "policy": options.policy,
        "min_frequency": options.min_frequency,
    }
    if is_finished(folder, inputs, settings, force=stage.force):
        return
    base = load_by_name(AutoTokenizer, base_model.folder)
    with building(folder, inputs, settings) as built:
        documents = corpus.load()
        make = train_vocabulary if options.policy == "replace" else extend_vocabulary
        vocabulary = make(documents["train"]["text"], size=options.size, like=base, min_frequency=options.min_frequency)
        tokenizer = build_tokenizer(vocabulary, like=base)
        save_tokenizer(tokenizer, built.path)
        difference = compare_vocabularies(base, tokenizer)
        report = report_vocabulary(vocabulary, documents["validation"]["text"], like=base)
        (built.path / "report.md").write_text(report.markdown(), encoding="utf-8")
        write_json(built.path / "report.json", report.facts())
        report.plot(built.path / "fertility.png")
        built.facts |= {
            # For later stages to find it again; the fingerprint holds what the model is, wherever it is.
            "base_model": base_model.commit or str(Path(base_model.folder).resolve()),
            "tokens": len(tokenizer),
            "shared": len(difference.shared),
            "new": len(difference.new),
            "dropped": len(difference.dropped),
            "fertility_before": report.base.fertility,
            "fertility_after": report.by_size[len(tokenizer)].fertility,
        }
    logger.info(
        "%(tokens)d tokens, %(new)d of them new; pieces per word %(fertility_before).3f before, "
        "%(fertility_after).3f now",
        built.facts,
    )


if __name__ == "__main__":
    run(main)
