"""Test formats whose documents are rows: columns of text and id, exact values, and what is wrong in malformed files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bioptimus_hf.corpus.json_array
from bioptimus_hf import load_corpus
from bioptimus_hf.corpus.dataset import load_text
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.files import CorpusFile, TextCounts, TextOptions, texts_of
from bioptimus_hf.corpus.formats import READABLE, DocumentReader, write_documents
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError

WITHIN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ROWS = [
    {"pmid": "1", "title": "Aspirin.", "abstract": 'It acts on β-cells 🧬.\nTwice, "really"; it\tdoes.', "year": "NA"},
    {"pmid": "2", "title": "", "abstract": "No title.", "year": "007"},
    {"pmid": "3", "title": "", "abstract": "", "year": ""},
]
JOINED = ["Aspirin.\n" + ROWS[0]["abstract"], "\nNo title.", ""]


def read(path: Path, on_error: Any = "raise", format: str | None = None, **options: Any) -> list[Document]:
    return list(DocumentReader(path, on_error=on_error, format=format, options=ReadOptions(**options)))


def put(path: Path, content: str | bytes) -> Path:
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def table(rows: list[dict[str, Any]], delimiter: str = ",", **how: Any) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, **how)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that a name stands for."""
    ending = path.name.partition(".")[2].removesuffix(".gz")
    if ending == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    content = {
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows, indent=1),
        "csv": table(rows),
        "semicolon.csv": "\ufeff" + table(rows, ";", lineterminator="\n"),
        "tab.csv": table(rows, "\t"),
        "tsv": table(rows, "\t", quoting=csv.QUOTE_ALL),
    }
    return put(path, content[ending])


OF_ROWS = ["a.jsonl", "a.json", "a.csv", "a.semicolon.csv", "a.tab.csv", "a.tsv", "a.csv.gz", "a.tsv.gz", "a.parquet"]
"""Names of files in formats whose documents are rows."""


@pytest.mark.parametrize("name", OF_ROWS)
def test_columns_of_text_and_id_in_every_format(name: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / name, ROWS)
    found = read(file, text_column="abstract", id_column="pmid")
    assert [(document.id, document.text) for document in found] == [(row["pmid"], row["abstract"]) for row in ROWS]
    others = [{name: row[name] for name in ("pmid", "title", "year")} for row in ROWS]
    assert [dict(document.extra["fields"]) for document in found] == others
    assert [document.id for document in read(file, text_column="abstract")] == ["1", "2", "3"]
    assert read(file, text_column="abstract", place="sub/a")[1].id == "sub/a:2"
    assert load_corpus(file, text_column="abstract")["text"][:] == [row["abstract"] for row in ROWS[:2]]
    write_documents(tmp_path / "b.jsonl", found)
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    expected = [{**other, "id": row["pmid"], "text": row["abstract"]} for other, row in zip(others, ROWS, strict=True)]
    assert rows == [{**row, "entities": []} for row in expected]


@pytest.mark.parametrize("name", OF_ROWS)
def test_several_columns_are_passages(name: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / name, ROWS)
    found = read(file, text_column=["title", "abstract"], id_column="pmid")
    assert [document.text for document in found] == JOINED
    first, second, third = found
    assert [(first.text[one.start : one.end], one.infons) for one in first.passages] == [
        (ROWS[0]["title"], {"type": "title"}),
        (ROWS[0]["abstract"], {"type": "abstract"}),
    ]
    assert [(one.start, one.end) for one in second.passages] == [(0, 0), (1, 10)]
    assert third.passages == ()
    assert [dict(document.extra["fields"]) for document in found] == ROWS
    texts = load_corpus(file, text_column=["title", "abstract"])["text"][:]
    assert texts == JOINED[:2]
    # What is written says where each field lies, and gives the same documents again.
    for target in ("b.jsonl", "b.parquet"):
        write_documents(tmp_path / target, found)
        again = read(tmp_path / target)
        assert [(one.id, one.text, one.passages) for one in again] == [
            (one.id, one.text, one.passages) for one in found
        ]
        assert [dict(document.extra["fields"]) for document in again] == ROWS
        write_documents(tmp_path / "c.jsonl", again)
        write_documents(tmp_path / "d.jsonl", found)
        assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "d.jsonl").read_bytes()
    line = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert line["passages"] == [
        {"field": "title", "start": 0, "end": 8},
        {"field": "abstract", "start": 9, "end": len(first.text)},
    ]
    assert {name: line[name] for name in ROWS[0]} == ROWS[0]


