"""Which tokens the collator chooses and hides, and that masks depend on nothing but seed and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import BertTokenizer, PreTrainedTokenizerFast

from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.masking import (
    BatchLayout,
    BioptimusDataCollator,
    MaskingPlan,
    MaskingStrategy,
    mask_once,
)
from bioptimus_hf.vocabulary.tokenizer import build_tokenizer
from bioptimus_hf.vocabulary.training import train_vocabulary

TOKEN = MaskingStrategy("token", 0.15, corrupt=True)
WORD = MaskingStrategy("word", 0.2, corrupt=True)
ALWAYS = MaskingStrategy("word", 0.2, corrupt=False)
TEXT = "aspirin binding in severe asthma patients, bronchoconstriction (induced) with cardiopathy 12.5% of mice"


def rows(tokenizer: BertTokenizer, number: int, texts: tuple[str, ...] = (TEXT,)) -> list[dict[str, list[int]]]:
    return [{"input_ids": tokenizer(texts[row % len(texts)])["input_ids"]} for row in range(number)]


def words_of(tokenizer: BertTokenizer, ids: list[int]) -> list[list[int]]:
    """Positions of each word, derived from the token strings: an oracle that shares no code with the collator."""
    words: list[list[int]] = []
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if token in tokenizer.all_special_tokens:
            words.append([])
        elif token.startswith("##") and words and words[-1]:
            words[-1].append(place)
        else:
            words.append([place])
    return [word for word in words if word]


@pytest.mark.parametrize("strategy", [TOKEN, MaskingStrategy("word", 0.15, True), WORD, ALWAYS])
def test_rate_is_the_share_of_maskable_tokens(tokenizer: BertTokenizer, strategy: MaskingStrategy) -> None:
    batch = BioptimusDataCollator(tokenizer, strategy)(rows(tokenizer, 4000))
    maskable = ~torch.isin(batch["input_ids"], torch.tensor([0])) & (batch["attention_mask"] == 1)
    specials = 2 * len(batch["labels"])  # [CLS] and [SEP]
    share = (batch["labels"] != -100).sum().item() / (maskable.sum().item() - specials)
    # Pieces of a word are chosen together, so the tolerance is four standard deviations for about 60,000 words.
    assert share == pytest.approx(strategy.rate, abs=4 * np.sqrt(0.25 * 3 / 60_000))


def test_corruption_is_80_10_10_per_token(tokenizer: BertTokenizer) -> None:
    examples = rows(tokenizer, 4000)
    plain = BioptimusDataCollator(tokenizer)([example | {"labels": example["input_ids"]} for example in examples])
    batch = BioptimusDataCollator(tokenizer, WORD)(examples)
    chosen = batch["labels"] != -100
    assert torch.equal(batch["labels"][chosen], plain["input_ids"][chosen])
    assert torch.equal(batch["input_ids"][~chosen], plain["input_ids"][~chosen])
    now, before = batch["input_ids"][chosen], batch["labels"][chosen]
    masked, kept = now == tokenizer.mask_token_id, now == before
    number = len(now)
    assert masked.sum() / number == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / number))
    # About one random replacement in a hundred is the token itself by chance.
    assert kept.sum() / number == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / number) + 0.002)
    replaced = set(now[~masked & ~kept].tolist())
    unwanted = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(["[unused0]", "[unused1]"])}
    assert len(replaced) > 60
    assert not replaced & unwanted
    # Per token, not per word: some word has one piece masked and another not.
    assert any(
        len({bool(batch["input_ids"][row, place] == tokenizer.mask_token_id) for place in word}) == 2
        for row in range(200)
        for word in words_of(tokenizer, examples[row]["input_ids"])
        if chosen[row, word[0]]
    )


def test_without_corruption_every_choice_is_a_mask(tokenizer: BertTokenizer) -> None:
    batch = BioptimusDataCollator(tokenizer, ALWAYS)(rows(tokenizer, 500))
    chosen = batch["labels"] != -100
    assert chosen.any()
    assert set(batch["input_ids"][chosen].tolist()) == {tokenizer.mask_token_id}


@pytest.mark.parametrize("strategy", [WORD, ALWAYS])
def test_pieces_of_a_word_are_chosen_together(tokenizer: BertTokenizer, strategy: MaskingStrategy) -> None:
    examples = rows(tokenizer, 300)
    labels = BioptimusDataCollator(tokenizer, strategy)(examples)["labels"]
    words = words_of(tokenizer, examples[0]["input_ids"])
    assert any(len(word) > 3 for word in words)
    for row in range(300):
        for word in words:
            assert len({bool(labels[row, place] == -100) for place in word}) == 1


def test_punctuation_is_a_separate_word(tokenizer: BertTokenizer) -> None:
    # The stock whole-word collator treats "asthma," and "(induced)" as one word each.
    example = {"input_ids": tokenizer("asthma,")["input_ids"]}
    labels = BioptimusDataCollator(tokenizer, MaskingStrategy("word", 0.5, corrupt=False))([example] * 400)["labels"]
    assert (labels[:, 1] == -100).ne(labels[:, 2] == -100).any()


def test_a_block_may_begin_inside_a_word(tokenizer: BertTokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids(["##i", "##n", "asthma", "[SEP]", "##e", "##d", "the"])
    labels = BioptimusDataCollator(tokenizer, WORD)([{"input_ids": ids}] * 500)["labels"]
    chosen = labels != -100
    assert torch.equal(chosen[:, 0], chosen[:, 1])
    assert torch.equal(chosen[:, 4], chosen[:, 5])
    assert not chosen[:, 3].any()
    assert chosen[:, 0].ne(chosen[:, 4]).any()


def test_special_tokens_and_padding_are_never_chosen(tokenizer: BertTokenizer) -> None:
    texts = ("asthma ☃ of mice", "the", TEXT)
    collator = BioptimusDataCollator(tokenizer, MaskingStrategy("token", 1.0, True), pad_to_multiple_of=8)
    batch = collator(rows(tokenizer, 30, texts))
    assert batch["labels"].shape[1] % 8 == 0
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    for row in range(30):
        length = lengths[row % 3]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
        assert (batch["labels"][row, length:] == -100).all()
        assert (batch["input_ids"][row, length:] == tokenizer.pad_token_id).all()
    chosen = set(batch["labels"].unique().tolist()) - {-100}
    assert tokenizer.convert_tokens_to_ids("asthma") in chosen
    assert not chosen & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("columns", [[], ["attention_mask"], ["special_tokens_mask"], ["token_type_ids"]])
def test_optional_columns_change_no_mask(tokenizer: BertTokenizer, padded: bool, columns: list[str]) -> None:
    texts = [TEXT, "the asthma of mice", "severe"] * 5
    encoded = tokenizer(texts, padding=padded, return_special_tokens_mask=True)
    wanted = [{name: encoded[name][row] for name in ["input_ids", *columns]} for row in range(15)]
    bare = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    got = BioptimusDataCollator(tokenizer, WORD)(wanted)
    expected = BioptimusDataCollator(tokenizer, WORD)(bare)
    for name, values in expected.items():
        assert torch.equal(got[name], values), name
    assert ("token_type_ids" in got) == ("token_type_ids" in columns)


def test_a_special_tokens_mask_protects_what_it_marks(tokenizer: BertTokenizer) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    protect = [int(place < 6) for place in range(len(ids))]
    collator = BioptimusDataCollator(tokenizer, MaskingStrategy("token", 1.0, False))
    labels = collator([{"input_ids": ids, "special_tokens_mask": protect}])["labels"][0]
    assert (labels[:6] == -100).all()
    assert (labels[6:-1] != -100).all()


def test_examples_with_labels_pass_through_and_are_not_counted(tokenizer: BertTokenizer) -> None:
    examples = rows(tokenizer, 8)
    ready = [{"input_ids": [5, 6], "labels": [-100, 7]}, {"input_ids": [5], "labels": [9]}]
    disturbed, alone = BioptimusDataCollator(tokenizer, WORD), BioptimusDataCollator(tokenizer, WORD)
    for step in range(3):
        passed = disturbed(ready)
        assert passed["input_ids"].tolist() == [[5, 6], [5, tokenizer.pad_token_id]]
        assert passed["labels"].tolist() == [[-100, 7], [9, -100]]
        assert torch.equal(disturbed(examples)["labels"], alone(examples)["labels"]), step


def epoch_labels(loader: Any) -> torch.Tensor:
    return torch.cat([batch["labels"] for batch in loader])


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_epochs_are_masked_afresh_without_a_curriculum(
    tokenizer: BertTokenizer, workers: int, persistent: bool
) -> None:
    # The stock collator with a seed and workers gives every epoch the masks of the first.
    collator = BioptimusDataCollator(tokenizer, WORD, seed=7)
    torch.manual_seed(0)
    loader = DataLoader(
        rows(tokenizer, 64),  # type: ignore[arg-type]
        batch_size=8,
        collate_fn=collator,
        num_workers=workers,
        persistent_workers=persistent,
    )
    first, second = epoch_labels(loader), epoch_labels(loader)
    assert not torch.equal(first, second)
    # Within an epoch, no two batches have the same masks either, although all rows are the same.
    assert len({tuple(row.tolist()) for row in (first != -100).int()}) > 32


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (2, False), (2, True), (4, True)])
def test_under_a_plan_workers_change_nothing(tokenizer: BertTokenizer, workers: int, persistent: bool) -> None:
    def masks(workers: int, persistent: bool) -> torch.Tensor:
        collator = BioptimusDataCollator(tokenizer, TOKEN, seed=3)
        collator.follow(MaskingPlan((0, 11), (TOKEN, ALWAYS), BatchLayout(4)))
        loader = DataLoader(
            rows(tokenizer, 32),  # type: ignore[arg-type]
            batch_size=4,
            collate_fn=collator,
            num_workers=workers,
            persistent_workers=persistent,
        )
        seen = []
        for epoch in range(3):
            collator.begin(epoch * 8)
            seen.append(torch.cat([torch.stack([batch["input_ids"], batch["labels"]]) for batch in loader], dim=1))
        return torch.cat(seen, dim=1)

    expected = masks(0, False)
    assert torch.equal(masks(workers, persistent), expected)
    # The second strategy begins exactly at the twelfth micro-batch: from there on, every chosen token is [MASK].
    chosen = expected[1] != -100
    always = [(expected[0, row][chosen[row]] == tokenizer.mask_token_id).all().item() for row in range(96)]
    assert all(always[44:])
    assert not all(always[40:44])


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 1), (2, 4), (4, 2), (1, 1)])
def test_a_mask_depends_on_the_running_number_alone(tokenizer: BertTokenizer, batch_size: int, world_size: int) -> None:
    examples = rows(tokenizer, 16)
    whole = BioptimusDataCollator(tokenizer, WORD, seed=1)
    whole.follow(MaskingPlan((0,), (WORD,), BatchLayout(16)))
    whole.begin(0)
    expected = whole(examples)
    got = torch.empty_like(expected["labels"])
    for rank in range(world_size):
        collator = BioptimusDataCollator(tokenizer, WORD, seed=1)
        collator.follow(MaskingPlan((0,), (WORD,), BatchLayout(batch_size, rank=rank, world_size=world_size)))
        collator.begin(0)
        for first in range(rank * batch_size, 16, batch_size * world_size):
            part = slice(first, first + batch_size)
            got[part] = collator(examples[part])["labels"]
    assert torch.equal(got, expected["labels"])


def test_seeds_differ_and_repeat(tokenizer: BertTokenizer) -> None:
    examples = rows(tokenizer, 8)
    labels = [BioptimusDataCollator(tokenizer, WORD, seed=seed)(examples)["labels"] for seed in (0, 0, 1)]
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4), st.sampled_from([TOKEN, WORD, ALWAYS]))
@settings(max_examples=150, deadline=None)
def test_any_text_can_be_restored_from_its_labels(texts: list[str], strategy: MaskingStrategy) -> None:
    from helpers import tiny_vocabulary

    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tiny_vocabulary())})
    examples = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    batch = BioptimusDataCollator(tokenizer, strategy)(examples)
    for row, example in enumerate(examples):
        ids, length = example["input_ids"], len(example["input_ids"])
        labels = batch["labels"][row].tolist()
        now = batch["input_ids"][row, :length].tolist()
        assert [i if label == -100 else label for i, label in zip(now, labels[:length], strict=True)] == ids
        if strategy.unit == "word":
            assert all(len({labels[place] == -100 for place in word}) == 1 for word in words_of(tokenizer, ids))


def test_words_of_real_text_are_those_of_the_tokenizer(data_dir: Path, tokenizer: BertTokenizer) -> None:
    texts = load_corpus(data_dir / "corpus" / "abstracts.txt.gz", max_megabytes=0.3)["text"][:]
    real = build_tokenizer(train_vocabulary(texts, size=1200, like=tokenizer), like=tokenizer)
    collator = BioptimusDataCollator(real, MaskingStrategy("word", 0.3, corrupt=False))
    for text in texts[:60]:
        encoded = real(text, truncation=True, max_length=512)
        labels = collator([{"input_ids": encoded["input_ids"]}])["labels"][0].tolist()
        chosen: dict[int, set[bool]] = {}
        for place, word in enumerate(encoded.word_ids()):
            if word is not None and encoded["input_ids"][place] != real.unk_token_id:
                chosen.setdefault(word, set()).add(labels[place] != -100)
        assert all(len(fates) == 1 for fates in chosen.values())


def byte_level_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "<mask>": 1, "<pad>": 2}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_tokenizers_that_cannot_be_masked_are_rejected() -> None:
    with pytest.raises(InputError, match=r"(TokenizersBackend|PreTrainedTokenizerFast) has no mask token"):
        BioptimusDataCollator(byte_level_tokenizer(pad_token="<pad>"))
    with pytest.raises(InputError, match="has no padding token"):
        BioptimusDataCollator(byte_level_tokenizer(mask_token="<mask>"))
    bpe = byte_level_tokenizer(mask_token="<mask>", pad_token="<pad>")
    with pytest.raises(InputError, match="is not a WordPiece tokenizer"):
        BioptimusDataCollator(bpe, WORD)
    BioptimusDataCollator(bpe, TOKEN)  # any tokenizer has tokens


@pytest.mark.parametrize(
    ("unit", "rate", "said"), [("line", 0.1, "'line'"), ("word", 0.0, "not 0.0"), ("token", 1.5, "not 1.5")]
)
def test_strategies_validate_their_values(unit: Any, rate: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        MaskingStrategy(unit, rate, corrupt=True)


@pytest.mark.parametrize(("workers", "accumulation"), [(0, 1), (2, 1), (0, 3)])
def test_a_rate_rises_in_equal_steps(tokenizer: BertTokenizer, workers: int, accumulation: int) -> None:
    collator = BioptimusDataCollator(tokenizer, seed=3)
    strategies = (TOKEN, MaskingStrategy("token", 0.2, True))
    collator.follow(MaskingPlan((0, 4, 9), strategies, BatchLayout(4, accumulation), last_rates=(0.15, 0.6)))
    rates = [collator.strategy_at(step).rate for step in range(11)]
    assert rates == pytest.approx([0.15] * 4 + [0.2, 0.3, 0.4, 0.5, 0.6] + [0.6, 0.6])  # also for prefetched batches
    loader = DataLoader(
        rows(tokenizer, 4 * 9 * accumulation),  # type: ignore[arg-type]
        batch_size=4,
        collate_fn=collator,
        num_workers=workers,
    )
    collator.begin(0)
    alone = BioptimusDataCollator(tokenizer, seed=3)
    for micro_batch, batch in enumerate(loader):
        strategy = collator.strategy_at(micro_batch // accumulation)
        alone.follow(MaskingPlan((0,), (strategy,), BatchLayout(4)))
        alone.begin(micro_batch)
        assert torch.equal(batch["labels"], alone(rows(tokenizer, 4))["labels"]), micro_batch


def test_a_column_of_some_rows_counts_for_all(tokenizer: BertTokenizer) -> None:
    """What only a later row has must not be lost, and rows without it have its default."""
    collator = BioptimusDataCollator(tokenizer)
    plain = [{"input_ids": [2, 20, 21, 3]}, {"input_ids": [2, 22, 3]}]
    for name, value, expected in (
        ("attention_mask", [1, 0, 1], [[1, 1, 1, 1], [1, 0, 1, 0]]),
        ("token_type_ids", [0, 1, 1], [[0, 0, 0, 0], [0, 1, 1, 0]]),
        ("position_ids", [4, 5, 6], [[0, 1, 2, 3], [4, 5, 6, 0]]),
    ):
        batch = collator([plain[0], {**plain[1], name: value}])
        assert batch[name].tolist() == expected
        assert batch[name].dtype == torch.int64
    always = BioptimusDataCollator(tokenizer, MaskingStrategy("token", 1.0, False))
    batch = always([plain[0], {**plain[1], "special_tokens_mask": [1, 1, 1]}])
    assert "special_tokens_mask" not in batch
    assert (batch["labels"][1] == -100).all()
    assert torch.equal(batch["labels"][0], always(plain)["labels"][0])


def test_other_columns_of_numbers_are_passed_on(tokenizer: BertTokenizer) -> None:
    rows = [
        {"input_ids": [2, 20, 21, 3], "weights": [0.5, 1.0, 1.0, 0.5], "document": 7},
        {"input_ids": [2, 22, 3], "weights": [0.5, 2.0, 0.5], "document": 8},
    ]
    batch = BioptimusDataCollator(tokenizer, pad_to_multiple_of=8)(rows)
    assert batch["weights"].tolist() == [[0.5, 1, 1, 0.5, 0, 0, 0, 0], [0.5, 2, 0.5, 0, 0, 0, 0, 0]]
    assert batch["document"].tolist() == [7, 8]
    masked = mask_once(Dataset.from_list(rows), tokenizer)
    assert masked["document"][:] == [7, 8]
    assert masked["weights"][1] == [0.5, 2.0, 0.5]


def test_plain_lists_and_tensors_of_ids(tokenizer: BertTokenizer) -> None:
    lists = [[2, 20, 21, 3], [2, 22, 3]]
    expected = BioptimusDataCollator(tokenizer)([{"input_ids": row} for row in lists])
    for rows in (lists, [np.array(row) for row in lists], [torch.tensor(row) for row in lists]):
        got = BioptimusDataCollator(tokenizer)(rows)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in got)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [2, 20, 3], "text": "asthma"}, "text isn't made of numbers: remove this column"),
        ({"input_ids": [2, 20, 3], "pair": [1, 2]}, "pair has neither one number for each id nor one for the row"),
        ({"input_ids": [2, 20, 3], "document": 1}, "1 of 2 rows have no document: give it to all rows, or to none"),
        ({"input_ids": [2, 20, 3], "labels": [2, 20, 3]}, "1 of 2 rows have no labels"),
        ({"text": "asthma"}, "a row has no column input_ids: tokenise the data set first"),
        ({"input_ids": [2, 9999, 3]}, "a row has the id 9999, but the tokenizer has"),
    ],
)
def test_columns_that_fit_no_batch_are_named(tokenizer: BertTokenizer, row: dict[str, Any], message: str) -> None:
    other = {"input_ids": [2, 21, 22, 3]}
    if "text" in row or "pair" in row:
        other |= {name: value for name, value in row.items() if name != "input_ids"}
    with pytest.raises(InputError, match=message):
        BioptimusDataCollator(tokenizer)([other, row])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plan_without_a_beginning_is_rejected(tokenizer: BertTokenizer, workers: int) -> None:
    """Otherwise the curriculum would never leave its first phase."""
    collator = BioptimusDataCollator(tokenizer)
    collator.follow(MaskingPlan((0,), (MaskingStrategy("token", 0.15, True),), BatchLayout(2)))
    loader = DataLoader([{"input_ids": [2, 20, 21, 3]}] * 4, batch_size=2, collate_fn=collator, num_workers=workers)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="call begin before each pass over the data, or use a CurriculumLoop"):
        next(iter(loader))


def test_a_second_pass_of_workers_without_a_beginning_is_rejected(tokenizer: BertTokenizer) -> None:
    """They would repeat the masks and the phase of the first pass."""
    collator = BioptimusDataCollator(tokenizer)
    collator.follow(MaskingPlan((0,), (MaskingStrategy("token", 0.15, True),), BatchLayout(2)))
    loader = DataLoader([{"input_ids": [2, 20, 21, 3]}] * 4, batch_size=2, collate_fn=collator, num_workers=2)  # type: ignore[arg-type]
    collator.begin(0)
    assert len(list(loader)) == 2
    with pytest.raises(InputError, match="call begin before each pass over the data"):
        list(loader)
    collator.begin(2)
    assert len(list(loader)) == 2


def test_a_column_that_is_none_counts_as_missing(tokenizer: BertTokenizer) -> None:
    rows = [{"input_ids": [2, 20, 3], "attention_mask": None}, {"input_ids": [2, 21, 3], "attention_mask": [1, 0, 1]}]
    assert BioptimusDataCollator(tokenizer)(rows)["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 1]]
