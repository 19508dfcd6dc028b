"""Test that `find_contexts` finds the right pairs and the same sample however the work is divided, and its cache."""

from __future__ import annotations

import gzip
import itertools
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Value, load_from_disk
from helpers import tiny_vocabulary
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertTokenizer

from bioptimus_hf.contexts import fetching, sampling
from bioptimus_hf.contexts import finder as module
from bioptimus_hf.contexts.finder import find_contexts
from bioptimus_hf.contexts.matching import Matcher
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.errors import InputError

SENTENCES = [
    "Asthma was treated with aspirin.",
    "Severe ASTHMA, by bronchoconstriction in mice!",
    "Asthma was treated with aspirin.",
    "Hepatitis and arthritis: binding, rebinding.",
    "Café culture — naïve cells.",
    "",
    "asthma asthma asthma",
]
DOCUMENTS = [7, 4, 3, 9, 1, 0, 2]
TOKENS = ["asthma", "##itis", "binding", "##ing", "naïve", "bronchoconstriction", "Culture", "zebra"]


@pytest.fixture
def sentences() -> Dataset:
    return Dataset.from_dict({"text": SENTENCES, "document": DOCUMENTS})


def rows(contexts: Dataset) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in contexts]


def many(number: int, seed: int = 0) -> Dataset:
    """Return sentences of a few words. Some occur several times, each time in a different document."""
    rng = random.Random(seed)
    words = [word for word in tiny_vocabulary() if word.isalpha() and len(word) > 1]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 6))) + rng.choice([".", " é.", ""]) for _ in range(number)]
    return Dataset.from_dict({"text": texts, "document": rng.sample(range(10 * number), number)})


def test_rows(sentences: Dataset, tokenizer: BertTokenizer) -> None:
    contexts = find_contexts(sentences, TOKENS, tokenizer=tokenizer)
    assert contexts.column_names == ["token", "text", "start", "end", "document"]
    found = defaultdict(set)
    for row in contexts:
        found[row["token"]].add((row["document"], row["text"][row["start"] : row["end"]], row["start"]))
    assert found == {
        "asthma": {(3, "Asthma", 0), (4, "ASTHMA", 7), (2, "asthma", 0)},
        "##itis": {(9, "itis", 5)},
        "binding": {(9, "binding", 25)},
        "##ing": {(9, "ing", 40)},
        "naïve": {(1, "naïve", 15)},
        "bronchoconstriction": {(4, "bronchoconstriction", 18)},
        "Culture": {(1, "culture", 5)},
    }
    assert list(dict.fromkeys(contexts["token"])) == [token for token in TOKENS if token in found]


def test_documents_are_optional_and_of_any_type(sentences: Dataset, tokenizer: BertTokenizer) -> None:
    plain = find_contexts(sentences.remove_columns("document"), TOKENS, tokenizer=tokenizer)
    assert plain.column_names == ["token", "text", "start", "end"]
    named = Dataset.from_dict(
        {"text": SENTENCES, "document": [f"PMID{number}" for number in DOCUMENTS], "x": SENTENCES}
    )
    contexts = find_contexts(named, ["asthma"], tokenizer=tokenizer)
    assert set(contexts["document"]) == {"PMID2", "PMID3", "PMID4"}
    assert contexts.column_names == ["token", "text", "start", "end", "document"]


@pytest.mark.parametrize("words", [["zebra"], ["zebra", "##zz"]])
def test_nothing_found(sentences: Dataset, tokenizer: BertTokenizer, words: list[str]) -> None:
    contexts = find_contexts(sentences, words, tokenizer=tokenizer)
    assert (len(contexts), contexts.column_names) == (0, ["token", "text", "start", "end", "document"])
    empty = find_contexts(sentences.select([]), words, tokenizer=tokenizer)
    assert contexts.features == empty.features == find_contexts(sentences, TOKENS, tokenizer=tokenizer).features


@pytest.mark.parametrize("texts", [[], [None, None], ["", None]])
def test_no_text_has_no_contexts(tokenizer: BertTokenizer, texts: list[str | None]) -> None:
    contexts = find_contexts(Dataset.from_dict({"text": texts}), ["asthma"], tokenizer=tokenizer)
    assert len(contexts) == 0
    assert contexts.column_names == ["token", "text", "start", "end"]
    assert contexts.features["text"].dtype == "string"


