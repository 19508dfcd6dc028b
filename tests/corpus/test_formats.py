"""Test that documents keep exact offsets in every format, errors name the place, and files are written atomically."""

from __future__ import annotations

import colorsys
import gzip
import json
import pickle
import re
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bioptimus_hf.corpus.html
from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.corpus.documents import Document, Entity, without_overlaps
from bioptimus_hf.corpus.formats import (
    FORMATS,
    READABLE,
    WRITABLE,
    DocumentReader,
    find_format,
    stem_of,
    write_documents,
)
from bioptimus_hf.corpus.html import html_fragment
from bioptimus_hf.corpus.pubmed import PubmedHandler
from bioptimus_hf.corpus.reading import ReadOptions, open_input
from bioptimus_hf.errors import InputError

TITLE = "Naloxone reverses the antihypertensive effect of clonidine."
ABSTRACT = "β-Blockers 🧬 and e\u0301pinephrine: naloxone alone did not affect blood pressure."
STRANGE = [*"abé1中β🧬|\\\"'<&>-.", "e\u0301", "👩\u200d⚕️", *"\u200b\ufeff\t\n\r\u2028\u2029\x85\x0b\x1c\xa0", "\r\n"]


def read(path: Path, **options: Any) -> list[Document]:
    how = {name: options.pop(name) for name in [field.name for field in fields(ReadOptions)] if name in options}
    return list(DocumentReader(path, options=ReadOptions(**how), **options))


def entity(text: str, start: int, end: int, label: str = "Chemical", **more: Any) -> Entity:
    return Entity(start, end, text[start:end], label, **more)


@st.composite
def documents(draw: st.DrawFn, alphabet: list[str] = STRANGE, overlapping: bool = True) -> Document:
    text = "".join(draw(st.lists(st.sampled_from([*alphabet, " "]), max_size=60)))
    entities = []
    for _ in range(draw(st.integers(0, 4)) if text else 0):
        start = draw(st.integers(0, len(text) - 1))
        end = draw(st.integers(start + 1, min(len(text), start + 9)))
        label = draw(st.sampled_from(["Gene", "cell-type", "Chemical"]))
        entities.append(entity(text, start, end, label, score=draw(st.floats(0, 1))))
    return Document("7", text, tuple(entities if overlapping else without_overlaps(entities)))


def squeezed(text: str) -> str:
    return "".join(text.replace("\ufeff", " ").split())


WITHIN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(document=documents())
@WITHIN
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz"])
def test_json_loses_nothing(name: str, document: Document, tmp_path: Path) -> None:
    assert write_documents(tmp_path / name, [document, document]) == 2
    for found in read(tmp_path / name):
        assert (found.id, found.text, found.entities) == (document.id, document.text, document.entities)


@given(document=documents())
@WITHIN
def test_pubtator_keeps_every_offset(document: Document, tmp_path: Path) -> None:
    """A character that a field can't hold becomes a space; the first line break separates title and abstract."""
    write_documents(tmp_path / "a.pubtator", [document, document])
    title, abstract = document.text.partition("\n")[::2]
    blank = re.compile("[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
    expected = blank.sub(" ", title) + ("\n" if "\n" in document.text else "") + blank.sub(" ", abstract)
    first, second = read(tmp_path / "a.pubtator")
    assert first == second
    assert first.text == expected
    assert [(e.start, e.end, e.label) for e in first.entities] == [(e.start, e.end, e.label) for e in document.entities]
    assert all(expected[e.start : e.end].replace("\n", " ") == e.text.replace("\n", " ") for e in first.entities)


@given(document=documents(overlapping=False))
@WITHIN
def test_conll_keeps_every_character_and_entity(document: Document, tmp_path: Path) -> None:
    write_documents(tmp_path / "a.conll", [document])
    found = read(tmp_path / "a.conll")
    assert "".join(squeezed(d.text) for d in found) == squeezed(document.text)
    written = [(squeezed(e.text), e.label) for e in document.entities]
    assert [(squeezed(e.text), e.label) for d in found for e in d.entities] == [e for e in written if e[0]]
    # Writing what was read gives the same file.
    write_documents(tmp_path / "b.conll", found)
    assert (tmp_path / "b.conll").read_bytes() == (tmp_path / "a.conll").read_bytes()


def test_a_megabyte_of_text(tmp_path: Path) -> None:
    text = "".join(f"{TITLE} {ABSTRACT}\r\n" for _ in range(8000))
    entities = tuple(entity(text, found.start(), found.end()) for found in re.finditer("naloxone|🧬", text))
    document = Document("1", text, entities)
    assert len(text) > 1_000_000
    for name in ("a.jsonl", "a.json", "a.pubtator", "a.conll"):
        write_documents(tmp_path / name, [document])
        found = read(tmp_path / name)
        assert [e.text for d in found for e in d.entities] == [e.text for e in entities], name
        if name != "a.conll":
            assert [e.start for e in found[0].entities] == [e.start for e in entities]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.pubtator"])
def test_an_empty_text_is_a_document(name: str, tmp_path: Path) -> None:
    write_documents(tmp_path / name, [Document("1", ""), Document("2", "x")])
    assert [(d.id, d.text) for d in read(tmp_path / name)] == [("1", ""), ("2", "x")]


def test_compressed_files_have_the_same_content(tmp_path: Path) -> None:
    document = Document("1", TITLE)
    for name in ("a.jsonl", "a.pubtator", "a.json", "a.conll"):
        for packed in ("", ".gz"):
            write_documents(tmp_path / f"{name}{packed}", [document])
        assert gzip.decompress((tmp_path / f"{name}.gz").read_bytes()) == (tmp_path / name).read_bytes()
        assert read(tmp_path / f"{name}.gz") == read(tmp_path / name)
        once = (tmp_path / f"{name}.gz").read_bytes()
        write_documents(tmp_path / f"{name}.gz", [document])
        assert (tmp_path / f"{name}.gz").read_bytes() == once


def test_txt_has_a_document_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + f"  {TITLE}\r\n\r\n \n{ABSTRACT}\u2028end".encode())
    assert read(tmp_path / "a.txt") == [Document("1", f"  {TITLE}"), Document("4", f"{ABSTRACT}\u2028end")]


