#!/usr/bin/env python
"""Compare pre-training with the stock Trainer and collator as in run_mlm.py, on the same text and model.

    python benchmarks/bench_pretraining.py --corpus abstracts.txt.gz --model runs/mine/v0.0
    python benchmarks/bench_pretraining.py ... --model google-bert/bert-base-uncased --random --length 512 --steps 120

All rows have the same weights at the start, and the same text, length and batch. The stock loop cuts documents into
blocks by the rule of run_mlm.py, ours by its own; no block has padding. Prints median times, tokens of text per second,
the mean loss of the last steps, and the time of the collators alone and of tokenising with packing, compared with the
bare Rust encoder. On a CPU, every row runs in its own process.

On a GPU, times are taken over ten steps, and memory is what PyTorch reserves on the GPU. The arithmetic limit is
printed too: the operations that a step needs for products with weight matrices (without attention and elementwise
operations), the time these take at the rate of a single large product in bf16, measured on the spot, and the share of
that rate that is reached.
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
from collections.abc import Callable, Mapping
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
from bioptimus_hf.hardware import keep_freed_memory
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
    """How the model of a row is trained.

    Attributes:
        ours: with our trainer, not the stock one.
        bf16: in bfloat16 mixed precision.
        strategy: masking.
        dropout: probability.
        compiled: with `torch_compile`.
    """

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
STEPS_PER_TIMING = 10 if ON_GPU else 1
WARM_UP = 40 if ON_GPU else 6  # steps
PEAK_SIZE = 8192  # rows and columns of the matrices that measure the peak rate of a GPU


class Clock(TrainerCallback):
    """Records the seconds per step, with loading and masking, and the losses."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % STEPS_PER_TIMING == 0:
            if ON_GPU:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step > WARM_UP:
                self.seconds.append((now - self._start) / STEPS_PER_TIMING)
            self._start = now

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def stock_blocks(documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, *, offsets: bool) -> Dataset:
    """Join documents and cut them as run_mlm.py does, which drops the rest of every thousand documents."""

    def group(batch: dict[str, list[list[Any]]]) -> dict[str, list[list[Any]]]:
        joined = {name: [value for row in rows for value in row] for name, rows in batch.items()}
        total = len(joined["input_ids"]) // length * length
        return {
            name: [values[start : start + length] for start in range(0, total, length)]
            for name, values in joined.items()
        }

    def tokenize(batch: dict[str, list[str]]) -> Any:
        return tokenizer(batch["text"], return_special_tokens_mask=True, return_offsets_mapping=offsets, verbose=False)

    return documents.map(tokenize, batched=True, remove_columns=documents.column_names).map(group, batched=True)


def train_stock(options: argparse.Namespace, tokenizer: Any, blocks: Dataset, row: Row, folder: str) -> Clock:
    """Train with the stock Trainer and collator."""
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
    """Train like `pretrain`, in a process prepared like that of the command."""
    clock = Clock()
    if not ON_GPU:  # where all rows share a process
        keep_freed_memory()
    if row.compiled:
        os.environ["ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"] = "true"
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
    """Count the operations of a step, forward and backward, in products with weight matrices."""
    width, inner = config.hidden_size, config.intermediate_size
    layer = 4 * width**2 + 2 * width * inner
    head = width**2 + width * config.vocab_size
    if row.ours:  # the last layer computes only keys and values for all tokens
        products = tokens * ((config.num_hidden_layers - 1) * layer + 2 * width**2)
        products += masked * (layer - 2 * width**2 + head)
    else:
        products = tokens * (config.num_hidden_layers * layer + head)
    return 3 * 2 * products


def peak_rate() -> float:
    """Measure the operations per second of a large product in bf16 on the GPU."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        torch.cuda.synchronize()
        left @ right
        torch.cuda.synchronize()

    return 2 * PEAK_SIZE**3 / median_seconds(multiply, 20)


def common(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return the training arguments of all rows."""
    return {
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "learning_rate": 5e-4,
        "save_strategy": "no",
        "logging_steps": STEPS_PER_TIMING,
        "dataloader_num_workers": options.workers,
        "disable_tqdm": True,
        "seed": 0,
        "use_cpu": not torch.accelerator.is_available(),
    }


