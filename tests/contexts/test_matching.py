"""Compare the matcher with a brute-force oracle that asks the tokenizer word by word."""

from __future__ import annotations

import gzip
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import tiny_vocabulary
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer
from transformers import BertTokenizer

from bioptimus_hf.contexts import matching
from bioptimus_hf.contexts.matching import Matcher, word_rules

PIECES = ["caf", "##e", "##es", "한", "##극", "i", "##̇", "ß", "straße", "日", "##—", "α", "##α", "##β", "≠", "x", "〮"]
TEXTS = [
    "",
    " ",
    "Asthma, bronchoconstriction-induced (asthma).",
    "CAFÉ café cafe\u0301 café\u0301s cafes",
    "a\x00b a\x7fb \x01the\u200b of\u00adthe the\ufeff",
    "日本語 the日of 日",
    "İstanbul I\u0307 i\u0307 ı",
    "한국 한",
    "a\x02b a\x00b\x01 é\x02é",
    "the\u00a0of\u2003and\u3000in\u0085with\x0bwas",
    "≠ = \u037e \u1fef \u2010 — the—of the–of",
    "x\u302e\u1d165y x\u302e\U0001d165the \U0001d165\u302ethe the",
    "x" * 500 + " " + "the" * 40,
    "straße STRASSE ﬁnding ﬃ Ⅷ ǅ",
    "𝔘𝔫𝔦 😀the😀 👩‍👩‍👧 \U000e0100the",
    "the",
    "of",  # texts are adjacent in an array: "theof" must not be found as a word
    "-", "a-", "--the--",
]  # fmt: skip


def uncased(*more: str, **settings: bool) -> BertTokenizer:
    vocabulary = dict.fromkeys([*tiny_vocabulary(), *more])
    return BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, **settings)


TOKENIZERS = {
    "uncased": uncased(*PIECES),
    "cased": uncased(*PIECES, "Asthma", "##M", do_lower_case=False),
    "accents kept": uncased(*PIECES, "café", "##é", strip_accents=False),
    "Chinese not separated": uncased(*PIECES, "##日", tokenize_chinese_chars=False),
}


def uncleaned() -> BertTokenizer:
    """Return a tokenizer that keeps control characters."""
    tokenizer = uncased(*PIECES, "a\x02b")
    tokenizer.backend_tokenizer.normalizer = BertNormalizer(clean_text=False)
    return tokenizer


TOKENIZERS["not cleaned"] = uncleaned()


def pieces_of(tokenizer: BertTokenizer) -> list[str]:
    return [token for token in tokenizer.get_vocab() if not (token[0] == "[" and len(token) > 1)]


SEPARATORS = str.maketrans(dict.fromkeys("\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029", " "))


def words_of(texts: list[str], tokenizer: BertTokenizer) -> list[str]:
    backend = tokenizer.backend_tokenizer
    normalised = (backend.normalizer.normalize_str(text.translate(SEPARATORS)) for text in texts)
    return sorted({word for text in normalised for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)})


def oracle(text: str, tokens: set[str], tokenizer: BertTokenizer) -> Iterator[tuple[str, str]]:
    """Yield every token of a text, with the word that contains it."""
    backend = tokenizer.backend_tokenizer
    normalised = backend.normalizer.normalize_str(text.translate(SEPARATORS))
    for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised):
        if word in tokens:
            yield word, word
        pieces = [piece.value for piece in backend.model.tokenize(word)]
        yield from ((piece, word) for piece in pieces if piece in tokens and piece != word)


def check(texts: list[str], tokens: list[str], tokenizer: BertTokenizer) -> int:
    """Compare all occurrences with those of the oracle and check each span; return the number of widened spans."""
    matches = Matcher(tokens, word_rules(tokenizer)).match(pa.array(texts, pa.string()))
    found: list[list[str]] = [[] for _ in texts]
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    widened = 0
    for row, token, start, end in zip(*(column.tolist() for column in matches), strict=True):
        assert 0 <= start < end <= len(texts[row])
        found[row].append(tokens[token])
        bare = tokens[token][2:] if tokens[token][:2] == "##" and len(tokens[token]) > 2 else tokens[token]
        span = normalise(texts[row][start:end].translate(SEPARATORS)).strip(" ")
        assert bare in span
        widened += span != bare
    for row, text in enumerate(texts):
        expected = [token for token, _ in oracle(text, set(tokens), tokenizer)]
        assert sorted(found[row]) == sorted(expected), repr(text)
    return widened


