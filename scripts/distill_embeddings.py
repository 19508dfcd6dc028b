#!/usr/bin/env python
"""Give a base model the new vocabulary: its new tokens start from vectors distilled out of their contexts.

    python scripts/distill_embeddings.py --base_model google-bert/bert-base-uncased --output_dir runs/mine

Reads OUTPUT_DIR/tokenizer and OUTPUT_DIR/contexts, writes OUTPUT_DIR/v0.0: a BertForMaskedLM with its tokenizer, and a
report of its new rows (report.md, report.json, norms.png).
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import load_from_disk
from transformers import AutoTokenizer

from bioptimus_hf.artifacts import RECORD, building, identity, is_finished, read_record, write_json
from bioptimus_hf.cli.legacy import RunOptions, StageOptions, parse, run
from bioptimus_hf.distillation.contextual import PIECES, contextual_embeddings
from bioptimus_hf.distillation.initialization import FROM_CONTEXTS, INITIALIZERS, initial_rows
from bioptimus_hf.distillation.report import inspect_rows
from bioptimus_hf.distillation.token_distillation import distill_tokens
from bioptimus_hf.distillation.transplant import transplant_vocabulary
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import base_of_run, load_by_name, load_masked_lm, save_masked_lm

logger = logging.getLogger("distill_embeddings")


@dataclass
class Options:
    """What the new rows are made of."""

    base_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the model to adapt; default: the base of the run"}
    )
    initializer: str = field(
        default="contextual_mean_scaled",
        metadata={
            "help": "How new tokens start: the mean of the base's states over their contexts, as is (contextual_mean, "
            "the paper) or brought to the scale of the embedding table (contextual_mean_scaled); trained until the "
            "base's states in their contexts are those with their pieces (token_distillation: a few tokens a second "
            "on a CPU); the mean of their pieces' rows (subtoken_mean); or noise of the table's scale (random)",
            "choices": list(INITIALIZERS),
        },
    )
    layer: int = field(default=-1, metadata={"help": "Layer whose states are read: -1 the last, 0 the embeddings"})
    pieces: str = field(
        default="mean",
        metadata={
            "help": "What is taken of the states of a token's pieces (contextual means)",
            "choices": list(PIECES),
        },
    )
    max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Train the rows of this many new tokens only, the first ones of the vocabulary that can be trained "
            "(token_distillation); the others start from the mean of their pieces' rows"
        },
    )
    batch_size: int = field(default=64, metadata={"help": "Sentences read at once (contextual means)"})
    bf16: bool = field(
        default=False, metadata={"help": "Read, or train, in bfloat16: faster where the processor has it"}
    )


def main() -> None:
    """Make the new rows, report on them, transplant and save."""
    run_options, stage, options = parse(
        RunOptions, StageOptions, Options, section="distill_embeddings", description=__doc__
    )
    root = Path(run_options.output_dir)
    from_contexts = options.initializer in FROM_CONTEXTS
    trained = options.initializer == "token_distillation"
    if options.max_tokens is not None and not (trained and options.max_tokens > 0):
        raise InputError("--max_tokens goes with --initializer token_distillation, and must be above 0")
    needed = ["tokenizer", *(["contexts"] if from_contexts else [])]
    for name in needed:
        if not (root / name).is_dir():
            raise InputError(
                f"{root / name} is not there: run the script that makes it first, or name its --output_dir"
            )
    base_model = base_of_run(root, options.base_model)
    # A tokenizer or contexts of one's own have no record; contexts of words (--words) know no base model.
    records = {name: read_record(root / name)["inputs"] for name in needed if (root / name / RECORD).is_file()}
    for name, its in records.items():
        made_for = its.get("base_model")
        if made_for is not None and made_for != base_model.identity:
            raise InputError(
                f"{root / name} was made for another base model than {root / 'tokenizer'}: make it again with --force"
            )
    if "contexts" in records and records["contexts"].get("tokenizer") != identity(root / "tokenizer"):
        raise InputError(f"{root / 'contexts'} was found for another tokenizer: run find_contexts.py --force first")
    inputs = {"base_model": base_model.identity, **{name: identity(root / name) for name in needed}}
    settings = {
        "initializer": options.initializer,
        "seed": run_options.seed,
        **({"layer": options.layer, "bf16": options.bf16} if from_contexts else {}),
        **({"max_tokens": options.max_tokens} if trained else {"pieces": options.pieces} if from_contexts else {}),
    }
    folder = root / "v0.0"
    if is_finished(folder, inputs, settings, force=stage.force):
        return
    source = load_by_name(AutoTokenizer, base_model.folder)
    target = load_by_name(AutoTokenizer, str(root / "tokenizer"))
    model, made_up = load_masked_lm(base_model.folder, seed=run_options.seed)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    with building(folder, inputs, settings) as built:
        vectors, counts = None, None
        if from_contexts:
            contexts = load_from_disk(root / "contexts")
            counts = Counter(contexts["token"])
            if trained:
                start = initial_rows(model, source, target, initializer="subtoken_mean").rows
                vectors = distill_tokens(
                    model,
                    source,
                    contexts,
                    start,
                    max_tokens=options.max_tokens,
                    layer=options.layer,
                    seed=run_options.seed,
                    bf16=options.bf16,
                )
            else:
                vectors = contextual_embeddings(
                    model,
                    source,
                    contexts,
                    layer=options.layer,
                    pieces=options.pieces,
                    batch_size=options.batch_size,
                    bf16=options.bf16,
                )
        model.to("cpu")
        made = {"initializer": options.initializer, "vectors": vectors, "seed": run_options.seed}
        new = initial_rows(model, source, target, **made)
        report = inspect_rows(model, source, target, new, contexts=counts, **made)
        transplant_vocabulary(model, source, target, new.rows)
        save_masked_lm(model, target, built.path)
        (built.path / "report.md").write_text(report.markdown(), encoding="utf-8")
        write_json(built.path / "report.json", report.facts())
        report.plot(built.path / "norms.png")
        built.facts |= {
            "new_tokens": len(new.rows),
            "new_tokens_from_contexts": len(new.rows) - len(new.fallen_back) if from_contexts else 0,
            "unknown_to_base": new.unknown,
            "fallen_back": new.fallen_back,
            "weights_made_up": made_up,
        }
    logger.info(
        "%d new tokens, made by %s; %d of them without contexts (they have the mean of their pieces' rows), "
        "%d of unknown characters",
        len(new.rows),
        options.initializer,
        len(new.fallen_back),
        len(new.unknown),
    )


if __name__ == "__main__":
    run(main)
