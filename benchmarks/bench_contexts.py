#!/usr/bin/env python
"""Finding tokens in text: ours and the tools in use, on the same sentences, in one run.

    pip install -e '.[bench]'
    python benchmarks/bench_contexts.py --corpus abstracts.txt.gz --tokenizer runs/mine/tokenizer \
        --base_model google-bert/bert-base-uncased --work runs/bench

Prints MB of text per CPU second for all (word, sentence) pairs of 100, 1,000 and all new whole-word tokens (ASCII
letters and digits, so that every tool can find them), then what word pieces cost, the floors, sentence splitting, and
the whole way from a parquet file of sentences to the sampled data set on disk.
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
UNICODE_RIPGREP_SHARE = 50
QIK_FIND_SHARE = 0.001  # of the text and of the words: its cost is their product, so the rest is extrapolated


def cpu_seconds() -> float:
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def measure(*works: Callable[[], int], repeat: int = 5) -> list[tuple[float, int]]:
    """Return of each work its median CPU seconds, and what it returned; they take turns, so that noise meets all."""
    seconds: list[list[float]] = [[] for _ in works]
    results = [0] * len(works)
    for _ in range(repeat):
        for number, work in enumerate(works):
            start = cpu_seconds()
            results[number] = work()
            seconds[number].append(cpu_seconds() - start)
    return [(statistics.median(taken), result) for taken, result in zip(seconds, results, strict=True)]


def ours(batches: Sequence[pa.Array], words: Sequence[str], tokenizer: BertTokenizer) -> int:
    matcher = Matcher(words, word_rules(tokenizer))
    return sum(len(matcher.match(batch).row) for batch in batches)


def ripgrep(text: Path, words: Sequence[str], *options: str) -> int:
    patterns = text.with_suffix(".words")
    patterns.write_text("\n".join(words) + "\n", encoding="utf-8")
    command = ["rg", "-j1", "-i", "-F", "-w", "-o", "--no-filename", *options, "-f", str(patterns), str(text)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(command, stdout=subprocess.PIPE, check=False, env={**os.environ, "PATH": path})
    if found.returncode > 1:  # 1 says that nothing was found
        raise SystemExit(f"ripgrep failed on {text}")
    return found.stdout.count(b"\n")


def aho_corasick(texts: Sequence[str], words: Sequence[str]) -> int:
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
    """Model qik-find's loop: a job a word, a regular expression compiled a line, the first hit ends the chunk."""
    found = 0
    for word in words:
        for line in lines:
            re.purge()  # it compiles anew for each line
            if re.compile(f" {word} ").search(" ".join(line.split()[:80])):
                found += 1
                break
    return found


def compare_finders(texts: list[str], batches: list[pa.Array], megabytes: float, words: list[str], work: Path) -> None:
    file, part, empty = work / "sentences.txt", work / "some-sentences.txt", work / "no-sentences.txt"
    empty.write_text("")
    lines = [text.replace("\n", " ") for text in texts]
    file.write_text("\n".join(lines), encoding="utf-8")
    part.write_text("\n".join(lines[::UNICODE_RIPGREP_SHARE]), encoding="utf-8")
    only_words = BertTokenizer(vocab={t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])})
    ours(batches[:1], words, only_words)  # compiles the kernels, if that has never been done on this machine
    print(f"\n{'finder alone, MB per CPU second':<44}{'words':>8}{'MB/s':>10}{'found':>12}{'ours is':>9}")
    for number in (100, 1000, len(words)):
        some = words[:number]
        peers: dict[str, Callable[[], int]] = {
            "ours, from Arrow": lambda some=some: ours(batches, some, only_words),
            "ripgrep -i -F -w -o --no-unicode": lambda some=some: ripgrep(file, some, "--no-unicode"),
            "pyahocorasick": lambda some=some: aho_corasick(texts, some),
        }
        results = measure(*peers.values())
        seconds = results[0][0]
        for name, (peer_seconds, found) in zip(peers, results, strict=True):
            ratio = f"{peer_seconds / seconds:>8.1f}x"
            print(f"{name:<44}{number:>8}{megabytes / peer_seconds:>10.1f}{found:>12}{ratio}", flush=True)
        # With Unicode's rules for letters, as ours has them: on a part of the text, since it takes long.
        [(start_seconds, _), (peer_seconds, _)] = measure(
            lambda some=some: ripgrep(empty, some), lambda some=some: ripgrep(part, some), repeat=1
        )
        peer_seconds = start_seconds + (peer_seconds - start_seconds) * megabytes * 1e6 / part.stat().st_size
        row = f"{megabytes / peer_seconds:>10.1f}{'-':>12}{peer_seconds / seconds:>8.1f}x"
        print(f"{f'ripgrep -i -F -w -o, on 1/{UNICODE_RIPGREP_SHARE}':<44}{number:>8}{row}", flush=True)
    some_lines = texts[:: round(1 / QIK_FIND_SHARE)]
    some = random.Random(0).sample(words, max(1, round(len(words) * QIK_FIND_SHARE)))
    [(model_seconds, _)] = measure(lambda: qik_find(some_lines, some), repeat=1)
    model_seconds *= len(words) / len(some) * len(texts) / len(some_lines)
    row = f"{megabytes / model_seconds:>10.5f}{'-':>12}{model_seconds / seconds:>8.0f}x"
    print(f"{'model of qik-find, extrapolated':<44}{len(words):>8}{row}")


