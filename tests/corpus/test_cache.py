"""Test that what is kept in the cache is never used once it is damaged."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import multiprocess
import pyarrow as pa
import pytest
from datasets import Dataset

from bioptimus_hf.artifacts import RECORD, digest_of_rows
from bioptimus_hf.corpus.cache import cached, cached_map
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.errors import InputError
from bioptimus_hf.storage import temporary_name

TEXTS = [f"Mice {number} have asthma. They sneeze, and it is sad." for number in range(2000)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bioptimus_hf"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "corpus" / name).write_text("\n".join([name, *TEXTS]), encoding="utf-8")
    return tmp_path / "corpus"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flip": flip,
    "truncate": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "remove": Path.unlink,
    "unreadable": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entries_are_made_again(
    corpus: Path, cache: Path, damage: str, warnings_of_package: Callable[[], list[str]]
) -> None:
    """Whatever file is damaged, of texts or of sentences, the rows are right, and the entry is whole again."""

    def read() -> tuple[str, str]:
        documents = load_corpus(corpus)
        return digest_of_rows(documents), digest_of_rows(split_sentences(documents))

    expected = read()
    whole = {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}
    assert len(whole) == 6  # rows and a record of two files and of the sentences
    assert read() == expected
    assert not warnings_of_package()
    for number, file in enumerate(whole, start=1):
        DAMAGES[damage](file)
        assert read() == expected
        assert len(warnings_of_package()) == number
        assert warnings_of_package()[-1].startswith(f"damaged cache, made again: {file}")
        assert {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()} == whole


def test_what_fails_is_not_kept(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "rows.arrow").write_bytes(b"half")
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        cached("rows", {}, fail)
    assert not list(cache.iterdir())


def write_numbers(folder: Path) -> dict[str, Any]:
    table = pa.table({"number": range(5)})
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"rows": 5}


def test_another_process_may_be_faster(cache: Path, tmp_path: Path) -> None:
    def late(folder: Path) -> dict[str, Any]:
        facts = write_numbers(folder)
        shutil.copytree(done, folder.with_name(name))
        (folder.with_name(name) / "theirs").touch()
        return facts

    rows, facts = cached("rows", {"key": 1}, write_numbers)
    (folder,) = cache.iterdir()
    name, done = folder.name, tmp_path / "done"
    folder.rename(done)
    again = cached("rows", {"key": 1}, late)
    assert (again[0]["number"][:], again[1]) == (rows["number"][:], facts) == ([0, 1, 2, 3, 4], {"rows": 5})
    assert {file.name for file in folder.iterdir()} == {RECORD, "rows.arrow", "theirs"}
    assert [entry.name for entry in cache.iterdir()] == [name]


def test_the_rows_of_other_keys_are_others(cache: Path) -> None:
    first, second = (cached("rows", {"key": key}, write_numbers)[0] for key in (1, 2))
    assert first._fingerprint != second._fingerprint
    assert len(list(cache.iterdir())) == 2


def test_files_that_other_steps_leave_in_an_entry_are_no_rows(corpus: Path, cache: Path) -> None:
    documents = load_corpus(corpus / "a.txt")
    documents.filter(lambda text: "7" in text, input_columns="text")
    assert len(list(cache.glob("texts-*/*.arrow"))) == 2
    assert len(load_corpus(corpus / "a.txt")) == len(documents) == 2001


def test_rows_in_memory_and_without_caching_are_not_kept(
    corpus: Path, cache: Path, request: pytest.FixtureRequest
) -> None:
    rows = Dataset.from_dict({"text": TEXTS[:3], "document": [0, 1, 2]})
    assert len(split_sentences(rows)) == 6
    documents = load_corpus(corpus)
    request.addfinalizer(datasets.enable_caching)
    datasets.disable_caching()
    assert len(split_sentences(documents)) == 2 * (1 + 2 * len(TEXTS))
    assert {entry.name.partition("-")[0] for entry in cache.iterdir()} == {"texts"}


def test_a_place_where_nothing_can_be_written(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write to .*file/bioptimus_hf \(.*\): set HF_DATASETS_CACHE to"):
        load_corpus(corpus)


def test_leftovers_of_a_dead_process_are_removed(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_corpus(corpus / "a.txt")
    (entry,) = cache.iterdir()
    shutil.rmtree(entry)
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 2**22 + 1)  # more than Linux has
        left = temporary_name(entry)
    left.mkdir()
    load_corpus(corpus / "a.txt")
    assert list(cache.iterdir()) == [entry]


def kill(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if multiprocess.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def test_a_process_that_is_killed(corpus: Path, cache: Path) -> None:
    documents = load_corpus(corpus)
    with pytest.raises(InputError, match=r"^num_proc: a process was killed, perhaps because memory ran out"):
        cached_map(documents, kill, kind="rows", num_proc=2)
    assert {entry.name.partition("-")[0] for entry in cache.iterdir()} == {"texts"}
