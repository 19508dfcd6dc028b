"""Test that the programs which others use read what we write."""

from __future__ import annotations

import gzip
import io
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bioc
import pandas as pd
import pyarrow.parquet
import pytest
from bioc import biocjson, biocxml, brat, pubtator
from bioc.validator import BioCValidator
from datasets import Features, List, Value, load_dataset
from lxml import etree

from bioptimus_hf.corpus.documents import Document, Entity, Passage, join_passages
from bioptimus_hf.corpus.formats import DocumentReader, write_documents
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError

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


def test_datasets_reads_json_lines_without_an_entity_in_the_first_file(tmp_path: Path) -> None:
    """As docs/data.md says."""
    write_documents(tmp_path / "a.jsonl", [Document("1", "no entity")])
    write_documents(tmp_path / "b.jsonl", [Document("2", TEXT, (Entity(0, 8, TEXT[:8], "Drug", 0.5),))])
    kinds = {"start": "int64", "end": "int64", "text": "string", "label": "string", "score": "float64"}
    entity = {name: Value(kind) for name, kind in kinds.items()}
    features = Features({"id": Value("string"), "text": Value("string"), "entities": List(entity)})
    rows = load_dataset("json", data_dir=str(tmp_path), features=features, split="train")
    assert [[found["text"] for found in row["entities"]] for row in rows] == [[], [TEXT[:8]]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_strict_parsers_read_our_json(name: str, tmp_path: Path) -> None:
    def reject(constant: str) -> None:
        raise AssertionError(constant)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    write_documents(tmp_path / name, [DOCUMENT])
    json.loads((tmp_path / name).read_text(), parse_constant=reject, object_pairs_hook=unique)


# The declarations of BioC.dtd, from https://bioc.sourceforge.net, where they are explained.
BIOC_DTD = """
<!ELEMENT collection ( source, date, key, infon*, document+ ) >
<!ELEMENT source (#PCDATA)>
<!ELEMENT date (#PCDATA)>
<!ELEMENT key (#PCDATA)>
<!ELEMENT infon (#PCDATA)>
<!ATTLIST infon key CDATA #REQUIRED >
<!ELEMENT document ( id, infon*, passage+, relation* ) >
<!ELEMENT id (#PCDATA)>
<!ELEMENT passage ( infon*, offset, ( ( text?, annotation* ) | sentence* ), relation* ) >
<!ELEMENT offset (#PCDATA)>
<!ELEMENT text (#PCDATA)>
<!ELEMENT sentence ( infon*, offset, text?, annotation*, relation* ) >
<!ELEMENT annotation ( infon*, location*, text ) >
<!ATTLIST annotation id CDATA #IMPLIED >
<!ELEMENT location EMPTY>
<!ATTLIST location offset CDATA #REQUIRED >
<!ATTLIST location length CDATA #REQUIRED >
<!ELEMENT relation ( infon*, node* ) >
<!ATTLIST relation id CDATA #IMPLIED >
<!ELEMENT node EMPTY>
<!ATTLIST node refid CDATA #REQUIRED >
<!ATTLIST node role CDATA "" >
"""
STRANGE = "</text>&amp; \"'\r\n\t\x00\x0b\ufffe\U0001f9ec"


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_our_bioc_xml_is_valid_and_bioc_reads_it(packed: str, tmp_path: Path) -> None:
    collection = {"source": "<A&B>", "date": 20260101, "key": "a.key", "infons": {"licence": "x", "more": ["y"]}}
    extra = {"collection": collection, "infons": {'a"<\n': True}}
    odd = Document("<1>", STRANGE, (Entity(0, len(STRANGE), STRANGE, "A & B", 0.5, "x<y"),), extra={})
    path = tmp_path / f"a.bioc.xml{packed}"
    write_documents(path, [replace(DOCUMENT, extra=extra), odd, Document("3", "")])
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    root = etree.fromstring(content)
    dtd = etree.DTD(io.StringIO(BIOC_DTD))
    assert dtd.validate(root), dtd.error_log
    assert [element.text for element in root[:5]] == ["<A&B>", "20260101", "a.key", "x", '["y"]']
    read = biocxml.load(io.BytesIO(content))
    for document in read.documents:
        BioCValidator().validate_doc(document)
    first, second, third = read.documents
    assert (first.id, first.infons) == ("227508", {'a"<\n': "true"})
    found = [annotation for passage in first.passages for annotation in passage.annotations]
    assert [(a.total_span.offset, a.total_span.end, a.text, a.infons["type"]) for a in found] == SPANS
    assert [a.infons.get("identifier") for a in found] == ["MESH:D009270", None, "-1"]
    expected = STRANGE.replace("\x00", "\ufffd").replace("\x0b", "\ufffd").replace("\ufffe", "\ufffd")
    assert second.passages[0].text == expected
    assert second.passages[0].annotations[0].text == expected
    assert not third.passages[0].text


def test_what_bioc_xml_cannot_hold_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    documents = [Document(str(number), "a\x00b", extra={"fields": {"year": 1981}}) for number in range(3)]
    write_documents(tmp_path / "a.bioc.xml", documents)
    assert caplog.messages == [
        "XML can't hold 3 control characters, replaced by U+FFFD",
        "the format bioc_xml has no other fields: left out 3 (year)",
    ]


@pytest.mark.parametrize("name", ["a.pubtator", "a.conll", "a.brat", "a.bioc.xml", "a.jsonl", "a.parquet", "a.json"])
def test_fields_that_a_format_cannot_hold_are_said_once(
    name: str, tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    """What is the id or a passage of the text isn't lost."""
    text, passages = join_passages(
        (text, None, {"type": kind}) for kind, text in (("title", "One"), ("abstract", "Two"))
    )
    documents = [
        Document(str(number), text, (), passages, extra={"fields": {"pmid": number, "title": "One", "year": 1981}})
        for number in range(3)
    ]
    write_documents(tmp_path / name, documents)
    format = "bioc_xml" if name.endswith(".xml") else name[2:]
    lost = format in ("pubtator", "conll", "brat", "bioc_xml")
    assert warnings_of_package() == [f"the format {format} has no other fields: left out 3 (year)"] * lost


def test_pubtator_says_how_many_breaks_became_spaces(
    tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    write_documents(tmp_path / "a.pubtator", [Document("1", "Title\nAbstract")])
    assert warnings_of_package() == []
    write_documents(tmp_path / "b.pubtator", [Document("1", "Title\nAb\tstract\nmore"), Document("2", "Title")])
    assert warnings_of_package() == ["PubTator can't hold tabs and line breaks in a text: wrote 2 of them as spaces"]
    passages = [Passage(0, 5, 0), Passage(6, 19, 6)]  # with a space between them
    write_documents(tmp_path / "c.pubtator", [Document("1", "Title Abstract\nmore", passages=passages)])
    assert warnings_of_package()[1:] == [
        "PubTator can't hold tabs and line breaks in a text: wrote 1 of them as spaces"
    ]


@pytest.mark.parametrize(("format", "separator"), [("csv", ","), ("tsv", "\t")])
def test_pandas_and_datasets_read_our_tables(format: str, separator: str, tmp_path: Path) -> None:
    text = 'A "b", c\t=SUM(A1)\r\nNA. -1 \rnull +x @y; \x00z\x0b. Next one\n\nis here. '
    mentions = ['"b"', "c\t=SUM(A1)", "=SUM(A1)", "NA", "-1 ", "\rnull", "+x", "@y", "\x00z", "\x0b. Next", "one\n\nis"]
    places = [(text.index(words), words) for words in mentions]
    entities = tuple(Entity(at, at + len(words), words, "NA", 1 / 3) for at, words in places)
    folder = tmp_path / "tables"
    folder.mkdir()
    for number in range(2):
        documents = [Document("007", text, entities), Document("8", "no entity"), DOCUMENT]
        write_documents(folder / f"{number}.{format}", documents, format=format)
    frame = pd.read_csv(folder / f"0.{format}", sep=separator, dtype={"document": str}, keep_default_na=False)
    assert list(frame) == ["document", "start", "end", "text", "label", "score", "sentence"]
    both = (*entities, *ENTITIES)
    assert frame["text"].tolist() == [entity.text for entity in both]
    assert frame["label"].tolist() == [entity.label for entity in both]
    assert frame["document"].tolist() == ["007"] * len(entities) + ["227508"] * len(ENTITIES)
    assert [(row.start, row.end) for row in frame.itertuples()] == [(entity.start, entity.end) for entity in both]
    assert frame["score"].tolist() == pytest.approx([entity.score for entity in both])
    assert frame["sentence"].tolist()[-1] == "Clonidine 🧬 and more."
    assert all(entity.text.strip() in sentence for entity, sentence in zip(both, frame["sentence"], strict=True))
    cache = str(tmp_path / "cache")
    rows = load_dataset("csv", data_dir=str(folder), sep=separator, split="train", cache_dir=cache)
    assert (len(rows), rows.column_names) == (2 * len(both), list(frame))


def test_the_sentence_of_an_entity_is_whole(tmp_path: Path) -> None:
    text = "First one. The second one is longer. A third. "
    spans = [(6, 9), (11, 14), (32, 38), (0, len(text)), (9, 10), (10, 12)]
    entities = tuple(Entity(start, end, text[start:end], "x") for start, end in spans)
    write_documents(tmp_path / "a.csv", [Document("1", text, entities)])
    first, second, third = "First one.", "The second one is longer.", "A third."
    assert pd.read_csv(tmp_path / "a.csv")["sentence"].tolist() == [
        *(first, second, f"{second} {third}", f"{first} {second} {third}", first, f"{first} {second}")
    ]
    # None crosses the edge of a passage.
    joined, passages = join_passages([("No full stop", None, {}), ("Next passage", None, {})])
    entity = Entity(13, 17, "Next", "x")
    write_documents(tmp_path / "a.csv", [Document("1", joined, (entity,), passages)])
    assert pd.read_csv(tmp_path / "a.csv")["sentence"].tolist() == ["Next passage"]


@pytest.mark.parametrize("format", ["csv", "tsv"])
def test_a_table_of_entities_is_not_one_of_documents(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{format}"
    write_documents(path, [DOCUMENT], format=format)
    with pytest.raises(InputError, match=rf"a\.{format} is a table of entities, .* set text_column to sentence"):
        list(DocumentReader(path, format=format))
    sentences = DocumentReader(path, format=format, options=ReadOptions(text_column="sentence", id_column="document"))
    assert [(document.id, document.text) for document in sentences][-1] == ("227508", "Clonidine 🧬 and more.")


def test_identifiers_that_a_table_has_not_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_documents(tmp_path / "a.csv", [DOCUMENT, DOCUMENT])
    assert caplog.messages == ["a table of entities has no identifiers: left out 4 identifiers"]


def test_pandas_and_datasets_read_our_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "annotated"
    folder.mkdir()
    documents = [replace(DOCUMENT, extra={"fields": {"year": 1981}}), Document("8", STRANGE)]
    write_documents(folder / "a.parquet", [Document("1", "no entity")])
    write_documents(folder / "b.parquet", documents)
    write_documents(folder / "c.parquet", [])
    schemas = [pyarrow.parquet.read_schema(path) for path in sorted(folder.iterdir())]
    assert schemas[0] == schemas[1] == schemas[2]
    frame = pd.read_parquet(folder / "b.parquet")
    assert frame["text"].tolist() == [TEXT, STRANGE]
    assert [(e["start"], e["end"], e["text"], e["label"]) for e in frame["entities"][0]] == SPANS
    assert [entity["score"] for entity in frame["entities"][0]] == [0.25, 1.0, 1.0]
    assert json.loads(frame["fields"][0]) == {"year": 1981}
    rows = load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["id"][:] == ["1", "227508", "8"]
    assert rows[1]["entities"][0]["identifier"] == "MESH:D009270"
    assert [(passage["start"], passage["end"]) for passage in rows[1]["passages"]] == [
        (passage.start, passage.end) for passage in PASSAGES
    ]


def test_memory_does_not_grow_while_parquet_is_written(tmp_path: Path) -> None:
    """Rows are written in groups, and what a group needs doesn't depend on the number of documents."""
    write_documents(tmp_path / "a.parquet", (Document(str(number), "x" * 50_000) for number in range(1_000)))
    file = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet")
    assert file.metadata.num_row_groups >= 5
    assert file.metadata.num_rows == 1_000


def test_half_a_surrogate_pair_outside_of_the_text(tmp_path: Path) -> None:
    document = Document("\ud800", "a", (Entity(0, 1, "a", "x"),))
    with pytest.raises(InputError, match=r"a\.parquet: document '\\ud800': half a surrogate pair outside of its text"):
        write_documents(tmp_path / "a.parquet", [document])
    assert list(tmp_path.iterdir()) == []
    write_documents(tmp_path / "a.csv", [document])
    assert pd.read_csv(tmp_path / "a.csv")["document"].tolist() == ["\\ud800"]
    write_documents(tmp_path / "a.bioc.xml", [document])
    assert [found.id for found in DocumentReader(tmp_path / "a.bioc.xml")] == ["\ufffd"]


def test_bioc_reads_our_brat(tmp_path: Path) -> None:
    across = mention("Blockers.\nClonidine", "Both")
    write_documents(tmp_path / "a.brat", [replace(DOCUMENT, entities=(*ENTITIES, across))])
    text, annotations = (tmp_path / "a.brat" / f"227508.{end}" for end in ("txt", "ann"))
    with open(text, encoding="utf-8") as text_file, open(annotations, encoding="utf-8") as annotation_file:
        found = brat.load(text_file, annotation_file)
    assert found.text == TEXT
    *plain, last = sorted(found.entities, key=lambda entity: int(entity.id[1:]))
    assert [(*e.total_span, e.text, e.type) for e in plain] == SPANS
    line_break = TEXT.index("\n")
    places = [(across.start, line_break), (line_break + 1, across.end)]
    assert [(place.begin, place.end) for place in sorted(last.locations)] == places
    assert last.text == "Blockers. Clonidine"
