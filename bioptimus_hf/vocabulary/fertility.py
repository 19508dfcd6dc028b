"""How vocabularies cut a held-out text: pieces per word, whole and unknown words, at every size to choose one by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.errors import InputError
from bioptimus_hf.plots import save_plot
from bioptimus_hf.vocabulary.tokenizer import MARK, build_tokenizer
from bioptimus_hf.vocabulary.training import count_words

_SIZES = 10  # points of the curve


@dataclass(frozen=True)
class Segmentation:
    """What a vocabulary makes of running words.

    Attributes:
        words: how many there are.
        pieces: into how many pieces they are cut; an unknown word is one.
        whole: words that are a single token, and known.
        unknown: words that become [UNK].
    """

    words: int
    pieces: int
    whole: int
    unknown: int

    @property
    def fertility(self) -> float:
        """Mean number of pieces of a word."""
        return self.pieces / self.words

    def facts(self) -> dict[str, float]:
        """Return fertility and shares, for JSON."""
        return {
            "fertility": self.fertility,
            "whole_words": self.whole / self.words,
            "unknown_words": self.unknown / self.words,
        }


@dataclass(frozen=True)
class SegmentationReport:
    """The base's vocabulary and the new one at growing sizes, on the same text.

    Attributes:
        base_size: tokens of the base.
        base: what it makes of the text.
        by_size: number of tokens to what a vocabulary of so many makes of it; the last is the one that was made. A
            vocabulary is made token by token, so each smaller one is what a smaller `--size` would have given.
    """

    base_size: int
    base: Segmentation
    by_size: dict[int, Segmentation]

    def facts(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "held_out_words": self.base.words,
            "base": {"size": self.base_size, **self.base.facts()},
            "sizes": [{"size": size, **found.facts()} for size, found in self.by_size.items()],
        }

    def markdown(self) -> str:
        """Return a page to read; it shows `fertility.png`, from `plot`."""
        lines = [
            f"# The vocabulary on {self.base.words:,} held-out words",
            "",
            "| vocabulary | pieces per word | words that stay whole | unknown words |",
            "| --- | --- | --- | --- |",
        ]
        rows = [(f"base, {self.base_size:,} tokens", self.base)]
        rows += [(f"{size:,} tokens", found) for size, found in self.by_size.items()]
        lines += [
            f"| {name} | {found.fertility:.3f} | {found.whole / found.words:.1%} | {found.unknown / found.words:.3%} |"
            for name, found in rows
        ]
        lines += [
            "",
            "![pieces per word by vocabulary size](fertility.png)",
            "",
            "Each size is what a smaller `--size` gives. A larger vocabulary makes text shorter, and has more rows to "
            "learn: where the curve is flat, more of them buy little.",
        ]
        return "\n".join(lines) + "\n"

    def plot(self, path: Path) -> None:
        """Draw pieces per word against the size of the vocabulary."""

        def draw(axes: Any) -> None:
            axes.plot(list(self.by_size), [found.fertility for found in self.by_size.values()], marker=".", label="new")
            axes.plot(self.base_size, self.base.fertility, "s", label="base")
            axes.set(xlabel="tokens in the vocabulary", ylabel="pieces per word, held-out text")
            axes.legend()

        save_plot(path, draw)


def segment(words: Mapping[str, int], tokenizer: PreTrainedTokenizerBase) -> Segmentation:
    """Cut words, each as often as it is counted.

    Args:
        words: from `vocabulary.count_words`.

    Raises:
        InputError: there are none.
    """
    if not words:
        raise InputError("no words to measure a vocabulary on: give more text, or a larger --validation_share")
    cut, unknown_token = tokenizer.backend_tokenizer.model.tokenize, tokenizer.unk_token
    pieces = whole = unknown = 0
    for word, count in words.items():
        found = [piece.value for piece in cut(word)]
        pieces += count * len(found)
        if found == [unknown_token]:
            unknown += count
        elif len(found) == 1:
            whole += count
    return Segmentation(sum(words.values()), pieces, whole, unknown)


def fertility(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> float:
    """Return the mean number of word pieces a word is cut into; words are those of the pre-tokenizer.

    Raises:
        InputError: there is no word in the texts, or the tokenizer is not of BERT's kind.
    """
    return segment(count_words(texts, like=tokenizer), tokenizer).fertility


def report_vocabulary(
    vocabulary: Sequence[str], texts: Iterable[str], *, like: PreTrainedTokenizerBase
) -> SegmentationReport:
    """Measure a vocabulary, its beginnings and that of the base on held-out texts.

    Args:
        vocabulary: from `train_vocabulary` or `extend_vocabulary`.
        texts: documents that it was not trained on.
        like: the base's tokenizer.

    Raises:
        InputError: there is no word in the texts, or the base's tokenizer is not of BERT's kind.
    """
    words = count_words(texts, like=like)
    smallest = _head(vocabulary, like)
    sizes = np.unique(np.geomspace(smallest, len(vocabulary), _SIZES).round().astype(int)).tolist()
    by_size = {size: segment(words, build_tokenizer(vocabulary[:size], like=like)) for size in sizes}
    return SegmentationReport(len(like), segment(words, like), by_size)


def _head(vocabulary: Sequence[str], like: PreTrainedTokenizerBase) -> int:
    """Return how many tokens every size has: all of the base's where it was extended, or else the single characters."""
    if list(vocabulary[: len(like)]) == like.convert_ids_to_tokens(list(range(len(like)))):
        return len(like)
    special = set(like.all_special_tokens)
    merged = (
        place for place, token in enumerate(vocabulary) if token not in special and len(token.removeprefix(MARK)) > 1
    )
    return next(merged, len(vocabulary))
