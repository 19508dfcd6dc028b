"""Test that sentences are split in the right places and lose no character."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sentencex
from datasets import Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

import bioptimus_hf.corpus.sentences
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.sentences import sentences_of, split_sentences
from bioptimus_hf.errors import InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


HARD = (
    "Several drugs, e.g. aspirin, were tested (Fig. 2). Smith et al. reported a difference (p < 0.05). "
    "Cells of E. coli grew at 37.5 °C, i.e. body temperature. Dr. Jones disagreed, cf. Table 3. Is it true? It is."
)
HARD_SENTENCES = [
    "Several drugs, e.g. aspirin, were tested (Fig. 2).",
    "Smith et al. reported a difference (p < 0.05).",
    "Cells of E. coli grew at 37.5 °C, i.e. body temperature.",
    "Dr. Jones disagreed, cf. Table 3.",
    "Is it true?",
    "It is.",
]


def as_corpus(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts, "document": list(range(10, 10 + len(texts))), "pmid": texts})


def test_sentences_survive_abbreviations() -> None:
    sentences = split_sentences(as_corpus([HARD, "Another document."]))
    assert sentences.column_names == ["text", "document"]
    assert list(sentences["text"]) == [*HARD_SENTENCES, "Another document."]
    assert list(sentences["document"]) == [10] * len(HARD_SENTENCES) + [11]


PROSE = st.lists(
    st.sampled_from(
        ["e.g. ", "Fig. ", "et al. ", "p < 0.05", ". ", "? ", "! ", '"', "(", ")", "A", "b", "1", ".", "\n", "…"]
    )
    | st.text(max_size=4),
    max_size=25,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(PROSE, st.sampled_from([5, 1000]))
def test_sentences_lose_no_character(text: str, long_sentence: int) -> None:
    with mock.patch.object(bioptimus_hf.corpus.sentences, "_LONG_SENTENCE", long_sentence):
        rows = sentences_of_batch([text])
    assert "".join("".join(rows["text"]).split()) == "".join(text.split())
    assert rows["document"] == [0] * len(rows["text"])
    assert all(sentence and sentence == sentence.strip() for sentence in rows["text"])


def sentences_of_batch(texts: list[str | None]) -> dict[str, list[Any]]:
    """Return what the step of `map` makes of texts, numbered from 0."""
    batch = pa.table({"text": pa.array(texts, pa.string()), "document": range(len(texts))})
    return bioptimus_hf.corpus.sentences._sentences(batch, splitter="").to_pydict()


# Texts with many full stops for the rules to look at, some of which begin or end a text.
_WORDS = [
    *[
        "protein kinase A.",
        "i.v.",
        "U.S.",
        "E. coli",
        "sp.",
        "approx.",
        "\thr.",
        " hr.",
        "min.",
        "etc.",
        "pv.",
        "5 mg.",
    ],
    *[
        "cells.12",
        "P =.04",
        "1. ",
        "12",
        "Patients",
        "The",
        "grew",
        "lysed.Then",
        "(n = 5).",
        "[12]",
        ".)",
        ".",
        ". ",
        "a",
    ],
    *["\n", "\t", "\x1c", "\r", " ", "  ", "\x00", "/", "é", "\u2028", "\u00a0", "“", "🙂"],
]
MANY_STOPS = st.lists(st.sampled_from(_WORDS), max_size=12)
TEXTS_OF_A_BATCH = st.lists(st.none() | st.builds(str.join, st.sampled_from(["", " "]), MANY_STOPS) | PROSE, max_size=8)


@settings(max_examples=300, deadline=None)
@given(TEXTS_OF_A_BATCH)
def test_texts_split_together_have_the_sentences_of_each(texts: list[str | None]) -> None:
    expected = [(text, number) for number, whole in enumerate(texts) for text in sentences_of(whole or "")]
    rows = sentences_of_batch(texts)
    assert list(zip(rows["text"], rows["document"], strict=True)) == expected


def test_real_texts_split_together_have_the_sentences_of_each(data_dir: Path) -> None:
    for path in sorted((data_dir / "corpus").glob("*.txt.gz")):
        texts = list(load_corpus(path, max_megabytes=0.5)["text"])
        assert sentences_of_batch(texts)["text"] == [text for whole in texts for text in sentences_of(whole)]


def test_arrow_strips_what_python_strips() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    stripped = pc.utf8_trim_whitespace(pa.array(characters)).to_pylist()
    assert stripped == [character.strip() for character in characters]


@pytest.mark.parametrize(
    "expected",
    [
        ["(iii) The dose was doubled.", "Twelve patients had a relapse."],
        ["There were two groups: 1) The dose was doubled.", "It helped.", "2) Nothing was given.", "None died."],
        ["The rate was <5% in men.", "It was higher in women (9%).", "None died."],
        ["We saw P<.05 in men.", "Women had more pain.", "Men had P>.05 at last."],
        ["Levels fell (changes in AUC0-->4. Glucose from baseline) in all.", "None died."],
    ],
)
def test_neither_list_numbers_nor_comparisons_hide_a_full_stop(expected: list[str]) -> None:
    text = " ".join(expected)
    assert list(sentences_of(text)) == expected
    as_it_comes = [sentence.strip() for sentence in sentencex.segment("en", text)]
    assert as_it_comes != expected, "the library has fixed this"


@pytest.mark.parametrize("marks", ["[]", "()", "“”", "»«", '""', "{}"])
def test_a_pair_of_marks_that_are_far_apart_hides_no_full_stop(marks: str) -> None:
    sentences = [f"The dose {marks[0]} was doubled.", *["Twelve patients had a relapse in the first year."] * 30]
    sentences += [f"It was good {marks[1]} at last.", "None died."]
    assert list(sentences_of(" ".join(sentences))) == sentences
    assert len(list(sentences_of(" ".join([*sentences[:5], *sentences[-2:]])))) == 2  # a quotation within a sentence


def test_sentences_are_the_same_for_any_number_of_processes() -> None:
    corpus = as_corpus([f"{HARD} Number {number}." for number in range(50)])
    alone = split_sentences(corpus, num_proc=1)
    together = split_sentences(corpus, num_proc=2)
    assert alone[:] == together[:]
    assert len(alone) == 50 * (len(HARD_SENTENCES) + 1)


@pytest.mark.parametrize("space", ["\u00a0", "\u2009", "\u3000", "\u2028", "\u00a0\u00a0", "\u00a0 ", " \u2009\n"])
def test_a_text_on_which_sentencex_panics(space: str) -> None:
    """A panic is caught by no `except Exception`: one document would end the run."""
    text = f"We gave vitamin B{space}. Rats grew. Mice{space}did not."
    sentences = list(sentences_of(text))
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert sentences[-1] == f"Mice{space}did not."


def test_sentences_of_real_text(data_dir: Path) -> None:
    corpus = load_corpus(data_dir / "corpus" / "abstracts.txt.gz", max_megabytes=1)
    sentences = split_sentences(corpus)
    assert "".join("".join(sentences["text"]).split()) == "".join("".join(corpus["text"]).split())
    lengths = [len(sentence.split()) for sentence in sentences["text"]]
    assert 15 < sum(lengths) / len(lengths) < 35
    ends_badly = [text for text in sentences["text"] if text.endswith((" e.g.", " i.e.", " Fig.", " vs.", " et al."))]
    assert len(ends_badly) < len(sentences) / 1000, ends_badly[:5]


TEXTS = ["Aspirin in asthma. It helped.", "", "Severe asthma in mice."]
SENTENCES = ["Aspirin in asthma.", "It helped.", "Severe asthma in mice."]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_documents_without_numbers_are_numbered_by_row(num_proc: int) -> None:
    texts = Dataset.from_dict({"text": TEXTS, "title": ["a", "b", "c"]})
    sentences = split_sentences(texts, num_proc=num_proc)
    assert sentences[:] == {"text": SENTENCES, "document": [0, 0, 2]}
    assert sentences.features["document"].dtype == "int64"
    chosen = split_sentences(texts.select([2, 0]), num_proc=num_proc)
    assert chosen[:] == {"text": [SENTENCES[2], *SENTENCES[:2]], "document": [0, 1, 1]}
    filtered = split_sentences(texts.filter(lambda row: row["text"]), num_proc=num_proc)
    assert filtered[:] == {"text": SENTENCES, "document": [0, 0, 1]}
    many = Dataset.from_dict({"text": [f"Text {row}. End." for row in range(2500)]})  # several batches
    assert list(split_sentences(many, num_proc=num_proc)["document"]) == [row // 2 for row in range(5000)]


@pytest.mark.parametrize("documents", [["PMC1", "PMC2", "PMC3"], [5, 6, 7], [5.5, 6.5, 7.5]])
def test_documents_keep_their_own_numbers_or_names(documents: list[Any]) -> None:
    sentences = split_sentences(Dataset.from_dict({"text": TEXTS, "document": documents}))
    assert sentences[:] == {"text": SENTENCES, "document": [documents[0], documents[0], documents[2]]}


@pytest.mark.parametrize("kind", ["string", "large_string"])
@pytest.mark.parametrize("form", [None, "numpy", "torch", "arrow", "pandas"])
def test_types_and_formats_of_texts(kind: str, form: str | None) -> None:
    features = Features({"text": Value(kind), "document": Value("int32")})
    texts = Dataset.from_dict({"text": TEXTS, "document": [7, 8, 9]}, features=features).with_format(form)
    sentences = split_sentences(texts)
    assert sentences.format["type"] == form
    assert sentences.with_format(None)[:] == {"text": SENTENCES, "document": [7, 7, 9]}


@pytest.mark.parametrize("texts", [[], [None, None], ["", " "]])
@pytest.mark.parametrize("numbered", [False, True])
def test_no_text_has_no_sentences(texts: list[str | None], numbered: bool) -> None:
    columns = {"text": texts, **({"document": list(range(len(texts)))} if numbered else {})}
    sentences = split_sentences(Dataset.from_dict(columns))
    assert len(sentences) == 0
    assert sentences.features == Features({"text": Value("string"), "document": Value("int64")})


def test_missing_texts_are_left_out() -> None:
    texts = Dataset.from_dict({"text": ["Aspirin in asthma.", None, "It helped."]})
    assert split_sentences(texts)[:] == {"text": [SENTENCES[0], SENTENCES[1]], "document": [0, 2]}


@pytest.mark.parametrize("texts", [[1, 2], [["a"], ["b"]], [{"a": "b"}], [b"a"]])
def test_texts_that_are_no_strings(texts: list[Any]) -> None:
    with pytest.raises(InputError, match="dataset: the column 'text' must contain strings, not "):
        split_sentences(Dataset.from_dict({"text": texts}))
