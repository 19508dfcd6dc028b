#!/usr/bin/env python
"""Pre-train through the masking curriculum: one run, a version at the end of each phase.

    python scripts/pretrain.py --corpus abstracts.txt.gz --output_dir runs/mine --num_train_epochs 4
    accelerate launch scripts/pretrain.py --recipe recipe.yaml

Reads OUTPUT_DIR/v0.0, writes OUTPUT_DIR/v0.1 ... v0.4 and OUTPUT_DIR/pretraining. A run that was interrupted goes on
from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, set_seed

from bioptimus_hf.artifacts import InputError, building, fingerprint, identity, is_finished, write_json
from bioptimus_hf.cards import write_pretrained_card
from bioptimus_hf.curriculum import BIOPTIMUS_CURRICULUM, PHASE_FILE
from bioptimus_hf.distillation import load_masked_lm
from bioptimus_hf.pretraining import (
    VALIDATION_MASKING,
    BertForMaskedPositions,
    PretrainingArguments,
    mask_once,
    pretrain,
    shaping_settings,
    tokenize_and_pack,
)
from bioptimus_hf.recipes import CorpusOptions, StageOptions, load_by_name, parse, run

logger = logging.getLogger("pretrain")


@dataclass
class Options:
    """What is trained, on blocks of which length."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the model to start from; by default OUTPUT_DIR/v0.0"}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens of a block"})


def main() -> None:
    """Tokenize, train and export."""
    arguments, options, corpus, stage = parse(
        PretrainingArguments, Options, CorpusOptions, StageOptions, section="pretrain", description=__doc__
    )
    root = Path(arguments.output_dir)
    start = options.model or str(root / "v0.0")
    if options.model is None and not Path(start).is_dir():
        raise InputError(f"{start} is not there: run scripts/distill_embeddings.py first, or name a --model")
    inputs = {**corpus.inputs(), "model": identity(start)}
    settings = {
        **corpus.settings(arguments.seed),
        "max_length": options.max_length,
        "curriculum": [asdict(phase) for phase in BIOPTIMUS_CURRICULUM],
        **shaping_settings(arguments),
    }
    folder = root / "pretraining"
    if is_finished(folder, inputs, settings, force=stage.force):
        return
    this_run = fingerprint(inputs, settings)
    clear_other_runs(root, this_run, force=stage.force, main_process=arguments.process_index == 0)
    arguments.output_dir = str(root / "checkpoints" / this_run[:12])
    tokenizer = load_by_name(AutoTokenizer, start)
    documents = corpus.load(arguments.seed)
    with arguments.main_process_first(desc="tokenizing"):
        train, validation = (
            tokenize_and_pack(documents[part], tokenizer, max_length=options.max_length, num_proc=stage.num_proc)
            for part in ("train", "validation")
        )
    model, _ = load_masked_lm(start, kind=BertForMaskedPositions, seed=arguments.seed)
    set_seed(arguments.seed)
    # What stands here is written by the first process alone; the versions are exported as the run goes.
    with building(folder, inputs, settings) if arguments.process_index == 0 else nullcontext() as built:
        history = pretrain(
            model,
            tokenizer,
            train,
            mask_once(validation, tokenizer, seed=arguments.seed) if arguments.eval_strategy != "no" else None,
            arguments,
            export_dir=root,
            record={"run": this_run, "inputs": inputs, "settings": settings},
        )
        if built is not None:
            for phase in BIOPTIMUS_CURRICULUM:
                version = root / f"v{phase.version}"
                write_pretrained_card(version, model=str(version))
            write_json(built.path / "history.json", history)
            built.facts |= {
                "training_tokens": sum(map(len, train["input_ids"])),
                "validation_blocks": len(validation),
                "validation_masking": asdict(VALIDATION_MASKING),
                "validation_losses": {str(row["step"]): row["eval_loss"] for row in history if "eval_loss" in row},
            }
    if arguments.process_index == 0:
        # Its learning rate has come to an end: there is nothing to go on from.
        shutil.rmtree(Path(arguments.output_dir).parent, ignore_errors=True)


def clear_other_runs(root: Path, this_run: str, *, force: bool, main_process: bool) -> None:
    """Remove what earlier runs left where `force` says so; otherwise refuse to mix another run's with this one's."""
    if force and main_process:
        for leftover in ("checkpoints", "pretraining"):
            shutil.rmtree(root / leftover, ignore_errors=True)
    for folder in (root / f"v{phase.version}" for phase in BIOPTIMUS_CURRICULUM):
        if not folder.exists():
            continue
        record = folder / PHASE_FILE
        made_by = json.loads(record.read_text(encoding="utf-8")).get("run") if record.is_file() else None
        if made_by == this_run and not force:
            continue
        if not force:
            raise InputError(f"{folder} is of another run: choose another --output_dir, or --force to replace it")
        if main_process:
            shutil.rmtree(folder)


if __name__ == "__main__":
    run(main)
