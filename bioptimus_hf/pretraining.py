"""Masked-language-model pre-training: text to blocks of tokens, the head on masked positions alone, the exact loss."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    BertForMaskedLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_outputs import MaskedLMOutput

from bioptimus_hf.artifacts import InputError
from bioptimus_hf.curriculum import BIOPTIMUS_CURRICULUM, CurriculumCallback, Phase
from bioptimus_hf.masking import IGNORED, BioptimusDataCollator, MaskingStrategy
from bioptimus_hf.vocabulary import save_tokenizer

logger = logging.getLogger(__name__)

# One fixed strategy for all validation text, whatever phase is being trained, so that losses compare: whole words, as
# three of the four phases choose them, and always hidden, so that every prediction is of a word that cannot be seen.
VALIDATION_MASKING = MaskingStrategy("word", 0.15, corrupt=False)
_ROWS_AT_ONCE = 1024
# Arguments that say where and how often something is written, or on what hardware, not what is learned.
_HARMLESS = (
    "output_dir", "run_name", "logging_", "log_", "report_to", "save_", "eval_", "do_", "disable_tqdm", "push_to_hub",
    "dataloader_num_", "dataloader_pin_", "dataloader_persistent_", "dataloader_prefetch_", "hub_", "use_cpu",
    "project", "resume_from_checkpoint", "include_", "per_device_eval_",
)  # fmt: skip


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of a continued pre-training; every option of the `Trainer` is there."""

    output_dir: str = field(default="runs/default", metadata={"help": "Folder of the run"})
    seed: int = field(default=0, metadata={"help": "The same inputs, settings and seed give the same bytes"})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW"})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Blocks of max_length tokens a device"})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW, on all but biases and norms"})
    warmup_steps: float = field(default=0.06, metadata={"help": "Warm-up: steps, or below 1 their share of the run"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training text"})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log"})
    eval_strategy: str = field(default="steps", metadata={"help": "`no` leaves out all validation"})
    eval_steps: float | None = field(
        default=1000, metadata={"help": "Steps between two validations; the end of each phase is always validated"}
    )
    save_steps: float = field(default=500, metadata={"help": "Steps between two checkpoints to resume from"})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep"})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out an epoch's last, smaller batch"})

    def __post_init__(self) -> None:
        # Without this the stock arguments refuse bf16 where there is no GPU, though the CPU may well have it.
        self.use_cpu: bool = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()


class BertForMaskedPositions(BertForMaskedLM):
    """`BertForMaskedLM` whose prediction head reads the masked positions alone.

    The loss is the same as the parent's, and so is what is saved: a plain `BertForMaskedLM`. Of the outputs, `logits`
    have the shape (masked positions of the batch, vocabulary).
    """

    accepts_loss_kwargs = True  # tells the Trainer to pass num_items_in_batch; it looks for **kwargs otherwise

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> MaskedLMOutput:
        """Predict the positions whose label is not -100 (`IGNORED`).

        Args:
            input_ids: int64 of shape (rows, length), as `attention_mask`, `token_type_ids` and `labels`.
            num_items_in_batch: masked positions of the whole optimizer step, over all micro-batches and processes. The
                loss is the sum of the cross-entropies (nats) over it, so that it does not depend on how a step is cut
                into micro-batches; without it, over the masked positions of this batch.

        Raises:
            ValueError: there are no labels.
        """
        if labels is None:
            raise ValueError("a model that predicts masked positions alone needs labels to tell which they are")
        hidden = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        masked = labels != IGNORED
        logits = self.cls(hidden[masked])
        total = cross_entropy(logits.float(), labels[masked], reduction="sum")
        count = masked.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return MaskedLMOutput(loss=total / count, logits=logits)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:
        """Save as the parent, under the parent's name."""
        super().save_pretrained(save_directory, **arguments)
        self.config.architectures = [BertForMaskedLM.__name__]
        self.config.save_pretrained(save_directory)


class PretrainingTrainer(Trainer):
    """`Trainer` whose checkpoints carry a whole tokenizer, and whose validation loss is exact."""

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the mean cross-entropy (nats) over the masked tokens of the validation set, on all processes."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        # The stock loop averages the means of batches, which hold different numbers of masked tokens.
        part = dataset.select(range(self.args.process_index, len(dataset), self.args.world_size))
        sums = loss_and_count(self.model, part, self.data_collator, batch_size=self.args.eval_batch_size)
        loss, count = self.accelerator.reduce(sums).tolist()
        metrics = {f"{metric_key_prefix}_loss": loss / max(count, 1)}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        save_tokenizer(self.processing_class, output_dir or self.args.output_dir)


