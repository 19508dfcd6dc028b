"""NER heads: words -> windows of pieces -> a linear head, trained exactly, its best epoch kept -> tags of words."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import tqdm
from datasets import Dataset, DatasetDict
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerControl,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from bioptimus_hf.errors import InputError
from bioptimus_hf.hardware import prepare_for_cpu
from bioptimus_hf.models import IGNORED_LABEL, MAX_LENGTH, check_finite
from bioptimus_hf.ner.scores import entity_scores
from bioptimus_hf.ner.tasks import tags_of
from bioptimus_hf.ner.windows import sentence_windows

logger = logging.getLogger(__name__)

DIVERGED = "Training of the head diverged: nothing was saved. Try a lower --learning_rate or more --warmup_steps"


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: DatasetDict,
    arguments: TrainingArguments,
    *,
    max_length: int = MAX_LENGTH,
    num_proc: int | None = None,
) -> list[dict[str, float]]:
    """Train a head, and the encoder under it, on `train`; leave the model as it was after its best epoch.

    The best epoch is that of the highest strict F1 on `validation`, the first of equals: BLURB tunes the number of
    epochs on it, and this does so within one training.

    Args:
        model: from `new_head`; trained in place.
        dataset: from `load_ner`; `test` is not touched.
        arguments: `evaluates_each_epoch` makes ones that do what is said above.
        max_length: most pieces of a window, [CLS] and [SEP] among them.

    Returns:
        For each epoch: `epoch`, and on `validation` `precision`, `recall` and `f1` in shares between 0 and 1.

    Raises:
        InputError: training diverged: the loss or a weight is NaN or infinite.
    """
    max_length = min(max_length, model.config.max_position_embeddings)
    prepare_for_cpu(model, arguments.device, dropout=model.config.attention_probs_dropout_prob)
    train = windows_dataset(dataset["train"], tokenizer, max_length=max_length, num_proc=num_proc)
    trainer = HeadTrainer(
        model=model,
        args=arguments,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        train_dataset=train,
        eval_dataset=dataset["validation"],
        processing_class=tokenizer,
        compute_loss_func=mean_cross_entropy,
        max_length=max_length,
    )
    trainer.train()
    check_finite(model.named_parameters(), DIVERGED)
    return [
        {name.removeprefix("eval_"): value for name, value in row.items() if name != "step"}
        for row in trainer.state.log_history
        if "eval_f1" in row
    ]


def evaluates_each_epoch(output_dir: str | Path, **arguments: Any) -> TrainingArguments:
    """Return arguments with which `finetune` keeps the best epoch; checkpoints go to `output_dir`."""
    return TrainingArguments(
        output_dir=str(output_dir),
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="best",
        metric_for_best_model="f1",
        greater_is_better=True,
        load_best_model_at_end=True,
        logging_nan_inf_filter=False,  # which would hide that training diverged
        save_only_model=True,
        save_total_limit=1,
        ddp_find_unused_parameters=False,
        **arguments,
    )


class HeadTrainer(Trainer):
    """Trainer that batches windows of like length, and whose evaluation scores entities of whole sentences.

    The stock way to batch by length reorders the evaluation set too, and draws the order from torch's own generator:
    where dropout uses the same one, as on a CPU, two processes soon disagree and miss part of the data.
    """

    control: TrainerControl

    def __init__(self, *args: Any, max_length: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_length = max_length

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            lengths=[len(ids) for ids in dataset["input_ids"]],
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent; end a training that has diverged.

        Raises:
            InputError: the loss is NaN or infinite.
        """
        if not math.isfinite(logs.get("loss", 0.0)):
            raise InputError(f"the loss is {logs['loss']} in epoch {self.state.epoch:.0f}. {DIVERGED}")
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the data set, from `load_ner`, in strict IOB2."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        predicted = predict_tags(
            self.model,
            self.processing_class,
            dataset["tokens"],
            batch_size=self.args.eval_batch_size,
            max_length=self.max_length,
        )
        scores = entity_scores(tags_of(dataset), predicted)
        metrics = {f"{metric_key_prefix}_{name}": scores[name] for name in ("precision", "recall", "f1")}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def mean_cross_entropy(
    outputs: Mapping[str, torch.Tensor], labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
) -> torch.Tensor:
    """Return the cross-entropy (nats) summed over these labels, divided by the number of labels of the whole update.

    So the loss does not depend on how an update is spread over accumulation steps and processes. The model's own loss
    is a mean over the micro-batch, and Trainer adds these up (transformers 5.24).
    """
    logits = outputs["logits"].flatten(0, 1).float()
    total = cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
    return total / num_items_in_batch


def windows_dataset(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int = MAX_LENGTH, num_proc: int | None = None
) -> Dataset:
    """Cut a data set from `load_ner` into windows for training.

    Returns:
        A row a window: `input_ids`, `attention_mask` and `labels`, which have the tag's id at the first piece of each
        word, in one window only, and -100 elsewhere.
    """
    return cast(
        Dataset,
        dataset.map(
            _labelled_windows,
            batched=True,
            remove_columns=dataset.column_names,
            fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
            num_proc=num_proc if num_proc and num_proc > 1 else None,
            desc="Cutting words into pieces",
        ),
    )


@torch.no_grad()
def predict_tags(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    *,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
) -> list[list[str]]:
    """Predict a tag for each word, exactly once, however long the sentence.

    Args:
        sentences: words of each.
        batch_size: windows read at once; those of like length stand together.

    Returns:
        As many tags as words, in the order of the words.
    """
    names = model.config.id2label
    max_length = min(max_length, model.config.max_position_embeddings)
    tags: list[list[str]] = [[""] * len(words) for words in sentences]
    windows = [
        (number, window)
        for number, its in enumerate(sentence_windows(sentences, tokenizer, max_length=max_length))
        for window in its
    ]
    windows.sort(key=lambda pair: -len(pair[1].input_ids))
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(windows), batch_size), desc="Tagging", leave=False):
        batch = windows[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [window.input_ids for _, window in batch]}, return_tensors="pt")
        best = model(**padded.to(model.device)).logits.argmax(-1).tolist()
        for row, (number, window) in zip(best, batch, strict=True):
            for word, place in enumerate(window.heads, start=window.first_word):
                tags[number][word] = names[row[place]]
    model.train(was_training)
    return tags


def _labelled_windows(
    batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[list[int]]]:
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    cut = sentence_windows(batch["tokens"], tokenizer, max_length=max_length)
    for tags, windows in zip(batch["ner_tags"], cut, strict=True):
        for window in windows:
            labels = [IGNORED_LABEL] * len(window.input_ids)
            for word, place in enumerate(window.heads, start=window.first_word):
                labels[place] = tags[word]
            rows["input_ids"].append(window.input_ids)
            rows["attention_mask"].append([1] * len(window.input_ids))
            rows["labels"].append(labels)
    return rows
