#!/usr/bin/env python
"""Measure how often the intervals of the tables hold, with data whose true differences are known to be zero.

    python benchmarks/simulate_intervals.py

Draws, for five tasks, two models of equal quality, heads of each with several seeds, and the test sentences that these
get right. Sentences differ in difficulty; each model is better at some of them, each seed makes errors of its own, and
the quality of a head varies between trainings. With --training 1, this variation contributes about as much to a
difference as the choice of sentences does: the standard deviations of both are equal.
Prints how often the 95 % interval of a difference holds, and how often the simultaneous ones of five tasks and their
average all hold (`paired_differences`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from bioptimus_hf.ner.differences import paired_differences
from bioptimus_hf.ner.results import HeadResult
from bioptimus_hf.ner.tasks import BLURB_NER

# Standard deviations of how surely a sentence is right. As in benchmarks/five_tasks.jsonl, a third of the variance that
# the choice of sentences causes comes from errors that each head has for itself, with three seeds. With a `--training`
# of 1, training again causes as much variance.
_DIFFICULTY, _OF_MODEL, _OF_SEED, _OF_TRAINING = 1.0, 0.7, 0.55, 0.09
_EASE = 1.2


def draw_heads(generator: Generator, sentences: int, seeds: int, training: float) -> list[HeadResult]:
    """Draw the heads of all tasks; each sentence has one mention, which is found or isn't."""
    heads = []
    for task in BLURB_NER:
        difficulty = generator.normal(0, _DIFFICULTY, sentences)
        for model in ("a", "b"):
            of_model = generator.normal(0, _OF_MODEL, sentences)
            for seed in range(seeds):
                of_seed = generator.normal(0, _OF_SEED, sentences) + generator.normal(0, training * _OF_TRAINING)
                correct = (_EASE + difficulty + of_model + of_seed > 0).astype(np.int64)
                counts = np.stack([correct, np.ones_like(correct), np.ones_like(correct)], axis=1)
                scores = {"f1": float(correct.mean())}
                heads.append(HeadResult(task=task, model=model, seed=seed, gold="", scores=scores, counts=counts))
    return heads


def share_that_holds(options: argparse.Namespace, seeds: int, training: float) -> Sequence[float]:
    """Return how often an interval holds, and how often all simultaneous ones do."""
    alone, together = [], []
    generator = np.random.default_rng([seeds, round(100 * training)])
    for _ in range(options.times):
        heads = draw_heads(generator, options.sentences, seeds, training)
        rows = paired_differences(heads, ["a"], resamples=options.resamples)
        alone += [low <= 0 <= high for low, high in (row["interval"] for row in rows if row["task"] != "average")]
        together.append(all(low <= 0 <= high for low, high in (row["simultaneous_interval"] for row in rows)))
    return float(np.mean(alone)), float(np.mean(together))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--training", type=float, nargs="+", default=[0, 0.5, 1, 2])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--sentences", type=int, default=600)
    parser.add_argument("--resamples", type=int, default=500)
    options = parser.parse_args()
    print("| seeds | variation between trainings | an interval holds | all six hold |\n| --- | --- | --- | --- |")
    for seeds in options.seeds:
        for training in options.training:
            shares = " | ".join(f"{100 * share:.0f} %" for share in share_that_holds(options, seeds, training))
            print(f"| {seeds} | {training:g} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