def test_json_lines_keep_their_other_fields(tmp_path: Path) -> None:
    rows = [
        {"id": 12, "text": TITLE, "year": 1981, "nested": {"entities": [1.5, None, "\ud83d"]}, "infons": 3},
        {"text": ABSTRACT, "relations": "none"},
        {"id": "x", "text": TITLE, "entities": [{"start": 0, "end": 8, "text": "Naloxone", "label": "Chemical"}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = read(tmp_path / "a.jsonl")
    assert [d.id for d in found] == ["12", "2", "x"]
    assert found[0].extra["fields"]["year"] == 1981
    assert found[2].entities == (Entity(0, 8, "Naloxone", "Chemical"),)
    write_documents(tmp_path / "b.jsonl", found)
    written = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert written[0] == {**rows[0], "entities": []}
    assert written[1] == {**rows[1], "id": "2", "entities": []}
    assert written[2]["entities"] == [{"start": 0, "end": 8, "text": "Naloxone", "label": "Chemical", "score": 1.0}]
    for name in ("a.json", "a.pubtator", "a.conll", "a.html"):  # formats that ignore such fields
        write_documents(tmp_path / name, found)


OTHER_FIELDS = [
    '"a": 0.1000000000000000055511151231257827021181583404541015625',
    '"a": 1e400',
    '"a": -0.0',
    '"a": 1E5',
    '"a": 12345678901234567890123456789012345678901234567890',
    f'"a": {"7" * 5000}',
    r'"a": "\u00e9\/\ud83d é"',
    r'"\u0061b" :  [1.50,  {"z": 1, "a": {"2": null}}]',
    '"a": {"score": 1.00, "n": [10000000000000000000000]}',
    '"b": true, "a": [], "10": 1, "9": 2',
]


@pytest.mark.parametrize("member", OTHER_FIELDS)
def test_other_fields_of_json_lines_are_written_as_they_were_read(member: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"id": "x", {member}, "text": "one"}}\n')
    write_documents(tmp_path / "b.jsonl", DocumentReader(tmp_path / "a.jsonl"))
    assert (tmp_path / "b.jsonl").read_text() == f'{{"id": "x", {member}, "text": "one", "entities": []}}\n'
    (document,) = read(tmp_path / "a.jsonl")
    assert document == pickle.loads(pickle.dumps(document))
    # They survive in formats that have room for them, too.
    write_documents(tmp_path / "c.json", [document])
    assert member in (tmp_path / "c.json").read_text()


@st.composite
def json_values(draw: st.DrawFn) -> str:
    """JSON text of any form, with white space and numbers that no library would write."""
    space = st.sampled_from(["", " ", "\t", "  "])
    number = st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?\Z")
    leaf = number | st.sampled_from(["true", "false", "null"]) | st.text(max_size=5).map(json.dumps)

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        lists = st.lists(inner, max_size=3).map(lambda values: f"[{', '.join(values)}]")
        keys = st.lists(inner, max_size=3).map(
            lambda values: "{" + ",".join(f'"{n}":{value}' for n, value in enumerate(values)) + "}"
        )
        return lists | keys

    return draw(space) + draw(st.recursive(leaf, extend, max_leaves=8)) + draw(space)


@given(values=st.lists(json_values(), max_size=4))
@WITHIN
def test_any_json_survives_in_other_fields(values: list[str], tmp_path: Path) -> None:
    members = [f'"k{number}":{value}' for number, value in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("{" + ",".join(['"text":"one"', *members]) + "}\n")
    write_documents(tmp_path / "b.jsonl", DocumentReader(tmp_path / "a.jsonl"))
    kept = [member.rstrip(" \t") for member in members]
    assert (tmp_path / "b.jsonl").read_text() == "{" + ", ".join(
        ['"id": "1"', *kept, '"text": "one"', '"entities": []']
    ) + "}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x", "a": NaN}', "not JSON (NaN is not a JSON number)"),
        ('{"text": "x", "a": [{"b": -Infinity}]}', "not JSON (-Infinity is not a JSON number)"),
        ('{"text": "x", "text": "y"}', "not JSON (the key 'text' occurs twice)"),
        (r'{"text": "x", "te\u0078t": "y"}', "not JSON (the key 'text' occurs twice)"),
        ('{"text": "x", "a": {"b": 1, "c": 2, "b": 1}}', "not JSON (the key 'b' occurs twice)"),
        ('{"text": "x", "id": true}', "'id' must be a string or an integer, not true"),
        ('{"text": "x", "id": 1.0}', "'id' must be a string or an integer, not 1.0"),
        ('{"text": "x", "id": ["1"]}', "'id' must be a string or an integer, not [\"1\"]"),
        ('{"text": "x", "id": {"a": 1}}', "'id' must be a string or an integer, not {\"a\": 1}"),
        ('{"text": true}', "no text under 'text'"),
        ('{"text": "x"} {"text": "y"}', "not JSON (Extra data"),
        ('{"text": "x",}', "not JSON ("),
        ('{"text" "x"}', "not JSON ("),
        ("{text: 1}", "not JSON ("),
        ('{1: "x"}', "not JSON ("),
        ('{"text": 01}', "not JSON ("),
        ('{"text": "x"', "not JSON ("),
        ("{", "not JSON ("),
        ('["text"]', "JSON, but not an object: each document must be an object"),
        ('"text"', "JSON, but not an object: each document must be an object"),
    ],
)
def test_lines_that_are_not_unambiguous_json_are_rejected(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=re.escape(f"a.jsonl, line 2: {message}")) as error:
        read(tmp_path / "a.jsonl")
    assert "\n" not in str(error.value)


def test_columns_named_like_ours(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"id": "one", "x": 1}\n')
    (document,) = read(tmp_path / "b.jsonl", text_column="id")
    assert (document.id, document.text) == ("1", "one")
    (tmp_path / "c.jsonl").write_text('{"id": null, "entities": "two"}\n')
    (document,) = read(tmp_path / "c.jsonl", text_column="entities")
    assert (document.id, document.text, document.entities) == ("1", "two", ())
    write_documents(tmp_path / "d.jsonl", [document])
    assert (tmp_path / "d.jsonl").read_text() == '{"id": "1", "text": "two", "entities": []}\n'
    (tmp_path / "e.jsonl").write_text('{"abstract": "one", "text": "two"}\n')
    with pytest.raises(InputError, match=r"document 1: its field 'text' would be lost"):
        write_documents(tmp_path / "f.jsonl", read(tmp_path / "e.jsonl", text_column="abstract"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), Decimal("NaN")])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_invalid_json_is_never_written(name: str, value: Any, tmp_path: Path) -> None:
    document = Document("1", "x", extra={"fields": {"a": [{"b": value}]}})
    with pytest.raises(InputError, match="document 1: can't be written as JSON"):
        write_documents(tmp_path / name, [document])
    assert not list(tmp_path.iterdir())


PUBTATOR = f"""227508|t|{TITLE}
227508|a|{ABSTRACT}
227508\t0\t8\tNaloxone\tChemical\tD009270
227508\t60\t68\tβ-Blocke\tChemical\t-
227508\t91\t99\tnaloxone\tChemical\tD009270|X\tsecond column
227508\tCID\tD009270\tD003000


2|t|A | bar | in it
2|a|
2\t0\t1\tA\tGene\t-
"""


