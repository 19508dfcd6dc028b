#!/usr/bin/env python
"""Annotation: ours in three precisions, and the stock pipeline, on the same texts and weights, in one run.

    python benchmarks/bench_annotation.py --corpus abstracts.txt.gz --long fulltext_bio.txt.gz \
        --model runs/mine/ner/ncbi-disease/v0.4/0 --test data/ner/NCBI-disease/test.tsv --work runs/bench

Loading is not counted; on a CPU every row runs in a process of its own. Abstracts that do not fit a window are left out
of the first table, since the pipeline cuts them off. "Bare forward passes" are the model on our batches, made
beforehand. The second table is of sentences, abstracts and full texts in turn, all of which the pipeline reads only
with a stride. F1 is that of exact places and types in the sentences of the test file, read as text. Where there is a
GPU, all rows run on it, and those of ONNX are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, pipeline
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from bioptimus_hf.annotation.annotator import _TEXTS_AT_ONCE, Annotator
from bioptimus_hf.annotation.engines import ONNX_FILE, TorchEngine
from bioptimus_hf.annotation.onnx_export import export_onnx
from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.formats import DocumentReader
from bioptimus_hf.corpus.sentences import sentences_of

Places = list[list[tuple[int, int, str]]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCHES = {"cpu": (1, 4, 8, 16, 32), "cuda": (8, 16, 32, 64, 128)}[DEVICE]  # of which the pipeline's best is taken
STRIDE = 128


def ours(options: argparse.Namespace, texts: list[str], **arguments: Any) -> tuple[float, Places]:
    annotator = Annotator(arguments.pop("folder", options.model), **arguments)
    list(annotator.annotate(texts[:8]))
    began = time.perf_counter()
    found = [[(one.start, one.end, one.label) for one in its] for its in annotator.annotate(texts)]
    return time.perf_counter() - began, found


def bare(options: argparse.Namespace, texts: list[str], *, own: bool) -> tuple[float, Places]:
    """The model alone: on our batches, or text after text as the pipeline by default."""
    annotator = Annotator(options.model)
    (group,) = annotator._groups
    (engine,) = group.engines
    assert isinstance(engine, TorchEngine)
    if not own:
        engine.model.set_attn_implementation("sdpa")
    batches = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        windows = [
            window
            for text in group.tokenizer.tokenize(texts[start : start + _TEXTS_AT_ONCE])
            for window in text.windows
        ]
        if own:
            windows.sort(key=lambda window: -len(window.ids))
        step = annotator.batch_size if own else 1
        batches += [group.tokenizer.pad(windows[at : at + step]) for at in range(0, len(windows), step)]
    batches = [{name: values.to(DEVICE) for name, values in batch.items()} for batch in batches]
    with torch.inference_mode():
        engine.logits(**batches[0])
        wait()
        began = time.perf_counter()
        for batch in batches:
            engine.logits(**batch)
        wait()
        return time.perf_counter() - began, []


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def stock(options: argparse.Namespace, texts: list[str], *, best: bool, **arguments: Any) -> tuple[float, Places]:
    work = pipeline("ner", model=options.model, aggregation_strategy="first", device=DEVICE, **arguments)

    def timed(some: Sequence[str], size: int) -> tuple[float, Any]:
        began = time.perf_counter()
        found = work(list(some), batch_size=size)
        return time.perf_counter() - began, found

    timed(texts[:8], 1)
    size = min(BATCHES, key=lambda size: timed(texts[: 2 * BATCHES[-1]], size)[0]) if best else 1
    seconds, found = timed(texts, size)
    return seconds, [[(one["start"], one["end"], one["entity_group"]) for one in its] for its in found]


ROWS: dict[str, Callable[[argparse.Namespace, list[str]], tuple[float, Places]]] = {
    "pipeline, default": lambda options, texts: stock(options, texts, best=False),
    "pipeline, its best batch size": lambda options, texts: stock(options, texts, best=True),
    "pipeline, its best batch size, bf16": lambda options, texts: stock(
        options, texts, best=True, dtype=torch.bfloat16
    ),
    "bare forward passes, text after text": lambda options, texts: bare(options, texts, own=False),
    "bare forward passes, our batches": lambda options, texts: bare(options, texts, own=True),
    "ours, fp32": lambda options, texts: ours(options, texts),
    "ours, bf16": lambda options, texts: ours(options, texts, dtype=torch.bfloat16),
    "ours, ONNX fp32": lambda options, texts: ours(options, texts, folder=options.work / "onnx-fp32"),
    "ours, ONNX int8": lambda options, texts: ours(options, texts, folder=options.work / "onnx-int8"),
}
LONG_ROWS: dict[str, Callable[[argparse.Namespace, list[str]], tuple[float, Places]]] = {
    "pipeline, default": lambda options, texts: stock(options, texts, best=False),
    f"pipeline, stride {STRIDE}": lambda options, texts: stock(options, texts, best=False, stride=STRIDE),
    f"pipeline, stride {STRIDE}, its best batch size": lambda options, texts: stock(
        options, texts, best=True, stride=STRIDE
    ),
    "ours, fp32": ROWS["ours, fp32"],
    "ours, bf16": ROWS["ours, bf16"],
    "ours, ONNX int8": ROWS["ours, ONNX int8"],
}
if DEVICE == "cuda":
    ROWS = {label: work for label, work in ROWS.items() if "ONNX" not in label}
    LONG_ROWS = {label: work for label, work in LONG_ROWS.items() if "ONNX" not in label}


def abstracts(options: argparse.Namespace) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = load_corpus(options.corpus, max_megabytes=options.documents / 400)["text"][:]
    return [text for text in texts if len(tokenizer(text, verbose=False)["input_ids"]) <= 512][: options.documents]


def mixture(options: argparse.Namespace) -> list[str]:
    """Sentences, abstracts, and full texts, in turn."""
    some = abstracts(options)
    number = max(options.documents // 10, 1)
    sentences = list(chain.from_iterable(map(sentences_of, some[:number])))[: 3 * number]
    full = load_corpus(options.long, max_megabytes=options.documents / 1000)["text"][:][: max(number // 5, 1)]
    return [text for group in zip_longest(sentences, some[number : 2 * number], full) for text in group if text]


def test_scores(options: argparse.Namespace, found: Places) -> float:
    gold = [
        {(one.start, one.end, one.label) for one in document.entities}
        for document in DocumentReader(options.test, format="conll")
    ]
    right = sum(len(its & set(guess)) for its, guess in zip(gold, found, strict=True))
    return 2 * right / (sum(map(len, gold)) + sum(map(len, found)))


def one_row(options: argparse.Namespace, name: str) -> dict[str, Any]:
    table, label = name.split(":", 1)
    texts = mixture(options) if table == "long" else abstracts(options)
    work = (LONG_ROWS if table == "long" else ROWS)[label]
    seconds, found = work(options, texts)
    f1 = None
    if table == "short" and found:
        f1 = test_scores(options, work(options, [" ".join(tokens) for tokens, _ in read_conll(options.test)])[1])
    return {"seconds": seconds, "texts": len(texts), "found": found, "f1": f1}


def run_row(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run a row in a process of its own; on a GPU, whose start takes long, in this one."""
    if DEVICE == "cuda":
        return one_row(options, name)
    said = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--row", name], check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(said.stdout.decode().rpartition("RESULT")[2])
    return result


