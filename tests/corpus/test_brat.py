"""Test that brat's files are read and written exactly, and that folders of them are whole or absent."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bioptimus_hf import load_corpus
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.formats import DocumentReader, find_format, format_to_read, write_documents
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError

TEXT = "Aspirin 🧬 in\r\nsevere asthma.\n"
WITHIN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def entity(text: str, start: int, end: int, label: str = "Chemical", identifier: str = "") -> Entity:
    return Entity(start, end, text[start:end], label, identifier=identifier)


def strictly_read(folder: Path) -> dict[str, tuple[str, list[tuple[str, list[tuple[int, int]], str]]]]:
    """Read a folder as https://brat.nlplab.org/standoff.html describes it, and as brat's own parser does.

    Returns:
        For each document its text, and type, places and mention of each annotation.
    """
    found = {}
    texts = {path.stem for path in folder.iterdir() if path.suffix == ".txt"}
    assert {path.name for path in folder.iterdir()} == {f"{name}{end}" for name in texts for end in (".txt", ".ann")}
    for name in texts:
        text = (folder / f"{name}.txt").read_bytes().decode()
        annotations, names = [], set()
        for line in (folder / f"{name}.ann").read_bytes().decode().splitlines():  # at every character that ends a line
            number, data, mention = line.split("\t")
            assert number not in names
            names.add(number)
            if number.startswith("N"):
                assert (match := re.fullmatch(r"(\S+) (\S+) (\S+?):(\S+)", data))
                assert match[1] == "Reference"
                assert match[2] in names
                continue
            assert re.fullmatch("T[0-9]+", number)
            kind, rest = data.split(" ", 1)
            spans = [(int(start), int(end)) for start, end in (place.split(" ") for place in rest.split(";"))]
            assert all(start < end <= len(text) for start, end in spans)
            assert spans == sorted(spans)
            assert mention == " ".join(text[start:end] for start, end in spans)
            annotations.append((kind, spans, mention))
        found[name] = text, annotations
    return found


def test_a_strict_reader_reads_our_folders(tmp_path: Path) -> None:
    mentions = (
        entity(TEXT, 0, 7, identifier="MESH:D001241"),
        entity(TEXT, 10, 20, "Two_lines", "7124"),
        entity(TEXT, 8, 9, "Emoji-1"),
    )
    assert write_documents(tmp_path / "a.brat", [Document("sub/a:1", TEXT, mentions), Document("2", "")]) == 2
    assert strictly_read(tmp_path / "a.brat") == {
        "sub%2Fa%3A1": (
            TEXT,
            [
                ("Chemical", [(0, 7)], "Aspirin"),
                ("Two_lines", [(10, 12), (14, 20)], "in severe"),
                ("Emoji-1", [(8, 9)], "🧬"),
            ],
        ),
        "2": ("", []),
    }
    second, first = sorted(DocumentReader(tmp_path / "a.brat"), key=lambda document: document.id)
    assert second == Document("2", "")
    assert first == Document("sub/a:1", TEXT, mentions)


@given(
    ids=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=4),
    text=st.text(st.sampled_from("aé🧬 \t\n\r\x0b\x1c\x85\u2028;"), max_size=30),
    places=st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), max_size=4),
)
@WITHIN
def test_ids_texts_and_mentions_survive(
    ids: list[str], text: str, places: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("brat") / "a.brat"
    # Line breaks at the edge of a mention are all that is lost.
    edges = "\t\n\r\x0b\x1c\x85\u2028"
    kept = [(s, e) for s, e in places if s < e <= len(text) and text[s:e].strip(edges) == text[s:e]]
    entities = tuple(entity(text, start, end) for start, end in kept)
    write_documents(folder, [Document(name, text, entities) for name in ids])
    strictly_read(folder)
    found = list(DocumentReader(folder))
    assert sorted(document.id for document in found if document.id in ids) == sorted(set(ids)) or len(set(ids)) < len(
        ids
    )
    assert [(document.text, document.entities) for document in found] == [(text, entities)] * len(ids)
    again = folder.with_name("b.brat")
    write_documents(again, found)
    if len(set(ids)) == len(ids):
        assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_ids_that_occur_twice_and_names_that_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = ["a", "a", "a.2", "a", ".", "..", ""]
    write_documents(tmp_path / "a.brat", [Document(name, str(number)) for number, name in enumerate(ids)])
    assert {path.name for path in (tmp_path / "a.brat").glob("*.txt")} == {
        *("a.txt", "a.2.txt", "a.2.2.txt", "a.3.txt", "%2E.txt", "%2E..txt", "%.txt"),
    }
    (message,) = caplog.messages
    assert message == "brat: documents with an id that another one has, named with a number at the end: 3"
    assert {"", ".", ".."} < {document.id for document in DocumentReader(tmp_path / "a.brat")}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("7", "ab", (Entity(0, 1, "a", "two words"),)), "document '7': 'two words' can't be a type in brat"),
        (Document("7", "ab", (Entity(0, 1, "a", ""),)), "document '7': '' can't be a type in brat"),
        (Document("7", "a\n", (Entity(1, 2, "\n", "x"),)), r"brat can't hold the mention '\\n'"),
        (Document("ä" * 100, "a"), "the id is too long for the name of a file"),
        (Document("\ud800", "a", (Entity(0, 1, "a", "\ud800"),)), "half a surrogate pair"),
    ],
)
def test_what_brat_cannot_hold_leaves_nothing(document: Document, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"a\.brat: .*{message}"):
        write_documents(tmp_path / "a.brat", [Document("1", "fine"), document])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_replaced_is_kept(tmp_path: Path) -> None:
    """People edit such files by hand."""
    write_documents(tmp_path / "a.brat", [Document("1", "old")])
    write_documents(tmp_path / "a.brat", [Document("2", "new")])
    assert [document.text for document in DocumentReader(tmp_path / "a.brat")] == ["new"]
    (kept,) = tmp_path.glob("a.brat.kept-*")
    assert (kept / "1.txt").read_text() == "old"


def put(folder: Path, annotations: str | None, text: str = TEXT, name: str = "x") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_bytes(text.encode())
    if annotations is not None:
        (folder / f"{name}.ann").write_bytes(annotations.encode())
    return folder / f"{name}.txt"


def read(path: Path, **options: Any) -> Document:
    (document,) = DocumentReader(path, options=ReadOptions(**options))
    return document


def test_a_text_with_annotations_beside_it_is_one_document(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        "T1\tChemical 0 7\tAspirin",
        "T2\tDisease 14 27\tsevere asthma",
        "T3\tWide 10 12;14 20\tin severe",
        "T4\tApart 0 7;21 27\tAspirin asthma",
        "N1\tReference T1 MESH:D001241\tAspirin",
        "N2\tReference T1 CHEBI:15365\tAspirin",
        "R1\tTreats Arg1:T1 Arg2:T2\t",
        "E1\tEvent:T4 Theme:T1",
        "A1\tNegation E1",
        "#1\tAnnotatorNotes T1\tsure",
        "*\tEquiv T1 T4",
    ]
    path = put(tmp_path, "\r\n".join(lines))
    assert format_to_read(path) == "brat"
    document = read(path)
    assert (document.id, document.text) == ("x", TEXT)
    assert document.entities == (
        entity(TEXT, 0, 7, "Chemical", "MESH:D001241"),
        entity(TEXT, 14, 27, "Disease"),
        entity(TEXT, 10, 20, "Wide"),
        entity(TEXT, 0, 27, "Apart"),
    )
    noted = sorted(message.partition("x.ann: ")[2] for message in caplog.messages)
    assert [message.partition(" (for")[0] for message in noted] == [
        "annotations in several pieces, read from the first to the last: 1",
        "attributes, left out: 1",
        "events, left out: 1",
        "further identifiers of an annotation, left out: 1",
        "notes, left out: 1",
        "relations, left out: 2",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("T1\tChemical 0 70\tAspirin", "isn't within the text's"),
        ("T1\tChemical 1 8\tAspirin", r"the text at 1:8 is .* \(they seem to be counted from 1\)"),
        ("T1\tChemical 0 7;8 9\tAspirin in", "the text in these places is"),
        ("T1\tChemical 7 0\tAspirin", "isn't within"),
        ("T1\tChemical\tAspirin", "is no line of brat"),
        ("T1 Chemical 0 7 Aspirin", "is no line of brat"),
        ("T1\tChemical 0.5 7\tAspirin", "is no line of brat"),
        ("hello", "is no line of brat"),
        ("T1\tChemical 0 7\tAspirin\nT1\tChemical 0 7\tAspirin", "a second annotation T1"),
    ],
)
def test_faulty_annotations(line: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path, line)
    with pytest.raises(InputError, match=rf"x\.ann, line [12]: .*{message}"):
        read(path)
    assert read(path, annotations="optional").text == TEXT
    (noted,) = caplog.messages
    assert "annotations that can't be read and are left out: 1" in noted
    caplog.clear()
    assert read(path, annotations="ignored") == Document("x", TEXT)
    assert caplog.messages == []


def test_bad_files(tmp_path: Path) -> None:
    path = put(tmp_path, "T1\tx 0 1\t\n")
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(InputError, match=r"x\.txt: begins with the byte order mark|UTF-16"):
        read(path)
    path.write_bytes(b"a\xffb")
    with pytest.raises(InputError, match=r"x\.txt: not valid UTF-8 at byte 1"):
        read(path)
    assert read(path, errors="replace", annotations="ignored").text == "a\ufffdb"
    with pytest.raises(InputError, match=r"x\.txt: a document of 0\.0 MB, more than the limit"):
        read(path, max_document_megabytes=1e-6)
    path.with_suffix(".ann").unlink()
    path.write_text("a")
    with pytest.raises(InputError, match=r"x\.ann can't be read"):
        list(DocumentReader(path, format="brat"))
    with pytest.raises(InputError, match=r"y\.txt: a text of brat is one document, not 2"):
        write_documents(tmp_path / "y.txt", [Document("1", "a"), Document("2", "b")], format="brat")


def test_a_byte_order_mark_is_a_character(tmp_path: Path) -> None:
    """brat counts it."""
    assert read(put(tmp_path, "T1\tx 1 3\tab", "\ufeffab")).entities == (Entity(1, 3, "ab", "x"),)


def test_corpora_read_brat_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "in", "nonsense", "one\ntwo")
    (tmp_path / "in" / "annotation.conf").write_text("[entities]\n")
    (tmp_path / "in" / "plain.txt").write_text("three\nfour\n")
    caplog.set_level(logging.INFO)
    assert sorted(load_corpus(str(tmp_path / "in"))["text"]) == ["four", "one\ntwo", "three"]
    assert not any(".ann" in message or ".conf" in message for message in caplog.messages)
    assert find_format("x.ann") is None
