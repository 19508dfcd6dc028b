"""Check contextual embeddings by hand, the initializers, and that a transplant keeps what is shared bit for bit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import build_tiny_bert, build_tiny_head, tiny_vocabulary
from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM, BertModel, BertTokenizer, RobertaConfig

from bioptimus_hf.distillation import contextual
from bioptimus_hf.distillation.contextual import contextual_embeddings
from bioptimus_hf.distillation.initialization import INITIALIZERS, initial_rows, pieces_of
from bioptimus_hf.distillation.transplant import transplant_vocabulary
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import load_masked_lm, save_masked_lm
from bioptimus_hf.vocabulary.tokenizer import build_tokenizer, compare_vocabularies, real_ids
from bioptimus_hf.vocabulary.training import extend_vocabulary

NEW = ["cardiopathy", "nephrotoxic", "##opath", "activ", "##itides", "é"]


@pytest.fixture
def target(tokenizer: BertTokenizer) -> BertTokenizer:
    """Special tokens, new tokens, and most of the old tokens in another order."""
    old = [token for token in tiny_vocabulary() if token not in ("aspirin", "##tion")]
    specials = [token for token in old if token.startswith("[")]
    return build_tokenizer([*specials, *NEW, *reversed([t for t in old if t not in specials])], like=tokenizer)


def contexts(rows: list[tuple[str, str, str]]) -> Dataset:
    """Build contexts from tokens, texts and occurrences."""
    return Dataset.from_list(
        [
            {"token": token, "text": text, "start": text.index(found), "end": text.index(found) + len(found)}
            for token, text, found in rows
        ]
    )


ROWS = [
    ("cardiopathy", "The cardiopathy of mice.", "cardiopathy"),
    ("cardiopathy", "Severe Cardiopathy was induced in the patients with renal failure.", "Cardiopathy"),
    ("##opath", "The cardiopathy of mice.", "opath"),
    ("nephrotoxic", "aspirin is nephrotoxic", "nephrotoxic"),
]


def by_hand(model: BertModel, tokenizer: BertTokenizer, row: dict[str, Any], layer: int) -> torch.Tensor:
    """Read one context, unbatched: the mean of the hidden states of the pieces that overlap the span."""
    encoded = tokenizer(row["text"], return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        states = model(**encoded, output_hidden_states=True).hidden_states[layer][0]
    inside = [place for place, (a, b) in enumerate(offsets) if a < row["end"] and b > row["start"] and b > a]
    return states[inside].mean(dim=0)


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_vectors_are_means_over_pieces_then_contexts(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, layer: int, batch_size: int
) -> None:
    rows = contexts(ROWS)
    got = contextual_embeddings(tiny_bert, tokenizer, rows, layer=layer, batch_size=batch_size)
    assert set(got) == {"cardiopathy", "##opath", "nephrotoxic"}
    for token, vector in got.items():
        each = [by_hand(tiny_bert.bert, tokenizer, row, layer) for row in rows if row["token"] == token]
        assert torch.allclose(vector, torch.stack(each).mean(dim=0), atol=1e-5), token


def test_every_sentence_is_read_once_and_order_of_batches_does_not_matter(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several batches and chunks, with several contexts per sentence, against one context at a time."""
    rng = random.Random(0)
    words = [word for word in tiny_vocabulary() if word.isalpha() and len(word) > 1]
    rows = []
    for _ in range(120):
        text = " ".join(rng.choices(words, k=rng.randint(1, 30)))
        chosen = rng.sample(sorted(set(text.split())), min(3, len(set(text.split()))))
        rows += [(word, text, word) for word in chosen]
    rng.shuffle(rows)
    expected: dict[str, list[torch.Tensor]] = {}
    for row in contexts(rows):
        expected.setdefault(row["token"], []).append(by_hand(tiny_bert.bert, tokenizer, row, -1))
    read: list[int] = []
    forward = BertModel.forward
    monkeypatch.setattr(contextual, "_BATCHES_PER_CHUNK", 2)
    monkeypatch.setattr(
        BertModel, "forward", lambda self, **inputs: read.append(len(inputs["input_ids"])) or forward(self, **inputs)
    )
    got = contextual_embeddings(tiny_bert, tokenizer, contexts(rows), batch_size=16)
    assert sum(read) == len({text for _, text, _ in rows})
    assert got.keys() == expected.keys()
    for token, vector in got.items():
        assert torch.allclose(vector, torch.stack(expected[token]).mean(dim=0), atol=1e-5), token


