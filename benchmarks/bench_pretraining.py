#!/usr/bin/env python
"""Pre-training: ours, and the stock Trainer with the stock collator as in run_mlm.py, on the same text, in one run.

    python benchmarks/bench_pretraining.py --corpus abstracts.txt.gz --model runs/mine/v0.0
    python benchmarks/bench_pretraining.py ... --model google-bert/bert-base-uncased --random --length 512 --steps 120

Same model, text, length and batch; the documents are joined and cut into blocks by run_mlm.py's own rule for the stock
loop, by ours for ours; no block has padding. Each row trains in turns with the others, a few steps at a time, from the
same weights. Printed are medians over steps, tokens of text a second, the loss over the last steps of each row's
training, the time of the collators alone, and that of tokenising and packing beside the bare Rust encoder.

On a GPU, times are of ten steps together, and memory is what PyTorch reserves of the GPU's. There, the arithmetic of
the limit is printed too: the operations that a row needs in products with weight matrices (attention and all that is
elementwise left out), how long these take at the rate of one large product in bf16, measured on the spot, and what part
of that rate is reached.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.models import load_masked_lm
from bioptimus_hf.pretraining.arguments import PretrainingArguments
from bioptimus_hf.pretraining.callback import CurriculumCallback
from bioptimus_hf.pretraining.curriculum import Phase
from bioptimus_hf.pretraining.masking import BioptimusDataCollator, MaskingStrategy
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions, prepare_model, set_dropout
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.pretraining.trainer import PretrainingTrainer

TOKENS, WORDS = MaskingStrategy("token", 0.15, True), MaskingStrategy("word", 0.15, True)


@dataclass(frozen=True)
class Row:
    """How a row trains."""

    ours: bool
    bf16: bool
    strategy: MaskingStrategy = TOKENS
    dropout: float = 0.0
    compiled: bool = False


ROWS = {
    "stock, fp32 (its default)": Row(False, False, dropout=0.1),
    "stock, bf16": Row(False, True, dropout=0.1),
    "stock, bf16, no dropout": Row(False, True),
    "stock whole words, bf16": Row(False, True, WORDS, 0.1),
    "ours, fp32": Row(True, False),
    "ours, bf16": Row(True, True),
    "ours whole words, bf16": Row(True, True, WORDS),
    "ours whole words, bf16, dropout 0.1": Row(True, True, WORDS, 0.1),
    "ours, bf16, compiled": Row(True, True, compiled=True),
    "ours whole words, bf16, compiled": Row(True, True, WORDS, compiled=True),
}
BASES = ("stock, fp32 (its default)", "stock, bf16", "stock whole words, bf16")
ON_GPU = torch.cuda.is_available()
STEPS_AT_ONCE = 10 if ON_GPU else 1  # between two looks at the clock
WARM_UP = 40 if ON_GPU else 6  # steps


class Clock(TrainerCallback):
    """Seconds a step, and losses."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % STEPS_AT_ONCE == 0:
            if ON_GPU:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step > WARM_UP:  # from one step's beginning to another's: with loading and masking
                self.seconds.append((now - self._began) / STEPS_AT_ONCE)
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


def train_stock(options: argparse.Namespace, tokenizer: Any, blocks: Dataset, row: Row, folder: str) -> Clock:
    clock = Clock()
    words = row.strategy.unit == "word"
    if options.random:
        model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(options.model))
    else:
        model = AutoModelForMaskedLM.from_pretrained(options.model)
    set_dropout(model, row.dropout)
    Trainer(
        model=model,
        args=TrainingArguments(**common(options, folder), bf16=row.bf16, remove_unused_columns=not words),
        train_dataset=blocks,
        data_collator=DataCollatorForLanguageModeling(tokenizer, whole_word_mask=words),
        callbacks=[clock],
    ).train()
    return clock


def train_ours(options: argparse.Namespace, tokenizer: Any, blocks: Dataset, row: Row, folder: str) -> Clock:
    clock = Clock()
    if options.random:
        model = BertForMaskedPositions(AutoConfig.from_pretrained(options.model))
    else:
        model, _ = load_masked_lm(options.model, kind=BertForMaskedPositions, seed=0)
    arguments = PretrainingArguments(
        **common(options, folder), bf16=row.bf16, eval_strategy="no", warmup_steps=0, torch_compile=row.compiled
    )
    prepare_model(model, tokenizer, arguments, dropout=row.dropout)
    collator = BioptimusDataCollator(tokenizer, row.strategy)
    trainer = PretrainingTrainer(
        model=model,
        args=arguments,
        train_dataset=blocks,
        data_collator=collator,
        processing_class=tokenizer,
        phases=CurriculumCallback(collator, [Phase("0", row.strategy, 1.0)]),
    )
    trainer.add_callback(clock)
    trainer.train()
    return clock


def operations(row: Row, config: BertConfig, tokens: int, masked: float) -> float:
    """Count those of the products with weights in a step, there and back."""
    width, inner = config.hidden_size, config.intermediate_size
    layer = 4 * width**2 + 2 * width * inner
    head = width**2 + width * config.vocab_size
    if row.ours:  # in the last layer, keys and values of all
        products = tokens * ((config.num_hidden_layers - 1) * layer + 2 * width**2)
        products += masked * (layer - 2 * width**2 + head)
    else:
        products = tokens * (config.num_hidden_layers * layer + head)
    return 3 * 2 * products


