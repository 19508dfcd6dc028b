"""Check fertility by hand and by brute force, and the curve against vocabularies trained at each size."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from helpers import SPECIAL, tiny_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import tokens_in_order
from bioptimus_hf.vocabulary.fertility import Segmentation, fertility, report_vocabulary, segment
from bioptimus_hf.vocabulary.tokenizer import build_tokenizer
from bioptimus_hf.vocabulary.training import count_words, extend_vocabulary, train_vocabulary

SAMPLE = (resources.files("bioptimus_hf") / "sample" / "corpus.txt").read_text(encoding="utf-8").splitlines()
TRAIN, HELD_OUT = SAMPLE[:70], SAMPLE[70:]


def plain_bert() -> BertTokenizer:
    vocabulary = [*SPECIAL, "a", "##a", "b", "-", "aspirin"]
    return BertTokenizer(vocab={token: token_id for token_id, token in enumerate(vocabulary)})


def test_fertility_by_hand() -> None:
    # The words  aspirin aaa a - b zzz  are split into  aspirin | a ##a ##a | a | - | b | [UNK]
    assert fertility(plain_bert(), ["aspirin aaa", "a-b", "", "zzz"]) == pytest.approx(8 / 6)


def test_fertility_by_brute_force(tokenizer: BertTokenizer, data_dir: Path) -> None:
    texts = list(load_corpus(data_dir / "corpus" / "abstracts.txt.gz", max_megabytes=0.05)["text"])
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    words = [word for text in texts for word, _ in split(normalise(text))]
    expected = sum(len(tokenizer.tokenize(word)) for word in words) / len(words)
    assert fertility(tokenizer, texts) == pytest.approx(expected)


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_fertility_of_texts_without_words_is_refused(tokenizer: BertTokenizer, texts: list[str]) -> None:
    with pytest.raises(InputError, match="no words"):
        fertility(tokenizer, texts)


def test_whole_and_unknown_words_by_hand() -> None:
    words = count_words(["Aspirin aaa", "a-b", "", "zzz aspirin"], like=plain_bert())
    assert words == {"aspirin": 2, "aaa": 1, "a": 1, "-": 1, "b": 1, "zzz": 1}
    found = segment(words, plain_bert())
    assert found == Segmentation(words=7, pieces=9, whole=5, unknown=1)
    assert found.facts() == {"fertility": 9 / 7, "whole_words": 5 / 7, "unknown_words": 1 / 7}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from(" \t\x1c\x85\u3000é中ΣσİA.-"), max_size=40)
    )
)
def test_words_are_counted_as_the_tokenizer_splits_whole_texts(texts: list[str]) -> None:
    tokenizer = plain_bert()
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    # The normaliser of BERT would delete some white space between words.
    blanks = str.maketrans(dict.fromkeys("\x0b\x0c\x1c\x1d\x1e\x1f\x85", " "))
    words = Counter(word for text in texts for word, _ in split(normalise(text.translate(blanks))))
    assert count_words(texts, like=tokenizer) == words


def test_a_smaller_vocabulary_is_a_prefix_of_a_larger_one(tokenizer: BertTokenizer) -> None:
    large = train_vocabulary(TRAIN, size=1500, like=tokenizer)
    report = report_vocabulary(large, HELD_OUT, like=tokenizer)
    *smaller, largest = report.by_size
    assert largest == 1500
    assert len(smaller) == 9
    for size in smaller:
        trained = train_vocabulary(TRAIN, size=size, like=tokenizer)
        assert trained == large[:size]
        assert report.by_size[size].fertility == fertility(build_tokenizer(trained, like=tokenizer), HELD_OUT)
    by_size = [found.fertility for found in report.by_size.values()]
    assert by_size == sorted(by_size, reverse=True)
    assert {found.words for found in report.by_size.values()} == {report.base.words}
    assert report.base.fertility == fertility(tokenizer, HELD_OUT)
    characters, words = set(large), count_words(HELD_OUT, like=tokenizer)
    unknown = {word for word in words if not set(word) <= characters}
    smallest = report.by_size[smaller[0]]  # only single characters
    assert smallest.unknown == sum(words[word] for word in unknown)
    assert smallest.pieces == sum(count * (1 if word in unknown else len(word)) for word, count in words.items())


def test_an_extended_vocabulary_is_measured_from_the_size_of_the_base(tokenizer: BertTokenizer) -> None:
    extended = extend_vocabulary(TRAIN, size=300, like=tokenizer)
    report = report_vocabulary(extended, HELD_OUT, like=tokenizer)
    assert extended[: len(tokenizer)] == tokens_in_order(tokenizer) == tiny_vocabulary()
    assert next(iter(report.by_size.items())) == (len(tokenizer), report.base)
    assert report.by_size[300].whole > report.base.whole


def test_report_as_markdown_json_and_plot(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    report = report_vocabulary(train_vocabulary(TRAIN, size=600, like=tokenizer), HELD_OUT, like=tokenizer)
    page = report.markdown()
    assert f"on {report.base.words:,} held-out words" in page
    assert f"| 600 tokens | {report.by_size[600].fertility:.3f} |" in page
    facts = json.loads(json.dumps(report.facts()))
    assert facts["sizes"][-1]["size"] == 600
    assert facts["sizes"][-1]["fertility"] < facts["sizes"][0]["fertility"]
    pytest.importorskip("matplotlib", reason="plots are an extra")
    report.plot(tmp_path / "fertility.png")
    assert (tmp_path / "fertility.png").read_bytes().startswith(b"\x89PNG")
