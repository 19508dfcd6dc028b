#!/usr/bin/env python
"""Compare the search for tokens in text with common tools, on the same sentences.

    pip install -e '.[bench]'
    python benchmarks/bench_contexts.py --corpus abstracts.txt.gz --tokenizer runs/mine/tokenizer \
        --base_model google-bert/bert-base-uncased --work runs/bench

Prints the speed of sentence splitting; MB of text per CPU second for all (word, sentence) pairs of 100, 1,000 and all
new whole-word tokens (ASCII letters and digits, so that every tool can find them); the pairs that qik-find's matching
would miss; the cost of word pieces; the speed of simple operations for comparison; and the end-to-end speed, from a
parquet file of sentences to the sampled data set on disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import ahocorasick
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from datasets import Dataset, disable_caching, disable_progress_bars, enable_caching
from memory_watch import MemoryWatch
from transformers import AutoTokenizer, BertTokenizer

from bioptimus_hf.contexts import kernels, matching
from bioptimus_hf.contexts.finder import BatchFinder, find_contexts
from bioptimus_hf.contexts.matching import Matcher, word_rules
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies

ROWS = 10_000
UNICODE_RIPGREP_SAMPLE = 50  # every 50th sentence
QIK_FIND_SHARE = 0.001  # of the text and of the words; qik-find's cost is proportional to their product
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def cpu_seconds() -> float:
    """Return the CPU time of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(*functions: Callable[[], int], repeat: int = 5) -> list[tuple[float, int]]:
    """Return median CPU seconds and result of each function. They take turns, so that noise affects all of them."""
    seconds: list[list[float]] = [[] for _ in functions]
    results = [0] * len(functions)
    for _ in range(repeat):
        for number, function in enumerate(functions):
            start = cpu_seconds()
            results[number] = function()
            seconds[number].append(cpu_seconds() - start)
    return [(statistics.median(times), result) for times, result in zip(seconds, results, strict=True)]


def ours(batches: Sequence[pa.Array], words: Sequence[str], tokenizer: BertTokenizer) -> int:
    """Count the occurrences that our matcher finds."""
    matcher = Matcher(words, word_rules(tokenizer))
    return sum(len(matcher.match(batch).row) for batch in batches)


