"""Build WordPiece tokenizers and compare their vocabularies."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import BertTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import MAX_LENGTH, tokens_in_order

MARK = "##"

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
