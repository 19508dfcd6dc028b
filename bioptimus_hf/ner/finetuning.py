"""Fine-tune an encoder with a linear NER head, and keep the best epoch."""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, DatasetDict
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler
from transformers import (
    DataCollatorForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import map_processes
from bioptimus_hf.errors import InputError, TrainingDiverged
from bioptimus_hf.hardware import prepare_for_cpu
from bioptimus_hf.models import (
    DOCUMENT_WINDOW,
    IGNORED_LABEL,
    IOB2,
    MAX_LENGTH,
    SENTENCE_WINDOW,
    TAGGING_SCHEME,
    check_finite,
    check_tokenizer,
    longest_input,
)
from bioptimus_hf.ner.joint import JointData, partial_cross_entropy
from bioptimus_hf.ner.options import Context, check_context
from bioptimus_hf.ner.packed_bert import (
    PackedBertForTokenClassification,
    PackedCollator,
    can_be_packed,
)
from bioptimus_hf.ner.prediction import predict_tags, predict_tasks
from bioptimus_hf.ner.scores import entity_scores
from bioptimus_hf.ner.tasks import check_splits, documents_of, label_names, tags_of
from bioptimus_hf.ner.text_words import find_punctuation_in_words
from bioptimus_hf.ner.trained_rows import TrainedRows, can_train_rows, decay_with, train_rows
from bioptimus_hf.ner.windows import Window, document_windows, sentence_windows, sentences_by_document
from bioptimus_hf.ner.word_pieces import WordEncoder
from bioptimus_hf.pretraining.training_progress import TrainingProgress
from bioptimus_hf.progress import progress_of_datasets

logger = logging.getLogger(__name__)

_ADAMW = ("adamw_torch", "adamw_torch_fused")  # decay weights by a factor, whatever their gradients
_SCORES = ("precision", "recall", "f1")
# The latest result of `windows_dataset`, for the next seed, by its fingerprint.
_latest_windows: dict[str, Dataset] = {}
TRAINER = 2
"""Number of the way in which heads are trained. Heads of another number have other weights with the same settings."""
DOCUMENT_WINDOWS = 2
"""Number of the way in which documents are divided into windows, for heads that are trained on documents."""
DIVERGED = "training diverged. Nothing was saved; try a lower learning_rate or more warmup_steps"


@check_call()
def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: DatasetDict | JointData,
    arguments: TrainingArguments,
    *,
    max_length: int = MAX_LENGTH,
    context: Context = "sentence",
    num_proc: int | None = None,
) -> list[dict[str, float]]:
    """Train a head and its encoder on `train`, and restore the weights of the best epoch.

    The best epoch is the first one with the highest strict F1 on `validation`; of a joint head, with the highest mean
    F1 of the tasks. This replaces tuning the number of epochs in separate trainings, as BLURB does.

    Args:
        model: from `new_head`; trained in place.
        dataset: from `load_ner`, of which `test` isn't used; or from `join_tasks`.
        arguments: from `best_epoch_arguments`.
        max_length: maximum number of word pieces in a window, including those that begin and end it.
        context: `sentence` trains on single sentences, `document` on sentences between their neighbours (see
            `document_windows`). The configuration of the model says which of the two, that tags are IOB2, and what
            punctuation is part of words, so that annotation finds the entities that are scored.
        num_proc: number of processes for tokenising.

    Returns:
        For each epoch `epoch`, and `precision`, `recall` and `f1` on `validation`, in shares between 0 and 1. For a
        joint head, these are means over the tasks, and `<task>_f1` is the F1 of each.

    Raises:
        InputError: the model has other labels than the data set, or fewer embeddings than the tokenizer has tokens; the
            data set lacks a split or column; or a joint head is to be trained on documents.
        TrainingDiverged: the loss or a weight is NaN or infinite.
    """
    check_tokenizer(tokenizer, model.config)
    _check_dataset(model, dataset, context)
    max_length = min(max_length, longest_input(model.config))
    loss: Callable[..., torch.Tensor] = mean_cross_entropy
    if isinstance(dataset, JointData):
        sentences, validation, trainer_class = dataset.train, dataset.validation, JointTrainer
        loss = partial(partial_cross_entropy, compatible=dataset.compatible)
    else:
        sentences, validation, trainer_class = dataset["train"], dataset["validation"], HeadTrainer
    _record_reading(model.config, sentences["tokens"][:], context, max_length)
    train = windows_dataset(sentences, tokenizer, max_length=max_length, context=context, num_proc=num_proc)
    _warn_of_a_single_update(train, arguments)
    with _prepared(model, tokenizer, train, arguments) as is_packed:
        trainer = trainer_class(
            model,
            arguments,
            data_collator=PackedCollator() if is_packed else DataCollatorForTokenClassification(tokenizer),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            compute_loss_func=loss,
            max_length=max_length,
        )
        trainer.train()
    check_finite(model.named_parameters(), "the new head", DIVERGED, error=TrainingDiverged)
    return _scores_by_epoch(trainer.state.log_history)


