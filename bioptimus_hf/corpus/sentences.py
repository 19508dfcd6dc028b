"""Split documents into sentences."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING

import numpy as np
import sentencex

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.sentence_rules import Offsets, corrected, stops_of_texts
from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

# An argument of the `map` step, because the cache sees neither our code nor that of the library.
SPLITTER = f"sentencex {importlib.metadata.version('sentencex')}, masked 1, rules 1"

_LONG_SENTENCE = 1000  # characters
_TEXT_TYPES = ("string", "large_string", "string_view")

# sentencex panics, and takes the process with it, on a capital letter and a full stop with such a space between them.
_WIDE_SPACES = "\t\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"

# sentencex takes "3)" and "(iii)" for list items that reach to the next one, and "<" and ">" for brackets, within which
# no sentence ends. Curly brackets are brackets for it too, but never number list items.
_MASKED = {"(": "{", ")": "}", "<": "=", ">": "="}

_WITHOUT_PAIRS = str.maketrans(dict.fromkeys("{}[]\"'`“”„‟‘’‚‛«»‹›《》「」•⁃⁌⁍■□▪▫▶▸►◆◇○●◦★☆➢➣➤", " "))


@check_call(dataset=("text",))
def split_sentences(dataset: Dataset, *, num_proc: int | None = None) -> Dataset:
    """Split documents into sentences with sentencex, which knows "e.g.", "Fig. 2" and "et al.".

    Args:
        dataset: documents, with the column `text` and, optionally, `document`. Without it, the number of a document is
            that of its row. A missing text has no sentences.
        num_proc: number of processes; doesn't change the result.

    Returns:
        A data set with a row per sentence: `text` (stripped) and `document`.

    Raises:
        InputError: it isn't a data set of rows that can be read again, or has no column `text` that contains strings.
    """
    from datasets import Dataset, Features, Value  # reading files must not load `datasets`

    from bioptimus_hf.corpus.cache import cached_map

    dataset, form = checked_texts(dataset), dataset.format["type"]
    numbered = "document" in dataset.column_names
    document = dataset.features["document"] if numbered else Value("int64")
    if document.dtype == "null" or "int" in document.dtype:
        document = Value("int64")
    features = Features({"text": Value("string"), "document": document})
    if not len(dataset):  # `map` would return the documents themselves
        return Dataset.from_dict({name: [] for name in features}, features=features).with_format(form)
    sentences = cached_map(
        dataset.select_columns(["text", "document"] if numbered else ["text"]).with_format("arrow"),
        _sentences if numbered else _sentences_of_rows,
        kind="sentences",
        fn_kwargs={"splitter": SPLITTER},
        with_indices=not numbered,
        features=features,
        num_proc=num_proc,
        desc="Splitting sentences",
    )
    return sentences.with_format(form)


def checked_texts(dataset: Dataset) -> Dataset:
    """Return a data set, whose column `text` has the type string even if there is no text in it.

    Raises:
        InputError: the column `text` contains something else than strings.
    """
    from datasets import Dataset, Features, Value

    kind = dataset.features["text"]
    if getattr(kind, "dtype", None) == "null":  # no rows, or none with a text
        if len(dataset):
            return dataset.cast_column("text", Value("string"))
        features = Features({**dataset.features, "text": Value("string")})  # `cast_column` would change nothing
        return Dataset.from_dict({name: [] for name in features}, features=features)
    if getattr(kind, "dtype", None) not in _TEXT_TYPES:
        shown = getattr(kind, "dtype", type(kind).__name__.lower())
        raise InputError(f"the column 'text' must contain strings, not {shown}", argument="dataset")
    return dataset


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a document, stripped."""
    start = 0
    for end in _sentence_ends(text):
        if stripped := text[start:end].strip():
            yield stripped
        start = end


def sentence_starts(text: str) -> list[int]:
    """Return the offsets at which the sentences of a text begin."""
    return [0, *_sentence_ends(text)][:-1]


def _sentences_of_rows(batch: pa.Table, rows: list[int], splitter: str) -> pa.Table:
    import pyarrow as pa

    return _sentences(batch.append_column("document", pa.array(rows, pa.int64())), splitter)


def _sentences(batch: pa.Table, splitter: str) -> pa.Table:
    """Return a row for each sentence. They are cut out of the texts in Arrow, without a Python string for each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = [text or "" for text in batch["text"].to_pylist()]
    encoded = list(map(str.encode, texts))
    data = b"".join(encoded)
    text_ends = np.cumsum(list(map(len, encoded)), dtype=np.int64)
    ends = _ends_in_bytes(texts, data, text_ends)
    offsets = np.concatenate([[0], ends])
    pieces = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
    sentences = pc.utf8_trim_whitespace(pieces)  # like `str.strip`
    documents = batch["document"].combine_chunks().take(pa.array(np.searchsorted(text_ends, ends)))
    filled = pc.greater(pc.binary_length(sentences), 0)
    return pa.table({"text": sentences.filter(filled), "document": documents.filter(filled)})


def _ends_in_bytes(texts: Sequence[str], data: bytes, text_ends: Offsets) -> Offsets:
    """Return the offsets at which the sentences of texts end.

    Args:
        texts: the texts.
        data: the texts in UTF-8, one after the other.
        text_ends: the offset in `data` at which each text ends.
    """
    sizes: list[int] = []
    firsts = []  # number of the first sentence of each text
    for text in texts:
        firsts.append(len(sizes))
        sizes += _split(_masked(_with_spaces(text))) if text.isascii() else _sizes_in_bytes(text)
    firsts.append(len(sizes))
    ends = np.cumsum(sizes, dtype=np.int64)
    pieces, done = [], 0
    for number, stops in sorted(stops_of_texts(data, ends, text_ends).items()):
        text, first, after = texts[number], firsts[number], firsts[number + 1]
        as_split = list(accumulate(sizes[first:after]))
        if text.isascii() and (right := corrected(_with_spaces(text), as_split, stops)) is not as_split:
            pieces += [ends[done:first], np.array(right) + (text_ends[number] - len(text))]
            done = after
    return np.concatenate([*pieces, ends[done:]])


def _sizes_in_bytes(text: str) -> list[int]:
    return [len(text[start:end].encode()) for start, end in pairwise([0, *_sentence_ends(text)])]


def _sentence_ends(text: str) -> list[int]:
    """Return the offsets at which the sentences of a text end; the last one is the length of the text."""
    text = _with_spaces(text)
    return corrected(text, list(accumulate(_split(_masked(text)))))


def _with_spaces(text: str) -> str:
    """Replace separators and rare spaces by spaces. The text keeps its length."""
    text = with_blanks(text)
    for space in _WIDE_SPACES if not text.isascii() else "\t":
        text = text.replace(space, " ")
    return text


def _masked(text: str) -> str:
    for character, harmless in _MASKED.items():
        text = text.replace(character, harmless)
    return text


def _split(masked: str) -> list[int]:
    """Return the lengths of the sentences that sentencex finds in a masked text."""
    sizes = list(map(len, sentencex.segment("en", masked)))
    if len(masked) <= _LONG_SENTENCE or max(sizes) <= _LONG_SENTENCE:
        return sizes
    # sentencex ends no sentence between an opening and a closing bracket or quotation mark, however far apart.
    parts: Iterable[list[int]] = (
        [size]
        if size <= _LONG_SENTENCE
        else list(map(len, sentencex.segment("en", masked[end - size : end].translate(_WITHOUT_PAIRS))))
        for size, end in zip(sizes, accumulate(sizes), strict=True)
    )
    return list(chain.from_iterable(parts))
