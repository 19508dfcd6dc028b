"""Test that test sentences are found in pre-training text whatever their spacing, case and punctuation."""

from __future__ import annotations

import random
import shutil
import string
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from bioptimus_hf.corpus.conll_writing import write_conll
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.decontamination import (
    SHORTEST,
    Dropped,
    _hits,
    decontaminate,
    normalised,
    read_test_sentences,
    write_dropped,
)
from bioptimus_hf.errors import InputError

SENTENCE = "Naloxone ( 0.2 mg / kg ) reverses the anti - hypertensive effect of β - blockers ."


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def corpus(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts), "document": list(range(len(texts)))})


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        "Naloxone (0.2 mg/kg) reverses the anti-hypertensive effect of β-blockers.",
        "Before. NALOXONE (0.2 mg/kg) REVERSES THE ANTIHYPERTENSIVE EFFECT OF Β-BLOCKERS; after",
        "prenaloxone 0.2 mg kg reverses\n\nthe anti-hyper-\ntensive_effect of “β blockers”post",
        "Naloxone（０.２ mg/kg）reverses the anti\u00adhypertensive e\ufb00ect of β-blockers.",
    ],
)
def test_a_sentence_is_found_however_it_is_written(text: str) -> None:
    left, dropped = decontaminate(corpus("Something else.", text, ""), {"set": [SENTENCE]})
    assert dropped == [Dropped(1, ("set",), SENTENCE)]
    assert left["text"][:] == ["Something else.", ""]
    assert left["document"][:] == [0, 2]


@pytest.mark.parametrize("change", ["reverse", "without its last letter", "over two documents"])
def test_similar_text_stays(change: str) -> None:
    texts = {
        "reverse": [SENTENCE[::-1]],
        "without its last letter": [SENTENCE[:-3], SENTENCE[1:]],
        "over two documents": [SENTENCE[:40], SENTENCE[40:]],
    }[change]
    left, dropped = decontaminate(corpus(*texts), {"set": [SENTENCE]})
    assert (len(left), dropped) == (len(texts), [])


@pytest.mark.parametrize("letter", ["a", "β", "中"])
def test_forty_characters_are_needed(letter: str) -> None:
    long, short = f"{letter} " * SHORTEST, f"{letter} " * (SHORTEST - 1)
    assert SHORTEST == 40
    assert decontaminate(corpus(f"x {short} x", f"x {long} x"), {"set": [short, long]})[1] == [
        Dropped(1, ("set",), long)
    ]
    assert len(decontaminate(corpus(short), {"set": [short]})[0]) == 1


def test_every_set_and_every_sentence_is_named(tmp_path: Path) -> None:
    other = "A second sentence that is by far long enough to be looked for in a corpus ."
    left, dropped = decontaminate(
        corpus(f"{other} {SENTENCE}", "nothing", SENTENCE.upper()),
        {"a": [SENTENCE, SENTENCE], "b": [other, SENTENCE.replace(" ", "")], "c": ["Nothing ."]},
    )
    assert len(left) == 1
    assert dropped == [Dropped(0, ("a", "b"), SENTENCE), Dropped(0, ("b",), other), Dropped(2, ("a", "b"), SENTENCE)]
    write_dropped(tmp_path / "dropped.tsv", dropped)
    assert (tmp_path / "dropped.tsv").read_text() == (
        f"document\tsets\tsentence\n0\ta, b\t{SENTENCE}\n0\tb\t{other}\n2\ta, b\t{SENTENCE}\n"
    )


