"""Split sentences into windows, and get one tag for each word back."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import build_tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertTokenizer,
)
from transformers.modeling_outputs import TokenClassifierOutput

from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.finetuning import (
    windows_dataset,
)
from bioptimus_hf.ner.prediction import predict_tags
from bioptimus_hf.ner.tasks import (
    NerTask,
    load_ner,
)
from bioptimus_hf.ner.windows import sentence_windows

SAMPLE = Path(str(resources.files("bioptimus_hf") / "sample" / "ner"))


@pytest.fixture(scope="module")
def tiny_tokenizer() -> BertTokenizer:
    return build_tiny_tokenizer()


class TagsOfPiecesForTokenClassification(torch.nn.Module):
    """A model whose tag at a position depends on the piece there alone, which reveals misplaced tags."""

    device = torch.device("cpu")

    def __init__(self, names: list[str], positions: int) -> None:
        super().__init__()
        labels = dict(enumerate(names))
        self.config = SimpleNamespace(
            model_type="bert", vocab_size=len(names), id2label=labels, max_position_embeddings=positions
        )
        self.calls = 0

    def forward(self, input_ids: torch.Tensor, **_: Any) -> TokenClassifierOutput:
        assert input_ids.shape[1] <= self.config.max_position_embeddings
        self.calls += 1
        return TokenClassifierOutput(
            logits=torch.nn.functional.one_hot(input_ids % len(self.config.id2label), len(self.config.id2label))
        )


words = st.one_of(
    st.sampled_from(["aspirin", "the", "bronchoconstriction", "qwx", "IL-2", "\u200b", "é", "漢字"]),
    st.integers(1, 30).map(lambda n: "-" * n),
)


@given(st.lists(st.lists(words, max_size=25), max_size=5), st.integers(3, 24))
@settings(max_examples=200, deadline=None)
def test_each_word_is_tagged_once_and_windows_fit(sentences: list[list[str]], max_length: int) -> None:
    tokenizer = build_tiny_tokenizer()
    names = [f"tag{number}" for number in range(len(tokenizer))]

    def first_piece(word: str) -> int:
        return int((tokenizer(word, add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id])[0])

    cut = list(sentence_windows(sentences, tokenizer, max_length=max_length))
    assert len(cut) == len(sentences)
    for sentence, windows in zip(sentences, cut, strict=True):
        labelled = [window.first_word + word for window in windows for word in range(len(window.first_pieces))]
        assert labelled == list(range(len(sentence)))
        assert all(len(window.input_ids) <= max_length and window.first_pieces for window in windows)
        length = len(tokenizer(sentence, is_split_into_words=True)["input_ids"]) if sentence else 0
        assert len(windows) <= 1 or length + sentence.count("\u200b") > max_length
    model: Any = TagsOfPiecesForTokenClassification(names, positions=max_length)
    tags = predict_tags(model, tokenizer, sentences, batch_size=3, max_length=512)
    assert tags == [[names[first_piece(word)] for word in sentence] for sentence in sentences]


def test_words_at_the_edge_of_a_window_have_context(tiny_tokenizer: BertTokenizer) -> None:
    (windows,) = sentence_windows([["the"] * 100], tiny_tokenizer, max_length=22)
    assert len(windows) > 5
    for window in windows[1:]:
        assert window.first_pieces[0] > 4  # [CLS] and words that belong to the window before
    for window in windows[:-1]:
        assert window.first_pieces[-1] < len(window.input_ids) - 5


def test_windows_without_room_are_refused(tiny_tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match="a window of 2 word pieces has no room"):
        list(sentence_windows([["the"]], tiny_tokenizer, max_length=2))


@pytest.mark.parametrize("max_length", [512, 12])
def test_every_label_is_at_the_first_piece_of_the_word(tiny_tokenizer: BertTokenizer, max_length: int) -> None:
    dataset = load_ner(NerTask("sample"), SAMPLE)["test"]
    rows = windows_dataset(dataset, tiny_tokenizer, max_length=max_length)
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    assert (len(rows) > len(dataset)) == (max_length == 12)
    assert max(map(len, rows["input_ids"])) <= max_length
    labelled = [
        (piece, label)
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
        for piece, label in zip(ids, labels, strict=True)
        if label != -100
    ]
    expected = [
        (tiny_tokenizer(word, add_special_tokens=False)["input_ids"][0], tag)
        for words, tags in zip(dataset["tokens"], dataset["ner_tags"], strict=True)
        for word, tag in zip(words, tags, strict=True)
    ]
    assert labelled == expected


def test_windows_are_made_once_for_all_seeds(tiny_tokenizer: BertTokenizer) -> None:
    rows = load_ner(NerTask("sample"), SAMPLE)["validation"]
    made = windows_dataset(rows, tiny_tokenizer)
    assert windows_dataset(rows, build_tiny_tokenizer()) is made
    others = [
        windows_dataset(rows, BertTokenizer(vocab=tiny_tokenizer.get_vocab(), do_lower_case=False)),
        windows_dataset(rows, tiny_tokenizer, max_length=20),
        windows_dataset(rows.select(range(9)), tiny_tokenizer),
    ]
    assert all(other["input_ids"][:] != made["input_ids"][:] for other in others)
    again = windows_dataset(rows, tiny_tokenizer)
    assert again is not made
    assert again[:] == made[:]
