#!/usr/bin/env python
"""Compare vocabulary training with the plain trainer of `tokenizers`, on the same text.

    pip install -e '.[bench]'
    python benchmarks/bench_vocabulary.py --corpus abstracts.txt.gz fulltext_*.txt.gz \
        --base_model google-bert/bert-base-uncased

All trainers stream the same column of a memory-mapped data set and take turns. The plain trainer is WordPieceTrainer
with BERT's normaliser and pre-tokenizer and at most 1,000 characters; its list differs from run to run (tokenizers
issue 1794). Prints, for a tenth of the text and for all of it: median time, ratio, whether all runs gave the same list,
and the memory that a training takes (without memory-mapped files). "Extend" adds a third of SIZE words to the base's
vocabulary.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from datasets import Dataset, disable_progress_bars
from memory_watch import MemoryWatch, anonymous_mb
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.vocabulary.training import extend_vocabulary, train_vocabulary

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS_PER_BATCH = 1000
SHARES = (0.1, 1.0)  # of the text


class Measured(NamedTuple):
    """A training run: seconds, MB of memory, and the vocabulary."""

    seconds: float
    megabytes: float
    vocabulary: list[str]


def plain(documents: Dataset, _: str, size: int) -> list[str]:
    """Train with WordPieceTrainer."""
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=SPECIAL_TOKENS, limit_alphabet=1000, min_frequency=2
    )
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator((batch["text"] for batch in documents.iter(TEXTS_PER_BATCH)), trainer=trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def replace(documents: Dataset, base: str, size: int) -> list[str]:
    """Train a vocabulary that replaces the base's."""
    return train_vocabulary(documents["text"], size=size, like=AutoTokenizer.from_pretrained(base))


def extend(documents: Dataset, base: str, size: int) -> list[str]:
    """Extend the base's vocabulary."""
    like = AutoTokenizer.from_pretrained(base)
    return extend_vocabulary(documents["text"], size=len(like) + size // 3, like=like)


TRAINERS: dict[str, Callable[[Dataset, str, int], list[str]]] = {
    "plain trainer": plain,
    "ours, replace": replace,
    "ours, extend": extend,
}


def train(name: str, corpus: list[str], share: float, base: str, size: int) -> Measured:
    """Train once; runs in its own process."""
    disable_progress_bars()
    documents = load_corpus(corpus)
    documents = documents.select(range(int(len(documents) * share)))
    before = anonymous_mb(os.getpid())
    start = time.perf_counter()
    with MemoryWatch() as memory:
        vocabulary = TRAINERS[name](documents, base, size)
    return Measured(time.perf_counter() - start, memory.peak["process"] - before, vocabulary)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--size", type=int, default=30522, help="tokens in a new vocabulary")
    parser.add_argument("--repeat", type=int, default=3, help="runs per trainer")
    return parser.parse_args()


def main() -> None:
    """Run all trainers and print the table."""
    options = parse_options()
    results: dict[tuple[float, str], list[Measured]] = {}
    for share in SHARES:
        for _ in range(options.repeat):
            for name in TRAINERS:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    run = pool.submit(train, name, options.corpus, share, options.base_model, options.size).result()
                results.setdefault((share, name), []).append(run)
    documents = load_corpus(options.corpus)
    megabytes = sum(len(text.encode()) for text in documents["text"]) / 1e6
    print(f"{len(documents)} documents, {megabytes:.1f} MB, {options.size} tokens, {os.cpu_count()} cores")
    print(f"{'':<16}{'documents':>10}{'seconds':>9}{'plain = 1':>11}{'same list':>11}{'MB of memory':>14}")
    for (share, name), runs in results.items():
        seconds = statistics.median(run.seconds for run in runs)
        reference = statistics.median(run.seconds for run in results[share, "plain trainer"])
        same = "yes" if all(run.vocabulary == runs[0].vocabulary for run in runs) else "no"
        memory = statistics.median(run.megabytes for run in runs)
        print(f"{name:<16}{share:>10.0%}{seconds:>9.2f}{seconds / reference:>11.2f}{same:>11}{memory:>14.0f}")


if __name__ == "__main__":
    main()