def changed(found: Places, reference: Places) -> str:
    pairs = [(set(map(tuple, one)), set(map(tuple, other))) for one, other in zip(found, reference, strict=True)]
    return f"{sum(len(one ^ other) for one, other in pairs)} of {sum(len(other) for _, other in pairs)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--long", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    disable_progress_bar()
    set_verbosity_error()
    if options.row:
        print("RESULT", json.dumps(one_row(options, options.row)))
        return
    sizes = {}
    for precision in ("fp32", "int8") if DEVICE == "cpu" else ():
        if not (options.work / f"onnx-{precision}" / ONNX_FILE).is_file():
            export_onnx(options.model, options.work / f"onnx-{precision}", precision=precision)
        sizes[precision] = (options.work / f"onnx-{precision}" / ONNX_FILE).stat().st_size / 1e6
    print("| | documents/s | x pipeline | a million: hours | entities unlike the pipeline's | test F1 |")
    print("| --- " * 6 + "|")
    reference: Places = []
    base = 0.0
    for label in ROWS:
        result = run_row(options, f"short:{label}")
        speed = result["texts"] / result["seconds"]
        reference, base = reference or result["found"], base or speed
        unlike = changed(result["found"], reference) if result["found"] else "-"
        f1 = f"{100 * result['f1']:.2f}" if result["f1"] else "-"
        print(
            f"| {label} | {speed:.1f} | {speed / base:.2f} | {1e6 / speed / 3600:.1f} | {unlike} | {f1} |", flush=True
        )
    print("".join(f"\nONNX, {precision}: {size:.1f} MB" for precision, size in sizes.items()))
    print("| sentences, abstracts, full texts | texts/s | x pipeline, stride | entities |")
    print("| --- " * 4 + "|")
    results = {label: run_row(options, f"long:{label}") for label in LONG_ROWS}
    base = results[f"pipeline, stride {STRIDE}"]["seconds"]
    for label, result in results.items():
        speed = result["texts"] / result["seconds"]
        entities = sum(map(len, result["found"]))
        print(f"| {label} | {speed:.1f} | {base / result['seconds']:.2f} | {entities} |")


if __name__ == "__main__":
    main()
