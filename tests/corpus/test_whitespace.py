"""Test that rare whitespace separates words wherever text is read, and that ordinary text stays as it is."""

from __future__ import annotations

import pytest
from datasets import Dataset
from helpers import build_tiny_bert, build_tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from bioptimus_hf.annotation.tokenization import TextTokenizer
from bioptimus_hf.contexts.finder import find_contexts
from bioptimus_hf.corpus.sentences import sentence_starts, sentences_of
from bioptimus_hf.corpus.whitespace import SEPARATORS, with_blanks
from bioptimus_hf.ner.windows import sentence_windows
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.vocabulary.training import count_words, extend_vocabulary, train_vocabulary

SENTENCES = ["Asthma of the patient was mild.", "The patients had asthma."]
BLANKS = " ".join(SENTENCES)


@pytest.fixture(params=SEPARATORS, ids=ascii)
def separated(request: pytest.FixtureRequest) -> str:
    """A text whose words are separated by this character alone."""
    return str(request.param).join(BLANKS.split())


@given(st.text(st.sampled_from(f"ab é\t\n{SEPARATORS}")))
def test_only_separators_are_replaced(text: str) -> None:
    assert with_blanks(text) == "".join(" " if character in SEPARATORS else character for character in text)


def test_separators_are_the_whitespace_that_bert_deletes() -> None:
    normalise = build_tiny_tokenizer().backend_tokenizer.normalizer.normalize_str
    deleted = {chr(code) for code in range(0x3001) if chr(code).isspace() and normalise(chr(code)) == ""}
    assert len(deleted) == 7
    assert set(SEPARATORS) == deleted | {"\u2028", "\u2029"}


def test_ordinary_text_is_the_same_object() -> None:
    for text in (BLANKS, "naïve\ttext\r\n\u00a0"):
        assert with_blanks(text) is text


def test_annotation(separated: str) -> None:
    tokenizer = build_tiny_tokenizer()
    text_tokenizer = TextTokenizer(tokenizer, build_tiny_bert(len(tokenizer)).config)
    [found], [expected] = text_tokenizer.tokenize([separated]), text_tokenizer.tokenize([BLANKS])
    assert found.text == separated
    assert found.starts.tolist() == expected.starts.tolist()
    assert found.ends.tolist() == expected.ends.tolist()
    assert [window.ids.tolist() for window in found.windows] == [window.ids.tolist() for window in expected.windows]


def test_sentences(separated: str) -> None:
    assert sentence_starts(separated) == sentence_starts(BLANKS)
    assert [with_blanks(sentence) for sentence in sentences_of(separated)] == SENTENCES


def test_vocabularies(separated: str) -> None:
    tokenizer = build_tiny_tokenizer()
    assert count_words([separated], like=tokenizer) == count_words([BLANKS], like=tokenizer)
    for train in (train_vocabulary, extend_vocabulary):
        size = len(tokenizer) + 3
        assert train([separated] * 3, size=size, like=tokenizer) == train([BLANKS] * 3, size=size, like=tokenizer)


def test_contexts(separated: str) -> None:
    tokenizer = build_tiny_tokenizer()
    found, expected = (
        find_contexts(Dataset.from_dict({"text": [text]}), ["asthma", "patients"], tokenizer=tokenizer)
        for text in (separated, BLANKS)
    )
    assert found.num_rows == 2
    assert found.remove_columns("text")[:] == expected.remove_columns("text")[:]


def test_training(separated: str) -> None:
    tokenizer = build_tiny_tokenizer()
    found, expected = (
        tokenize_and_pack(Dataset.from_dict({"text": [text]}), tokenizer, max_length=16)["input_ids"][:]
        for text in (separated, BLANKS)
    )
    assert found == expected


def test_tokens_of_ner_data() -> None:
    [[found], [expected]] = sentence_windows([["the\x0cpatient"], ["the patient"]], build_tiny_tokenizer())
    assert found == expected
