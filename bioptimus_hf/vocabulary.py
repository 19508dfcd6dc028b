"""Corpus -> reproducible WordPiece vocabulary -> tokenizer; what it shares with another vocabulary."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, trainers
from tokenizers.normalizers import BertNormalizer
from transformers import BertTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bioptimus_hf.artifacts import InputError, write_json

logger = logging.getLogger(__name__)

MARK = "##"
MAX_LENGTH = 512  # where the base names no limit, BERT's own; v5 would save 1e30, and long texts crash pipelines
_LARGEST_ALPHABET = 1000  # as in BERT's own vocabulary; the rest, mostly stray scripts, becomes [UNK]
_TEXTS_AT_ONCE = 1000
_UNUSED = re.compile(r"\[unused\d+\]")


@dataclass(frozen=True)
class VocabularyDiff:
    """What becomes of the tokens when one vocabulary replaces another; each part in the order of the ids.

    Attributes:
        shared: tokens of both, special tokens among them.
        new: tokens of the target alone.
        dropped: tokens of the source alone.
    """

    shared: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


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


def build_tokenizer(vocabulary: Sequence[str], *, like: PreTrainedTokenizerBase) -> BertTokenizer:
    """Make a BERT tokenizer of a vocabulary, with the normaliser, special tokens and length limit of `like`.

    Raises:
        InputError: a token stands twice, a special token is missing, or `like` is no WordPiece tokenizer.
    """
    settings = wordpiece_settings(like)
    counts = Counter(vocabulary)
    twice = [token for token, count in counts.items() if count > 1]
    missing = [token for token in _special_tokens(like) if token not in counts]
    if twice or missing:
        raise InputError(
            f"a vocabulary needs each token once and the special tokens of the base: {len(twice)} stand twice "
            f"({', '.join(twice[:3])}), missing: {', '.join(missing) or 'none'}"
        )
    tokenizer = BertTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        do_lower_case=settings["lowercase"],
        strip_accents=settings["strip_accents"],
        tokenize_chinese_chars=settings["handle_chinese_chars"],
        unk_token=like.unk_token,
        sep_token=like.sep_token,
        pad_token=like.pad_token,
        cls_token=like.cls_token,
        mask_token=like.mask_token,
        extra_special_tokens=list(like.extra_special_tokens),
        model_max_length=like.model_max_length if like.model_max_length < VERY_LARGE_INTEGER else MAX_LENGTH,
    )
    if len(tokenizer) != len(vocabulary):  # a keyword this class does not know is silently ignored
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} tokens instead of {len(vocabulary)}")
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save a tokenizer so that `AutoTokenizer` of transformers 4 and 5 loads it.

    transformers 5 no longer writes `vocab.txt`, and its empty list of extra special tokens is an error in version 4.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for how_it_was_loaded in ("is_local", "local_files_only"):  # which transformers would save with it
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("extra_special_tokens") == []:
        del config["extra_special_tokens"]
        write_json(path, config)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens_in_order(tokenizer)), encoding="utf-8")


def tokens_in_order(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return all tokens in the order of their ids, so that a token's place is its id.

    Raises:
        InputError: no token has some id below the largest.
    """
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if tokens and vocabulary[tokens[-1]] != len(tokens) - 1:
        raise InputError(
            f"{type(tokenizer).__name__} has holes in its ids: {len(tokens)} tokens up to id "
            f"{vocabulary[tokens[-1]]}; give a tokenizer that numbers its tokens without gaps"
        )
    return tokens


def compare_vocabularies(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> VocabularyDiff:
    """Say which tokens `target` shares with `source`, which are new and which are gone."""
    before, after = tokens_in_order(source), tokens_in_order(target)
    had, has = set(before), set(after)
    return VocabularyDiff(
        shared=tuple(token for token in after if token in had),
        new=tuple(token for token in after if token not in had),
        dropped=tuple(token for token in before if token not in has),
    )


def real_ids(tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.int64]:
    """Return, in order, the ids of the tokens that stand for text: neither special nor `[unused...]`."""
    special = set(tokenizer.all_special_tokens)
    vocabulary = tokenizer.get_vocab().items()
    return np.array(
        sorted(number for token, number in vocabulary if token not in special and not _UNUSED.fullmatch(token)),
        dtype=np.int64,
    )


def is_continuation(tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.bool_]:
    """Return a table over the ids: whether the token continues a word.

    Raises:
        InputError: the tokenizer does not mark continuations in the token itself (byte-level BPE and SentencePiece
            mark word starts, and glue punctuation to the word before it).
    """
    wordpiece_settings(tokenizer)
    specials = set(tokenizer.all_special_tokens)
    vocabulary = tokenizer.get_vocab()
    table = np.zeros(max(vocabulary.values()) + 1, dtype=np.bool_)  # ids may have holes
    for token, number in vocabulary.items():
        table[number] = token.startswith(MARK) and len(token) > len(MARK) and token not in specials
    return table


def wordpiece_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the settings of the BERT normaliser, or refuse a tokenizer that is not BERT's kind."""
    name = type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{name} has no tokenizer.json backend: give a BERT-like base with a fast tokenizer")
    kinds = (type(backend.model).__name__, type(backend.normalizer).__name__, type(backend.pre_tokenizer).__name__)
    if kinds[0] != "WordPiece" or backend.model.continuing_subword_prefix != MARK:
        raise InputError(
            f"{name} is not a WordPiece tokenizer ({kinds[0]}): its tokens do not tell where a word ends, since "
            f"punctuation is glued to the word before it. Give a BERT-like base (bert-base-uncased, bert-base-cased)"
        )
    if kinds[1:] != ("BertNormalizer", "BertPreTokenizer"):
        raise InputError(f"{name} normalises or cuts words in another way than BERT ({kinds[1]}, {kinds[2]})")
    settings: dict[str, Any] = json.loads(backend.to_str())["normalizer"]
    return settings


def _special_tokens(like: PreTrainedTokenizerBase) -> list[str]:
    ids = {str(token): int(like.convert_tokens_to_ids(token)) for token in like.all_special_tokens}
    return sorted(ids, key=ids.__getitem__)


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
