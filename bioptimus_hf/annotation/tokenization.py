"""Tokenize texts of any length into windows that fit a model, and merge labelled words into entities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.corpus.sentences import sentence_starts
from bioptimus_hf.corpus.tags import OUTSIDE, Tag
from bioptimus_hf.models import longest_input
from bioptimus_hf.ner.calibration import score_of_entity
from bioptimus_hf.ner.text_words import keep_graphemes
from bioptimus_hf.ner.windows import OVERLAP, document_window, spans_of_words
from bioptimus_hf.ner.word_pieces import EncodedText, WordEncoder

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TextWindow:
    """A stretch of a text that fits the model.

    Attributes:
        ids: ids of the word pieces, including those that begin and end a text ([CLS] and [SEP] in BERT).
        first_word: number of the first word that this window labels; other words are context.
        places: positions in `ids` of the first pieces of the words that this window labels.
    """

    ids: Array
    first_word: int
    places: Array


class TokenizedText:
    """The words of a text, their windows, and the labels that several heads predict for them.

    Attributes:
        text: the text.
        starts: first character of each word.
        ends: the character after the last one of each word.
        windows: together they label each word exactly once, in order.
        labels: predicted label ids of shape (heads, words).
        scores: probabilities of these labels, float32 of the same shape.
    """

    def __init__(self, text: str, starts: Array, ends: Array, windows: list[TextWindow], heads: int) -> None:
        self.text = text
        self.starts = starts
        self.ends = ends
        self.windows = windows
        self.labels = np.zeros((heads, len(starts)), dtype=np.int64)
        self.scores = np.zeros((heads, len(starts)), dtype=np.float32)

    def entities(self, head: int, tags: Mapping[int, Tag]) -> Iterator[Entity]:
        """Yield the entities that a head predicts, in the order of the text.

        Args:
            head: number of the head (row of `labels`).
            tags: what each label id stands for.
        """
        outside = [label for label, tag in tags.items() if tag.mark == OUTSIDE]
        labels = self.labels[head]
        first = last = -2
        for word in np.flatnonzero(~np.isin(labels, outside)).tolist():
            if word != last + 1 or not tags[labels[word]].continues(tags[labels[last]]):
                if first >= 0:
                    yield from self._entity(head, first, last, tags[labels[first]].type)
                first = word
            last = word
        if first >= 0:
            yield from self._entity(head, first, last, tags[labels[first]].type)

    def _entity(self, head: int, first: int, last: int, kind: str) -> Iterator[Entity]:
        """Yield the entity that consists of the words from `first` to `last`, unless they are empty or only whitespace.

        Some tokenizers treat whitespace as words.
        """
        start, end = int(self.starts[first]), int(self.ends[last])
        text = self.text[start:end]
        start, end = end - len(text.lstrip()), start + len(text.rstrip())
        if start >= end:
            return
        score = score_of_entity(self.scores[head, first : last + 1])
        yield Entity(start, end, self.text[start:end], kind, score)


class TextTokenizer:
    """Tokenizes texts and divides them into windows for models of one tokenizer and one maximum length.

    Args:
        tokenizer: a fast tokenizer.
        config: configuration of a model, which limits the length of a window.

    Raises:
        InputError: the tokenizer doesn't report offsets (a slow tokenizer).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        self._encoder = WordEncoder(tokenizer)
        longest = longest_input(config, tokenizer)
        window = min(longest, document_window(config) or longest)
        self._room = window - len(self._encoder.begin) - len(self._encoder.end)

    def is_equivalent_to(self, other: TextTokenizer) -> bool:
        """Tell whether both divide every text into the same windows."""
        return (self._encoder.key, self._room) == (other._encoder.key, other._room)

    def tokenize(self, texts: Sequence[str], *, heads: int = 1) -> list[TokenizedText]:
        """Tokenize texts and divide them into windows.

        Args:
            texts: the texts.
            heads: how many heads will label the words.
        """
        tokenized = []
        for text, encoded in zip(texts, self._encoder.encode_texts(texts), strict=True):
            keep_graphemes(text, encoded.starts, encoded.ends)
            windows = list(self._windows(text, encoded))
            tokenized.append(TokenizedText(text, encoded.starts, encoded.ends, windows, heads))
        return tokenized

    def pad(self, windows: Sequence[TextWindow]) -> dict[str, torch.Tensor]:
        """Return the inputs of a model for windows: `input_ids` and `attention_mask`, int64 of (windows, pieces)."""
        lengths = np.array([len(window.ids) for window in windows])
        ids = np.full((len(windows), lengths.max()), self._encoder.pad)
        for row, window in zip(ids, windows, strict=True):
            row[: len(window.ids)] = window.ids
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def _windows(self, text: str, encoded: EncodedText) -> Iterator[TextWindow]:
        """Divide a text between sentences, or between words where a sentence doesn't fit."""
        ids, first, room = encoded.ids, encoded.first, self._room
        begin, end = self._encoder.begin, self._encoder.end
        if len(ids) <= room:
            if len(ids):
                yield TextWindow(np.concatenate([begin, ids, end]).astype(np.int64), 0, first + len(begin))
            return
        sizes = np.minimum(np.diff(first, append=len(ids)), room)  # a word that doesn't fit is truncated
        starts = sentence_starts(text)[1:]
        sentences = np.searchsorted(starts, encoded.starts, side="right")
        for left, right, own_left, own_right in spans_of_words(sizes, sentences, room, overlap=OVERLAP):
            pieces = [ids[first[word] : first[word] + sizes[word]] for word in range(left, right)]
            places = len(begin) + np.cumsum([0, *map(len, pieces)])[:-1]
            window = np.concatenate([begin, *pieces, end]).astype(np.int64)
            yield TextWindow(window, own_left, places[own_left - left : own_right - left])
