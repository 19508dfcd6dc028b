"""Check that vocabularies are reproducible and that tokenizers built from them encode exactly as BERT's."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from helpers import SPECIAL, build_tiny_tokenizer, tiny_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_tokenizer, tokens_in_order
from bioptimus_hf.vocabulary.fertility import fertility
from bioptimus_hf.vocabulary.tokenizer import build_tokenizer, compare_vocabularies, is_continuation, real_ids
from bioptimus_hf.vocabulary.training import extend_vocabulary, train_vocabulary

WORDS = (  # noqa: SIM905
    "Bronchoconstriction bronchospasm bronchitis asthma asthmatic Nephrotoxicity nephritis renal arthritis dermatitis "
    "naïve Aspirin (p<0.05) IL-6 β-catenin 10 200 µg/ml hepatitis hepatic 中文"
).split()
SPECIALS = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def made_up_texts(count: int = 200) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=20)) for _ in range(count)]


@pytest.fixture
def cased() -> BertTokenizer:
    vocabulary = [*SPECIAL, *"aAbBcCeé.-", "##a", "##b", "##é", "Aba", "##ba"]
    return BertTokenizer(vocab={token: token_id for token_id, token in enumerate(vocabulary)}, do_lower_case=False)


@pytest.fixture
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as RoBERTa has."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(made_up_texts(20), trainers.BpeTrainer(vocab_size=400, special_tokens=specials))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


# Extending --------------------------------------------------------------------------------------------------------


def pieces_saved(word: str, texts: list[str], tokenizer: BertTokenizer) -> int:
    """Count the pieces of each text, with and without the word as a token."""
    after = build_tokenizer([*tokens_in_order(tokenizer), word], like=tokenizer)
    return sum(len(tokenizer.tokenize(text)) - len(after.tokenize(text)) for text in texts)


def test_extending_adds_the_words_that_save_the_most_pieces(tokenizer: BertTokenizer) -> None:
    texts = made_up_texts(30)
    old = tokens_in_order(tokenizer)
    vocabulary = extend_vocabulary(texts, size=len(old) + 5, like=tokenizer)
    assert vocabulary[: len(old)] == old
    assert vocabulary == extend_vocabulary(
        Dataset.from_dict({"text": texts})["text"], size=len(old) + 5, like=tokenizer
    )
    every = extend_vocabulary(texts, size=10**6, like=tokenizer)[len(old) :]
    assert {"bronchospasm", "nephrotoxicity", "naive"} <= set(every)
    assert "asthma" not in every  # already a token
    assert not any(character in every for character in "中文β")  # unknown to the base
    saved = {word: pieces_saved(word, texts, tokenizer) for word in every}
    assert [saved[word] for word in every] == sorted(saved.values(), reverse=True)
    assert vocabulary[len(old) :] == every[:5]
    extended = build_tokenizer(vocabulary, like=tokenizer)
    assert fertility(extended, texts) < fertility(tokenizer, texts)
    assert compare_vocabularies(tokenizer, extended).dropped == ()


def test_extending_by_nothing_is_refused(tokenizer: BertTokenizer, byte_level: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"^size: 100 tokens add nothing to the \d+ tokens of the base"):
        extend_vocabulary(["asthma"], size=100, like=tokenizer)
    with pytest.raises(InputError, match="no text to take words from"):
        extend_vocabulary([" "], size=10**6, like=tokenizer)
    with pytest.raises(InputError, match="is not a WordPiece tokenizer"):
        extend_vocabulary(["asthma"], size=10**6, like=byte_level)


def test_a_small_corpus_adds_fewer_words_and_logs_it(
    tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    old = tokens_in_order(tokenizer)
    assert extend_vocabulary(["Zebra zebra lynx"], size=len(old) + 9, like=tokenizer)[len(old) :] == ["zebra"]
    assert f"too small for {len(old) + 9} tokens: the vocabulary has {len(old) + 1}" in caplog.text


# Training ---------------------------------------------------------------------------------------------------------


def test_training_is_reproducible_within_a_process(tokenizer: BertTokenizer) -> None:
    lists = {tuple(train_vocabulary(made_up_texts(), size=300, like=tokenizer)) for _ in range(8)}
    assert len(lists) == 1


def test_a_list_and_a_column_give_the_same_vocabulary(tokenizer: BertTokenizer) -> None:
    texts = made_up_texts(1500)  # several batches
    column = Dataset.from_dict({"text": texts})["text"]
    assert train_vocabulary(column, size=300, like=tokenizer) == train_vocabulary(texts, size=300, like=tokenizer)


TRAIN = """
import json, sys
from transformers import AutoTokenizer
from bioptimus_hf.vocabulary.training import train_vocabulary
like = AutoTokenizer.from_pretrained(sys.argv[1])
corpora = json.load(open(sys.argv[2]))
print(json.dumps({name: train_vocabulary(texts, size=size, like=like) for name, (texts, size) in corpora.items()}))
"""
ENVIRONMENTS = (
    {"PYTHONHASHSEED": "0", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "true"},
    {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"},
)


@pytest.fixture(scope="module")
def corpora(request: pytest.FixtureRequest) -> dict[str, tuple[list[str], int]]:
    """Texts and vocabulary size by name, with real text if it's available."""
    found = {"made up": (made_up_texts(), 300)}
    with contextlib.suppress(pytest.skip.Exception):
        file = request.getfixturevalue("data_dir") / "corpus" / "abstracts.txt.gz"
        found["real"] = (list(load_corpus(file, max_megabytes=2)["text"]), 6000)
    return found


