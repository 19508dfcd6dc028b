"""Test that the programs which others use read what we write."""

from __future__ import annotations

import json
from pathlib import Path

import bioc
import pandas as pd
import pytest
from bioc import biocjson, pubtator
from datasets import load_dataset

from bioptimus_hf.corpus.documents import Document, Entity, join_passages
from bioptimus_hf.corpus.formats import DocumentReader, write_documents

SECTIONS = [("Naloxone, β-Blockers.", None, {"type": "title"}), ("Clonidine 🧬 and more.", None, {"type": "abstract"})]
TEXT, PASSAGES = join_passages(SECTIONS)


def mention(words: str, label: str, identifier: str = "", score: float = 1.0) -> Entity:
    start = TEXT.index(words)
    return Entity(start, start + len(words), words, label, score, identifier)


ENTITIES = (
    mention("Naloxone", "Chemical", "MESH:D009270", 0.25),
    mention("β-Blockers", "Chemical"),
    mention("Clonidine", "Chemical", "-1"),
)
DOCUMENT = Document(
    "227508", TEXT, ENTITIES, PASSAGES, extra={"relations": [["CID", "D009270", "D003000"], ["Bind", "7", "9", "No"]]}
)
SPANS = [(entity.start, entity.end, entity.text, entity.label) for entity in ENTITIES]


def test_bioc_reads_our_pubtator(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.pubtator", [DOCUMENT, Document("2", "Only a title")])
    with open(tmp_path / "a.pubtator", encoding="utf-8") as file:
        first, second = pubtator.load(file)
    assert (first.pmid, first.text, second.text) == ("227508", TEXT, "Only a title")
    assert [(int(a.start), int(a.end), a.text, a.type) for a in first.annotations] == SPANS
    assert [annotation.id for annotation in first.annotations] == ["MESH:D009270", "-", "-1"]
    assert [(r.type, r.id1, r.id2, r.neg) for r in first.relations] == [
        ("CID", "D009270", "D003000", None),
        ("Bind", "7", "9", "No"),
    ]
    # And we read what it writes.
    (tmp_path / "b.pubtator").write_text("\n".join(str(document) for document in (first, second)))
    (again, _) = DocumentReader(tmp_path / "b.pubtator")
    assert (again.text, [e.text for e in again.entities]) == (TEXT, [e.text for e in ENTITIES])
    assert len(again.extra["relations"]) == 2


def test_pubtator_survives_a_round_trip(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.pubtator", [DOCUMENT])
    write_documents(tmp_path / "b.pubtator", DocumentReader(tmp_path / "a.pubtator"))
    assert (tmp_path / "b.pubtator").read_bytes() == (tmp_path / "a.pubtator").read_bytes()
    (found,) = DocumentReader(tmp_path / "a.pubtator")
    assert [entity.identifier for entity in found.entities] == ["MESH:D009270", "", "-1"]


def test_bioc_reads_our_bioc_json_and_we_read_its_xml(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.json", [DOCUMENT, Document("2", "")])
    with open(tmp_path / "a.json", encoding="utf-8") as file:
        collection = biocjson.load(file)
    first = collection.documents[0]
    assert (first.id, [passage.text for passage in first.passages]) == ("227508", [section[0] for section in SECTIONS])
    found = [annotation for passage in first.passages for annotation in passage.annotations]
    assert [(a.total_span.offset, a.total_span.offset + a.total_span.length) for a in found] == [s[:2] for s in SPANS]
    assert [(annotation.text, annotation.infons["type"]) for annotation in found] == [span[2:] for span in SPANS]
    for infons in (annotation.infons for annotation in found):
        infons["score"] = str(infons["score"])  # XML has no numbers
    with open(tmp_path / "b.xml", "w", encoding="utf-8") as file:
        bioc.dump(collection, file)
    from_json, from_xml = (list(DocumentReader(tmp_path / name)) for name in ("a.json", "b.xml"))
    assert [document.text for document in from_xml] == [document.text for document in from_json]
    assert from_xml[0].entities == from_json[0].entities
    assert from_xml[0].passages == from_json[0].passages


def test_pandas_and_datasets_read_our_json_lines(tmp_path: Path) -> None:
    row = {"id": 7, "text": TEXT, "year": 1981, "score": 0.1, "authors": ["A B"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "id": 8}) + "\n")
    folder = tmp_path / "annotated"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        annotated = (
            Document(document.id, document.text, ENTITIES, extra=document.extra)
            for document in DocumentReader(tmp_path / "a.jsonl")
        )
        write_documents(folder / name, annotated)
    frame = pd.read_json(folder / "a.jsonl", lines=True)
    assert frame["id"].tolist() == [7, 8]
    assert [(e["start"], e["end"], e["text"], e["label"]) for e in frame["entities"][0]] == SPANS
    dataset = load_dataset(str(folder), split="train")
    assert (len(dataset), dataset[0]["text"], dataset[0]["year"]) == (4, TEXT, 1981)
    assert dataset[3]["entities"][0]["text"] == "Naloxone"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_strict_parsers_read_our_json(name: str, tmp_path: Path) -> None:
    def reject(constant: str) -> None:
        raise AssertionError(constant)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    write_documents(tmp_path / name, [DOCUMENT])
    json.loads((tmp_path / name).read_text(), parse_constant=reject, object_pairs_hook=unique)
