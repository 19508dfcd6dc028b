"""Report how many contexts each token has, and whether it occurs as a word or only inside words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.contexts.fetching import ROWS_AT_ONCE
from bioptimus_hf.contexts.query import select_tokens
from bioptimus_hf.vocabulary.tokenizer import MARK

FEW = 4  # fewer contexts give an unreliable mean


@dataclass(frozen=True)
class ContextsReport:
    """How often each token was found. Each token is in exactly one of the three lists.

    Attributes:
        as_words: tokens that occur as a whole word in at least one context.
        inside_words: tokens that occur only as a piece of longer words.
        not_found: tokens without contexts.
        contexts: number of contexts of each token.
        widened: number of spans that are longer than the token, because a single character of the text normalises to
            several and the token ends among these.
    """

    as_words: list[str]
    inside_words: list[str]
    not_found: list[str]
    contexts: dict[str, int]
    widened: int

    @property
    def coverage(self) -> dict[int, int]:
        """Histogram: number of contexts, from 0, to the number of tokens with that many contexts."""
        return dict(sorted(Counter(self.contexts.values()).items()))

    def coverage_in_words(self, per_token: int) -> str:
        """Describe the histogram in bins: no contexts, few, more, and the maximum number."""
        edges = [0, *(edge for edge in (1, FEW, 16) if edge < per_token), per_token]
        bins = []
        for first, after in pairwise([*edges, per_token + 1]):
            name = str(first) if after == first + 1 else f"{first} to {after - 1}"
            tokens = sum(tokens for contexts, tokens in self.coverage.items() if first <= contexts < after)
            bins.append(f"{name}: {tokens}")
        return ", ".join(bins)

    def facts(self) -> dict[str, Any]:
        """Return the numbers, and the names of the tokens with few contexts or none, for the record."""
        few = {token: number for token, number in self.contexts.items() if 0 < number < FEW}
        return {
            "found_as_words": len(self.as_words),
            "found_inside_words": len(self.inside_words),
            "not_found": len(self.not_found),
            "coverage": {str(contexts): tokens for contexts, tokens in self.coverage.items()},
            "widened_spans": self.widened,
            "with_few_contexts": dict(sorted(few.items(), key=lambda item: item[1])),
            "without_contexts": self.not_found,
        }


def report_contexts(
    contexts: Dataset, tokens: Collection[str], *, tokenizer: PreTrainedTokenizerBase
) -> ContextsReport:
    """Count the contexts that `find_contexts` found for these tokens."""
    selection = select_tokens(tokens, tokenizer)
    normalised = dict(zip(selection.tokens, selection.normalised, strict=True))
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    found: Counter[str] = Counter()
    whole: set[str] = set()
    widened = 0
    for batch in contexts.select_columns(["token", "text", "start", "end"]).iter(batch_size=ROWS_AT_ONCE):
        for token, text, start, end in zip(*batch.values(), strict=True):
            found[token] += 1
            bare = normalised[token].removeprefix(MARK)
            exact = text[start:end].isascii() or normalise(text[start:end]).strip(" ") == bare
            widened += not exact
            if exact and token not in whole and _is_whole_word(normalised[token], text[end:], tokenizer):
                whole.add(token)
    return ContextsReport(
        as_words=[token for token in selection.tokens if token in whole],
        inside_words=[token for token in selection.tokens if token in found and token not in whole],
        not_found=[token for token in selection.tokens if token not in found],
        contexts={token: found[token] for token in selection.tokens},
        widened=widened,
    )


def _is_whole_word(token: str, rest: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a token is a whole word, rather than a piece, if `rest` follows it in the text."""
    if token.startswith(MARK):
        return False
    backend = tokenizer.backend_tokenizer
    words = backend.pre_tokenizer.pre_tokenize_str(token + backend.normalizer.normalize_str(rest)[:1])
    return bool(words[0][0] == token)
