"""Pre-train the versions of a run from its corpus."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer, TrainingArguments, set_seed

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, Run, Stage, check_fresh, identity, is_finished, verify, write_record
from bioptimus_hf.corpus.dataset import Contents, check_same_text, contents_of, load_text, split_validation
from bioptimus_hf.corpus.decontamination import (
    RULE,
    Dropped,
    decontaminate,
    ner_test_files,
    read_test_sentences,
    write_dropped,
)
from bioptimus_hf.corpus.ner_files import TEST_PATTERNS
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import check_bert, check_tokenizer, find_files, find_model, load_by_name, load_masked_lm
from bioptimus_hf.pretraining.arguments import PretrainingArguments, check_arguments, shaping_settings
from bioptimus_hf.pretraining.checkpoints import remove_checkpoints
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, Phase, read_curriculum, select_phases
from bioptimus_hf.pretraining.masking import mask_once
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions
from bioptimus_hf.pretraining.options import PretrainingOptions
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.pretraining.run import FOLDER, Training, check_blocks, temporary_environment
from bioptimus_hf.pretraining.versions import (
    Provenance,
    check_no_other_run,
    check_replaceable,
    other_runs,
    run_of,
)

_STAGING = ".new-"  # begins the name of a hidden folder of versions that replace others when all are complete


@dataclass(frozen=True)
class _Request:
    """What `make_versions` is asked for.

    Attributes:
        start: name or folder of the model to start from.
        model: folder of that model.
        curriculum: phases to run.
        contents: what the corpus contains.
        test_sentences: sentences to keep out of the text, by test set.
        provenance: what the run is made from.
        folder: folder of the record.
        versions: folders of the versions.
        checkpoints: folder of the checkpoints.
        staging: folder of the versions while there are others in their places, which are to be replaced.
    """

    start: str
    model: str
    curriculum: tuple[Phase, ...]
    contents: Contents
    test_sentences: Mapping[str, list[str]]
    provenance: Provenance
    folder: Path
    versions: tuple[Path, ...]
    checkpoints: Path
    staging: Path

    @property
    def replaces(self) -> bool:
        """Whether there is anything that a run with `force` is to replace."""
        places = [*self.versions, self.folder]
        return any(map(Path.exists, places)) or bool(other_runs(self.versions, self.checkpoints, self.provenance))


@check_call()
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
    # All pre-trainings of a run share its folder of checkpoints.
    with run.working_on(FOLDER, writes=arguments.process_index == 0):
        return _make(run, corpus, options, arguments)


def _make(run: Run, corpus: Corpus, options: PretrainingOptions, arguments: PretrainingArguments) -> Path:
    request = _request(run, corpus, options, arguments)
    # A run with `force` that was stopped is in progress, although the result that it is going to replace is there.
    replaces = request.replaces if run.force else request.staging.is_dir()
    if run.force or not replaces:
        if _is_finished(request, force=run.force):
            _clean_up(request, arguments)
            return request.folder
        if not run.force:
            check_no_other_run(request.versions, request.checkpoints, request.provenance)
    check_replaceable([*request.versions, request.folder])
    arguments.output_dir = str(request.checkpoints)
    tokenizer = load_by_name(AutoTokenizer, request.model)
    with arguments.main_process_first(desc="tokenising"):
        text = _Text.read(corpus, request, num_proc=run.num_proc)
        train, validation = (
            tokenize_and_pack(documents, tokenizer, max_length=options.max_length, num_proc=run.num_proc)
            for documents in (text.train, text.validation)
        )
    model, _ = load_masked_lm(request.model, kind=BertForMaskedPositions, seed=run.seed)
    check_tokenizer(tokenizer, model.config, name=request.start)
    check_blocks(train, model, arguments)
    training = Training(
        model,
        tokenizer,
        train,
        mask_once(validation, tokenizer, seed=run.seed) if arguments.eval_strategy != "no" else None,
        arguments,
        request.curriculum,
        run.root,
        request.provenance,
        options.dropout,
        staging=request.staging if replaces else None,
        resume=not run.force,
        on_begin=(lambda: _begin(request, run, replaces=replaces)) if arguments.process_index == 0 else None,
    )
    set_seed(run.seed)
    # Outside of the folder of checkpoints, where it would be by default, which is deleted at the end.
    tensorboard = run.root / "tensorboard" / request.checkpoints.name
    with temporary_environment(TENSORBOARD_LOGGING_DIR=str(tensorboard)):
        training.run(request.folder, text.describe)
    PartialState().wait_for_everyone()  # the Trainer of a slower process may still list its checkpoints
    _clean_up(request, arguments, others=replaces)
    if arguments.process_index == 0:
        _check_versions(request, hashes=True)  # some may come from an earlier session
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
    verify(model.folder)
    check_fresh(model.folder)
    check_bert(model.folder, length=options.max_length)
    contents = contents_of(corpus.corpus)
    inputs = {"corpus": contents.identity, "model": model.identity}
    check_same_text(run.root, corpus, inputs["corpus"])
    settings = {
        **corpus.settings(),
        "max_length": options.max_length,
        "curriculum": [asdict(phase) for phase in curriculum],
        "dropout": options.dropout,
        **shaping_settings(arguments),
    }
    test_sentences: dict[str, list[str]] = {}
    if options.decontaminate:
        sets = find_files(options.decontaminate, TEST_PATTERNS)
        test_sentences = read_test_sentences(sets.folder)
        files = ner_test_files(sets.folder)
        inputs["test_sets"] = identity(sets.commit) if sets.commit else " ".join(map(identity, files))
        settings["decontamination"] = RULE
    provenance = Provenance(inputs, settings, {} if model.commit else {"model": Path(model.folder)})
    return _Request(
        start,
        model.folder,
        curriculum,
        contents,
        test_sentences,
        provenance,
        folder=run.root / "-".join([FOLDER, *(phase.version for phase in curriculum if options.phases)]),
        versions=versions,
        checkpoints=run.root / "checkpoints" / provenance.fingerprint[:12],
        staging=run.root / f"{_STAGING}{provenance.fingerprint[:12]}",
    )


def _is_finished(request: _Request, *, force: bool) -> bool:
    provenance = request.provenance
    if not is_finished(request.folder, provenance.inputs, provenance.settings, force=force):
        return False
    _check_versions(request, hashes=False)
    return True


def _check_versions(request: _Request, *, hashes: bool) -> None:
    """Raise if a version of a finished run is missing, damaged or replaced."""
    gone = [str(version) for version in request.versions if run_of(version) != request.provenance.fingerprint]
    if gone:
        raise InputError(
            f"the run is finished, but {', '.join(gone)} is missing or belongs to another run: use force to make all "
            f"versions again"
        )
    for version in request.versions:
        verify(version, hashes=hashes)


def _begin(request: _Request, run: Run, *, replaces: bool) -> None:
    """Mark the folder of checkpoints as this run's. All checks are done by now."""
    if run.force:  # begin at the first step
        remove_checkpoints(request.checkpoints)
        shutil.rmtree(request.staging, ignore_errors=True)
    if replaces:
        request.staging.mkdir(parents=True, exist_ok=True)
    request.checkpoints.mkdir(parents=True, exist_ok=True)
    provenance = request.provenance
    write_record(request.checkpoints / RECORD, provenance.inputs, provenance.settings, facts={}, seconds=0, files=())


