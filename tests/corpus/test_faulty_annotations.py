"""Test annotations of other people's files: other spellings are kept, wrong offsets explained, wrong lines rejected."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.formats import DocumentReader, read_open_file, write_documents
from bioptimus_hf.corpus.mentions import settle_mention
from bioptimus_hf.corpus.reading import Annotations, ReadOptions, open_input
from bioptimus_hf.errors import InputError

TEXT = "Résumé: TNF-α & IL‐6 in tumour cells 🧬.\nNF-κB, asthma bronchiale and β-catenin rose in 5 patients."


def read(file: Path, annotations: Annotations = "needed") -> list[Document | InputError]:
    with open_input(file, ReadOptions(annotations=annotations)) as opened:
        return list(read_open_file(opened))


@pytest.mark.parametrize(
    ("words", "mention"),
    [
        ("TNF-α", "TNF-a"),
        ("TNF-α", "TNF-alpha"),
        ("TNF-α", "tnf alpha"),
        ("TNF-α", "TNF - α"),
        ("TNF-α", "TNF-&alpha;"),
        ("IL‐6", "IL-6"),
        ("IL‐6", "IL6"),
        ("tumour cells", "tumor cells"),
        ("tumour cells", "tumor cell"),
        ("NF-κB", "NF-kappaB"),
        ("NF-κB", "NF-kB"),
        ("asthma bronchiale", "Asthma Bronchiale"),
        ("asthma bronchiale", "asthma  bronchiale"),
        ("β-catenin", "beta catenin"),
        ("Résumé", "Resume"),
    ],
)
def test_a_mention_in_another_spelling_keeps_its_offsets(words: str, mention: str) -> None:
    start = TEXT.index(words)
    entity = Entity(start, start + len(words), mention, "Thing", 0.5, "7")
    assert settle_mention(TEXT, entity) == Entity(start, start + len(words), words, "Thing", 0.5, "7")


def as_bytes(text: str, start: int, end: int) -> tuple[int, int]:
    return len(text[:start].encode()), len(text[:end].encode())


def as_utf16(text: str, start: int, end: int) -> tuple[int, int]:
    return len(text[:start].encode("utf-16-le")) // 2, len(text[:end].encode("utf-16-le")) // 2


def as_crlf(text: str, start: int, end: int) -> tuple[int, int]:
    return start + text[:start].count("\n"), end + text[:end].count("\n")


@pytest.mark.parametrize(
    ("words", "change", "cause"),
    [
        ("NF-κB", as_bytes, "they seem to count the bytes of UTF-8"),
        ("TNF-α", as_bytes, "they seem to count the bytes of UTF-8"),
        ("NF-κB", as_utf16, "they seem to count UTF-16 units, as Java and JavaScript do"),
        ("tumour", lambda _, start, end: (start + 1, end + 1), "they seem to be counted from 1"),
        ("asthma", lambda _, start, end: (start + 1, end), "they seem to be counted from 1, the last character"),
        ("asthma", lambda _, start, end: (start, end - 1), "the end seems to be that of the last character"),
        ("asthma", lambda _, start, end: (start, end - start), "the second number seems to be the length"),
        ("asthma", lambda _, start, end: (start - 3, end - 3), f"the mention begins at {TEXT.index('asthma')}"),
        ("asthma", lambda _, start, end: (start + 30, end + 30), f"the mention begins at {TEXT.index('asthma')}"),
    ],
)
def test_wrong_offsets_are_explained(words: str, change: Any, cause: str) -> None:
    start = TEXT.index(words)
    shifted = change(TEXT, start, start + len(words))
    with pytest.raises(InputError) as error:
        settle_mention(TEXT, Entity(*shifted, words, "Thing"))
    assert f"({cause}" in str(error.value)
    assert "fix " in str(error.value)


def test_offsets_that_count_line_breaks_twice_are_explained() -> None:
    text = "One asthma.\nTwo.\nThree asthma here."
    start = text.rindex("asthma")
    with pytest.raises(InputError, match="they seem to count each line break as two characters"):
        settle_mention(text, Entity(*as_crlf(text, start, start + 6), "asthma", "Disease"))


@given(
    words=st.lists(st.text("abcdeéα🧬", min_size=2, max_size=8), min_size=3, max_size=12),
    shift=st.integers(-9, 9),
    number=st.integers(0, 11),
)
def test_shifted_offsets_are_never_taken_for_another_spelling(words: list[str], shift: int, number: int) -> None:
    words = [f"{word}{index}" for index, word in enumerate(words)]
    text = " ".join(words)
    word = words[number % len(words)]
    start = text.index(word)
    entity = Entity(start + shift, start + shift + len(word), word, "Thing")
    if not shift:
        assert settle_mention(text, entity) == entity
    elif abs(shift) < len(word):
        with pytest.raises(InputError):
            settle_mention(text, entity)


TITLE, ABSTRACT = "Aspirin in asthma.", "It caused hepatitis and asthma."
GOOD = "1\t0\t7\tAspirin\tChemical\tMESH:D001241"
MALFORMED = {
    "1\tT1\tDisease\t11\t17\tasthma": "the second and third column are 'T1' and 'Disease', not start and end",
    "1\tasthma\t11\t17\tDisease": "the second and third column are 'asthma' and '11'",
    "1\tDisease\t11\t17\tasthma": "the second and third column are 'Disease' and '11'",
    "1\t 11\t17\tasthma\tDisease\tD1": "the second and third column are ' 11' and '17'",
    "1\t11\t17 \tasthma\tDisease\tD1": "the second and third column are '11' and '17 '",
    "1\t11.0\t17.0\tasthma\tDisease\tD1": "the second and third column are '11.0' and '17.0'",
    "1\t-1\t-1\tasthma\tDisease\tD1": "the second and third column are '-1' and '-1', which stand for no place in the",
    "1\t-1\t17\tasthma\tDisease\tD1": "the second and third column are '-1' and '17'",
    "1\t1e1\t17\tasthma\tDisease\tD1": "the second and third column are '1e1' and '17'",
    "1\t١١\t17\tasthma\tDisease\tD1": "the second and third column are '١١' and '17'",
    "1\t\t\tasthma\tDisease\tD1": "the second and third column are '' and ''",
    "1\t11\t17\tasthma": "an annotation has the columns id, start, end, text and type",
    "1\tasthma\tDisease\tnone": "an annotation has the columns id, start, end, text and type",
    "1\tCID\tD1": "an annotation has the columns id, start, end, text and type",
    "1\tCID\tD1\tD2\tD3\tD4": "the second and third column are 'CID' and 'D1'",
    "1 11 17 asthma Disease": "neither an annotation nor a relation, whose columns are separated by tabs",
    "2\t11\t17\tasthma\tDisease": "this line belongs to document '2', not '1'",
    "1\t11\t17\tasthma\t\tD1": "the annotation 'asthma' has no type",
    "1\t17\t11\tasthma\tDisease": "the entity 'asthma' at 17:11 isn't within the text",
    "1\t11\t999\tasthma\tDisease": "the entity 'asthma' at 11:999 isn't within the text",
    "1\t12\t18\tasthma\tDisease": "the text at 12:18 is 'sthma.', not 'asthma': fix the offsets",
}


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_of_pubtator(line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.pubtator"
    rest = "3|t|Another title\n3\t0\t7\tAnother\tWord\n"
    file.write_text(f"1|t|{TITLE}\n1|a|{ABSTRACT}\n{GOOD}\n{line}\n{GOOD}\n\n{rest}")
    error, last = read(file)
    assert str(error).startswith(f"{file}, line 4: {MALFORMED[line]}")
    assert "\n" not in str(error)
    assert isinstance(last, Document)
    for mode, number in (("optional", 2), ("ignored", 0)):
        caplog.clear()
        first, second = read(file, mode)  # type: ignore[arg-type]
        assert isinstance(first, Document)
        assert isinstance(second, Document)
        assert (first.text, len(first.entities), first.extra) == (f"{TITLE}\n{ABSTRACT}", number, {})
        assert len(caplog.messages) == (mode == "optional")
        if caplog.messages:
            start = f"{file}: annotations that can't be read and are left out: 1 (for example line 4: {MALFORMED[line]}"
            assert caplog.messages[0].startswith(start)


@pytest.mark.parametrize(
    "relation",
    [
        "CID\tD009270\tD003000",
        "Association\t7124\tMESH:D003920",
        "Positive_Correlation\trs1\tD009|D008\tNovel",
        "Bind\t7\t9\tNo",
        "negative_correlation\tChemical|MESH:D009270\tDisease|MESH:D003000",
        "CID\t-\tD003000",
    ],
)
def test_relations_of_pubtator_are_kept(relation: str, tmp_path: Path) -> None:
    (tmp_path / "a.pubtator").write_text(f"1|t|{TITLE}\n{GOOD}\n1\t{relation}\n")
    (document,) = read(tmp_path / "a.pubtator")
    assert isinstance(document, Document)
    assert document.extra["relations"] == [relation.split("\t")]


def test_a_document_that_was_glued_to_another_is_never_lost(tmp_path: Path) -> None:
    (tmp_path / "a.pubtator").write_text(f"1|t|{TITLE}\n{GOOD}\n2|t|{TITLE}\n")
    for mode in ("needed", "optional", "ignored"):
        (error,) = read(tmp_path / "a.pubtator", mode)  # type: ignore[arg-type]
        assert isinstance(error, InputError)
        assert "line 3" in str(error)
        assert "put an empty line between documents" in str(error)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_blank_at_the_end_of_a_title(shift: int, tmp_path: Path) -> None:
    """It belongs to the title, or separates the abstract: the offsets tell."""
    title = f"{TITLE} "
    start = len(title) + shift + ABSTRACT.index("hepatitis")
    lines = [f"1|t|{title}", f"1|a|{ABSTRACT}", GOOD, f"1\t{start}\t{start + 9}\thepatitis\tDisease\t-"]
    (tmp_path / "a.pubtator").write_text("\n".join(lines))
    for mode in ("needed", "optional"):
        (document,) = read(tmp_path / "a.pubtator", mode)  # type: ignore[arg-type]
        assert isinstance(document, Document)
        assert document.text == f"{title if shift else TITLE}\n{ABSTRACT}"
        assert [entity.text for entity in document.entities] == ["Aspirin", "hepatitis"]
        assert [document.text[p.start : p.end] for p in document.passages] == document.text.split("\n")
    (document,) = read(tmp_path / "a.pubtator", "ignored")
    assert isinstance(document, Document)
    assert document.text == f"{title}\n{ABSTRACT}"


PLACE = {"offset": 0, "length": 7}
ANNOTATION: dict[str, Any] = {"id": "1", "infons": {"type": "Chemical"}, "text": "Aspirin", "locations": [PLACE]}
FAULTY: list[tuple[Any, str]] = [
    ([{**ANNOTATION, "infons": {}}], "the annotation 'Aspirin' has no type"),
    ([{**ANNOTATION, "infons": {"type": ""}}], "the annotation 'Aspirin' has no type"),
    ([{**ANNOTATION, "infons": {"type": 5}}], "the annotation 'Aspirin' has no type"),
    ([{**ANNOTATION, "infons": {"type": "Chemical", "score": "high"}}], "the score high is not a finite number"),
    ([{**ANNOTATION, "locations": []}], "the annotation 'Aspirin' has no locations"),
    ([{**ANNOTATION, "locations": None}], "the annotation 'Aspirin' has no locations"),
    ([{**ANNOTATION, "locations": [{"offset": True, "length": 7}]}], "offset is missing or not an integer"),
    ([{**ANNOTATION, "locations": [{"offset": "0", "length": 7}]}], "offset is missing or not an integer"),
    ([{**ANNOTATION, "locations": [{"offset": 900, "length": 7}]}], "the annotation 'Aspirin' at 900:907 isn't within"),
    ([{**ANNOTATION, "locations": [{"offset": 1, "length": 7}]}], "the text at 1:8 is 'spirin ', not 'Aspirin'"),
    ([{**ANNOTATION, "text": 5}], "text is missing or not a string"),
    (["Aspirin"], "annotations must be a list of objects"),
    ({"a": 1}, "annotations must be a list of objects"),
]


@pytest.mark.parametrize(("annotations", "message"), FAULTY)
def test_faulty_annotations_of_bioc(
    annotations: Any, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passage = {"offset": 0, "text": TITLE, "annotations": annotations}
    good = {"offset": 0, "text": TITLE, "annotations": [ANNOTATION]}
    (tmp_path / "a.json").write_text(json.dumps({"documents": [{"id": "1", "passages": [passage, good]}]}))
    (error,) = read(tmp_path / "a.json")
    assert f"document 1, which ends by line 1: id 1: passage 1: {message}" in str(error)
    (document,) = read(tmp_path / "a.json", "optional")
    assert isinstance(document, Document)
    assert (document.text, len(document.entities)) == (f"{TITLE}\n{TITLE}", 1)
    assert len(caplog.messages) == 1
    assert f"left out: 1 (for example document 1, passage 1: {message}" in caplog.messages[0]


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ('["Gene"]', "'entities' must be objects"),
        ('"none"', "'entities' must be a list"),
        ('[{"start": 1, "end": 8, "text": "Aspirin", "label": "x"}]', "the text at 1:8 is 'spirin ', not 'Aspirin'"),
        ('[{"start": true, "end": 7, "text": "Aspirin", "label": "x"}]', "the start of an entity can't be True"),
        ('[{"start": 0.0, "end": 7, "text": "Aspirin", "label": "x"}]', "the start of an entity can't be 0.0"),
        (
            f'[{{"start": {"9" * 5000}, "end": 7, "text": "Aspirin", "label": "x"}}]',
            "the start of an entity can't be Decimal('9999",
        ),
    ],
)
def test_faulty_entities_of_json_lines(
    entities: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{TITLE}", "entities": {entities}}}\n')
    (error,) = read(tmp_path / "a.jsonl")
    assert f"a.jsonl, line 1: {message}" in str(error)
    for mode, warnings in (("optional", 1), ("ignored", 0)):
        caplog.clear()
        (document,) = read(tmp_path / "a.jsonl", mode)  # type: ignore[arg-type]
        assert isinstance(document, Document)
        assert (document.text, document.entities) == (TITLE, ())
        assert len(caplog.messages) == warnings


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": true, "passages": []}', "the document has no id"),
        ('{"id": 1.5, "passages": []}', "the document has no id"),
        ('{"id": "1", "id": "2", "passages": []}', "the key 'id' occurs twice"),
        ('{"id": "1", "infons": {"a": 1, "a": 2}, "passages": []}', "the key 'a' occurs twice"),
    ],
)
def test_faulty_documents_of_bioc(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"documents": [{row}, {{"id": "9", "passages": []}}]}}')
    error, good = read(tmp_path / "a.json")
    assert f"a.json, document 1, which ends by line 1: {message}" in str(error)
    assert isinstance(good, Document)


def test_numbers_of_bioc_keep_their_digits(tmp_path: Path) -> None:
    fields = '"a": 0.1000000000000000055, "b": [1.50, 123456789012345678901234567890], "c": {"d": 1E+400}'
    row = f'{{"id": "1", {fields}, "infons": {{{fields}}}, "passages": []}}'
    (tmp_path / "a.json").write_text(f'{{"documents": [{row}]}}')
    write_documents(tmp_path / "b.json", DocumentReader(tmp_path / "a.json"))
    write_documents(tmp_path / "c.jsonl", DocumentReader(tmp_path / "b.json"))
    assert (tmp_path / "b.json").read_text().count(fields) == 2
    assert fields in (tmp_path / "c.jsonl").read_text()
    for bad in ("NaN", "Infinity", "1" * 5000, "01"):
        (tmp_path / "a.json").write_text(f'{{"documents": [\n{{"id": "1", "a": {bad}, "passages": []}}]}}')
        with pytest.raises(InputError, match=r"a\.json, lines? 1.*(not JSON|too many digits)"):
            read(tmp_path / "a.json")


BIOC_XML = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE collection SYSTEM "BioC.dtd" [<!ATTLIST infon key CDATA "type"> <!ELEMENT date ANY>]>
<collection>
  <source>PubTator</source><date>2020</date><key>own.key</key>
  <document><id>5</id>
    <infon key="license">CC0</infon>
    <passage><infon key="type">title</infon><offset>0</offset><text>Aspirin &amp; "asthma"  🧬</text>
      <annotation id="1"><infon key="type">Chemical</infon><infon key="identifier">MESH:D001241</infon>
        <location offset="0" length="7"/><text>Aspirin</text></annotation>
      <relation id="R1"><infon key="type">CID</infon><node refid="1" role="a"/></relation>
    </passage>
    <passage><infon key="type">abstract</infon><offset>100</offset>
      <sentence><offset>100</offset><text>Left and right failure.</text>
        <annotation id="2"><infon key="type">Disease</infon><location offset="100" length="4"/>
          <location offset="115" length="7"/><text>Left failure</text></annotation></sentence>
      <sentence><offset>124</offset><text></text></sentence>
    </passage>
  </document>
  <document><id>6</id><passage><offset>x</offset><text>one</text></passage></document>
  <document><id>7</id></document>
</collection>
"""


