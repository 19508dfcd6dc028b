"""Contexts on Ray: the rows of one machine, whatever the order, the cuts, and the machines that are lost on the way."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from helpers import ROOT

os.environ["RAY_AUTH_MODE"] = "disabled"  # or Ray would put a token into the home folder

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, load_from_disk
from helpers import tiny_vocabulary
from transformers import BertTokenizer

from bioptimus_hf.artifacts import digest_of_rows, read_record
from bioptimus_hf.contexts import on_ray as module
from bioptimus_hf.contexts import sampling
from bioptimus_hf.contexts.finder import find_contexts
from bioptimus_hf.contexts.on_ray import find_contexts_on_ray
from bioptimus_hf.corpus.dataset import load_corpus, split_validation
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_tokenizer

TOKENS = ["asthma", "##tion", "disease", "cells", "the", "é", "zebra"]
Search = Callable[[pa.Table], pa.Table]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Files of every kind, one of them empty, with sentences that stand in several."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    files = [documents(60, seed) for seed in range(5)]
    lines = ["".join(json.dumps({"text": text, "x": 1}) + "\n" for text in texts) for texts in files]
    (folder / "a.jsonl").write_text(lines[0], encoding="utf-8")
    (folder / "b.txt").write_text("\n \n", encoding="utf-8")
    pyarrow.parquet.write_table(pa.table({"x": range(61), "text": [None, *files[1]]}), folder / "c.parquet")
    with gzip.open(folder / "d.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(files[2]))
    with gzip.open(folder / "e.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines[3])
    (folder / "f.txt").write_text("\n".join(files[4]), encoding="utf-8")
    return folder


def documents(number: int, seed: int, longest: int = 3) -> list[str]:
    """Documents of short sentences, many of which stand in other documents and files too."""
    rng = random.Random(seed)
    words = [word for word in tiny_vocabulary() if word.isalpha() and len(word) > 1][:12]
    sentences = [
        [
            " ".join(rng.choices(words, k=rng.randint(1, longest))).capitalize() + rng.choice([".", " é."])
            for _ in range(4)
        ]
        for _ in range(number)
    ]
    return [" ".join(["The asthma of mice.", *some] if rng.random() < 0.2 else some) for some in sentences]


def here(
    source: Any, tokenizer: BertTokenizer, *, per_token: int = 20, share: float | None = None, seed: int = 0
) -> Dataset:
    """What one machine finds."""
    found = load_corpus(source)
    if share is not None:
        found = split_validation(found, share=share)["train"]
    return find_contexts(split_sentences(found), TOKENS, tokenizer=tokenizer, per_token=per_token, seed=seed)


def assert_same(contexts: Dataset, expected: Dataset) -> None:
    assert contexts.features == expected.features
    assert contexts[:] == expected[:]
    assert digest_of_rows(contexts) == digest_of_rows(expected)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks in this process, the last file first."""

    def results(search: Search, files: Sequence[Path], num_proc: int | None) -> Iterator[Any]:
        for number in reversed(range(len(files))):
            yield module._Result.from_row(search(pa.table({"number": [number], "file": [str(files[number])]})))

    monkeypatch.setattr(module, "_results", results)
    monkeypatch.setattr(module, "_connected", nullcontext)
    monkeypatch.setattr(module, "_check_attempts", lambda file: None)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(("rows", "held"), [(10_000, 1 << 18), (7, 30), (1, 1)])
def test_the_same_rows_however_the_work_is_cut(
    corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch, rows: int, held: int
) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(module, "_HELD", held)
    monkeypatch.setattr(sampling, "_HELD", held)
    for per_token, share, seed in ((1, None, 0), (5, 0.3, -4), (10**6, None, 7)):
        expected = here(corpus, tokenizer, per_token=per_token, share=share, seed=seed)
        assert len(expected) > (3 if per_token == 1 else 20)
        found = find_contexts_on_ray(
            corpus, TOKENS, tokenizer=tokenizer, per_token=per_token, validation_share=share, seed=seed
        )
        assert_same(found.contexts, expected)
    several = [corpus / "f.txt", corpus / "a.jsonl"]
    found = find_contexts_on_ray(several, TOKENS, tokenizer=tokenizer, per_token=20)
    assert_same(found.contexts, here(several, tokenizer))


