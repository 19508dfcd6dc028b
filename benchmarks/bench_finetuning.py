#!/usr/bin/env python
"""Compare the training of NER heads with the stock Trainer as in transformers' run_ner.py, on the same data and model.

    python benchmarks/bench_finetuning.py --ner_data DATA/ner --work runs/bench_finetuning
    python benchmarks/bench_finetuning.py ... --seeds 0 --epochs 1 --max_sentences jnlpba=4000
    python benchmarks/bench_finetuning.py ... --seeds 0 1 --two_at_once

All rows have the same data, weights at the start, batch size, epochs, learning rate, warm-up, weight decay and maximum
length, and keep the epoch with the best F1 on the development set. Every training is a process of its own; rows take
turns, seed by seed. Finished trainings are in WORK and are not repeated, so the command can be interrupted.

Seconds are those of a training divided by its epochs. They include everything between reading the data and having the
best epoch in memory: loading the model, tokenising, training, an evaluation and a saved checkpoint per epoch, and
loading the best one; not the start of Python. CPU seconds, which depend less on other work on the machine, are those of
all threads. Memory is the peak of the process. Then both kinds of heads are scored by the same function.

--two_at_once instead compares two heads one after the other, each with all threads, with the two at the same time, each
with one thread; for our rows, with the first two seeds, on two cores.

Prints a summary and writes it to WORK/summary.md: medians over seeds, ratios, F1, and paired differences in F1 with the
95 % interval of Student's t over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict, disable_caching, disable_progress_bars
from scipy.stats import t
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from bioptimus_hf.cli.embedded_model import embedded_model
from bioptimus_hf.hardware import THREADS_THAT_WAIT, keep_freed_memory
from bioptimus_hf.models import IGNORED_LABEL, new_head
from bioptimus_hf.ner.finetuning import best_epoch_arguments, finetune
from bioptimus_hf.ner.prediction import predict_tags
from bioptimus_hf.ner.results import mean_and_standard_deviation, spread
from bioptimus_hf.ner.scores import entity_scores
from bioptimus_hf.ner.tasks import NER_TASKS, label_names, load_ner, tags_of


@dataclass(frozen=True)
class Row:
    """How a head is trained: with our trainer or the stock one, in bfloat16 mixed precision or in float32."""

    ours: bool
    bf16: bool


ROWS = {
    "stock, fp32 (its default)": Row(ours=False, bf16=False),
    "stock, bf16": Row(ours=False, bf16=True),
    "ours, fp32": Row(ours=True, bf16=False),
    "ours, bf16": Row(ours=True, bf16=True),
}
STOCK, STOCK_BF16, OURS, OURS_BF16 = ROWS
PAIRS = ((OURS, STOCK), (OURS_BF16, STOCK), (OURS_BF16, STOCK_BF16))
MAX_LENGTH = 512


def common(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the training arguments of all rows."""
    return {
        "per_device_train_batch_size": options.batch,
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.epochs,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "seed": seed,
        "use_cpu": not torch.accelerator.is_available(),
        "disable_tqdm": True,
    }


def train_stock(options: argparse.Namespace, row: Row, seed: int, data: DatasetDict, folder: str) -> tuple[Any, Any]:
    """Train as run_ner.py does; return the head and its tokenizer."""
    names = label_names(data["train"])
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(
        options.model, id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)}
    )

    def tokenize(batch: dict[str, list[Any]]) -> Any:
        encoded = tokenizer(batch["tokens"], truncation=True, max_length=MAX_LENGTH, is_split_into_words=True)
        labels = []
        for number, tags in enumerate(batch["ner_tags"]):
            words = encoded.word_ids(number)
            first = [word is not None and word != before for word, before in zip(words, [None, *words], strict=False)]
            labels.append([tags[word] if new else IGNORED_LABEL for word, new in zip(words, first, strict=True)])
        return {**encoded, "labels": labels}

    def compute_metrics(outputs: Any) -> dict[str, float]:
        sentences = [
            [(int(label), int(best)) for label, best in zip(labels, row, strict=True) if label != IGNORED_LABEL]
            for labels, row in zip(outputs.label_ids, outputs.predictions.argmax(-1), strict=True)
        ]
        gold, predicted = ([[names[pair[which]] for pair in one] for one in sentences] for which in (0, 1))
        return {"f1": entity_scores(gold, predicted)["f1"]}

    columns = data["train"].column_names
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="f1",
            bf16=row.bf16,
            **common(options, seed),
        ),
        train_dataset=data["train"].map(tokenize, batched=True, remove_columns=columns),
        eval_dataset=data["validation"].map(tokenize, batched=True, remove_columns=columns),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    model.__dict__.pop("forward", None)  # the one that Accelerate puts there computes in bfloat16
    return model, tokenizer