def test_a_column_among_several_may_be_missing_from_a_row(
    tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    file = put(tmp_path / "a.jsonl", '{"title": "One"}\n{"title": null, "text": "two"}\n{"text": "three"}\n')
    found = read(file, text_column=["title", "text"])
    assert [document.text for document in found] == ["One\n", "\ntwo", "\nthree"]
    assert warnings_of_package() == [
        f"{file}: rows without a text under 'text': 1 (for example line 1)",
        f"{file}: rows without a text under 'title': 1 (for example line 3)",
    ]
    write_documents(tmp_path / "b.jsonl", found)  # the field `text` is where `passages` says
    assert [(one.text, one.passages) for one in read(tmp_path / "b.jsonl")] == [
        (one.text, one.passages) for one in found
    ]
    with pytest.raises(InputError, match=r"line 1: no text under 'a' \(the row has title\): set text_column"):
        read(file, text_column=["a", "b"])


@pytest.mark.parametrize(
    ("places", "problem"),
    [
        ([{"field": "a", "start": 0, "end": 9}], "isn't at 0:9 of the text, which has 3 characters"),
        ([{"field": "a", "start": 2, "end": 1}], "isn't at 2:1"),
        ([{"field": "a", "start": -1, "end": 1}], "isn't at -1:1"),
        ([{"field": "a", "start": 0, "end": 2}, {"field": "b", "start": 1, "end": 3}], "the field 'b' isn't at 1:3"),
        ([{"field": "a", "start": 0.0, "end": 1}], "isn't at 0.0:1"),
    ],
)
def test_places_beyond_the_text(places: list[dict[str, Any]], problem: str, tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", json.dumps({"text": "abc", "passages": places}))
    with pytest.raises(InputError, match=f"line 1: .*{problem}"):
        read(file)


@pytest.mark.parametrize("value", [[], [1], "none", [{"start": 0, "end": 1}], [{"field": 1, "start": 0, "end": 1}]])
def test_a_field_that_is_called_passages(value: Any, tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", json.dumps({"text": "abc", "passages": value}))
    (document,) = read(file)
    assert (document.passages, document.extra["fields"]["passages"]) == ((), value)


PIECES = [*'abcé🧬",;\t', "\n", "\r\n", " ", "'", "\\", "\u2028", "NA", "1.0"]
CELLS = st.lists(st.sampled_from([*PIECES, "\r"]), max_size=9).map("".join)
CELLS_OF_PANDAS = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)  # a \r alone would be a line end


@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5), delimiter=st.sampled_from(",;\t"))
@WITHIN
def test_any_cell_survives_in_a_table(rows: list[tuple[str, str, str]], delimiter: str, tmp_path: Path) -> None:
    """As the module csv writes them, which quotes what needs it."""
    written = [dict(zip(("id", "text", "note"), row, strict=True)) for row in rows]
    file = put(tmp_path / "a.csv", table(written, delimiter))
    found = read(file)
    assert [(one.text, one.extra["fields"]) for one in found] == [(row[1], {"note": row[2]}) for row in rows]
    assert [one.id for one in found] == [row[0] or str(number) for number, row in enumerate(rows, start=1)]


@given(rows=st.lists(st.tuples(CELLS_OF_PANDAS, CELLS_OF_PANDAS), min_size=1, max_size=5))
@WITHIN
def test_tables_of_pandas(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows, columns=["text", "note"])
    frame.to_csv(tmp_path / "a.csv")  # with its index in a column without a name
    found = read(tmp_path / "a.csv")
    assert [(one.text, one.extra["fields"]["note"]) for one in found] == rows
    assert [one.extra["fields"][""] for one in found] == [str(number) for number in range(len(rows))]


def test_a_long_cell_is_read_and_the_limit_of_the_module_csv_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    file = put(tmp_path / "a.csv", table([{"text": "a" * 300_000}, {"text": "b,"}]))
    assert [len(document.text) for document in read(file)] == [300_000, 2]
    assert csv.field_size_limit() == before


