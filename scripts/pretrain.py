#!/usr/bin/env python
"""Pre-train through the masking curriculum: one run, a version at the end of each phase.

    python scripts/pretrain.py --corpus abstracts.txt.gz --output_dir runs/mine --num_train_epochs 4
    accelerate launch scripts/pretrain.py --recipe recipe.yaml
    python scripts/pretrain.py --corpus abstracts.txt.gz --output_dir runs/mine --phases 0.3 0.4 --model runs/mine/v0.2

Reads OUTPUT_DIR/v0.0, writes OUTPUT_DIR/v0.1 ... v0.4 and OUTPUT_DIR/pretraining (history.json, history.png). A run
that was interrupted goes on from its last checkpoint when the same command is given again; told to end (SIGTERM), it
saves one first, and ends with status 143.

With --decontaminate FOLDER, documents that hold a test sentence of the NER sets there are left out first, and listed in
OUTPUT_DIR/pretraining/decontamination.tsv.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from accelerate import PartialState
from transformers import AutoTokenizer, set_seed

from bioptimus_hf.artifacts import building, differences, fingerprint, identity, is_finished, write_json
from bioptimus_hf.cli.legacy import CorpusOptions, StageOptions, parse, run
from bioptimus_hf.corpus.dataset import split_validation
from bioptimus_hf.corpus.decontamination import RULE, decontaminate, ner_test_files, read_test_sentences, write_dropped
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import find_files, find_model, load_by_name, load_masked_lm
from bioptimus_hf.plots import plot_history
from bioptimus_hf.pretraining.arguments import PretrainingArguments, check_arguments, shaping_settings
from bioptimus_hf.pretraining.callback import PHASE_FILE
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, phase_ends, read_curriculum, select_phases
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.pretraining.run import VALIDATION_MASKING, check_blocks, last_checkpoint, mask_once, pretrain

logger = logging.getLogger("pretrain")

RUN_FILE = "run.json"  # beside the checkpoints of a run that is under way: what makes it this run


@dataclass
class Options:
    """What is trained, how, on blocks of which length."""

    model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name (name@revision) of the model to start from; by default OUTPUT_DIR/v0.0"},
    )
    max_length: int = field(default=128, metadata={"help": "Tokens of a block"})
    curriculum: str | None = field(
        default=None,
        metadata={
            "help": "YAML list of phases (version, unit, rate, corrupt, share, and last_rate for a rate that changes "
            "within the phase); by default the four published ones"
        },
    )
    phases: list[str] | None = field(
        default=None,
        metadata={
            "help": "Versions whose phases to run, instead of all, with shares that add up to 1 again; usually with "
            "--model OUTPUT_DIR/v<the one before>. A run of its own, not the rest of a longer one"
        },
    )
    restart_each_phase: bool = field(
        default=False,
        metadata={"help": "Warm up and decay the learning rate anew in each phase, not once over the run"},
    )
    decontaminate: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub data set of NER sets: leave out documents that hold a sentence of a test.tsv in "
            "it or below"
        },
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout in training; what is saved keeps the model's own"})


def main() -> None:
    """Tokenize, train and export."""
    options, corpus, stage, arguments = parse(
        Options, CorpusOptions, StageOptions, PretrainingArguments, section="pretrain", description=__doc__
    )
    check_arguments(arguments)
    root = Path(arguments.output_dir)
    start = options.model or str(root / "v0.0")
    if options.model is None and not Path(start).is_dir():
        raise InputError(f"{start} is not there: run scripts/distill_embeddings.py first, or name a --model")
    curriculum = read_curriculum(options.curriculum) if options.curriculum else BIOPTIMUS_CURRICULUM
    if options.phases:
        curriculum = select_phases(curriculum, options.phases)
    model_source = find_model(start)
    inputs = {**corpus.inputs(), "model": model_source.identity}
    settings = {
        **corpus.settings(),
        "max_length": options.max_length,
        "curriculum": [asdict(phase) for phase in curriculum],
        "restart_each_phase": options.restart_each_phase,
        "dropout": options.dropout,
        **shaping_settings(arguments),
    }
    tests = {}
    if options.decontaminate:
        sets = find_files(options.decontaminate, ["test.tsv", "*/test.tsv"])
        tests = read_test_sentences(sets.folder)
        inputs["test_sets"] = (
            identity(sets.commit) if sets.commit else " ".join(map(identity, ner_test_files(sets.folder)))
        )
        settings["decontamination"] = RULE
    folder = root / "-".join(["pretraining", *(phase.version for phase in curriculum if options.phases)])
    versions = [root / f"v{phase.version}" for phase in curriculum]
    if Path(start).resolve() in [version.resolve() for version in versions]:
        raise InputError(f"{start} is where a phase would write its version: choose another --output_dir or version")
    this_run = fingerprint(inputs, settings)
    if is_finished(folder, inputs, settings, force=stage.force):
        gone = [str(version) for version in versions if run_of(version) != this_run]
        if gone:
            raise InputError(
                f"the run is finished, but {', '.join(gone)} is gone, or of another run: --force makes all versions "
                f"again"
            )
        return
    this = {"run": this_run, "inputs": inputs, "settings": settings}
    checkpoints = root / "checkpoints" / this_run[:12]
    others = other_runs(versions, checkpoints, this_run)
    if others and not stage.force:
        place, its = next(iter(others.items()))
        changed = f" with other {differences(its, inputs, settings)}" if {"inputs", "settings"} <= its.keys() else ""
        raise InputError(f"{place} is of another run{changed}: choose another --output_dir, or --force to replace it")
    arguments.output_dir = str(checkpoints)
    # Beside the run: by default it is the folder of the checkpoints, which goes at the end.
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(root / "tensorboard" / this_run[:12]))
    tokenizer = load_by_name(AutoTokenizer, model_source.folder)
    documents = corpus.documents()
    with arguments.main_process_first(desc="tokenizing"):
        if stage.force and arguments.process_index == 0:
            shutil.rmtree(checkpoints, ignore_errors=True)  # of this same run, which is not to be gone on with
        kept, dropped = decontaminate(documents, tests, num_proc=stage.num_proc) if tests else (documents, [])
        parts = split_validation(kept, share=corpus.validation_share)
        train, validation = (
            tokenize_and_pack(parts[part], tokenizer, max_length=options.max_length, num_proc=stage.num_proc)
            for part in ("train", "validation")
        )
    model, _ = load_masked_lm(model_source.folder, kind=BertForMaskedPositions, seed=arguments.seed)
    check_blocks(train, model, arguments)

    def begin() -> None:  # only now nothing stands in the way of the new run
        if stage.force:
            for old in [*others, *versions, folder]:
                shutil.rmtree(old, ignore_errors=True)
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(checkpoints / RUN_FILE, this)

    resumed = last_checkpoint(checkpoints, shared=not arguments.save_on_each_node) is not None
    set_seed(arguments.seed)
    # What stands here is written by the first process alone; the versions are exported as the run goes.
    with building(folder, inputs, settings) if arguments.process_index == 0 else nullcontext() as built:
        history = pretrain(
            model,
            tokenizer,
            train,
            mask_once(validation, tokenizer, seed=arguments.seed) if arguments.eval_strategy != "no" else None,
            arguments,
            curriculum=curriculum,
            export_dir=root,
            record=this,
            restart_each_phase=options.restart_each_phase,
            dropout=options.dropout,
            on_begin=begin if arguments.process_index == 0 else None,
        )
        if built is not None:
            write_json(built.path / "history.json", history)
            ends = phase_ends(curriculum, history[-1]["step"])
            versions_end = dict(zip((phase.version for phase in curriculum), ends, strict=True))
            plot_history(built.path / "history.png", history, versions_end)
            if tests:
                write_dropped(built.path / "decontamination.tsv", dropped)
                built.facts["decontamination"] = {
                    "documents": len(documents),
                    "dropped": len(documents) - len(kept),
                    "test_sets": sorted(tests),
                }
            built.facts |= {
                "training_tokens": pc.sum(pc.list_value_length(train.data["input_ids"])).as_py(),
                "validation_blocks": len(validation),
                "validation_masking": asdict(VALIDATION_MASKING),
                "validation_losses": {str(row["step"]): row["eval_loss"] for row in history if "eval_loss" in row},
                "resumed": resumed,  # then the time that is recorded is not the whole
            }
    PartialState().wait_for_everyone()  # the Trainer of a slower process may still list its checkpoints
    if arguments.process_index == 0:
        # Its learning rate has come to an end: there is nothing to go on from.
        shutil.rmtree(Path(arguments.output_dir).parent, ignore_errors=True)


def run_of(version: Path) -> str | None:
    """Return the run that a version is of, if it is there."""
    file = version / PHASE_FILE
    run: str | None = json.loads(file.read_text(encoding="utf-8")).get("run") if file.is_file() else None
    return run


def other_runs(versions: list[Path], checkpoints: Path, this_run: str) -> dict[Path, dict[str, Any]]:
    """Return what lies there of other runs, and its records: versions, and checkpoints to go on from."""
    records = {version: version / PHASE_FILE for version in versions if version.exists()}
    for state in checkpoints.parent.glob("*/checkpoint-*/trainer_state.json"):
        folder = state.parents[1]
        if folder != checkpoints:
            records[folder] = folder / RUN_FILE
    found = {
        place: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {} for place, file in records.items()
    }
    return {place: record for place, record in found.items() if record.get("run") != this_run}


if __name__ == "__main__":
    run(main)