@pytest.fixture(scope="module")
def trained_in_processes(
    corpora: dict[str, tuple[list[str], int]], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, list[str]]]:
    """Train on all corpora in one process per environment, all at the same time."""
    folder = tmp_path_factory.mktemp("processes")
    save_tokenizer(build_tiny_tokenizer(), folder)
    (folder / "corpora.json").write_text(json.dumps(corpora))
    command = [sys.executable, "-c", TRAIN, str(folder), str(folder / "corpora.json")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment})
        for environment in ENVIRONMENTS
    ]
    answers = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["made up", "real"])
def test_training_is_reproducible_across_processes(
    tokenizer: BertTokenizer,
    corpora: dict[str, tuple[list[str], int]],
    trained_in_processes: list[dict[str, list[str]]],
    name: str,
) -> None:
    if name not in corpora:
        pytest.skip("no real data")
    texts, size = corpora[name]
    expected = train_vocabulary(texts, size=size, like=tokenizer)
    assert [vocabularies[name] for vocabularies in trained_in_processes] == [expected] * len(ENVIRONMENTS)
    if name == "real":
        assert len(expected) == len(set(expected)) == 6000
        assert {"patients", "##itis", "treatment"} <= set(expected)


def test_vocabulary_is_specials_then_alphabet_then_merges(tokenizer: BertTokenizer) -> None:
    vocabulary = train_vocabulary(made_up_texts(), size=300, like=tokenizer)
    assert len(set(vocabulary)) == len(vocabulary) <= 300
    assert vocabulary[:5] == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]  # in the order of the base, without [unused]
    continuing = [token_id for token_id, token in enumerate(vocabulary) if token.startswith("##")]
    alphabet = vocabulary[5 : continuing[0]]
    assert all(len(character) == 1 for character in alphabet)
    assert set(alphabet) == set("".join(made_up_texts()).lower().replace("ï", "i").replace(" ", ""))
    merged = vocabulary[5 + len(alphabet) + sum(len(token) == 3 for token in vocabulary if token.startswith("##")) :]
    assert all(len(token.removeprefix("##")) > 1 for token in merged)
    assert {"bronch", "asthma", "##itis"} & set(merged)
    # Punctuation and Chinese characters are words by themselves.
    assert not {"##(", "##.", "##-", "##中"} & set(vocabulary)
    assert {"(", ".", "-", "中", "##o"} <= set(vocabulary)


def test_training_text_contains_no_unknown_words(tokenizer: BertTokenizer) -> None:
    built = build_tokenizer(train_vocabulary(made_up_texts(), size=150, like=tokenizer), like=tokenizer)
    assert "[UNK]" not in built.tokenize(" ".join(made_up_texts()))


