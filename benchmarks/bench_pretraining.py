#!/usr/bin/env python
"""Pre-training: ours, and the stock Trainer with the stock collator as in run_mlm.py, on the same text, in one run.

    python benchmarks/bench_pretraining.py --corpus abstracts.txt.gz --model runs/mine/v0.0

Same model, text, length and batch; the documents are joined and cut into blocks by run_mlm.py's own rule for the stock
loop, by ours for ours; no block has padding. Each row trains in turns with the others, a few steps at a time, from the
same weights. Printed are medians over steps, tokens of text a second, the loss over the last steps of each row's
training, the time of the collators alone, and that of tokenising and packing beside the bare Rust encoder.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any

import torch
from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from bioptimus_hf.corpus import load_corpus
from bioptimus_hf.curriculum import CurriculumCallback, Phase
from bioptimus_hf.distillation import load_masked_lm
from bioptimus_hf.masking import BioptimusDataCollator, MaskingStrategy
from bioptimus_hf.modeling import BertForMaskedPositions, set_dropout
from bioptimus_hf.packing import tokenize_and_pack
from bioptimus_hf.pretraining import PretrainingArguments
from bioptimus_hf.trainer import PretrainingTrainer

WARM_UP = 6  # steps
TOKENS, WORDS = MaskingStrategy("token", 0.15, True), MaskingStrategy("word", 0.15, True)
ROWS = {  # label: ours, bf16, strategy, dropout
    "stock, fp32 (its default)": (False, False, TOKENS, 0.1),
    "stock, bf16": (False, True, TOKENS, 0.1),
    "stock whole words, bf16": (False, True, WORDS, 0.1),
    "ours, fp32": (True, False, TOKENS, 0.0),
    "ours, bf16": (True, True, TOKENS, 0.0),
    "ours whole words, bf16": (True, True, WORDS, 0.0),
    "ours whole words, bf16, dropout 0.1": (True, True, WORDS, 0.1),
}


class Clock(TrainerCallback):
    """Seconds of each step, and its loss."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if hasattr(self, "_began"):  # from one step's beginning to the next: with loading and masking
            self.seconds.append(now - self._began)
        self._began = now

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def stock_blocks(documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, *, offsets: bool) -> Dataset:
    """Join and cut as run_mlm.py does: with the rest of each thousand documents left out."""

    def group(batch: dict[str, list[list[Any]]]) -> dict[str, list[list[Any]]]:
        joined = {name: [one for row in rows for one in row] for name, rows in batch.items()}
        total = len(joined["input_ids"]) // length * length
        return {name: [all_[i : i + length] for i in range(0, total, length)] for name, all_ in joined.items()}

    def tokenize(batch: dict[str, list[str]]) -> Any:
        return tokenizer(batch["text"], return_special_tokens_mask=True, return_offsets_mapping=offsets, verbose=False)

    return documents.map(tokenize, batched=True, remove_columns=documents.column_names).map(group, batched=True)


def train_stock(options: argparse.Namespace, tokenizer: Any, blocks: Dataset, label: str, folder: str) -> Clock:
    _, bf16, strategy, _ = ROWS[label]
    clock = Clock()
    Trainer(
        model=AutoModelForMaskedLM.from_pretrained(options.model),
        args=TrainingArguments(**common(options, folder), bf16=bf16, remove_unused_columns=strategy.unit != "word"),
        train_dataset=blocks,
        data_collator=DataCollatorForLanguageModeling(tokenizer, whole_word_mask=strategy.unit == "word"),
        callbacks=[clock],
    ).train()
    return clock


def train_ours(options: argparse.Namespace, tokenizer: Any, blocks: Dataset, label: str, folder: str) -> Clock:
    _, bf16, strategy, dropout = ROWS[label]
    clock = Clock()
    model, _ = load_masked_lm(options.model, kind=BertForMaskedPositions, seed=0)
    model.document_start = tokenizer.cls_token_id
    set_dropout(model, dropout)
    collator = BioptimusDataCollator(tokenizer, strategy)
    trainer = PretrainingTrainer(
        model=model,
        args=PretrainingArguments(**common(options, folder), bf16=bf16, eval_strategy="no", warmup_steps=0),
        train_dataset=blocks,
        data_collator=collator,
        processing_class=tokenizer,
        phases=CurriculumCallback(collator, [Phase("0", strategy, 1.0)]),
    )
    trainer.add_callback(clock)
    trainer.train()
    return clock