@given(
    values=st.lists(st.dictionaries(st.sampled_from("abcd"), st.text('a"\\[]{},:é\n', max_size=5)), max_size=4),
    size=st.integers(1, 7),
    indent=st.sampled_from([None, 0, 2]),
)
@WITHIN
def test_an_array_has_the_documents_of_its_lines(
    values: list[dict[str, str]], size: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**value, "text": f"{number}"} for number, value in enumerate(values)]
    put(tmp_path / "a.json", "\ufeff" + json.dumps(rows, indent=indent, ensure_ascii=False) + "\n")
    put(tmp_path / "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    with monkeypatch.context() as patched:
        patched.setattr(bioptimus_hf.corpus.json_array, "_READ_AT_ONCE", size)
        found = read(tmp_path / "a.json")
    assert found == read(tmp_path / "a.jsonl")


def test_an_array_keeps_other_fields_as_they_were_written(tmp_path: Path) -> None:
    file = put(tmp_path / "a.json", '[{"text": "x", "n": 1.50, "l": [1,\r\n   2e5], "s": "\\u00e9"}]')
    write_documents(tmp_path / "b.jsonl", read(file))
    expected = '{"id": "1", "n": 1.50, "l": [1, 2e5], "s": "\\u00e9", "text": "x", "entities": []}\n'
    assert (tmp_path / "b.jsonl").read_text() == expected


@pytest.mark.parametrize(
    ("name", "content", "columns", "kind"),
    [
        ("a.tsv", "id\ttext\n1\tone\n", "text", "tsv"),
        ("a.tsv", "text\tid\nNone\tO\n", "text", "tsv"),
        ("a.tsv", "text\tO\nof\tO\n\nAspirin\tB-Drug\n", "text", "conll"),
        ("a.tsv", "Aspirin\tB-Drug\nworks\tO\n", "text", "conll"),
        ("a.tsv.gz", "pmid\ttitle\tabstract\n1\tone\ttwo\n", ["title", "abstract"], "tsv"),
        ("a.json", '[{"text": "one"}]', "text", "json"),
        ("a.json", '[{"passages": [{"a": 1}], "text": "one"}]', "text", "json"),
        ("a.json", '[{"abstract": "one", "infons": {}}]', "abstract", "json"),
        ("a.json", '[{"id": "1", "infons": {}, "passages": [{"offset": 0, "text": "one"}]}]', "text", "bioc"),
        ("a.json", '[{"source": "", "documents": [{"id": "1", "passages": []}]}]', "text", "bioc"),
        ("a.json", '[{"id": "1", "infons": {"long": "' + "x" * 9000 + '"}, "passages": []}]', "text", "bioc"),
        ("a.json", '{"documents": [{"id": "1", "passages": []}]}', "text", "bioc"),
        ("a.json", "\ufeff \n[ ]", "text", "json"),
    ],
)
def test_the_content_tells_formats_with_the_same_suffix_apart(
    name: str, content: str, columns: str | list[str], kind: str, tmp_path: Path
) -> None:
    file = put(tmp_path / name, content)
    assert read(file, text_column=columns) == read(file, text_column=columns, format=kind)


XML = '<?xml version="1.0"?>\n'
PUBMED_ARTICLE = (
    "<PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>One é</ArticleTitle></Article>"
    "</MedlineCitation></PubmedArticle>"
)
JATS_ARTICLE = (
    '<article><front><article-meta><article-id pub-id-type="pmid">1</article-id><title-group><article-title>One é'
    "</article-title></title-group></article-meta></front></article>"
)
BIOC_BEYOND = {"infons": {"type": "Drug"}, "text": "é", "locations": [{"offset": 9, "length": 1}]}
BIOC_PASSAGE = {"offset": 0, "text": "One é", "annotations": [BIOC_BEYOND]}
BIOC_DOCUMENT = {"id": "1", "passages": [{"offset": 0, "text": "One é"}]}
ENTITY = {"start": 9, "end": 10, "text": "é", "label": "Drug"}


def bioc_xml(annotation: str = "") -> str:
    passage = f"<passage><offset>0</offset><text>One é</text>{annotation}</passage>"
    return f"<document><id>1</id>{passage}</document>"


def parquet(*columns: tuple[str, list[Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    names, values = zip(*columns, strict=True)
    pyarrow.parquet.write_table(pa.Table.from_arrays([pa.array(value) for value in values], list(names)), sink)
    return bytes(sink.getvalue().to_pybytes())


def cut(content: str) -> bytes:
    return gzip.compress(content.encode())[:-9]


def latin(content: str) -> bytes:
    return content.encode("latin-1")


NOT_COMPLETE = "is not a complete gzip file"
NOT_UTF8 = "not valid UTF-8"
NOT_XML = "not well-formed XML"
# For each format what is wrong with a file: its name, its content, and the error or the number of its documents.
MALFORMED: dict[str, dict[str, tuple[str, str | bytes, str | int]]] = {
    "txt": {
        "truncated": ("a.txt.gz", cut("One é\n"), NOT_COMPLETE),
        "empty": ("a.txt", "", 0),
        "wrong encoding": ("a.txt", latin("One é\n"), f"line 1: {NOT_UTF8} at byte 4"),
        "duplicate": ("a.txt", "One\nOne\n", 2),
        "beyond": ("a.txt", "One\n", 1),  # has no offsets
    },
    "jsonl": {
        "truncated": ("a.jsonl", '{"text": "One', "line 1: not JSON"),
        "empty": ("a.jsonl", "", 0),
        "wrong encoding": ("a.jsonl", latin('{"text": "One é"}'), f"line 1: {NOT_UTF8} at byte 14"),
        "duplicate": ("a.jsonl", '{"text": "One", "id": 1}\n{"text": "One", "id": 1}', 2),
        "duplicate column": (
            "a.jsonl",
            '{"text": "One", "text": "é"}',
            "line 1: not JSON .the key 'text' occurs twice",
        ),
        "beyond": ("a.jsonl", json.dumps({"text": "One é", "entities": [ENTITY]}), "line 1: .* fix its offsets"),
        "no text": ("a.jsonl", '{"title": "x", "abstract": "y"}', "the row has title, abstract.: set text_column"),
        "id": ("a.jsonl", '{"text": "One", "id": 1.5}', "'id' must be a string or an integer, not 1.5"),
    },
    "json": {
        "truncated": ("a.json", '[{"text": "One"},\n {"text": "tw', "ends within element 2, which begins in line 2"),
        "truncated element": ("a.json", '[{"text": "One"}', "not a complete JSON array, it ends within element 1"),
        "empty": ("a.json", "[]", 0),
        "wrong encoding": ("a.json", latin('[{"text": "One é"}]'), f"element 1, line 1: {NOT_UTF8}"),
        "duplicate": ("a.json", '[{"text": "One", "id": 1}, {"text": "One", "id": 1}]', 2),
        "duplicate column": ("a.json", '[{"text": "One", "text": ""}]', "element 1, line 1: .*'text' occurs twice"),
        "beyond": ("a.json", json.dumps([{"text": "One é", "entities": [ENTITY]}]), "element 1.* fix its offsets"),
        "no text": ("a.json", '[{"title": "x"}]', "element 1, line 1: no text under 'text' .the row has title.: set"),
        "trailing comma": ("a.json", '[{"text": "One"},\n]', "element 2, line 2: not JSON"),
        "not closed": ("a.json", '[{"text": "One"}}', "line 1: the array isn't closed by ]"),
        "more": ("a.json", '[{"text": "One"}]\n[]', "line 2: something follows the array"),
        "text after": ("a.json", '[{"text": "One"}]\nx', "line 2: something follows the array"),
        "another element": ("a.json", '[{"text": "One"}, 3]', "element 2, line 1: JSON, but not an object"),
    },
    "csv": {
        "truncated": ("a.csv", 'text\n"One\nand', "row that begins in line 2 and is read to line 3: unexpected end"),
        "empty": ("a.csv", "", "is empty: a table begins with a line that names its columns"),
        "header alone": ("a.csv", "id,text\r\n", 0),
        "wrong encoding": ("a.csv", latin('id,text\n1,"x\né"\n'), f"line 3: {NOT_UTF8} at byte 13"),
        "wrong encoding of the header": ("a.csv", latin("id,text,é\n1,x,\n"), f"line 1: {NOT_UTF8} at byte 8"),
        "duplicate": ("a.csv", "id,text\n1,One\n1,One\n", 2),
        "duplicate column": ("a.csv", "text;text\n1;One\n", "two columns with the name 'text': rename one"),
        "beyond": ("a.csv", table([{"text": "é", "entities": json.dumps([ENTITY])}]), "must be a list of objects"),
        "no text": (
            "a.csv",
            "id,title,abstract\n1,a,b\n",
            "has no column 'text': it has id, title, abstract: set text_",
        ),
        "more columns": (
            "a.csv",
            "id,text\n1,One\n2,One, two\n",
            "line 3: 3 columns, not 2 .*quote fields that contain c",
        ),
        "fewer columns": (
            "a.csv",
            'id;text\n1;"\n"\n2\n',
            "line 4: 1 column, not 2 as in the header: complete the row",
        ),
        "after a quote": ("a.csv", 'id,text\n1,"One"x\n', "row that begins in line 2 .* expected after"),
        "carriage returns": ("a.csv", "id,text\r1,One\r", "lines end in carriage returns alone"),
    },
    "tsv": {
        "truncated": ("a.tsv.gz", cut("id\ttext\n1\tOne\n"), NOT_COMPLETE),
        "empty": ("a.tsv", "id\ttext\n", 0),
        "wrong encoding": ("a.tsv", latin("id\ttext\n1\té\n"), f"line 2: {NOT_UTF8} at byte 10"),
        "duplicate": ("a.tsv", "id\ttext\n1\tOne\n1\tOne\n", 2),
        "duplicate column": ("a.tsv", "text\tid\tid\nOne\t1\t1\n", "two columns with the name 'id'"),
        "beyond": ("a.tsv", "id\ttext\tend\n1\tOne\t9\n", 1),  # has no offsets
        "no text": ("a.tsv", "pmid\tabstract\n1\tOne\n", "set text_column to one of its columns: pmid, abstract"),
        "more columns": (
            "a.tsv",
            "id\ttext\n1\tOne\ttwo\n",
            "line 2: 3 columns, not 2 .*: quote fields that contain tabs",
        ),
    },
    "parquet": {
        "truncated": ("a.parquet", parquet(("text", ["One"]))[:-9], "is not a complete Parquet file"),
        "empty": ("a.parquet", "", "is not a complete Parquet file"),
        "wrong encoding": (
            "a.parquet",
            parquet(("text", [b"\xe9"])).replace(b"\0", b"\0"),
            "has no column of strings: it has text .binary.: give a table with texts",
        ),
        "duplicate": ("a.parquet", parquet(("id", [1, 1]), ("text", ["One", "One"])), 2),
        "duplicate column": (
            "a.parquet",
            parquet(("text", ["x"]), ("text", ["y"])),
            "two columns with the name 'text'",
        ),
        "beyond": ("a.parquet", parquet(("text", ["é"]), ("entities", [[ENTITY]])), "row 1: .* fix its offsets"),
        "numbers": (
            "a.parquet",
            parquet(("a", [1]), ("b", [0.5])),
            "no column of strings: it has a .int64., b .double.",
        ),
        "lists": ("a.parquet", parquet(("text", [["x"]]), ("b", ["y"])), "isn't a string column but list.*: set text_"),
        "no text": (
            "a.parquet",
            parquet(("id", ["x"]), ("body", ["y"])),
            "no column 'text': it has id, body: set text_c",
        ),
        "id": ("a.parquet", parquet(("id", [1.5]), ("text", ["x"])), "'id' must be strings or integers, not double"),
    },
    "pubmed": {
        "truncated": ("a.xml", f"{XML}<PubmedArticleSet>{PUBMED_ARTICLE}<Pub", NOT_XML),
        "empty": ("a.xml", "", NOT_XML),
        "wrong encoding": ("a.xml", latin(f"{XML}<PubmedArticleSet>{PUBMED_ARTICLE}</PubmedArticleSet>"), NOT_XML),
        "duplicate": ("a.xml", f"<PubmedArticleSet>{PUBMED_ARTICLE * 2}</PubmedArticleSet>", 2),
        "beyond": ("a.xml", f"<PubmedArticleSet>{PUBMED_ARTICLE}</PubmedArticleSet>", 1),  # has no offsets
        "another kind": ("a.xml", "<html/>", "the root element <html>: give XML as PubMed exports it"),
    },
    "jats": {
        "truncated": ("a.nxml", JATS_ARTICLE[:-9], NOT_XML),
        "empty": ("a.nxml", "", NOT_XML),
        "wrong encoding": ("a.nxml", latin(JATS_ARTICLE), NOT_XML),
        "duplicate": ("a.nxml", f"<pmc-articleset>{JATS_ARTICLE * 2}</pmc-articleset>", 2),
        "beyond": ("a.nxml", JATS_ARTICLE, 1),  # has no offsets
    },
    "pubtator": {
        "truncated": ("a.pubtator.gz", cut("1|t|One é\n"), NOT_COMPLETE),
        "empty": ("a.pubtator", "", 0),
        "wrong encoding": ("a.pubtator", latin("1|t|One é\n"), f"line 1: {NOT_UTF8} at byte 8"),
        "duplicate": ("a.pubtator", "1|t|One\n\n1|t|One\n", 2),
        "beyond": ("a.pubtator", "1|t|One é\n1\t9\t10\té\tDrug\n", "line 2: .*isn't within the text's 5 characters"),
    },
    "bioc": {
        "truncated": ("a.json", '{"documents": [{"id": "1", "pass', "not JSON"),
        "empty": ("a.json", "", "not JSON"),
        "wrong encoding": ("a.json", latin('{"documents": [{"id": "é"}]}'), "not JSON"),
        "duplicate": ("a.json", json.dumps({"documents": [BIOC_DOCUMENT, BIOC_DOCUMENT]}), 2),
        "beyond": (
            "a.json",
            json.dumps({"id": "1", "passages": [BIOC_PASSAGE]}),
            "isn't within a passage: fix its off",
        ),
    },
    "bioc_xml": {
        "truncated": ("a.bioc.xml", f"<collection>{bioc_xml()}", NOT_XML),
        "empty": ("a.bioc.xml", "", NOT_XML),
        "wrong encoding": ("a.bioc.xml", latin(f"<collection>{bioc_xml()}</collection>"), NOT_XML),
        "duplicate": ("a.bioc.xml", f"<collection>{bioc_xml() * 2}</collection>", 2),
        "beyond": (
            "a.bioc.xml",
            "<collection>"
            + bioc_xml(
                '<annotation id="1"><infon key="type">Drug</infon><location offset="9" length="1"/><text>é</text>'
                "</annotation>"
            )
            + "</collection>",
            "isn't within a passage: fix its offsets",
        ),
    },
    "brat": {
        "truncated": ("a.txt", "One é", r"a\.ann, line 1: "),
        "empty": ("a.txt", "", 1),
        "wrong encoding": ("a.txt", latin("One é"), NOT_UTF8),
        "duplicate": ("a.txt", "One", "a.ann, line 2: a second annotation T1"),
        "beyond": ("a.txt", "é", "fix its offsets"),
    },
    "conll": {
        "truncated": ("a.conll.gz", cut("One\tO\n"), NOT_COMPLETE),
        "empty": ("a.conll", "", 0),
        "wrong encoding": ("a.conll", latin("é\tO\n"), f"line 1: {NOT_UTF8} at byte 0"),
        "duplicate": ("a.conll", "# newdoc id = 1\nOne\tO\n\n# newdoc id = 1\nOne\tO\n", 2),
        "beyond": ("a.conll", "One\tO\ntwo\n", "line 2"),  # has no offsets, but columns
    },
}
ANNOTATIONS_OF_BRAT = {
    "truncated": "T1\tDrug 0",
    "empty": "",
    "wrong encoding": "",
    "duplicate": "T1\tDrug 0 3\tOne\nT1\tDrug 0 3\tOne\n",
    "beyond": "T1\tDrug 9 10\té\n",
}


def test_every_format_has_malformed_cases() -> None:
    assert MALFORMED.keys() == set(READABLE)
    for name, cases in MALFORMED.items():
        assert cases.keys() >= {"truncated", "empty", "wrong encoding", "duplicate", "beyond"}, name


@pytest.mark.parametrize(("format", "case"), [(name, case) for name, cases in MALFORMED.items() for case in cases])
def test_malformed_files(format: str, case: str, tmp_path: Path) -> None:
    """The error is one line, names the file, and is the same with the format given and recognised."""
    name, content, expected = MALFORMED[format][case]
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    if format == "brat":
        (tmp_path / "a.ann").write_bytes(ANNOTATIONS_OF_BRAT[case].encode())
    if isinstance(expected, int):
        assert len(read(file)) == len(read(file, format=format)) == expected
        return
    for given_format in (None, format):
        with pytest.raises(InputError, match=expected if given_format is None else None) as error:
            read(file, format=given_format)
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_file_may_be_a_document(tmp_path: Path) -> None:
    content = "\ufeffAspirin.\r\n\r\n  Twice\r daily. \n\n"
    for name, place, expected in (("a.b.txt", "", "a.b"), ("c.txt.gz", "deep/er/c.txt.gz", "deep/er/c")):
        file = put(tmp_path / name, content)
        (document,) = read(file, unit="file", place=place)
        assert (document.id, document.text) == (expected, content[1:])
    put(tmp_path / "empty.txt", "")
    assert read(tmp_path / "empty.txt", unit="file") == [Document("empty", "")]
    (document,) = read(put(tmp_path / "d.txt", content[1:].encode("utf-16")), unit="file", encoding="utf-16")
    assert document.text == content[1:]
    (tmp_path / "d.txt").unlink()
    texts = load_corpus(tmp_path, unit="file")["text"][:]
    assert texts == [content[1:]] * 2  # an empty document is left out
    assert len(load_corpus(tmp_path)) == 4
    with pytest.raises(InputError, match=r"^unit: must be line or file, not 'page'"):
        ReadOptions(unit="page")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a" * 1001, "a document of 0.0 MB, more than the limit of 0.001"),
        (b"ab\ncaf\xe9", "line 2: not valid UTF-8 at byte 6 of the file: convert the file"),
        (b"\0" * 50, "laden with NUL bytes, not text"),
    ],
)
def test_a_file_that_cannot_be_a_document(content: bytes, problem: str, tmp_path: Path) -> None:
    file = put(tmp_path / "a.txt", content)
    with pytest.raises(InputError, match=problem):
        read(file, unit="file", max_document_megabytes=0.001)
    if b"\xe9" in content:
        assert read(file, unit="file", errors="replace")[0].text == "ab\ncaf\ufffd"


def test_many_small_text_files_need_a_unit(tmp_path: Path) -> None:
    for number in range(10):
        put(tmp_path / f"{number}.txt", f"A note.\nIts second line {number}.")
    with pytest.raises(
        InputError,
        match=r"^unit: 10 small files of plain text \(on average 0\.0 kB, for example \S+0\.txt\): say line if each "
        r"line is a document, or file if each file is one$",
    ):
        load_corpus(tmp_path)
    assert len(load_corpus(tmp_path, unit="line")) == 20
    assert len(load_corpus(tmp_path, unit="file")) == 10
    assert len(load_corpus([tmp_path / f"{number}.txt" for number in range(9)])) == 18
    put(tmp_path / "large.txt", "Line.\n" * 200_000)  # parts of a corpus, on average
    assert len(load_corpus(tmp_path)) == 200_020


@pytest.mark.parametrize("columns", [[], [""], ["a", "a"], ""])
def test_names_of_columns_are_checked(columns: Any) -> None:
    with pytest.raises(InputError, match=r"^text_column: (is empty|names a column twice)"):
        ReadOptions(text_column=columns)
    with pytest.raises(InputError, match=r"^text_column: "):
        Corpus(["a.txt"], text_column=columns)


@pytest.mark.parametrize("name", OF_ROWS)
def test_the_column_of_the_id(name: str, tmp_path: Path, warnings_of_package: Callable[[], list[str]]) -> None:
    file = write_rows(tmp_path / name, [{"text": "one", "pmid": "7"}, {"text": "two", "pmid": ""}])
    assert [document.id for document in read(file, id_column="pmid", place="a")] == ["7", "a:2"]
    with pytest.raises(InputError, match=r"^id_column: 'text' is the text, which can't be the id, too"):
        ReadOptions(id_column="text")
    if name in ("a.jsonl", "a.json"):  # whose rows have fields of their own
        assert [document.id for document in read(file, id_column="key")] == ["1", "2"]
        assert "rows without 'key', which get their number as id: 2" in warnings_of_package()[-1]
    else:
        with pytest.raises(InputError, match=r"no column 'key': it has text, pmid: set id_column to a name among"):
            read(file, id_column="key")


def test_another_id_is_not_lost(tmp_path: Path) -> None:
    file = put(tmp_path / "a.csv", "id,pmid,text\n1,7,one\n")
    documents = read(file, id_column="pmid")
    with pytest.raises(InputError, match="document 7: its field 'id' would be lost"):
        write_documents(tmp_path / "b.jsonl", documents)
    assert not (tmp_path / "b.jsonl").exists()


def test_what_parquet_has_and_json_has_not(tmp_path: Path, warnings_of_package: Callable[[], list[str]]) -> None:
    columns = {
        "text": ["one", "two"],
        "n": [1, None],
        "share": [0.5, float("nan")],
        "yes": [True, False],
        "mesh": [["a", "b"], []],
        "when": pa.array([0, 1], pa.timestamp("s")),
        "raw": [b"x", b"y"],
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    write_documents(tmp_path / "b.jsonl", DocumentReader(tmp_path / "a.parquet"))
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()] == [
        {"id": "1", "n": 1, "share": 0.5, "yes": True, "mesh": ["a", "b"], "text": "one", "entities": []},
        {"id": "2", "n": None, "share": None, "yes": False, "mesh": [], "text": "two", "entities": []},
    ]
    left_out, not_finite = warnings_of_package()
    assert "columns left out, since JSON has no such values: 2 (for example when, of type timestamp" in left_out
    assert "numbers that aren't finite, read as null: 1 (for example row 2, 'share': nan)" in not_finite


def test_what_was_written_as_parquet_is_read_again(tmp_path: Path) -> None:
    rows = [
        {"text": "Aspirin works.", "n": 1.5, "entities": [{"start": 0, "end": 7, "text": "Aspirin", "label": "Drug"}]}
    ]
    documents = read(put(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    write_documents(tmp_path / "b.parquet", documents)
    again = read(tmp_path / "b.parquet")
    assert again == documents
    assert again[0].entities == (Entity(0, 7, "Aspirin", "Drug"),)


@pytest.mark.parametrize("format", READABLE)
def test_every_format_is_a_corpus(format: str, tmp_path: Path) -> None:
    """What can be annotated can be trained on: each case with duplicate documents is a corpus of two."""
    name, content, expected = MALFORMED[format]["duplicate"]
    if format == "brat":
        put(tmp_path / "a.ann", "")
        expected = 1
    file = put(tmp_path / name, content)
    texts = load_corpus(file)["text"][:]
    assert len(texts) == expected
    assert {text.replace(" é", "") for text in texts} == {"One"}
    # All stages read the first way, the search for contexts on Ray the second.
    assert load_text(Corpus([str(file)])).documents["text"][:] == texts
    assert list(texts_of(CorpusFile(file), TextOptions(), TextCounts())) == texts


def test_an_element_over_the_limit_is_an_error_of_the_document(tmp_path: Path) -> None:
    file = put(tmp_path / "a.json", json.dumps([{"text": "one"}, {"text": "é" * 1000}, {"text": "two"}], indent=1))
    with pytest.raises(InputError, match=r"a\.json, document 2: a document of 0\.0 MB, more than the limit of 0\.001"):
        read(file, max_document_megabytes=0.001)
    assert [one.text for one in read(file, "skip", max_document_megabytes=0.001)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.csv", 'text\nfine\n"' + "never closed\n" * 20_000, "row that begins in line 3"),
        ("a.json", '[{"text": "fine"},\n{"text": "' + "never closed " * 20_000, "element that begins in line 2"),
    ],
)
def test_a_quote_that_is_never_closed_does_not_fill_the_memory(
    name: str, content: str, where: str, tmp_path: Path
) -> None:
    file = put(tmp_path / name, content)
    with pytest.raises(InputError, match=f"{where}: more than twice the limit of a document: close its quotes"):
        read(file, max_document_megabytes=0.001)


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    file = write_rows(tmp_path / name, [{"text": "é, " * 300, "n": str(number)} for number in range(4000)])
    assert file.stat().st_size > 4_000_000
    tracemalloc.start()
    assert sum(1 for _ in DocumentReader(file)) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
