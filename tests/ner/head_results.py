"""Make results of heads, files of tasks and a tiny encoder for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from helpers import build_tiny_bert, build_tiny_tokenizer

from bioptimus_hf.artifacts import RECORD, write_json, write_record
from bioptimus_hf.corpus.conll_writing import write_conll
from bioptimus_hf.ner.results import HeadResult

GOOD = "Aspirin\tB-Chemical\nhelps\tO\n\n"
GOLD = [["B-X", "I-X", "O"], ["O", "B-Y"]]
WORDS = [["a\u2028", "b c", "d"], ["e", "\x85f"]]


def write_task(folder: Path, train: str = GOOD, dev: str = GOOD, test: str = GOOD) -> Path:
    """Write the files of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("train", train), ("dev", dev), ("test", test)):
        (folder / f"{name}.tsv").write_bytes(content.encode())
    return folder


def write_small_task(folder: Path, entity: str = "Aspirin", kind: str = "Chemical") -> Path:
    """Write a task of 20, 3 and 4 sentences that all contain the same entity."""
    sentence = f"{entity}\tB-{kind}\nhelps\tO\n\n"
    return write_task(folder, sentence * 20, sentence * 3, sentence * 4)


def save_encoder(folder: Path) -> Path:
    """Save a tiny BERT and its tokenizer."""
    tokenizer = build_tiny_tokenizer()
    build_tiny_bert(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def result_of(task: str, model: str, seed: int, counts: np.ndarray, **settings: Any) -> HeadResult:
    """Return a result with these counts of its sentences."""
    correct, found, true = counts.sum(axis=0).tolist()
    f1 = 2 * correct / (found + true)
    scores = {"f1": f1, "precision": correct / found, "recall": correct / true, "support": float(true)}
    scores["conlleval_f1"] = f1 + (1 - f1) / 10  # so that the two differ
    return HeadResult(task, model, seed, gold="", settings=settings, scores=scores, counts=counts)


def results_of(task: str, model: str, *f1: float, mentions: int = 1000) -> list[HeadResult]:
    """Return a result with this F1 for each seed, in a test set of one sentence."""
    counts = [np.array([[round(mentions * share), mentions, mentions]]) for share in f1]
    return [result_of(task, model, seed, of_seed) for seed, of_seed in enumerate(counts)]


def save_result(
    root: Path, task: str, model: str, seed: int, predicted: list[list[str]] = GOLD, **settings: Any
) -> Path:
    """Save the files of a finished head that tables are made from."""
    folder = root / task / model / str(seed)
    folder.mkdir(parents=True)
    write_json(folder / "scores.json", {"task": task, "model": model, "seed": seed})
    write_conll(folder / "predictions.tsv", list(zip(WORDS, GOLD, predicted, strict=True)))
    write_record(folder / RECORD, {}, {"seed": seed, **settings}, facts={}, seconds=0.0)
    return folder
