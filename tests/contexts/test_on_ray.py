"""Test that a search on Ray finds the rows of a search on one machine, even if machines are lost."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, load_from_disk
from helpers import address_of, build_tiny_bert, run_checks_apart, tiny_vocabulary
from tqdm import tqdm
from transformers import BertTokenizer

from bioptimus_hf import ray_session
from bioptimus_hf.artifacts import Run, digest_of_rows, read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.contexts import on_ray as module
from bioptimus_hf.contexts import sampling
from bioptimus_hf.contexts.fetching import Found
from bioptimus_hf.contexts.finder import find_contexts
from bioptimus_hf.contexts.on_ray import find_contexts_on_ray
from bioptimus_hf.contexts.options import ContextsOptions
from bioptimus_hf.contexts.query import ContextQuery
from bioptimus_hf.contexts.stage import make_contexts
from bioptimus_hf.corpus.dataset import load_corpus, split_validation
from bioptimus_hf.corpus.files import CorpusFile
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_masked_lm, save_tokenizer
from bioptimus_hf.ray_session import connected

TOKENS = ["asthma", "##tion", "disease", "cells", "the", "é", "zebra"]
Search = Callable[[pa.Table], pa.Table]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Create files of every kind, an empty file among them. Some sentences occur in several files."""
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
    """Return documents of short sentences, many of which occur in other documents and files too."""
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
    """Return what a search on one machine finds."""
    found = load_corpus(source)
    if share is not None:
        found = split_validation(found, share=share)["train"]
    return find_contexts(split_sentences(found), TOKENS, tokenizer=tokenizer, per_token=per_token, seed=seed)


def on_ray(
    source: Any,
    tokenizer: BertTokenizer,
    *,
    tokens: Sequence[str] = TOKENS,
    per_token: int = 20,
    share: float | None = None,
    seed: int = 0,
    text_column: str = "text",
    **options: Any,
) -> Found:
    """Search with Ray."""
    files = [str(file) for file in (source if isinstance(source, list) else [source])]
    settings = {} if share is None else {"validation_share": share}
    corpus = Corpus(files, text_column=text_column, **settings)
    query = ContextQuery(tokens, tokenizer, per_token, seed)
    return find_contexts_on_ray(corpus, query, training_only=share is not None, **options)


def assert_same(contexts: Dataset, expected: Dataset) -> None:
    assert contexts.features == expected.features
    assert contexts[:] == expected[:]
    assert digest_of_rows(contexts) == digest_of_rows(expected)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the tasks in this process, in reverse order."""

    def results(search: Search, files: Sequence[CorpusFile], num_proc: int | None) -> Iterator[Any]:
        for number, file in reversed(list(enumerate(files))):
            item = {"number": [number], "file": [str(file.path)], "content": [file.content]}
            yield module._Result.from_row(search(pa.table(item)))

    monkeypatch.setattr(module, "_search_files", results)
    monkeypatch.setattr(module, "connected", nullcontext)
    monkeypatch.setattr(module, "check_attempts", lambda file: None)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(("rows", "held"), [(10_000, 1 << 18), (7, 30), (1, 1)])
def test_the_same_rows_however_the_work_is_divided(
    corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch, rows: int, held: int
) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(module, "_HELD", held)
    monkeypatch.setattr(sampling, "_HELD", held)
    for per_token, share, seed in ((1, None, 0), (5, 0.3, -4), (10**6, None, 7)):
        expected = here(corpus, tokenizer, per_token=per_token, share=share, seed=seed)
        assert len(expected) > (3 if per_token == 1 else 20)
        found = on_ray(corpus, tokenizer, per_token=per_token, share=share, seed=seed)
        assert_same(found.contexts, expected)
    several = [corpus / "f.txt", corpus / "a.jsonl"]
    found = on_ray(several, tokenizer)
    assert_same(found.contexts, here(several, tokenizer))


@pytest.mark.usefixtures("without_ray")
def test_only_the_current_sample_is_kept(
    tmp_path: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither long files nor many copies of a sentence make a task keep more."""
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
    found = on_ray(tmp_path / "long.txt", tokenizer, per_token=10)
    assert (len(found.contexts), found.counts.sentences, found.counts.occurrences) == (11, 6000, 6000)
    assert found.counts.bytes == sum(len(line.replace("\n", "")) for line in lines)
    assert most <= 50