def losses(texts: list[str], batches: list[pa.Array], words: list[str]) -> None:
    """Print what qik-find's way to match would find of all (word, sentence) pairs, on sentences as lines."""
    wanted = set(words)

    def matched(*, lowered: bool, edges: bool, first: int | None) -> tuple[int, int]:
        pairs, found = 0, set()
        for text in texts:
            parts = (text.lower() if lowered else text).split()[:first]
            held = wanted.intersection(parts if edges else parts[1:-1])
            pairs += len(held)
            found |= held
        return pairs, len(found)

    matcher = Matcher(words, word_rules(BertTokenizer(vocab={"[UNK]": 0})))
    matches = [matcher.match(batch) for batch in batches]
    pairs = sum(len(np.unique(match.row.astype(np.int64) * len(words) + match.token)) for match in matches)
    found = len(np.unique(np.concatenate([match.token for match in matches])))
    rows = {
        'qik-find: " word ", case as it is, first 80 words': matched(lowered=False, edges=False, first=80),
        "and whatever the case": matched(lowered=True, edges=False, first=80),
        "and at the edges of a line": matched(lowered=True, edges=True, first=80),
        "and beyond 80 words": matched(lowered=True, edges=True, first=None),
        "and beside punctuation: ours": (pairs, found),
    }
    print(f"\n{'what a match loses':<52}{'pairs':>12}{'':>6}{'words':>8}")
    for name, (some_pairs, some_found) in rows.items():
        print(f"{name:<52}{some_pairs:>12}{some_pairs / pairs:>6.0%}{some_found:>8}{some_found / found:>6.0%}")


def pieces(batches: list[pa.Array], megabytes: float, new: Sequence[str], tokenizer: BertTokenizer) -> None:
    """Print what it takes to find pieces too, and where the time goes."""
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
        whole = time.perf_counter() - start
    spent["the rest (tables, copies, Python)"] = whole - sum(spent.values())
    print(f"\n{'where the time of a finder with pieces goes':<52}{'seconds':>10}{'share':>8}")
    for label, seconds in spent.most_common():
        print(f"{label:<52}{seconds:>10.2f}{seconds / whole:>8.0%}")


