"""Test that a new tokenizer keeps the settings of its base, and that every new token can be used."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from helpers import build_tiny_bert, build_tiny_tokenizer, tiny_vocabulary
from tokenizers import AddedToken
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from bioptimus_hf.artifacts import Run
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.models import load_by_name, save_masked_lm, save_tokenizer, set_bert_settings, tokens_in_order
from bioptimus_hf.vocabulary.options import VocabularyOptions
from bioptimus_hf.vocabulary.stage import make_tokenizer
from bioptimus_hf.vocabulary.tokenizer import MARK, build_tokenizer, unusable_tokens
from bioptimus_hf.vocabulary.training import extend_vocabulary, train_vocabulary

ADDED = [
    AddedToken("TNF-alpha", single_word=True, normalized=False),
    AddedToken("foo bar", lstrip=True),
    AddedToken("zeb", rstrip=True),
]
LONG = "acgt" * 30  # longer than the longest word, 100 characters
TEXTS = ["Zebra zebra lynx lynx", f"the TNF-alpha of foo bar {LONG} {LONG}", "Café-au-lait İstanbul x\x02y"] * 3


@pytest.fixture
def base() -> BertTokenizer:
    """A tokenizer with added tokens."""
    tokenizer = build_tiny_tokenizer()
    tokenizer.add_tokens(ADDED)
    return tokenizer


def described(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """Return all that `tokenizer.json` would contain, except the vocabulary."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    del whole["model"]["vocab"]
    return dict(whole)


@pytest.mark.parametrize("reload", [False, True])
def test_extending_keeps_added_tokens(base: BertTokenizer, tmp_path: Path, reload: bool) -> None:
    vocabulary = extend_vocabulary(TEXTS, size=len(base) + 50, like=base)
    extended: PreTrainedTokenizerBase = build_tokenizer(vocabulary, like=base)
    save_tokenizer(extended, tmp_path)
    if reload:
        extended = AutoTokenizer.from_pretrained(tmp_path)
    assert described(extended) == described(base)
    assert tokens_in_order(extended) == vocabulary
    assert (tmp_path / "vocab.txt").read_text().split("\n")[:-1] == vocabulary
    for text in ("the TNF-alpha of foo bar", "the foo bar zeb  the", "of zebra"):
        assert extended.tokenize(text) == base.tokenize(text)
    assert "TNF-alpha" in extended.tokenize("the TNF-alpha of")
    assert "lynx" in vocabulary[len(base) :]
    assert "zebra" not in vocabulary  # the added token `zeb` cuts it


@pytest.mark.parametrize("train", [train_vocabulary, extend_vocabulary])
def test_settings_without_an_argument_are_kept(train: object, tmp_path: Path) -> None:
    base = build_tiny_tokenizer()
    set_bert_settings(base, clean_text=False, max_input_chars_per_word=20)
    vocabulary = train(TEXTS, size=len(base) + 20, like=base)  # type: ignore[operator]
    built = build_tokenizer(vocabulary, like=base)
    for part in ("normalizer", "model", "pre_tokenizer"):
        assert described(built)[part] == described(base)[part]
    save_tokenizer(built, tmp_path / "built")
    for loaded in (AutoTokenizer.from_pretrained(tmp_path / "built"), load_by_name(AutoTokenizer, tmp_path / "built")):
        assert described(loaded) == described(built)
        save_tokenizer(loaded, tmp_path / "again")
        assert described(AutoTokenizer.from_pretrained(tmp_path / "again")) == described(built)
    config = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4 has, too


def test_settings_that_transformers_forgets_are_read(tmp_path: Path) -> None:
    base = build_tiny_tokenizer()
    set_bert_settings(base, clean_text=False, max_input_chars_per_word=20)
    base.save_pretrained(tmp_path)  # as a BertTokenizer
    assert described(load_by_name(AutoTokenizer, tmp_path)) == described(base)


def test_an_ordinary_tokenizer_stays_a_bert_tokenizer(tmp_path: Path) -> None:
    save_tokenizer(build_tiny_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "BertTokenizer"


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("longest", [100, 20])
@pytest.mark.parametrize("train", [train_vocabulary, extend_vocabulary])
def test_every_new_token_is_found(train: object, longest: int, cased: bool) -> None:
    vocabulary = {token: number for number, token in enumerate(tiny_vocabulary())}
    base = BertTokenizer(vocab=vocabulary, do_lower_case=not cased)
    base.add_tokens(ADDED)
    set_bert_settings(base, clean_text=True, max_input_chars_per_word=longest)
    texts = [*TEXTS, "acgtacgtacgt acgtacgtacgt", "[unused1] [unused1] [MASK] [MASK]", f"{LONG[:101]}e\u0301 " * 3]
    trained = train(texts, size=len(base) + 400, like=base)  # type: ignore[operator]
    built = build_tokenizer(trained, like=base)
    assert unusable_tokens(trained, like=base) == []
    new = [token for token in trained if token not in base.get_vocab()]
    assert new
    for token in new:
        if token.startswith(MARK):
            text = token.removeprefix(MARK)
            assert any(built.tokenize(letter + text)[-1] == token for letter in "abcdefghijklmnopqrstuvwxyz"), token
        else:
            assert built.tokenize(token) == [token]
    assert not any("gtacgtacgtacgtacgtacgtacgtacgt" in token for token in trained)  # of a word that is too long


def test_tokens_that_can_never_occur_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    base = build_tiny_tokenizer()
    unusable = [
        "Zebra",
        "café",
        "two words",
        "a-b",
        "##A",
        "##-",
        "x\x02",
        "a" * 101,
        "##" + "a" * 100,
        "[unused7]",
        "",
    ]
    usable = ["zebra", "cafe", "##zzz", "a" * 100]
    vocabulary = [*tokens_in_order(base), *unusable, *usable]
    assert unusable_tokens(vocabulary, like=base) == unusable
    build_tokenizer(vocabulary, like=base)
    assert f"11 of {len(vocabulary)} tokens can never occur" in caplog.text
    caplog.clear()
    build_tokenizer([*tokens_in_order(base), *usable], like=base)
    assert not caplog.text


def make(tmp_path: Path, base: BertTokenizer, corpus: str, **options: object) -> None:
    save_masked_lm(build_tiny_bert(len(base)), base, tmp_path / "base")
    (tmp_path / "corpus.txt").write_text(corpus)
    make_tokenizer(
        Run(str(tmp_path / "run")),
        Corpus([str(tmp_path / "corpus.txt")], validation_share=0.1),
        VocabularyOptions(base_model=str(tmp_path / "base"), **options),  # type: ignore[arg-type]
    )


def test_a_vocabulary_that_makes_text_longer_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [chr(97 + number % 26) * 3 + chr(97 + number // 26) * 3 for number in range(400)]
    vocabulary = dict.fromkeys([*tiny_vocabulary(), *words])
    base = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
    make(tmp_path, base, "\n".join(words), size=400)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    [longer] = [message for message in warnings if "held-out text is longer" in message]
    facts = json.loads((tmp_path / "run" / "tokenizer" / "made.json").read_text())["facts"]
    assert facts["fertility_before"] == 1
    assert f"{facts['fertility_after']:.3f} pieces per word instead of 1.000" in longer
    assert "--" not in longer


def test_replacing_says_which_added_tokens_are_dropped(
    base: BertTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, base, "\n".join(TEXTS * 40), size=150)
    assert "3 tokens that were added to the base aren't in the new vocabulary (TNF-alpha, foo bar, zeb)" in caplog.text