def test_a_real_pubtator_file(tmp_path: Path) -> None:
    (tmp_path / "a.PubTator.txt").write_text(PUBTATOR)
    first, second = read(tmp_path / "a.PubTator.txt")
    assert first.id == "227508"
    assert first.text == f"{TITLE}\n{ABSTRACT}"
    assert [first.text[p.start : p.end] for p in first.passages] == [TITLE, ABSTRACT]
    assert [e.identifier for e in first.entities] == ["D009270", "", "D009270|X\tsecond column"]
    assert (second.text, second.entities[0].text) == ("A | bar | in it\n", "A")
    write_documents(tmp_path / "b.pubtator", [first, second])
    assert (tmp_path / "b.pubtator").read_text() == PUBTATOR.replace("\n\n\n", "\n\n") + "\n"
    (tmp_path / "windows.pubtator").write_bytes(PUBTATOR.replace("\n", "\r\n").encode())
    assert read(tmp_path / "windows.pubtator") == [first, second]


@pytest.mark.parametrize("name", ["", " ", "1|t", "1\t2", "1\n2", "1\x852"])
def test_pubtator_rejects_ids(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^.*a\.pubtator: document .*: PubTator can't hold this id"):
        write_documents(tmp_path / "a.pubtator", [Document("1", "fine"), Document(name, "x")])
    assert not list(tmp_path.iterdir())


BIOC: dict[str, Any] = {
    "source": "PMC",
    "date": "20200101",
    "key": "own.key",
    "infons": {},
    "documents": [
        {
            "id": "PMC1",
            "infons": {"license": "CC0"},
            "passages": [
                {
                    "offset": 0,
                    "infons": {"type": "title"},
                    "text": TITLE,
                    "annotations": [
                        {
                            "id": "9",
                            "infons": {"type": "Chemical", "identifier": "MESH:D009270", "score": "0.5"},
                            "text": "Naloxone",
                            "locations": [{"offset": 0, "length": 8}],
                        }
                    ],
                },
                {"offset": 40, "infons": {}, "annotations": [], "sentences": []},
                {
                    "offset": 5000,  # a table before it was left out
                    "infons": {"type": "abstract"},
                    "sentences": [
                        {"offset": 5000, "text": "β-Blockers 🧬."},
                        {
                            "offset": 5020,
                            "text": "Left and right heart failure.",
                            "annotations": [
                                {
                                    "infons": {"type": "Disease"},
                                    "text": "Left heart failure",
                                    "locations": [{"offset": 5035, "length": 13}, {"offset": 5020, "length": 4}],
                                }
                            ],
                        },
                    ],
                },
            ],
            "annotations": [
                {
                    "infons": {"type": "Chemical"},
                    "text": "β-Blockers",
                    "locations": [{"offset": 5000, "length": 10}],
                }
            ],
        },
        {"id": 2, "passages": []},
    ],
}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(BIOC),
        json.dumps(BIOC, indent=1).replace("\n", "\r\n"),
        json.dumps([BIOC]),
        json.dumps({"PubTator3": BIOC["documents"]}),
        "\n".join(map(json.dumps, BIOC["documents"])),
        json.dumps(BIOC["documents"]),
        json.dumps([{**document, "last": {"a": [{}]}} for document in BIOC["documents"]]),
        "\n".join(json.dumps({**document, "last": {"a": [{}]}}) for document in BIOC["documents"]),
        "\ufeff" + json.dumps({"documents": BIOC["documents"], "source": "late"}),
    ],
)
def test_bioc_in_all_its_shapes(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    first, second = read(tmp_path / "a.json")
    assert (first.id, second.id, second.text) == ("PMC1", "2", "")
    assert first.text == f"{TITLE}\n\nβ-Blockers 🧬.\nLeft and right heart failure."
    assert [(e.text, e.label, e.score, e.identifier) for e in first.entities] == [
        ("β-Blockers", "Chemical", 1.0, ""),
        ("Naloxone", "Chemical", 0.5, "MESH:D009270"),
        ("Left and right heart failure"[:28], "Disease", 1.0, ""),
    ]


def test_bioc_with_unusual_texts_and_offsets(tmp_path: Path) -> None:
    """An empty text beside sentences, every offset 0, no passages at all."""
    infons = {"type": "Chemical"}
    mention = {"infons": infons, "text": "Aspirin", "locations": [{"offset": 0, "length": 7}]}
    documents = [
        {"id": "1", "passages": [{"offset": 0, "text": "", "sentences": [{"offset": 0, "text": "Aspirin works."}]}]},
        {
            "id": "2",
            "passages": [
                {"offset": 0, "text": "Aspirin here"},
                {"offset": 0, "text": "Aspirin there", "annotations": [mention]},
                {"offset": 0, "sentences": [{"offset": 0, "text": "Aspirin too", "annotations": [mention]}]},
            ],
        },
        {"id": "3", "passages": None},
        {"id": "4"},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"documents": documents}))
    first, second, third, fourth = read(tmp_path / "a.json")
    assert (first.text, third.text, fourth.text) == ("Aspirin works.", "", "")
    assert second.text == "Aspirin here\nAspirin there\nAspirin too"
    assert [one.start for one in second.entities] == [13, 27]


def test_bioc_keeps_the_offsets_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(BIOC))
    found = read(tmp_path / "a.json")
    assert write_documents(tmp_path / "b.json", iter(found)) == 2
    written = json.loads((tmp_path / "b.json").read_text())
    assert (written["source"], written["date"], written["key"]) == ("PMC", "20200101", "own.key")
    passages = written["documents"][0]["passages"]
    assert [passage["offset"] for passage in passages] == [0, 40, 5000, 5020]
    assert passages[0]["infons"] == {"type": "title"}
    assert passages[3]["annotations"][0]["locations"] == [{"offset": 5020, "length": 28}]
    again = read(tmp_path / "b.json")
    assert (again[0].text, again[0].passages) == (found[0].text, found[0].passages)
    assert set(again[0].entities) == set(found[0].entities)
    assert write_documents(tmp_path / "none.json", []) == 0
    assert json.loads((tmp_path / "none.json").read_text())["documents"] == []
    assert read(tmp_path / "none.json") == []


def test_bioc_keeps_other_fields(tmp_path: Path) -> None:
    row = {"id": "1", "_id": "1|None", "pmid": 1, "authors": ["A B"], "infons": {"year": "1999"}, "passages": []}
    (tmp_path / "a.json").write_text(json.dumps({"documents": [row]}))
    for source, target in (("a.json", "b.json"), ("a.json", "c.jsonl"), ("c.jsonl", "d.json")):
        write_documents(tmp_path / target, read(tmp_path / source))
    (found,) = json.loads((tmp_path / "b.json").read_text())["documents"]
    assert {name: found[name] for name in ("id", "_id", "pmid", "authors", "infons")} == {
        name: row[name] for name in ("id", "_id", "pmid", "authors", "infons")
    }
    (found,) = json.loads((tmp_path / "d.json").read_text())["documents"]
    assert (found["pmid"], found["authors"]) == (1, ["A B"])
    # A field of JSON lines that happens to have a name of BioC's is not an annotation.
    (tmp_path / "e.jsonl").write_text('{"text": "one", "annotations": 5, "id": 7}')
    write_documents(tmp_path / "f.json", read(tmp_path / "e.jsonl"))
    (again,) = read(tmp_path / "f.json")
    assert (again.id, again.text, again.entities) == ("7", "one", ())


