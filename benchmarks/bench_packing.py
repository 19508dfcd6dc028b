#!/usr/bin/env python
"""Measure tokenising and packing at scale: speed, bytes per token on disk, and memory, for growing amounts of text.

    python benchmarks/bench_packing.py --corpus abstracts.txt.gz fulltext_*.txt.gz --tokenizer runs/mine/tokenizer

The text consists of copies of the corpus. Each size runs in its own process with an empty cache. Memory is the peak of
that process and of its largest worker, without memory-mapped files.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow.compute as pc
from datasets import concatenate_datasets, disable_progress_bars
from memory_watch import MemoryWatch
from transformers import AutoTokenizer

from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.pretraining.packing import tokenize_and_pack


def pack(corpus: Sequence[str], name: str, megabytes: float, processes: int) -> dict[str, float]:
    """Tokenise and pack about so many MB; runs in its own process."""
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(name)
    documents = load_corpus(corpus)
    size = pc.sum(pc.binary_length(documents.data["text"])).as_py() / 1e6
    copies = max(round(megabytes / size), 1)
    before = cached_bytes()
    with MemoryWatch() as memory:
        start = time.perf_counter()
        text = concatenate_datasets([documents] * copies)
        blocks = tokenize_and_pack(text, tokenizer, max_length=128, num_proc=processes)
        seconds = time.perf_counter() - start
    tokens = pc.sum(pc.list_value_length(blocks.data["input_ids"])).as_py()
    bytes_per_token = (cached_bytes() - before) / tokens
    return {"MB": size * copies, "seconds": seconds, "bytes per token": bytes_per_token, **memory.peak}


def cached_bytes() -> int:
    """Return the size of the cache of `datasets`."""
    return sum(file.stat().st_size for file in Path(os.environ["HF_DATASETS_CACHE"]).rglob("*.arrow"))


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[250, 1000], help="amounts of text")
    parser.add_argument("--num_proc", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    options = parser.parse_args()
    print("| MB | processes | MB/s | bytes per token | peak MB: process, largest child |")
    print("| --- " * 5 + "|")
    for processes in options.num_proc:
        for megabytes in options.megabytes:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["HF_DATASETS_CACHE"] = folder  # read by the next process that is started
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    result = pool.submit(pack, options.corpus, options.tokenizer, megabytes, processes).result()
            speed = result["MB"] / result["seconds"]
            memory = f"{result['process']:,.0f}, {result['largest child']:,.0f}"
            print(
                f"| {result['MB']:,.0f} | {processes} | {speed:.1f} | {result['bytes per token']:.2f} | {memory} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
