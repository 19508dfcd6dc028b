"""Corpus -> reproducible WordPiece vocabulary -> tokenizer; what it shares with another vocabulary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from tokenizers import Tokenizer, models, trainers
from tokenizers.normalizers import BertNormalizer
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import tokens_in_order
from bioptimus_hf.vocabulary.tokenizer import MARK, _special_tokens, wordpiece_settings

logger = logging.getLogger(__name__)
_LARGEST_ALPHABET = 1000  # as in BERT's own vocabulary; the rest, mostly stray scripts, becomes [UNK]
_TEXTS_AT_ONCE = 1000


def train_vocabulary(
    texts: Iterable[str], *, size: int, like: PreTrainedTokenizerBase, min_frequency: int = 2
) -> list[str]:
    """Train a WordPiece vocabulary that depends on nothing but its arguments.

    The plain trainer numbers the `##x` characters in hash order and breaks ties by these numbers, so that no two runs
    agree (tokenizers issue 1794). Here the alphabet is counted beforehand and handed to it in a fixed order.

    Args:
        texts: documents; read twice, so a list or a data set's column, not an iterator.
        size: number of tokens, special tokens and alphabet among them. A small corpus may give fewer.
        like: tokenizer whose normaliser, pre-tokenizer and special tokens the vocabulary is for.
        min_frequency: least count of a pair to be merged, and of a character to be in the alphabet.

    Returns:
        Tokens in the order of their ids: special tokens, characters, `##` characters, then merged pieces, the most
        frequent first.

    Raises:
        InputError: `like` is no WordPiece tokenizer, the texts are empty, or `size` does not hold the alphabet.
    """
    if iter(texts) is texts:
        raise InputError("train_vocabulary reads the texts twice: give a list or a data set's column, not an iterator")
    wordpiece_settings(like)
    alphabet = _alphabet(texts, like, min_frequency)
    if not alphabet:
        raise InputError("the corpus holds no text to train a vocabulary on")
    specials = _special_tokens(like)
    continuing = [MARK + character for character in alphabet if _can_continue(character, like)]
    head = [*specials, *alphabet, *continuing]
    if size < len(head):
        raise InputError(
            f"--size {size} does not hold the {len(specials)} special tokens and the alphabet of this corpus "
            f"({len(alphabet)} characters, {len(continuing)} of them also as ##): give at least {len(head)}"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=[*specials, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=MARK,
        show_progress=True,
    )
    blank = Tokenizer(models.WordPiece(unk_token=str(like.unk_token)))
    blank.normalizer = like.backend_tokenizer.normalizer
    blank.pre_tokenizer = like.backend_tokenizer.pre_tokenizer
    blank.train_from_iterator(_batches(texts), trainer=trainer)
    trained = blank.get_vocab()
    known = set(head)
    vocabulary = [*head, *sorted(trained.keys() - known, key=trained.__getitem__)]
    if len(vocabulary) < size:
        logger.warning("the corpus is too small for %d tokens: the vocabulary has %d", size, len(vocabulary))
    return vocabulary


def extend_vocabulary(
    texts: Iterable[str], *, size: int, like: PreTrainedTokenizerBase, min_frequency: int = 2
) -> list[str]:
    """Add the words of a corpus to a vocabulary that save the most pieces, up to a size.

    What a word saves is its count times the number of pieces that it is cut into now, less one. The tokens that are
    there keep their ids, so that a model keeps all that it knows; the paper replaces the vocabulary instead.

    Args:
        texts: documents.
        size: number of tokens, those of `like` among them. A small corpus may give fewer.
        like: tokenizer whose vocabulary is extended.
        min_frequency: least count of a word.

    Returns:
        Tokens in the order of their ids: those of `like`, then the words, that which saves the most first.

    Raises:
        InputError: `like` is no WordPiece tokenizer, `size` is no larger than its vocabulary, or the texts are empty.
    """
    old = tokens_in_order(like)
    if size <= len(old):
        raise InputError(f"--size {size} adds nothing to the {len(old)} tokens of the base: give more, or replace them")
    counts = count_words(texts, like=like)
    if not counts:
        raise InputError("the corpus holds no text to take words from")
    known = set(old)
    saved: dict[str, int] = {}
    for word, count in counts.items():
        if count >= min_frequency and word not in known:
            pieces = [piece.value for piece in like.backend_tokenizer.model.tokenize(word)]
            if like.unk_token not in pieces:
                saved[word] = count * (len(pieces) - 1)
    best = sorted(saved, key=lambda word: (-saved[word], word))[: size - len(old)]
    if len(old) + len(best) < size:
        logger.warning("the corpus is too small for %d tokens: the vocabulary has %d", size, len(old) + len(best))
    return [*old, *best]


def count_words(texts: Iterable[str], *, like: PreTrainedTokenizerBase) -> Counter[str]:
    """Count the words of texts, as a tokenizer normalises and cuts them.

    Raises:
        InputError: `like` is no WordPiece tokenizer.
    """
    wordpiece_settings(like)
    # BERT's normaliser works on characters, and a space ends a word: what stands between spaces is cut once.
    between_spaces: Counter[str] = Counter()
    for text in texts:
        between_spaces.update(text.split(" "))
    normalise = like.backend_tokenizer.normalizer.normalize_str
    cut = like.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    counts: Counter[str] = Counter()
    for held, count in between_spaces.items():
        for word, _ in cut(normalise(held)):
            counts[word] += count
    return counts


def _alphabet(texts: Iterable[str], like: PreTrainedTokenizerBase, min_frequency: int) -> list[str]:
    """Return the most frequent normalised characters, sorted by count, then by code point."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    normalizer: BertNormalizer = like.backend_tokenizer.normalizer
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normalised in "".join(normalizer.normalize_str(character).split()):
            counts[normalised] += count
    frequent = [character for character, count in counts.items() if count >= min_frequency]
    frequent.sort(key=lambda character: (-counts[character], character))
    return frequent[:_LARGEST_ALPHABET]


def _can_continue(character: str, like: PreTrainedTokenizerBase) -> bool:
    """Say whether a character can stand inside a word: punctuation and Chinese characters are words of their own."""
    text = like.backend_tokenizer.normalizer.normalize_str("a" + character)
    return len(like.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, _TEXTS_AT_ONCE)):
        yield batch