def train_ours(options: argparse.Namespace, row: Row, seed: int, data: DatasetDict, folder: str) -> tuple[Any, Any]:
    """Train as `finetune-ner` does; return the head and its tokenizer."""
    model, tokenizer = new_head(options.model, label_names(data["train"]), seed=seed)
    arguments = best_epoch_arguments(folder, bf16=row.bf16, **common(options, seed))
    finetune(model, tokenizer, data, arguments, max_length=MAX_LENGTH)
    return model, tokenizer


def load(options: argparse.Namespace, task: str) -> DatasetDict:
    """Read the data of a task, of the training set as much as is wanted."""
    data = load_ner(NER_TASKS[task], options.ner_data)
    limit = options.max_sentences.get(task) or options.max_sentences.get("all")
    if limit:
        data["train"] = data["train"].shuffle(seed=0).select(range(min(limit, len(data["train"]))))
    return data


def measure(options: argparse.Namespace, task: str, label: str, seed: int) -> dict[str, float]:
    """Train a head, and return its times, memory and scores."""
    row = ROWS[label]
    if row.ours:
        keep_freed_memory()  # as the command does
    data = load(options, task)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        start, start_of_cpu = time.perf_counter(), time.process_time()
        model, tokenizer = (train_ours if row.ours else train_stock)(options, row, seed, data, folder)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_of_cpu
    result = {
        "seconds": seconds / options.epochs,
        "cpu": cpu / options.epochs,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    for split in ("validation", "test"):
        predicted = predict_tags(model, tokenizer, data[split]["tokens"][:], max_length=MAX_LENGTH)
        result[split] = entity_scores(tags_of(data[split]), predicted)["f1"]
    return result


def command(task: str, label: str, seed: int) -> list[str]:
    """Return the command that does what `measure` does."""
    return [sys.executable, __file__, *sys.argv[1:], "--one", task, label, str(seed)]


def environment_of(label: str) -> dict[str, str]:
    """Return the environment of a row: threads wait as the command sets it for ours, and as PyTorch does for stock."""
    return {**(THREADS_THAT_WAIT if ROWS[label].ours else {}), **os.environ}


def two_at_once(options: argparse.Namespace) -> str:
    """Return a table of how long two heads take one after the other, and at the same time with a thread each."""
    lines = [
        "| two heads, s/epoch of both | one after the other | at once, a thread each | ratio |",
        "| --- " * 4 + "|",
    ]
    first, second = options.seeds[:2]
    for task in options.tasks:
        for label in [label for label in options.rows if ROWS[label].ours]:
            commands = [command(task, label, seed) for seed in (first, second)]
            environment = environment_of(label)
            start = time.perf_counter()
            for one in commands:
                subprocess.run(one, check=True, stdout=subprocess.DEVNULL, env=environment)
            apart = time.perf_counter() - start
            environment |= {"OMP_NUM_THREADS": "1"}
            running = [subprocess.Popen(one, stdout=subprocess.DEVNULL, env=environment) for one in commands]
            if any([one.wait() for one in running]):
                sys.exit("a training failed")
            together = time.perf_counter() - start - apart
            spent = [f"{seconds / options.epochs:.1f}" for seconds in (apart, together)]
            lines.append(f"| {task}, {label} | {' | '.join(spent)} | {apart / together:.2f} |")
    return "\n".join(lines)


def measure_apart(options: argparse.Namespace, task: str, label: str, seed: int) -> dict[str, float]:
    """Do what `measure` does in a process of its own, unless it has been done."""
    names = ("ner_data", "model", "batch", "epochs", "learning_rate", "max_sentences")
    given = {name: str(getattr(options, name)) for name in names} | {"threads": str(torch.get_num_threads())}
    file = options.work / task / f"{list(ROWS).index(label)}-{seed}.json"
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["given"] != given:
            sys.exit(f"{file} has other settings: give another --work, or remove it")
    else:
        ended = subprocess.run(
            command(task, label, seed), check=True, stdout=subprocess.PIPE, env=environment_of(label)
        )
        result = json.loads(ended.stdout.decode().rpartition("RESULT")[2])
        content = {"task": task, "row": label, "seed": seed, "given": given, **result}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2), encoding="utf-8")
        print({name: content[name] for name in content if name != "given"}, file=sys.stderr, flush=True)
    return {name: value for name, value in content.items() if isinstance(value, float)}


