"""The search in parts: the rows of `find_contexts`, whatever is killed, fails or has been done before."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers import ROOT, tiny_vocabulary
from transformers import BertTokenizer

from bioptimus_hf.artifacts import digest_of_rows, read_record
from bioptimus_hf.contexts import local as module
from bioptimus_hf.contexts.finder import find_contexts
from bioptimus_hf.contexts.local import Found, search_documents
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_tokenizer

PARTS = 9
TOKENS = ["asthma", "##tion", "disease", "cells", "the", "zebra"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents of a few sentences, some of which stand in several."""
    rng = random.Random(0)
    words = [word for word in tiny_vocabulary() if word.isalpha() and len(word) > 1]
    sentences = [" ".join(rng.choices(words, k=rng.randint(2, 6))).capitalize() + "." for _ in range(1500)]
    documents = (" ".join(rng.choices(sentences, k=rng.randint(1, 8))) for _ in range(1000))
    (tmp_path / "corpus.txt").write_text("\n".join(documents), encoding="utf-8")
    return tmp_path / "corpus.txt"


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEGABYTES_A_PART", 0.015)


def expected(documents: Dataset, tokenizer: BertTokenizer) -> Dataset:
    return find_contexts(split_sentences(documents), TOKENS, tokenizer=tokenizer, per_token=20, seed=5)


def searched(documents: Dataset, tokenizer: BertTokenizer, folder: Path, **options: Any) -> Found:
    return search_documents(documents, TOKENS, tokenizer=tokenizer, folder=folder, per_token=20, seed=5, **options)


