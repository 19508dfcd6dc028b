"""Make a run as the stages leave it, with tiny models and records that are always the same."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from helpers import build_tiny_bert, tiny_vocabulary
from transformers import BertForTokenClassification, BertTokenizer

from bioptimus_hf.artifacts import RECORD, fingerprint, identity, write_json
from bioptimus_hf.corpus.decontamination import RULE
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.models import save_head, save_masked_lm
from bioptimus_hf.ner.options import HeadTraining
from bioptimus_hf.ner.scores import SCORER
from bioptimus_hf.plots import plot_history
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM
from bioptimus_hf.pretraining.versions import content_of

LOSSES = {"0": 9.5, "2": 7.25, "4": 6.5, "6": 6.125, "8": 6.0}
READ = Corpus(["corpus.txt.gz"], validation_share=0.1).settings()
TRAINING = {**asdict(HeadTraining(learning_rate=1e-4, num_train_epochs=2)), "max_length": 512, "processes": 1}
HARDWARE = {"cpu": "A Processor", "cores": 2, "accelerators": []}


def make_stage(folder: Path, inputs: dict[str, str], settings: dict[str, Any], facts: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    own = fingerprint(inputs, settings)
    made = {"fingerprint": own, "inputs": inputs, "settings": settings, "facts": facts, "seconds": 330.0}
    made |= {"hardware": HARDWARE, "peak_memory_mb": {"process": 1234, "largest_child": 0}}
    write_json(folder / RECORD, {**made, "versions": {"python": "3.11", "torch": "2.13"}})
    return f"stage:{own}"


def make_run(run: Path, seed: int = 0) -> Path:
    """Make a run of four versions, whose last one has heads of two seeds for the task `own`."""
    vocabulary = {token: number for number, token in enumerate(tiny_vocabulary())}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=512)
    corpus = {"corpus": "sha256:0"}
    base = {"base_model": f"name:google-bert/bert-base-uncased@{'0' * 40}"}
    facts = {"tokens": len(vocabulary), "shared": 100, "new": 27, "dropped": 5}
    facts |= {"fertility_before": 1.25, "fertility_after": 1.125}
    settings = {**READ, "size": len(vocabulary), "policy": "replace", "min_frequency": 2}
    contexts = {"tokenizer": make_stage(run / "tokenizer", {**corpus, **base}, settings, facts), **base}
    settings = {**READ, "seed": seed, "per_token": 4, "jsonl": False}
    found = make_stage(run / "contexts", {**corpus, **contexts}, settings, {"contexts": 80})
    (run / "tokenizer" / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))
    start = {"new_tokens": 27, "new_tokens_from_contexts": 25, "fallen_back": ["a", "b"], "unknown_to_base": ["b"]}
    settings = {"initializer": "contextual_mean", "seed": seed, "layer": -1, "bf16": False}
    distilled = make_stage(run / "v0.0", {**contexts, "contexts": found}, settings, start)
    make_pretraining(run, {**corpus, "model": distilled}, tokenizer, seed)
    for place, f1 in enumerate((0.5, 0.75)):
        make_head(run, tokenizer, seed=place, f1=f1)
    return run


def make_pretraining(run: Path, inputs: dict[str, str], tokenizer: BertTokenizer, seed: int) -> None:
    phases = [asdict(phase) for phase in BIOPTIMUS_CURRICULUM]
    settings = {**READ, "max_length": 64, "curriculum": phases, "dropout": 0.0}
    settings |= {"learning_rate": 5e-4, "seed": seed, "world_size": 1}
    settings["decontamination"] = RULE
    facts = {"training_tokens": 5000, "validation_blocks": 7, "validation_losses": LOSSES}
    facts["decontamination"] = {"documents": 90, "dropped": 3, "test_sets": ["own"]}
    make_stage(run / "pretraining", inputs, settings, facts)
    history = [{"step": int(step), "eval_loss": loss} for step, loss in LOSSES.items()]
    write_json(run / "pretraining" / "history.json", history)
    plot_history(run / "pretraining" / "history.png", history, {"0.4": 8})
    curriculum = [phase | {"last_step": 2 * number} for number, phase in enumerate(phases, start=1)]
    common = {"run": fingerprint(inputs, settings), "steps": 8, "curriculum": curriculum}
    for number, phase in enumerate(curriculum, start=1):
        folder = run / f"v{phase['version']}"
        save_masked_lm(build_tiny_bert(len(tokenizer), seed=10 * seed + number), tokenizer, folder)
        own_inputs, own_settings = {**inputs, "content": content_of(folder)}, {**settings, "version": phase["version"]}
        loss = LOSSES[str(phase["last_step"])]
        make_stage(folder, own_inputs, own_settings, {**phase, **common, "metrics": {"eval_loss": loss}})


def make_head(run: Path, tokenizer: BertTokenizer, *, seed: int, f1: float) -> None:
    folder = run / "ner" / "own" / "v0.4" / str(seed)
    save_tiny_head(folder, tokenizer, ["O", "B-Disease", "I-Disease"], seed)
    settings = {**TRAINING, "merged_type": None, "seed": seed}
    make_stage(folder, {"train": "sha256:1", "model": identity(run / "v0.4")}, settings, {"f1": f1})
    scores = {"task": "own", "model": "v0.4", "seed": seed, "scorer": SCORER, "test": scores_of_test(f1, 88)}
    write_json(folder / "scores.json", {**scores, "best_epoch": 1.0, "validation": [{"epoch": 1.0, "f1": 1 - f1}]})


def make_joint_head(run: Path, model: str = "v0.4", **f1: float) -> None:
    """Make a joint head with this F1 for each task: the types of `own` and `mine` are Own and Mine."""
    folder = run / "ner" / "joint" / model / "0"
    vocabulary = {token: number for number, token in enumerate(tiny_vocabulary())}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=512)
    save_tiny_head(folder, tokenizer, ["O", *(f"{prefix}-{task.title()}" for task in f1 for prefix in "BI")], 0)
    inputs = {f"{task}/{split}": "sha256:1" for task in f1 for split in ("train", "validation", "test")}
    settings = {**TRAINING, "merged_types": dict.fromkeys(f1), "seed": 0}
    make_stage(folder, {**inputs, "model": identity(run / model)}, settings, {"excluded": {"mine": 3, "own": 0}})
    tests = {task: scores_of_test(value, 50) for task, value in f1.items()}
    scores = {"task": "joint", "model": model, "seed": 0, "scorer": SCORER, "tests": tests}
    write_json(folder / "scores.json", {**scores, "best_epoch": 1.0, "validation": [{"epoch": 1.0, "f1": 0.5}]})


def scores_of_test(f1: float, support: float) -> dict[str, float]:
    return {"precision": f1, "recall": f1, "f1": f1, "support": support, "conlleval_f1": f1 + 0.125}


def save_tiny_head(folder: Path, tokenizer: BertTokenizer, names: list[str], seed: int) -> None:
    config = build_tiny_bert(len(tokenizer)).config
    config.id2label, config.label2id = dict(enumerate(names)), {name: place for place, name in enumerate(names)}
    torch.manual_seed(seed)
    save_head(BertForTokenClassification(config), tokenizer, folder)


def change_facts(folder: Path, **facts: Any) -> None:
    """Change some of the facts in the record of a stage."""
    change(folder / RECORD, facts={**json.loads((folder / RECORD).read_text())["facts"], **facts})


def change(file: Path, **facts: Any) -> None:
    """Change some of the values of a JSON file."""
    write_json(file, {**json.loads(file.read_text()), **facts})