def test_rows_of_chosen_sentences_and_large_strings(sentences: Dataset, tokenizer: BertTokenizer) -> None:
    """Offsets are in the sentences that were chosen, also through the indices of `select` and `filter`."""
    chosen = sentences.select([5, 6, 1]).filter(lambda row: row["text"])
    expected = [("asthma", SENTENCES[1], 7, 13, 4), ("asthma", SENTENCES[6], 0, 6, 2)]
    large = chosen.cast(Features({"text": Value("large_string"), "document": Value("int64")}))
    for dataset in (chosen, large, chosen.with_format("arrow")):
        found = rows(find_contexts(dataset, ["asthma"], tokenizer=tokenizer).with_format(None))
        assert sorted(found) == expected


def test_all_pairs_of_real_text(data_dir: Path, tokenizer: BertTokenizer) -> None:
    with gzip.open(data_dir / "corpus" / "abstracts.txt.gz", "rt", encoding="utf-8") as file:
        documents = Dataset.from_dict({"text": list(itertools.islice(file, 200)), "document": range(200)})
    sentences = split_sentences(documents)
    backend = tokenizer.backend_tokenizer
    expected = defaultdict(set)
    for text in sentences["text"]:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            for token in {word, *(piece.value for piece in backend.model.tokenize(word))}:
                expected[token].add(text)
    tokens = [token for token in sorted(expected) if token[0] != "["]
    found = defaultdict(set)
    for row in find_contexts(sentences, tokens, tokenizer=tokenizer, per_token=10**6):
        assert row["text"] not in found[row["token"]]
        found[row["token"]].add(row["text"])
        span = backend.normalizer.normalize_str(row["text"][row["start"] : row["end"]]).strip()
        assert span == (row["token"].removeprefix("##") or row["token"])
    assert found == {token: expected[token] for token in tokens}


