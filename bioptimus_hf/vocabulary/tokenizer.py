"""Build BERT tokenizers from vocabularies, and compare and inspect WordPiece vocabularies."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken
from transformers import BertTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import MAX_LENGTH, set_bert_settings, tokens_in_order

logger = logging.getLogger(__name__)

MARK = "##"
"""Prefix of a WordPiece token that continues a word."""

_UNUSED = re.compile(r"\[unused\d+\]")
_MANY_UNREACHABLE = 0.01  # share of a vocabulary; none of bert-base-uncased is unreachable, and 40 % of a cased one


@dataclass(frozen=True)
class VocabularyDiff:
    """Tokens that are kept, added and removed when one vocabulary replaces another, each sorted by id.

    Attributes:
        shared: tokens in both vocabularies, including special tokens.
        new: tokens only in the target.
        dropped: tokens only in the source.
    """

    shared: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


@check_call()
def build_tokenizer(vocabulary: Sequence[str], *, like: PreTrainedTokenizerBase) -> BertTokenizer:
    """Build a BERT tokenizer with a new vocabulary and everything else from an existing tokenizer.

    Args:
        vocabulary: tokens sorted by id, from `train_vocabulary` or `extend_vocabulary`.
        like: tokenizer whose normaliser, special tokens, longest word and maximum length are copied. Tokens that were
            added to it keep their settings if the vocabulary keeps all of its tokens with their ids.

    Raises:
        InputError: a token is duplicated, a special token is missing, or `like` is not a WordPiece tokenizer.
    """
    settings = wordpiece_settings(like)
    counts = Counter(vocabulary)
    duplicates = [token for token, count in counts.items() if count > 1]
    missing = [token for token in special_tokens(like) if token not in counts]
    if duplicates or missing:
        raise InputError(
            f"a vocabulary must contain each token once, and all special tokens of the base. "
            f"Duplicates: {', '.join(duplicates[:3]) or 'none'} ({len(duplicates)} in total). "
            f"Missing: {', '.join(missing) or 'none'}"
        )
    unusable = unusable_tokens(vocabulary, like=like)
    if unusable:
        logger.warning(
            "%d of %d tokens can never occur, since the tokenizer changes or splits them, or words of that length are "
            "unknown (%s%s)",
            *(len(unusable), len(vocabulary), ", ".join(unusable[:3]), ", ..." if unusable[3:] else ""),
        )
    tokenizer = BertTokenizer(
        vocab={token: token_id for token_id, token in enumerate(vocabulary)},
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
    if len(tokenizer) != len(vocabulary):  # BertTokenizer silently ignores keywords it doesn't know
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} tokens instead of {len(vocabulary)}")
    # BertTokenizer has no arguments for these.
    set_bert_settings(
        tokenizer,
        clean_text=settings["clean_text"],
        max_input_chars_per_word=like.backend_tokenizer.model.max_input_chars_per_word,
    )
    if all(token in vocabulary[position : position + 1] for token, position in like.get_vocab().items()):  # extended
        tokenizer.add_tokens(added_tokens(like))
    return tokenizer


def unusable_tokens(vocabulary: Sequence[str], *, like: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens of a vocabulary that `like` doesn't have and that can never occur in its tokens of a text.

    These are tokens that the normaliser changes (capital letters in an uncased vocabulary), tokens that the
    pre-tokenizer splits, and tokens that are longer than the longest word.
    """
    backend = like.backend_tokenizer
    normalise, split = backend.normalizer.normalize_str, backend.pre_tokenizer.pre_tokenize_str
    longest, known = backend.model.max_input_chars_per_word, like.get_vocab()
    unusable = []
    for token in vocabulary:
        if token in known:
            continue
        continues = token.startswith(MARK) and len(token) > len(MARK)
        word = "a" + token.removeprefix(MARK) if continues else token
        words = [part for part, _ in split(normalise(word))]
        if words != [word] or len(word) > longest:
            unusable.append(token)
    return unusable


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[AddedToken]:
    """Return the tokens that were added with `add_tokens`, with their settings, by id; no special tokens."""
    special = set(tokenizer.all_special_tokens)
    return [
        token
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if not token.special and token.content not in special
    ]


