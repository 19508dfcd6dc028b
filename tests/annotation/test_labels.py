"""Test that labels of other people's heads are read as what they mean, or rejected with what was found."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from conftest import Command
from helpers import build_head_of_words, build_tiny_head, build_tiny_tokenizer

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.labels import check_renames, interpret_labels, read_renames
from bioptimus_hf.errors import InputError

TEXT = "severe renal failure the aspirin asthma, severe failure aspirin"
WORDS = {"severe": "B", "renal": "I", "failure": "E", "aspirin": "S", "asthma": "I"}
FOUND = [("severe renal failure", 0.0), ("aspirin", 0.0), ("asthma", 0.0), ("severe failure", 0.0), ("aspirin", 0.0)]
"""An E or S ends an entity, so that the I after it begins one."""
SCHEMES = {
    "IOBES": {"B": "B-Drug", "I": "I-Drug", "E": "E-Drug", "S": "S-Drug"},
    "BILOU": {"B": "B-Drug", "I": "I-Drug", "E": "L-Drug", "S": "U-Drug"},
    "BMES": {"B": "B-Drug", "I": "M-Drug", "E": "E-Drug", "S": "S-Drug"},
    "lower case": {"B": "b-Drug", "I": "i-Drug", "E": "e-Drug", "S": "s-Drug"},
    "underscores": {"B": "B_Drug", "I": "I_Drug", "E": "L_Drug", "S": "U_Drug"},
    "suffixes": {"B": "Drug-B", "I": "Drug-I", "E": "Drug-E", "S": "Drug-S"},
}


def meaning(labels: list[str], **renames: str) -> list[str]:
    tags = interpret_labels(dict(enumerate(labels)), renames)
    return ["-".join(filter(None, tags[number])) for number in range(len(labels))]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_of_every_scheme_are_the_same(scheme: str) -> None:
    labels = ["O", *SCHEMES[scheme].values()]
    head = build_head_of_words({word: SCHEMES[scheme][mark] for word, mark in WORDS.items()}, labels)
    (found,) = Annotator(head, build_tiny_tokenizer()).annotate([TEXT])
    assert [entity.text for entity in found] == [text for text, _ in FOUND]
    assert {entity.label for entity in found} == {"Drug"}


def test_bare_marks_are_one_type_that_the_user_names() -> None:
    labels = ["B", "E", "I", "O", "S"]
    head = build_head_of_words(WORDS, labels)
    with pytest.raises(InputError, match=r"labels: the model has labels that name no entity type \(B, E, I, S\): say"):
        Annotator(head, build_tiny_tokenizer())
    named = dict.fromkeys("BEIS", "Drug")
    (found,) = Annotator(head, build_tiny_tokenizer(), labels=named).annotate([TEXT])
    assert [entity.text for entity in found] == [text for text, _ in FOUND]
    assert {entity.label for entity in found} == {"Drug"}


@pytest.mark.parametrize(
    ("labels", "tags"),
    [
        (["O", "B-a", "I-a"], "O B-a I-a"),
        (["o", "b-a", "i-a"], "O B-a I-a"),
        (["B-cell-line", "I-cell-line", "O"], "B-cell-line I-cell-line O"),
        (["O", "Chemical", "Disease"], "O I-Chemical I-Disease"),
        (["O", "E-coli", "S-layer"], "O I-E-coli I-S-layer"),  # types without marks
        (["O", "e_coli"], "O I-e_coli"),
        (["O", "Vitamin-B"], "O I-Vitamin-B"),
        (["O", "PER-B", "PER-I", "ORG-B"], "O B-PER I-PER B-ORG"),
        (["B-a", "I-a", "O", "X", "[CLS]", "[SEP]", "<pad>"], "B-a I-a O O O O O"),
        (["O", "X", "Y"], "O I-X I-Y"),  # no marks, so X is a type
        (["O", "B-a", "I-a", "MISC"], "O B-a I-a I-MISC"),
    ],
)
def test_labels_are_judged_together(labels: list[str], tags: str) -> None:
    assert meaning(labels) == tags.split()


@pytest.mark.parametrize(
    ("labels", "renames", "tags"),
    [
        (["LABEL_0", "LABEL_1", "LABEL_2"], "LABEL_0=O LABEL_1=B-a LABEL_2=I-a", "O B-a I-a"),
        (["LABEL_0", "LABEL_1"], "LABEL_0=O LABEL_1=a", "O I-a"),
        (["None", "Chemical"], "None=O", "O I-Chemical"),
        (["begin", "inside", "other"], "begin=B-a inside=I-a other=O", "B-a I-a O"),
        (["O", "B-a", "I-a", "B-b", "I-b"], "a=Drug b=O", "O B-Drug I-Drug O O"),
        (["O", "S-a", "B-a", "E-a"], "a=Drug", "O S-Drug B-Drug E-Drug"),
        (["O", "Lymphocyte"], "Lymphocyte=I-B-cell", "O I-B-cell"),
        (["O", "B-T", "I-T"], "T=B-cell", "O B-B-cell I-B-cell"),  # what a type becomes is a type
        (["O", "X-a"], "X-a=O", "O O"),
        (["O", "B-a", "I-a", "B-b", "I-b", "B-c"], "a", "O B-a I-a O O O"),
        (["O", "B-a", "I-a", "B-b", "I-b", "B-c"], "c b=Drug", "O O O B-Drug I-Drug B-c"),
        (["O", "a", "b"], "b", "O O I-b"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], "LABEL_1=a *=O", "O I-a O"),
        (["O", "B-a", "I-a", "B-b"], "b=b *=Other", "O B-Other I-Other B-b"),
    ],
)
def test_labels_and_types_can_be_renamed(labels: list[str], renames: str, tags: str) -> None:
    assert meaning(labels, **read_renames(renames.split())) == tags.split()


@pytest.mark.parametrize(
    ("labels", "renames", "error"),
    [
        (
            ["LABEL_0", "LABEL_1", "LABEL_2"],
            "",
            r"\(LABEL_0, LABEL_1, LABEL_2\).*LABEL_0=O LABEL_1=B-Chemical LABEL_2=I",
        ),
        (["O", "LABEL_1"], "", r"\(LABEL_1\): say what they mean, for example LABEL_1=B-Chemical$"),
        (["LABEL_0", "LABEL_1"], "LABEL_0=O", r"\(LABEL_1\)"),
        (["O", "label_1"], "", r"\(label_1\): say what they mean, for example label_1=B-Chemical$"),
        (["O", "1", "2"], "", r"\(1, 2\): say what they mean, for example 1=B-Chemical 2=I-Chemical$"),
        (["0", "1", "2"], "", r"\(0, 1, 2\): say what they mean, for example 0=O 1=B-Chemical 2=I-Chemical$"),
        (["O", "B", "I"], "B=a", r"\(I\): say what they mean, for example I=Chemical$"),
        (["None", "Chemical"], "", "no label O for words outside of entities, only None, Chemical: .* None=O$"),
        (["NOUN", "VERB"], "", "no label O"),
        ([f"TYPE{number}" for number in range(200)], "", r"TYPE11, \.\.\.: say"),
    ],
)
def test_labels_that_say_too_little_are_rejected(labels: list[str], renames: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        meaning(labels, **read_renames(renames.split()))


def test_what_is_renamed_must_be_there() -> None:
    with pytest.raises(InputError, match=r"Gene is neither a label nor a type; there are O, B-a, a, I-b, b$"):
        check_renames({"a": "b", "Gene": "O"}, [{0: "O", 1: "B-a"}, {0: "O", 1: "I-b"}])
    two = [build_tiny_head(layers=0), build_tiny_head(layers=0, tags=["O", "B-Gene", "I-Gene"])]
    Annotator(two, build_tiny_tokenizer(), labels={"Gene": "O"})  # a type of one of them
    with pytest.raises(InputError, match="neither a label nor a type"):
        Annotator(two, build_tiny_tokenizer(), labels={"Genes": "O"})


@pytest.mark.parametrize("pair", ["=O", "LABEL_1=", "", "="])
def test_a_pair_needs_two_sides(pair: str) -> None:
    with pytest.raises(InputError, match="must be a type to keep, such as Chemical, or FOUND=WANTED"):
        read_renames([pair])
    with pytest.raises(InputError, match=r"leave out all others: remove \*=b"):
        read_renames(["a", "*=b"])
    with pytest.raises(InputError, match="a is given twice, as b and c"):
        read_renames(["a=b", "a=c"])


def test_types_to_keep_are_kept_and_must_be_there() -> None:
    head = build_head_of_words({"aspirin": "B-Chemical", "asthma": "B-Disease"}, ["O", "B-Chemical", "B-Disease"])
    annotator = Annotator(head, build_tiny_tokenizer(), labels=read_renames(["Disease"]))
    assert [[entity.text for entity in found] for found in annotator.annotate(["aspirin for asthma"])] == [["asthma"]]
    with pytest.raises(InputError, match="Gene is neither a label nor a type"):
        Annotator(head, build_tiny_tokenizer(), labels=read_renames(["Disease", "Gene"]))


def test_entities_below_a_score_are_left_out() -> None:
    head, tokenizer = build_tiny_head(layers=1), build_tiny_tokenizer()
    texts = [TEXT, "", "aspirin"]
    found = [entity for entities in Annotator(head, tokenizer).annotate(texts) for entity in entities]
    scores = sorted({entity.score for entity in found})
    assert len(scores) > 2
    for least in (0.0, scores[0], scores[1], scores[-1], 1.0):
        kept = [e for entities in Annotator(head, tokenizer, min_score=least).annotate(texts) for e in entities]
        assert kept == [entity for entity in found if entity.score >= least]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="min_score: must be between 0 and 1, or best, not"):
            Annotator(head, tokenizer, min_score=wrong)


def test_what_was_read_differently_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bioptimus_hf"):
        interpret_labels({0: "O", 1: "B-a", 2: "I-a"}, {}, name="HEAD")
        assert not caplog.messages
        interpret_labels({0: "O", 1: "B-a", 2: "L-a", 3: "U-a", 4: "[CLS]"}, {}, name="HEAD")
    assert caplog.messages == ["HEAD: reading L-a as E-a, U-a as S-a, [CLS] as O"]


def test_the_command_annotates_with_any_head(tmp_path: Path, command: Command) -> None:
    labels = ["LABEL_0", "LABEL_1", "LABEL_2"]
    head = build_head_of_words({"renal": "LABEL_1", "failure": "LABEL_2"}, labels, other="LABEL_0")
    head.save_pretrained(tmp_path / "head")
    build_tiny_tokenizer().save_pretrained(tmp_path / "head")
    (tmp_path / "text.txt").write_text("the renal failure\n")
    annotate = ("annotate", "--models", tmp_path / "head", "--input", tmp_path / "text.txt", "--output_dir")
    error = command(*annotate, tmp_path / "found", status=2).error
    assert error.startswith(f"error: --labels: {tmp_path / 'head'} has labels that name no entity type")
    named = (*annotate, tmp_path / "found", "--labels", "LABEL_0=O", "LABEL_1=B-Disease", "LABEL_2=I-Disease")
    command(*named)
    (found,) = (tmp_path / "found").glob("text*.jsonl")
    assert '"label": "Disease"' in found.read_text()
    assert '"text": "renal failure"' in found.read_text()
    assert "already annotated" in command(*named).log
    error = command(*annotate, tmp_path / "found", "--labels", "LABEL_1=O", status=2).error
    assert "was made with different labels" in error