def test_the_same_rows_however_the_work_is_divided(tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = many(3000)
    tokens = ["asthma", "##tion", "disease", "cells", "e", "the", "é"][:6]
    expected = rows(find_contexts(sentences, tokens, tokenizer=tokenizer, per_token=20, seed=3))
    assert len(expected) > 80
    order = list(range(len(sentences)))
    random.Random(1).shuffle(order)
    assert rows(find_contexts(sentences.select(order), tokens, tokenizer=tokenizer, per_token=20, seed=3)) == expected
    for batch in (1, 7, 1000):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", batch)
        monkeypatch.setattr(fetching, "ROWS_AT_ONCE", batch)
        monkeypatch.setattr(sampling, "_HELD", 100)  # losers are dropped in between
        some = sentences.select(order)
        assert rows(find_contexts(some, tokens, tokenizer=tokenizer, per_token=20, seed=3)) == expected
    for processes in (1, 2, 3):
        again = find_contexts(sentences, tokens, tokenizer=tokenizer, per_token=20, seed=3, num_proc=processes)
        assert rows(again) == expected
        assert (
            again._fingerprint
            == find_contexts(sentences, tokens, tokenizer=tokenizer, per_token=20, seed=3)._fingerprint
        )


def test_other_seeds_and_longer_samples(tokenizer: BertTokenizer) -> None:
    sentences = many(2000)
    few = rows(find_contexts(sentences, ["asthma"], tokenizer=tokenizer, per_token=10))
    more = rows(find_contexts(sentences, ["asthma"], tokenizer=tokenizer, per_token=20))
    other = rows(find_contexts(sentences, ["asthma"], tokenizer=tokenizer, per_token=10, seed=-5))
    assert (len(few), len(more), len(other)) == (10, 20, 10)
    assert more[:10] == few
    assert few != other


def test_a_token_has_the_same_sample_whatever_else_is_looked_for(tokenizer: BertTokenizer) -> None:
    sentences = many(2000)
    alone = rows(find_contexts(sentences, ["asthma"], tokenizer=tokenizer, per_token=10))
    together = rows(find_contexts(sentences, ["the", "##tion", "asthma"], tokenizer=tokenizer, per_token=10))
    assert [row for row in together if row[0] == "asthma"] == alone


def test_the_sample_is_uniform(tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many seeds, each distinct sentence is drawn equally often, no matter how many copies of it there are."""
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(sampling, "_HELD", 20)
    texts = [f"asthma {number}" for number in range(100)]
    copies = [text for number, text in enumerate(texts) for _ in range(1 + 4 * (number % 10 == 0))]
    sentences = Dataset.from_dict({"text": copies})
    seeds, drawn = 150, 10
    counts = dict.fromkeys(texts, 0)
    for seed in range(seeds):
        contexts = find_contexts(sentences, ["asthma"], tokenizer=tokenizer, per_token=drawn, seed=seed)
        assert len(contexts) == len(set(contexts["text"])) == drawn
        for text in contexts["text"]:
            counts[text] += 1
    expected = seeds * drawn / len(texts)
    # The factor corrects for drawing without replacement, which varies less than independent draws.
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values()) / (1 - drawn / len(texts))
    assert 55 < chi_square < 155  # 99 degrees of freedom: outside of this interval in about 1 of 5,000 trials


@pytest.mark.parametrize("kind", ["int64", "uint32", "string"])
def test_copies_that_come_late_still_give_their_document(
    tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The limit is the priority of the last winner. Its copies have the same priority and must still be accepted."""
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(sampling, "_HELD", 5)
    texts = [f"asthma {number % 50}" for number in range(200)]
    documents = [f"{number:03}" if kind == "string" else number for number in range(200, 0, -1)]
    features = Features(text=Value("string"), document=Value(kind))
    sentences = Dataset.from_dict({"text": texts, "document": documents}, features=features)
    for per_token in (1, 2, 3):
        contexts = find_contexts(sentences, ["asthma"], tokenizer=tokenizer, per_token=per_token)
        assert len(contexts) == per_token
        assert all(int(row["document"]) == 50 - int(row["text"].split()[1]) for row in contexts)


def test_copies_are_kept_only_if_documents_are_unordered(
    tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_HELD", 5)
    kept: list[int] = []
    best = sampling.Reservoir.best
    monkeypatch.setattr(sampling.Reservoir, "best", lambda self: kept.append(len(found := best(self))) or found)
    monkeypatch.setattr(module, "_READ_AT_ONCE", 10)
    texts = ["All asthma reserved.", "asthma"] * 100
    for documents, most in ((range(200), 2), ([7] * 200, 2), (range(200, 0, -1), 200)):
        kept.clear()
        sentences = Dataset.from_dict({"text": texts, "document": list(documents)})
        contexts = find_contexts(sentences, ["asthma"], tokenizer=tokenizer)
        least = {text: min(d for t, d in zip(texts, documents, strict=True) if t == text) for text in texts}
        assert dict(zip(contexts["text"], contexts["document"], strict=True)) == least
        assert max(kept) == most
    named = Dataset.from_dict({"text": texts, "document": [f"PMID{number}" for number in range(200)]})
    assert set(find_contexts(named, ["asthma"], tokenizer=tokenizer)["document"]) == {"PMID0", "PMID1"}


def test_invalid_utf8_is_an_error(tokenizer: BertTokenizer) -> None:
    """Arrow doesn't check the bytes, and the kernels would read beyond their tables."""
    for content in (b"the \xff\xff\xff\xff of", b"\xed\xa0\x80 the"):
        offsets = pa.py_buffer(np.array([0, len(content)], dtype=np.int32))
        texts = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(content)])
        with pytest.raises(InputError, match="the sentences contain text that is not valid UTF-8"):
            find_contexts(Dataset(pa.table({"text": texts})), ["the"], tokenizer=tokenizer)


def test_samples_of_two_tokens_are_independent(tokenizer: BertTokenizer) -> None:
    sentences = Dataset.from_dict({"text": [f"asthma mice {number}" for number in range(400)]})
    contexts = find_contexts(sentences, ["asthma", "mice"], tokenizer=tokenizer, per_token=200)
    drawn = defaultdict(set)
    for row in contexts:
        drawn[row["token"]].add(row["text"])
    assert 70 < len(drawn["asthma"] & drawn["mice"]) < 130  # 100 +- 5


def test_the_cache(tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(50).save_to_disk(tmp_path / "one")
    many(50, seed=1).save_to_disk(tmp_path / "two")
    asked: list[int] = []
    match = Matcher.match
    monkeypatch.setattr(Matcher, "match", lambda self, texts: asked.append(len(texts)) or match(self, texts))

    def runs(folder: str, tokens: list[str], tokenizer: BertTokenizer, seed: int = 0, per_token: int = 5) -> bool:
        asked.clear()
        find_contexts(load_from_disk(tmp_path / folder), tokens, tokenizer=tokenizer, seed=seed, per_token=per_token)
        return bool(asked)

    tokens = ["asthma", "##ing"]
    assert runs("one", tokens, tokenizer)
    assert not runs("one", tokens, tokenizer)
    tokenizer(["asthma", "mice mice"], padding=True, truncation=True)  # changes the state of the backend
    assert not runs("one", tokens, tokenizer)
    assert runs("two", tokens, tokenizer)
    assert runs("one", [*tokens, "mice"], tokenizer)
    assert runs("one", tokens, tokenizer, seed=1)
    assert runs("one", tokens, tokenizer, per_token=6)
    cased = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)
    assert runs("one", tokens, cased)
    larger = BertTokenizer(vocab={**tokenizer.get_vocab(), "rena": len(tokenizer)})
    assert runs("one", tokens, larger)
    assert not runs("one", tokens, tokenizer)


def test_contexts_have_the_spelling_that_was_asked_for(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """The winners are the same under both spellings, but the cached result of the first must not be used."""
    many(50).save_to_disk(tmp_path / "one")
    for spelling in ("asthma", "Asthma"):
        contexts = find_contexts(load_from_disk(tmp_path / "one"), [spelling], tokenizer=tokenizer)
        assert set(contexts["token"]) == {spelling}


def test_bad_input(sentences: Dataset, tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match=r"2 tokens can never be found, for example 'x-ray': it normalises to 3 words"):
        find_contexts(sentences, ["asthma", "x-ray", ""], tokenizer=tokenizer)
    with pytest.raises(InputError, match="no tokens"):
        find_contexts(sentences, [], tokenizer=tokenizer)
    with pytest.raises(InputError, match="per_token must be at least 1, not 0"):
        find_contexts(sentences, ["asthma"], tokenizer=tokenizer, per_token=0)
    with pytest.raises(InputError, match="dataset: the data set needs a column 'text', and has sentence, document"):
        find_contexts(sentences.rename_column("text", "sentence"), ["asthma"], tokenizer=tokenizer)
    with pytest.raises(InputError, match="column 'text' must contain strings, not int64"):
        find_contexts(Dataset.from_dict({"text": [1]}), ["asthma"], tokenizer=tokenizer)


def test_streamed_data_sets_and_all_splits_are_an_error(sentences: Dataset, tokenizer: BertTokenizer) -> None:
    """They can't be read twice, or are several."""
    given = {
        "IterableDataset.*: load it without streaming": sentences.to_iterable_dataset(),
        "DatasetDict.*: give one of its splits": DatasetDict({"train": sentences}),
        "not (a )?list": SENTENCES,
    }
    for message, dataset in given.items():
        with pytest.raises(InputError, match=f"^dataset: must be a data set, .*{message}"):
            find_contexts(dataset, ["asthma"], tokenizer=tokenizer)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"^dataset: must be a data set, .*{message}"):
            split_sentences(dataset)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"dataset: .* needs a column 'text', and has body"):
        split_sentences(Dataset.from_dict({"body": SENTENCES}))


def test_other_kinds_of_tokenizers_are_an_error(sentences: Dataset, tokenizer: BertTokenizer) -> None:
    """With them, the result for a character depends on its neighbours, and tokens would be missed silently."""
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    with pytest.raises(InputError, match="splits words differently from BERT"):
        find_contexts(sentences, ["asthma"], tokenizer=tokenizer)
