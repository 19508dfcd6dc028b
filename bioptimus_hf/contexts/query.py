"""Describe a search: normalise the tokens of interest and check that they can be found."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError
from bioptimus_hf.vocabulary.tokenizer import MARK, wordpiece_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenSelection:
    """Tokens of interest, sorted into those that can be found and those that can't.

    Attributes:
        tokens: tokens that can be found, as given and in the given order.
        normalised: the same tokens as they appear in normalised text; a `##` piece keeps its mark.
        merged: tokens whose normalised form equals that of an earlier token, mapped to the earlier token. Their
            contexts are found under the name of the earlier token.
        unusable: tokens that no word or piece can equal, mapped to the reason.
    """

    tokens: tuple[str, ...]
    normalised: tuple[str, ...]
    merged: dict[str, str]
    unusable: dict[str, str]


@check_call()
@dataclass(frozen=True)
class ContextQuery:
    """What to search for, and how many contexts to keep.

    A word is what the tokenizer's normaliser and pre-tokenizer produce. A token is found as a whole word, and as one of
    the pieces (`activ`, `##itis`) that the tokenizer splits a word into.

    Attributes:
        tokens: tokens of interest. A word that isn't in the tokenizer's vocabulary is found only as a whole word.
        tokenizer: the tokenizer that has the tokens, that is, the new one.
        per_token: maximum number of contexts per token.
        seed: a different seed draws a different sample.
        selection: the tokens after normalisation.

    Raises:
        InputError: there are no tokens, a token normalises to nothing or to several words, `per_token` is below 1, or
            the tokenizer isn't a BERT tokenizer.
    """

    tokens: Collection[str]
    tokenizer: PreTrainedTokenizerBase
    per_token: int = 64
    seed: int = 0
    selection: TokenSelection = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.per_token < 1:
            raise InputError(f"per_token must be at least 1, not {self.per_token}")
        selection = select_tokens(self.tokens, self.tokenizer)
        if selection.unusable:
            token, reason = next(iter(selection.unusable.items()))
            raise InputError(
                f"{len(selection.unusable)} tokens can never be found, for example {token!r}: {reason}. Remove them"
            )
        if not selection.tokens:
            raise InputError("no tokens to search for")
        if selection.merged:
            token, other = next(iter(selection.merged.items()))
            logger.warning(
                "%d tokens normalise to the same form as another token, and share its contexts; for example %r and %r",
                len(selection.merged),
                token,
                other,
            )
        object.__setattr__(self, "selection", selection)


def select_tokens(tokens: Collection[str], tokenizer: PreTrainedTokenizerBase) -> TokenSelection:
    """Normalise tokens of interest, and separate those that can never be found and those with equal normalised forms.

    Raises:
        InputError: the tokenizer isn't a BERT tokenizer. The search knows no other rules for words and characters.
    """
    wordpiece_settings(tokenizer)
    backend = tokenizer.backend_tokenizer
    first: dict[str, str] = {}
    merged: dict[str, str] = {}
    unusable: dict[str, str] = {}
    for token in dict.fromkeys(tokens):
        mark = MARK if token.startswith(MARK) and len(token) > len(MARK) else ""
        normalised = backend.normalizer.normalize_str(token.removeprefix(mark))
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised)]
        if len(words) != 1:
            unusable[token] = (
                f"it normalises to {len(words)} words ({' '.join(words)})" if words else "it normalises to nothing"
            )
        elif mark + words[0] in first:
            merged[token] = first[mark + words[0]]
        else:
            first[mark + words[0]] = token
    return TokenSelection(tuple(first.values()), tuple(first), merged, unusable)
