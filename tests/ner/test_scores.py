"""Compare entity scores with their definition, with both modes of seqeval, and with conlleval."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import seqeval.scheme
from helpers import build_tiny_bert, build_tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as seqeval_by_default
from seqeval.metrics.v1 import precision_recall_fscore_support as seqeval_strict
from seqeval.scheme import IOB2

from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import new_head
from bioptimus_hf.ner.prediction import predict_tags
from bioptimus_hf.ner.scores import entity_counts, entity_scores
from bioptimus_hf.ner.tasks import (
    BLURB_NER,
    task_files,
)

Tags = list[list[str]]
KINDS = ("X", "Y", "a-b", "O", "B")
TAGS = ["O", "O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in KINDS)]
tag_pairs = st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), max_size=9), max_size=6)


def split_pairs(pairs: list[list[tuple[str, str]]]) -> tuple[Tags, Tags]:
    return [[right for right, _ in row] for row in pairs], [[guess for _, guess in row] for row in pairs]


def spans(sequences: Tags) -> set[tuple[int, int, int, str]]:
    """Find entities by definition: try every span of words and every type."""
    return {
        (number, start, end, kind)
        for number, tags in enumerate(sequences)
        for kind in KINDS
        for start in range(len(tags))
        for end in range(start + 1, len(tags) + 1)
        if tags[start] == f"B-{kind}"
        and all(tag == f"I-{kind}" for tag in tags[start + 1 : end])
        and (end == len(tags) or tags[end] != f"I-{kind}")
    }


def conlleval(gold: Tags, predicted: Tags) -> tuple[int, int, int]:
    """Count line by line, like conlleval: entities predicted correctly, predicted, and in gold."""

    def starts(before: str, tag: str) -> bool:
        return tag != "O" and (tag[0] == "B" or before == "O" or before[2:] != tag[2:])

    def ends(before: str, tag: str) -> bool:
        return before != "O" and (tag == "O" or tag[0] == "B" or before[2:] != tag[2:])

    right = found = true = 0
    for both in zip(gold, predicted, strict=True):
        before, open_alike = ("O", "O"), False
        for now in [*zip(*both, strict=True), ("O", "O")]:
            closing = [ends(*pair) for pair in zip(before, now, strict=True)]
            opening = [starts(*pair) for pair in zip(before, now, strict=True)]
            if open_alike and any(closing):
                right += all(closing)
                open_alike = False
            if all(opening) and now[0][2:] == now[1][2:]:
                open_alike = True
            true += opening[0]
            found += opening[1]
            before = now
    return right, found, true


@given(tag_pairs)
@settings(max_examples=300, deadline=None)
def test_scores_agree_with_brute_force_and_with_seqeval_strict(pairs: list[list[tuple[str, str]]]) -> None:
    gold, predicted = split_pairs(pairs)
    scores = entity_scores(gold, predicted)
    assert all(type(value) is float for value in scores.values())
    true, found = spans(gold), spans(predicted)
    for prefix, kinds in (("", KINDS), *((f"{kind}_", (kind,)) for kind in KINDS)):
        ours_true, ours_found = ({span for span in all_spans if span[3] in kinds} for all_spans in (true, found))
        if prefix and not ours_true | ours_found:
            assert f"{prefix}f1" not in scores
            continue
        assert scores[f"{prefix}support"] == len(ours_true)
        assert scores[f"{prefix}precision"] == len(ours_true & ours_found) / max(len(ours_found), 1)
        assert scores[f"{prefix}recall"] == len(ours_true & ours_found) / max(len(ours_true), 1)
        both = len(ours_true) + len(ours_found)
        assert scores[f"{prefix}f1"] == pytest.approx(2 * len(ours_true & ours_found) / both if both else 0.0)
    counts = entity_counts(gold, predicted)
    assert counts.shape == (len(gold), 3)
    assert counts.sum(axis=0).tolist() == [len(true & found), len(found), len(true)]
    if true | found:
        report = classification_report(gold, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
        for row, prefix in (("micro avg", ""), *((kind, f"{kind}_") for kind in KINDS)):
            for theirs, ours in (("precision",) * 2, ("recall",) * 2, ("f1-score", "f1"), ("support",) * 2):
                assert row not in report or scores[prefix + ours] == report[row][theirs]


@given(tag_pairs)
@settings(max_examples=300, deadline=None)
def test_lenient_scores_agree_with_conlleval_and_with_seqeval_by_default(pairs: list[list[tuple[str, str]]]) -> None:
    gold, predicted = split_pairs(pairs)
    scores = entity_scores(gold, predicted)
    right, found, true = conlleval(gold, predicted)
    assert scores["conlleval_precision"] == (right / found if found else 0.0)
    assert scores["conlleval_recall"] == (right / true if true else 0.0)
    assert scores["conlleval_f1"] == pytest.approx(2 * right / (found + true) if found + true else 0.0)
    if found or true:
        for name, theirs in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            assert scores[f"conlleval_{name}"] == theirs(gold, predicted, zero_division=0)


def test_an_entity_that_starts_with_inside_counts_for_conlleval_only() -> None:
    gold, predicted = [["B-X", "I-X", "O"]], [["I-X", "I-X", "O"]]
    assert f1_score(gold, predicted) == 1.0  # seqeval's default
    scores = entity_scores(gold, predicted)
    assert (scores["f1"], scores["conlleval_f1"]) == (0.0, 1.0)


def test_different_lengths_and_invalid_tags_are_refused() -> None:
    for score in (entity_scores, entity_counts):
        with pytest.raises(InputError, match="2 sentences in gold, 1 predicted"):
            score([["O"], ["O"]], [["O"]])
        with pytest.raises(InputError, match="sentence 1 has 2 tags in gold, 1 predicted"):
            score([["O"], ["O", "O"]], [["O"], ["O"]])
        for tag in ("X-Y", "", "B-", "LABEL_1", "0", "B-x-", "E-a b"):
            with pytest.raises(InputError, match=r"tags must be O, B-<type> or I-<type> \(or .*\), not"):
                score([["O"]], [[tag]])


SCHEMES = {
    "IOBES": {"first": "B", "single": "S", "middle": "I", "last": "E"},
    "BILOU": {"first": "B", "single": "U", "middle": "I", "last": "L"},
    "BMES": {"first": "B", "single": "S", "middle": "M", "last": "E"},
}
entities = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(("X", "Y", "a-b"))), max_size=5)


def in_scheme(found: list[tuple[int, int, str]], length: int, scheme: str) -> list[str]:
    """Write entities, each given as gap before it, length and type, by definition of the scheme."""
    tags: list[str] = []
    for gap, size, kind in found:
        marks = SCHEMES.get(scheme, {"first": "B", "single": "B", "middle": "I", "last": "I"})
        places = ["single"] if size == 1 else ["first", *["middle"] * (size - 2), "last"]
        tags += [*["O"] * gap, *(f"{marks[place]}-{kind}" for place in places)]
    return (tags + ["O"] * length)[:length]


@given(rows=st.lists(st.tuples(entities, entities), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_scores_agree_with_nervaluate(rows: list[tuple[Any, Any]]) -> None:
    nervaluate = pytest.importorskip("nervaluate")
    gold, predicted = ([in_scheme(row[side], 40, "IOB2") for row in rows] for side in (0, 1))
    theirs = nervaluate.Evaluator(gold, predicted, tags=["X", "Y", "a-b"], loader="list").evaluate()["overall"][
        "strict"
    ]
    scores = entity_scores(gold, predicted)
    assert scores["precision"] == theirs.precision
    assert scores["recall"] == theirs.recall
    assert scores["f1"] == pytest.approx(theirs.f1)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(rows=st.lists(st.tuples(entities, entities), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_tags_of_every_scheme_score_as_in_iob2(scheme: str, rows: list[tuple[Any, Any]]) -> None:
    gold, predicted = ([in_scheme(row[side], 40, "IOB2") for row in rows] for side in (0, 1))
    theirs, guessed = ([in_scheme(row[side], 40, scheme) for row in rows] for side in (0, 1))
    expected = entity_scores(gold, predicted)
    assert (
        entity_scores(theirs, guessed) == entity_scores(gold, guessed) == entity_scores(theirs, predicted) == expected
    )
    assert (entity_counts(theirs, guessed) == entity_counts(gold, predicted)).all()
    if scheme != "BMES" and expected["support"]:
        strict = seqeval_strict(theirs, guessed, average="micro", scheme=getattr(seqeval.scheme, scheme))
        assert (expected["precision"], expected["recall"], expected["f1"], expected["support"]) == strict


@given(tag_pairs)
@settings(max_examples=100, deadline=None)
def test_tags_without_a_type_score_as_if_they_had_one(pairs: list[list[tuple[str, str]]]) -> None:
    gold, predicted = ([[tag[0] for tag in tags] for tags in side] for side in split_pairs(pairs))
    typed = [[[tag if tag == "O" else f"{tag}-Any" for tag in tags] for tags in side] for side in (gold, predicted)]
    expected = entity_scores(*typed)
    assert entity_scores(gold, predicted, merged_type="Any") == expected
    unnamed = {name: value for name, value in expected.items() if not name.startswith("Any_")}
    assert entity_scores(gold, predicted) == unnamed


def test_after_the_end_of_an_entity_nothing_continues_it() -> None:
    gold = [["S-X", "S-X", "O"]]
    scores = entity_scores(gold, [["S-X", "I-X", "O"]])
    assert (scores["recall"], scores["precision"]) == (0.5, 1.0)
    assert scores["conlleval_f1"] == 1.0


def test_types_can_be_merged_and_must_not_be_mixed_with_none() -> None:
    gold, predicted = [["B-X", "I-X", "O", "B-Y"]], [["B", "I", "O", "B"]]
    with pytest.raises(InputError, match="'I-X' has a type and 'I' has none: name one as merged_type"):
        entity_scores(gold, predicted)
    assert entity_scores(gold, predicted, merged_type="Any")["Any_f1"] == 1.0
    assert entity_scores(gold, [["B-Y", "I-Y", "O", "B-X"]], merged_type="Any")["f1"] == 1.0
    with pytest.raises(InputError, match="a type can't be called 'a b'"):
        entity_scores(gold, gold, merged_type="a b")


def test_scores_without_entities_are_zero() -> None:
    for gold in ([], [[]], [["O"]]):
        scores = entity_scores(gold, gold)
        assert set(scores.values()) == {0.0}
        assert entity_counts(gold, gold).tolist() == [[0, 0, 0]] * len(gold)


def real_predictions(data_dir: Path, folder: Path) -> Iterator[tuple[Tags, Tags]]:
    """Yield the gold tags of the five test sets with some of them replaced at random, and tags of an untrained head."""
    tokenizer = build_tiny_tokenizer()
    build_tiny_bert(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in BLURB_NER:
        words, gold = map(list, zip(*read_conll(task_files(name, data_dir / "ner")["test"]), strict=True))
        names, draw = sorted({tag for tags in gold for tag in tags}), random.Random(name)
        yield gold, [[draw.choice(names) if draw.random() < 0.1 else tag for tag in tags] for tags in gold]
        head, _ = new_head(folder, names, seed=1)
        yield gold[:300], predict_tags(head, tokenizer, words[:300])


def test_real_predictions_score_as_with_seqeval(data_dir: Path, tmp_path: Path) -> None:
    differ = 0
    for gold, predicted in real_predictions(data_dir, tmp_path):
        scores = entity_scores(gold, predicted)
        assert 0 < scores["precision"] < 1
        strict = seqeval_strict(gold, predicted, average="micro", scheme=IOB2)
        assert (scores["precision"], scores["recall"], scores["f1"], scores["support"]) == strict
        assert (
            tuple(scores[f"conlleval_{name}"] for name in ("precision", "recall", "f1"))
            == (seqeval_by_default(gold, predicted, average="micro")[:3])
        )
        differ += scores["f1"] != scores["conlleval_f1"]
    assert differ > 5  # otherwise the two would never differ