def interval(differences: Sequence[float]) -> str:
    """Return the mean of paired differences with the 95 % interval of Student's t, in percentage points."""
    mean = 100 * statistics.fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.2f}"
    quantile = t.ppf(0.975, len(differences) - 1)
    half = 100 * quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def table(task: str, results: Mapping[str, Mapping[int, dict[str, float]]]) -> list[str]:
    """Return the tables of a task in Markdown.

    Args:
        results: from `measure`, by row and seed.
    """
    median = {
        (label, name): statistics.median(of_seed[name] for of_seed in runs.values())
        for label, runs in results.items()
        for name in ("seconds", "cpu", "megabytes")
    }

    def ratio(label: str, base: str, name: str) -> str:
        """Return the median of the ratios of trainings with the same seed."""
        both = results.get(base, {}).keys() & results[label].keys()
        ratios = [results[base][seed][name] / results[label][seed][name] for seed in both]
        return f"{statistics.median(ratios):.2f}" if ratios else ""

    columns = ["s/epoch", "x stock fp32", "x stock bf16"]
    columns += ["CPU s/epoch", "CPU, x stock fp32", "CPU, x stock bf16", "peak MB"]
    columns = [task, *columns, "dev F1", "test F1", "seeds"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for label, runs in results.items():
        cells = [label]
        for name in ("seconds", "cpu"):
            cells += [f"{median[label, name]:.1f}", ratio(label, STOCK, name), ratio(label, STOCK_BF16, name)]
        cells.append(f"{median[label, 'megabytes']:,.0f}")
        for split in ("validation", "test"):
            cells.append(mean_and_standard_deviation(spread([run[split] for run in runs.values()])))
        lines.append(f"| {' | '.join([*cells, str(len(runs))])} |")
    lines += ["", f"| {task}, paired by seed (95 %) | dev F1 | test F1 | seeds |", "| --- | --- | --- | --- |"]
    for one, other in PAIRS:
        seeds = sorted(results.get(one, {}).keys() & results.get(other, {}).keys())
        if seeds:
            cells = [
                interval([results[one][seed][split] - results[other][seed][split] for seed in seeds])
                for split in ("validation", "test")
            ]
            lines.append(f"| {one} minus {other} | {' | '.join(cells)} | {len(seeds)} |")
    return lines


def limits(given: str) -> dict[str, int]:
    """Read what `--max_sentences` says: a number for all tasks, or TASK=NUMBER,TASK=NUMBER."""
    pairs = [part.rpartition("=") for part in given.split(",")]
    if not all(number.isdecimal() and task in ("", *NER_TASKS) for task, _, number in pairs):
        raise argparse.ArgumentTypeError(f"{given!r} is neither NUMBER nor TASK=NUMBER,TASK=NUMBER")
    return {task or "all": int(number) for task, _, number in pairs}


def parse_options(description: str | None) -> argparse.Namespace:
    """Parse the command line, which is also that of profile_finetuning.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ner_data", required=True, help="folder with the NER sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results")
    parser.add_argument("--model", help="encoder; default: the embedded all-MiniLM-L6-v2")
    parser.add_argument("--tasks", nargs="+", choices=NER_TASKS, default=["ncbi-disease", "jnlpba"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--max_sentences", type=limits, default={}, help="of training sets: NUMBER or TASK=NUMBER,...")
    parser.add_argument("--two_at_once", action="store_true", help="compare two heads in turn and at once")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model = str(options.model or embedded_model())
    if options.two_at_once and len(options.seeds) < 2:
        parser.error("--two_at_once: give two seeds")
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def quiet() -> None:
    """Do without the progress bars, warnings and caches of the libraries."""
    disable_progress_bars()
    disable_progress_bar()
    disable_caching()
    set_verbosity_error()


def main() -> None:
    """Train what is missing and write the summary after each training, or train a single head for it."""
    options = parse_options(__doc__)
    quiet()
    if options.one:
        task, label, seed = options.one
        print("RESULT", json.dumps(measure(options, task, label, int(seed))))
        return
    if options.two_at_once:
        summary = two_at_once(options)
        (options.work / "two_at_once.md").write_text(summary + "\n", encoding="utf-8")
        print(summary)
        return
    results: dict[str, dict[str, dict[int, dict[str, float]]]] = {task: {} for task in options.tasks}
    summary = ""
    for seed in options.seeds:
        for task in options.tasks:
            for label in options.rows:
                results[task].setdefault(label, {})[seed] = measure_apart(options, task, label, seed)
                tables = [table(name, runs) for name, runs in results.items() if runs]
                summary = "\n".join(line for lines in tables for line in [*lines, ""])
                (options.work / "summary.md").write_text(summary, encoding="utf-8")
    print(summary)


if __name__ == "__main__":
    main()
