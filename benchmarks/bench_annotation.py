#!/usr/bin/env python
"""Compare annotation on all engines with the stock pipeline, on the same texts and weights.

    python benchmarks/bench_annotation.py --corpus abstracts.txt.gz --model runs/mine/ner/ncbi-disease/v0.4/0 \
        --test data/ner/NCBI-disease/test.tsv --work runs/bench

A head of this project says how it was trained, and is then given one sentence after the other. The pipeline knows
nothing of that, so all rows but one read texts as a whole, as it does, with a copy of the head that doesn't say it; the
row "as the head was trained" has the head itself.

Loading is not counted. On a CPU, every row runs in its own process, with `--threads` threads. The first table is for
abstracts that fit into one window; longer ones are left out, because the pipeline would truncate them. "Bare forward
passes" run the model on batches prepared in advance. F1 counts exact offsets and types in the sentences of the test
file, read as text. Then follows where the time outside the forward passes goes. With `--long`, another table is for
interleaved sentences, abstracts and full texts, which the pipeline reads completely only with a stride.

Each row is kept in WORK/rows: an interrupted run resumes, and another WORK starts again. With `--repeats`, all rows are
measured in turn several times, and the tables give the fastest time of each. If there is a GPU, all rows run on it,
and those of ONNX and OpenVINO are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, get_args

import datasets
import torch
from transformers import AutoTokenizer, pipeline
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from bioptimus_hf.annotation.annotator import _TEXTS_AT_ONCE, Annotator
from bioptimus_hf.annotation.engine_choice import CHOICES
from bioptimus_hf.annotation.engines import TorchEngine
from bioptimus_hf.annotation.onnx_export import cached_export
from bioptimus_hf.annotation.options import Weights
from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import DocumentReader, write_documents
from bioptimus_hf.corpus.sentences import sentences_of
from bioptimus_hf.hardware import describe_hardware, keep_freed_memory
from bioptimus_hf.models import (
    DOCUMENT_WINDOW,
    PUNCTUATION_IN_WORDS,
    SENTENCE_WINDOW,
    TAGGING_SCHEME,
    load_by_name,
    load_token_classifier,
    save_head,
)
from bioptimus_hf.storage import atomic_file, atomic_folder

Spans = list[list[tuple[int, int, str]]]
"""Start, end and label of the entities in each text."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH_SIZES = {"cpu": (1, 4, 8, 16, 32), "cuda": (8, 16, 32, 64, 128)}[DEVICE]  # tried for the pipeline
STRIDE = 128
PROFILED = 300  # abstracts
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def copied_head(options: argparse.Namespace) -> str:
    """Return a copy of the head that doesn't say how it was trained."""
    folder = options.work / "head"
    if not folder.is_dir():
        model, tokenizer = load_token_classifier(options.model), load_by_name(AutoTokenizer, options.model)
        for key in (SENTENCE_WINDOW, DOCUMENT_WINDOW, TAGGING_SCHEME, PUNCTUATION_IN_WORDS):
            vars(model.config).pop(key, None)
        with atomic_folder(folder) as partial:
            save_head(model, tokenizer, partial)
    return str(folder)


def ours(
    options: argparse.Namespace, texts: list[str], *, as_trained: bool = False, **arguments: Any
) -> tuple[float, Spans]:
    """Annotate with `Annotator`, in a process prepared like that of the command."""
    prepare_process()
    annotator = Annotator(options.model if as_trained else copied_head(options), **arguments)
    list(annotator.annotate(texts[:8]))  # warm-up
    start = time.perf_counter()
    spans = [[(entity.start, entity.end, entity.label) for entity in found] for found in annotator.annotate(texts)]
    return time.perf_counter() - start, spans


def bare(options: argparse.Namespace, texts: list[str]) -> tuple[float, Spans]:
    """Run the model alone on our batches."""
    prepare_process()
    annotator = Annotator(copied_head(options))
    (group,) = annotator._groups
    engine = group.heads[0].engine
    assert isinstance(engine, TorchEngine)
    batches = []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        tokenized = group.tokenizer.tokenize(texts[first : first + _TEXTS_AT_ONCE])
        windows = [(text, window) for text in tokenized for window in text.windows]
        windows.sort(key=lambda pair: -len(pair[1].ids))
        batches += [group.tokenizer.pad([window for _, window in batch]) for batch in annotator._batches(windows)]
    batches = [{name: values.to(DEVICE) for name, values in batch.items()} for batch in batches]
    with torch.inference_mode():
        engine.logits(**batches[0])  # warm-up
        synchronize()
        start = time.perf_counter()
        for batch in batches:
            engine.logits(**batch)
        synchronize()
        return time.perf_counter() - start, []


