"""Tokenize texts of any length into windows that fit a model, and merge labelled words into entities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.corpus.sentences import sentence_starts
from bioptimus_hf.corpus.tags import BEGINNING, OUTSIDE, Tag
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import longest_input
from bioptimus_hf.ner.calibration import score_of_entity
from bioptimus_hf.ner.options import Context
from bioptimus_hf.ner.text_words import PunctuationInWords, keep_graphemes
from bioptimus_hf.ner.windows import (
    document_window,
    first_words,
    sentence_window,
    spans_of_sentences,
    spans_of_text,
)
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
        first_words: numbers of words that begin a sentence, where no entity continues; empty if entities may cross
            sentences.
        labels: predicted label ids of shape (heads, words).
        scores: probabilities of these labels, float32 of the same shape.
    """

    def __init__(
        self,
        text: str,
        starts: Array,
        ends: Array,
        windows: list[TextWindow],
        *,
        heads: int,
        first_words: Iterable[int] = (),
    ) -> None:
        self.text = text
        self.starts = starts
        self.ends = ends
        self.windows = windows
        self.first_words = frozenset(first_words)
        self.labels = np.zeros((heads, len(starts)), dtype=np.int64)
        self.scores = np.zeros((heads, len(starts)), dtype=np.float32)

    def entities(self, head: int, tags: Mapping[int, Tag], *, strict: bool = False) -> Iterator[Entity]:
        """Yield the entities that a head predicts, in the order of the text.

        Args:
            head: number of the head (row of `labels`).
            tags: what each label id stands for.
            strict: no entity begins with `I-`, as in strict IOB2.
        """
        outside = [label for label, tag in tags.items() if tag.mark == OUTSIDE]
        labels = self.labels[head]
        first = last = -2
        for word in np.flatnonzero(~np.isin(labels, outside)).tolist():
            follows = word == last + 1 and word not in self.first_words
            if not follows or not tags[labels[word]].continues(tags[labels[last]]):
                if first >= 0:
                    yield from self._entity(head, first, last, tags[labels[first]].type)
                first = word if not strict or tags[labels[word]].mark in BEGINNING else -1
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
        context: what a window holds. `sentence`: a single sentence. `document`: a sentence with its neighbours as
            context if the model was trained with these, otherwise as many sentences as fit, all of them labelled. By
            default what the model was trained with, and as many sentences as fit if `config` doesn't say.

    Attributes:
        trained_with: the context that the model was trained with, if `config` says.
        reads_neighbours: whether a window holds the neighbours of the sentence that it labels.

    Raises:
        InputError: the tokenizer doesn't report offsets (a slow tokenizer), or a window has no room for a word.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, context: Context | None = None
    ) -> None:
        self._encoder = WordEncoder(tokenizer)
        self._punctuation = PunctuationInWords.of(config)
        of_sentence, of_document = sentence_window(config), document_window(config)
        said: Context | None = "document" if of_document else "sentence" if of_sentence else None
        alone = (context or said) == "sentence"
        self.trained_with = said
        self.reads_neighbours = not alone and of_document is not None
        # A window labels one sentence, so no entity extends over several.
        self._by_sentence = alone or self.reads_neighbours
        longest = longest_input(config, tokenizer)
        window = min(longest, (of_sentence if alone else of_document) or longest)
        self._room = window - len(self._encoder.begin) - len(self._encoder.end)
        if self._room < 1:
            raise InputError(f"the model's windows of {window} word pieces have no room for a word")

    def is_equivalent_to(self, other: TextTokenizer) -> bool:
        """Tell whether both divide every text into the same windows."""
        return self._key == other._key

    @property
    def _key(self) -> tuple[str, int, bool, bool, PunctuationInWords]:
        return self._encoder.key, self._room, self._by_sentence, self.reads_neighbours, self._punctuation

    def tokenize(
        self, texts: Sequence[str], sentences: Sequence[Sequence[int] | None] | None = None, *, heads: int = 1
    ) -> list[TokenizedText]:
        """Tokenize texts and divide them into windows.

        Args:
            texts: the texts.
            sentences: first character of each sentence of each text, where they are known: then a window labels a
                single sentence, whatever the model was trained with. By default they are found, if they matter.
            heads: how many heads will label the words.
        """
        tokenized = []
        encodings = self._encoder.encode_texts(texts, self._begin_words)
        for text, known, encoded in zip(texts, sentences or [None] * len(texts), encodings, strict=True):
            keep_graphemes(text, encoded.starts, encoded.ends)
            by_sentence = self._by_sentence or known is not None
            of_words = self._sentences(text, encoded, known)
            windows = list(self._windows(encoded, of_words, by_sentence=by_sentence))
            begins = first_words(of_words) if by_sentence else ()
            tokenized.append(
                TokenizedText(text, encoded.starts, encoded.ends, windows, heads=heads, first_words=begins)
            )
        return tokenized

    def pad(self, windows: Sequence[TextWindow]) -> dict[str, torch.Tensor]:
        """Return the inputs of a model for windows: `input_ids` and `attention_mask`, int64 of (windows, pieces)."""
        lengths = np.array([len(window.ids) for window in windows])
        ids = np.full((len(windows), lengths.max()), self._encoder.pad)
        for row, window in zip(ids, windows, strict=True):
            row[: len(window.ids)] = window.ids
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def _begin_words(self, text: str, starts: Array, ends: Array) -> Array:
        """Return which of BERT's words begin a word of the head."""
        if self._punctuation == PunctuationInWords():
            return np.ones(len(starts), dtype=bool)
        return self._punctuation.first_words(text, starts, ends, frozenset(sentence_starts(text)))

    def _sentences(self, text: str, encoded: EncodedText, known: Sequence[int] | None) -> Array:
        """Return the number of the sentence of each word; a text that is read as a whole counts as one."""
        if known is None and len(encoded.ids) <= self._room and not self._by_sentence:
            return np.zeros(len(encoded.starts), dtype=np.int64)
        starts = sentence_starts(text) if known is None else known
        return np.searchsorted(starts[1:], encoded.starts, side="right")

    def _windows(self, encoded: EncodedText, sentences: Array, *, by_sentence: bool) -> Iterator[TextWindow]:
        """Divide a text between sentences, or between words where a sentence doesn't fit."""
        ids, first, room = encoded.ids, encoded.first, self._room
        sizes = np.diff(first, append=len(ids))
        if (sizes > room).any():  # a word that doesn't fit is truncated
            ids = ids[np.arange(len(ids)) - np.repeat(first, sizes) < room]
            sizes = np.minimum(sizes, room)
            first = np.cumsum(sizes) - sizes
        begin, end = self._encoder.begin, self._encoder.end
        for left, right, own_left, own_right in self._spans(sizes, sentences, by_sentence=by_sentence):
            pieces = ids[first[left] : first[right - 1] + sizes[right - 1]]
            window = np.concatenate([begin, pieces, end]).astype(np.int64)
            yield TextWindow(window, own_left, len(begin) + first[own_left:own_right] - first[left])

    def _spans(self, sizes: Array, sentences: Array, *, by_sentence: bool) -> Iterator[tuple[int, int, int, int]]:
        """Yield windows over the words of a text, which begin and end between sentences where these fit."""
        if by_sentence:
            return spans_of_sentences(sizes, sentences, self._room, neighbours=self.reads_neighbours)
        return spans_of_text(sizes, sentences, self._room)
