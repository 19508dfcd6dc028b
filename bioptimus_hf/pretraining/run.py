"""Pre-train a model on blocks of tokens through a curriculum, and record the run."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import Stage, building, digest_of_rows
from bioptimus_hf.errors import InputError, Terminated
from bioptimus_hf.models import check_tokenizer
from bioptimus_hf.pretraining import checkpoints
from bioptimus_hf.pretraining.arguments import check_arguments, shaping_settings
from bioptimus_hf.pretraining.callback import CurriculumCallback, RunAlreadyFinished
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, Phase
from bioptimus_hf.pretraining.history import history_of, validation_losses, write_history
from bioptimus_hf.pretraining.masking import VALIDATION_MASKING, BioptimusDataCollator
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions, prepare_model
from bioptimus_hf.pretraining.trainer import PretrainingTrainer
from bioptimus_hf.pretraining.versions import Provenance, check_replaceable, folder_name, move_versions

logger = logging.getLogger(__name__)

FOLDER = "pretraining"
"""Name of the folder, beside the versions, that holds the record and the history of a run."""


@check_call(train=("input_ids",), validation=("input_ids",))
def pretrain(
    model: BertForMaskedPositions,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset | None,
    arguments: TrainingArguments,
    *,
    curriculum: Sequence[Phase] = BIOPTIMUS_CURRICULUM,
    export_dir: Path,
    dropout: float = 0.0,
) -> list[dict[str, Any]]:
    """Take a model through a curriculum, resuming from the last checkpoint in `arguments.output_dir` if there is one.

    Writes `export_dir/v<version>` at the end of each phase and, at the end, `export_dir/pretraining` with record,
    `history.json` and `history.png`. The records identify the run by hashes of the weights and blocks, and by the
    arguments below. `publish` accepts `export_dir` if it also contains the stages before pre-training.

    Args:
        model: is trained in place.
        tokenizer: tokenizer of the model, exported with each version.
        train: blocks of tokens, from `tokenize_and_pack`.
        validation: masked blocks, from `mask_once`; None with `eval_strategy="no"`.
        arguments: training arguments, which stay as they are; checkpoints are saved in `output_dir`.
        curriculum: phases in order.
        export_dir: folder for the versions and the record.
        dropout: probability during training; exported models keep that of their configuration.

    Returns:
        The rows of the log: `step`, and phase, loss and learning rate, or the validation loss. Losses are in nats.

    Raises:
        InputError: the text is too short for an optimizer step, its blocks are longer than the model can read, the
            curriculum doesn't fit the number of steps, an argument isn't supported, or training diverged.
        Terminated: the process got SIGTERM; there is a checkpoint to resume from.
    """
    check_arguments(arguments)
    check_tokenizer(tokenizer, model.config)
    check_blocks(train, model, arguments)
    if validation is None and arguments.eval_strategy != "no":
        raise InputError('there is no validation set: give one, or choose eval_strategy="no"')
    if not 0 <= dropout < 1:
        raise InputError(f"must be at least 0 and below 1, not {dropout}", argument="dropout")
    settings = {"max_length": len(train[0]["input_ids"]), "dropout": dropout, **shaping_settings(arguments)}
    settings["curriculum"] = [asdict(phase) for phase in curriculum]
    provenance = Provenance(_identities(model, train, validation), settings)
    training = Training(
        model, tokenizer, train, validation, arguments, tuple(curriculum), Path(export_dir), provenance, dropout
    )
    return training.run(Path(export_dir) / FOLDER)


def _identities(model: BertForMaskedPositions, train: Dataset, validation: Dataset | None) -> dict[str, str]:
    """Return the identities of the objects that a run is made from."""
    digest = hashlib.sha256()
    for name, values in model.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    blocks = {"train": train} if validation is None else {"train": train, "validation": validation}
    rows = {name: f"rows:{digest_of_rows(dataset)}" for name, dataset in blocks.items()}
    return {"model": f"weights:{digest.hexdigest()[:32]}", **rows}


@dataclass(frozen=True)
class Training:
    """A training that is ready to begin.

    Attributes:
        model ... dropout: as the arguments of `pretrain`.
        staging: folder for the versions until all are complete, while others are in their places. It is left to the
            caller.
        resume: whether to go on from the last checkpoint.
        on_begin: function to call before the first step, after all checks.
    """

    model: BertForMaskedPositions
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset | None
    arguments: TrainingArguments
    curriculum: tuple[Phase, ...]
    export_dir: Path
    provenance: Provenance
    dropout: float
    staging: Path | None = None
    resume: bool = True
    on_begin: Callable[[], None] | None = None

    def run(self, folder: Path, describe: Callable[[Stage], None] | None = None) -> list[dict[str, Any]]:
        """Train, and write record and history.

        Args:
            folder: folder of the record.
            describe: adds to the record of a stage.
        """
        versions = [self.export_dir / folder_name(phase.version) for phase in self.curriculum]
        check_replaceable([*versions, folder])
        arguments = copy.copy(self.arguments)
        checkpoint = _checkpoint_of(arguments) if self.resume else None
        made_from = (self.provenance.inputs, self.provenance.settings)
        sources = self.provenance.sources
        # Only the first process writes; the versions are exported during training.
        with building(folder, *made_from, sources=sources) if arguments.process_index == 0 else nullcontext() as stage:
            history = self._train(arguments, checkpoint)
            if stage is not None:
                write_history(stage.path, history, self.curriculum)
                stage.facts |= {
                    "training_tokens": pc.sum(pc.list_value_length(self.train.data["input_ids"])).as_py(),
                    "validation_blocks": len(self.validation or []),
                    "validation_masking": asdict(VALIDATION_MASKING),
                    "validation_losses": validation_losses(history),
                    "resumed": checkpoint is not None,  # if so, the recorded time is only that of the last session
                }
                if describe is not None:
                    describe(stage)
                if self.staging:  # the record comes last: it says that the versions in place are those of this run
                    move_versions(self.staging, versions)
        return history

    def _train(self, arguments: TrainingArguments, checkpoint: str | None) -> list[dict[str, Any]]:
        prepare_model(self.model, self.tokenizer, arguments, dropout=self.dropout)
        collator = BioptimusDataCollator(self.tokenizer, self.curriculum[0].masking, seed=arguments.seed)
        arguments.eval_on_start = self.validation is not None and not checkpoint
        phases = CurriculumCallback(
            collator,
            self.curriculum,
            export_dir=self.staging or self.export_dir,
            provenance=self.provenance.seen_from(self.staging, self.export_dir) if self.staging else self.provenance,
        )
        # Layers that share compiled code are as fast as a model compiled as a whole, in a tenth of the compile time.
        regional = {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"} if arguments.torch_compile else {}
        with temporary_environment(**regional):
            trainer = PretrainingTrainer(
                model=self.model,
                args=arguments,
                data_collator=collator,
                train_dataset=self.train,
                eval_dataset=self.validation,
                processing_class=self.tokenizer,
                phases=phases,
            )
            if self.on_begin:
                trainer.add_callback(_OnBegin(self.on_begin))  # after that of the curriculum, which checks
            if checkpoint:
                logger.info("resuming from %s, the newest complete checkpoint", checkpoint)
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            except RunAlreadyFinished:
                logger.info("all steps were already done")
        if trainer.state.global_step < trainer.state.max_steps:
            raise Terminated(
                f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, with a checkpoint"
            )
        return history_of(trainer.state.log_history)


def _checkpoint_of(arguments: TrainingArguments) -> str | None:
    """Return the checkpoint to resume from, on which all processes agree.

    Raises:
        InputError: as for `checkpoints.newest_checkpoint`, on all processes.
    """
    folder = Path(arguments.output_dir)
    found: list[Any] = [None]
    if arguments.process_index == 0 or arguments.save_on_each_node:
        try:
            found = [checkpoints.newest_checkpoint(folder)]
        except InputError as error:
            found = [error]
    if arguments.world_size > 1 and not arguments.save_on_each_node:
        broadcast_object_list(found)
    PartialState().wait_for_everyone()  # all have read the folder
    if isinstance(found[0], InputError):
        raise found[0]
    if arguments.should_save:
        checkpoints.prepare(folder, found[0])
    return str(found[0]) if found[0] else None


class _OnBegin(TrainerCallback):
    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self._act()


@contextmanager
def temporary_environment(**variables: str) -> Iterator[None]:
    """Set environment variables that aren't set, and restore the environment afterwards."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def check_blocks(train: Dataset, model: BertForMaskedPositions, arguments: TrainingArguments) -> None:
    """Raise if there are too few blocks for an optimizer step, or the model can't read them.

    Raises:
        InputError: as for `pretrain`.
    """
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    positions = model.config.max_position_embeddings
    if len(train) < rows:
        raise InputError(
            f"the corpus fills {len(train)} blocks, but an optimizer step needs {rows}: give more text, or a smaller "
            f"per_device_train_batch_size or max_length"
        )
    length = len(train[0]["input_ids"])
    if length > positions:
        raise InputError(f"the model reads {positions} tokens, not blocks of {length}", argument="max_length")
