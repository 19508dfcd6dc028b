"""Pre-train a model through a curriculum: with objects (`pretrain`), or as a stage of a run (`make_versions`)."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed

from bioptimus_hf.artifacts import RECORD, Run, Stage, building, digest_of_rows, identity, is_finished, write_record
from bioptimus_hf.corpus.dataset import corpus_identity, load_documents, split_validation
from bioptimus_hf.corpus.decontamination import (
    RULE,
    Dropped,
    decontaminate,
    ner_test_files,
    read_test_sentences,
    write_dropped,
)
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.errors import InputError, Terminated
from bioptimus_hf.models import find_files, find_model, load_by_name, load_masked_lm
from bioptimus_hf.pretraining.arguments import PretrainingArguments, check_arguments, shaping_settings
from bioptimus_hf.pretraining.callback import CurriculumCallback, Finished
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, Phase, read_curriculum, select_phases
from bioptimus_hf.pretraining.history import validation_losses, write_history
from bioptimus_hf.pretraining.masking import VALIDATION_MASKING, BioptimusDataCollator, mask_once
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions, prepare_model
from bioptimus_hf.pretraining.options import PretrainingOptions
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.pretraining.trainer import PretrainingTrainer, last_checkpoint
from bioptimus_hf.pretraining.versions import Provenance, check_no_other_run, other_runs, run_of

logger = logging.getLogger(__name__)

FOLDER = "pretraining"
"""Name of the folder, beside the versions, that holds the record and the history of a run."""


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
    dropout: float = 0.0,
) -> list[dict[str, Any]]:
    """Take a model through a curriculum, resuming from the last checkpoint in `arguments.output_dir` if there is one.

    Writes `export_dir/v<version>` at the end of each phase and, at the end, `export_dir/pretraining` with record,
    `history.json` and `history.png`: a folder that `publish` accepts if it also holds the stages before pre-training.

    Args:
        model: is trained in place.
        tokenizer: tokenizer of the model, exported with each version.
        train: blocks of tokens, from `tokenize_and_pack`.
        validation: masked blocks, from `mask_once`; None with `eval_strategy="no"`.
        arguments: training arguments, which stay as they are; checkpoints are saved in `output_dir`.
        curriculum: phases in order.
        export_dir: folder for the versions and the record.
        record: what the run is made from, as `{"inputs": {name: identity}, "settings": {...}}`, for its record and
            those of the versions. By default, hashes of the weights and blocks, and the arguments above.
        dropout: probability during training; exported models keep that of their configuration.

    Returns:
        The rows of the log: `step`, and phase, loss and learning rate, or the validation loss. Losses are in nats.

    Raises:
        InputError: the text is too short for an optimizer step, its blocks are longer than the model can read, the
            curriculum doesn't fit the number of steps, an argument isn't supported, or training diverged.
        Terminated: the process got SIGTERM; there is a checkpoint to resume from.
    """
    check_arguments(arguments)
    check_blocks(train, model, arguments)
    if validation is None and arguments.eval_strategy != "no":
        raise InputError('there is no validation set: give one, or choose eval_strategy="no"')
    if record is None:
        settings = {"max_length": len(train[0]["input_ids"]), "dropout": dropout, **shaping_settings(arguments)}
        settings["curriculum"] = [asdict(phase) for phase in curriculum]
        provenance = Provenance(_identities(model, train, validation), settings)
    else:
        provenance = Provenance(record["inputs"], record["settings"])
    training = _Training(
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
class _Training:
    """A training that is ready to begin. Attributes are those of `pretrain`."""

    model: BertForMaskedPositions
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset | None
    arguments: TrainingArguments
    curriculum: tuple[Phase, ...]
    export_dir: Path
    provenance: Provenance
    dropout: float
    on_begin: Callable[[], None] | None = None  # called before the first step, after all checks

    def run(self, folder: Path, describe: Callable[[Stage], None] | None = None) -> list[dict[str, Any]]:
        """Train, and write record and history.

        Args:
            folder: folder of the record.
            describe: adds to the record of a stage.
        """
        arguments = copy.copy(self.arguments)
        checkpoint = last_checkpoint(Path(arguments.output_dir), shared=not arguments.save_on_each_node)
        made_from = (self.provenance.inputs, self.provenance.settings)
        # Only the first process writes; the versions are exported during training.
        with building(folder, *made_from) if arguments.process_index == 0 else nullcontext() as stage:
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
        return history

    def _train(self, arguments: TrainingArguments, checkpoint: str | None) -> list[dict[str, Any]]:
        prepare_model(self.model, self.tokenizer, arguments, dropout=self.dropout)
        collator = BioptimusDataCollator(self.tokenizer, self.curriculum[0].masking, seed=arguments.seed)
        arguments.eval_on_start = self.validation is not None and not checkpoint
        phases = CurriculumCallback(collator, self.curriculum, export_dir=self.export_dir, provenance=self.provenance)
        # Layers that share compiled code are as fast as a model compiled as a whole, in a tenth of the compile time.
        regional = {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"} if arguments.torch_compile else {}
        with _environment(**regional):
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
                logger.info("resuming from %s", checkpoint)
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            except Finished:
                logger.info("all steps were already done")
        if trainer.state.global_step < trainer.state.max_steps:
            raise Terminated(
                f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, with a checkpoint"
            )
        history: list[dict[str, Any]] = trainer.state.log_history
        return history


class _OnBegin(TrainerCallback):
    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self._act()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
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


@dataclass(frozen=True)
class _Request:
    """What `make_versions` is asked for.

    Attributes:
        start: name or folder of the model to start from.
        model: folder of that model.
        curriculum: phases to run.
        test_sentences: sentences to keep out of the text, by test set.
        provenance: what the run is made from.
        folder: folder of the record.
        versions: folders of the versions.
        checkpoints: folder of the checkpoints.
    """

    start: str
    model: str
    curriculum: tuple[Phase, ...]
    test_sentences: Mapping[str, list[str]]
    provenance: Provenance
    folder: Path
    versions: tuple[Path, ...]
    checkpoints: Path


def make_versions(run: Run, corpus: Corpus, options: PretrainingOptions, arguments: PretrainingArguments) -> Path:
    """Pre-train through a curriculum and export a version at the end of each phase; skipped if this was already done.

    An interrupted run is resumed from its last checkpoint.

    Args:
        run: folder and seed win over those of `arguments`.
        corpus: text to train on.
        options: model to start from, curriculum and blocks.
        arguments: training arguments.

    Returns:
        The folder of record and history: `pretraining` in that of the run, beside the versions `v0.1` ... `v0.4`.

    Raises:
        InputError: as for `pretrain`; or there is no model to start from, the corpus can't be read, or the folder of
            the run contains versions or checkpoints of another run.
        Terminated: as for `pretrain`.
    """
    arguments = copy.copy(arguments)
    arguments.seed = run.seed
    check_arguments(arguments)
    request = _request(run, corpus, options, arguments)
    if _is_finished(request, force=run.force):
        return request.folder
    if not run.force:
        check_no_other_run(request.versions, request.checkpoints, request.provenance)
    arguments.output_dir = str(request.checkpoints)
    tokenizer = load_by_name(AutoTokenizer, request.model)
    with arguments.main_process_first(desc="tokenizing"):
        if run.force and arguments.process_index == 0:
            shutil.rmtree(request.checkpoints, ignore_errors=True)  # of this very run, which must not be resumed
        text = _Text.read(corpus, request.test_sentences, num_proc=run.num_proc)
        train, validation = (
            tokenize_and_pack(documents, tokenizer, max_length=options.max_length, num_proc=run.num_proc)
            for documents in (text.train, text.validation)
        )
    model, _ = load_masked_lm(request.model, kind=BertForMaskedPositions, seed=run.seed)
    check_blocks(train, model, arguments)
    training = _Training(
        model,
        tokenizer,
        train,
        mask_once(validation, tokenizer, seed=run.seed) if arguments.eval_strategy != "no" else None,
        arguments,
        request.curriculum,
        run.root,
        request.provenance,
        options.dropout,
        on_begin=(lambda: _begin(request, force=run.force)) if arguments.process_index == 0 else None,
    )
    set_seed(run.seed)
    # Outside of the folder of checkpoints, where it would be by default, which is deleted at the end.
    tensorboard = run.root / "tensorboard" / request.checkpoints.name
    with _environment(TENSORBOARD_LOGGING_DIR=str(tensorboard)):
        training.run(request.folder, text.describe)
    PartialState().wait_for_everyone()  # the Trainer of a slower process may still list its checkpoints
    if arguments.process_index == 0:
        shutil.rmtree(request.checkpoints.parent, ignore_errors=True)  # the learning rate has reached its end
    return request.folder


def _request(run: Run, corpus: Corpus, options: PretrainingOptions, arguments: TrainingArguments) -> _Request:
    """Find what a run is made from, without reading the text."""
    start = options.model or str(run.root / "v0.0")
    if options.model is None and not Path(start).is_dir():
        raise InputError(f"{start} doesn't exist: make it first, or name another model", argument="model")
    curriculum = read_curriculum(options.curriculum) if options.curriculum else BIOPTIMUS_CURRICULUM
    if options.phases:
        curriculum = select_phases(curriculum, options.phases)
    versions = tuple(run.root / f"v{phase.version}" for phase in curriculum)
    if Path(start).resolve() in [version.resolve() for version in versions]:
        raise InputError(
            f"a phase would write its version to {start}, where it starts from: choose another output_dir or version",
            argument="model",
        )
    model = find_model(start)
    inputs = {"corpus": corpus_identity(corpus.corpus), "model": model.identity}
    settings = {
        **corpus.settings(),
        "max_length": options.max_length,
        "curriculum": [asdict(phase) for phase in curriculum],
        "dropout": options.dropout,
        **shaping_settings(arguments),
    }
    test_sentences: dict[str, list[str]] = {}
    if options.decontaminate:
        sets = find_files(options.decontaminate, ["test.tsv", "*/test.tsv"])
        test_sentences = read_test_sentences(sets.folder)
        files = ner_test_files(sets.folder)
        inputs["test_sets"] = identity(sets.commit) if sets.commit else " ".join(map(identity, files))
        settings["decontamination"] = RULE
    provenance = Provenance(inputs, settings)
    return _Request(
        start,
        model.folder,
        curriculum,
        test_sentences,
        provenance,
        folder=run.root / "-".join([FOLDER, *(phase.version for phase in curriculum if options.phases)]),
        versions=versions,
        checkpoints=run.root / "checkpoints" / provenance.fingerprint[:12],
    )


def _is_finished(request: _Request, *, force: bool) -> bool:
    provenance = request.provenance
    if not is_finished(request.folder, provenance.inputs, provenance.settings, force=force):
        return False
    gone = [str(version) for version in request.versions if run_of(version) != provenance.fingerprint]
    if gone:
        raise InputError(
            f"the run is finished, but {', '.join(gone)} is missing or belongs to another run: use force to make all "
            f"versions again"
        )
    return True


def _begin(request: _Request, *, force: bool) -> None:
    """Mark the folder of checkpoints as this run's and, with force, delete other runs. All checks are done by now."""
    if force:
        others = other_runs(request.versions, request.checkpoints, request.provenance)
        for old in [*others, *request.versions, request.folder]:
            shutil.rmtree(old, ignore_errors=True)
    request.checkpoints.mkdir(parents=True, exist_ok=True)
    provenance = request.provenance
    write_record(request.checkpoints / RECORD, provenance.inputs, provenance.settings, facts={}, seconds=0)


