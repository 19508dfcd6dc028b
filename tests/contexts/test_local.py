"""Test that the search in parts finds the rows of `find_contexts`, even after kills and failures."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers import tiny_vocabulary
from transformers import BertTokenizer

from bioptimus_hf.artifacts import RECORD, digest_of_rows, read_record
from bioptimus_hf.cli.launch import run
from bioptimus_hf.contexts import local as module
from bioptimus_hf.contexts.fetching import Found
from bioptimus_hf.contexts.finder import BatchFinder, find_contexts
from bioptimus_hf.contexts.local import search_documents
from bioptimus_hf.contexts.query import ContextQuery
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.errors import InputError

PARTS = 9
TOKENS = ["asthma", "##tion", "disease", "cells", "the", "zebra"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Create documents of a few sentences, some of which occur in several documents."""
    rng = random.Random(0)
    words = [word for word in tiny_vocabulary() if word.isalpha() and len(word) > 1]
    sentences = [" ".join(rng.choices(words, k=rng.randint(2, 6))).capitalize() + "." for _ in range(1500)]
    documents = (" ".join(rng.choices(sentences, k=rng.randint(1, 8))) for _ in range(1000))
    (tmp_path / "corpus.txt").write_text("\n".join(documents), encoding="utf-8")
    return tmp_path / "corpus.txt"


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEGABYTES_PER_PART", 0.015)


def expected(documents: Dataset, tokenizer: BertTokenizer) -> Dataset:
    return find_contexts(split_sentences(documents), TOKENS, tokenizer=tokenizer, per_token=20, seed=5)


def query(tokenizer: BertTokenizer, **changed: Any) -> ContextQuery:
    return ContextQuery(**{"tokens": TOKENS, "tokenizer": tokenizer, "per_token": 20, "seed": 5, **changed})


def searched(documents: Dataset, tokenizer: BertTokenizer, folder: Path, **options: Any) -> Found:
    return search_documents(documents, query(tokenizer), folder=folder, **options)


def parts(folder: Path) -> dict[str, int]:
    """Return the complete parts, with the time when each was written."""
    return {
        file.name: file.stat().st_mtime_ns
        for file in folder.glob("part-*.parquet")
        if file.with_suffix(".json").is_file()
    }


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
    monkeypatch.setattr(module, "_MEGABYTES_PER_PART", megabytes)
    documents = load_corpus(corpus)
    found = searched(documents, tokenizer, tmp_path / "parts", num_proc=num_proc)
    assert len(parts(tmp_path / "parts")) == (PARTS if megabytes < 1 else 1)
    plain = expected(documents, tokenizer)
    assert len(plain) == 80
    assert found.contexts.features == plain.features
    assert list(found.contexts) == list(plain)
    assert digest_of_rows(found.contexts) == digest_of_rows(plain)
    sentences = split_sentences(documents)["text"]
    assert (found.counts.documents, found.counts.sentences) == (1000, len(sentences))
    assert found.counts.bytes == sum(len(sentence.encode()) for sentence in sentences)
    # The corpus contains no word with one of the pieces, so occurrences can be counted without the matcher.
    words = " ".join(sentences).lower().replace(".", " ").split()
    assert found.counts.occurrences == sum(words.count(token) for token in TOKENS)


def test_a_selection_of_documents(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """The training documents are a selection of rows that keep their document numbers."""
    documents = load_corpus(corpus).select(range(1, 1000, 3))
    found = searched(documents, tokenizer, tmp_path / "parts")
    assert list(found.contexts) == list(expected(documents, tokenizer))
    assert {number % 3 for number in found.contexts["document"]} == {1}


def test_nothing_to_find(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    empty = Dataset.from_dict({"text": ["...", "Nothing here."], "document": [0, 1]})
    assert len(searched(empty, tokenizer, tmp_path / "one").contexts) == 0
    assert len(searched(empty.select([]), tokenizer, tmp_path / "two").contexts) == 0


def assert_continues(corpus: Path, tokenizer: BertTokenizer, folder: Path) -> None:
    """Check that a search that was killed keeps the finished parts and finds the right rows."""
    before = parts(folder)
    assert 3 <= len(before) <= 5
    documents = load_corpus(corpus)
    found = searched(documents, tokenizer, folder)
    after = parts(folder)
    assert len(after) == PARTS
    assert {name: after[name] for name in before} == before
    assert list(found.contexts) == list(expected(documents, tokenizer))


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], None]:
    """Return a function that makes the search kill a process when it is half done."""

    def install(victim: Callable[[], int]) -> None:
        call = module._PartSearch.__call__

        def search(self: module._PartSearch, number: int) -> None:
            if number == 4:
                self.file(number).with_suffix(".parquet.partial").write_bytes(b"half a file")
                os.kill(victim(), signal.SIGKILL)
            elif number > 4:
                time.sleep(300)  # so that some parts are missing; ended with the parent or the pool
            call(self, number)

        monkeypatch.setattr(module._PartSearch, "__call__", search)

    return install