def prepare_process() -> None:
    """Keep freed memory, as the commands do; not on a GPU, where the rows of the pipeline share the process."""
    if DEVICE == "cpu":
        keep_freed_memory()


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def stock(options: argparse.Namespace, texts: list[str], *, best: bool, **arguments: Any) -> tuple[float, Spans]:
    """Annotate with the pipeline, at its default batch size or its best."""
    annotate = pipeline("ner", model=copied_head(options), aggregation_strategy="first", device=DEVICE, **arguments)

    def timed(some: Sequence[str], size: int) -> tuple[float, Any]:
        start = time.perf_counter()
        found = annotate(list(some), batch_size=size)
        return time.perf_counter() - start, found

    timed(texts[:8], 1)  # warm-up
    size = min(BATCH_SIZES, key=lambda size: timed(texts[: 2 * BATCH_SIZES[-1]], size)[0]) if best else 1
    seconds, found = timed(texts, size)
    spans = [[(entity["start"], entity["end"], entity["entity_group"]) for entity in entities] for entities in found]
    return seconds, spans


ROWS: dict[str, Callable[[argparse.Namespace, list[str]], tuple[float, Spans]]] = {
    "pipeline, default": lambda options, texts: stock(options, texts, best=False),
    "pipeline, its best batch size": lambda options, texts: stock(options, texts, best=True),
    "pipeline, its best batch size, bf16": lambda options, texts: stock(
        options, texts, best=True, dtype=torch.bfloat16
    ),
    "bare forward passes, our batches": bare,
    **{f"ours, {choice}": partial(ours, engine=choice.engine, precision=choice.precision) for choice in CHOICES},
    "ours, torch, as the head was trained": partial(ours, as_trained=True),
}
LONG_ROWS: dict[str, Callable[[argparse.Namespace, list[str]], tuple[float, Spans]]] = {
    "pipeline, default": lambda options, texts: stock(options, texts, best=False),
    f"pipeline, stride {STRIDE}": lambda options, texts: stock(options, texts, best=False, stride=STRIDE),
    f"pipeline, stride {STRIDE}, its best batch size": lambda options, texts: stock(
        options, texts, best=True, stride=STRIDE
    ),
    **{label: row for label, row in ROWS.items() if label.startswith("ours, ")},
}
if DEVICE == "cuda":
    ROWS = {label: work for label, work in ROWS.items() if "onnx" not in label and "openvino" not in label}
    LONG_ROWS = {label: work for label, work in LONG_ROWS.items() if "onnx" not in label and "openvino" not in label}


def abstracts(options: argparse.Namespace) -> list[str]:
    """Return abstracts that fit into one window."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = load_corpus(options.corpus, max_megabytes=options.documents / 400)["text"][:]
    return [text for text in texts if len(tokenizer(text, verbose=False)["input_ids"]) <= 512][: options.documents]


def mixed_texts(options: argparse.Namespace) -> list[str]:
    """Return interleaved sentences, abstracts and full texts."""
    some = abstracts(options)
    number = max(options.documents // 10, 1)
    sentences = list(chain.from_iterable(map(sentences_of, some[:number])))[: 3 * number]
    full = load_corpus(options.long, max_megabytes=options.documents / 1000)["text"][:][: max(number // 5, 1)]
    return [text for group in zip_longest(sentences, some[number : 2 * number], full) for text in group if text]


def test_f1(options: argparse.Namespace, found: Spans) -> float:
    """Return the F1 of exact offsets and types in the test file."""
    gold = [
        {(entity.start, entity.end, entity.label) for entity in document.entities}
        for document in DocumentReader(options.test, format="conll")
    ]
    right = sum(len(entities & set(guess)) for entities, guess in zip(gold, found, strict=True))
    return 2 * right / (sum(map(len, gold)) + sum(map(len, found)))


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure a row, named "short:LABEL" or "long:LABEL" after its table."""
    table, label = name.split(":", 1)
    texts = mixed_texts(options) if table == "long" else abstracts(options)
    annotate = (LONG_ROWS if table == "long" else ROWS)[label]
    seconds, found = annotate(options, texts)
    f1 = None
    if table == "short" and found:
        f1 = test_f1(options, annotate(options, [" ".join(tokens) for tokens, _ in read_conll(options.test)])[1])
    return {"seconds": seconds, "texts": len(texts), "found": found, "f1": f1}


