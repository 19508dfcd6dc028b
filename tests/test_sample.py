"""The embedded sample: what the demo relies on, and what its README claims."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from importlib import resources

import pytest
import sentencex

SAMPLE = resources.files("bioptimus_hf") / "sample"
SPLITS = ("train", "dev", "test")
TYPES = ("Chemical", "Disease")
TAGS = {"O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in TYPES)}
SUBJECTS = {
    "asthma",
    "cardiomyopathy",
    "nephrotoxicity",
    "carcinoma",
    "malaria",
    "epilepsy",
    "insulin",
    "zebrafish",
    "bacteriophage",
    "transcription",
    "genotype",
    "vaccine",
    "surgery",
    "tomography",
    "wheat",
    "outbreak",
    "placenta",
    "depression",
}
# Words that are a name in one sentence and none in another.
AMBIGUOUS = {"lead", "all"}

Sentence = list[tuple[str, str]]


def documents() -> list[str]:
    return (SAMPLE / "corpus.txt").read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def read_split(split: str) -> list[Sentence]:
    text = (SAMPLE / "ner" / f"{split}.tsv").read_bytes().decode("utf-8")
    blocks = [block.split("\n") for block in text.strip("\n").split("\n\n")]
    return [[(line.split("\t")[0], line.split("\t")[1]) for line in block] for block in blocks]


def entities(sentence: Sentence) -> list[tuple[int, int, str]]:
    starts = [place for place, (_, tag) in enumerate(sentence) if tag.startswith("B-")]
    found = []
    for start in starts:
        end = start + 1
        while end < len(sentence) and sentence[end][1].startswith("I-"):
            end += 1
        found.append((start, end, sentence[start][1][2:]))
    return found


def words(sentence: Sentence) -> tuple[str, ...]:
    return tuple(word.lower() for word, _ in sentence)


def test_corpus_is_a_document_a_line() -> None:
    lines = documents()
    assert len(lines) == len(set(lines)) >= 80
    for number, line in enumerate(lines, start=1):
        assert line == line.strip(), f"line {number} begins or ends with blanks"
        assert len(line.split()) >= 80, f"line {number} is too short for an abstract"
        assert line.isprintable(), f"line {number} holds a control character"
        assert "\ufffd" not in line, f"line {number} was decoded wrongly once"


def test_corpus_has_sentences_enough_and_none_twice() -> None:
    sentences = [sentence.strip() for line in documents() for sentence in sentencex.segment("en", line)]
    assert len(sentences) >= 450
    assert [sentence for sentence, count in Counter(sentences).items() if count > 1] == []


@pytest.mark.parametrize("trap", ["e.g. ", "i.e. ", "(Fig. 2)", "et al. ", "p < 0.0", " vs. ", "Dr. ", "E. coli"])
def test_corpus_sets_traps_for_a_sentence_splitter(trap: str) -> None:
    assert trap in "\n".join(documents())


def test_corpus_varies_in_subject() -> None:
    text = "\n".join(documents()).lower()
    assert {subject for subject in SUBJECTS if subject not in text} == set()
    counts = Counter(re.findall(r"[a-z]+", text))
    assert len(counts) > 2500
    # Vocabulary training and context finding need rare words that recur, in several documents.
    for term in ("bronchoconstriction", "nephrotoxicity", "thrombocytopenia", "immunohistochemistry", "cardiomyopathy"):
        assert sum(term in line.lower() for line in documents()) >= 4, term


@pytest.mark.parametrize("split", SPLITS)
def test_ner_lines_are_token_tab_tag(split: str) -> None:
    text = (SAMPLE / "ner" / f"{split}.tsv").read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert "\n\n\n" not in text
    for number, line in enumerate(text.split("\n"), start=1):
        if line:
            assert re.fullmatch(r"[^\t\s]+\t[BIO](-[A-Za-z]+)?", line), f"{split}.tsv, line {number}: {line!r}"


@pytest.mark.parametrize("split", SPLITS)
def test_ner_tags_are_strict_iob2(split: str) -> None:
    for sentence in read_split(split):
        previous = "O"
        for word, tag in sentence:
            assert tag in TAGS, (word, tag)
            if tag.startswith("I-"):
                assert previous in {f"B-{tag[2:]}", tag}, f"{word} of {' '.join(words(sentence))!r}"
            previous = tag


def test_ner_sizes_and_types() -> None:
    sizes = {split: len(read_split(split)) for split in SPLITS}
    assert sum(sizes.values()) >= 330
    assert sizes["train"] > sizes["dev"] + sizes["test"]
    for split in SPLITS:
        kinds = [[kind for *_, kind in entities(sentence)] for sentence in read_split(split)]
        assert min(Counter(kind for row in kinds for kind in row)[kind] for kind in TYPES) >= 50
        # Sentences without any entity, and names of several tokens, occur in every split too.
        assert sum(not row for row in kinds) >= 5
        assert all(any(tag == f"I-{kind}" for row in read_split(split) for _, tag in row) for kind in TYPES)


def test_no_ner_sentence_occurs_twice() -> None:
    places = defaultdict(list)
    for split in SPLITS:
        for sentence in read_split(split):
            places[words(sentence)].append(split)
    assert {" ".join(sentence): where for sentence, where in places.items() if len(where) > 1} == {}


def test_ner_test_split_holds_names_not_seen_in_training() -> None:
    seen, asked = (
        {
            (words(sentence)[start:end], kind)
            for sentence in read_split(split)
            for start, end, kind in entities(sentence)
        }
        for split in ("train", "test")
    )
    assert 0.2 < len(asked - seen) / len(asked) < 0.8


def test_ner_annotation_is_consistent() -> None:
    sentences = [sentence for split in SPLITS for sentence in read_split(split)]
    kinds: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for sentence in sentences:
        for start, end, kind in entities(sentence):
            kinds[words(sentence)[start:end]].add(kind)
    assert {name for name, given in kinds.items() if len(given) > 1} == set()
    missed = []
    for sentence in sentences:
        row = words(sentence)
        for name in kinds:
            for start in range(len(row) - len(name) + 1):
                bare = all(tag == "O" for _, tag in sentence[start : start + len(name)])
                if bare and row[start : start + len(name)] == name and name[0] not in AMBIGUOUS:
                    missed.append((name, " ".join(row)))
    assert missed == []


def test_readme_states_what_the_sample_holds() -> None:
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    flat = " ".join(readme.split())
    for claim in ("Apache-2.0", "written for this project", "not medical facts", "IOB2"):
        assert claim in flat
    sentences = [sentence for line in documents() for sentence in sentencex.segment("en", line)]
    total_words = sum(len(line.split()) for line in documents())
    assert f"{len(documents())} documents, {total_words:,} words, about 800 sentences" in flat
    assert 780 <= len(sentences) <= 820  # the exact number depends on the splitter's version
    for split in SPLITS:
        rows = read_split(split)
        found = Counter(kind for sentence in rows for *_, kind in entities(sentence))
        cells = [len(rows), sum(map(len, rows)), found["Chemical"], found["Disease"]]
        assert f"| {split} | " + " | ".join(f"{cell:,}" for cell in cells) + " |" in readme