@pytest.mark.parametrize(("victim", "processes"), [(os.getpid, 1), (os.getppid, 2)], ids=["itself", "parent"])
def test_a_search_continues_after_a_kill(
    corpus: Path,
    tokenizer: BertTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killing: Callable[[Callable[[], int]], None],
    victim: Callable[[], int],
    processes: int,
) -> None:
    """The process itself is killed, or the parent of the workers, which must end too."""
    documents = load_corpus(corpus)
    reader, writer = os.pipe()
    killing(victim)
    process = multiprocessing.get_context("fork").Process(
        target=searched, args=(documents, tokenizer, tmp_path / "parts"), kwargs={"num_proc": processes}
    )
    process.start()
    os.close(writer)
    assert os.read(reader, 1) == b""  # the other end is closed when all processes have ended
    os.close(reader)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    monkeypatch.setattr(module, "_MEGABYTES_PER_PART", 0.015)
    assert_continues(corpus, tokenizer, tmp_path / "parts")


def test_a_search_continues_after_the_kill_of_a_worker(
    corpus: Path,
    tokenizer: BertTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killing: Callable[[Callable[[], int]], None],
) -> None:
    killing(os.getpid)
    with pytest.raises(InputError, match="a process of the search was killed, perhaps because memory ran out"):
        searched(load_corpus(corpus), tokenizer, tmp_path / "parts", num_proc=2)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_MEGABYTES_PER_PART", 0.015)
    assert_continues(corpus, tokenizer, tmp_path / "parts")