def test_size_smaller_than_the_alphabet_is_refused(tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match=r"^size: 20 tokens can't hold the 5 special tokens and the alphabet") as error:
        train_vocabulary(made_up_texts(), size=20, like=tokenizer)
    least = int(str(error.value).rsplit(" ", 1)[1])
    with pytest.raises(InputError):
        train_vocabulary(made_up_texts(), size=least - 1, like=tokenizer)
    assert len(train_vocabulary(made_up_texts(), size=least, like=tokenizer)) == least


def test_a_small_corpus_gives_fewer_tokens_and_logs_it(
    tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = train_vocabulary(["asthma asthma"], size=30522, like=tokenizer)
    assert f"the vocabulary has {len(vocabulary)}" in caplog.text
    assert "asthma" in vocabulary


@pytest.mark.parametrize("texts", [iter(["a b"]), (text for text in ["a b"])])
def test_an_iterator_is_refused(tokenizer: BertTokenizer, texts: Iterable[str]) -> None:
    with pytest.raises(InputError, match="not an iterator"):
        train_vocabulary(texts, size=100, like=tokenizer)


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_no_text_is_refused(tokenizer: BertTokenizer, texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text"):
        train_vocabulary(texts, size=100, like=tokenizer)


def test_a_frequency_that_nothing_reaches_is_named(tokenizer: BertTokenizer) -> None:
    texts = ["Zebra zebra lynx, a e o"]
    for frequency, what in ((9, "character"), (3, "pair of pieces")):
        with pytest.raises(InputError, match=f"^min_frequency: no {what} occurs {frequency} times in the corpus"):
            train_vocabulary(texts, size=100, like=tokenizer, min_frequency=frequency)
    with pytest.raises(InputError, match=r"^min_frequency: no word that the base splits occurs 3 times"):
        extend_vocabulary(texts, size=10**6, like=tokenizer, min_frequency=3)


def test_rare_characters_are_left_out(tokenizer: BertTokenizer) -> None:
    vocabulary = train_vocabulary([*made_up_texts(), "ж"], size=300, like=tokenizer, min_frequency=2)
    assert "ж" not in vocabulary
    assert "ж" in train_vocabulary([*made_up_texts(), "ж ж"], size=300, like=tokenizer, min_frequency=2)


def test_a_cased_base_gives_a_cased_vocabulary(cased: BertTokenizer) -> None:
    vocabulary = train_vocabulary(made_up_texts(), size=300, like=cased)
    assert {"A", "B", "N", "ï"} <= set(vocabulary)
    built = build_tokenizer(vocabulary, like=cased)
    assert "".join(built.tokenize("Nephrotoxicity naïve")).replace("##", "") == "Nephrotoxicitynaïve"


# Building and saving ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[list[str], BertTokenizer]:
    like = BertTokenizer(vocab={token: token_id for token_id, token in enumerate(tiny_vocabulary())})
    vocabulary = train_vocabulary(made_up_texts(), size=300, like=like)
    return vocabulary, build_tokenizer(vocabulary, like=like)


@pytest.fixture(scope="module")
def saved(trained: tuple[list[str], BertTokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_tokenizer(trained[1], folder / "tokenizer")
    return folder / "tokenizer"


def plain_bert(vocabulary: list[str], **options: bool) -> BertTokenizer:
    return BertTokenizer(vocab={token: token_id for token_id, token in enumerate(vocabulary)}, **options)


def same_encoding(a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast, text: str) -> bool:
    options = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    return bool(a(text, **options).data == b(text, **options).data)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.lists(st.sampled_from(WORDS) | st.text(max_size=3)).map(" ".join))
def test_encodes_exactly_as_bert_does(trained: tuple[list[str], BertTokenizer], saved: Path, text: str) -> None:
    vocabulary, built = trained
    assert same_encoding(built, plain_bert(vocabulary), text)


def test_a_reloaded_tokenizer_encodes_exactly_as_the_saved_one(
    trained: tuple[list[str], BertTokenizer], saved: Path
) -> None:
    _, built = trained
    loaded = AutoTokenizer.from_pretrained(saved)
    assert type(loaded) is BertTokenizer

    @settings(max_examples=200, deadline=None)
    @given(st.text() | st.lists(st.sampled_from([*WORDS, "[MASK]", "##itis"])).map(" ".join))
    def check(text: str) -> None:
        assert same_encoding(built, loaded, text)

    check()


def test_real_text_is_encoded_exactly_as_bert_does(tokenizer: BertTokenizer, tmp_path: Path, data_dir: Path) -> None:
    texts = list(load_corpus(data_dir / "corpus" / "fulltext_bio.txt.gz", max_megabytes=0.3)["text"])
    vocabulary = train_vocabulary(texts, size=2000, like=tokenizer)
    save_tokenizer(build_tokenizer(vocabulary, like=tokenizer), tmp_path)
    loaded, bert = AutoTokenizer.from_pretrained(tmp_path), plain_bert(vocabulary)
    assert all(same_encoding(loaded, bert, text) for text in texts)


def test_options_of_loading_are_not_saved(saved: Path, tmp_path: Path) -> None:
    save_tokenizer(AutoTokenizer.from_pretrained(saved, local_files_only=True), tmp_path)
    assert not {"is_local", "local_files_only"} & json.loads((tmp_path / "tokenizer_config.json").read_text()).keys()


def test_vocab_txt_has_one_token_per_line(trained: tuple[list[str], BertTokenizer], saved: Path) -> None:
    vocabulary, _ = trained
    assert (saved / "vocab.txt").read_text(encoding="utf-8").split("\n") == [*vocabulary, ""]
    assert BertTokenizer(vocab=str(saved / "vocab.txt")).get_vocab() == AutoTokenizer.from_pretrained(saved).get_vocab()


def test_reloaded_tokenizer_has_every_token_and_the_right_specials_and_length(
    trained: tuple[list[str], BertTokenizer], saved: Path
) -> None:
    vocabulary, _ = trained
    loaded = AutoTokenizer.from_pretrained(saved)
    assert tokens_in_order(loaded) == vocabulary
    assert loaded.model_max_length == 512
    assert set(loaded.all_special_tokens) == SPECIALS
    assert loaded.convert_ids_to_tokens(loaded("asthma").input_ids)[0::2] == ["[CLS]", "[SEP]"]


def test_vocab_file_is_still_ignored_by_transformers(trained: tuple[list[str], BertTokenizer], saved: Path) -> None:
    """`BertTokenizer(vocab_file=...)` is accepted and ignored. This test can be deleted once that is fixed."""
    vocabulary, built = trained
    assert len(BertTokenizer(vocab_file=str(saved / "vocab.txt"))) == 5
    assert len(built) == len(vocabulary) > 5
    assert built.convert_tokens_to_ids(vocabulary) == list(range(len(vocabulary)))


def test_settings_of_the_base_are_kept(cased: BertTokenizer, tmp_path: Path) -> None:
    vocabulary = train_vocabulary(made_up_texts(), size=300, like=cased)
    save_tokenizer(build_tokenizer(vocabulary, like=cased), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*made_up_texts(20), "Naïve ÉCLAIR 中文字"):
        assert same_encoding(loaded, plain_bert(vocabulary, do_lower_case=False), text)
    assert loaded.backend_tokenizer.normalizer.normalize_str("Éa") == "Éa"
    unusual = plain_bert(tiny_vocabulary(), do_lower_case=True, strip_accents=False, tokenize_chinese_chars=False)
    built = build_tokenizer(tiny_vocabulary(), like=unusual)
    assert built.backend_tokenizer.normalizer.normalize_str("Éa中文") == "éa中文"


def test_length_limit_and_extra_special_tokens_of_the_base_are_kept(tmp_path: Path) -> None:
    vocabulary = {token: token_id for token_id, token in enumerate([*tiny_vocabulary(), "<ent>"])}
    base = BertTokenizer(vocab=vocabulary, extra_special_tokens=["<ent>"], model_max_length=128)
    trained = train_vocabulary(made_up_texts(), size=300, like=base)
    assert "<ent>" in trained
    save_tokenizer(build_tokenizer(trained, like=base), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 128
    assert set(loaded.all_special_tokens) == {*SPECIALS, "<ent>"}
    assert "<ent>" in loaded.tokenize("asthma <ent> asthma")


def test_an_invalid_vocabulary_is_refused(tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match=r"Duplicates: asthma \(1 in total\)\. Missing: none"):
        build_tokenizer([*tiny_vocabulary(), "asthma"], like=tokenizer)
    with pytest.raises(InputError, match=r"Duplicates: none \(0 in total\)\. Missing: \[MASK\]"):
        build_tokenizer([token for token in tiny_vocabulary() if token != "[MASK]"], like=tokenizer)


def test_gaps_in_the_ids_are_refused() -> None:
    vocabulary = {token: token_id for token_id, token in enumerate(tiny_vocabulary())}
    gaps = BertTokenizer(vocab=vocabulary | {"late": len(vocabulary) + 5})
    with pytest.raises(InputError, match="the ids of BertTokenizer have gaps"):
        tokens_in_order(gaps)


def test_a_tokenizer_of_another_kind_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    for refused in (
        lambda: train_vocabulary(made_up_texts(), size=400, like=byte_level),
        lambda: build_tokenizer(tiny_vocabulary(), like=byte_level),
        lambda: is_continuation(byte_level),
    ):
        with pytest.raises(InputError, match=r"not a WordPiece tokenizer \(BPE\).*Use a BERT-like base") as error:
            refused()
        assert "\n" not in str(error.value)


def test_a_tokenizer_that_splits_words_differently_is_refused(tokenizer: BertTokenizer) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(InputError, match=r"splits words differently from BERT .*WhitespaceSplit"):
        is_continuation(tokenizer)


# Comparing and counting -------------------------------------------------------------------------------------------


def test_compare_vocabularies() -> None:
    source = plain_bert([*SPECIAL, "a", "b", "c", "##d"])
    target = plain_bert(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "c", "x", "##d", "##e", "a"])
    difference = compare_vocabularies(source, target)
    assert difference.shared == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "c", "##d", "a")
    assert difference.new == ("x", "##e")
    assert difference.dropped == ("[unused0]", "[unused1]", "b")


def test_is_continuation_table() -> None:
    vocabulary = [*SPECIAL, "a", "##a", "##", "#", "###", "##12", "a##", "##é"]
    table = is_continuation(plain_bert(vocabulary))
    assert table.dtype == np.bool_
    assert [vocabulary[token_id] for token_id in np.flatnonzero(table)] == ["##a", "###", "##12", "##é"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=3)).map(" ".join))