def test_bioc_rejects_an_entity_across_passages(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(BIOC))
    document = read(tmp_path / "a.json")[0]
    across = replace(document, entities=(entity(document.text, len(TITLE) - 3, len(TITLE) + 4),))
    with pytest.raises(InputError, match=r"document PMC1: the entity .* isn't within one passage"):
        write_documents(tmp_path / "b.json", [across])


PUBMED = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2019//EN" "https://dtd.nlm.nih.gov/x.dtd">
<PubmedArticleSet>
<PubmedArticle><MedlineCitation><PMID Version="1">11</PMID><Article>
  <ArticleTitle>Role of <i>IL-6</i> &amp; CO<sub>2</sub>
    in asthma.</ArticleTitle>
  <Abstract><AbstractText Label="AIM" NlmCategory="OBJECTIVE">To see &#x3b2;-cells.</AbstractText>
  <AbstractText Label="METHODS">None <b>at
     all</b>.</AbstractText><AbstractText/><CopyrightInformation>(c) Us</CopyrightInformation></Abstract>
</Article><OtherAbstract Language="spa"><AbstractText>Nada.</AbstractText></OtherAbstract>
<CommentsCorrectionsList><CommentsCorrections><PMID>99</PMID></CommentsCorrections></CommentsCorrectionsList>
</MedlineCitation><PubmedData><ReferenceList><Reference><ArticleIdList><ArticleId>5</ArticleId></ArticleIdList></Reference>
</ReferenceList></PubmedData></PubmedArticle>
<PubmedArticle><MedlineCitation><PMID>12</PMID><Article><ArticleTitle>No abstract.</ArticleTitle></Article>
</MedlineCitation></PubmedArticle>
<PubmedBookArticle><BookDocument><PMID>13</PMID><ArticleTitle>A chapter</ArticleTitle>
<Abstract><AbstractText>Its text.</AbstractText></Abstract></BookDocument></PubmedBookArticle>
<DeleteCitation><PMID>1</PMID></DeleteCitation>
</PubmedArticleSet>
"""


def test_pubmed_articles(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(PUBMED)
    (tmp_path / "a.xml.gz").write_bytes(gzip.compress(PUBMED.encode()))
    found = read(tmp_path / "a.xml")
    assert found == read(tmp_path / "a.xml.gz")
    assert [(d.id, d.text) for d in found] == [
        ("11", "Role of IL-6 & CO2 in asthma.\nAIM: To see β-cells.\nMETHODS: None at all."),
        ("12", "No abstract."),
        ("13", "A chapter\nIts text."),
    ]
    assert [p.infons for p in found[0].passages] == [
        {"type": "title"},
        {"type": "abstract", "section": "AIM"},
        {"type": "abstract", "section": "METHODS"},
    ]
    write_documents(tmp_path / "b.pubtator", found)
    assert read(tmp_path / "b.pubtator")[0].text == (
        "Role of IL-6 & CO2 in asthma.\nAIM: To see β-cells. METHODS: None at all."
    )


@pytest.mark.parametrize(
    ("title", "abstract", "text"),
    [
        ("<ArticleTitle>A title</ArticleTitle><VernacularTitle>Titre</VernacularTitle>", "", "A title"),
        ("<ArticleTitle>[Not Available].</ArticleTitle><VernacularTitle>Titre</VernacularTitle>", "", "Titre"),
        ("<ArticleTitle>[Not available]</ArticleTitle><VernacularTitle>Titre</VernacularTitle>", "", "Titre"),
        ("<ArticleTitle>[In Process Citation]</ArticleTitle><VernacularTitle>Titre</VernacularTitle>", "", "Titre"),
        ("<ArticleTitle/><VernacularTitle><i>T</i>itre</VernacularTitle>", "", "Titre"),
        ("<VernacularTitle>Titre</VernacularTitle>", "", "Titre"),
        ("<ArticleTitle>[Not Available].</ArticleTitle>", "", "[Not Available]."),
        ("<ArticleTitle>[Not available in Europe].</ArticleTitle><VernacularTitle>T</VernacularTitle>", "", None),
        ("", '<OtherAbstract Type="Publisher" Language="spa"><AbstractText>Nada.</AbstractText></OtherAbstract>'
         '<OtherAbstract Type="AIDS" Language="eng"><AbstractText Label="A">Some.</AbstractText></OtherAbstract>',
         "\nA: Some."),
        ("", '<OtherAbstract Type="plain-language-summary"><AbstractText>Easy.</AbstractText></OtherAbstract>'
         '<OtherAbstract Type="Publisher"><AbstractText>Hard.</AbstractText></OtherAbstract>', "\nHard."),
        ("", '<OtherAbstract Type="AIDS"><AbstractText/></OtherAbstract>'
         '<OtherAbstract Type="AIDS" Language="spa"><AbstractText>Nada.</AbstractText></OtherAbstract>', "\nNada."),
        ("<Abstract><AbstractText>Own.</AbstractText></Abstract>",
         '<OtherAbstract Type="AIDS"><AbstractText>Some.</AbstractText></OtherAbstract>', "\nOwn."),
        ("<Abstract><AbstractText/></Abstract>",
         '<OtherAbstract Type="AIDS"><AbstractText>Some.</AbstractText></OtherAbstract>', "\nSome."),
    ],
)  # fmt: skip
def test_titles_and_abstracts_that_replace_missing_ones(
    title: str, abstract: str, text: str | None, tmp_path: Path
) -> None:
    article = f"<MedlineCitation><PMID>1</PMID><Article>{title}</Article>{abstract}</MedlineCitation>"
    other = "<MedlineCitation><PMID>2</PMID><Article><ArticleTitle/></Article></MedlineCitation>"
    (tmp_path / "a.xml").write_text(
        f"<PubmedArticleSet><PubmedArticle>{article}</PubmedArticle><PubmedArticle>{other}</PubmedArticle>"
        "</PubmedArticleSet>"
    )
    first, second = read(tmp_path / "a.xml")
    assert first.text == (text or "[Not available in Europe].")
    assert second.text == ""  # nothing of the article before it
    assert [p.infons.get("language") for p in first.passages[1:]] == (["spa"] if "Nada" in first.text else [None])[
        : len(first.passages) - 1
    ]


@pytest.mark.parametrize(
    ("book", "text"),
    [
        ("<Book><BookTitle>Book</BookTitle></Book><ArticleTitle>Chapter</ArticleTitle>", "Chapter"),
        ("<Book><BookTitle>The <i>Book</i></BookTitle></Book>", "The Book"),
        ("<Book><CollectionTitle>Series</CollectionTitle><BookTitle>Book</BookTitle></Book><ArticleTitle/>", "Book"),
        ("<Book><CollectionTitle>Series</CollectionTitle></Book>", "Series"),
        ("<Book><BookTitle>B</BookTitle></Book><Section><SectionTitle>S</SectionTitle></Section>", "B"),
    ],
)  # fmt: skip
def test_titles_of_books(book: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        f"<PubmedArticleSet><PubmedBookArticle><BookDocument><PMID>1</PMID>{book}</BookDocument></PubmedBookArticle>"
        "<DeleteDocument><PMID>2</PMID></DeleteDocument></PubmedArticleSet>"
    )
    assert [document.text for document in read(tmp_path / "a.xml")] == [text]


def test_defaults_of_a_document_type_do_not_reach_the_text(tmp_path: Path) -> None:
    subset = '[<!ATTLIST AbstractText Label CDATA "HACKED"> <!ATTLIST OtherAbstract Language CDATA "spa">]'
    (tmp_path / "a.xml").write_text(PUBMED)
    (tmp_path / "b.xml").write_text(PUBMED.replace('x.dtd">', f'x.dtd" {subset}>'))
    assert read(tmp_path / "b.xml") == read(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("</ArticleTitle>", "</Title>", r"line 6: not well-formed XML \(mismatched tag\)"),
        ("None <b>", "None &beta; <b>", "line 8: unknown entity &beta;"),
        ('x.dtd">', 'x.dtd" [<!ENTITY a "aaa">]>', "line 2: declares the entity 'a'"),
        ('x.dtd">', 'x.dtd" [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "line 2: declares the entity 'a'"),
        ("</PubmedArticleSet>", "", r"line 20: not well-formed XML \(no element found\)"),
        ("<PMID Version", "<Pmid Version", r"line 4: not well-formed|line 4: the article has no PMID"),
    ],
)
def test_errors_in_xml_name_the_line(before: str, after: str, message: str, tmp_path: Path) -> None:
    content = PUBMED.replace(before, after)
    (tmp_path / "a.xml").write_text(content.replace("11</PMID>", "11</Pmid>") if "Pmid" in after else content)
    with pytest.raises(InputError, match=rf"a\.xml, {message}"):
        read(tmp_path / "a.xml")


def test_entities_of_xml_are_never_expanded(tmp_path: Path) -> None:
    """A kilobyte that would expand to three gigabytes."""
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    laughs = f'<!DOCTYPE PubmedArticleSet [<!ENTITY l0 "ha">{levels}]><PubmedArticleSet>&l9;</PubmedArticleSet>'
    (tmp_path / "a.xml").write_text(laughs)
    tracemalloc.start()
    with pytest.raises(InputError, match="declares the entity 'l0'"):
        read(tmp_path / "a.xml")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_other_xml_is_rejected(tmp_path: Path) -> None:
    for content, message in (
        ("<record><front/></record>", "has no PubmedArticle, but the root element <record>: give XML as PubMed"),
        ("<html><collection/></html>", "the root element <html>"),
        ("<collection><record/></collection>", "has no BioC document: its <collection> is of another kind"),
        ("<collection><document/></collection>", r"a\.xml, document that begins in line 1: the document has no id"),
    ):
        (tmp_path / "a.xml").write_text(content)
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("<PubmedArticleSet></PubmedArticleSet>")  # the answer to a search without results
    assert read(tmp_path / "a.xml") == []


FAULTY = {
    "a.jsonl": ('{"text": "one"}\n{"text": 5}\n{"text": "three"}\n', "line 2: no text under 'text'"),
    "b.jsonl": ('{"text": "one"}\n{"text": \n{"text": "three"}\n', "line 2: not JSON"),
    "c.jsonl": ('{"text": "one"}\n{"text": "\\ud83d"}\n{"text": "three"}\n', "line 2: document 2: half a surrogate"),
    "d.jsonl": (
        '{"text": "one"}\n{"text": "two", "entities": ["Gene"]}\n{"text": "three"}\n',
        "line 2: 'entities' must be objects",
    ),
    "e.jsonl": (
        '{"text": "one"}\n{"text": "two", "entities": [{"start": 0, "end": 2, "text": "wt", "label": "x"}]}\n'
        '{"text": "three"}\n',
        "line 2: the text at 0:2 is 'tw', not 'wt'",
    ),
    "f.jsonl": (
        '{"text": "one"}\n{"text": "two", "entities": [{"start": "0", "end": 2, "text": "tw", "label": "x"}]}\n'
        '{"text": "three"}\n',
        "line 2: the start of an entity can't be '0'",
    ),
    "g.jsonl": ('{"text": "one"}\n' + "[" * 100_000 + '\n{"text": "three"}\n', "line 2: not JSON"),
    "a.txt": ("one\ncaf\udce9\nthree\n", "line 2: not valid UTF-8 at byte 7 of the file"),
    "a.pubtator": (
        "1|t|one\n\n2|t|two\n2\t0\t3\town\tGene\n\n3|t|three\n",
        "line 4: the text at 0:3 is 'two', not 'own'",
    ),
    "b.pubtator": ("1|t|one\n\n2|a|two\n\n3|t|three\n", "line 3: a document begins with its title"),
    "c.pubtator": (
        "1|t|one\n\n2|t|two\n3\t0\t1\tt\tGene\n\n3|t|three\n",
        "line 4: this line belongs to document '3', not '2'",
    ),
    "d.pubtator": ("1|t|one\n\n2|t|two\n2\t0\t1\n\n3|t|three\n", "line 4: an annotation has the columns"),
    "e.pubtator": (
        "1|t|one\n\n2|t|two\n2\t2\t5\to\tGene\n\n3|t|three\n",
        "line 4: the entity 'o' at 2:5 isn't within the text",
    ),
    "a.json": (
        '{"documents": [{"id": "1", "passages": [{"offset": 0, "text": "one"}]},\n{"id": "2", "passages": [{"text": '
        '"two"}]},\n{"id": "3", "passages": [{"offset": 0, "text": "three"}]}]}',
        "document 2, which ends by line 3: id 2: offset is missing",
    ),
    "b.json": (
        '{"documents": [{"id": "1", "passages": [{"offset": 0, "text": "one"}]},\n{"id": "2", "passages": 5},\n{"id": '
        '"3", "passages": [{"offset": 0, "text": "three"}]}]}',
        "document 2, which ends by line 3: id 2: passages must be a list",
    ),
    "a.conll": ("one\tO\n\ntwo\tX\nwords\tO\n\nthree\tO\n", "line 3: unknown tag 'X'"),
    "c.json": (
        '{"documents": [{"id": "1", "passages": [{"offset": 0, "text": "one"}]},\n{"id": "2", "passages": [{"offset": '
        '0, "text": "two", "infons": ["x"]}]},\n{"id": "3", "passages": [{"offset": 0, "text": "three"}]}]}',
        "document 2, which ends by line 3: id 2: infons must be an object, not ['x']",
    ),
    "d.json": (
        '{"documents": [{"id": "1", "passages": [{"offset": 0, "text": "one"}]},\n{"id": "2", "passages": [{"offset": '
        '0, "text": "two", "annotations": [{"text": "tw", "locations": [{"offset": 0, "length": 2}], "infons": "x"}]'
        '}]},\n{"id": "3", "passages": [{"offset": 0, "text": "three"}]}]}',
        "document 2, which ends by line 3: id 2: passage 1: infons must be an object, not x",
    ),
    "h.jsonl": (
        '{"text": "one"}\n{"text": "two", "entities": [{"start": false, "end": 2, "text": "tw", "label": "x"}]}\n'
        '{"text": "three"}\n',
        "line 2: the start of an entity can't be False",
    ),
    "i.jsonl": (
        '{"text": "one"}\n{"text": "two", "entities": [{"start": 0, "end": 2, "text": "tw", "label": "x", "score": NaN'
        '}]}\n{"text": "three"}\n',
        "line 2: not JSON (NaN is not a JSON number)",
    ),
    "j.jsonl": (
        '{"text": "one"}\n{"text": "two", "entities": [{"start": 0, "end": 2, "text": "tw", "label": "x", "score": '
        + f'{10**400}}}]}}\n{{"text": "three"}}\n',
        "line 2: the score 1000",
    ),
    "c.conll": ("two\n\none\tO\n\nthree\tO\n", "line 1: expected a token and its tag, not 'two'"),
    "b.conll": ("one\tO\n\ntwo\nwords\tO\n\nthree\tO\n", "line 3: expected a token and its tag"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_broken_document_is_named_and_can_be_skipped(
    name: str, tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    content, message = FAULTY[name]
    file = tmp_path / name
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=re.escape(f"{file}, {message}")):
        read(file)
    reader = DocumentReader(file, on_error="skip")
    for _ in range(2):
        assert [document.text for document in reader] == ["one", "three"]
        assert len(reader.skipped) == 1
    assert reader.skipped[0].startswith(f"{file}, {message}")
    assert warnings_of_package()[-1] == f"{file}: skipped 1 document that can't be read; the first: {reader.skipped[0]}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"documents": [{"id": "1",\n "passages": [}]}', "lines 1 to 2: not JSON"),
        ("a.json", b'{"infons": {}}', "has no BioC document"),
        ("a.json", b'[3, {"text": "x"}]', "has no BioC document"),
        ("a.json", b"", "lines 1 to 1: not JSON"),
        ("a.json", b"[" * 1000, "nested more than 100 deep"),
        ("a.jsonl.gz", b"no gzip", "is not a complete gzip file"),
        ("a.xml.gz", gzip.compress(PUBMED.encode())[:-20], "is not a complete gzip file"),
        ("a.XML.GZ", gzip.compress(PUBMED.encode())[:-20], "is not a complete gzip file"),
        ("a.xml", b'<?xml version="1.0" encoding="GBK"?><PubmedArticleSet/>', "can't read its encoding"),
        (
            "a.xml",
            b'<?xml version="1.0" encoding="nothing"?><PubmedArticleSet/>',
            "(not well-formed|can't read its encoding)",
        ),
    ],
)
def test_a_broken_file_cannot_be_skipped(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / name, on_error="skip")
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bug_in_a_reader_of_xml_is_not_blamed_on_the_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(PubmedHandler, "start", start)
    (tmp_path / "a.xml").write_text(PUBMED)
    with pytest.raises(KeyError, match="a bug"):
        read(tmp_path / "a.xml")


def test_unknown_formats_and_missing_files(tmp_path: Path) -> None:
    for name, problem in (
        ("a.html", "the format 'html' can't be used here"),
        ("a.doc", r"unknown format \(the name ends in \.doc\)"),
        ("a", r"unknown format \(the name has no ending\)"),
    ):
        with pytest.raises(
            InputError, match=rf"{problem}: name one of txt, .* as the format, or use a file name that ends in \.txt"
        ):
            DocumentReader(tmp_path / name)
    with pytest.raises(InputError, match="the format 'xml' can't be used here"):
        DocumentReader(tmp_path / "a.txt", format="xml")
    for kind in READABLE:
        with pytest.raises(InputError, match="can't be read"):
            read(tmp_path / "missing", format=kind)
    with pytest.raises(InputError, match="the format 'txt' can't be used here"):
        write_documents(tmp_path / "a.txt", [])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write"):
        write_documents(tmp_path / "file" / "a.jsonl", [Document("1", "x")])


def test_the_longest_suffix_determines_the_format() -> None:
    for name, format in (
        ("a.PubTator.txt", "pubtator"),
        ("a.txt.gz", "txt"),
        ("a.b.JSON", "bioc"),
        ("a.tsv.GZ", "conll"),
    ):
        assert find_format(name) == FORMATS[format]
    for name in ("a", "a.gz", "a.parquet.gz", "txt"):
        assert find_format(name) is None
    assert [stem_of(f"deep/{name}") for name in ("a.b.txt", "a.pubtator.txt.gz", "x.GZ", "a.md")] == [
        "a.b",
        "a",
        "x",
        "a.md",
    ]


def test_all_formats_are_listed_once() -> None:
    endings = [ending for format in FORMATS.values() for ending in format.endings]
    shared = {ending for ending in endings if endings.count(ending) > 1}
    assert shared == {".json", ".json.gz", ".tsv", ".tsv.gz"}  # told apart by what is in them
    assert {name: format.name for name, format in FORMATS.items()} == {name: name for name in FORMATS}
    assert {*READABLE, *WRITABLE} == set(FORMATS)


def test_the_text_may_be_in_another_column(tmp_path: Path) -> None:
    entities = [{"start": 0, "end": 8, "text": "Naloxone", "label": "Chemical"}]
    row = {"id": "x", "abstract": TITLE, "year": 1981, "entities": entities}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"abstract": None}) + "\n")
    first, second = read(tmp_path / "a.jsonl", text_column="abstract")
    assert (first.id, first.text, first.entities[0].text) == ("x", TITLE, "Naloxone")
    assert first.extra["fields"] == {"year": 1981}
    assert (second.id, second.text) == ("2", "")
    table = pa.table(
        {"id": [7, None, 9], "abstract": pa.array([TITLE, None, "β"]).dictionary_encode(), "text": [1, 2, 3]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    found = read(tmp_path / "b.parquet", text_column="abstract")
    assert [(document.id, document.text) for document in found] == [("7", TITLE), ("2", ""), ("9", "β")]
    assert [document.extra["fields"] for document in found] == [{"id": 7, "text": 1}, {"text": 2}, {"id": 9, "text": 3}]
    pyarrow.parquet.write_table(table.rename_columns(["number", "abstract", "id"]), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet has no column 'text': it has number, abstract, id"):
        read(tmp_path / "c.parquet")


@pytest.mark.parametrize("ids", [["a", None, ""], None])
def test_parquet_rows_without_an_id_are_numbered(ids: Any, tmp_path: Path) -> None:
    columns = {"text": ["one", "two", "three"], **({"id": ids} if ids else {})}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    expected = ["a" if ids and ids[0] == "a" else "1", "2", "3"]
    assert [document.id for document in read(tmp_path / "a.parquet")] == expected


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet", "pubtator", "json", "conll"])
def test_undecodable_bytes_are_an_error_or_replaced(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        values = pa.Array.from_buffers(
            pa.binary(), 2, [None, *map(pa.py_buffer, (b"\0\0\0\0\3\0\0\0\7\0\0\0", b"onecaf\xe9"))]
        )
        pyarrow.parquet.write_table(pa.table({"text": values.view(pa.string())}), file)
    elif suffix == "json":
        file.write_bytes(b'{"id": "1", "passages": [{"offset": 0, "text": "caf\xe9"}]}')
    else:
        row = {"txt": b"%s\n", "jsonl": b'{"text": "%s"}\n', "pubtator": b"1|t|%s\n\n", "conll": b"%s\tO\n\n"}[suffix]
        file.write_bytes(row % b"one" + row % b"caf\xe9")
    assert read(file, errors="replace")[-1].text == "caf\ufffd"
    with pytest.raises(
        InputError, match="not JSON" if suffix == "json" else "not valid UTF-8 .*, or set errors to replace"
    ):
        read(file)
    if suffix != "json":
        assert [document.text for document in read(file, on_error="skip")] == ["one"]


def test_a_given_format_overrides_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PUBTATOR)
    assert [document.id for document in read(tmp_path / "a.txt", format="pubtator")] == ["227508", "2"]


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.jsonl", [Document("1", "old")])

    def failing() -> Iterator[Document]:
        yield Document("1", "new")
        raise InputError("no more")

    with pytest.raises(InputError, match=r"^no more"):  # an error of the source stays unchanged
        write_documents(tmp_path / "a.jsonl", failing())
    assert [document.text for document in read(tmp_path / "a.jsonl")] == ["old"]
    assert len(list(tmp_path.iterdir())) == 1
    write_documents(tmp_path / "a.jsonl", DocumentReader(tmp_path / "a.jsonl"))  # onto itself
    assert [document.text for document in read(tmp_path / "a.jsonl")] == ["old"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.pubtator", "a.json", "a.xml", "a.conll", "a.txt", "a.parquet"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "a.xml":
        start, article, end = PUBMED.partition("<PubmedArticle>")[0], PUBMED[PUBMED.index("<PubmedArticle>") :], ""
        article, end = article[: article.index("<DeleteCitation>")], "</PubmedArticleSet>"
        file.write_text(start + article * 3000 + end)
    elif name == "a.txt":
        file.write_text(f"{ABSTRACT * 5}\n" * 5000)
    elif name == "a.parquet":
        table = pa.table({"text": [f"{number} {ABSTRACT * 5}" for number in range(50_000)]})
        pyarrow.parquet.write_table(table, file, use_dictionary=False, compression="none")
        del table
    else:
        write_documents(file, (Document(str(n), ABSTRACT * 5, (entity(ABSTRACT, 0, 4),)) for n in range(5000)))
    tracemalloc.start()
    assert sum(1 for _ in DocumentReader(file)) >= 5000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.stat().st_size > (20_000_000 if name == "a.parquet" else 2_000_000)
    assert peak < (2_000_000 if name == "a.parquet" else 1_000_000)  # a page of Parquet is a megabyte


def test_an_entity_must_match_its_offsets() -> None:
    Document("1", TITLE, (entity(TITLE, 0, len(TITLE)),))
    for start, end, text in ((0, 8, "naloxone"), (0, 0, ""), (-8, -1, TITLE[-8:-1]), (50, 99, TITLE[50:])):
        with pytest.raises(InputError, match=r"document 1: .*: fix "):
            Document("1", TITLE, (Entity(start, end, text, "Chemical"),))


def test_the_longest_of_overlapping_entities_is_kept() -> None:
    text = "acute renal failure of both"
    inner, outer, beside, after = (entity(text, *span) for span in ((6, 11), (0, 19), (12, 22), (23, 27)))
    assert without_overlaps([after, inner, beside, outer]) == [outer, after]
    assert without_overlaps([inner, beside]) == [inner, beside]
    same = [entity(text, 0, 5, label) for label in "BA"]
    assert without_overlaps(same) == [same[1]]


def test_conll_reports_entities_that_were_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entities = (entity(TITLE, 0, 8), entity(TITLE, 0, 17, "Sentence"), entity(TITLE, 0, 8, "Drug"))
    write_documents(tmp_path / "a.conll", [Document("1", TITLE, entities), Document("2", TITLE, entities[:1])])
    assert "left out 2 entities that overlap longer ones" in caplog.text
    assert [[e.label for e in d.entities] for d in read(tmp_path / "a.conll")] == [["Sentence"], ["Chemical"]]


def test_conll_cuts_tokens_and_keeps_sentences_together(tmp_path: Path) -> None:
    text = "IL-2-induced cells. In E. coli, too.\nNothing more."
    entities = (entity(text, 0, 4, "protein"), entity(text, 23, 30, "species"), entity(text, 13, 22, "odd"))
    write_documents(tmp_path / "a.conll", [Document("1", text, entities), Document("2", "  ")])
    assert read_conll(tmp_path / "a.conll") == [
        (
            ["IL", "-", "2", "-", "induced", "cells", ".", "In", "E", ".", "coli", ",", "too", "."],
            [f"{prefix}-protein" for prefix in "BII"]
            + ["O", "O"]
            + [f"{prefix}-{kind}" for kind in ("odd", "species") for prefix in "BII"]
            + ["O", "O", "O"],
        ),
        (["Nothing", "more", "."], ["O", "O", "O"]),
    ]


@pytest.mark.parametrize("label", ["", "-x", "x-", "a b", "a\tb"])
def test_conll_rejects_types(label: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"document 1: .* can't be a type in CoNLL"):
        write_documents(tmp_path / "a.conll", [Document("1", TITLE, (entity(TITLE, 0, 8, label),))])


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "-DOCSTART-", " ", " a"])
def test_conll_rejects_tokens(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="document 1: CoNLL can't hold the token"):
        write_documents(tmp_path / "a.conll", [Document("1", text, tokens=[(0, len(text))])])


@pytest.mark.parametrize("split", ["BC5-chem/test", "JNLPBA/dev"])
def test_real_conll_survives_a_round_trip(split: str, data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "ner" / f"{split}.tsv"
    reader = DocumentReader(source)
    assert write_documents(tmp_path / "a.tsv", reader) > 1000
    assert read_conll(tmp_path / "a.tsv") == read_conll(source)
    documents = list(reader)
    assert sum(len(d.entities) for d in documents) == sum(
        tag.startswith("B-") for _, tags in read_conll(source) for tag in tags
    )
    for name in ("a.jsonl", "a.json", "a.pubtator"):  # other formats keep the offsets
        write_documents(tmp_path / name, documents)
        assert [(d.text, d.entities) for d in read(tmp_path / name)] == [(d.text, d.entities) for d in documents]


class _Page(HTMLParser):
    """Parses a page: the texts of its documents without the labels, and its marks."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.marks: list[str] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in {"meta"}:
            self._open.append(tag)
        if tag == "p":
            self.texts.append("")
        if self._open[-2:] == ["p", "mark"]:
            self.marks.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["p"] or self._open[-2:] == ["p", "mark"]:
            self.texts[-1] += data
        if self._open[-2:] == ["p", "mark"]:
            self.marks[-1] += data


