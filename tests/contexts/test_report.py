"""Test the report of contexts per token."""

from __future__ import annotations

from datasets import Dataset
from transformers import BertTokenizer

from bioptimus_hf.contexts.finder import find_contexts
from bioptimus_hf.contexts.report import ContextsReport, report_contexts

SENTENCES = [
    "Asthma was treated with aspirin.",
    "Severe ASTHMA, by bronchoconstriction in mice!",
    "Asthma was treated with aspirin.",
    "Hepatitis and arthritis: binding, rebinding.",
    "Café culture — naïve cells.",
    "asthma asthma asthma",
]
TOKENS = ["asthma", "##itis", "binding", "##ing", "naïve", "bronchoconstriction", "Culture", "zebra"]


def test_tokens_are_counted_as_words_or_inside_words(tokenizer: BertTokenizer) -> None:
    korean = BertTokenizer(
        vocab={**tokenizer.get_vocab(), "\u1112\u1161": len(tokenizer), "##\u11ab": len(tokenizer) + 1}
    )
    texts = Dataset.from_dict({"text": [*SENTENCES, "\ud55c"]})  # a single character that normalises to three
    tokens = [*TOKENS, "asthma", "ASTHMA", "\u1112\u1161", "##\u11ab"]
    contexts = find_contexts(texts, tokens, tokenizer=korean)
    report = report_contexts(contexts, tokens, tokenizer=korean)
    assert report.as_words == ["asthma", "binding", "naïve", "bronchoconstriction", "Culture"]
    assert report.inside_words == ["##itis", "##ing", "\u1112\u1161", "##\u11ab"]
    assert report.not_found == ["zebra"]
    assert report.coverage == {0: 1, 1: 8, 3: 1}
    assert report.widened == 2
    assert report.contexts["asthma"] == 3
    facts = report.facts()
    assert facts["found_inside_words"] == 4
    assert facts["without_contexts"] == ["zebra"]
    assert facts["with_few_contexts"] == {token: 1 for token in report.contexts if token not in {"asthma", "zebra"}} | {
        "asthma": 3
    }


def test_tokens_that_are_not_found(tokenizer: BertTokenizer) -> None:
    words = ["zebra", "##zz"]
    contexts = find_contexts(Dataset.from_dict({"text": SENTENCES}), words, tokenizer=tokenizer)
    assert report_contexts(contexts, words, tokenizer=tokenizer).not_found == words


def test_the_histogram_in_words() -> None:
    def described(coverage: dict[int, int], per_token: int) -> str:
        numbers = [contexts for contexts, tokens in coverage.items() for _ in range(tokens)]
        report = ContextsReport([], [], [], {str(token): contexts for token, contexts in enumerate(numbers)}, 0)
        assert report.coverage == coverage
        return report.coverage_in_words(per_token)

    coverage = {0: 1, 1: 2, 3: 4, 4: 8, 15: 16, 16: 32, 63: 64, 64: 128}
    assert described(coverage, 64) == "0: 1, 1 to 3: 6, 4 to 15: 24, 16 to 63: 96, 64: 128"
    assert described({0: 1, 1: 2}, 1) == "0: 1, 1: 2"
    assert described({0: 1, 1: 2, 2: 3, 4: 5}, 4) == "0: 1, 1 to 3: 5, 4: 5"
