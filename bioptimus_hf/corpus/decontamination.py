"""Remove documents that contain test sentences from pre-training text.

The rule: documents and sentences are normalised to NFKC and lower case, and everything but letters and digits is
removed. Then every sentence of at least 40 characters is searched for in the whole document. Spacing, punctuation,
tokens and sentence boundaries don't matter, so it makes no difference how either side was split.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import ahocorasick
from datasets import Dataset, Features, List, Value

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.cache import cached_map
from bioptimus_hf.corpus.conll import read_words
from bioptimus_hf.corpus.ner_files import split_file
from bioptimus_hf.errors import InputError

SHORTEST = 40  # characters after normalisation: shorter sentences occur in many documents by chance
RULE = f"NFKC, lower case, letters and digits only, at least {SHORTEST} characters"
_BATCH = 100  # documents, some of which are whole books
_NO_WORD = re.compile(r"[\W_]+")


class Dropped(NamedTuple):
    """A test sentence that occurs in a document.

    Attributes:
        document: the document's number in the corpus.
        sets: the test sets that contain the sentence.
        sentence: the sentence, as the first of these sets spells it.
    """

    document: int
    sets: tuple[str, ...]
    sentence: str


@check_call(documents=("text", "document"))
def decontaminate(
    documents: Dataset, test_sentences: Mapping[str, Iterable[str]], *, num_proc: int | None = None
) -> tuple[Dataset, list[Dropped]]:
    """Leave out every document that contains a test sentence.

    Upper and lower case, spacing and punctuation are ignored. Sentences with fewer than 40 letters and digits are not
    searched for.

    Args:
        documents: a data set with the columns `text` and `document`, from `load_corpus`.
        test_sentences: the sentences of each test set, by its name; from `read_test_sentences`. Words may be separated
            by spaces.
        num_proc: number of processes; doesn't change the result.

    Returns:
        The remaining documents, with their numbers unchanged, and the test sentences found in the others, in the order
        of the documents.
    """
    wanted = _by_form(test_sentences)
    forms = list(wanted)
    found = cached_map(
        documents.select_columns(["text"]),
        _hits,
        kind="hits",
        batch_size=_BATCH,
        # The rule is an argument because the cache doesn't see our code.
        fn_kwargs={"forms": forms, "rule": RULE},
        remove_columns=["text"],
        features=Features(hits=List(Value("int32"))),
        num_proc=num_proc,
        desc="Looking for test sentences",
    )
    dropped: list[Dropped] = []
    kept: list[int] = []
    numbers = documents["document"]
    for row, hits in enumerate(found["hits"]):
        if not hits:
            kept.append(row)
        dropped.extend(Dropped(numbers[row], *wanted[forms[hit]]) for hit in hits)
    return documents.select(kept), dropped


@check_call()
def read_test_sentences(folder: str | Path) -> dict[str, list[str]]:
    """Read the test sentences of all NER data sets in a folder.

    Returns:
        The sentences of each data set, with their words separated by spaces. A set is named by its subfolder, or by
        `folder` itself if `test.tsv` lies directly in it.

    Raises:
        InputError: there is no `test.tsv`, or one can't be read (file and line).
    """
    sets: dict[str, list[str]] = {}
    for file in ner_test_files(folder):
        subfolder = file.parent.relative_to(folder).as_posix()
        name = Path(folder).resolve().name if subfolder == "." else subfolder
        sets.setdefault(name, []).extend(map(" ".join, read_words(file)))
    return sets


def ner_test_files(folder: str | Path) -> list[Path]:
    """Return every test set in a folder and its subfolders: `test.tsv`, or with another ending of CoNLL files.

    Raises:
        InputError: there is none, or there are several in one folder.
    """
    folders = {file.parent for file in Path(folder).rglob("test.*")}
    files = sorted(file for inner in folders if (file := split_file(inner, "test")))
    if not files:
        raise InputError(f"no test.tsv in {folder} or its subfolders: name the folder of the NER data sets")
    return files


def find_within(texts: Iterable[str], sentences: Iterable[str]) -> Iterator[set[str]]:
    """Yield which sentences each text contains; those with fewer than 40 letters and digits aren't searched for.

    Args:
        texts: as `normalised` returns them.
        sentences: as `normalised` returns them.
    """
    forms = list(dict.fromkeys(form for form in sentences if len(form) >= SHORTEST))
    automaton = _build(forms)
    for text in texts:
        yield {forms[number] for _, number in automaton.iter(text)} if forms else set()


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    """Write what was found as a tab-separated table: document, sets, sentence."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("document\tsets\tsentence\n")
        file.writelines(f"{number}\t{', '.join(sets)}\t{sentence}\n" for number, sets, sentence in dropped)


def normalised(text: str) -> str:
    """Return the letters and digits of a text in NFKC and lower case."""
    return _NO_WORD.sub("", unicodedata.normalize("NFKC", text).lower())


def _by_form(test_sentences: Mapping[str, Iterable[str]]) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return the sets and the spelling of each sentence that is long enough, by its normalised form."""
    forms: dict[str, tuple[tuple[str, ...], str]] = {}
    for name, sentences in test_sentences.items():
        for sentence in sentences:
            form = normalised(sentence)
            if len(form) < SHORTEST:
                continue
            sets, wording = forms.get(form, ((), sentence))
            forms[form] = (sets if name in sets else (*sets, name), wording)
    return forms


@lru_cache(maxsize=1)
def _automaton(forms: tuple[str, ...]) -> ahocorasick.Automaton:
    return _build(forms)


def _build(forms: Iterable[str]) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for number, form in enumerate(forms):
        automaton.add_word(form, number)
    automaton.make_automaton()
    return automaton


def _hits(batch: dict[str, list[str]], forms: list[str], rule: str) -> dict[str, list[list[int]]]:
    """Return the numbers of the sentences in each document."""
    if not forms:
        return {"hits": [[] for _ in batch["text"]]}
    automaton = _automaton(tuple(forms))
    return {"hits": [sorted({number for _, number in automaton.iter(normalised(text))}) for text in batch["text"]]}