def _scores_by_epoch(history: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the scores of each epoch, and warn of a head that never found an entity."""
    scores = [
        {name.removeprefix("eval_"): value for name, value in row.items() if name != "step"}
        for row in history
        if "eval_f1" in row
    ]
    if not any(of_epoch["f1"] for of_epoch in scores):
        logger.warning(
            "the head finds no entity of the development set after any epoch: try a lower learning_rate, more "
            "warmup_steps, or more epochs if the training set is small"
        )
    return scores


@contextmanager
def _prepared(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Dataset, arguments: TrainingArguments
) -> Iterator[bool]:
    """Make training faster on a CPU; afterwards, the model is as it was, with other weights.

    Yields:
        Whether the model now reads batches of a `PackedCollator`.
    """
    kind, architectures = type(model), model.config.architectures
    rows: TrainedRows | None = None
    on_cpu = arguments.device.type == "cpu"
    is_packed = on_cpu and can_be_packed(model) and not arguments.gradient_checkpointing
    try:
        if is_packed:
            model.__class__ = PackedBertForTokenClassification
        else:
            prepare_for_cpu(model, arguments.device, dropout=_attention_dropout(model.config))
        if on_cpu and arguments.optim in _ADAMW and can_train_rows(model):
            padding = [] if is_packed else [tokenizer.pad_token_id]  # a batch has it, though no window does
            rows = train_rows(model, chain(padding, *train["input_ids"][:]))
        yield is_packed
    finally:
        # Accelerate's: a `forward` in bfloat16, and the mark with which the model wouldn't be prepared another time.
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            vars(model).pop(name, None)
        model.__class__ = kind
        model.config.architectures = architectures  # saving a checkpoint has put the name of the class there
        if rows is not None:
            model.set_input_embeddings(rows.restored())


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Do without the `forward` that Accelerate has given to the model, which computes in bfloat16."""
    forward = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if forward is not None:
            model.forward = forward


def _record_reading(
    configuration: PretrainedConfig, sentences: Iterable[Sequence[str]], context: Context, max_length: int
) -> None:
    """Say in the configuration of a head how it is trained and scored, so that annotation does the same."""
    setattr(configuration, TAGGING_SCHEME, IOB2)
    find_punctuation_in_words(sentences).record(configuration)
    for key, of in ((SENTENCE_WINDOW, "sentence"), (DOCUMENT_WINDOW, "document")):
        vars(configuration).pop(key, None)
        if context == of:
            setattr(configuration, key, max_length)


def _warn_of_a_single_update(train: Dataset, arguments: TrainingArguments) -> None:
    if len(train) <= arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size:
        logger.warning("an epoch has a single update: the %d windows of text fit into one batch", len(train))


def _check_dataset(model: PreTrainedModel, dataset: DatasetDict | JointData, context: Context) -> None:
    check_context(context)
    if isinstance(dataset, JointData):
        if context == "document":
            raise InputError("joint heads are trained on sentences", argument="context")
        wanted = list(dataset.tags)
    else:
        check_splits(dataset, ("train", "validation"), argument="dataset")
        wanted = label_names(dataset["train"])
    labels = [name for _, name in sorted(model.config.id2label.items())]
    if labels != wanted:
        raise InputError(
            f"it has the labels {', '.join(labels[:9])}, but the data set has {', '.join(wanted[:9])}: make a new head "
            f"for the labels of the data set",
            argument="model",
        )


@check_call()
def best_epoch_arguments(output_dir: str | Path, **arguments: Any) -> TrainingArguments:
    """Return arguments for `finetune`, which evaluates after each epoch and restores the best one.

    Args:
        output_dir: folder for checkpoints.
        arguments: further fields of `TrainingArguments`.
    """
    return TrainingArguments(
        output_dir=str(output_dir),
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="best",
        metric_for_best_model="f1",
        greater_is_better=True,
        load_best_model_at_end=True,
        logging_nan_inf_filter=False,  # would hide that training diverged
        save_only_model=True,
        save_total_limit=1,
        ddp_find_unused_parameters=False,
        **arguments,
    )


class _Shuffled(Sampler[int]):
    """All rows in random order. Accelerate would replace a `RandomSampler`, and draw from the global generator."""

    def __init__(self, rows: int, generator: torch.Generator) -> None:
        self._rows = rows
        self._generator = generator

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self._rows, generator=self._generator).tolist()