@pytest.mark.usefixtures("without_ray")
def test_only_the_leaders_are_held(tmp_path: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither long files nor many copies of a sentence make a task hold more."""
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(module, "_HELD", 50)
    most = 0
    add = module._Leaders.add

    def watched(self: Any, *arguments: Any) -> None:
        nonlocal most
        add(self, *arguments)
        most = max(most, sum(map(len, self._sentences)))

    monkeypatch.setattr(module._Leaders, "add", watched)
    lines = [f"asthma {number % 700}\ndisease" for number in range(3000)]
    (tmp_path / "long.txt").write_text("\n".join(lines), encoding="utf-8")
    found = find_contexts_on_ray(tmp_path / "long.txt", TOKENS, tokenizer=tokenizer, per_token=10)
    assert (len(found.contexts), found.sentences, found.occurrences) == (11, 6000, 6000)
    assert most <= 50


@pytest.mark.usefixtures("without_ray")
def test_nothing_found(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    nothing = find_contexts_on_ray(corpus, ["zebra"], tokenizer=tokenizer).contexts
    assert len(nothing) == 0
    assert nothing.features == here(corpus, tokenizer).features
    with pytest.raises(InputError, match=r"no text in .*b\.txt: every document is empty"):
        find_contexts_on_ray(corpus / "b.txt", TOKENS, tokenizer=tokenizer)


@pytest.mark.usefixtures("without_ray")
def test_bad_input(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    def refused(message: str, source: Any = corpus, tokens: Sequence[str] = TOKENS, **options: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            find_contexts_on_ray(source, tokens, tokenizer=tokenizer, **options)
        assert "\n" not in str(caught.value)

    refused("per_token must be at least 1, not 0", per_token=0)
    refused("no tokens", tokens=[])
    refused("1 tokens can never be found, 'x-ray'", tokens=["x-ray"])
    refused("must be between 0 and 1, not 1", validation_share=1)
    refused("300 documents leave none for validation", validation_share=1e-9)
    refused("300 documents leave none for training", validation_share=1 - 1e-9)
    refused("no corpus at .*nowhere", tmp_path / "nowhere")
    refused(r"no files at owner/name\. If it is a Hub data set, write it to files", "owner/name")
    refused(r"e\.jsonl\.gz, line 1: no text under 'body'", text_column="body")
    (corpus / "c.parquet").write_bytes(b"PAR1 and no more")
    refused(r"c\.parquet is not a complete Parquet file")
    (corpus / "c.parquet").unlink()
    (corpus / "f.txt").write_bytes(b"fine\n\xff\n")
    refused(r"f\.txt, line 2: not valid UTF-8 at byte 5")


@pytest.mark.usefixtures("without_ray")
def test_a_file_that_is_not_on_every_machine(
    corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [*sorted(corpus.iterdir()), corpus / "gone.parquet"]
    monkeypatch.setattr(module, "corpus_files", lambda source: gone)
    with pytest.raises(InputError, match=r"gone\.parquet cannot be read on .* \(no such file\): every machine"):
        find_contexts_on_ray(corpus, TOKENS, tokenizer=tokenizer)


def test_without_ray_installed(corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed: pip install 'bioptimus-hf\[ray\]'"):
        find_contexts_on_ray(corpus, TOKENS, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray at 127.0.0.1:1: .*refused"),
        ("127.0.0.1:99999", "no Ray at 127.0.0.1:99999: "),
        ("ray://127.0.0.1:10001", "does not work through ray://127.0.0.1:10001: run this on a machine of the cluster"),
        ("nonsense", "no Ray at nonsense: Invalid address"),
    ],
)
def test_bad_addresses(corpus: Path, tokenizer: BertTokenizer, address: str, message: str) -> None:
    pytest.importorskip("ray.data")
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        find_contexts_on_ray(corpus, TOKENS, tokenizer=tokenizer, address=address)
    assert time.monotonic() - started < 30


def test_connected_elsewhere(corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: True)
    with pytest.raises(InputError, match="connected to a Ray already: leave the address auto out"):
        find_contexts_on_ray(corpus, TOKENS, tokenizer=tokenizer, address="auto")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The paths of sockets must be short, and those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def machines(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray of two nodes with a processor each."""
    utils = pytest.importorskip("ray.cluster_utils")
    # Not an argument: it would still note for all processes of the machine where a cluster is.
    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))
    # A machine that has died is noticed after 15 seconds by default; after 1, a busy one is taken for dead.
    settings = {"health_check_period_ms": 300, "health_check_failure_threshold": 10}
    arguments = {"num_cpus": 1, "include_dashboard": False, "_system_config": settings}
    cluster = utils.Cluster(initialize_head=True, head_node_args=arguments)
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def address_of(machines: Any) -> str:
    return f"127.0.0.1:{machines.address.rpartition(':')[2]}"


