"""Annotate tables, whole text files and data sets on the Hub: names, ids, records and entities within their fields."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import bioptimus_hf.corpus.hub
from bioptimus_hf.annotation.annotate_files import annotate_files
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.inputs import record_of
from bioptimus_hf.annotation.options import AnnotationOptions
from bioptimus_hf.artifacts import read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.corpus.formats import DocumentReader
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import Source

TITLE = "Aspirin and severe asthma"
ABSTRACT = "Bronchoconstriction was induced by aspirin in patients with acute renal failure."
COMMIT = "0123456789" * 4


def annotate(model: Path, source: str | Path, output_dir: Path, **options: Any) -> list[Path]:
    return annotate_files(AnnotationOptions([str(model)], [str(source)], str(output_dir), **options))


def test_entities_lie_within_fields(tiny_head: Path, tmp_path: Path) -> None:
    """Each field is annotated by itself, and its place says where its entities are in it."""
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["pmid", "title", "abstract", "year"], ["12", TITLE, ABSTRACT, "1999"]])
    arguments = ["--models", str(tiny_head), "--input", str(tmp_path / "a.csv"), "--output_dir", str(tmp_path / "out")]
    assert main(["annotate", *arguments, "--text_column", "title", "abstract", "--id_column", "pmid"]) == 0
    row = json.loads((tmp_path / "out" / "a.csv.jsonl").read_text())
    assert (row["id"], row["pmid"], row["title"], row["abstract"], row["year"]) == ("12", "12", TITLE, ABSTRACT, "1999")
    assert row["text"] == f"{TITLE}\n{ABSTRACT}"
    places = {place["field"]: (place["start"], place["end"]) for place in row["passages"]}
    found = {
        field: [
            (entity["start"] - start, entity["end"] - start, entity["text"], entity["label"])
            for entity in row["entities"]
            if start <= entity["start"] and entity["end"] <= end
        ]
        for field, (start, end) in places.items()
    }
    assert sum(map(len, found.values())) == len(row["entities"]) > 0
    for field, entities in zip(
        ("title", "abstract"), Annotator(str(tiny_head)).annotate([TITLE, ABSTRACT]), strict=True
    ):
        assert found[field] == [(one.start, one.end, one.text, one.label) for one in entities]
    settings = read_record(record_of(tmp_path / "out" / "a.csv.jsonl"))["settings"]
    assert (settings["text_column"], settings["id_column"]) == (["title", "abstract"], "pmid")
    assert "unit" not in settings


def test_columns_may_be_a_list_or_a_name_in_a_recipe(tiny_head: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"title": TITLE, "abstract": ABSTRACT}))
    for number, (columns, text) in enumerate(
        [("[title, abstract]", f"{TITLE}\n{ABSTRACT}"), ("abstract", ABSTRACT), ("[abstract]", ABSTRACT)]
    ):
        recipe = tmp_path / f"{number}.yaml"
        recipe.write_text(f"annotate:\n  text_column: {columns}\n  models: [{tiny_head}]\n  input: [a.jsonl]\n")
        assert main(["annotate", "--recipe", str(recipe), "--output_dir", str(tmp_path / f"out{number}")]) == 0
        (document,) = DocumentReader(tmp_path / f"out{number}" / "a.jsonl.jsonl")
        assert document.text == text


def test_whole_files_are_documents(tiny_head: Path, tmp_path: Path) -> None:
    source = tmp_path / "notes"
    (source / "deep").mkdir(parents=True)
    for number in range(12):
        (source / f"{number}.txt").write_bytes(f"{TITLE}.\r\n\r\nNote {number}.\n".encode())
    (source / "deep" / "empty.txt").touch()
    for pattern in (source, f"{source}/*.txt"):
        with pytest.raises(InputError, match=r"^unit: 1[23] small files of plain text .* say line if .*, or file if"):
            annotate(tiny_head, pattern, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    written = annotate(tiny_head, source, tmp_path / "out", unit="file")
    assert len(written) == 13
    documents = {document.id: document.text for path in written for document in DocumentReader(path)}
    assert documents.keys() == {*map(str, range(12)), "deep/empty"}
    assert documents["3"] == f"{TITLE}.\r\n\r\nNote 3.\n"
    assert documents["deep/empty"] == ""
    assert read_record(record_of(written[0]))["settings"]["unit"] == "file"
    with pytest.raises(InputError, match="different unit"):
        annotate(tiny_head, source, tmp_path / "out", unit="line")


@pytest.fixture
def abstracts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """A data set on the Hub of two rows, and what is asked of it."""
    asked: list[tuple[str, str, str]] = []

    def load_dataset(name: str, *, revision: str, split: str) -> Dataset:
        asked.append((name, revision, split))
        return Dataset.from_dict(
            {"pmid": [11, 12], "title": [TITLE, None], "abstract": [ABSTRACT, "Mice."], "mesh": [["a"], []]}
        )

    def find_files(name: str, patterns: list[str]) -> Source:
        if name.startswith("missing"):
            raise InputError(f"{name} isn't available")
        return Source("anywhere", f"{name.partition('@')[0]}@{COMMIT}")

    monkeypatch.setattr(bioptimus_hf.corpus.hub, "load_dataset", load_dataset)
    monkeypatch.setattr(bioptimus_hf.corpus.hub, "find_files", find_files)
    monkeypatch.setattr(bioptimus_hf.corpus.hub.constants, "HF_HUB_OFFLINE", False)
    return asked


@pytest.mark.parametrize(
    ("source", "split", "target"),
    [
        ("some/abstracts", "train", "some--abstracts--train.jsonl"),
        ("some/abstracts:test", "test", "some--abstracts--test.jsonl"),
        ("some/abstracts@v1:train[:50%]", "train[:50%]", "some--abstracts--train__50__.jsonl"),
    ],
)
def test_data_sets_on_the_hub(
    source: str, split: str, target: str, tiny_head: Path, abstracts: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = {"text_column": ["title", "abstract"], "id_column": "pmid"}
    assert annotate(tiny_head, source, out, **options) == [out / target]
    assert abstracts == [("some/abstracts", COMMIT, split)]
    first, second = DocumentReader(out / target)
    assert (first.id, first.text, second.text) == ("11", f"{TITLE}\n{ABSTRACT}", "\nMice.")
    assert dict(first.extra["fields"]) == {"pmid": 11, "title": TITLE, "abstract": ABSTRACT, "mesh": ["a"]}
    record = read_record(record_of(out / target))
    assert record["inputs"]["file"] == f"name:some/abstracts@{COMMIT}:{split}"
    assert record["facts"]["documents"] == 2
    before = (out / target).stat().st_mtime_ns
    annotate(tiny_head, source, out, **options)  # is finished
    assert (out / target).stat().st_mtime_ns == before
    assert len(abstracts) == 1


def test_data_sets_that_cannot_be_annotated(
    tiny_head: Path, abstracts: list[tuple[str, str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match="some/abstracts has no column 'text': it has pmid, title, abstract, mesh: set"
    ):
        annotate(tiny_head, "some/abstracts", out)
    with pytest.raises(InputError, match=r"'mesh' isn't a string column but list<.*>: set text_column to one of title"):
        annotate(tiny_head, "some/abstracts", out, text_column="mesh")
    with pytest.raises(InputError, match="'mesh' must be strings or integers, not list"):
        annotate(tiny_head, "some/abstracts", out, text_column="abstract", id_column="mesh")
    with pytest.raises(
        InputError, match="no documents at missing/abstracts: not a local file and not an available Hub"
    ):
        annotate(tiny_head, "missing/abstracts", out)
    with pytest.raises(InputError, match=r"no documents at missing/a\.csv: name a file"):  # a file, not a data set
        annotate(tiny_head, "missing/a.csv", out)
    assert not list(out.rglob("*.jsonl"))
    (target,) = annotate(tiny_head, "some/abstracts", out, text_column="abstract")
    assert [document.id for document in DocumentReader(target)] == [
        "some--abstracts--train:1",
        "some--abstracts--train:2",
    ]
