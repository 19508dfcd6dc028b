"""Test the comparison of predicted with annotated entities, against nervaluate among others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.ner.error_analysis import (
    KINDS,
    Sentence,
    align,
    analyse,
    confusions,
    kind_of,
    mentions_in,
    sentences_of,
)
from bioptimus_hf.ner.scores import Span, entity_scores
from bioptimus_hf.ner.tasks import JNLPBA_TYPES

TYPES = ("X", "Y")
TAGS = ["O", *(f"{mark}-{kind}" for kind in TYPES for mark in "BI")]
pairs_of_tags = st.integers(1, 12).flatmap(
    lambda size: st.tuples(*[st.lists(st.sampled_from(TAGS), min_size=size, max_size=size)] * 2)
)


def counts_of_nervaluate(sentences: Sequence[Sentence], schema: str, types: Sequence[str]) -> tuple[int, ...]:
    nervaluate = pytest.importorskip("nervaluate")
    gold, predicted = (
        [[{"label": kind, "start": begin, "end": end - 1} for begin, end, kind in side] for side in sides]
        for sides in zip(*((sentence.gold, sentence.predicted) for sentence in sentences), strict=True)
    )
    found = nervaluate.Evaluator(gold, predicted, tags=list(types), loader="dict").evaluate()["overall"][schema]
    return found.correct, found.incorrect, found.missed, found.spurious


def assert_counts_of_nervaluate(sentences: Sequence[Sentence], types: Sequence[str]) -> None:
    kinds = analyse(sentences, ())["kinds"]
    wrong = sum(kinds[kind] for kind in KINDS if kind.startswith("wrong"))
    rest = kinds["missed"], kinds["spurious"]
    assert counts_of_nervaluate(sentences, "strict", types) == (kinds["correct"], wrong, *rest)
    same = kinds["correct"] + kinds["wrong type"]  # boundaries
    assert counts_of_nervaluate(sentences, "exact", types) == (same, kinds["correct"] + wrong - same, *rest)


@given(rows=st.lists(pairs_of_tags, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_each_entity_is_counted_once_and_as_by_nervaluate(rows: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = ([row[side] for row in rows] for side in (0, 1))
    sentences = sentences_of([["word"] * len(tags) for tags in gold], gold, predicted)
    for sentence in sentences:
        pairs = align(sentence.gold, sentence.predicted)
        assert sorted(true for true, _ in pairs if true) == sentence.gold
        assert sorted(found for _, found in pairs if found) == sentence.predicted
        assert all(not (true and found) or max(true[0], found[0]) < min(true[1], found[1]) for true, found in pairs)
    found = analyse(sentences, {("word", "X")})
    scores = entity_scores(gold, predicted)
    assert [found["all"][name] for name in ("precision", "recall", "f1")] == [
        scores[name] for name in ("precision", "recall", "f1")
    ]
    for group in ("seen", "length", "type"):
        for name in ("mentions", "found", "correct"):
            assert sum(row[name] for row in found[group].values()) == found["all"][name]
    for kind, row in found["type"].items():
        assert row["f1"] == scores[f"{kind}_f1"]
    wrong = sum(count for kind, count in found["kinds"].items() if kind != "correct")
    assert sum(row["count"] for row in confusions(sentences, limit=1000)) == wrong
    if any(sentence.gold or sentence.predicted for sentence in sentences):
        assert_counts_of_nervaluate(sentences, TYPES)


def test_counts_are_those_of_nervaluate_on_a_real_set(data_dir: Path) -> None:
    """Predictions are the annotations of JNLPBA with five types, with words tagged like others at random places."""
    words, gold = zip(*read_conll(data_dir / "ner" / "JNLPBA" / "test.tsv")[:600], strict=True)
    chance = random.Random(0)
    predicted = [[chance.choice(tags) if chance.random() < 0.15 else tag for tag in tags] for tags in gold]
    predicted = [
        [chance.choice(["B-protein", "I-DNA"]) if tag != "O" and chance.random() < 0.1 else tag for tag in tags]
        for tags in predicted
    ]
    sentences = sentences_of(words, gold, predicted)
    assert min(analyse(sentences, ())["kinds"].values()) > 5
    assert_counts_of_nervaluate(sentences, JNLPBA_TYPES.types or ())


@pytest.mark.parametrize(
    ("gold", "predicted", "kinds"),
    [
        ([(0, 2, "X")], [(0, 2, "X")], ["correct"]),
        ([(0, 2, "X")], [(0, 2, "Y")], ["wrong type"]),
        ([(0, 2, "X")], [(1, 3, "X")], ["wrong boundary"]),
        ([(0, 2, "X")], [(1, 3, "Y")], ["wrong boundary and type"]),
        ([(0, 2, "X")], [(2, 3, "X")], ["missed", "spurious"]),
        ([(0, 5, "X")], [(0, 2, "X"), (3, 5, "X")], ["wrong boundary", "spurious"]),
        # The type decides if both overlap, but two pairs are better than one of equal type.
        ([(0, 2, "Y"), (2, 4, "X")], [(1, 4, "X")], ["missed", "wrong boundary"]),
        (
            [(0, 2, "Y"), (2, 4, "X")],
            [(1, 3, "X"), (3, 4, "Y")],
            ["wrong boundary and type", "wrong boundary and type"],
        ),
        ([(0, 1, "X"), (1, 4, "X")], [(0, 4, "X")], ["missed", "wrong boundary"]),
        ([], [], []),
    ],
)
def test_kinds_of_errors(gold: list[Span], predicted: list[Span], kinds: list[str]) -> None:
    assert [kind_of(pair) for pair in align(gold, predicted)] == kinds


def test_the_most_frequent_confusions_come_first_with_their_sentences() -> None:
    words = [["The", "VHL", "disease", "."], ["vhl", "disease", "in", "Rats"], ["Rats", ".", "Rats"]]
    gold = [["O", "B-X", "I-X", "O"], ["B-X", "I-X", "O", "O"], ["O", "O", "O"]]
    predicted = [["O", "B-X", "O", "O"], ["B-X", "O", "O", "O"], ["B-Y", "O", "B-Y"]]
    first, second = confusions(sentences_of(words, gold, predicted))
    assert (first["kind"], first["count"]) == ("wrong boundary", 2)
    assert first["gold"] == {"text": "VHL disease", "type": "X"}
    assert first["predicted"] == {"text": "VHL", "type": "X"}
    example = first["examples"][1]
    assert example == {"number": 2, "text": "vhl disease in Rats", "gold": [0, 11], "predicted": [0, 3]}
    assert (second["kind"], second["count"]) == ("spurious", 2)
    assert second["gold"] is second["examples"][0]["gold"] is None
    assert [example["number"] for example in second["examples"]] == [3]  # once, with both errors
    assert confusions(sentences_of(words, gold, predicted), limit=1) == [first]


def test_twenty_confusions_are_listed() -> None:
    words = [[f"word{number}"] for number in range(30)]
    found = confusions(sentences_of(words, [["O"]] * 30, [["B-X"]] * 30))
    assert [error["predicted"]["text"] for error in found] == [f"word{number}" for number in range(20)]


def test_mentions_are_grouped_by_their_length() -> None:
    lengths = (1, 1, 2, 4, 5, 9)
    words = [["w"] * length for length in lengths]
    tags = [["B-X", *["I-X"] * (length - 1)] for length in lengths]
    found = analyse(sentences_of(words, tags, tags), set())["length"]
    assert {name: row["mentions"] for name, row in found.items()} == {
        **{"1 word": 2, "2 words": 1, "4 words": 1, "5 words or more": 2},
    }


def test_mentions_are_seen_whatever_their_case_but_not_with_another_type() -> None:
    seen = mentions_in([["VHL", "disease"], ["Rats"]], [["B-X", "I-X"], ["O"]])
    assert seen == {("vhl disease", "X")}
    gold = [["B-X", "I-X"], ["B-Y", "I-Y"]]
    found = analyse(sentences_of([["vhl", "disease"]] * 2, gold, gold), seen)["seen"]
    assert {name: row["mentions"] for name, row in found.items()} == {"seen": 1, "unseen": 1}
