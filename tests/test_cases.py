"""Test what becomes of small inputs with faults that real files have, with and without their annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from bioptimus_hf import load_corpus
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import read_open_file
from bioptimus_hf.corpus.reading import Annotations, ReadOptions, open_input
from bioptimus_hf.errors import InputError

TNF = "TNF-α in sepsis.\nTNF-α rose in all patients with sepsis."
SPELLING = "mentions spelt differently from the text, whose spelling is used: 2"
LEFT_OUT = "annotations that can't be read and are left out"
Span = tuple[int, int, str, str]


@dataclass
class Case:
    """A file, its texts, and what is said about its annotations.

    Attributes:
        texts: the texts by id.
        spans: the annotations of its first document where they are needed; None if they are an error.
        error: how this error ends.
        warning: what a warning contains if the annotations are optional.
    """

    texts: dict[str, str]
    spans: list[Span] | None = None
    error: str = ""
    warning: str = ""


CASES = {
    "bioc_normalised_mention.json": Case(
        {"1003": TNF}, [(0, 5, "TNF-α", "Gene"), (17, 22, "TNF-α", "Gene")], warning=SPELLING
    ),
    "pubtator_normalised_mention.pubtator": Case(
        {"1002": TNF}, [(0, 5, "TNF-α", "Gene"), (17, 22, "TNF-α", "Gene")], warning=SPELLING
    ),
    "pubtator_title_trailing_blank.pubtator": Case(
        {"1001": "Effects of drug A on the liver.\nAspirin caused hepatitis in 3 patients."},
        [(32, 39, "Aspirin", "Chemical"), (47, 56, "hepatitis", "Disease")],
    ),
    "bioc_annotation_without_type.json": Case(
        {"1005": TNF},
        error="document 1, which ends by line 1: id 1005: passage 1: the annotation 'sepsis' has no type: give it as a "
        "string in infons, under 'type'",
        warning=f"{LEFT_OUT}: 1",
    ),
    "bioc.xml": Case({"3001": "Aspirin in asthma."}, []),
    "pubtator_annotations_read_as_relations.pubtator": Case(
        {"2011": "Aspirin in asthma.\nText one."},
        error="line 4: the second and third column are 'T1' and 'Disease', not start and end in digits: the columns of "
        "an annotation are id, start, end, text and type",
        warning=f"{LEFT_OUT}: 3",
    ),
    "pubmed_deleted_and_book.xml": Case(
        {
            "3101": "Na+/K+-ATPase in E. coli.\nPatient: Female, 16Symptoms: None\nOBJECTIVE: IL-2 is x<5.",
            "3102": "Rare syndrome\nText of it.",
            "3103": "Only a book title on asthma\nText of the book.",
            "3104": "Asthme et aspirine.\nABSTRACT: An English other abstract on asthma.",
            "3105": "\nNo title here.",
            "3106": "Title only about asthma.",
        },
        [],
    ),
}


def read(file: Path, annotations: Annotations) -> list[Document | InputError]:
    with open_input(file, ReadOptions(annotations=annotations)) as opened:
        return list(read_open_file(opened))


@pytest.mark.parametrize("name", CASES)
def test_annotations_that_are_replaced_stop_nothing(
    name: str, cases_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    found = [document for document in read(cases_dir / name, "optional") if isinstance(document, Document)]
    assert {document.id: document.text for document in found} == case.texts
    assert len(caplog.messages) == bool(case.warning)
    if case.warning:
        assert caplog.messages[0].startswith(f"{cases_dir / name}: {case.warning} (for example ")


@pytest.mark.parametrize("name", CASES)
def test_annotations_that_are_needed_are_right_or_an_error(
    name: str, cases_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    found = read(cases_dir / name, "needed")
    if case.spans is None:
        (error,) = found
        assert str(error) == f"{cases_dir / name}, {case.error}"
        return
    documents = [document for document in found if isinstance(document, Document)]
    assert {document.id: document.text for document in documents} == case.texts
    assert [(e.start, e.end, e.text, e.label) for e in documents[0].entities] == case.spans
    assert [message.partition(": ")[2].partition(" (for")[0] for message in caplog.messages] == (
        [case.warning] if case.warning else []
    )


@pytest.mark.parametrize("name", CASES)
def test_a_corpus_has_the_same_characters(name: str, cases_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["".join(text.split()) for text in load_corpus(cases_dir / name)["text"]]
    assert texts == ["".join(text.split()) for text in CASES[name].texts.values()]
    assert "left out" not in caplog.text