@given(document=documents(overlapping=False))
@WITHIN
def test_html_shows_the_text_and_marks_each_entity(document: Document, tmp_path: Path) -> None:
    write_documents(tmp_path / "a.html", [document])
    page = _Page((tmp_path / "a.html").read_bytes().decode())
    assert page.texts == [document.text]
    assert page.marks == [entity.text for entity in document.entities]


def test_html_runs_nothing_and_fetches_nothing(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    document = Document(evil, evil, (Entity(0, 8, "<script>", evil, identifier=evil),))
    write_documents(tmp_path / "a.html", [document])
    content = (tmp_path / "a.html").read_text()
    page = _Page(content)
    assert page.texts == [evil]
    assert not page.tags & {"script", "img", "link", "iframe"}
    assert not re.search(r"https?:|url\(|@import", content)


def test_html_counts_hidden_entities_and_labels(tmp_path: Path) -> None:
    text = "acute renal failure"
    entities = (entity(text, 0, 19, "Disease"), entity(text, 6, 11, "Organ"))
    write_documents(tmp_path / "a.html", [Document("1", text, entities), Document("2", text, entities[1:])])
    content = (tmp_path / "a.html").read_text()
    assert content.count("overlapping entities not shown: 1") == 1
    legend = content[content.index('class="legend"') :]
    assert re.findall(r">(\w+)<small>(\d+)</small>", legend) == [("Disease", "1"), ("Organ", "1")]
    write_documents(tmp_path / "b.html", [])
    assert "no entities" in (tmp_path / "b.html").read_text()


def test_a_fragment_is_part_of_the_page(tmp_path: Path) -> None:
    text = "acute <b> failure"
    document = Document("an id", text, (entity(text, 0, 9, "Disease"), entity(text, 6, 9, "Tag")))
    write_documents(tmp_path / "a.html", [document])
    content = (tmp_path / "a.html").read_text()
    legend, article = html_fragment(document).split("</div>")
    assert legend in content
    assert article.strip().removeprefix("<article>") in content
    assert "an id" not in article


def luminance(hue: float, saturation: float, lightness: float) -> float:
    """Relative luminance of WCAG 2, of a colour in degrees and percent."""
    channels = colorsys.hls_to_rgb(hue / 360, lightness / 100, saturation / 100)
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_colour_of_the_html_is_readable() -> None:
    """A contrast of 7:1 between letters and background, the stricter level of WCAG 2."""
    marks = re.findall(r"--mark: (\d+)% (\d+)%", bioptimus_hf.corpus.html._HEAD)
    inks = [luminance(0, 0, 100 * int(digits[:2], 16) / 255) for digits in ("1a", "ee")]
    assert len(marks) == 2
    for (saturation, lightness), ink in zip(marks, inks, strict=True):
        for hue in range(360):
            ground = luminance(hue, float(saturation), float(lightness))
            high, low = max(ground, ink), min(ground, ink)
            assert (high + 0.05) / (low + 0.05) > 7, (hue, saturation)


def test_what_a_reader_notes_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with open_input(tmp_path / "a.txt") as file:
        for number, _ in file.lines():
            file.note("lines that are read", f"line {number}")
        assert not caplog.messages
    assert caplog.messages == [f"{tmp_path / 'a.txt'}: lines that are read: 2 (for example line 1)"]


def test_modes_of_annotations_are_checked() -> None:
    with pytest.raises(InputError, match="annotations: must be one of needed, optional, ignored, not 'some'"):
        ReadOptions(annotations="some")  # type: ignore[arg-type]


OTHER_CONTENT = {
    "pubtator": PUBTATOR,
    "bioc": json.dumps(BIOC),
    "jsonl": '{"text": "one"}\n{"text": "two"}\n',
    "conll": "Aspirin\tB-Chemical\ncauses\tO\n\nNothing\tO\n",
    "pubmed": PUBMED,
    "jats": '<?xml version="1.0"?>\n<article article-type="research-article"><front></front></article>',
    "bioc_xml": "<?xml version='1.0'?>\n<!DOCTYPE collection SYSTEM 'BioC.dtd'>\n<collection></collection>",
}


@pytest.mark.parametrize("kind", OTHER_CONTENT)
def test_a_text_file_that_looks_like_another_format(
    kind: str, tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    for name, content in (("a.txt", "\ufeff\n"), ("a.txt.gz", "")):
        packed = (content + OTHER_CONTENT[kind]).encode()
        (tmp_path / name).write_bytes(gzip.compress(packed) if name.endswith(".gz") else packed)
        assert read(tmp_path / name)  # what was asked for
        assert warnings_of_package()[-1].startswith(
            f"{tmp_path / name} looks like the format {kind} but is read as plain text, a document per line: pass the "
            f"format {kind}, or"
        )
    assert len(warnings_of_package()) == 2


@pytest.mark.parametrize("kind", OTHER_CONTENT)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.xml", "a.pubtator", "a.tsv"])
def test_the_first_error_names_the_format_that_a_file_seems_to_have(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(OTHER_CONTENT[kind])
    found = find_format(name)
    assert found is not None
    if found.read == FORMATS[kind].read:
        pytest.skip("the file is what its name says")
    with pytest.raises(InputError, match=rf"\(the file looks like {kind}: pass the format {kind}\)$") as error:
        read(tmp_path / name)
    assert str(error.value).count("looks like") == 1


def test_plain_text_looks_like_nothing_else(
    tmp_path: Path, warnings_of_package: Callable[[], list[str]], data_dir: Path
) -> None:
    lines = [
        TITLE,
        "",
        "{sic} text",
        "[Not available].",
        "<b>bold</b>",
        "a|b|c",
        "x\tO",
        "word O",
        "1|t",
        "O",
        "5",
        '"x"',
    ]
    for number, line in enumerate(lines):
        (tmp_path / "a.txt").write_text(f"{line}\n{TITLE}\n{lines[number - 1]}\n")
        read(tmp_path / "a.txt")
    with open_input(data_dir / "corpus" / "abstracts.txt.gz") as file:
        assert isinstance(next(FORMATS["txt"].read(file)), Document)
    assert not warnings_of_package()


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ('{"text": "one"}\n{"text": "two"}\n', "give a collection, .* \\(the file looks like jsonl: pass the format"),
        ('[["one"], ["two"]]', "it is a list of something else: give documents of BioC, or objects with the text"),
        ('{"a": 1}', "give a collection, or a document with its passages"),
        ("3", "give a collection"),
    ],
)
def test_json_that_is_not_bioc(content: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=rf"a\.json has no BioC document: {advice}"):
        read(tmp_path / "a.json")
