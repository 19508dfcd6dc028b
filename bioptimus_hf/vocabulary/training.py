"""Train WordPiece vocabularies reproducibly, or extend a vocabulary with a corpus's most useful words."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from tokenizers import Tokenizer, models, trainers
from tokenizers.normalizers import BertNormalizer
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.corpus.whitespace import with_blanks
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import tokens_in_order
from bioptimus_hf.progress import bars_are_drawn, progress_bar
from bioptimus_hf.vocabulary.tokenizer import MARK, added_tokens, special_tokens, wordpiece_settings

logger = logging.getLogger(__name__)
_LARGEST_ALPHABET = 1000  # as in BERT's own vocabulary; other characters, mostly of stray scripts, become [UNK]
_TEXTS_PER_BATCH = 1000


@check_call()
def train_vocabulary(
    texts: Iterable[str], *, size: int, like: PreTrainedTokenizerBase, min_frequency: int = 2
) -> list[str]:
    """Train a WordPiece vocabulary. The same arguments give the same vocabulary in any process, on any machine.

    The trainer of `tokenizers` numbers `##x` characters in hash order and breaks ties by these numbers, so two runs
    disagree (https://github.com/huggingface/tokenizers/issues/1794). To prevent that, the alphabet is counted first and
    passed to the trainer in a fixed order.

    Args:
        texts: documents. They are read twice, so pass a list or a data set's column, not an iterator.
        size: number of tokens, including special tokens and the alphabet. A small corpus may give fewer.
        like: tokenizer whose normaliser, pre-tokenizer and special tokens the vocabulary is trained for.
        min_frequency: minimum count for a pair of pieces to be merged, and for a character to enter the alphabet.

    Returns:
        Tokens sorted by id: special tokens, characters, `##` characters, then merged pieces, in the order in which they
        were merged. A smaller vocabulary is therefore a prefix of a larger one.

    Raises:
        InputError: `like` is not a WordPiece tokenizer, the texts are empty, `size` is too small for the alphabet, or
            no pair of pieces reaches `min_frequency`.
    """
    if iter(texts) is texts:
        raise InputError("train_vocabulary reads the texts twice: pass a list or a data set's column, not an iterator")
    wordpiece_settings(like)
    alphabet = _alphabet(texts, like, min_frequency)
    special = special_tokens(like)
    continuing = [MARK + character for character in alphabet if _can_continue(character, like)]
    fixed = [*special, *alphabet, *continuing]
    if size < len(fixed):
        raise InputError(
            f"{size} tokens can't hold the {len(special)} special tokens and the alphabet of this corpus "
            f"({len(alphabet)} characters, {len(continuing)} of them also as ##): use at least {len(fixed)}",
            argument="size",
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=[*special, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=MARK,
        show_progress=bars_are_drawn(),
    )
    untrained = Tokenizer(models.WordPiece(unk_token=str(like.unk_token)))
    untrained.normalizer = like.backend_tokenizer.normalizer
    untrained.pre_tokenizer = like.backend_tokenizer.pre_tokenizer
    if not bars_are_drawn():  # otherwise the trainer draws its own
        texts = progress_bar(texts, desc="Training the vocabulary", unit=" documents")
    untrained.train_from_iterator(_batches(_without_long_words(texts, like)), trainer=trainer)
    trained = untrained.get_vocab()
    vocabulary = [*fixed, *sorted(trained.keys() - set(fixed), key=trained.__getitem__)]
    if len(vocabulary) == len(fixed) < size:
        raise _too_rare("pair of pieces", min_frequency)
    _warn_if_smaller(vocabulary, size)
    return vocabulary


@check_call()
def extend_vocabulary(
    texts: Iterable[str], *, size: int, like: PreTrainedTokenizerBase, min_frequency: int = 2
) -> list[str]:
    """Add to a vocabulary the words of a corpus that save the most pieces.

    A word with a count of c that is split into p pieces saves c * (p - 1) pieces. Existing tokens keep their ids, so a
    model keeps everything it knows. This is an alternative to the paper, which replaces the vocabulary.

    Args:
        texts: documents, read once.
        size: number of tokens, including those of `like`. A small corpus may give fewer.
        like: tokenizer whose vocabulary is extended.
        min_frequency: minimum count for a word to be added.

    Returns:
        Tokens sorted by id: those of `like`, then the new words by decreasing number of pieces saved.

    Raises:
        InputError: `like` is not a WordPiece tokenizer, `size` doesn't exceed its vocabulary, the texts are empty, or
            no word that the base splits reaches `min_frequency`.
    """
    old = tokens_in_order(like)
    if size <= len(old):
        raise InputError(
            f"{size} tokens add nothing to the {len(old)} tokens of the base: use a larger size, or replace the "
            f"vocabulary",
            argument="size",
        )
    counts = count_words(texts, like=like)
    if not counts:
        raise InputError("the corpus contains no text to take words from")
    known = set(old)
    cutting = _cutting(like)
    saved: dict[str, int] = {}
    for word, count in counts.items():
        if count >= min_frequency and word not in known:
            pieces = [piece.value for piece in like.backend_tokenizer.model.tokenize(word)]
            if like.unk_token not in pieces and not any(token in word for token in cutting):
                saved[word] = count * (len(pieces) - 1)
    if not saved:
        raise _too_rare("word that the base splits", min_frequency)
    best = sorted(saved, key=lambda word: (-saved[word], word))[: size - len(old)]
    vocabulary = [*old, *best]
    _warn_if_smaller(vocabulary, size)
    return vocabulary


def count_words(texts: Iterable[str], *, like: PreTrainedTokenizerBase) -> Counter[str]:
    """Count the words of texts after a tokenizer's normalisation and pre-tokenisation.

    Raises:
        InputError: `like` is not a WordPiece tokenizer.
    """
    wordpiece_settings(like)
    # BERT normalises character by character and splits at spaces, so every distinct space-separated string needs to be
    # split only once.
    strings: Counter[str] = Counter()
    for text in progress_bar(texts, desc="Counting words", unit=" documents", delay=1):
        strings.update(with_blanks(text).split(" "))
    normalise = like.backend_tokenizer.normalizer.normalize_str
    split = like.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    counts: Counter[str] = Counter()
    for string, count in strings.items():
        for word, _ in split(normalise(string)):
            counts[word] += count
    return counts


def _too_rare(what: str, min_frequency: int) -> InputError:
    return InputError(
        f"no {what} occurs {min_frequency:,} times in the corpus: use a smaller value, or more text",
        argument="min_frequency",
    )


def _warn_if_smaller(vocabulary: list[str], size: int) -> None:
    if len(vocabulary) < size:
        logger.warning("the corpus is too small for %d tokens: the vocabulary has %d", size, len(vocabulary))


def _alphabet(texts: Iterable[str], like: PreTrainedTokenizerBase, min_frequency: int) -> list[str]:
    """Return the most frequent normalised characters, sorted by decreasing count, then by code point."""
    raw: Counter[str] = Counter()
    for text in progress_bar(texts, desc="Counting characters", unit=" documents", delay=1):
        raw.update(with_blanks(text))
    normalizer: BertNormalizer = like.backend_tokenizer.normalizer
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normalised in "".join(normalizer.normalize_str(character).split()):
            counts[normalised] += count
    if not counts:
        raise InputError("the corpus contains no text to train a vocabulary on")
    frequent = [character for character, count in counts.items() if count >= min_frequency]
    if not frequent:
        raise _too_rare("character", min_frequency)
    frequent.sort(key=lambda character: (-counts[character], character))
    return frequent[:_LARGEST_ALPHABET]


def _cutting(like: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that were added to the base and are found inside of words, which they cut."""
    normalise = like.backend_tokenizer.normalizer.normalize_str
    tokens = [token for token in added_tokens(like) if not token.single_word]
    return [normalise(token.content) if token.normalized else token.content for token in tokens]


def _without_long_words(texts: Iterable[str], like: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield texts without the words that are too long for the tokenizer: they become [UNK], whatever is in them."""
    backend = like.backend_tokenizer
    longest = backend.model.max_input_chars_per_word
    # A character becomes at most four when it is normalised.
    long_string = re.compile(rf"\S{{{longest // 4 + 1},}}")

    def shortened(match: re.Match[str]) -> str:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(match[0]))]
        if all(len(word) <= longest for word in words):
            return match[0]
        return " ".join(word for word in words if len(word) <= longest)

    for text in texts:
        yield long_string.sub(shortened, with_blanks(text))


def _can_continue(character: str, like: PreTrainedTokenizerBase) -> bool:
    """Return whether a character can be inside a word. Punctuation and Chinese characters are words by themselves."""
    text = like.backend_tokenizer.normalizer.normalize_str("a" + character)
    return len(like.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, _TEXTS_PER_BATCH)):
        yield batch