def rate_of_the_gpu(size: int = 8192) -> float:
    """Measure the operations a second of a large product in bf16."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds)


def common(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "learning_rate": 5e-4,
        "save_strategy": "no",
        "logging_steps": STEPS_AT_ONCE,
        "dataloader_num_workers": options.workers,
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
            backend.encode_batch_fast(texts[begin : begin + 1000])

    return seconds_of(bare, 3), seconds_of(lambda: tokenize_and_pack(documents, tokenizer, max_length=length), 3)


def one_row(options: argparse.Namespace, label: str) -> dict[str, float]:
    """Train one row, and leave nothing of it behind."""
    before = dict(os.environ)
    AcceleratorState._reset_state(reset_partial_state=True)
    if ON_GPU:
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    documents = load_corpus(options.corpus, max_megabytes=options.max_megabytes)
    row = ROWS[label]
    set_seed(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if row.ours:
                blocks = tokenize_and_pack(documents, tokenizer, max_length=options.length)
            else:
                blocks = stock_blocks(documents, tokenizer, options.length, offsets=row.strategy.unit == "word")
            clock = (train_ours if row.ours else train_stock)(options, tokenizer, blocks, row, folder)
    finally:
        os.environ.clear()  # arguments of training that ask for compilation tell those after them
        os.environ.update(before)
    found = {
        "seconds": statistics.median(clock.seconds),
        "loss": statistics.mean(clock.losses[-5:]),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if ON_GPU:
        found["megabytes"] = torch.cuda.max_memory_reserved() // 10**6  # with what recorded graphs hold
        found["rate"] = rate_of_the_gpu()
    return found


def apart(label: str) -> dict[str, float]:
    """Train one row in a process of its own, so that its peak memory is its own too."""
    said = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--row", label], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(said.stdout.decode().rpartition("RESULT")[2])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max_megabytes", type=float, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=120 if ON_GPU else 24)
    parser.add_argument("--workers", type=int, default=4 if ON_GPU else 0, help="processes that collate")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--random", action="store_true", help="random weights, in the shape of --model")
    without = [label for label, row in ROWS.items() if not row.compiled]
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=without, help="default: all that are not compiled")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    disable_progress_bars()
    disable_progress_bar()
    set_verbosity_error()
    if options.row:
        print("RESULT", json.dumps(one_row(options, options.row)))
        return
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.repeat):
        for label in options.rows:
            # A GPU counts the memory of each row, so that one process does.
            found[label].append(one_row(options, label) if ON_GPU else apart(label))
            print(f"{label}: {found[label][-1]}", file=sys.stderr, flush=True)
    tokens = options.batch * options.length
    median = {label: statistics.median(one["seconds"] for one in runs) for label, runs in found.items()}
    bases = [base for base in BASES if base in median]
    print(f"| | tokens/s | s/step | {' | '.join(f'x {base}' for base in bases)} | loss | peak MB |")
    print("| --- " * (5 + len(bases)) + "|")
    for label, runs in found.items():
        times = "".join(f"{median[base] / median[label]:.2f} | " for base in bases)
        print(
            f"| {label} | {tokens / median[label]:,.0f} | {median[label]:.4f} | {times}{runs[0]['loss']:.3f} | "
            f"{statistics.median(one['megabytes'] for one in runs):,.0f} |"
        )
    if ON_GPU:
        limits(options, found)
    if all(label in found for label in ("stock whole words, bf16", "ours whole words, bf16")):
        parts(options, median["ours whole words, bf16"])


def limits(options: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    """Print what a GPU could do at best."""
    config = AutoConfig.from_pretrained(options.model)
    tokens = options.batch * options.length
    print("\n| | 10^12 operations a step | ms at the rate of one product | ms | part of that rate |")
    print("| --- " * 5 + "|")
    for label, runs in found.items():
        needed = operations(ROWS[label], config, tokens, tokens * ROWS[label].strategy.rate)
        rate = statistics.median(one["rate"] for one in runs)
        seconds = statistics.median(one["seconds"] for one in runs)
        print(
            f"| {label} | {needed / 1e12:.2f} | {needed / rate * 1e3:.1f} | {seconds * 1e3:.1f} | "
            f"{needed / rate / seconds:.0%} |"
        )
    print(f"\n{torch.cuda.get_device_name()}: one product of 8192 x 8192 in bf16 {rate / 1e12:.0f} x 10^12 a second")


def parts(options: argparse.Namespace, step: float) -> None:
    """Print what collators, and tokenising and packing, take by themselves."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    documents = load_corpus(options.corpus, max_megabytes=options.max_megabytes)
    disable_caching()
    stock, ours = collators(
        tokenizer,
        tokenize_and_pack(documents, tokenizer, max_length=options.length),
        stock_blocks(documents.select(range(1000)), tokenizer, options.length, offsets=True),
        options.batch,
    )
    share = ours / step
    print(
        f"\ncollator, whole words: stock {stock * 1e3:.1f} ms a batch, ours {ours * 1e3:.2f} ms, {stock / ours:.1f}x;"
    )
    print(f"ours is {share:.2%} of its step")
    bare, packed = tokenizing(documents, tokenizer, options.length)
    print(f"tokenising: bare Rust encoder {bare:.2f} s, ours, packed {packed:.2f} s, {packed / bare:.2f}x")


if __name__ == "__main__":
    main()
