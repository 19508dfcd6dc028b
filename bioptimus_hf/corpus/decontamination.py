"""Keep test sentences out of pre-training text: documents that hold one are found and left out.

The rule: both texts are brought to NFKC and lower case, and all but letters and digits is left out; then a sentence of
40 characters or more is looked for in the whole document. Spacing, punctuation, tokens and the ends of sentences are no
part of this, so it does not matter how either side was cut.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, List, Value

from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.errors import InputError

SHORTEST = 40  # characters, once normalised: shorter sentences stand in many documents by themselves
RULE = f"NFKC, lower case, letters and digits only, at least {SHORTEST} characters"
_BATCH = 100  # documents, some of which are whole books
_BLOCK = 1 << 15  # bytes of which hashes are held at once
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers can be undone
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
_TABLE_BITS = 22
_NO_WORD = re.compile(r"[\W_]+")


class Dropped(NamedTuple):
    """A test sentence in a document.

    Attributes:
        document: the document's number in the corpus.
        sets: the test sets that hold the sentence.
        sentence: the sentence, as the first of them has it.
    """

    document: int
    sets: tuple[str, ...]
    sentence: str


def decontaminate(
    documents: Dataset, test_sentences: Mapping[str, Iterable[str]], *, num_proc: int | None = None
) -> tuple[Dataset, list[Dropped]]:
    """Leave out every document that holds a test sentence, by the rule above.

    Args:
        documents: with the columns `text` and `document`, from `load_corpus`.
        test_sentences: those of each test set, whose words may be parted by blanks; from `read_test_sentences`.
        num_proc: processes; changes no result.

    Returns:
        The documents that are left, with the numbers that they had, and every test sentence found in the others, in
        their order.
    """
    wanted = _by_form(test_sentences)
    forms = list(wanted)
    found = documents.select_columns(["text"]).map(
        _hits,
        batched=True,
        batch_size=_BATCH,
        # Among the arguments of the step, whose cache does not see our code.
        fn_kwargs={"forms": forms, "rule": RULE},
        remove_columns=["text"],
        features=Features(hits=List(Value("int32"))),
        num_proc=num_proc if num_proc and num_proc > 1 else None,
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


def read_test_sentences(folder: str | Path) -> dict[str, list[str]]:
    """Read the test sentences of all NER sets in a folder, by the folder of each set.

    Raises:
        InputError: there are none, or a file of them cannot be read (file and line).
    """
    return {
        file.parent.relative_to(folder).as_posix(): [" ".join(tokens) for tokens, _ in read_conll(file)]
        for file in ner_test_files(folder)
    }


def ner_test_files(folder: str | Path) -> list[Path]:
    """Return every `test.tsv` in a folder and below.

    Raises:
        InputError: there is none.
    """
    files = sorted(file for file in Path(folder).rglob("test.tsv") if file.is_file())
    if not files:
        raise InputError(f"no test.tsv in {folder} or below: name the folder that holds the NER sets")
    return files


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    """Write what was found as a table parted by tabs: document, sets, sentence."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("document\tsets\tsentence\n")
        file.writelines(f"{number}\t{', '.join(sets)}\t{sentence}\n" for number, sets, sentence in dropped)


def normalized(text: str) -> str:
    """Return what is compared of a text."""
    return _NO_WORD.sub("", unicodedata.normalize("NFKC", text).lower())


def _by_form(test_sentences: Mapping[str, Iterable[str]]) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return the sets and the wording of each normalised sentence that is long enough."""
    forms: dict[str, tuple[tuple[str, ...], str]] = {}
    for name, sentences in test_sentences.items():
        for sentence in sentences:
            form = normalized(sentence)
            if len(form) < SHORTEST:
                continue
            sets, wording = forms.get(form, ((), sentence))
            forms[form] = (sets if name in sets else (*sets, name), wording)
    return forms


class _Finder:
    """Finds sentences in text by a hash of their first bytes, rolled over the text; then they are compared in full.

    The hash of bytes b is the sum of b[i] * BASE**i, modulo 2**64: what a window of them is worth is the difference of
    two running sums, divided by the power that its place stands for.
    """

    def __init__(self, forms: Sequence[str]) -> None:
        self._table = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        self._forms: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self._powers = np.cumprod(np.full(_BLOCK + SHORTEST, _BASE), dtype=np.uint64)
        self._inverses = np.cumprod(np.full(_BLOCK, _INVERSE), dtype=np.uint64)
        for number, form in enumerate(forms):
            content = form.encode()
            (value,) = self._hashes(np.frombuffer(content[:SHORTEST], dtype=np.uint8))
            self._forms[int(value)].append((number, content))
            self._table[value >> np.uint64(64 - _TABLE_BITS)] = True

    def find(self, content: bytes) -> Iterator[tuple[int, int]]:
        """Yield the place of each sentence in normalised text, in bytes, and its number."""
        codes = np.frombuffer(content, dtype=np.uint8)
        for start in range(0, len(codes), _BLOCK):
            hashes = self._hashes(codes[start : start + _BLOCK + SHORTEST - 1])
            for place in np.flatnonzero(self._table[hashes >> np.uint64(64 - _TABLE_BITS)]).tolist():
                for number, form in self._forms.get(int(hashes[place]), ()):
                    if content.startswith(form, start + place):
                        yield start + place, number

    def _hashes(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
        """Return the hash of every window of the shortest length."""
        sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum(codes * self._powers[: len(codes)], out=sums[1:])
        windows = max(len(codes) - SHORTEST + 1, 0)
        hashes: npt.NDArray[np.uint64] = (sums[SHORTEST:] - sums[:windows]) * self._inverses[:windows]
        return hashes


@lru_cache(maxsize=1)
def _finder(forms: tuple[str, ...]) -> _Finder:
    return _Finder(forms)


def _hits(batch: dict[str, list[str]], forms: list[str], rule: str) -> dict[str, list[list[int]]]:
    """Return the numbers of the sentences in each document."""
    contents = [normalized(text).encode() for text in batch["text"]]
    # Put together, so that short documents cost no more; no sentence reaches over the line break between two.
    ends = list(accumulate(len(content) + 1 for content in contents))
    hits: list[set[int]] = [set() for _ in contents]
    for place, number in _finder(tuple(forms)).find(b"\n".join(contents)):
        hits[bisect(ends, place)].add(number)
    return {"hits": [sorted(numbers) for numbers in hits]}
