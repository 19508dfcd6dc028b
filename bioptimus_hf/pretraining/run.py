"""Masked-language-model pre-training: text to blocks of tokens, the head on masked positions alone, the exact loss."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    BertForMaskedLM,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.training_args import ParallelMode

from bioptimus_hf.errors import InputError, Terminated
from bioptimus_hf.hardware import prepare_for_cpu
from bioptimus_hf.pretraining.arguments import check_arguments
from bioptimus_hf.pretraining.callback import CurriculumCallback, Finished
from bioptimus_hf.pretraining.cuda_graphs import Replay
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, Phase
from bioptimus_hf.pretraining.masking import BioptimusDataCollator, MaskingStrategy
from bioptimus_hf.pretraining.modeling import END_TO_END, BertForMaskedPositions, set_dropout
from bioptimus_hf.pretraining.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)

# One fixed strategy for all validation text, whatever phase is being trained, so that losses compare: whole words, as
# three of the four phases choose them, and always hidden, so that every prediction is of a word that cannot be seen.
VALIDATION_MASKING = MaskingStrategy("word", 0.15, corrupt=False)
_ROWS_AT_ONCE = 1024
_FLASH_ATTENTION = (8, 0)  # compute capability that PyTorch's flash attention needs
_WIDEST_HEAD = 256  # that it takes; and multiples of 8 alone


def mask_once(
    blocks: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    strategy: MaskingStrategy = VALIDATION_MASKING,
    seed: int = 0,
) -> Dataset:
    """Mask a validation set before training, so that all its losses are of the same predictions.

    Args:
        blocks: with the column `input_ids`, of any lengths, and maybe others that `BioptimusDataCollator` takes.

    Returns:
        Data set with the columns `input_ids`, `attention_mask`, `labels` (lists of integers, as long as the block; -100
        where nothing is to be predicted), and `token_type_ids` if the blocks have them, which `BioptimusDataCollator`
        passes on as they are.
    """
    collator = BioptimusDataCollator(tokenizer, strategy, seed=seed)
    collator.follow([0], [strategy], batch_size=_ROWS_AT_ONCE, rank=0, world_size=1)  # the same on every process
    masked: list[dict[str, Any]] = []
    for start in range(0, len(blocks), _ROWS_AT_ONCE):
        rows = blocks.select(range(start, min(start + _ROWS_AT_ONCE, len(blocks)))).to_list()
        batch = collator([{name: values for name, values in row.items() if name != "labels"} for row in rows])
        masked.extend(
            {name: values[number, : len(row["input_ids"])].numpy() for name, values in batch.items()}
            for number, row in enumerate(rows)
        )
    return Dataset.from_list(masked)


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
    restart_each_phase: bool = False,
    dropout: float = 0.0,
    on_begin: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
    """Take a model through a curriculum, and go on from the last checkpoint in `arguments.output_dir` if there is one.

    Args:
        train: blocks, from `tokenize_and_pack`.
        validation: masked blocks, from `mask_once`; None with `eval_strategy="no"`.
        export_dir: where each phase's version is written, see `CurriculumCallback`.
        record: facts that each version's `phase.json` is to keep.
        restart_each_phase: whether the learning rate warms up and decays anew in each phase, instead of over the run.
        dropout: probability during this training; what is saved keeps that of the model's configuration.
        on_begin: called before the first step, when all that could be refused has been looked at.

    Returns:
        The log: a row for each line of it, with step, phase, loss or validation loss (nats), learning rate.

    Raises:
        InputError: the text is too little for a step, its blocks are longer than the model reads, the curriculum
            does not fit the number of steps, an argument is one that this training cannot heed, or training diverged.
        Terminated: the process was told to end; a checkpoint to go on from is there.
    """
    check_arguments(arguments)
    check_blocks(train, model, arguments)
    if validation is None and arguments.eval_strategy != "no":
        raise InputError('without a validation set there is none to measure a loss on: give one, or eval_strategy="no"')
    prepare_model(model, tokenizer, arguments, dropout=dropout)
    collator = BioptimusDataCollator(tokenizer, curriculum[0].masking, seed=arguments.seed)
    trainer = PretrainingTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        phases=CurriculumCallback(collator, curriculum, export_dir=export_dir, record=record),
        restart_each_phase=restart_each_phase,
    )
    if on_begin:
        trainer.add_callback(_OnBegin(on_begin))  # after the curriculum's
    checkpoint = last_checkpoint(Path(arguments.output_dir), shared=not arguments.save_on_each_node)
    if checkpoint:
        logger.info("going on from %s", checkpoint)
    arguments.eval_on_start = validation is not None and not checkpoint
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Finished:
        logger.info("its last step was done before")
    if trainer.state.global_step < trainer.state.max_steps:
        raise Terminated(f"ended at step {trainer.state.global_step} of {trainer.state.max_steps}, with a checkpoint")
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


class _OnBegin(TrainerCallback):
    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self._act()


def prepare_model(
    model: BertForMaskedPositions,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    *,
    dropout: float = 0.0,
) -> None:
    """Set how a model reads packed documents in the training that follows: within each, and as the device does fastest.

    Args:
        dropout: as for `pretrain`.
    """
    model.document_start = tokenizer.cls_token_id
    model.replay = None  # of a training before
    set_dropout(model, dropout)
    device = arguments.device
    prepare_for_cpu(model, device, dropout=dropout)
    width = model.config.hidden_size // model.config.num_attention_heads
    nvidia = device.type == "cuda" and torch.version.hip is None
    flash = nvidia and torch.cuda.get_device_capability(device) >= _FLASH_ATTENTION
    if flash and width % 8 == 0 and width <= _WIDEST_HEAD:
        model.set_attn_implementation(END_TO_END)
        # Several GPUs copy the model, share it, or exchange gradients as they come, and other ways of compiling may
        # record graphs of their own: what is recorded here knows of none of these.
        alone = arguments.parallel_mode == ParallelMode.NOT_PARALLEL and not arguments.gradient_checkpointing
        usual = arguments.torch_compile_backend == "inductor" and arguments.torch_compile_mode is None
        if arguments.torch_compile and usual and alone:
            model.replay = Replay()
            arguments.dataloader_pin_memory = False  # memory that a thread pins meanwhile would end the recording


def check_blocks(train: Dataset, model: BertForMaskedLM, arguments: TrainingArguments) -> None:
    """Refuse blocks that cannot be trained on.

    Raises:
        InputError: as for `pretrain`.
    """
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    positions = model.config.max_position_embeddings
    if len(train) < rows:
        raise InputError(
            f"the corpus fills {len(train)} blocks, an optimizer step needs {rows}: give more text, "
            f"a smaller --per_device_train_batch_size or a smaller --max_length"
        )
    if len(train[0]["input_ids"]) > positions:
        raise InputError(f"blocks of {len(train[0]['input_ids'])} tokens: the model reads {positions} (--max_length)")


def last_checkpoint(folder: Path, *, shared: bool = True) -> str | None:
    """Return the newest whole checkpoint of a run, if there is one; what a kill left half-written is removed.

    The Trainer writes `trainer_state.json` last, and itself would take the newest folder for good without looking. Of
    several processes, each writes the state of its random numbers when it comes to that.

    Args:
        shared: whether the folder is that of all processes, and not of one machine among several.
    """
    checkpoints = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in sorted(checkpoints, key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            its: Any = state.stateful_callbacks.get(CurriculumCallback.__name__, {})
            ranks = its.get("attributes", {}).get("_run", {}).get("world_size", 1) if shared else 0
            for name in ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]:
                (checkpoint / name).stat()
        except (OSError, ValueError):
            logger.warning("%s was not written to its end: removed", checkpoint)
            shutil.rmtree(checkpoint, ignore_errors=True)  # of several processes, another may have begun to
        else:
            return str(checkpoint)
    return None