def measure_apart(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure a row in its own process, or on a GPU, where a start takes long, in this one; keep the result."""
    results = []
    for repeat in range(options.repeats):
        file = options.work / "rows" / f"{name} {options.documents} {repeat}.json".replace(":", " ")
        if not file.is_file():
            result = measure(options, name) if DEVICE == "cuda" else _measure_in_process(name)
            with atomic_file(file) as temporary:
                temporary.write_text(json.dumps(result), encoding="utf-8")
        results.append(json.loads(file.read_text(encoding="utf-8")))
    return min(results, key=lambda result: float(result["seconds"]))


def _measure_in_process(name: str) -> Any:
    command = [sys.executable, __file__, *sys.argv[1:], "--row", name]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(ended.stdout.decode().rpartition("RESULT")[2])


def differing(found: Spans, reference: Spans) -> str:
    """Return the number of entities that only one of the two has, and the number in the reference."""
    pairs = [(set(map(tuple, one)), set(map(tuple, other))) for one, other in zip(found, reference, strict=True)]
    return f"{sum(len(one ^ other) for one, other in pairs)} of {sum(len(other) for _, other in pairs)}"


def print_machine(options: argparse.Namespace) -> None:
    """Print the processor, the instructions it has for fewer bits, and the threads."""
    information = Path("/proc/cpuinfo")
    flags = information.read_text(encoding="utf-8").split() if information.is_file() else []
    names = [name for name in FLAGS if name in flags]
    machine = describe_hardware()
    print(f"{machine['cpu']} ({', '.join(names)}), {machine['cores']} cores, {options.threads} threads, {DEVICE}\n")


def print_profile(options: argparse.Namespace) -> None:
    """Print where the time of annotation goes on the fastest engine, in milliseconds of one thread per document."""
    texts = abstracts(options)[:PROFILED]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        write_documents(file, [Document(str(number), text) for number, text in enumerate(texts)])
        annotator = Annotator(copied_head(options), device="cpu")
        (group,) = annotator._groups
        steps = [("reading JSON lines", documents := timed(lambda: list(DocumentReader(file))))]
        steps.append(("tokenizer", timed(lambda: list(group.tokenizer._encoder.encode_texts(texts)))))
        steps.append(("tokenizer and windows", tokenized := timed(lambda: group.tokenizer.tokenize(texts))))
        windows = [window for text in tokenized[1] for window in text.windows]
        batches = [windows[at : at + 8] for at in range(0, len(windows), 8)]
        steps.append(("padding", timed(lambda: [group.tokenizer.pad(batch) for batch in batches])))
        silent = [replace(head, engine=_NoEngine(head.engine)) for head in group.heads]
        annotator._groups = [replace(group, heads=silent)]
        steps.append(("all but forward passes", timed(lambda: list(annotator.annotate(texts)))))
        steps.append(("writing JSON lines", timed(lambda: write_documents(Path(folder) / "out.jsonl", documents[1]))))
    print("\n| step | ms per document |\n| --- | --- |")
    for name, (seconds, _) in steps:
        print(f"| {name} | {1000 * seconds / len(texts):.3f} |")


class _NoEngine:
    """Stands for an engine that takes no time: every word is outside of entities."""

    def __init__(self, engine: Any) -> None:
        self.config, self.vocabulary = engine.config, engine.vocabulary
        self._outside = torch.zeros(64, 512, len(engine.config.id2label))
        self._outside[..., engine.config.label2id.get("O", 0)] = 9

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        rows, length = attention_mask.shape
        return self._outside[:rows, :length]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least CPU time of three calls, and what the last one returned."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def print_short_table(options: argparse.Namespace) -> None:
    """Measure and print the table of abstracts."""
    print("| | documents/s | x pipeline | a million: hours | entities that differ from the pipeline's | test F1 |")
    print("| --- " * 6 + "|")
    reference: Spans = []
    base = 0.0
    for label in ROWS:
        result = measure_apart(options, f"short:{label}")
        speed = result["texts"] / result["seconds"]
        reference, base = reference or result["found"], base or speed
        different = differing(result["found"], reference) if result["found"] else "-"
        f1 = f"{100 * result['f1']:.2f}" if result["f1"] is not None else "-"
        print(
            f"| {label} | {speed:.1f} | {speed / base:.2f} | {1e6 / speed / 3600:.1f} | {different} | {f1} |",
            flush=True,
        )


def print_long_table(options: argparse.Namespace) -> None:
    """Measure and print the table of mixed texts."""
    print("| sentences, abstracts, full texts | texts/s | x pipeline, stride | entities |")
    print("| --- " * 4 + "|")
    results = {label: measure_apart(options, f"long:{label}") for label in LONG_ROWS}
    base = results[f"pipeline, stride {STRIDE}"]["seconds"]
    for label, result in results.items():
        speed = result["texts"] / result["seconds"]
        entities = sum(map(len, result["found"]))
        print(f"| {label} | {speed:.1f} | {base / result['seconds']:.2f} | {entities} |")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="abstracts")
    parser.add_argument("--long", help="full texts, for a second table")
    parser.add_argument("--model", required=True, help="NER head")
    parser.add_argument("--test", required=True, help="test file of the head's task")
    parser.add_argument("--work", type=Path, required=True, help="folder for finished rows and exported heads")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1, help="measurements of each row")
    parser.add_argument("--documents", type=int, default=1000, help="abstracts in the first table")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print both tables, or measure a single row for them."""
    options = parse_options()
    disable_progress_bar()
    set_verbosity_error()
    torch.set_num_threads(options.threads)
    datasets.config.HF_DATASETS_CACHE = str(options.work / "cache")  # of exported heads
    if options.row:
        print("RESULT", json.dumps(measure(options, options.row)))
        return
    (options.work / "rows").mkdir(parents=True, exist_ok=True)
    if DEVICE == "cpu":
        for precision in get_args(Weights):
            cached_export(copied_head(options), precision)  # not while the clock runs
    print_machine(options)
    print_short_table(options)
    print_profile(options)
    if options.long:
        print_long_table(options)


if __name__ == "__main__":
    main()
