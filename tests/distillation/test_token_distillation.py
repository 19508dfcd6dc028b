"""Check that token distillation approaches its targets, and changes nothing but the embeddings it trains."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny_vocabulary
from transformers import BertForMaskedLM, BertTokenizer

from bioptimus_hf.distillation.contextual import contextual_embeddings
from bioptimus_hf.distillation.options import RowTraining
from bioptimus_hf.distillation.token_distillation import cut_snippet, distill_tokens
from bioptimus_hf.errors import InputError, TrainingDiverged

WORDS = [word for word in tiny_vocabulary() if word.isalpha() and len(word) > 1]


def contexts_of(*tokens: str, each: int = 12, seed: int = 0) -> Dataset:
    """Build sentences of random words, each containing a token once."""
    rng = random.Random(seed)
    rows = []
    for token in tokens:
        for _ in range(each):
            words = rng.choices(WORDS, k=rng.randint(2, 12))
            start = len(" ".join(words)) + 1
            text = " ".join([*words, token.removeprefix("##"), *rng.choices(WORDS, k=rng.randint(0, 5))])
            rows.append({"token": token, "text": text, "start": start, "end": start + len(token.removeprefix("##"))})
    rng.shuffle(rows)
    return Dataset.from_list(rows)


def error(
    model: BertForMaskedLM, tokenizer: BertTokenizer, rows: Dataset, token: str, row: torch.Tensor, layer: int = -1
) -> float:
    """Return the mean loss with the token added to the vocabulary, reading every context separately."""
    table = model.get_input_embeddings()
    model.resize_token_embeddings(len(tokenizer) + 1, mean_resizing=False)
    new = len(tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[new] = row
    errors = []
    for context in rows:
        encoded = tokenizer(context["text"], return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        inside = [at for at, (a, b) in enumerate(offsets) if a < context["end"] and b > context["start"] and b > a]
        with torch.no_grad():
            in_pieces, with_token = (
                model.bert(torch.tensor([sequence]), output_hidden_states=True).hidden_states[layer][0]
                for sequence in (ids, [*ids[: inside[0]], new, *ids[inside[-1] + 1 :]])
            )
        mean = in_pieces[inside].mean(dim=0, keepdim=True)
        target = torch.cat([in_pieces[: inside[0]], mean, in_pieces[inside[-1] + 1 :]])
        errors.append(float(((with_token - target) ** 2).mean()))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert model.get_input_embeddings() is table
    return float(np.mean(errors))


@pytest.mark.parametrize("layer", [-1, 1])
def test_training_reduces_the_loss_on_unseen_contexts(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, layer: int
) -> None:
    before = {name: values.clone() for name, values in tiny_bert.state_dict().items()}
    tokens = ("cardiopathy", "nephrotoxic")
    ids = {token: tokenizer.convert_tokens_to_ids(tokenizer.tokenize(token)) for token in tokens}
    table = tiny_bert.get_input_embeddings().weight.detach()
    start = {token: table[pieces].mean(dim=0) for token, pieces in ids.items()}
    trained = distill_tokens(tiny_bert, tokenizer, contexts_of(*tokens, each=32), start, RowTraining(layer=layer))
    assert all(torch.equal(values, before[name]) for name, values in tiny_bert.state_dict().items())
    assert not any(parameter.grad is not None for parameter in tiny_bert.parameters())
    for token in tokens:
        unseen = contexts_of(token, each=20, seed=1)
        before_training, after_training = (
            error(tiny_bert, tokenizer, unseen, token, rows[token], layer) for rows in (start, trained)
        )
        assert after_training < 0.95 * before_training, token  # one word hardly affects the states of a random BERT


def test_a_token_that_is_a_single_piece_keeps_its_row(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    """Its row is already the solution, so loss and gradient are rounding errors."""
    row = tiny_bert.get_input_embeddings().weight.detach()[tokenizer.convert_tokens_to_ids("asthma")].clone()
    trained = distill_tokens(tiny_bert, tokenizer, contexts_of("asthma"), {"asthma": row})["asthma"]
    own, other = (
        error(tiny_bert, tokenizer, contexts_of("asthma"), "asthma", values) for values in (trained, row.flip(0))
    )
    assert own < 0.05 * other


def test_a_model_in_training_is_read_without_dropout_and_stays_in_training(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer
) -> None:
    rows, start = contexts_of("renal"), {"renal": torch.zeros(32)}
    found = [contextual_embeddings(tiny_bert, tokenizer, rows), distill_tokens(tiny_bert, tokenizer, rows, start)]
    tiny_bert.train()
    again = [contextual_embeddings(tiny_bert, tokenizer, rows)]
    assert tiny_bert.base_model.training
    again.append(distill_tokens(tiny_bert, tokenizer, rows, start))
    assert all(module.training for module in tiny_bert.modules())
    assert all(torch.equal(one["renal"], other["renal"]) for one, other in zip(found, again, strict=True))


def test_a_row_depends_only_on_its_own_contexts(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    start = {token: torch.full((32,), 0.01) for token in ("cardiopathy", "nephrotoxic", "nephritis")}
    numbers = {"cardiopathy": 3, "nephrotoxic": 60, "nephritis": 1}
    rows = Dataset.from_list([row for token, each in numbers.items() for row in contexts_of(token, each=each)])
    together = distill_tokens(tiny_bert, tokenizer, rows, start)
    again = distill_tokens(tiny_bert, tokenizer, rows, start)
    assert list(together) == list(start)
    assert all(torch.equal(together[token], again[token]) for token in start)
    for token in start:
        own = rows.filter(lambda name, token=token: name == token, input_columns="token")
        alone = distill_tokens(tiny_bert, tokenizer, own, start)
        assert list(alone) == [token]
        assert torch.allclose(alone[token], together[token], atol=1e-3), token
    other = distill_tokens(tiny_bert, tokenizer, rows, start, RowTraining(seed=1))
    assert not torch.allclose(other["nephrotoxic"], together["nephrotoxic"], atol=1e-3)


def test_max_tokens_limits_the_number_of_trained_tokens(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    """Tokens that can't be trained don't count."""
    tokens = [f"{first}{second}qx" for first in "bcdfg" for second in "jklmnp"]
    start = {token: torch.zeros(32) for token in ("absent", *tokens)}
    every = distill_tokens(tiny_bert, tokenizer, contexts_of(*tokens, each=1), start)
    assert list(every) == tokens
    for number in (1, 15, 16, 17):
        some = distill_tokens(tiny_bert, tokenizer, contexts_of(*tokens, each=1), start, RowTraining(max_tokens=number))
        assert list(some) == tokens[:number]


def test_tokens_with_few_contexts_beside_tokens_with_many(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    many, few = contexts_of("cardiopathy", each=11), contexts_of("nephrotoxic", each=1)
    rows = Dataset.from_list([*many, *few])
    start = {"nephrotoxic": torch.zeros(32), "cardiopathy": torch.zeros(32), "absent": torch.zeros(32)}
    trained = distill_tokens(tiny_bert, tokenizer, rows, start)
    assert set(trained) == {"cardiopathy", "nephrotoxic"}
    assert all(row.dtype == torch.float32 and row.shape == (32,) and bool(row.any()) for row in trained.values())
    assert distill_tokens(tiny_bert, tokenizer, rows, {"absent": torch.zeros(32)}) == {}


def test_tokens_that_the_base_does_not_know_are_left_out(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    """They would all be trained to the state of [UNK]."""
    assert distill_tokens(tiny_bert, tokenizer, contexts_of("∼"), {"∼": torch.zeros(32)}) == {}


def test_tokens_that_are_not_whole_pieces_are_left_out(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    text = "the patients with asthma"
    rows = Dataset.from_list(
        [
            {"token": "##thma", "text": text, "start": text.index("thma"), "end": len(text)},
            {"token": "asth", "text": text, "start": text.index("asth"), "end": len(text) - 2},
        ]
    )
    assert distill_tokens(tiny_bert, tokenizer, rows, {"##thma": torch.zeros(32), "asth": torch.zeros(32)}) == {}


@pytest.mark.parametrize(
    ("before", "own", "after", "left", "right"),
    [
        (0, 1, 0, 0, 0),
        (0, 3, 200, 0, 47),
        (200, 3, 0, 47, 0),
        (100, 7, 100, 21, 22),
        (5, 4, 100, 5, 41),
        (30, 80, 30, 0, 0),
    ],
)
def test_a_snippet_contains_the_token_and_its_surroundings(
    tokenizer: BertTokenizer, before: int, own: int, after: int, left: int, right: int
) -> None:
    ids = list(range(1000, 1000 + before + own + after))
    offsets = np.array([(2 * place, 2 * place + 1) for place in range(len(ids))])
    found = cut_snippet(ids, offsets, (2 * before, 2 * (before + own) - 1), tokenizer)
    assert found is not None
    assert (found.ids[0], found.ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert found.ids[found.first : found.last + 1] == ids[before : before + own]
    assert (found.first - 1, len(found.ids) - 2 - found.last) == (left, right)
    assert found.ids[1:-1] == ids[before - left : before + own + right]


def test_a_layer_out_of_range_is_refused(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match=r"^layer: the model has no layer 3: use 0"):
        distill_tokens(tiny_bert, tokenizer, contexts_of("asthma"), {"asthma": torch.zeros(32)}, RowTraining(layer=3))


def test_embeddings_of_another_size_are_refused(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    with pytest.raises(InputError, match=r"^start: the embedding of 'asthma' hasn't the model's size, 32$"):
        distill_tokens(tiny_bert, tokenizer, contexts_of("asthma"), {"asthma": torch.zeros(3)})


def test_bf16_gives_nearly_the_same_rows(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    arguments: tuple[Any, ...] = (tiny_bert, tokenizer, contexts_of("cardiopathy"), {"cardiopathy": torch.zeros(32)})
    full, half = (distill_tokens(*arguments, RowTraining(bf16=bf16))["cardiopathy"] for bf16 in (False, True))
    assert torch.cosine_similarity(full, half, dim=0) > 0.95


@pytest.mark.parametrize("read", [distill_tokens, contextual_embeddings])
def test_states_that_are_not_finite_are_an_error(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, read: Any
) -> None:
    """The weights are finite, but too large."""
    with torch.no_grad():
        tiny_bert.bert.encoder.layer[1].output.dense.weight.fill_(3e38)
    contexts = Dataset.from_dict({"token": ["zebra"], "text": ["zebra in asthma"], "start": [0], "end": [5]})
    more = ({"zebra": torch.ones(32)},) if read is distill_tokens else ()
    with pytest.raises(TrainingDiverged, match=r"^(token distillation|hidden states): zebra contains NaN or infinity"):
        read(tiny_bert, tokenizer, contexts, *more)
