"""Fine-tune heads: the best epoch, the exact loss, the order of training, and equal weights for equal seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import save_architecture
from datasets import DatasetDict
from helpers import build_tiny_bert, build_tiny_tokenizer
from transformers import (
    AutoTokenizer,
    BertForTokenClassification,
    BertTokenizer,
    DataCollatorForTokenClassification,
    TrainingArguments,
    pipeline,
)

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import new_head, save_head
from bioptimus_hf.ner.finetuning import (
    HeadTrainer,
    best_epoch_arguments,
    finetune,
    mean_cross_entropy,
    windows_dataset,
)
from bioptimus_hf.ner.prediction import predict_tags
from bioptimus_hf.ner.scores import entity_scores
from bioptimus_hf.ner.tasks import (
    NerTask,
    label_names,
    load_ner,
    tags_of,
)

SAMPLE = Path(str(resources.files("bioptimus_hf") / "sample" / "ner"))


@pytest.fixture(scope="module")
def tiny_tokenizer() -> BertTokenizer:
    return build_tiny_tokenizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: BertTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_tiny_bert(len(tiny_tokenizer)).save_pretrained(folder)
    # Without a length limit, like tokenizers made by transformers 5, so the limit of the saved head must be ours.
    BertTokenizer(vocab=tiny_tokenizer.get_vocab()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sample() -> DatasetDict:
    return load_ner(NerTask("sample"), SAMPLE)


def train(base: Path, sample: DatasetDict, folder: Path, *, seed: int, **options: Any) -> tuple[Any, Any, Any]:
    model, tokenizer = new_head(base, label_names(sample["train"]), seed=seed)
    arguments = best_epoch_arguments(
        folder, seed=seed, use_cpu=True, disable_tqdm=True, per_device_train_batch_size=16, **options
    )
    return model, tokenizer, finetune(model, tokenizer, sample, arguments)


@pytest.fixture(scope="module")
def head(base: Path, sample: DatasetDict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A head trained on the sample, and the history of the training. The learning rate is too high on purpose."""
    folder = tmp_path_factory.mktemp("head")
    options = {"learning_rate": 2e-2, "num_train_epochs": 4, "lr_scheduler_type": "constant"}
    model, tokenizer, history = train(base, sample, folder / "checkpoints", seed=1, **options)
    save_head(model, tokenizer, folder / "saved")
    return folder / "saved", history


def test_the_saved_head_is_the_best_epoch(head: tuple[Path, list[Any]], sample: DatasetDict) -> None:
    folder, history = head
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    best = max(row["f1"] for row in history)
    assert best > history[-1]["f1"] or best > history[0]["f1"], "all epochs are equal: this run proves nothing"
    model = BertForTokenClassification.from_pretrained(folder)
    tokenizer, sentences = AutoTokenizer.from_pretrained(folder), sample["validation"]["tokens"]
    predicted = predict_tags(
        model, tokenizer, sentences, batch_size=8
    )  # as in training: other batches round differently
    assert entity_scores(tags_of(sample["validation"]), predicted)["f1"] == best > 0.1


def test_the_saved_head_works_in_a_stock_pipeline(head: tuple[Path, list[Any]]) -> None:
    folder, _ = head
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert list(config["id2label"].values()) == ["O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"]
    assert (folder / "model.safetensors").is_file()
    assert (folder / "vocab.txt").is_file()
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 512
    text = "Leflunomide caused thrombocytopenia and nephrotoxicity in patients with bronchoconstriction."
    found = pipeline("ner", model=str(folder), aggregation_strategy="first", device="cpu")(text)
    assert found
    for entity in found:
        assert entity["entity_group"] in {"Chemical", "Disease"}
        edges = text[max(entity["start"] - 1, 0) : entity["end"] + 1]
        assert re.fullmatch(r"\W?\w.*?\W?", edges), f"{edges!r} is no whole word"
        for place in (entity["start"], entity["end"]):
            assert not re.fullmatch(r"\w\w", text[max(place - 1, 0) : place + 1]) or place == 0