@dataclass(frozen=True)
class _Text:
    """The documents of a run.

    Attributes:
        train: documents to train on.
        validation: documents to validate on.
        facts: what the record says about decontamination; None without it.
        dropped: test sentences that were found, with their documents.
    """

    train: Dataset
    validation: Dataset
    facts: dict[str, Any] | None
    dropped: list[Dropped]

    @classmethod
    def read(cls, corpus: Corpus, test_sentences: Mapping[str, list[str]], *, num_proc: int | None) -> _Text:
        """Read the documents of a corpus, without those that contain a test sentence."""
        documents = load_documents(corpus)
        dropped: list[Dropped] = []
        facts: dict[str, Any] | None = None
        if test_sentences:
            kept, dropped = decontaminate(documents, test_sentences, num_proc=num_proc)
            facts = {"documents": len(documents), "dropped": len(documents) - len(kept)}
            facts["test_sets"] = sorted(test_sentences)
            documents = kept
        splits = split_validation(documents, share=corpus.validation_share)
        return cls(splits["train"], splits["validation"], facts, dropped)

    def describe(self, stage: Stage) -> None:
        """Add what was dropped to a stage."""
        if self.facts is not None:
            write_dropped(stage.path / "decontamination.tsv", self.dropped)
            stage.facts["decontamination"] = self.facts