def median_seconds(work: Callable[[], Any], repeat: int) -> float:
    """Return the median time of a function."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(options: argparse.Namespace, label: str) -> dict[str, float]:
    """Train a row and return its measurements; leaves no state behind."""
    environment = dict(os.environ)
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
        os.environ.clear()  # TrainingArguments with torch_compile set variables that would affect later rows
        os.environ.update(environment)
    result = {
        "seconds": statistics.median(clock.seconds),
        "loss": statistics.mean(clock.losses[-5:]),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if ON_GPU:
        result["megabytes"] = torch.cuda.max_memory_reserved() // 10**6  # includes the memory of CUDA graphs
        result["rate"] = peak_rate()
    return result


def measure_apart(options: argparse.Namespace, label: str) -> dict[str, float]:
    """Train a row in its own process, so that its peak memory is measured; on a GPU, which measures it, in this one."""
    if ON_GPU:
        return measure(options, label)
    command = [sys.executable, __file__, *sys.argv[1:], "--row", label]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(ended.stdout.decode().rpartition("RESULT")[2])
    return result


def print_rows(options: argparse.Namespace, results: Mapping[str, list[dict[str, float]]]) -> None:
    """Print the table of all rows."""
    tokens = options.batch * options.length
    median = {label: statistics.median(run["seconds"] for run in runs) for label, runs in results.items()}
    bases = [base for base in BASES if base in median]
    print(f"| | tokens/s | s/step | {' | '.join(f'x {base}' for base in bases)} | loss | peak MB |")
    print("| --- " * (5 + len(bases)) + "|")
    for label, runs in results.items():
        ratios = "".join(f"{median[base] / median[label]:.2f} | " for base in bases)
        print(
            f"| {label} | {tokens / median[label]:,.0f} | {median[label]:.4f} | {ratios}{runs[0]['loss']:.3f} | "
            f"{statistics.median(run['megabytes'] for run in runs):,.0f} |"
        )


def print_limits(options: argparse.Namespace, results: Mapping[str, list[dict[str, float]]]) -> None:
    """Print how close each row comes to the peak rate of the GPU."""
    config = AutoConfig.from_pretrained(options.model)
    tokens = options.batch * options.length
    print("\n| | 10^12 operations per step | ms at peak rate | ms | share of peak rate |")
    print("| --- " * 5 + "|")
    for label, runs in results.items():
        needed = operations(ROWS[label], config, tokens, tokens * ROWS[label].strategy.rate)
        rate = statistics.median(run["rate"] for run in runs)
        seconds = statistics.median(run["seconds"] for run in runs)
        print(
            f"| {label} | {needed / 1e12:.2f} | {needed / rate * 1e3:.1f} | {seconds * 1e3:.1f} | "
            f"{needed / rate / seconds:.0%} |"
        )
    size = f"{PEAK_SIZE} x {PEAK_SIZE}"
    print(f"\n{torch.cuda.get_device_name()}: a product of {size} in bf16 runs at {rate / 1e12:.0f} x 10^12 per second")


def print_collators(options: argparse.Namespace, tokenizer: Any, documents: Dataset, step: float) -> None:
    """Print the time of the collators alone, and our collator's share of a step (s)."""
    offsets = stock_blocks(documents.select(range(min(len(documents), 1000))), tokenizer, options.length, offsets=True)
    packed = tokenize_and_pack(documents, tokenizer, max_length=options.length)
    stock_collator = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True)
    own_collator = BioptimusDataCollator(tokenizer, WORDS)
    stock_rows, own_rows = ([blocks[row] for row in range(options.batch)] for blocks in (offsets, packed))
    stock = median_seconds(lambda: stock_collator(stock_rows), 20)
    ours = median_seconds(lambda: own_collator(own_rows), 20)
    print(
        f"\ncollator, whole words: stock {stock * 1e3:.1f} ms per batch, ours {ours * 1e3:.2f} ms, {stock / ours:.1f}x;"
    )
    print(f"ours takes {ours / step:.2%} of its step")


def print_tokenizing(options: argparse.Namespace, tokenizer: Any, documents: Dataset) -> None:
    """Print the time of tokenising with packing, compared with the bare Rust encoder."""
    texts, backend = documents["text"][:], tokenizer.backend_tokenizer

    def encode() -> None:
        for start in range(0, len(texts), 1000):
            backend.encode_batch_fast(texts[start : start + 1000])

    bare = median_seconds(encode, 3)
    packed = median_seconds(lambda: tokenize_and_pack(documents, tokenizer, max_length=options.length), 3)
    print(f"tokenising: bare Rust encoder {bare:.2f} s, ours with packing {packed:.2f} s, {packed / bare:.2f}x")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max_megabytes", type=float, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens per block")
    parser.add_argument("--batch", type=int, default=32, help="blocks per step")
    parser.add_argument("--steps", type=int, default=120 if ON_GPU else 24)
    parser.add_argument("--workers", type=int, default=4 if ON_GPU else 0, help="processes that collate")
    parser.add_argument("--repeat", type=int, default=1, help="runs per row")
    parser.add_argument("--random", action="store_true", help="random weights, in the shape of --model")
    default = [label for label, row in ROWS.items() if not row.compiled]
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=default, help="default: all but compiled rows")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all rows and print the tables, or measure a single row for them."""
    options = parse_options()
    disable_progress_bars()
    disable_progress_bar()
    set_verbosity_error()
    if options.row:
        print("RESULT", json.dumps(measure(options, options.row)))
        return
    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.repeat):
        for label in options.rows:
            results[label].append(measure_apart(options, label))
            print(f"{label}: {results[label][-1]}", file=sys.stderr, flush=True)
    print_rows(options, results)
    if ON_GPU:
        print_limits(options, results)
    if {"stock whole words, bf16", "ours whole words, bf16"} <= results.keys():
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        documents = load_corpus(options.corpus, max_megabytes=options.max_megabytes)
        disable_caching()
        step = statistics.median(run["seconds"] for run in results["ours whole words, bf16"])
        print_collators(options, tokenizer, documents, step)
        print_tokenizing(options, tokenizer, documents)


if __name__ == "__main__":
    main()
