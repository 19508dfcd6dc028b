"""Check the vocabulary stage and its command: they write, skip, refuse, redo, and leave nothing half-written."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import datasets
import pytest
from helpers import build_tiny_bert, tiny_vocabulary
from transformers import AutoTokenizer, BertTokenizer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bioptimus_hf.artifacts import Run, read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.corpus import files
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.corpus.reading import InputFile
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_masked_lm
from bioptimus_hf.vocabulary.options import VocabularyOptions
from bioptimus_hf.vocabulary.stage import make_tokenizer
from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies

SAMPLE = str(resources.files("bioptimus_hf") / "sample" / "corpus.txt")


@pytest.fixture
def base(tokenizer: BertTokenizer, tmp_path: Path) -> BertTokenizer:
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, tmp_path / "base")
    return tokenizer


def command(tmp_path: Path, *options: str, corpus: str | Path = SAMPLE) -> Sequence[str]:
    where = ["--base_model", str(tmp_path / "base"), "--output_dir", str(tmp_path / "run")]
    return ["train-vocabulary", "--corpus", str(corpus), "--validation_share", "0.1", *where, *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_the_command_writes_then_skips_then_refuses_then_redoes(
    base: BertTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert main(command(tmp_path, "--size", "1500")) == 0
    folder = tmp_path / "run" / "tokenizer"
    before = contents(tmp_path / "run")
    assert {"tokenizer/vocab.txt", "tokenizer/tokenizer.json", "tokenizer/made.json"} <= before.keys()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    difference = compare_vocabularies(base, tokenizer)
    facts = read_record(folder)["facts"]
    assert len(tokenizer) == facts["tokens"] == 1500
    assert (facts["shared"], facts["new"]) == (len(difference.shared), len(difference.new))
    text = Path(SAMPLE).read_text(encoding="utf-8")
    assert facts["text"] == {
        "files": 1,
        "files_read": 1,
        "documents": text.count("\n"),
        "words": len(text.split()),
        "bytes": len(text.replace("\n", "").encode()),
        "empty": 0,
        "replaced": 0,
    }
    assert 1 < facts["fertility_after"] < facts["fertility_before"]
    assert f"{facts['new']} of them new" in caplog.text
    assert "| 1,500 tokens |" in (folder / "report.md").read_text()
    assert json.loads((folder / "report.json").read_text())["base"]["fertility"] == facts["fertility_before"]
    assert f"saved {folder}" in caplog.text

    copy = tmp_path / "copy.txt"  # the same text in another place
    copy.write_bytes(Path(SAMPLE).read_bytes())
    caplog.clear()
    assert main(command(tmp_path, "--size", "1500", corpus=copy)) == 0
    assert "skipped" in caplog.text
    assert "saved" not in caplog.text
    assert contents(tmp_path / "run") == before

    copy.write_bytes(Path(SAMPLE).read_bytes() + b"One more document.\n")
    for options, corpus, changed in (
        (["--size", "1500"], copy, "corpus ("),
        (["--size", "1600"], SAMPLE, "size (1500"),
    ):
        assert main(command(tmp_path, *options, corpus=corpus)) == 2
        message = last_line(capsys)
        assert message.startswith(f"error: {folder} was made with different {changed}")
        assert contents(tmp_path / "run") == before

    assert main(command(tmp_path, "--size", "1600", "--force")) == 0
    assert len(AutoTokenizer.from_pretrained(folder)) == 1600
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tokenizer"]


def as_corpus(kind: str, rows: list[dict[str, Any]], folder: Path) -> list[str]:
    """Write rows of title and body in a format, and return the options with which they are read."""
    file = folder / f"corpus.{kind}"
    if kind == "txt":
        for row in rows:
            (folder / f"{row['pmid']}.txt").write_text(f"{row['title']}\n{row['body']}", encoding="utf-8")
        return ["--corpus", str(folder), "--unit", "file"]
    if kind == "xml.gz":
        article = (
            "<PubmedArticle><MedlineCitation><PMID>{}</PMID><Article><ArticleTitle>{}</ArticleTitle><Abstract>"
            "<AbstractText>{}</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"
        )
        articles = "".join(article.format(*(escape(str(value)) for value in row.values())) for row in rows)
        file.write_bytes(gzip.compress(f"<PubmedArticleSet>{articles}</PubmedArticleSet>".encode()))
        return ["--corpus", str(file)]
    if kind in ("csv", "tsv"):
        with open(file, "w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    else:
        content = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
        file.write_text(content, encoding="utf-8")
    return ["--corpus", str(file), "--text_column", "title", "body"]


def test_the_same_text_in_any_format_gives_the_same_vocabulary(base: BertTokenizer, tmp_path: Path) -> None:
    words = [line.split() for line in Path(SAMPLE).read_text(encoding="utf-8").splitlines()]
    rows = [{"pmid": number, "title": " ".join(own[:4]), "body": " ".join(own[4:])} for number, own in enumerate(words)]
    found: dict[str, tuple[bytes, Any]] = {}
    for kind in ("jsonl", "json", "csv", "tsv", "parquet", "xml.gz", "txt"):
        (tmp_path / kind).mkdir()
        folder = tmp_path / "runs" / kind / "tokenizer"
        where = ["--base_model", str(tmp_path / "base"), "--output_dir", str(folder.parent)]
        options = ["--validation_share", "0.1", "--size", "700", *as_corpus(kind, rows, tmp_path / kind)]
        assert main(["train-vocabulary", *where, *options]) == 0, kind
        record = read_record(folder)
        text = {name: record["facts"]["text"][name] for name in ("documents", "words", "bytes")}
        found[kind] = ((folder / "vocab.txt").read_bytes(), text)
        assert record["settings"]["text_column"] == (["title", "body"] if "--text_column" in options else "text")
        assert record["settings"].get("unit") == ("file" if kind == "txt" else None)
    assert all(result == found["jsonl"] for result in found.values())


def test_bad_input_ends_with_one_line_and_leaves_nothing_half_written(
    base: BertTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    for arguments, message in (
        (command(tmp_path, "--size", "20"), "error: --size: 20 tokens can't hold"),
        (
            command(tmp_path, "--min_frequency", "1000000000"),
            "--min_frequency: no character occurs 1,000,000,000 times",
        ),
        (command(tmp_path, corpus=tmp_path / "latin.txt"), "latin.txt, line 2: not valid UTF-8 at byte 8"),
        (command(tmp_path, "--base_model", str(tmp_path / "nowhere")), "nowhere: not a local model folder"),
        (command(tmp_path, "--base_model", str(tmp_path)), f"{tmp_path}: no model can be loaded from this folder"),
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr().err
        assert captured.splitlines()[-1].startswith("error: ")
        assert message in captured.splitlines()[-1]
        assert "Traceback" not in captured
        assert contents(tmp_path / "run") == {}


def test_the_function_leaves_what_the_command_leaves(base: BertTokenizer, tmp_path: Path) -> None:
    assert main(command(tmp_path, "--size", "600", "--policy", "extend")) == 0
    run = Run(str(tmp_path / "function"))
    options = VocabularyOptions(str(tmp_path / "base"), size=600, policy="extend")
    folder = make_tokenizer(run, Corpus([SAMPLE], validation_share=0.1), options)
    assert folder == run.root / "tokenizer"
    by_function, by_command = contents(folder), contents(tmp_path / "run" / "tokenizer")
    records = [json.loads(files.pop("made.json")) for files in (by_function, by_command)]
    assert by_function == by_command
    assert all(records[0][key] == records[1][key] for key in ("fingerprint", "inputs", "settings", "facts"))
    assert AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(list(range(len(base)))) == tiny_vocabulary()


@pytest.mark.parametrize(("positions", "stated", "expected"), [(64, 512, 64), (64, None, 64), (1024, None, 1024)])
def test_the_longest_input_is_that_of_the_base(
    base: BertTokenizer, tmp_path: Path, positions: int, stated: int | None, expected: int
) -> None:
    for name, changes in (
        ("config.json", {"max_position_embeddings": positions}),
        ("tokenizer_config.json", {"model_max_length": stated or VERY_LARGE_INTEGER}),
    ):
        path = tmp_path / "base" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert main(command(tmp_path, "--size", "600")) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer").model_max_length == expected


def test_a_cased_vocabulary_with_an_uncased_tokenizer_is_warned_about(
    tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    """As in repositories that have a vocab.txt but no tokenizer_config.json."""
    words = [*(f"word{number}" for number in range(400)), "Aspirin", "Asthma", "##Mg", "caf\u00e9"]

    def warnings(*more: str) -> list[str]:
        tokens = [*tiny_vocabulary(), *words, *more]
        cased = BertTokenizer(vocab={token: id for id, token in enumerate(tokens)})
        save_masked_lm(build_tiny_bert(len(cased)), cased, tmp_path / "base")
        for name in ("tokenizer_config.json", "tokenizer.json"):
            (tmp_path / "base" / name).unlink()
        assert main(command(tmp_path, "--size", "600", "--force")) == 0
        return warnings_of_package()

    assert warnings() == []  # 4 of 524 tokens
    (warning,) = warnings("Mice", "Gene")
    assert warning.startswith(f"{tmp_path / 'base'}: 6 of 526 tokens can never occur (Aspirin, Asthma, ##Mg, ...)")
    assert '{"do_lower_case": false}' in warning
    (tmp_path / "base" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert main(command(tmp_path, "--size", "600", "--force")) == 0
    assert len(warnings_of_package()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "^size: must be at least 1, not 0"),
        ({"min_frequency": 0}, "^min_frequency: must be at least 1, not 0"),
        ({"policy": "merge"}, "^policy: 'merge' is not one of replace, extend"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VocabularyOptions(**options)  # type: ignore[arg-type]


def test_a_corpus_that_changes_while_it_is_read(
    base: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It leaves nothing, neither a result nor an entry in the cache under the wrong hash."""
    text = Path(SAMPLE).read_bytes() * 20
    corpus = tmp_path / "corpus.txt"
    read = files.read_open_file

    def disturbed(opened: InputFile) -> Iterator[Any]:
        for number, document in enumerate(read(opened)):
            if number == 5:
                corpus.write_bytes(text[: len(text) // 2])
            yield document

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    corpus.write_bytes(text)
    monkeypatch.setattr(files, "read_open_file", disturbed)
    assert main(command(tmp_path, corpus=corpus)) == 2
    assert last_line(capsys) == f"error: {corpus} changed while it was being read: run the same command again"
    assert not (tmp_path / "run" / "tokenizer").exists()
    monkeypatch.setattr(files, "read_open_file", read)
    corpus.write_bytes(text)
    assert main(command(tmp_path, corpus=corpus)) == 0
    assert read_record(tmp_path / "run" / "tokenizer")["facts"]["text"]["documents"] == 20 * 87
