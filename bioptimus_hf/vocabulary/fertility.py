"""Measure how vocabularies split held-out text: pieces per word, whole words and unknown words, at every size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError
from bioptimus_hf.plots import save_plot
from bioptimus_hf.vocabulary.tokenizer import MARK, build_tokenizer
from bioptimus_hf.vocabulary.training import count_words

_SIZES = 10  # points on the curve


@dataclass(frozen=True)
class Segmentation:
    """How a vocabulary splits a text.

    Attributes:
        words: number of words in the text.
        pieces: number of pieces that they are split into. An unknown word is a single piece.
        whole: number of words that are a single, known token.
        unknown: number of words that become [UNK].
    """

    words: int
    pieces: int
    whole: int
    unknown: int

    @property
    def fertility(self) -> float:
        """Mean number of pieces per word."""
        return self.pieces / self.words

    def facts(self) -> dict[str, float]:
        """Return fertility and the shares of whole and unknown words, for JSON."""
        return {
            "fertility": self.fertility,
            "whole_words": self.whole / self.words,
            "unknown_words": self.unknown / self.words,
        }


@dataclass(frozen=True)
class SegmentationReport:
    """How the base vocabulary, and the new vocabulary at increasing sizes, split the same text.

    Attributes:
        base_size: number of tokens in the base vocabulary.
        base: how the base vocabulary splits the text.
        by_size: number of tokens to how a vocabulary of that size splits the text. The last size is that of the
            vocabulary itself; the others are prefixes of it, which is what training with a smaller size would give.
    """

    base_size: int
    base: Segmentation
    by_size: dict[int, Segmentation]

    def facts(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "held_out_words": self.base.words,
            "base": {"size": self.base_size, **self.base.facts()},
            "sizes": [{"size": size, **split.facts()} for size, split in self.by_size.items()],
        }

    def markdown(self) -> str:
        """Return the report as Markdown. It shows `fertility.png`, which `plot` draws."""
        lines = [
            f"# The vocabulary on {self.base.words:,} held-out words",
            "",
            "| vocabulary | pieces per word | whole words | unknown words |",
            "| --- | --- | --- | --- |",
        ]
        rows = [(f"base, {self.base_size:,} tokens", self.base)]
        rows += [(f"{size:,} tokens", split) for size, split in self.by_size.items()]
        lines += [
            f"| {name} | {split.fertility:.3f} | {split.whole / split.words:.1%} | {split.unknown / split.words:.3%} |"
            for name, split in rows
        ]
        lines += [
            "",
            "![Pieces per word by vocabulary size](fertility.png)",
            "",
            "Each row shows what training with that size gives. A larger vocabulary shortens the text but has more "
            "embeddings to learn: where the curve is flat, additional tokens gain little.",
        ]
        return "\n".join(lines) + "\n"

    def plot(self, path: Path) -> None:
        """Plot pieces per word against vocabulary size."""

        def draw(axes: Any) -> None:
            axes.plot(list(self.by_size), [split.fertility for split in self.by_size.values()], marker=".", label="new")
            axes.plot(self.base_size, self.base.fertility, "s", label="base")
            axes.set(xlabel="vocabulary size (tokens)", ylabel="pieces per held-out word")
            axes.legend()

        save_plot(path, draw)


def segment(words: Mapping[str, int], tokenizer: PreTrainedTokenizerBase) -> Segmentation:
    """Split words into pieces, and count each word as often as it occurs.

    Args:
        words: word to its count, from `count_words`.
        tokenizer: WordPiece tokenizer that splits them.

    Raises:
        InputError: there are no words.
    """
    if not words:
        raise InputError("no words to measure the vocabulary on: use more text, or hold out a larger share of it")
    split, unknown_token = tokenizer.backend_tokenizer.model.tokenize, tokenizer.unk_token
    total = whole = unknown = 0
    for word, count in words.items():
        pieces = [piece.value for piece in split(word)]
        total += count * len(pieces)
        if pieces == [unknown_token]:
            unknown += count
        elif len(pieces) == 1:
            whole += count
    return Segmentation(words=sum(words.values()), pieces=total, whole=whole, unknown=unknown)


@check_call()
def fertility(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> float:
    """Return the mean number of pieces per word, where words are those of the tokenizer's pre-tokenizer.

    Raises:
        InputError: the texts contain no word, or the tokenizer is not a WordPiece tokenizer.
    """
    return segment(count_words(texts, like=tokenizer), tokenizer).fertility


def report_vocabulary(
    vocabulary: Sequence[str], texts: Iterable[str], *, like: PreTrainedTokenizerBase
) -> SegmentationReport:
    """Measure a vocabulary, prefixes of it and the base vocabulary on held-out texts.

    Args:
        vocabulary: tokens sorted by id, from `train_vocabulary` or `extend_vocabulary`.
        texts: documents that the vocabulary was not trained on.
        like: tokenizer of the base model.

    Raises:
        InputError: the texts contain no word, or `like` is not a WordPiece tokenizer.
    """
    words = count_words(texts, like=like)
    smallest = _smallest_size(vocabulary, like)
    sizes = np.unique(np.geomspace(smallest, len(vocabulary), _SIZES).round().astype(int)).tolist()
    by_size = {size: segment(words, build_tokenizer(vocabulary[:size], like=like)) for size in sizes}
    return SegmentationReport(len(like), segment(words, like), by_size)


def _smallest_size(vocabulary: Sequence[str], like: PreTrainedTokenizerBase) -> int:
    """Return the size of the whole base vocabulary if it was extended, otherwise that of the alphabet."""
    if list(vocabulary[: len(like)]) == like.convert_ids_to_tokens(list(range(len(like)))):
        return len(like)
    special = set(like.all_special_tokens)
    merged = (
        token_id
        for token_id, token in enumerate(vocabulary)
        if token not in special and len(token.removeprefix(MARK)) > 1
    )
    return next(merged, len(vocabulary))