def shaping_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that differ from the stock ones and shape the weights, for `artifacts`."""
    stock = TrainingArguments(use_cpu=True).to_dict()
    own = {name: value for name, value in arguments.to_dict().items() if value != stock.get(name)}
    return {
        **{name: value for name, value in own.items() if not name.startswith(_HARMLESS)},
        "world_size": arguments.world_size,
    }


def tokenize_and_pack(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int, num_proc: int | None = None
) -> Dataset:
    """Turn documents into one stream of tokens, cut into blocks.

    Every document stands in the stream as `[CLS] ... [SEP]`, whole, in the order given. Nothing is left out: the last
    block is as long as what remains. The blocks do not depend on `num_proc`.

    Args:
        documents: with a column `text`.
        max_length: tokens of a block.

    Returns:
        Data set with the column `input_ids`, of 2 bytes a token where the vocabulary allows it.

    Raises:
        InputError: `max_length` is more than the tokenizer says its model can read, or less than 8.
    """
    if not 8 <= max_length <= tokenizer.model_max_length:
        raise InputError(f"--max_length must lie between 8 and the model's {tokenizer.model_max_length}")
    kind = "uint16" if len(tokenizer) <= 2**16 else "int32"
    features = Features(input_ids=List(Value(kind)))
    tokenized = documents.select_columns(["text"]).map(
        _tokenize,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=["text"],
        features=features,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        desc="Tokenizing",
    )
    chunks = tokenized.with_format("arrow")[:]["input_ids"].chunks
    stream = pa.concat_arrays([chunk.flatten() for chunk in chunks]) if chunks else pa.array([], pa.uint16())
    offsets = pa.array(np.append(np.arange(0, len(stream), max_length), len(stream)), pa.int64())
    return Dataset(pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, stream)}))


def mask_once(
    blocks: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    strategy: MaskingStrategy = VALIDATION_MASKING,
    seed: int = 0,
) -> Dataset:
    """Mask a validation set before training, so that all its losses are of the same predictions.

    Args:
        blocks: with the column `input_ids`, of any lengths.

    Returns:
        Data set with the columns `input_ids`, `attention_mask` and `labels` (lists of integers, as long as the block;
        -100 where nothing is to be predicted), which `BioptimusDataCollator` passes on as they are.
    """
    collator = BioptimusDataCollator(tokenizer, strategy, seed=seed)
    collator.follow([0], [strategy], batch_size=_ROWS_AT_ONCE, rank=0, world_size=1)  # the same on every process
    masked: list[dict[str, Any]] = []
    for start in range(0, len(blocks), _ROWS_AT_ONCE):
        rows = blocks[start : start + _ROWS_AT_ONCE]["input_ids"]
        batch = collator([{"input_ids": row} for row in rows])
        masked.extend(
            {name: values[number, : len(row)].numpy() for name, values in batch.items()}
            for number, row in enumerate(rows)
        )
    return Dataset.from_list(masked)


@torch.no_grad()
def loss_and_count(
    model: BertForMaskedPositions, dataset: Dataset, collator: BioptimusDataCollator, *, batch_size: int
) -> torch.Tensor:
    """Return the sum of the cross-entropies (nats) over the masked tokens of a masked data set, and their number."""
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=model.device)
    # With a generator of its own, the loader draws nothing from the global one, which dropout draws from.
    generator = torch.Generator()
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collator, generator=generator):
        batch = {name: values.to(model.device) for name, values in batch.items()}
        sums += torch.stack([model(**batch, num_items_in_batch=1).loss, (batch["labels"] != IGNORED).sum()])
    model.train(training)
    return sums


def pretrain(
    model: BertForMaskedPositions,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset | None,
    arguments: TrainingArguments,
    *,
    curriculum: Sequence[Phase] = BIOPTIMUS_CURRICULUM,
    export_dir: Path,
    record: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Take a model through a curriculum, and go on from the last checkpoint in `arguments.output_dir` if there is one.

    Args:
        train: blocks, from `tokenize_and_pack`.
        validation: masked blocks, from `mask_once`.
        export_dir: where each phase's version is written, see `CurriculumCallback`.
        record: facts that each version's `phase.json` is to keep.

    Returns:
        The log: a row for each line of it, with step, phase, loss or validation loss (nats), learning rate.

    Raises:
        InputError: the text is too little for a batch, its blocks are longer than the model reads, or the curriculum
            does not fit the number of steps.
    """
    check_blocks(train, model, arguments)
    collator = BioptimusDataCollator(tokenizer, curriculum[0].masking, seed=arguments.seed)
    trainer = PretrainingTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[CurriculumCallback(collator, curriculum, export_dir=export_dir, record=record)],
    )
    checkpoint = arguments.resume_from_checkpoint or last_checkpoint(Path(arguments.output_dir))
    if checkpoint:
        logger.info("going on from %s", checkpoint)
    arguments.eval_on_start = validation is not None and not checkpoint
    trainer.train(resume_from_checkpoint=checkpoint)
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def check_blocks(train: Dataset, model: BertForMaskedLM, arguments: TrainingArguments) -> None:
    """Refuse blocks that cannot be trained on.

    Raises:
        InputError: as for `pretrain`.
    """
    rows, positions = arguments.train_batch_size * arguments.world_size, model.config.max_position_embeddings
    if len(train) < rows and arguments.dataloader_drop_last:
        raise InputError(
            f"the corpus fills {len(train)} blocks, a batch needs {rows}: give more text, "
            f"a smaller --per_device_train_batch_size or a smaller --max_length"
        )
    if len(train[0]["input_ids"]) > positions:
        raise InputError(f"blocks of {len(train[0]['input_ids'])} tokens: the model reads {positions} (--max_length)")


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint of a run, if there is one; what a kill left half-written is removed.

    The Trainer writes `trainer_state.json` last, and itself would take the newest folder for good without looking.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2]))
    for checkpoint in checkpoints:
        try:
            TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        except (OSError, ValueError):
            logger.warning("%s was not written to its end: removed", checkpoint)
            shutil.rmtree(checkpoint, ignore_errors=True)  # of several processes, another may have begun to
        else:
            return str(checkpoint)
    return None


def _tokenize(batch: Mapping[str, list[str]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    encoded = tokenizer(batch["text"], truncation=False, return_attention_mask=False, verbose=False)
    return {"input_ids": encoded["input_ids"]}