def ripgrep(text: Path, words: Sequence[str], *options: str) -> int:
    """Count the occurrences that ripgrep finds."""
    patterns = text.with_suffix(".words")
    patterns.write_text("\n".join(words) + "\n", encoding="utf-8")
    command = ["rg", "-j1", "-i", "-F", "-w", "-o", "--no-filename", *options, "-f", str(patterns), str(text)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(command, stdout=subprocess.PIPE, check=False, env={**os.environ, "PATH": path})
    if found.returncode > 1:  # 1 means that nothing was found
        raise SystemExit(f"ripgrep failed on {text}")
    return found.stdout.count(b"\n")


def aho_corasick(texts: Sequence[str], words: Sequence[str]) -> int:
    """Count the occurrences that pyahocorasick finds, without those inside longer words."""
    automaton = ahocorasick.Automaton()
    for number, word in enumerate(words):
        automaton.add_word(word, (number, len(word)))
    automaton.make_automaton()
    found = 0
    for text in texts:
        lowered = f" {text.lower()} "
        for end, (_, length) in automaton.iter(lowered):
            found += not lowered[end + 1].isalnum() and not lowered[end - length].isalnum()
    return found


def qik_find(lines: Sequence[str], words: Sequence[str]) -> int:
    """Model qik-find's loop: a job per word, a regular expression compiled per line, a chunk ends at its first hit."""
    found = 0
    for word in words:
        for line in lines:
            re.purge()  # qik-find compiles the expression for each line
            if re.compile(f" {word} ").search(" ".join(line.split()[:80])):
                found += 1
                break
    return found


def compare_finders(texts: list[str], batches: list[pa.Array], megabytes: float, words: list[str], work: Path) -> None:
    """Print the speed of all tools."""
    file, sample, empty = work / "sentences.txt", work / "some-sentences.txt", work / "no-sentences.txt"
    lines = [text.replace("\n", " ") for text in texts]
    file.write_text("\n".join(lines), encoding="utf-8")
    sample.write_text("\n".join(lines[::UNICODE_RIPGREP_SAMPLE]), encoding="utf-8")
    empty.write_text("")
    only_words = BertTokenizer(vocab={token: number for number, token in enumerate(SPECIAL_TOKENS)})
    ours(batches[:1], words, only_words)  # compiles the kernels if this machine has no compiled ones yet
    print(f"\n{'finder alone, MB per CPU second':<44}{'words':>8}{'MB/s':>10}{'found':>12}{'ours is':>9}")
    for number in (100, 1000, len(words)):
        some = words[:number]
        tools: dict[str, Callable[[], int]] = {
            "ours, from Arrow": lambda some=some: ours(batches, some, only_words),
            "ripgrep -i -F -w -o --no-unicode": lambda some=some: ripgrep(file, some, "--no-unicode"),
            "pyahocorasick": lambda some=some: aho_corasick(texts, some),
        }
        results = measure(*tools.values())
        own_seconds = results[0][0]
        for name, (seconds, found) in zip(tools, results, strict=True):
            ratio = f"{seconds / own_seconds:>8.1f}x"
            print(f"{name:<44}{number:>8}{megabytes / seconds:>10.1f}{found:>12}{ratio}", flush=True)
        # With Unicode letters, as in our finder: on a sample, because it takes long, and with start-up subtracted.
        [(start_up, _), (seconds, _)] = measure(
            lambda some=some: ripgrep(empty, some), lambda some=some: ripgrep(sample, some), repeat=1
        )
        seconds = start_up + (seconds - start_up) * megabytes * 1e6 / sample.stat().st_size
        row = f"{megabytes / seconds:>10.1f}{'-':>12}{seconds / own_seconds:>8.1f}x"
        print(f"{f'ripgrep -i -F -w -o, on 1/{UNICODE_RIPGREP_SAMPLE}':<44}{number:>8}{row}", flush=True)
    seconds = extrapolated_qik_find(texts, words)
    row = f"{megabytes / seconds:>10.5f}{'-':>12}{seconds / own_seconds:>8.0f}x"
    print(f"{'model of qik-find, extrapolated':<44}{len(words):>8}{row}")


def extrapolated_qik_find(texts: list[str], words: list[str]) -> float:
    """Return the CPU seconds that the model of qik-find would take for all words and texts."""
    some_texts = texts[:: round(1 / QIK_FIND_SHARE)]
    some_words = random.Random(0).sample(words, max(1, round(len(words) * QIK_FIND_SHARE)))
    [(seconds, _)] = measure(lambda: qik_find(some_texts, some_words), repeat=1)
    return seconds * len(words) / len(some_words) * len(texts) / len(some_texts)


def print_misses(texts: list[str], batches: list[pa.Array], words: list[str]) -> None:
    """Print how many (word, sentence) pairs qik-find's matching would find, with sentences as lines."""
    wanted = set(words)

    def split_at_spaces(*, lowered: bool, edges: bool, first: int | None) -> tuple[int, int]:
        pairs, found = 0, set()
        for text in texts:
            strings = (text.lower() if lowered else text).split()[:first]
            contained = wanted.intersection(strings if edges else strings[1:-1])
            pairs += len(contained)
            found |= contained
        return pairs, len(found)

    matcher = Matcher(words, word_rules(BertTokenizer(vocab={"[UNK]": 0})))
    matches = [matcher.match(batch) for batch in batches]
    pairs = sum(len(np.unique(match.row.astype(np.int64) * len(words) + match.token)) for match in matches)
    found = len(np.unique(np.concatenate([match.token for match in matches])))
    rows = {
        'qik-find: " word ", case-sensitive, first 80 words': split_at_spaces(lowered=False, edges=False, first=80),
        "and in any case": split_at_spaces(lowered=True, edges=False, first=80),
        "and at the edges of a line": split_at_spaces(lowered=True, edges=True, first=80),
        "and beyond 80 words": split_at_spaces(lowered=True, edges=True, first=None),
        "and beside punctuation: ours": (pairs, found),
    }
    print(f"\n{'found by':<52}{'pairs':>12}{'':>6}{'words':>8}")
    for name, (some_pairs, some_found) in rows.items():
        print(f"{name:<52}{some_pairs:>12}{some_pairs / pairs:>6.0%}{some_found:>8}{some_found / found:>6.0%}")


def print_cost_of_pieces(
    batches: list[pa.Array], megabytes: float, new: Sequence[str], tokenizer: BertTokenizer
) -> None:
    """Print the speed of a search that includes word pieces, and how its time is spent."""
    [(seconds, found)] = measure(lambda: ours(batches, new, tokenizer))
    print(f"{'ours, with pieces inside words':<44}{len(new):>8}{megabytes / seconds:>10.1f}{found:>12}")
    spent: Counter[str] = Counter()
    finder = BatchFinder(new, word_rules(tokenizer), per_token=64, seed=0)
    timed = [
        (kernels, "scan", "scanning"),
        (kernels, "expand", "listing occurrences"),
        (kernels, "choose", "choosing the sample"),
        (kernels, "hash_texts", "hashing sentences"),
        (matching._Words, "resolve", "splitting new words"),
    ]
    with ExitStack() as stack:
        for owner, name, label in timed:
            stack.enter_context(mock.patch.object(owner, name, timing(getattr(owner, name), label, spent)))
        start = time.perf_counter()
        for batch in batches:
            finder(pa.table({"text": batch}), range(len(batch)))
        total = time.perf_counter() - start
    spent["the rest (tables, copies, Python)"] = total - sum(spent.values())
    print(f"\n{'how a finder with pieces spends its time':<52}{'seconds':>10}{'share':>8}")
    for label, seconds in spent.most_common():
        print(f"{label:<52}{seconds:>10.2f}{seconds / total:>8.0%}")


def timing(function: Callable[..., Any], label: str, spent: Counter[str]) -> Callable[..., Any]:
    """Wrap a function so that its time is added to `spent[label]`."""

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[label] += time.perf_counter() - start

    return timed


def print_simple_operations(texts: list[str], batches: list[pa.Array], megabytes: float, parquet: Path) -> None:
    """Print the speed of simple operations on the same text."""
    content = "\n".join(texts).encode()
    steps: dict[str, Callable[[], int]] = {
        "memcpy": lambda: len(bytearray(content)),
        "bytes.translate": lambda: len(content.translate(bytes(range(256)))),
        "to_pylist": lambda: sum(len(batch.to_pylist()) for batch in batches),
        "word objects (str.split)": lambda: sum(len(text.split()) for text in texts),
        "read parquet": lambda: len(pq.read_table(parquet, use_threads=False)),
    }
    print(f"\n{'simple operations':<52}{'MB/s':>10}")
    for name, step in steps.items():
        [(seconds, _)] = measure(step)
        print(f"{name:<52}{megabytes / seconds:>10.0f}")


def copies(table: pa.Table, number: int) -> Iterator[pa.Table]:
    """Yield copies of the sentences, each with a mark that makes its sentences distinct."""
    for copy in range(number):
        texts = pc.binary_join_element_wise(table["text"], f"[{copy}]", " ")
        yield pa.table({"text": texts, "document": pc.add(table["document"], copy * len(table))})


def end_to_end(
    parquet: Path, new: Sequence[str], tokenizer: BertTokenizer, processes: int, work: Path
) -> dict[str, float]:
    """Read a parquet file of sentences, find contexts, and save the data set; runs in its own process.

    Returns:
        Seconds of each step, and peak memory in MB.
    """
    disable_progress_bars()
    shutil.rmtree(work / "cache", ignore_errors=True)
    shutil.rmtree(work / "contexts", ignore_errors=True)
    with MemoryWatch() as memory:
        start = time.perf_counter()
        # By default the reader prefetches the whole file and keeps it in memory.
        scan = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
        sentences = Dataset.from_parquet(str(parquet), cache_dir=str(work / "cache"), fragment_scan_options=scan)
        read = time.perf_counter()
        contexts = find_contexts(sentences, new, tokenizer=tokenizer, num_proc=processes)
        found = time.perf_counter()
        contexts.save_to_disk(str(work / "contexts"))
        end = time.perf_counter()
    return {"all": end - start, "read": read - start, "find": found - read, "save": end - found, **memory.peak}


def print_end_to_end(
    table: pa.Table, sizes: Sequence[int], new: Sequence[str], tokenizer: BertTokenizer, work: Path
) -> None:
    """Print speed and memory from a parquet file to the data set on disk, for one and two processes."""
    print(
        f"\n{'parquet to data set on disk, with pieces':<44}{'MB':>8}{'MB/s':>10}   seconds, and peak MB, medians of 3"
    )
    results: dict[int, list[tuple[float, dict[str, float]]]] = {1: [], 2: []}
    for number in sizes:
        parquet = work / f"sentences-{number}.parquet"
        with pq.ParquetWriter(parquet, pa.schema([("text", pa.string()), ("document", pa.int64())])) as writer:
            size = sum(_write(writer, copy) for copy in copies(table, number)) / 1e6
        for processes in results:
            runs = []
            for _ in range(3):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    runs.append(pool.submit(end_to_end, parquet, new, tokenizer, processes, work).result())
            medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            results[processes].append((size, medians))
            detail = ", ".join(f"{key} {value:.1f}" for key, value in medians.items())
            speed = size / medians["all"]
            print(f"{_processes(processes):<44}{size:>8.0f}{speed:>10.1f}   {detail}", flush=True)
    for processes, measured in results.items():
        if len(measured) > 1:
            (size, first), (larger, last) = measured[0], measured[-1]
            slopes = {key: (last[key] - first[key]) / (larger - size) * 1000 for key in MemoryWatch().peak}
            detail = ", ".join(f"{key} {slope:.0f}" for key, slope in slopes.items())
            print(f"additional MB of memory per GB of text, {_processes(processes)}: {detail}")


def _processes(number: int) -> str:
    return f"{number} process{'es' * (number > 1)}"


def _write(writer: pq.ParquetWriter, table: pa.Table) -> int:
    writer.write_table(table, row_group_size=100_000)
    return int(pc.sum(pc.binary_length(table["text"])).as_py())


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True, help="the new tokenizer")
    parser.add_argument("--base_model", required=True, help="model that lacks the new tokens")
    parser.add_argument("--work", type=Path, required=True, help="folder for the files of this benchmark")
    parser.add_argument(
        "--copies", nargs="*", type=int, default=[10, 20], help="copies of the corpus in the end-to-end measurements"
    )
    return parser.parse_args()