def test_a_part_that_cannot_be_written(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidates of the failed part are lost, and must not exclude those of the parts after it."""
    documents = load_corpus(corpus)
    worker = module._PartSearch(
        documents, module._divide(documents), BatchFinder.of(query(tokenizer)), tmp_path / "parts"
    )
    module._claim(worker)
    write = module.pq.write_table

    def full(*arguments: Any, **options: Any) -> None:
        if "000001" in str(arguments[1]):
            Path(arguments[1]).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments, **options)

    monkeypatch.setattr(module.pq, "write_table", full)
    for number in range(PARTS):
        if number == 1:
            with pytest.raises(OSError, match="No space left"):
                worker(number)
        else:
            worker(number)
    monkeypatch.setattr(module.pq, "write_table", write)
    before = parts(tmp_path / "parts")
    assert len(before) == PARTS - 1
    records = {name.replace("parquet", "json") for name in before}
    assert {file.name for file in worker.folder.iterdir()} == {*before, *records, RECORD}
    found = searched(documents, tokenizer, tmp_path / "parts")
    assert before.items() < parts(tmp_path / "parts").items()
    assert list(found.contexts) == list(expected(documents, tokenizer))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        lambda file: file.write_bytes(b""),
        Path.unlink,
    ],
    ids=["flip", "truncate", "zeros", "empty", "remove"],
)
def test_damaged_parts_are_searched_again(
    corpus: Path,
    tokenizer: BertTokenizer,
    tmp_path: Path,
    damage: Callable[[Path], Any],
    warnings_of_package: Callable[[], list[str]],
) -> None:
    documents = load_corpus(corpus)
    folder = tmp_path / "parts"
    found = searched(documents, tokenizer, folder)
    before = parts(folder)
    for name in ("part-000002.parquet", "part-000003.json"):
        damage(folder / name)
    again = searched(documents, tokenizer, folder)
    assert digest_of_rows(again.contexts) == digest_of_rows(found.contexts)
    assert again.counts == found.counts
    changed = {name for name, stamp in parts(folder).items() if stamp != before[name]}
    assert changed == {"part-000002.parquet", "part-000003.parquet"}
    warnings = warnings_of_package()
    assert warnings[0].startswith(f"part 2 is searched again: {folder / 'part-000002.parquet'} ")
    if damage is not Path.unlink:  # as if the search had been killed before it was written
        assert warnings[1].startswith(f"part 3 is searched again: {folder / 'part-000003.json'} ")


def test_a_damaged_record_of_the_search(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    documents = load_corpus(corpus)
    found = searched(documents, tokenizer, tmp_path / "parts")
    for damage in (flip, lambda file: file.write_bytes(b"")):
        before = parts(tmp_path / "parts")
        damage(tmp_path / "parts" / RECORD)
        again = searched(documents, tokenizer, tmp_path / "parts")
        assert digest_of_rows(again.contexts) == digest_of_rows(found.contexts)
        assert not set(parts(tmp_path / "parts").items()) & set(before.items())
        assert warnings_of_package()[-1] == f"{tmp_path / 'parts' / RECORD} is damaged: the search begins again"


def test_files_of_the_user_are_never_deleted(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    documents = load_corpus(corpus)
    searched(documents, tokenizer, tmp_path / "parts")
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    for changed in ({}, {"seed": 6}):
        with pytest.raises(InputError, match="parts contains files that don't belong to a search: move it away"):
            search_documents(documents, query(tokenizer, **changed), folder=tmp_path / "parts")
    assert (tmp_path / "parts" / "notes.txt").read_text() == "mine"


OUT_OF_MEMORY = "^num_proc: a process of the search was killed, perhaps because memory ran out"


def test_memory_runs_out_in_a_worker(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = module._PartSearch.__call__

    def search(self: module._PartSearch, number: int) -> None:
        if number == 4:
            raise MemoryError
        if number > 4:
            time.sleep(300)  # the other worker doesn't delay the end
        call(self, number)

    monkeypatch.setattr(module._PartSearch, "__call__", search)
    with pytest.raises(InputError, match=OUT_OF_MEMORY):
        searched(load_corpus(corpus), tokenizer, tmp_path / "parts", num_proc=2)
    assert not multiprocessing.active_children()
    monkeypatch.undo()
    monkeypatch.setattr(module, "_MEGABYTES_PER_PART", 0.015)
    assert_continues(corpus, tokenizer, tmp_path / "parts")


def test_memory_runs_out_when_a_worker_is_started(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, started = os.fork, []

    def second_fails() -> int:
        if started:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        started.append(True)
        return fork()

    monkeypatch.setattr(os, "fork", second_fails)
    monkeypatch.setattr(multiprocessing, "Process", multiprocessing.get_context("fork").Process)
    with pytest.raises(InputError, match=OUT_OF_MEMORY):
        searched(load_corpus(corpus), tokenizer, tmp_path / "parts", num_proc=2)
    assert started
    assert not multiprocessing.active_children()


def test_another_error_of_a_worker_is_raised_as_it_is(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: module._PartSearch, number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module._PartSearch, "__call__", full)
    with pytest.raises(OSError, match="No space left on device"):
        searched(load_corpus(corpus), tokenizer, tmp_path / "parts", num_proc=2)
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs a limit on memory")
@pytest.mark.parametrize("megabytes", [0, 100, 260, 300, 400])
def test_a_search_ends_whatever_the_limit_of_memory(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str], megabytes: int
) -> None:
    """Threads that can't be started used to be waited for, and OpenBLAS waits for memory forever."""
    documents = load_corpus(corpus)

    def limited() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os._exit(run(lambda: searched(documents, tokenizer, tmp_path / "parts", num_proc=2) and None))

    process = multiprocessing.get_context("fork").Process(target=limited)
    process.start()
    process.join(100)
    ended = process.exitcode is not None
    process.kill()
    error = capfd.readouterr().err
    assert ended, error
    if megabytes < 200:
        assert process.exitcode == 2
        assert error.splitlines()[-1].startswith("error: --num_proc: a process of the search was killed, perhaps becau")


def test_parts_of_another_search_are_redone(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    documents = load_corpus(corpus)
    searched(documents, tokenizer, tmp_path / "parts")
    before = parts(tmp_path / "parts")
    searched(documents, tokenizer, tmp_path / "parts")
    assert parts(tmp_path / "parts") == before
    for changed in ({"seed": 6}, {"per_token": 19}, {"tokens": TOKENS[1:]}):
        search_documents(documents, query(tokenizer, **changed), folder=tmp_path / "parts")
        now = parts(tmp_path / "parts")
        assert not set(now.items()) & set(before.items()), changed
        before = now
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(InputError, match="mine contains files that don't belong to a search"):
        searched(documents, tokenizer, tmp_path / "mine")


def test_parts_of_another_splitter_are_redone(
    corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row numbers refer to the sentences of the other splitter."""
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
    assert read_record(tmp_path / "parts")["inputs"]["parts"] == str(PARTS)
    unlink = Path.unlink

    def killed(self: Path, **options: Any) -> None:
        if len(parts(tmp_path / "parts")) == 3:
            raise KeyboardInterrupt
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        search_documents(documents, query(tokenizer, seed=6), folder=tmp_path / "parts")
    monkeypatch.setattr(Path, "unlink", unlink)
    assert list(searched(documents, tokenizer, tmp_path / "parts").contexts) == list(found.contexts)
