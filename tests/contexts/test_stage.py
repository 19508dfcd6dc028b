"""Test the stage that makes the contexts of a run, and its command."""

from __future__ import annotations

import json
import logging
import random
import resource
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import load_from_disk
from helpers import ROOT, build_tiny_bert, tiny_vocabulary
from transformers import BertTokenizer

from bioptimus_hf.artifacts import Run, read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.contexts.options import ContextsOptions
from bioptimus_hf.contexts.stage import make_contexts, read_words
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_masked_lm, save_tokenizer

SAMPLE = str(ROOT / "bioptimus_hf" / "sample" / "corpus.txt")


@pytest.fixture
def run(tokenizer: BertTokenizer, tmp_path: Path) -> Run:
    """Create a run with a tokenizer, and a base model that lacks two of its tokens."""
    save_tokenizer(tokenizer, tmp_path / "run" / "tokenizer")
    smaller = [token for token in tiny_vocabulary() if token not in {"##tion", "asthma"}]
    base = BertTokenizer(vocab={token: number for number, token in enumerate(smaller)})
    save_masked_lm(build_tiny_bert(len(base)), base, tmp_path / "base")
    return Run(str(tmp_path / "run"))


def test_contexts_of_new_tokens(run: Run, tmp_path: Path) -> None:
    corpus = Corpus([SAMPLE], validation_share=0.1)
    options = ContextsOptions(base_model=str(tmp_path / "base"), per_token=3)
    folder = make_contexts(run, corpus, options)
    assert folder == tmp_path / "run" / "contexts"
    contexts = load_from_disk(folder)
    assert set(contexts["token"]) <= {"##tion", "asthma"}
    record = read_record(folder)
    assert set(record["inputs"]) == {"corpus", "tokenizer", "base_model"}
    assert record["settings"]["validation_share"] == 0.1
    assert record["facts"]["tokens"] == 2
    assert record["facts"]["contexts"] == len(contexts)
    assert record["facts"]["text"]["documents"] == len(load_corpus(SAMPLE))
    assert record["facts"]["sentences"] < len(split_sentences(load_corpus(SAMPLE)))
    assert not (tmp_path / "run" / "contexts.parts").exists()

    assert make_contexts(run, corpus, options) == folder
    assert read_record(folder) == record  # skipped
    with pytest.raises(InputError, match=r"was made with different per_token \(3 then, 4 now\)"):
        make_contexts(run, corpus, ContextsOptions(base_model=str(tmp_path / "base"), per_token=4))


def test_contexts_of_words(run: Run, tmp_path: Path) -> None:
    corpus = Corpus([SAMPLE], validation_share=0.1)
    (tmp_path / "words.txt").write_text("\ufeffPatients\n\nx-ray\npatients\n", encoding="utf-8")
    words = str(tmp_path / "words.txt")
    with pytest.raises(
        InputError, match=r"1 of 3 words can never be found, for example 'x-ray' \(it normalises to 3 words"
    ):
        make_contexts(run, corpus, ContextsOptions(words=words))
    folder = make_contexts(run, corpus, ContextsOptions(words=words, skip_unusable=True, jsonl=True))
    contexts = load_from_disk(folder)
    assert set(contexts["token"]) == {"Patients"}
    record = read_record(folder)
    assert set(record["inputs"]) == {"corpus", "tokenizer", "words"}
    assert "validation_share" not in record["settings"]
    facts = record["facts"]
    assert facts["sentences"] == len(split_sentences(load_corpus(SAMPLE)))
    assert facts["tokens"] == 1
    assert facts["merged_tokens"] == {"patients": "Patients"}
    assert facts["left_out"] == {"x-ray": "it normalises to 3 words (x - ray)"}
    lines = (folder / "contexts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == list(contexts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "words: .*contains no words"),
        (b"ok\n\xff\n", "not valid UTF-8 at byte 3"),
        (None, "No such file"),
        (b"o\0k\0\n\0", r"words\.txt has NUL bytes, as in UTF-16: convert it to UTF-8"),
    ],
)
def test_bad_word_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_words(tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_token": 0}, "per_token: must be at least 1, not 0"),
        ({"address": "auto"}, "address: auto is a Ray cluster, which needs the engine ray"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ContextsOptions(**options)


def test_what_is_missing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer doesn't exist: train a vocabulary first, or name a tokenizer"):
        make_contexts(Run(str(tmp_path / "other")), Corpus([SAMPLE]), ContextsOptions())
    with pytest.raises(InputError, match=r"base_model: .*doesn't record the base model of the run"):
        make_contexts(run, Corpus([SAMPLE]), ContextsOptions())
    with pytest.raises(InputError, match="max_megabytes: can't be used with Ray"):
        make_contexts(run, Corpus([SAMPLE], max_megabytes=1), ContextsOptions(engine="ray"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = random.Random(0)
    words = [word for word in tiny_vocabulary() if word.isalpha() and len(word) > 1]
    sentences = (" ".join(rng.choices(words, k=rng.randint(2, 6))).capitalize() + "." for _ in range(1500))
    (tmp_path / "corpus.txt").write_text("\n".join(sentences), encoding="utf-8")
    return tmp_path / "corpus.txt"


@pytest.fixture
def command(run: Run, corpus: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "words.txt").write_text("asthma\ndisease\ncells\nthe\nzebra\n")
    options = ["--words", str(tmp_path / "words.txt"), "--output_dir", run.output_dir, "--num_proc", "2"]
    return ["find-contexts", *options, "--corpus"]


def test_the_command_shows_its_progress(
    command: list[str],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bioptimus_hf.progress.bars_are_drawn", lambda: True)
    with caplog.at_level(logging.INFO):
        assert main([*command, str(corpus)]) == 0
    facts = read_record(tmp_path / "run" / "contexts")["facts"]
    assert f"0 MB, {facts['sentences']:,} sentences, 4 of 5 tokens satisfied" in capsys.readouterr().err
    assert f"which occur {facts['occurrences']} times" in caplog.text
    assert "64: 4" in caplog.text
    assert "not found: zebra" in caplog.text
    assert not (tmp_path / "run" / "contexts.parts").exists()


def test_a_full_disk(
    command: list[str],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        status = main([*command, str(corpus)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert status == 2, error
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "disk" in last
    assert "File too large" in last
    assert not (tmp_path / "run" / "contexts").exists()
    assert main([*command, str(corpus)]) == 0


def test_a_file_that_cannot_be_read(
    command: list[str],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    lines = corpus.read_bytes().splitlines(keepends=True)
    for number in range(3):
        (files / f"{number}.txt").write_bytes(b"".join(lines[number::3]))
    whole = (files / "1.txt").read_bytes()
    (files / "1.txt").write_bytes(whole + b"caf\xe9 asthma.\n")
    assert main([*command, str(files)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    place = (
        f"{files / '1.txt'}, line {len(whole.splitlines()) + 1}: not valid UTF-8 at byte {len(whole) + 3} of the file"
    )
    assert last.startswith(f"error: {place}: ")
    assert last.endswith("2 other files are cached for the next time")
    with caplog.at_level(logging.WARNING):
        assert main([*command, str(files), "--errors", "replace"]) == 0
    assert f"{files / '1.txt'}: 1 undecodable bytes" in caplog.text
