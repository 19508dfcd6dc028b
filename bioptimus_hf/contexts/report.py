"""What was found for which tokens: how many contexts each has, as a word or inside one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bioptimus_hf.contexts.finder import ROWS_AT_ONCE, select_tokens
from bioptimus_hf.vocabulary.tokenizer import MARK

FEW = 4  # contexts, of which a mean says little


@dataclass(frozen=True)
class ContextsReport:
    """What was found; a token is counted once.

    Attributes:
        as_words: tokens that some context holds as a whole word.
        inside_words: tokens that their contexts hold as a piece of a longer word only.
        not_found: tokens without a context.
        contexts: number of contexts of each token.
        widened: spans that hold more than the token, since one character of the text normalises to several and the
            token ends within them.
    """

    as_words: list[str]
    inside_words: list[str]
    not_found: list[str]
    contexts: dict[str, int]
    widened: int

    @property
    def coverage(self) -> dict[int, int]:
        """Number of contexts to the number of tokens that have so many, from 0 up."""
        return dict(sorted(Counter(self.contexts.values()).items()))

    def facts(self) -> dict[str, Any]:
        """Return the numbers, and the tokens with few contexts or none by name, for `made.json`."""
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
    """Count what `find_contexts` found for these tokens."""
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
    """Say whether a token is a word, and not a piece of one, where this rest of the text follows it."""
    if token.startswith(MARK):
        return False
    backend = tokenizer.backend_tokenizer
    words = backend.pre_tokenizer.pre_tokenize_str(token + backend.normalizer.normalize_str(rest)[:1])
    return bool(words[0][0] == token)
