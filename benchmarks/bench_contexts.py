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
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import ahocorasick
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, BertTokenizer

from bioptimus_hf.artifacts import peak_memory_mb
from bioptimus_hf.contexts import find_contexts
from bioptimus_hf.corpus import load_corpus, split_sentences
from bioptimus_hf.matching import Matcher, word_rules
from bioptimus_hf.vocabulary import compare_vocabularies

ROWS = 10_000
QIK_FIND_SHARE = 0.001  # of the text and of the words: its cost is their product, so the rest is extrapolated


def cpu_seconds() -> float:
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def measure(work: Callable[[], int], repeat: int = 3) -> tuple[float, int]:
    """Return the least CPU seconds of some runs, and what they returned."""
    best, result = float("inf"), 0
    for _ in range(repeat):
        start = cpu_seconds()
        result = work()
        best = min(best, cpu_seconds() - start)
        if best > 20:
            break
    return best, result


def ours(batches: Sequence[pa.Array], words: Sequence[str], tokenizer: BertTokenizer) -> int:
    matcher = Matcher(words, word_rules(tokenizer))
    return sum(len(matcher.match(batch).row) for batch in batches)


def ripgrep(text: Path, words: Sequence[str], *options: str) -> int:
    patterns = text.with_suffix(".words")
    patterns.write_text("\n".join(words) + "\n", encoding="utf-8")
    command = ["rg", "-j1", "-i", "-F", "-w", "-o", "--no-filename", *options, "-f", str(patterns), str(text)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "PATH": path})
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
    file = work / "sentences.txt"
    file.write_text("\n".join(text.replace("\n", " ") for text in texts), encoding="utf-8")
    only_words = BertTokenizer(vocab={t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])})
    print(f"\n{'finder alone, MB per CPU second':<44}{'words':>8}{'MB/s':>10}{'found':>12}{'ours is':>9}")
    for number in (100, 1000, len(words)):
        some = words[:number]
        seconds, found = measure(lambda some=some: ours(batches, some, only_words))
        print(f"{'ours, from Arrow':<44}{number:>8}{megabytes / seconds:>10.1f}{found:>12}", flush=True)
        peers: dict[str, Callable[[], int]] = {
            "ripgrep -i -F -w -o --no-unicode": lambda some=some: ripgrep(file, some, "--no-unicode"),
            "pyahocorasick": lambda some=some: aho_corasick(texts, some),
        }
        if number <= 1000:  # with Unicode's rules for letters; at all words it takes many minutes
            peers["ripgrep -i -F -w -o"] = lambda some=some: ripgrep(file, some)
        for name, peer in peers.items():
            peer_seconds, peer_found = measure(peer, repeat=1)
            row = f"{megabytes / peer_seconds:>10.1f}{peer_found:>12}{peer_seconds / seconds:>8.1f}x"
            print(f"{name:<44}{number:>8}{row}", flush=True)
    lines = texts[:: round(1 / QIK_FIND_SHARE)]
    some = random.Random(0).sample(words, max(1, round(len(words) * QIK_FIND_SHARE)))
    model_seconds, _ = measure(lambda: qik_find(lines, some), repeat=1)
    model_seconds *= len(words) / len(some) * len(texts) / len(lines)
    row = f"{megabytes / model_seconds:>10.5f}{'-':>12}{model_seconds / seconds:>8.0f}x"
    print(f"{'model of qik-find, extrapolated':<44}{len(words):>8}{row}")


def pieces(batches: list[pa.Array], megabytes: float, new: Sequence[str], tokenizer: BertTokenizer) -> None:
    seconds, found = measure(lambda: ours(batches, new, tokenizer))
    print(f"{'ours, with pieces inside words':<44}{len(new):>8}{megabytes / seconds:>10.1f}{found:>12}")


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
        seconds, _ = measure(step)
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
    start = time.perf_counter()
    sentences = Dataset.from_parquet(str(parquet), cache_dir=str(work / "cache"))
    read = time.perf_counter()
    contexts = find_contexts(sentences, new, tokenizer=tokenizer, num_proc=processes)
    found = time.perf_counter()
    contexts.save_to_disk(str(work / "contexts"))
    end = time.perf_counter()
    memory = peak_memory_mb()
    return {"wall": end - start, "read": read - start, "find": found - read, "save": end - found, **memory}


def whole_way(table: pa.Table, sizes: Sequence[int], new: Sequence[str], tokenizer: BertTokenizer, work: Path) -> None:
    print(f"\n{'parquet to data set on disk, with pieces':<44}{'MB':>8}{'MB/s':>10}   where the seconds go; peak MB")
    for number in sizes:
        parquet = work / f"sentences-{number}.parquet"
        with pq.ParquetWriter(parquet, pa.schema([("text", pa.string()), ("document", pa.int64())])) as writer:
            size = sum(_write(writer, copy) for copy in copies(table, number)) / 1e6
        for processes in (1, 2):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                took = pool.apply(end_to_end, (parquet, new, tokenizer, processes, work))
            name = f"{processes} process{'es' * (processes > 1)}"
            detail = ", ".join(f"{key} {value:.1f}" for key, value in took.items())
            print(f"{name:<44}{size:>8.0f}{size / took['wall']:>10.1f}   {detail}", flush=True)


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
    start = time.perf_counter()
    sentences = split_sentences(documents)
    table = sentences.with_format("arrow")[:]
    split = time.perf_counter() - start
    batches = [pa.concat_arrays(batch["text"].chunks) for batch in sentences.with_format("arrow").iter(ROWS)]
    megabytes = sum(pc.sum(pc.binary_length(batch)).as_py() for batch in batches) / 1e6
    print(f"{len(documents)} documents, {len(sentences)} sentences, {megabytes:.1f} MB")
    print(f"sentence splitting (sentencex), unless cached: {split:.1f} s, {megabytes / split:.0f} MB/s")
    texts = table["text"].to_pylist()
    compare_finders(texts, batches, megabytes, words, options.work)
    pieces(batches, megabytes, new, tokenizer)
    parquet = options.work / "sentences.parquet"
    pq.write_table(table, parquet)
    floors(texts, batches, megabytes, parquet)
    whole_way(table, options.copies, new, tokenizer, options.work)


if __name__ == "__main__":
    main()