def timing(function: Callable[..., Any], label: str, spent: Counter[str]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[label] += time.perf_counter() - start

    return timed


def floors(texts: list[str], batches: list[pa.Array], megabytes: float, parquet: Path) -> None:
    content = "\n".join(texts).encode()
    steps: dict[str, Callable[[], int]] = {
        "memcpy": lambda: len(bytearray(content)),
        "bytes.translate": lambda: len(content.translate(bytes(range(256)))),
        "to_pylist": lambda: sum(len(batch.to_pylist()) for batch in batches),
        "word objects (str.split)": lambda: sum(len(text.split()) for text in texts),
        "read parquet": lambda: len(pq.read_table(parquet, use_threads=False)),
    }
    print(f"\n{'floors':<52}{'MB/s':>10}")
    for name, step in steps.items():
        [(seconds, _)] = measure(step)
        print(f"{name:<52}{megabytes / seconds:>10.0f}")


def copies(table: pa.Table, number: int) -> Iterator[pa.Table]:
    """Yield the sentences again and again, each time as other sentences."""
    for copy in range(number):
        texts = pc.binary_join_element_wise(table["text"], f"[{copy}]", " ")
        yield pa.table({"text": texts, "document": pc.add(table["document"], copy * len(table))})


def end_to_end(
    parquet: Path, new: Sequence[str], tokenizer: BertTokenizer, processes: int, work: Path
) -> dict[str, float]:
    """From a parquet file of sentences to the sampled data set on disk; runs in a process of its own."""
    disable_progress_bars()
    shutil.rmtree(work / "cache", ignore_errors=True)
    shutil.rmtree(work / "contexts", ignore_errors=True)
    with MemoryWatch() as memory:
        start = time.perf_counter()
        # By default the reader asks for all of the file beforehand, and holds it.
        scan = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
        sentences = Dataset.from_parquet(str(parquet), cache_dir=str(work / "cache"), fragment_scan_options=scan)
        read = time.perf_counter()
        contexts = find_contexts(sentences, new, tokenizer=tokenizer, num_proc=processes)
        found = time.perf_counter()
        contexts.save_to_disk(str(work / "contexts"))
        end = time.perf_counter()
    return {"wall": end - start, "read": read - start, "find": found - read, "save": end - found, **memory.peak}


def whole_way(table: pa.Table, sizes: Sequence[int], new: Sequence[str], tokenizer: BertTokenizer, work: Path) -> None:
    print(
        f"\n{'parquet to data set on disk, with pieces':<44}{'MB':>8}{'MB/s':>10}   seconds, and peak MB, medians of 3"
    )
    peaks: dict[int, list[tuple[float, dict[str, float]]]] = {1: [], 2: []}
    for number in sizes:
        parquet = work / f"sentences-{number}.parquet"
        with pq.ParquetWriter(parquet, pa.schema([("text", pa.string()), ("document", pa.int64())])) as writer:
            size = sum(_write(writer, copy) for copy in copies(table, number)) / 1e6
        for processes in (1, 2):
            runs = []
            for _ in range(3):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    runs.append(pool.submit(end_to_end, parquet, new, tokenizer, processes, work).result())
            took = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            peaks[processes].append((size, took))
            name = f"{processes} process{'es' * (processes > 1)}"
            detail = ", ".join(f"{key} {value:.1f}" for key, value in took.items())
            print(f"{name:<44}{size:>8.0f}{size / took['wall']:>10.1f}   {detail}", flush=True)
    for processes, measured in peaks.items():
        if len(measured) > 1:
            (size, first), (larger, last) = measured[0], measured[-1]
            slopes = {key: (last[key] - first[key]) / (larger - size) * 1000 for key in MemoryWatch().peak}
            detail = ", ".join(f"{key} {slope:.0f}" for key, slope in slopes.items())
            print(f"memory, MB more for each GB more, {processes} process{'es' * (processes > 1)}: {detail}")


def _write(writer: pq.ParquetWriter, table: pa.Table) -> int:
    writer.write_table(table, row_group_size=100_000)
    return int(pc.sum(pc.binary_length(table["text"])).as_py())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True, help="the new tokenizer")
    parser.add_argument("--base_model", required=True, help="whose tokens are not new")
    parser.add_argument("--work", type=Path, required=True, help="folder for files of this run")
    parser.add_argument("--copies", nargs="*", type=int, default=[10, 20], help="sizes of the whole way, in corpora")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    new = compare_vocabularies(AutoTokenizer.from_pretrained(options.base_model), tokenizer).new
    words = [token for token in new if token.isascii() and token.isalnum()]
    random.Random(0).shuffle(words)
    documents = load_corpus(options.corpus)
    disable_caching()  # or only the first run on a machine would split anything
    start = time.perf_counter()
    sentences = split_sentences(documents)
    split = time.perf_counter() - start
    enable_caching()
    table = sentences.with_format("arrow")[:]
    batches = [pa.concat_arrays(batch["text"].chunks) for batch in sentences.with_format("arrow").iter(ROWS)]
    megabytes = sum(pc.sum(pc.binary_length(batch)).as_py() for batch in batches) / 1e6
    texts = table["text"].to_pylist()
    other = sum(not text.isascii() for text in texts) / len(texts)
    print(f"{len(documents)} documents, {len(sentences)} sentences, {megabytes:.1f} MB, {other:.1%} not plain ASCII")
    print(f"sentence splitting, one process, Arrow to Arrow: {split:.1f} s, {megabytes / split:.0f} MB/s")
    compare_finders(texts, batches, megabytes, words, options.work)
    losses(texts, batches, words)
    pieces(batches, megabytes, new, tokenizer)
    parquet = options.work / "sentences.parquet"
    pq.write_table(table, parquet)
    floors(texts, batches, megabytes, parquet)
    whole_way(table, options.copies, new, tokenizer, options.work)


if __name__ == "__main__":
    main()