def test_bioc_xml_is_read_like_json(tmp_path: Path) -> None:
    (tmp_path / "a.BioC.xml").write_text(BIOC_XML)
    first, error, last = read(tmp_path / "a.BioC.xml")
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert (first.id, last.id, last.text) == ("5", "7", "")
    assert first.text == 'Aspirin & "asthma"  🧬\nLeft and right failure.\n'
    assert [(e.text, e.label, e.identifier) for e in first.entities] == [
        ("Aspirin", "Chemical", "MESH:D001241"),
        ("Left and right failure", "Disease", ""),
    ]
    assert [(p.offset, p.infons) for p in first.passages] == [
        (0, {"type": "title"}),
        (100, {"type": "abstract"}),
        (124, {"type": "abstract"}),
    ]
    assert first.extra["collection"] == {"source": "PubTator", "date": "2020", "key": "own.key"}
    assert first.extra["infons"] == {"license": "CC0"}
    assert "document that begins in line 19: id 6: offset is missing or not an integer" in str(error)


def test_attributes_of_bioc_xml_are_no_lists(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        "<collection><document passages='1' infons='2' id='a'><infon key='b'>c</infon><passage annotations='3' "
        "offset='0'><text>one</text><annotation id='1' locations='4'><infon key='type'>D</infon><location offset='0' "
        "length='3'/><text>one</text></annotation></passage></document></collection>"
    )
    (document,) = read(tmp_path / "a.xml")
    assert isinstance(document, Document)
    assert (document.id, document.text, document.extra["infons"]) == ("a", "one", {"b": "c"})
    assert [entity.label for entity in document.entities] == ["D"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"type"> <!', '"type"> <!ENTITY a "aaa"> <!', "line 2: declares the entity 'a'"),
        ('"type"> <!', '"type"> <!ENTITY % a SYSTEM "http://x/"> %a; <!', "line 2: declares the entity 'a'"),
        ("<text>one", "<text>&nbsp;one", "line 19: unknown entity &nbsp;"),
        ("</collection>", "", "not well-formed XML"),
    ],
)
def test_bioc_xml_is_as_safe_as_pubmed_xml(before: str, after: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(BIOC_XML.replace(before, after))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.xml")


def test_memory_does_not_grow_with_bioc_xml(tmp_path: Path) -> None:
    start, _, rest = BIOC_XML.partition("  <document>")
    document = rest.partition("  <document>")[0]
    with open(tmp_path / "a.xml", "w") as file:
        file.write(start)
        file.writelines(f"  <document>{document}" for _ in range(1500))
        file.write("</collection>")
    tracemalloc.start()
    with open_input(tmp_path / "a.xml") as opened:
        assert sum(isinstance(found, Document) for found in read_open_file(opened)) == 1500
    assert tracemalloc.get_traced_memory()[1] < 1_000_000 < (tmp_path / "a.xml").stat().st_size
    tracemalloc.stop()


def test_a_passage_needs_an_offset_only_where_annotations_are_needed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '{"documents": [{"id": "1", "passages": [{"text": "Aspirin"}, {"text": "helps"}]}]}'
    )
    wanted: Annotations
    for wanted in ("optional", "ignored"):
        (document,) = DocumentReader(tmp_path / "a.json", options=ReadOptions(annotations=wanted))
        assert document.text == "Aspirin\nhelps"
    with pytest.raises(InputError, match="offset is missing"):
        list(DocumentReader(tmp_path / "a.json"))