@pytest.mark.usefixtures("without_ray")
def test_nothing_found(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    nothing = on_ray(corpus, tokenizer, tokens=["zebra"]).contexts
    assert len(nothing) == 0
    assert nothing.features == here(corpus, tokenizer).features
    with pytest.raises(InputError, match=r"no text in .*b\.txt: every document is empty"):
        on_ray(corpus / "b.txt", tokenizer)


@pytest.mark.usefixtures("without_ray")
def test_bad_input(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    def refused(message: str, source: Any = corpus, **options: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            on_ray(source, tokenizer, **options)
        assert "\n" not in str(caught.value)

    refused("300 documents leave none for validation", share=1e-9)
    refused("300 documents leave none for training", share=1 - 1e-9)
    refused("no corpus at .*nowhere", tmp_path / "nowhere")
    refused(r"no files at owner/name\. If it is a Hub data set, write it to files", "owner/name")
    refused(r"e\.jsonl\.gz, line 1: no text under 'body'", text_column="body")
    (corpus / "c.parquet").write_bytes(b"PAR1 and no more")
    refused(r"c\.parquet is not a complete Parquet file")
    (corpus / "c.parquet").unlink()
    (corpus / "f.txt").write_bytes(b"fine\n\xff\n")
    refused(r"f\.txt, line 2: not valid UTF-8 at byte 5")
    (corpus / "f.txt").unlink()
    (corpus / "d.txt.gz").write_bytes((corpus / "d.txt.gz").read_bytes()[:-20])
    refused(r"^\S*/d\.txt\.gz is not a complete gzip file \(.*\): fetch it again$")


@pytest.mark.usefixtures("without_ray")
def test_a_file_that_is_not_on_every_machine(
    corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [*sorted(corpus.iterdir()), corpus / "gone.parquet"]
    monkeypatch.setattr(module, "corpus_files", lambda source: gone)
    with pytest.raises(InputError, match=r"gone\.parquet can't be read on .* \(no such file\): every machine"):
        on_ray(corpus, tokenizer)


def test_without_ray_installed(corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed: pip install 'bioptimus-hf\[ray\]'"):
        on_ray(corpus, tokenizer)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: .*refused"),
        ("127.0.0.1:99999", "no Ray cluster at 127.0.0.1:99999: "),
        ("ray://127.0.0.1:10001", "doesn't work through ray://127.0.0.1:10001: run this on a machine of the cluster"),
        ("nonsense", "no Ray cluster at nonsense: Invalid address"),
    ],
)
def check_bad_addresses(corpus: Path, tokenizer: BertTokenizer, address: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        on_ray(corpus, tokenizer, address=address)
    assert time.monotonic() - started < 30


def check_connected_elsewhere(corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with pytest.raises(InputError, match="address: this process is already connected to Ray: omit auto"):
        on_ray(corpus, tokenizer, address="auto")


@pytest.mark.slow
def test_on_a_cluster() -> None:
    run_checks_apart(__file__, "not without_a_machine")


@pytest.mark.slow
def test_a_machine_is_lost() -> None:
    run_checks_apart(__file__, "without_a_machine")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a search that waits for a thread which never ends fail by its time limit."""
    monkeypatch.setattr(ray_session, "_SECONDS_FOR_THREADS", 10_000)


def check_threads_that_nothing_ends() -> None:
    """Nothing waits for them: neither at the end of a search nor when it is interrupted."""
    rows = ray_session.run_tasks(lambda row: row, [{"number": number} for number in range(4)], 2)
    with connected(None):
        found = [row["number"][0].as_py() for row in tqdm(rows)]
        assert sorted(found) == [0, 1, 2, 3]
        assert any(thread.name == "tqdm_monitor" for thread in threading.enumerate())
        interrupted = ray_session.run_tasks(lambda row: row, [{"number": 1}], 1)
        next(interrupted)
        interrupted.close()


def check_ray_on_this_machine(
    corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray is started and stopped without a word, and the process is left as it was."""
    import ray

    folders = []

    class Noted(tempfile.TemporaryDirectory):
        def __enter__(self) -> str:
            folders.append(Path(super().__enter__()))
            return str(folders[-1])

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Noted)
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    expected = here(corpus, tokenizer)
    capfd.readouterr()
    found = on_ray(corpus, tokenizer, num_proc=2)
    assert capfd.readouterr() == ("", "")
    assert_same(found.contexts, expected)
    assert not ray.is_initialized()
    assert [folder.exists() for folder in folders] == [False]
    changed = {name for name, _ in os.environ.items() ^ environment.items()}
    assert changed <= {"KMP_DUPLICATE_LIB_OK"}  # set by scikit-learn when Ray Data imports it
    assert signal.getsignal(signal.SIGTERM) == handler


def compare_stages(corpus: Path, tokenizer: BertTokenizer, folder: Path, address: str | None, **options: Any) -> None:
    """Check that both engines leave the same contexts and records."""
    files = Corpus([str(corpus)], validation_share=0.3)

    def found(engine: str, **more: Any) -> tuple[Dataset, dict[str, Any]]:
        run = Run(str(folder / engine))
        save_tokenizer(tokenizer, run.root / "tokenizer")
        contexts = make_contexts(run, files, ContextsOptions(engine=engine, per_token=7, **options, **more))
        return load_from_disk(contexts), read_record(contexts)

    local, record = found("local")
    contexts, record_on_ray = found("ray", address=address)
    assert_same(contexts, local)
    assert record["fingerprint"] == record_on_ray["fingerprint"]
    assert record_on_ray["facts"] == {**record["facts"], "engine": "ray"}
    assert record["facts"]["digest"] == digest_of_rows(local)


def check_the_contexts_of_words(machines: Any, corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """Words are searched for in all documents."""
    (tmp_path / "words.txt").write_text("Disease\ncells\n", encoding="utf-8")
    compare_stages(corpus, tokenizer, tmp_path, address_of(machines), words=str(tmp_path / "words.txt"))


def check_the_command_reports_an_error_in_one_line(
    machines: Any, corpus: Path, tokenizer: BertTokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "words.txt").write_text("cells\n", encoding="utf-8")
    broken = corpus / "e.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": 5}\n', encoding="utf-8")
    options = ["--corpus", str(broken), "--engine", "ray", "--address", address_of(machines)]
    options += ["--tokenizer", str(tmp_path / "tokenizer"), "--words", str(tmp_path / "words.txt")]
    assert main(["find-contexts", *options, "--output_dir", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: {broken}, line 2: no text under 'text'")
    assert "Traceback" not in error
    assert "WARNING" not in error  # nor anything else from Ray
    assert not list((tmp_path / "run").glob("contexts*/made.json"))


@pytest.mark.usefixtures("connection")
def check_the_contexts_of_new_tokens(corpus: Path, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """New tokens are searched for in training documents."""
    smaller = [token for token in tiny_vocabulary() if token not in {"##tion", "asthma"}]
    base = BertTokenizer(vocab={token: number for number, token in enumerate(smaller)})
    save_masked_lm(build_tiny_bert(len(base)), base, tmp_path / "base")
    compare_stages(corpus, tokenizer, tmp_path, None, base_model=str(tmp_path / "base"))


@pytest.mark.usefixtures("connection")
def check_a_file_that_kills_its_workers(
    corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_files = module._search_files

    def deadly(search: Search, files: Sequence[CorpusFile], num_proc: int | None) -> Iterator[Any]:
        def task(item: pa.Table) -> pa.Table:
            def read(file: CorpusFile, *_: Any) -> Iterator[str]:
                if file.path.name == "d.txt.gz":
                    os.kill(os.getpid(), signal.SIGKILL)
                yield "asthma"

            module.texts_of, ray_session._MAX_ATTEMPTS = read, 2
            return search(item)

        return search_files(task, files, num_proc)

    monkeypatch.setattr(module, "_search_files", deadly)
    with pytest.raises(InputError, match=r"d\.txt\.gz: 2 workers died while reading it"):
        on_ray([corpus / "d.txt.gz", corpus / "f.txt"], tokenizer)


@pytest.mark.usefixtures("connection")
def check_a_package_that_is_missing_on_a_machine(
    corpus: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_files = module._search_files

    class NotInstalled:
        def __call__(self, item: pa.Table) -> pa.Table:
            raise AssertionError

        def __reduce__(self) -> tuple[Any, ...]:
            return importlib.import_module, ("bioptimus_nowhere",)

    monkeypatch.setattr(
        module, "_search_files", lambda search, files, num_proc: search_files(NotInstalled(), files, num_proc)
    )
    with pytest.raises(InputError, match=r"^ModuleNotFoundError: .*: install the same bioptimus-hf\[ray\] on all"):
        on_ray(corpus / "f.txt", tokenizer)


def check_that_a_search_goes_on_without_a_machine(
    machines: Any, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in the middle of a file, and the results in its memory that weren't fetched yet are lost with it."""
    corpus, log, stalled, killed = (tmp_path / name for name in ("corpus", "log", "stalled", "killed"))
    corpus.mkdir()
    log.touch()
    for number in range(14):
        (corpus / f"{number}.txt").write_text("\n".join(documents(600, number, longest=20)), encoding="utf-8")
    expected = here(corpus, tokenizer, per_token=10**6)
    (doomed,) = machines.worker_nodes
    doomed_id = doomed.node_id
    search_files = module._search_files

    def kill() -> None:
        deadline = time.monotonic() + 300
        while not stalled.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        machines.remove_node(doomed, allow_graceful=False)
        killed.touch()

    killer = threading.Thread(target=kill)

    def watched(search: Search, files: Sequence[CorpusFile], num_proc: int | None) -> Iterator[Any]:
        def task(item: pa.Table) -> pa.Table:
            import ray

            name = Path(item["file"][0].as_py()).name
            if ray.get_runtime_context().get_node_id() != doomed_id:
                while not killed.exists():  # so that the other machine has time to start
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
        for number, result in enumerate(search_files(task, files, num_proc)):
            yield result
            while not number and not killed.exists():  # the other results stay on the machines that made them
                time.sleep(0.05)

    monkeypatch.setattr(module, "_search_files", watched)
    found = on_ray(corpus, tokenizer, per_token=10**6, address=address_of(machines))
    killer.join()
    done = Counter(log.read_text().split())
    assert stalled.read_text() in done  # by the other machine
    assert len(done) == 14
    assert max(done.values()) == 2  # repeated, because the first result was lost
    assert_same(found.contexts, expected)