def common(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "learning_rate": 5e-4,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
        "use_cpu": not torch.accelerator.is_available(),
    }


def seconds_of(work: Any, repeat: int) -> float:
    found = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def collators(tokenizer: Any, blocks: Dataset, with_offsets: Dataset, batch: int) -> tuple[float, float]:
    stock = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True)
    ours = BioptimusDataCollator(tokenizer, WORDS)
    theirs, mine = [with_offsets[i] for i in range(batch)], [blocks[i] for i in range(batch)]
    return seconds_of(lambda: stock(theirs), 20), seconds_of(lambda: ours(mine), 20)


def tokenizing(documents: Dataset, tokenizer: Any, length: int) -> tuple[float, float]:
    texts, backend = documents["text"][:], tokenizer.backend_tokenizer

    def bare() -> None:
        for begin in range(0, len(texts), 1000):
            backend.encode_batch(texts[begin : begin + 1000])

    return seconds_of(bare, 3), seconds_of(lambda: tokenize_and_pack(documents, tokenizer, max_length=length), 3)


def one_row(options: argparse.Namespace) -> None:
    """Train one row, in a process of its own, so that its peak memory is its own too."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    documents = load_corpus(options.corpus, max_megabytes=options.max_megabytes)
    is_ours, _, strategy, _ = ROWS[options.row]
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if is_ours:
            clock = train_ours(
                options,
                tokenizer,
                tokenize_and_pack(documents, tokenizer, max_length=options.length),
                options.row,
                folder,
            )
        else:
            rows = stock_blocks(documents, tokenizer, options.length, offsets=strategy.unit == "word")
            clock = train_stock(options, tokenizer, rows, options.row, folder)
    seconds = statistics.median(clock.seconds[WARM_UP:])
    last = statistics.mean(clock.losses[-5:])
    print("RESULT", seconds, last, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max_megabytes", type=float, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    disable_progress_bars()
    disable_progress_bar()
    set_verbosity_error()
    if options.row:
        one_row(options)
        return
    found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for _ in range(options.repeat):
        for label in ROWS:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", label]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds, loss, memory = next(line for line in said.splitlines() if line.startswith("RESULT")).split()[1:]
            found[label].append((float(seconds), float(loss), int(memory)))
    tokens = options.batch * options.length
    median = {label: statistics.median(seconds for seconds, _, _ in runs) for label, runs in found.items()}
    bases = ("stock, fp32 (its default)", "stock, bf16", "stock whole words, bf16")
    print(f"| | tokens/s | s/step | {' | '.join(f'x {base}' for base in bases)} | loss | peak MB |")
    print("| --- " * 8 + "|")
    for label, runs in found.items():
        times = " | ".join(f"{median[base] / median[label]:.2f}" for base in bases)
        print(
            f"| {label} | {tokens / median[label]:,.0f} | {median[label]:.3f} | {times} | {runs[0][1]:.3f} | "
            f"{statistics.median(memory for _, _, memory in runs):,.0f} |"
        )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    documents = load_corpus(options.corpus, max_megabytes=options.max_megabytes)
    disable_caching()
    stock, ours = collators(
        tokenizer,
        tokenize_and_pack(documents, tokenizer, max_length=options.length),
        stock_blocks(documents.select(range(1000)), tokenizer, options.length, offsets=True),
        options.batch,
    )
    share = ours / median["ours whole words, bf16"]
    print(
        f"\ncollator, whole words: stock {stock * 1e3:.1f} ms a batch, ours {ours * 1e3:.2f} ms, {stock / ours:.1f}x;"
    )
    print(f"ours is {share:.2%} of its step")
    bare, packed = tokenizing(documents, tokenizer, options.length)
    print(f"tokenising: bare Rust encoder {bare:.2f} s, ours, packed {packed:.2f} s, {packed / bare:.2f}x")


if __name__ == "__main__":
    main()