@pytest.mark.slow
def test_a_ray_of_its_own(corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    folders = []

    class Noted(tempfile.TemporaryDirectory):
        def __enter__(self) -> str:
            folders.append(Path(super().__enter__()))
            return str(folders[-1])

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Noted)
    found = find_contexts_on_ray(corpus, TOKENS, tokenizer=tokenizer, per_token=20, num_proc=2)
    assert_same(found.contexts, here(corpus, tokenizer))
    assert not ray.is_initialized()
    assert [folder.exists() for folder in folders] == [False]


@pytest.mark.slow
def test_a_machine_is_lost(
    machines: Any, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in the middle of a file; what it had found in others, and nobody had fetched, is lost with it."""
    corpus, log, stalled, killed = (tmp_path / name for name in ("corpus", "log", "stalled", "killed"))
    corpus.mkdir()
    log.touch()
    for number in range(14):
        (corpus / f"{number}.txt").write_text("\n".join(documents(600, number, longest=20)), encoding="utf-8")
    expected = here(corpus, tokenizer, per_token=10**6)
    (doomed,) = machines.worker_nodes
    doomed_id = doomed.node_id
    results = module._results

    def kill() -> None:
        deadline = time.monotonic() + 300
        while not stalled.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        machines.remove_node(doomed, allow_graceful=False)
        killed.touch()

    killer = threading.Thread(target=kill)

    def watched(search: Search, files: Sequence[Path], num_proc: int | None) -> Iterator[Any]:
        def task(item: pa.Table) -> pa.Table:
            import ray

            name = Path(item["file"][0].as_py()).name
            if ray.get_runtime_context().get_node_id() != doomed_id:
                while not killed.exists():  # so that the other machine has time to begin
                    time.sleep(0.05)
            elif len(log.read_text().split()) >= 10:
                read = module.texts_of

                def stall(*arguments: Any) -> Iterator[str]:
                    for number, text in enumerate(read(*arguments)):
                        if number == 300:
                            stalled.write_text(name)
                            time.sleep(600)
                        yield text

                module.texts_of = stall
            found = search(item)
            with log.open("a") as file:
                file.write(f"{name}\n")
            return found

        killer.start()
        for number, result in enumerate(results(task, files, num_proc)):
            yield result
            while not number and not killed.exists():  # the other results wait where they were made
                time.sleep(0.05)

    monkeypatch.setattr(module, "_results", watched)
    found = find_contexts_on_ray(corpus, TOKENS, tokenizer=tokenizer, per_token=10**6, address=address_of(machines))
    killer.join()
    done = Counter(log.read_text().split())
    assert stalled.read_text() in done  # by the other machine
    assert len(done) == 14
    assert max(done.values()) == 2  # done again, since the first result was lost
    assert_same(found.contexts, expected)


@pytest.mark.slow
def test_what_ends_a_run(
    machines: Any, corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be read is named, whether there is an error or it takes its worker with it each time."""
    options: dict[str, Any] = {"tokenizer": tokenizer, "address": address_of(machines)}
    (corpus / "d.txt.gz").write_bytes((corpus / "d.txt.gz").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"^\S*/d\.txt\.gz is not a complete gzip file \(.*\): fetch it again$"):
        find_contexts_on_ray(corpus, TOKENS, **options)
    results = module._results

    def deadly(search: Search, files: Sequence[Path], num_proc: int | None) -> Iterator[Any]:
        def task(item: pa.Table) -> pa.Table:
            def read(file: Path, *_: str) -> Iterator[str]:
                if file.name == "d.txt.gz":
                    os.kill(os.getpid(), signal.SIGKILL)
                yield "asthma"

            module.texts_of, module._ATTEMPTS = read, 2
            return search(item)

        return results(task, files, num_proc)

    monkeypatch.setattr(module, "_results", deadly)
    with pytest.raises(InputError, match=r"d\.txt\.gz: the worker that read it died 2 times"):
        find_contexts_on_ray(corpus, TOKENS, **options)

    class NotInstalled:
        def __call__(self, item: pa.Table) -> pa.Table:
            raise AssertionError

        def __reduce__(self) -> tuple[Any, ...]:
            return importlib.import_module, ("bioptimus_nowhere",)

    monkeypatch.setattr(module, "_results", lambda search, files, num_proc: results(NotInstalled(), files, num_proc))
    with pytest.raises(InputError, match=r"^ModuleNotFoundError: .*: install the same bioptimus-hf\[ray\] on all"):
        find_contexts_on_ray(corpus, TOKENS, **options)


@pytest.mark.slow
def test_the_script(
    machines: Any, corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = [token for token in tiny_vocabulary() if token not in {"##tion", "asthma"}]
    save_tokenizer(BertTokenizer(vocab={token: number for number, token in enumerate(smaller)}), tmp_path / "base")
    (tmp_path / "words.txt").write_text("Disease\ncells\n", encoding="utf-8")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("find_contexts")

    def found(run: str, *more: str) -> tuple[Dataset, dict[str, Any]]:
        folder = tmp_path / run
        save_tokenizer(tokenizer, folder / "tokenizer")
        given = ["--corpus", str(corpus), "--output_dir", str(folder), "--base_model", str(tmp_path / "base")]
        monkeypatch.setattr(sys, "argv", ["", *given, "--per_token", "7", "--validation_share", "0.3", *more])
        script.main()
        return load_from_disk(folder / "contexts"), read_record(folder / "contexts")

    on_ray = ["--engine", "ray", "--address", address_of(machines)]
    for words in ([], ["--words", str(tmp_path / "words.txt"), "--force"]):
        local, made = found("local", *words)
        contexts, made_on_ray = found("ray", *on_ray, *words)
        assert_same(contexts, local)
        assert made["fingerprint"] == made_on_ray["fingerprint"]
        assert made_on_ray["facts"] == {**made["facts"], "engine": "ray"}
        assert made["facts"]["digest"] == digest_of_rows(local)
    with pytest.raises(InputError, match="--address is that of a Ray cluster: give --engine ray too"):
        found("ray", "--address", "auto")
    with pytest.raises(InputError, match="--max_megabytes does not go with --engine ray"):
        found("ray", *on_ray, "--max_megabytes", "1")


@pytest.mark.slow
def test_the_script_says_what_is_wrong_in_one_line(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "words.txt").write_text("cells\n", encoding="utf-8")
    (corpus / "e.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n', encoding="utf-8")
    command = [sys.executable, str(ROOT / "scripts" / "find_contexts.py"), "--corpus", str(corpus), "--engine", "ray"]
    command += ["--tokenizer", str(tmp_path / "tokenizer"), "--words", str(tmp_path / "words.txt")]
    ended = subprocess.run([*command, "--output_dir", str(tmp_path / "run")], capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"error: {corpus / 'e.jsonl'}, line 2: no text under 'text'")
    assert "Traceback" not in ended.stderr
    assert "WARNING" not in ended.stderr  # nor anything else of Ray's
    assert not list((tmp_path / "run").glob("contexts*/made.json"))
