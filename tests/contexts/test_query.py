"""Test how tokens of interest are normalised and checked."""

from __future__ import annotations

import logging

import pytest
from transformers import BertTokenizer

from bioptimus_hf.contexts.query import ContextQuery, select_tokens
from bioptimus_hf.errors import InputError


def test_tokens_are_normalised_merged_and_sorted_out(tokenizer: BertTokenizer) -> None:
    given = [
        "Asthma",
        "asthma",
        "ASTHMA",
        "naïve",
        "naive",
        "two words",
        "x-ray",
        "",
        "\u200b",
        "##",
        "##Ing",
        "##ing",
        "-",
        "日",
    ]
    selection = select_tokens(given, tokenizer)
    assert selection.tokens == ("Asthma", "naïve", "##Ing", "-", "日")
    assert selection.normalised == ("asthma", "naive", "##ing", "-", "日")
    assert selection.merged == {"asthma": "Asthma", "ASTHMA": "Asthma", "naive": "naïve", "##ing": "##Ing"}
    assert selection.unusable == {
        "two words": "it normalises to 2 words (two words)",
        "x-ray": "it normalises to 3 words (x - ray)",
        "": "it normalises to nothing",
        "\u200b": "it normalises to nothing",
        "##": "it normalises to 2 words (# #)",
    }


def test_queries_that_find_nothing_are_an_error(tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match=r"2 tokens can never be found, for example 'x-ray': it normalises to 3 words"):
        ContextQuery(["asthma", "x-ray", ""], tokenizer)
    with pytest.raises(InputError, match="no tokens to search for"):
        ContextQuery([], tokenizer)
    with pytest.raises(InputError, match="per_token must be at least 1, not 0"):
        ContextQuery(["asthma"], tokenizer, per_token=0)


def test_merged_tokens_are_logged(tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        query = ContextQuery(["Asthma", "asthma", "mice"], tokenizer)
    assert query.selection.tokens == ("Asthma", "mice")
    assert "1 tokens normalise to the same form as another token" in caplog.text
    assert "'asthma' and 'Asthma'" in caplog.text
