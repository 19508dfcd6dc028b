#!/usr/bin/env python
"""Training a vocabulary: ours and the plain trainer of `tokenizers`, on the same text, taking turns.

    pip install -e '.[bench]'
    python benchmarks/bench_vocabulary.py --corpus abstracts.txt.gz fulltext_*.txt.gz \
        --base_model google-bert/bert-base-uncased

Both stream the same column of a memory-mapped data set. The plain trainer is WordPieceTrainer with BERT's normaliser
and pre-tokenizer and at most 1,000 characters, whose list differs from run to run (tokenizers issue 1794). Prints the
medians of the turns, the ratio, whether the lists of the turns are equal, and how much memory that is no mapped file a
training takes, on a tenth of the text and on all of it. "Extend" adds a third as many words to the base's vocabulary.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from datasets import Dataset, disable_progress_bars
from memory_watch import MemoryWatch, anonymous_mb
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.vocabulary.training import extend_vocabulary, train_vocabulary

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS_AT_ONCE = 1000


def plain(documents: Dataset, _: str, size: int) -> list[str]:
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIALS, limit_alphabet=1000, min_frequency=2)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator((batch["text"] for batch in documents.iter(TEXTS_AT_ONCE)), trainer=trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def replace(documents: Dataset, base: str, size: int) -> list[str]:
    return train_vocabulary(documents["text"], size=size, like=AutoTokenizer.from_pretrained(base))


def extend(documents: Dataset, base: str, size: int) -> list[str]:
    like = AutoTokenizer.from_pretrained(base)
    return extend_vocabulary(documents["text"], size=len(like) + size // 3, like=like)


WORKS: dict[str, Callable[[Dataset, str, int], list[str]]] = {
    "plain trainer": plain,
    "ours, replace": replace,
    "ours, extend": extend,
}


def once(
    name: str, corpus: list[str], share: float, base: str, size: int
) -> tuple[float, float, list[str]]:  # in a process of its own
    disable_progress_bars()
    documents = load_corpus(corpus)
    documents = documents.select(range(int(len(documents) * share)))
    before = anonymous_mb(os.getpid())
    start = time.perf_counter()
    with MemoryWatch() as memory:
        vocabulary = WORKS[name](documents, base, size)
    return time.perf_counter() - start, memory.peak["process"] - before, vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--size", type=int, default=30522)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    every: dict[tuple[float, str], list[tuple[float, float, list[str]]]] = {}
    for share in (0.1, 1.0):
        for _ in range(options.repeat):
            for name in WORKS:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    run = pool.submit(once, name, options.corpus, share, options.base_model, options.size).result()
                every.setdefault((share, name), []).append(run)
    documents = load_corpus(options.corpus)
    megabytes = sum(len(text.encode()) for text in documents["text"]) / 1e6
    print(f"{len(documents)} documents, {megabytes:.1f} MB, {options.size} tokens, {os.cpu_count()} cores")
    print(f"{'':<16}{'documents':>10}{'seconds':>9}{'plain = 1':>11}{'same list':>11}{'MB of memory':>14}")
    for (share, name), runs in every.items():
        seconds = statistics.median(run[0] for run in runs)
        reference = statistics.median(run[0] for run in every[share, "plain trainer"])
        same = "yes" if all(run[2] == runs[0][2] for run in runs) else "no"
        memory = statistics.median(run[1] for run in runs)
        print(f"{name:<16}{share:>10.0%}{seconds:>9.2f}{seconds / reference:>11.2f}{same:>11}{memory:>14.0f}")


if __name__ == "__main__":
    main()
