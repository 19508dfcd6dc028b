"""Find the words of texts, and encode words as the pieces of any fast tokenizer.

Heads are trained on words that are given as such (CoNLL). Whether a word is encoded the same in a text depends on the
tokenizer. WordPiece separates words at white space and punctuation, and encodes each of them by itself. Byte-level BPE
and SentencePiece encode the start of a word differently after a blank than after, say, an opening bracket, and don't
report where words begin. For these, texts are divided into words as WordPiece would do it, and the tokenizer is given
the words, as in training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.models import describe_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Array = npt.NDArray[Any]

_BY_PUNCTUATION = pre_tokenizers.BertPreTokenizer()
_BY_IDEOGRAPH = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=False)


@dataclass(frozen=True)
class EncodedText:
    """The pieces and words of a text.

    Attributes:
        ids: ids of the pieces, without those that mark the beginning and the end of a text.
        first: position in `ids` of the first piece of each word.
        starts: first character of each word.
        ends: the character after the last one of each word.
    """

    ids: Array
    first: Array
    starts: Array
    ends: Array


def _all(text: str, starts: Array, ends: Array) -> Array:
    return np.ones(len(starts), dtype=bool)


class WordEncoder:
    """Encodes words as the pieces of a tokenizer.

    Special tokens that occur in a text, such as `[SEP]`, are plain text.

    Args:
        tokenizer: a fast tokenizer.

    Attributes:
        begin: ids that the tokenizer puts before a text, `[CLS]` in BERT.
        end: ids that it puts after a text, `[SEP]` in BERT.
        pad: id that fills up shorter rows of a batch.
        key: equal for tokenizers that encode every text the same.

    Raises:
        InputError: the tokenizer doesn't report the offsets of its tokens (a slow tokenizer).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        description = describe_tokenizer(tokenizer)
        self._finds_words = bool(description["model"].get("continuing_subword_prefix"))
        self.key = json.dumps(description, sort_keys=True)
        self._backend = Tokenizer.from_str(self.key)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # they are plain text in a text
        probe = self._backend.encode("a")
        own = np.flatnonzero(np.array(probe.special_tokens_mask) == 0)
        self.begin, self.end = probe.ids[: own[0]], probe.ids[own[-1] + 1 :]
        self.pad = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self._unknown = self.pad if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> Iterator[list[list[int]]]:
        """Yield the ids of the pieces of each word of each sentence; a word without pieces becomes the unknown one."""
        encodings = self._backend.encode_batch(
            [list(map(with_blanks, words)) for words in sentences], is_pretokenized=True, add_special_tokens=False
        )
        for words, encoding in zip(sentences, encodings, strict=True):
            pieces: list[list[int]] = [[] for _ in words]
            for number, word in zip(encoding.ids, encoding.word_ids, strict=True):
                pieces[cast(int, word)].append(number)
            yield [word or [self._unknown] for word in pieces]

    def encode_texts(
        self, texts: Sequence[str], first_words: Callable[[str, Array, Array], Array] = _all
    ) -> Iterator[EncodedText]:
        """Yield the words and pieces of each text; words without pieces are left out.

        Args:
            texts: the texts.
            first_words: given a text with the starts and the ends of BERT's words, says which of them begin a word
                (bool); the others belong to the word before them. By default, all of them do.
        """
        texts = list(map(with_blanks, texts))
        if self._finds_words:
            for text, encoding in zip(texts, self._backend.encode_batch(texts, add_special_tokens=False), strict=True):
                word = np.array(encoding.word_ids, dtype=np.int64)
                first = np.flatnonzero(np.diff(word, prepend=-1))
                last = np.append(first[1:], len(word)) - 1 if len(word) else first
                offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
                starts, ends = offsets[first, 0], offsets[last, 1]
                begin = first_words(text, starts, ends)
                ids = np.array(encoding.ids, dtype=np.int64)
                yield EncodedText(ids, first[begin], starts[begin], ends[_last_words(begin)])
            return
        spans = [_joined(text, words_of(text), first_words) for text in texts]
        words = [[text[start:end] for start, end in own] for text, own in zip(texts, spans, strict=True)]
        encodings = self._backend.encode_batch(words, is_pretokenized=True, add_special_tokens=False)
        for own, encoding in zip(spans, encodings, strict=True):
            word = np.array(encoding.word_ids, dtype=np.int64)
            first = np.flatnonzero(np.diff(word, prepend=-1))
            offsets = np.array(own, dtype=np.int64).reshape(-1, 2)[word[first]]
            yield EncodedText(np.array(encoding.ids, dtype=np.int64), first, offsets[:, 0], offsets[:, 1])


def _last_words(begin: Array) -> Array:
    """Return which words end one, given which begin one."""
    return np.append(begin[1:], True)[: len(begin)]


def _joined(
    text: str, spans: list[tuple[int, int]], first_words: Callable[[str, Array, Array], Array]
) -> list[tuple[int, int]]:
    starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    begin = first_words(text, starts, ends)
    return list(zip(starts[begin].tolist(), ends[_last_words(begin)].tolist(), strict=True))


def words_of(text: str) -> list[tuple[int, int]]:
    """Return the start and the end of each word of a text.

    Words are separated by white space; a punctuation mark and an ideograph are words of their own, as in BERT.
    """
    spans: list[tuple[int, int]] = []
    for word, (start, end) in _BY_PUNCTUATION.pre_tokenize_str(text):
        if word.isascii():
            spans.append((start, end))
            continue
        # The normaliser puts blanks around each ideograph.
        place = start
        for part in _BY_IDEOGRAPH.normalize_str(word).split(" "):
            if part:
                spans.append((place, place + len(part)))
                place += len(part)
    return spans