class HeadTrainer(Trainer):
    """Train on windows, and evaluate entities of whole sentences.

    With a `PackedCollator`, batches have no padding; with any other, they consist of windows of similar length.

    The stock `group_by_length` also reorders the evaluation set, and draws its order from torch's global generator.
    Dropout uses the same generator on a CPU, so the processes of a run would soon disagree about the order and skip
    part of the data.
    """

    control: TrainerControl

    def __init__(self, *args: Any, max_length: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_length = max_length
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(TrainingProgress())

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer of the parent class, which also decays the rows of the embedding that aren't trained."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        for module in self.model.modules():
            if isinstance(module, TrainedRows):
                decay_with(module, optimizer)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return the batches, in an order that depends on the seed alone; those to be padded have similar lengths."""
        dataset = cast(Dataset, self.train_dataset)
        columns = [column for column in dataset.column_names if column != "attention_mask"]
        rows = [
            dict(zip(columns, row, strict=True))
            for row in zip(*(dataset[column][:] for column in columns), strict=True)
        ]
        generator = torch.Generator().manual_seed(self.args.seed)
        sampler: Sampler[int]
        if isinstance(self.data_collator, PackedCollator):
            sampler = _Shuffled(len(rows), generator)
        else:
            sampler = LengthGroupedSampler(
                self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
                lengths=[len(row["input_ids"]) for row in rows],
                generator=generator,
            )
        loader = DataLoader(
            cast("torch.utils.data.Dataset[dict[str, torch.Tensor]]", rows),
            batch_size=self.args.train_batch_size,
            sampler=sampler,
            collate_fn=self.data_collator,
            drop_last=self.args.dataloader_drop_last,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return cast("DataLoader[dict[str, torch.Tensor]]", self.accelerator.prepare(loader))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent does, and stop a training that has diverged.

        Raises:
            TrainingDiverged: the loss is NaN or infinite.
        """
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingDiverged(f"epoch {self.state.epoch:.0f}: the loss is {logs['loss']}: {DIVERGED}")
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the `scores` of a data set, by default of `eval_dataset`."""
        with _in_float32(self.model):
            scores = self.scores(self.eval_dataset if eval_dataset is None else eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": score for name, score in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def scores(self, dataset: Any) -> dict[str, float]:
        """Return strict IOB2 precision, recall and F1 on a data set from `load_ner`."""
        predicted = predict_tags(
            self.model,
            self.processing_class,
            dataset["tokens"],
            batch_size=self.args.eval_batch_size,
            max_length=self.max_length,
            documents=documents_of(dataset),
        )
        scores = entity_scores(tags_of(dataset), predicted)
        return {name: scores[name] for name in _SCORES}


class JointTrainer(HeadTrainer):
    """Train as the parent does, and evaluate on several tasks."""

    def scores(self, dataset: Any) -> dict[str, float]:
        """Return the means of precision, recall and F1 over tasks, and `<task>_f1` of each.

        Args:
            dataset: data from `load_ner`, by task.
        """
        predicted = predict_tasks(
            self.model,
            self.processing_class,
            dataset,
            batch_size=self.args.eval_batch_size,
            max_length=self.max_length,
        )
        scores = {task: entity_scores(tags_of(data), predicted[task]) for task, data in dataset.items()}
        means = {name: statistics.fmean(of_task[name] for of_task in scores.values()) for name in _SCORES}
        return means | {f"{task}_f1": of_task["f1"] for task, of_task in scores.items()}


def mean_cross_entropy(
    outputs: Mapping[str, torch.Tensor], labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
) -> torch.Tensor:
    """Return the summed cross-entropy (nats), divided by the number of labels of the whole update.

    This way the loss doesn't depend on how an update is split over accumulation steps and processes. The loss that the
    model computes is a mean over the micro-batch, and Trainer adds up these means (transformers 5.24).

    Args:
        outputs: with `logits` (..., tags).
        labels: (...), of the same shape; -100 is ignored.
        num_items_in_batch: number of labels of the update.
    """
    logits = outputs["logits"].flatten(0, -2).float()
    total = cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
    return total / num_items_in_batch


def windows_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = MAX_LENGTH,
    context: Context = "sentence",
    num_proc: int | None = None,
) -> Dataset:
    """Divide the sentences of a data set from `load_ner`, or of `JointData.train`, into windows for training.

    Args:
        context: whether a window is a sentence, or a sentence with its neighbours in the document, which aren't
            labelled there.

    Returns:
        One row for each window: `input_ids`, `attention_mask` and `labels`. The label is that of `ner_tags` at the
        first piece of a word, in exactly one window, and -100 elsewhere. The latest result is kept.
    """
    encoding = f"{dataset._fingerprint} {WordEncoder(tokenizer).key} {max_length} {context}"
    fingerprint = f"windows-{hashlib.sha256(encoding.encode()).hexdigest()[:32]}"
    if fingerprint not in _latest_windows:
        if context == "document":
            documents = documents_of(dataset)
            words, tags = (sentences_by_document(dataset[name][:], documents) for name in ("tokens", "ner_tags"))
            of_documents = document_windows(words, tokenizer, max_length=max_length)
            windows = Dataset.from_dict(_labelled([list(chain(*of_document)) for of_document in tags], of_documents))
        else:
            with progress_of_datasets():
                windows = dataset.map(
                    _labelled_sentences,
                    batched=True,
                    remove_columns=dataset.column_names,
                    fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
                    num_proc=map_processes(num_proc),
                    load_from_cache_file=False,
                    new_fingerprint=fingerprint,  # otherwise datasets pickles the tokenizer, which takes a second
                    desc="Tokenising",
                )
        sentences = sum(bool(words) for words in dataset["tokens"][:])
        if divided := len(windows) - sentences:
            logger.warning(
                "training sentences that don't fit into a window of %d word pieces are divided: %d of %d windows begin "
                "within a sentence",
                *(max_length, divided, len(windows)),
            )
        _latest_windows.clear()
        _latest_windows[fingerprint] = windows
    return _latest_windows[fingerprint]


def _attention_dropout(config: PretrainedConfig) -> float:
    """Return the dropout of attention, which architectures call differently; that of BERT if none is known."""
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    return next((float(getattr(config, name)) for name in names if hasattr(config, name)), 0.1)


def _labelled_sentences(
    batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[list[int]]]:
    return _labelled(batch["ner_tags"], sentence_windows(batch["tokens"], tokenizer, max_length=max_length))


def _labelled(tags: Sequence[Sequence[int]], windows: Iterable[Sequence[Window]]) -> dict[str, list[list[int]]]:
    """Return the columns of training windows.

    Args:
        tags: of the words of each sentence or document.
        windows: of each sentence or document.
    """
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for own, of_own in zip(tags, windows, strict=True):
        for window in of_own:
            labels = [IGNORED_LABEL] * len(window.input_ids)
            for word, place in enumerate(window.first_pieces, start=window.first_word):
                labels[place] = own[word]
            rows["input_ids"].append(window.input_ids)
            rows["attention_mask"].append([1] * len(window.input_ids))
            rows["labels"].append(labels)
    return rows