def _clean_up(request: _Request, arguments: TrainingArguments, *, others: bool = False) -> None:
    """Remove the checkpoints of a finished run, whose learning rate has reached its end.

    Args:
        others: also what is left of other runs, which this one has replaced.
    """
    if arguments.process_index:
        return
    everything = request.checkpoints.parent
    if others:
        for folder in {*everything.iterdir()} - {request.checkpoints}:
            remove_checkpoints(folder)
        for staging in request.staging.parent.glob(f"{_STAGING}*"):
            shutil.rmtree(staging)
    # Last: while the versions of another run are replaced, a call after a kill goes on from the last checkpoint.
    remove_checkpoints(request.checkpoints)
    if everything.is_dir() and not any(everything.iterdir()):
        everything.rmdir()


@dataclass(frozen=True)
class _Text:
    """The documents of a run.

    Attributes:
        train: documents to train on.
        validation: documents to validate on.
        facts: what the record says about the text and about decontamination.
        dropped: test sentences that were found, with their documents.
    """

    train: Dataset
    validation: Dataset
    facts: dict[str, Any]
    dropped: list[Dropped]

    @classmethod
    def read(cls, corpus: Corpus, request: _Request, *, num_proc: int | None) -> _Text:
        """Read the documents of a corpus, without those that contain a test sentence."""
        text = load_text(corpus, request.contents)
        documents = text.documents
        dropped: list[Dropped] = []
        facts: dict[str, Any] = {"text": text.facts}
        if request.test_sentences:
            kept, dropped = decontaminate(documents, request.test_sentences, num_proc=num_proc)
            facts["decontamination"] = {
                "documents": len(documents),
                "dropped": len(documents) - len(kept),
                "test_sets": sorted(request.test_sentences),
            }
            documents = kept
        splits = split_validation(documents, share=corpus.validation_share)
        return cls(splits["train"], splits["validation"], facts, dropped)

    def describe(self, stage: Stage) -> None:
        """Add to a stage what was read, and what was dropped."""
        if "decontamination" in self.facts:
            write_dropped(stage.path / "decontamination.tsv", self.dropped)
        stage.facts |= self.facts