@pytest.mark.parametrize("name", TOKENIZERS)
def test_chosen_texts(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    widened = check(TEXTS, pieces_of(tokenizer), tokenizer)
    assert widened <= 6
    check(TEXTS, ["the", "asthma", "strasse", "-", "—", "日", "absent"], tokenizer)  # some in the vocabulary
    check(TEXTS, ["zebra", "bronchoconstriction-induced", "b"], uncased())


def test_whole_words_outside_the_vocabulary() -> None:
    words = ["induced", "straße", "cafés", "日", "—", "≠", "=", "-", "uni"]
    tokenizer = BertTokenizer(
        vocab={token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    )
    assert not Matcher(words, word_rules(tokenizer))._contained.any_word
    check([*TEXTS, "cafés cafes Induced. straße"], words, tokenizer)


CHARACTERS = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aeéthof日 \u0301\u302e-—İ한"))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(CHARACTERS, max_size=30), max_size=6))
@example(texts=["\u302e\U0001d165", "é x\u302e\U0001d165y"])  # combining marks that change places
@example(texts=["00", "0:1\x00"])  # words that differ only in padding bytes
def test_fuzzed_unicode(name: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    check(texts, list(dict.fromkeys([*pieces_of(tokenizer), *words_of(texts, tokenizer)[::2]])), tokenizer)


def test_every_character() -> None:
    """Check each code point on its own and between letters: the tables must reflect whatever the tokenizer does."""
    planes = (range(0x3400), range(0xA000, 0xB000), range(0xF900, 0x11000), range(0x1D000, 0x1F000))
    codes = [code for plane in planes for code in plane if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{chr(code)}b {chr(code)} " for code in codes[i : i + 64]) for i in range(0, len(codes), 64)]
    check(texts, ["a", "b", "##b", "##a", "ab", "ssb", "-"], TOKENIZERS["uncased"])


def test_real_text(data_dir: Path) -> None:
    with gzip.open(data_dir / "corpus" / "abstracts.txt.gz", "rt", encoding="utf-8") as file:
        texts = [line.rstrip("\n") for line in itertools.islice(file, 300)]
    with gzip.open(data_dir / "corpus" / "fulltext_trials.txt.gz", "rt", encoding="utf-8") as file:
        texts += [sentence for line in itertools.islice(file, 20) for sentence in line.rstrip("\n").split(". ")]
    tokenizer = TOKENIZERS["uncased"]
    backend = tokenizer.backend_tokenizer
    words = sorted(
        {w for t in texts for w, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(t))}
    )
    tokens = [token for token in tokenizer.get_vocab() if token[0] != "["]
    assert check(texts, list(dict.fromkeys([*tokens, *words[::3]])), tokenizer) == 0
    check(texts, [word for word in words[::2] if word not in tokenizer.get_vocab()], tokenizer)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_arrow_arrays_of_every_kind(kind: pa.DataType) -> None:
    texts = [None, "the of", "", None, "é the", "of"]
    matcher = Matcher(["the", "of"], word_rules(TOKENIZERS["uncased"]))
    whole = pa.array(texts, pa.string()).cast(kind)
    for first, last in itertools.combinations(range(len(texts) + 1), 2):
        matches = matcher.match(whole[first:last])
        expected = [
            (row, token, (text or "").index(token))
            for row, text in enumerate(texts[first:last])
            for token in ("the", "of")
            if token in (text or "")
        ]
        assert sorted((int(r), ["the", "of"][t], int(s)) for r, t, s in zip(*matches[:3], strict=True)) == sorted(
            expected
        )
    assert len(matcher.match(whole[:0]).row) == 0


def test_small_buffers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text in TEXTS for _ in range(3)]
    random.Random(0).shuffle(texts)
    tokens = pieces_of(TOKENIZERS["uncased"])
    results = []
    for hits, new in ((1, 1), (5, 3), (1 << 12, 1 << 12)):
        monkeypatch.setattr(matching, "_HITS_AT_ONCE", hits)
        monkeypatch.setattr(matching, "_NEW_WORDS_AT_ONCE", new)
        matches = Matcher(tokens, word_rules(TOKENIZERS["uncased"])).match(pa.array(texts))
        results.append(list(zip(*(column.tolist() for column in matches), strict=True)))
    assert results[0] == results[1] == results[2]


def test_a_text_is_scanned_again_once_for_all_its_new_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    scan = matching.kernels.scan
    monkeypatch.setattr(matching.kernels, "scan", lambda *arguments: calls.append(1) or scan(*arguments))
    text = " ".join(f"the{chr(code)}" for code in range(0x4E00, 0x4E00 + 2000))
    matches = Matcher(["the"], word_rules(TOKENIZERS["uncased"])).match(pa.array([text]))
    assert len(matches.row) == 2000
    assert len(calls) <= 3


def test_a_table_that_grows() -> None:
    rng = random.Random(0)
    words = sorted({"".join(rng.choices("abcdefgh", k=rng.randint(1, 30))) for _ in range(20_000)})
    tokenizer = TOKENIZERS["uncased"]
    tokens = list(dict.fromkeys([*words[::2], *pieces_of(tokenizer)]))
    check([" ".join(words[i : i + 100]) for i in range(0, len(words), 100)], tokens, tokenizer)


def test_words_with_the_same_key_are_distinguished() -> None:
    """Long words hardly ever have the same key. Here most do, and the result must still be right."""
    program = """
import pyarrow as pa
from numba import njit
import numpy as np
from bioptimus_hf.contexts import kernels
kernels._scatter = njit(lambda value: value % np.uint64(7) + np.uint64(1))
from bioptimus_hf.contexts.matching import Matcher, word_rules
from transformers import BertTokenizer
words = ["bronchoconstriction", "hypertrophic", "straßenverkehr", "cardiomyopathy"]
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
text = "bronchoconstriction bronchoconstrictiom hypertrophit straßenverkehr straßenverkehs cardiomyopathx hypotrophic"
for more in ([], ["bronchocons", "##triction"]):
    tokenizer = BertTokenizer(vocab={t: i for i, t in enumerate([*special, *more])})
    tokens = list(dict.fromkeys([*words, *more]))
    matches = Matcher(tokens, word_rules(tokenizer)).match(pa.array([text]))
    assert len(matches.row) > 1
    for token, start, end in zip(*(column.tolist() for column in matches[1:]), strict=True):
        assert text[start:end] == tokens[token].removeprefix("##")
"""
    # Without compilation, which would take longer than everything else in this module.
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