def test_equal_seeds_give_equal_weights(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    few = DatasetDict({split: part.select(range(24)) for split, part in sample.items()})
    once, again, other = (
        train(base, few, tmp_path / str(number), seed=seed, learning_rate=1e-3, num_train_epochs=2)[0].state_dict()
        for number, seed in enumerate((5, 5, 6))
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["classifier.weight"], other["classifier.weight"])


def test_a_trained_head_is_a_plain_model(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    """What makes training faster is gone afterwards; words that didn't occur were decayed, and nothing else."""
    few = DatasetDict({split: part.select(range(24)) for split, part in sample.items()})
    options = {"learning_rate": 1e-2, "weight_decay": 0.5, "lr_scheduler_type": "linear", "num_train_epochs": 1}
    head, tokenizer, _ = train(base, few, tmp_path, seed=5, bf16=True, **options)
    assert type(head) is BertForTokenClassification
    assert not {"forward", "_original_forward"} & vars(head).keys()  # which Accelerate makes compute in bfloat16
    assert head.config.architectures == new_head(base, label_names(few["train"]), seed=5)[0].config.architectures
    rows = head.get_input_embeddings()
    assert type(rows) is torch.nn.Embedding
    used = {piece for ids in windows_dataset(few["train"], tokenizer)["input_ids"] for piece in ids}
    before = new_head(base, label_names(few["train"]), seed=5)[0].get_input_embeddings().weight
    decayed = before * (1 - 1e-2 * 0.5) * (1 - 0.5e-2 * 0.5)  # 24 windows are 2 updates
    equal = torch.isclose(rows.weight, decayed, rtol=1e-5, atol=1e-7).all(-1)
    assert set((~equal).nonzero()[:, 0].tolist()) == used


def test_heads_of_other_architectures_train_with_padding_and_are_evaluated_in_float32(
    sample: DatasetDict, tmp_path: Path
) -> None:
    save_architecture("roberta", tmp_path / "base")
    few = DatasetDict({split: part.select(range(24)) for split, part in sample.items()})
    head, tokenizer = new_head(tmp_path / "base", label_names(few["train"]), seed=5)
    dtypes = set()
    head.classifier.register_forward_hook(lambda module, _, logits: dtypes.add((module.training, logits.dtype)))
    arguments = best_epoch_arguments(
        tmp_path / "checkpoints", use_cpu=True, disable_tqdm=True, bf16=True, num_train_epochs=1
    )
    for _ in range(2):  # a trained head can be trained further, in the same precision
        dtypes.clear()
        finetune(head, tokenizer, few, arguments)
        assert dtypes == {(True, torch.bfloat16), (False, torch.float32)}
    assert type(head.get_input_embeddings()) is torch.nn.Embedding


def test_a_head_that_diverges_is_refused(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    """By default, Trainer logs the mean of the other losses in place of a NaN."""
    few = DatasetDict({split: part.select(range(24)) for split, part in sample.items()})
    for epochs in (1, 2):  # after one step the weights are not finite; the loss shows it a step later
        with pytest.raises(InputError, match=r"training diverged\. Nothing was saved"):
            train(base, few, tmp_path / str(epochs), seed=5, learning_rate=1e38, num_train_epochs=epochs)


def test_a_head_that_finds_nothing_is_reported(
    base: Path, sample: DatasetDict, tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    few = DatasetDict({split: sample[split].select(range(20)) for split in sample})
    arguments = best_epoch_arguments(tmp_path, use_cpu=True, disable_tqdm=True, num_train_epochs=2, learning_rate=1e-6)
    for bias in (0.0, 100.0):
        head, tokenizer = new_head(base, label_names(few["train"]), seed=1)
        with torch.no_grad():
            head.classifier.bias[0] = bias  # of O
        scores = finetune(head, tokenizer, few, arguments)
        reported = any("finds no entity of the development set" in warning for warning in warnings_of_package())
        assert reported == (bias > 0) == (not any(of_epoch["f1"] for of_epoch in scores))


def test_a_batch_that_holds_an_epoch_is_reported(
    base: Path, sample: DatasetDict, tmp_path: Path, warnings_of_package: Callable[[], list[str]]
) -> None:
    few = DatasetDict({split: sample[split].select(range(20)) for split in sample})
    train(base, few, tmp_path, seed=1, num_train_epochs=1)
    assert not any("update" in warning for warning in warnings_of_package())
    train(base, few, tmp_path, seed=1, num_train_epochs=1, gradient_accumulation_steps=2)
    assert "an epoch has a single update: the 20 windows of text fit into one batch" in warnings_of_package()


def test_weights_depend_on_the_training_set_alone(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    few = sample["train"].select(range(24))
    once, again = (
        train(base, DatasetDict(train=few, validation=sample["train"].select(rows)), tmp_path / name, seed=5,
              learning_rate=1e-3, num_train_epochs=1)[0].state_dict()
        for name, rows in (("once", range(24, 40)), ("again", range(60, 90)))
    )  # fmt: skip
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_loss_and_gradient_do_not_depend_on_accumulation(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    model, tokenizer = new_head(base, label_names(sample["train"]), seed=0)
    rows = windows_dataset(sample["train"], tokenizer).select(range(4))
    assert len({len(row) for row in rows["input_ids"]}) > 1  # otherwise a mean of means would pass

    def first_update(batch: int, accumulation: int) -> tuple[float, float]:
        head, _ = new_head(base, label_names(sample["train"]), seed=0)
        for module in head.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            max_grad_norm=1e9,
        )
        trainer = HeadTrainer(
            model=head,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            compute_loss_func=mean_cross_entropy,
            max_length=512,
        )
        trainer.train()
        log = trainer.state.log_history[0]
        return log["loss"], log["grad_norm"]

    batch = DataCollatorForTokenClassification(tokenizer)([rows[number] for number in range(4)])
    loss = model.eval()(**batch).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        assert first_update(batch_size, accumulation) == pytest.approx((loss.item(), norm.item()), rel=1e-4)


def test_the_training_order_depends_on_lengths_and_seed_alone(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    """The processes of a run must agree on the order, although dropout advances their generators differently."""
    model, tokenizer = new_head(base, label_names(sample["train"]), seed=0)
    rows = windows_dataset(sample["train"], tokenizer)

    def order(seed: int, state: int) -> list[list[int]]:
        arguments = best_epoch_arguments(tmp_path, seed=seed, use_cpu=True, per_device_train_batch_size=8)
        trainer = HeadTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, max_length=512)
        torch.manual_seed(state)
        sampler = trainer.get_train_dataloader().batch_sampler
        return [[row for batch in sampler for row in batch] for _ in range(2)]

    first, second = order(seed=3, state=0)
    assert sorted(first) == sorted(second) == list(range(len(rows)))
    assert first != second
    assert order(seed=3, state=1) == [first, second]
    assert order(seed=4, state=0) != [first, second]
    lengths = [len(ids) for ids in rows["input_ids"]]
    spread = [max(lengths[row] for row in first[i : i + 8]) - min(lengths[row] for row in first[i : i + 8])
              for i in range(0, len(rows), 8)]  # fmt: skip
    assert sum(spread) / len(spread) < 0.2 * (max(lengths) - min(lengths))


def test_the_head_and_the_data_must_be_of_one_task(base: Path, sample: DatasetDict, tmp_path: Path) -> None:
    arguments = best_epoch_arguments(tmp_path, use_cpu=True)
    names = label_names(sample["train"])
    for labels in (["O", "B-Gene", "I-Gene"], names[:-1], [*names[1:], names[0]]):
        model, tokenizer = new_head(base, labels, seed=0)
        with pytest.raises(InputError, match=r"^model: it has the labels .*, but the data set has O, B-.*: make"):
            finetune(model, tokenizer, sample, arguments)
    model, tokenizer = new_head(base, names, seed=0)
    with pytest.raises(InputError, match=r"^dataset: it has no split 'validation', only train$"):
        finetune(model, tokenizer, DatasetDict(train=sample["train"]), arguments)
    unnamed = DatasetDict({split: rows.rename_column("ner_tags", "labels") for split, rows in sample.items()})
    with pytest.raises(InputError, match=r"^dataset\['train'\]: the data set needs a column 'ner_tags', and has"):
        finetune(model, tokenizer, unnamed, arguments)
    with pytest.raises(InputError, match=r"^the model is a BertForMaskedLM, not a token classifier: give a fine-tuned"):
        predict_tags(build_tiny_bert(len(tokenizer)), tokenizer, [["Aspirin"]])
    with pytest.raises(InputError, match=r"^sentences\[0\]: is a single string: give a list$"):
        predict_tags(model, tokenizer, ["Aspirin in asthma"])
