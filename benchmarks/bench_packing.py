#!/usr/bin/env python
"""Tokenising and packing at scale: seconds, bytes a token on disk, and memory, for more and more text.

    python benchmarks/bench_packing.py --corpus abstracts.txt.gz fulltext_*.txt.gz --tokenizer runs/mine/tokenizer

The text is the corpus, again and again. Each size runs in a process of its own with an empty cache; memory is what is
no mapped file, the peak of that process and of its largest worker.
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
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(name)
    documents = load_corpus(corpus)
    once = pc.sum(pc.binary_length(documents.data["text"])).as_py() / 1e6
    copies = max(round(megabytes / once), 1)
    before = arrow_bytes()
    with MemoryWatch() as memory:
        began = time.perf_counter()
        text = concatenate_datasets([documents] * copies)
        blocks = tokenize_and_pack(text, tokenizer, max_length=128, num_proc=processes)
        seconds = time.perf_counter() - began
    tokens = pc.sum(pc.list_value_length(blocks.data["input_ids"])).as_py()
    bytes_a_token = (arrow_bytes() - before) / tokens
    return {"MB": once * copies, "seconds": seconds, "bytes a token": bytes_a_token, **memory.peak}


def arrow_bytes() -> int:
    return sum(file.stat().st_size for file in Path(os.environ["HF_DATASETS_CACHE"]).rglob("*.arrow"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[250, 1000])
    parser.add_argument("--num_proc", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print("| MB | processes | MB/s | bytes a token | peak MB: process, largest child |")
    print("| --- " * 5 + "|")
    for processes in options.num_proc:
        for megabytes in options.megabytes:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["HF_DATASETS_CACHE"] = folder  # read by the process that is started next
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    took = pool.submit(pack, options.corpus, options.tokenizer, megabytes, processes).result()
            speed, memory = took["MB"] / took["seconds"], f"{took['process']:,.0f}, {took['largest child']:,.0f}"
            print(
                f"| {took['MB']:,.0f} | {processes} | {speed:.1f} | {took['bytes a token']:.2f} | {memory} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