def test_bf16_gives_nearly_the_same_vectors(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    full = contextual_embeddings(tiny_bert, tokenizer, contexts(ROWS))
    half = contextual_embeddings(tiny_bert, tokenizer, contexts(ROWS), bf16=True)
    for token in full:
        assert half[token].dtype == torch.float32
        assert not torch.equal(full[token], half[token])
        assert torch.nn.functional.cosine_similarity(full[token], half[token], dim=0) > 0.999


def test_order_of_contexts_does_not_matter(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    rows = contexts(ROWS)
    first = contextual_embeddings(tiny_bert, tokenizer, rows)
    again = contextual_embeddings(tiny_bert, tokenizer, rows.select([3, 1, 0, 2]))
    assert all(torch.equal(first[token], again[token]) for token in first)


def test_a_span_at_the_end_of_a_long_sentence_is_read(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    # 1,200 pieces, and the model reads 512: only the third window contains the span.
    text = "the renal " * 600 + "cardiopathy " + "of mice " * 20
    vector = contextual_embeddings(tiny_bert, tokenizer, contexts([("cardiopathy", text, "cardiopathy")]))[
        "cardiopathy"
    ]
    assert torch.isfinite(vector).all()
    short = contextual_embeddings(
        tiny_bert, tokenizer, contexts([("cardiopathy", "the cardiopathy of", "cardiopathy")])
    )["cardiopathy"]
    assert torch.nn.functional.cosine_similarity(vector, short, dim=0) > 0.5


def test_a_tokenizer_without_maximum_length(tokenizer: BertTokenizer) -> None:
    model = build_tiny_bert(len(tokenizer))
    rows = contexts([("cardiopathy", "the renal " * 600 + "cardiopathy of mice", "cardiopathy")])
    expected = contextual_embeddings(model, tokenizer, rows)
    tokenizer.model_max_length = int(1e30)
    assert torch.equal(contextual_embeddings(model, tokenizer, rows)["cardiopathy"], expected["cardiopathy"])


def test_a_single_vector_is_scaled_to_the_mean_of_the_table(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer
) -> None:
    rows = initial_rows(
        tiny_bert, tokenizer, target, initializer="contextual_mean_scaled", vectors={"activ": torch.ones(32)}
    ).rows
    assert torch.allclose(rows["activ"], tiny_bert.get_input_embeddings().weight[real_ids(tokenizer)].mean(dim=0))


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_out_of_range_is_refused(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, layer: int) -> None:
    with pytest.raises(InputError, match=f"^layer: the model has no layer {layer}: use 0"):
        contextual_embeddings(tiny_bert, tokenizer, contexts(ROWS), layer=layer)


def test_a_span_without_pieces_is_refused(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    empty = Dataset.from_list([{"token": "x", "text": "the mice", "start": 3, "end": 4}])
    with pytest.raises(InputError, match="no piece between 3 and 4: 'the mice'"):
        contextual_embeddings(tiny_bert, tokenizer, empty)


def test_continuations_are_split_into_continuations(tokenizer: BertTokenizer) -> None:
    pieces = pieces_of(["##opath", "##edition", "cardio", "##é", "é"], tokenizer)
    assert tokenizer.convert_ids_to_tokens(pieces["##opath"]) == ["##o", "##p", "##a", "##t", "##h"]
    assert tokenizer.convert_ids_to_tokens(pieces["##edition"]) == ["##ed", "##i", "##tion"]
    assert tokenizer.convert_ids_to_tokens(pieces["cardio"]) == ["c", "##a", "##r", "##d", "##i", "##o"]
    assert pieces["##é"] == []
    assert tokenizer.convert_ids_to_tokens(pieces["é"]) == ["e"]  # the base strips accents


def test_subtoken_mean_is_the_mean_of_the_pieces_rows(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer
) -> None:
    rows = initial_rows(tiny_bert, tokenizer, target, initializer="subtoken_mean")
    assert set(rows.rows) == set(NEW)
    table = tiny_bert.get_input_embeddings().weight
    ids = tokenizer.convert_tokens_to_ids(["##o", "##p", "##a", "##t", "##h"])
    assert torch.allclose(rows.rows["##opath"], table[ids].mean(dim=0))


def test_contextual_rows_and_their_fallback(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer
) -> None:
    vectors = contextual_embeddings(tiny_bert, tokenizer, contexts(ROWS))
    plain = initial_rows(tiny_bert, tokenizer, target, initializer="contextual_mean", vectors=vectors)
    assert sorted(plain.without_vectors) == sorted(["activ", "##itides", "é"])
    assert all(torch.equal(plain.rows[token], vectors[token]) for token in vectors)
    means = initial_rows(tiny_bert, tokenizer, target, initializer="subtoken_mean")
    assert torch.equal(plain.rows["activ"], means.rows["activ"])

    scaled = initial_rows(tiny_bert, tokenizer, target, initializer="contextual_mean_scaled", vectors=vectors)
    read = torch.stack([scaled.rows[token] for token in vectors])
    used = tiny_bert.get_input_embeddings().weight[7:]  # without special and [unused..] tokens
    assert torch.allclose(read.mean(dim=0), used.mean(dim=0), atol=1e-5)
    assert torch.allclose(read.std(dim=0, correction=0), used.std(dim=0, correction=0), atol=1e-5)


def test_random_rows_repeat_with_their_seed(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer
) -> None:
    first, again, other = (
        initial_rows(tiny_bert, tokenizer, target, initializer="random", seed=seed).rows for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[token], again[token]) for token in NEW)
    assert not any(torch.equal(first[token], other[token]) for token in NEW)


@pytest.mark.parametrize("initializer", ["contextual_mean", "contextual_mean_scaled"])
def test_contextual_rows_need_contexts(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer, initializer: Any
) -> None:
    with pytest.raises(InputError, match="needs contexts, and none were found"):
        initial_rows(tiny_bert, tokenizer, target, initializer=initializer, vectors={})


def test_an_unknown_initializer_is_refused(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer
) -> None:
    with pytest.raises(InputError, match=r"^initializer: 'best' is not one of random, subtoken_mean"):
        initial_rows(tiny_bert, tokenizer, target, initializer="best")  # type: ignore[arg-type]


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_a_transplant_keeps_shared_tokens_bit_for_bit(
    tokenizer: BertTokenizer, target: BertTokenizer, tmp_path: Any, initializer: Any
) -> None:
    base = build_tiny_bert(len(tokenizer))
    with torch.no_grad():
        base.cls.predictions.decoder.bias.normal_()  # zero in an untrained BERT, but not in a trained one
    rows = initial_rows(
        base,
        tokenizer,
        target,
        initializer=initializer,
        vectors=contextual_embeddings(base, tokenizer, contexts(ROWS)),
    )
    moved = transplant_vocabulary(_copy(base), tokenizer, target, rows.rows)
    old, new = base.get_input_embeddings().weight, moved.get_input_embeddings().weight
    assert len(new) == moved.config.vocab_size == len(target) == moved.get_output_embeddings().out_features
    assert moved.get_output_embeddings().weight is new
    assert torch.isfinite(new).all()
    assert new[target.convert_tokens_to_ids(NEW)].any(dim=1).all()
    for token in compare_vocabularies(tokenizer, target).shared:
        before, after = tokenizer.convert_tokens_to_ids(token), target.convert_tokens_to_ids(token)
        assert torch.equal(old[before], new[after]), token
        assert torch.equal(base.cls.predictions.bias[before], moved.cls.predictions.bias[after]), token
    for token in NEW:
        assert torch.equal(new[target.convert_tokens_to_ids(token)], rows.rows[token]), token
    bias = moved.cls.predictions.bias[target.convert_tokens_to_ids("##opath")]
    pieces = tokenizer.convert_tokens_to_ids(["##o", "##p", "##a", "##t", "##h"])
    assert bias.item() == pytest.approx(base.cls.predictions.bias[pieces].mean().item(), abs=1e-6)

    save_masked_lm(moved, target, tmp_path)
    reloaded, initialised = load_masked_lm(str(tmp_path))
    assert initialised == []
    for (name, expected), got in zip(moved.named_parameters(), reloaded.parameters(), strict=True):
        assert torch.equal(expected, got), name
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == target.get_vocab()


def _copy(model: BertForMaskedLM) -> BertForMaskedLM:
    copy = build_tiny_bert(model.config.vocab_size)
    copy.load_state_dict(model.state_dict())
    return copy


def test_an_extended_vocabulary_keeps_the_ids_of_old_tokens(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer
) -> None:
    old = tiny_bert.get_input_embeddings().weight.detach().clone()
    texts = ["the cardiopathy of mice"]
    ids = tokenizer(texts, return_tensors="pt")["input_ids"][:, :2]
    logits = tiny_bert(ids).logits
    vocabulary = extend_vocabulary(["Zebrafish, zebrafish and lynx lynx."], size=len(tokenizer) + 2, like=tokenizer)
    target = build_tokenizer(vocabulary, like=tokenizer)
    new = initial_rows(tiny_bert, tokenizer, target, initializer="subtoken_mean")
    transplant_vocabulary(tiny_bert, tokenizer, target, new.rows)
    table = tiny_bert.get_input_embeddings().weight.detach()
    assert torch.equal(table[: len(old)], old)
    assert target.convert_ids_to_tokens([len(old), len(old) + 1]) == ["zebrafish", "lynx"]
    assert torch.equal(table[len(old)], old[tokenizer("zebrafish", add_special_tokens=False)["input_ids"]].mean(dim=0))
    assert torch.allclose(tiny_bert(ids).logits[..., : len(old)], logits, atol=1e-5)


def test_text_of_shared_tokens_gives_the_same_logits(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer
) -> None:
    text = "The mice of the renal cells were severe."
    rows = initial_rows(tiny_bert, tokenizer, target, initializer="subtoken_mean").rows
    moved = transplant_vocabulary(_copy(tiny_bert), tokenizer, target, rows).eval()
    shared = compare_vocabularies(tokenizer, target).shared
    with torch.no_grad():
        before = tiny_bert(**tokenizer(text, return_tensors="pt")).logits[0]
        after = moved(**target(text, return_tensors="pt")).logits[0]
    old, new = tokenizer.convert_tokens_to_ids(list(shared)), target.convert_tokens_to_ids(list(shared))
    assert torch.allclose(before[:, old], after[:, new], atol=1e-6)


def test_unusable_rows_are_refused(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, target: BertTokenizer) -> None:
    rows = dict(initial_rows(tiny_bert, tokenizer, target, initializer="random").rows)
    rows["activ"] = torch.zeros(32)
    rows["##itides"] = torch.full((32,), float("nan"))
    del rows["cardiopathy"]
    with pytest.raises(InputError, match=r"3 new tokens have no usable embedding .*cardiopathy, activ, ##itides"):
        transplant_vocabulary(tiny_bert, tokenizer, target, rows)
    rows = {token: torch.ones(33) for token in NEW}
    with pytest.raises(InputError, match=rf"{len(NEW)} new tokens have no usable embedding .* not of size 32\)"):
        transplant_vocabulary(tiny_bert, tokenizer, target, rows)


def test_different_special_tokens_are_refused(tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer) -> None:
    other = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "<m>": 4}, mask_token="<m>")
    with pytest.raises(InputError, match=r"special tokens of the vocabularies differ.*<m>"):
        transplant_vocabulary(tiny_bert, tokenizer, other, {})


def test_an_untied_model_is_refused(tokenizer: BertTokenizer, target: BertTokenizer) -> None:
    model = build_tiny_bert(len(tokenizer))
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.clone())
    with pytest.raises(InputError, match="doesn't tie"):
        transplant_vocabulary(model, tokenizer, target, {token: torch.ones(32) for token in NEW})
    with pytest.raises(InputError, match="doesn't tie"):  # a head has no output embeddings
        transplant_vocabulary(build_tiny_head(layers=1), tokenizer, target, {})


def test_a_base_without_a_head_gets_one_and_it_is_logged(
    tiny_bert: BertForMaskedLM, tokenizer: BertTokenizer, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_bert.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    first, initialised = load_masked_lm(str(tmp_path), seed=3)
    assert initialised
    assert all(name.startswith("cls.") for name in initialised)
    assert "has no masked-LM head, a new one is initialised" in caplog.text
    again, _ = load_masked_lm(str(tmp_path), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.equal(first.bert.embeddings.word_embeddings.weight, tiny_bert.bert.embeddings.word_embeddings.weight)


def test_half_precision_files_are_loaded_in_full(tiny_bert: BertForMaskedLM, tmp_path: Any) -> None:
    # By default, from_pretrained keeps the dtype in the config.
    _copy(tiny_bert).half().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.float16
    assert load_masked_lm(str(tmp_path))[0].dtype == torch.float32


def test_models_that_cannot_become_a_masked_lm_are_refused(tmp_path: Any) -> None:
    RobertaConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a roberta model, which can't become a BertForMaskedLM"):
        load_masked_lm(str(tmp_path))
    with pytest.raises(InputError, match="not a local model folder"):
        load_masked_lm(str(tmp_path / "nowhere"))