def test_is_continuation_agrees_with_the_word_ids_of_the_tokenizer(
    trained: tuple[list[str], BertTokenizer], text: str
) -> None:
    _, built = trained
    encoding = built(text, add_special_tokens=False)
    words = encoding.word_ids()
    expected = [place > 0 and word == words[place - 1] for place, word in enumerate(words)]
    assert is_continuation(built)[encoding.input_ids].tolist() == expected


def test_real_ids_are_neither_special_nor_unused(tokenizer: BertTokenizer) -> None:
    ids = real_ids(tokenizer)
    others = set(range(len(tokenizer))) - set(ids.tolist())
    assert sorted(tokenizer.convert_ids_to_tokens(sorted(others))) == sorted(SPECIAL)
    assert (np.diff(ids) > 0).all()


def test_an_empty_list_of_extra_special_tokens_is_not_saved(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """transformers 4.57 expects a mapping, and fails."""
    save_tokenizer(tokenizer, tmp_path / "none")
    assert "extra_special_tokens" not in json.loads((tmp_path / "none" / "tokenizer_config.json").read_text())
    more = build_tokenizer([*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), "[DRUG]"], like=tokenizer)
    more.add_special_tokens({"extra_special_tokens": ["[DRUG]"]})
    save_tokenizer(more, tmp_path / "some")
    assert json.loads((tmp_path / "some" / "tokenizer_config.json").read_text())["extra_special_tokens"] == ["[DRUG]"]
    assert AutoTokenizer.from_pretrained(tmp_path / "some").extra_special_tokens == ["[DRUG]"]