@check_call()
def compare_vocabularies(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> VocabularyDiff:
    """List the tokens that `target` shares with `source`, adds to it and drops from it.

    Raises:
        InputError: the token ids of a tokenizer have gaps.
    """
    before, after = tokens_in_order(source), tokens_in_order(target)
    in_source, in_target = set(before), set(after)
    return VocabularyDiff(
        shared=tuple(token for token in after if token in in_source),
        new=tuple(token for token in after if token not in in_source),
        dropped=tuple(token for token in before if token not in in_target),
    )


def warn_if_cased(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Warn if many tokens can never occur because the tokenizer lower-cases text or strips accents.

    transformers lower-cases by default, for instance if a cased model has no `tokenizer_config.json`.

    Args:
        tokenizer: a WordPiece tokenizer.
        name: what to call the model.

    Raises:
        InputError: the tokenizer isn't a WordPiece tokenizer.
    """
    wordpiece_settings(tokenizer)
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    tokens = tokenizer.convert_ids_to_tokens(real_ids(tokenizer).tolist())
    unreachable = [token for token in tokens if (text := token.removeprefix(MARK)) != normalise(text).strip()]
    if len(unreachable) > _MANY_UNREACHABLE * len(tokens):
        logger.warning(
            "%s: %d of %d tokens can never occur (%s, ...), because its tokenizer lower-cases text or strips accents. "
            'If the model is cased, add a tokenizer_config.json with {"do_lower_case": false} to its folder',
            *(name, len(unreachable), len(tokens), ", ".join(unreachable[:3])),
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the special tokens, sorted by id."""
    ids = {str(token): int(tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens}
    return sorted(ids, key=ids.__getitem__)


def real_ids(tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.int64]:
    """Return the sorted ids of the tokens that stand for text, i.e. all but special and `[unused...]` tokens."""
    special = set(tokenizer.all_special_tokens)
    vocabulary = tokenizer.get_vocab().items()
    return np.array(
        sorted(token_id for token, token_id in vocabulary if token not in special and not _UNUSED.fullmatch(token)),
        dtype=np.int64,
    )


def is_continuation(tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.bool_]:
    """Return a boolean lookup table, of shape (largest id + 1,), of the ids whose tokens continue a word.

    Raises:
        InputError: the tokens themselves don't show whether they continue a word. Byte-level BPE and SentencePiece mark
            word starts instead, and attach punctuation to the preceding word.
    """
    wordpiece_settings(tokenizer)
    special = set(tokenizer.all_special_tokens)
    vocabulary = tokenizer.get_vocab()
    table = np.zeros(max(vocabulary.values()) + 1, dtype=np.bool_)  # ids may have gaps
    for token, token_id in vocabulary.items():
        table[token_id] = token.startswith(MARK) and len(token) > len(MARK) and token not in special
    return table


def wordpiece_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the settings of a BERT tokenizer's normaliser: lowercase, strip_accents, handle_chinese_chars, clean_text.

    Raises:
        InputError: the tokenizer isn't a WordPiece tokenizer that normalises and splits words as BERT does.
    """
    name = type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{name} has no tokenizer.json backend: use a BERT-like base model with a fast tokenizer")
    model, normalizer, splitter = (
        type(component).__name__ for component in (backend.model, backend.normalizer, backend.pre_tokenizer)
    )
    if model != "WordPiece" or backend.model.continuing_subword_prefix != MARK:
        raise InputError(
            f"{name} is not a WordPiece tokenizer ({model}): its tokens don't show where a word ends, because "
            f"punctuation is attached to the preceding word. Use a BERT-like base model (bert-base-uncased, "
            f"bert-base-cased)"
        )
    if (normalizer, splitter) != ("BertNormalizer", "BertPreTokenizer"):
        raise InputError(f"{name} normalises or splits words differently from BERT ({normalizer}, {splitter})")
    settings: dict[str, Any] = json.loads(backend.to_str())["normalizer"]
    return settings