def test_processes_and_batches_change_nothing() -> None:
    rng = random.Random(0)
    sentences = ["".join(rng.choices(string.ascii_lowercase + "αβγ", k=rng.randint(40, 90))) for _ in range(300)]
    texts = [
        " ".join(rng.choices(["some", "words", "that", "mean", "nothing"], k=rng.randint(0, 400))) for _ in range(900)
    ]
    planted = rng.sample(range(900), 250)
    for number in planted:
        place = rng.randint(0, len(texts[number]))
        texts[number] = f"{texts[number][:place]} {rng.choice(sentences)} {texts[number][place:]}"
    results = [decontaminate(corpus(*texts), {"set": sentences}, num_proc=processes) for processes in (None, 1, 2, 3)]
    for left, dropped in results:
        assert [row.document for row in dropped] == sorted(planted)
        assert left["document"][:] == [number for number in range(900) if number not in set(planted)]
        assert (left["text"][:], dropped) == (results[0][0]["text"][:], results[0][1])


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_search_agrees_with_a_plain_search(data: st.DataObject) -> None:
    """Few letters, so that sentences share beginnings, overlap and contain each other."""
    letters = st.text(alphabet="aβ🧬", min_size=SHORTEST, max_size=SHORTEST + 5)
    forms = data.draw(st.lists(letters, max_size=8, unique=True))
    pieces = st.one_of(st.sampled_from(forms), st.text("aβ")) if forms else st.text("aβ")
    texts = ["x".join(words) for words in data.draw(st.lists(st.lists(pieces, max_size=6), min_size=1, max_size=3))]
    texts += ["".join(forms), "".join(forms)[1:]]
    expected = [[number for number, form in enumerate(forms) if form in normalised(text)] for text in texts]
    assert _hits({"text": texts}, forms, "") == {"hits": expected}


def test_other_sentences_are_not_answered_from_the_cache() -> None:
    documents = corpus(SENTENCE)
    assert decontaminate(documents, {"set": [SENTENCE[::-1]]})[1] == []
    assert len(decontaminate(documents, {"set": [SENTENCE]})[1]) == 1


def test_sentences_of_all_data_sets_in_a_folder(tmp_path: Path) -> None:
    for name in ("one", "deep/two"):
        (tmp_path / name).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            write_conll(tmp_path / name / f"{split}.tsv", [[[name, split, "."], ["O", "O", "O"]]])
    assert read_test_sentences(tmp_path) == {"deep/two": ["deep/two test ."], "one": ["one test ."]}
    assert read_test_sentences(tmp_path / "one") == {"one": ["one test ."]}
    shutil.copytree(tmp_path / "one", tmp_path / "one" / "one")
    assert read_test_sentences(tmp_path / "one") == {"one": ["one test .", "one test ."]}
    with pytest.raises(InputError, match=r"no test\.tsv in .*none or its subfolders"):
        read_test_sentences(tmp_path / "none")


def test_the_real_corpus_contains_no_test_sentence(data_dir: Path) -> None:
    """Another program removed them; this one finds none that are left."""
    sentences = read_test_sentences(data_dir / "ner")
    assert sorted(sentences) == ["BC2GM", "BC5-chem", "BC5-disease", "JNLPBA", "NCBI-disease"]
    documents = load_corpus(data_dir / "corpus" / "abstracts.txt.gz", max_megabytes=5)
    assert decontaminate(documents, sentences)[1] == []
    planted = [number * 5 for number in range(100)]
    texts = documents["text"][:]
    long = [s for of_set in sentences.values() for s in of_set if len(normalised(s)) >= SHORTEST]
    for number in planted:
        texts[number] += " " + random.Random(number).choice(long).replace(" ", "")
    assert sorted({row.document for row in decontaminate(corpus(*texts), sentences)[1]}) == planted


def test_test_sets_are_found_whatever_their_form(tmp_path: Path) -> None:
    """A set that is overlooked would leak into the corpus."""
    contents = {
        "a/test.conll": "Aspirin\tB\nhelps\tO\n",
        "b/test.txt": "-DOCSTART- -X- O O\n\nAspirin NN S-X\nhelps VB O\n",
        "c/d/test.tsv": "helps\tO\nAspirin\tX\n",
        "c/d/test.txt": "plain text beside it",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert read_test_sentences(tmp_path) == {"a": ["Aspirin helps"], "b": ["Aspirin helps"], "c/d": ["helps Aspirin"]}