def main() -> None:
    """Read and split the corpus, then print all measurements."""
    options = parse_options()
    options.work.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    new = compare_vocabularies(AutoTokenizer.from_pretrained(options.base_model), tokenizer).new
    words = [token for token in new if token.isascii() and token.isalnum()]
    random.Random(0).shuffle(words)
    documents = load_corpus(options.corpus)
    disable_caching()  # otherwise only the first run on a machine would split sentences
    start = time.perf_counter()
    sentences = split_sentences(documents)
    split_seconds = time.perf_counter() - start
    enable_caching()
    table = sentences.with_format("arrow")[:]
    batches = [pa.concat_arrays(batch["text"].chunks) for batch in sentences.with_format("arrow").iter(ROWS)]
    megabytes = sum(pc.sum(pc.binary_length(batch)).as_py() for batch in batches) / 1e6
    texts = table["text"].to_pylist()
    other = sum(not text.isascii() for text in texts) / len(texts)
    print(f"{len(documents)} documents, {len(sentences)} sentences, {megabytes:.1f} MB, {other:.1%} not pure ASCII")
    speed = megabytes / split_seconds
    print(f"sentence splitting, one process, Arrow to Arrow: {split_seconds:.1f} s, {speed:.0f} MB/s")
    compare_finders(texts, batches, megabytes, words, options.work)
    print_misses(texts, batches, words)
    print_cost_of_pieces(batches, megabytes, new, tokenizer)
    parquet = options.work / "sentences.parquet"
    pq.write_table(table, parquet)
    print_simple_operations(texts, batches, megabytes, parquet)
    print_end_to_end(table, options.copies, new, tokenizer, options.work)


if __name__ == "__main__":
    main()