def parts(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*.parquet")}


@pytest.mark.parametrize("num_proc", [None, 2, 3])
@pytest.mark.parametrize("megabytes", [0.015, 16])
def test_the_rows_of_find_contexts(
    corpus: Path,
    tokenizer: BertTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_proc: int,
    megabytes: float,
) -> None:
    monkeypatch.setattr(module, "_MEGABYTES_A_PART", megabytes)
    documents = load_corpus(corpus)
    found = searched(documents, tokenizer, tmp_path / "parts", num_proc=num_proc)
    assert len(parts(tmp_path / "parts")) == (PARTS if megabytes < 1 else 1)
    plain = expected(documents, tokenizer)
    assert len(plain) == 80
    assert found.contexts.features == plain.features
    assert list(found.contexts) == list(plain)
    assert digest_of_rows(found.contexts) == digest_of_rows(plain)
    sentences = split_sentences(documents)["text"]
    assert found.sentences == len(sentences)
    # Words of a few letters and pieces of none: counted by hand, without the matcher.
    words = " ".join(sentences).lower().replace(".", " ").split()
    assert found.occurrences == sum(words.count(token) for token in TOKENS)


def test_a_part_of_the_documents(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """The training part of a corpus is a selection of rows, which keep the numbers of their documents."""
    documents = load_corpus(corpus).select(range(1, 1000, 3))
    found = searched(documents, tokenizer, tmp_path / "parts")
    assert list(found.contexts) == list(expected(documents, tokenizer))
    assert {number % 3 for number in found.contexts["document"]} == {1}


def test_nothing_to_find(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    empty = Dataset.from_dict({"text": ["...", "Nothing here."], "document": [0, 1]})
    assert len(searched(empty, tokenizer, tmp_path / "one").contexts) == 0
    assert len(searched(empty.select([]), tokenizer, tmp_path / "two").contexts) == 0


KILLED = """
import os, signal, sys, time
from transformers import AutoTokenizer
from bioptimus_hf.contexts import local as search
from bioptimus_hf.corpus.dataset import load_corpus
search._MEGABYTES_A_PART = 0.015
call = search._PartSearch.__call__
def killing(self, number):
    if number == 4:
        self.file(number).with_suffix(".partial").write_bytes(b"half a file")
        os.kill({victim}, signal.SIGKILL)
    elif number > 4:
        time.sleep(300)  # until the end of its parent or its pool ends it too, so that some parts are left
    call(self, number)
search._PartSearch.__call__ = killing
corpus, tokenizer, folder, *tokens = sys.argv[1:]
search.search_documents(load_corpus(corpus), tokens, tokenizer=AutoTokenizer.from_pretrained(tokenizer), folder=folder,
                        per_token=20, seed=5, num_proc={processes})
"""


@pytest.mark.parametrize(("victim", "processes"), [("os.getpid()", 1), ("os.getppid()", 2), ("os.getpid()", 2)])
def test_a_killed_search_goes_on(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, victim: str, processes: int
) -> None:
    """The process itself, the parent of its workers, and a worker."""
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    program = KILLED.format(victim=victim, processes=processes)
    arguments = [str(corpus), str(tmp_path / "tokenizer"), str(tmp_path / "parts"), *TOKENS]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    if victim == "os.getpid()" and processes == 2:
        assert "a process of the search was killed, perhaps for want of memory" in killed.stderr
    else:
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = parts(tmp_path / "parts")
    assert 3 <= len(before) <= 5
    documents = load_corpus(corpus)
    found = searched(documents, tokenizer, tmp_path / "parts")
    after = parts(tmp_path / "parts")
    assert len(after) == PARTS
    assert {name: after[name] for name in before} == before
    assert list(found.contexts) == list(expected(documents, tokenizer))


def test_a_part_that_cannot_be_written(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process had found for it is lost, and must not keep losers out of the parts after it."""
    documents = load_corpus(corpus)
    worker = module._PartSearch(
        documents,
        module._cut(documents),
        module.BatchFinder(TOKENS, module.word_rules(tokenizer), 20, 5),
        tmp_path / "parts",
    )
    module._own(worker.folder, "key")
    write = module.pq.write_table

    def full(*arguments: Any, **options: Any) -> None:
        if "000001" in str(arguments[1]):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments, **options)

    monkeypatch.setattr(module.pq, "write_table", full)
    for number in range(PARTS):
        if number == 1:
            with pytest.raises(OSError, match="No space left"):
                worker(number)
        else:
            worker(number)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_MEGABYTES_A_PART", 0.015)
    monkeypatch.setattr(module, "_own", lambda folder, key: None)  # as if they were its own
    found = searched(documents, tokenizer, tmp_path / "parts")
    assert list(found.contexts) == list(expected(documents, tokenizer))


def test_parts_of_another_search_are_redone(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    documents = load_corpus(corpus)
    searched(documents, tokenizer, tmp_path / "parts")
    before = parts(tmp_path / "parts")
    searched(documents, tokenizer, tmp_path / "parts")
    assert parts(tmp_path / "parts") == before
    for changed in ({"seed": 6}, {"per_token": 19}, {"tokens": TOKENS[1:]}):
        options: dict[str, Any] = {"tokens": TOKENS, "per_token": 20, "seed": 5, **changed}
        search_documents(documents, tokenizer=tokenizer, folder=tmp_path / "parts", **options)
        now = parts(tmp_path / "parts")
        assert not set(now.items()) & set(before.items()), changed
        before = now
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(InputError, match="mine is not of our making"):
        searched(documents, tokenizer, tmp_path / "mine")


def test_parts_of_another_splitter_are_redone(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their row numbers are those of other sentences."""
    documents = load_corpus(corpus)
    searched(documents, tokenizer, tmp_path / "parts")
    before = parts(tmp_path / "parts")
    monkeypatch.setattr(module, "SPLITTER", "another")
    searched(documents, tokenizer, tmp_path / "parts")
    assert not set(parts(tmp_path / "parts").items()) & set(before.items())


def test_a_kill_while_old_parts_are_deleted(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = load_corpus(corpus)
    found = searched(documents, tokenizer, tmp_path / "parts")
    unlink = Path.unlink

    def killed(self: Path, **options: Any) -> None:
        if len(parts(tmp_path / "parts")) == 3:
            raise KeyboardInterrupt
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        search_documents(documents, TOKENS, tokenizer=tokenizer, folder=tmp_path / "parts", seed=6)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert list(searched(documents, tokenizer, tmp_path / "parts").contexts) == list(found.contexts)


@pytest.fixture
def command(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> list[str]:
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "words.txt").write_text("\n".join(token for token in TOKENS if token.isalpha()))
    options = [
        "--words",
        tmp_path / "words.txt",
        "--tokenizer",
        tmp_path / "tokenizer",
        "--output_dir",
        tmp_path / "run",
    ]
    script = ROOT / "scripts" / "find_contexts.py"
    return [sys.executable, str(script), "--num_proc", "2", *map(str, options), "--corpus"]


def test_the_script_says_how_far_it_is(command: list[str], corpus: Path, tmp_path: Path) -> None:
    done = subprocess.run([*command, str(corpus)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = read_record(tmp_path / "run" / "contexts")["facts"]
    assert f"0 MB, {facts['sentences']:,} sentences, 4 of 5 tokens satisfied" in done.stderr
    assert f"which occur {facts['occurrences']} times" in done.stderr
    assert "64: 4" in done.stderr
    assert not (tmp_path / "run" / "contexts.parts").exists()


def test_a_full_disk(command: list[str], corpus: Path, tmp_path: Path) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    full = subprocess.run([*command, str(corpus)], capture_output=True, text=True, preexec_fn=no_room, env=environment)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    last = full.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: no room left on the disk (File too large): make some, and run the same command again"
    )
    assert not (tmp_path / "run" / "contexts").exists()
    assert subprocess.run([*command, str(corpus)], env=environment, capture_output=True).returncode == 0


def test_a_shard_that_cannot_be_read(command: list[str], corpus: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    lines = corpus.read_bytes().splitlines(keepends=True)
    for number in range(3):
        (shards / f"{number}.txt").write_bytes(b"".join(lines[number::3]))
    broken = b"caf\xe9 asthma.\n"
    whole = (shards / "1.txt").read_bytes()
    (shards / "1.txt").write_bytes(whole + broken)
    failed = subprocess.run([*command, str(shards)], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1] == (
        f"error: {shards / '1.txt'}, line {len(whole.splitlines()) + 1}: not valid UTF-8 at byte {len(whole) + 3} of "
        f"the file: convert the file, or set errors to replace; 2 other files are cached for the next time"
    )
    replaced = subprocess.run([*command, str(shards), "--errors", "replace"], capture_output=True, text=True)
    assert replaced.returncode == 0, replaced.stderr
    assert f"{shards / '1.txt'}: 1 undecodable bytes or sequences are replaced by U+FFFD" in replaced.stderr
