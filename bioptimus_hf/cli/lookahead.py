"""Check before the first stage of a run what a later stage would only find out after hours."""

from __future__ import annotations

import glob
import importlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bioptimus_hf.artifacts import read_yaml
from bioptimus_hf.cli.options import build
from bioptimus_hf.errors import InputError, format_error

_DOCUMENTS_READ = 3
_CLEARLY_TOO_LITTLE = 0.5  # of the space that a run is estimated to need

Values = Mapping[str, Mapping[str, Any]]
"""For each stage, its options by name."""


@dataclass(frozen=True)
class Prospect:
    """What is going to be run.

    Attributes:
        values: options of all stages, also of those that aren't run.
        stages: that are run, in order.
        root: folder of the run.
        online: whether names on the Hub may be looked up.
    """

    values: Values
    stages: Sequence[str]
    root: Path
    online: bool

    def check(self) -> None:
        """Check options, base model, text, curriculum and NER data.

        Raises:
            InputError: a stage would fail (which one, and why).
        """
        for stage in self.stages:
            with _named(stage):
                check_options(stage, self.values[stage])
        for stage, check in (
            ("train_vocabulary", self._check_base),
            ("distill", self._check_layer),
            ("find_contexts", self._check_search),
            ("pretrain", self._check_pretraining),
            ("finetune_ner", self._check_heads),
        ):
            if stage in self.stages:
                with _named(stage):
                    check()
        for stage in self.stages:
            if self.values[stage].get("corpus"):
                with _named(stage):
                    _read_first_documents(self.values[stage])

    def _check_base(self) -> None:
        from bioptimus_hf.models import check_base

        base = self.values["train_vocabulary"]["base_model"]
        if self._is_reachable(base):
            check_base(base)

    def _check_layer(self) -> None:
        from transformers import AutoConfig

        from bioptimus_hf.distillation.contextual import check_layer
        from bioptimus_hf.models import load_by_name

        base = self.values["distill"]["base_model"] or self.values["train_vocabulary"]["base_model"]
        if self._is_reachable(base):
            check_layer(load_by_name(AutoConfig, base), self.values["distill"]["layer"])

    def _check_search(self) -> None:
        from bioptimus_hf.contexts.on_ray import check_corpus
        from bioptimus_hf.contexts.stage import read_words
        from bioptimus_hf.corpus.options import Corpus

        values = self.values["find_contexts"]
        if values["words"]:
            read_words(values["words"])
        else:  # words are searched for in any text
            self._check_same_text("find_contexts")
        if values["engine"] == "ray":
            check_corpus(build(Corpus, values))
            if find_spec("ray") is None:
                raise InputError("Ray is not installed: pip install 'bioptimus-hf[ray]'")

    def _check_pretraining(self) -> None:
        from bioptimus_hf.corpus.decontamination import ner_test_files
        from bioptimus_hf.corpus.ner_files import TEST_PATTERNS
        from bioptimus_hf.models import check_bert, find_files
        from bioptimus_hf.pretraining.curriculum import phase_ends

        self._check_same_text("pretrain")
        values = self.values["pretrain"]
        if values["max_steps"] > 0:
            phase_ends(self._phases(), values["max_steps"])
        base = self.values["train_vocabulary"]["base_model"] if "train_vocabulary" in self.stages else None
        model = values["model"] or base
        if model and self._is_reachable(model):
            check_bert(model, length=values["max_length"])
        if values["decontaminate"] and self._is_reachable(values["decontaminate"]):
            ner_test_files(find_files(values["decontaminate"], TEST_PATTERNS).folder)

    def _check_heads(self) -> None:
        """Read the data of all tasks, and find the encoders, as far as they aren't made by this run."""
        from bioptimus_hf.ner.joint import join_tasks
        from bioptimus_hf.ner.options import HeadOptions, split_label
        from bioptimus_hf.ner.planning import chosen_tasks, load_cross_tests, load_task

        options = build(HeadOptions, self.values["finetune_ner"])
        models = dict(map(split_label, options.models))
        for name in models.values():
            self._check_encoder(name)
        adapted = self.values["train_vocabulary"]["base_model"]
        if "train_vocabulary" in self.stages and models.get("base", "base") not in ("base", adapted):
            raise InputError(
                f"{models['base']} isn't the model that the run adapts ({adapted}), which is called base: give it a "
                f"name of its own (LABEL=MODEL)",
                argument="models",
            )
        for name in options.references:
            if name not in models and not any(self.root.glob(f"ner/*/{glob.escape(name)}/*")):
                raise InputError(
                    f"{name}: there are no heads of this name, only of {', '.join(models)}", argument="references"
                )
        tasks = chosen_tasks(options.tasks)
        if all(self._is_reachable(task.source or options.ner_data or "") for task in tasks):
            data = {task.name: load_task(task, options) for task in tasks}
            load_cross_tests(data, options)
            if options.joint:
                join_tasks({name: task.splits for name, task in data.items()})

    def _check_encoder(self, name: str) -> None:
        from bioptimus_hf.models import check_can_label_tokens
        from bioptimus_hf.pretraining.versions import folder_name, version_numbers

        made = [folder_name(phase.version) for phase in self._phases()] if "pretrain" in self.stages else []
        made += ["v0.0"] if "distill" in self.stages else []
        if name in ("base", *made) or (self.root / name).is_dir():
            return
        if version_numbers(name):
            raise InputError(
                f"there is no {self.root / name}, and this run makes {', '.join(sorted(made)) or 'no version'}",
                argument="models",
            )
        if self._is_reachable(name):
            check_can_label_tokens(name)

    def _phases(self) -> tuple[Any, ...]:
        from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, read_curriculum, select_phases

        values = self.values["pretrain"]
        curriculum = read_curriculum(values["curriculum"]) if values["curriculum"] else BIOPTIMUS_CURRICULUM
        return select_phases(curriculum, values["phases"] or [phase.version for phase in curriculum])

    def _check_same_text(self, stage: str) -> None:
        """Raise if a stage would certainly read other text than the vocabulary is trained on."""
        if "train_vocabulary" not in self.stages:
            return  # the stage compares its text with that of the finished vocabulary
        from bioptimus_hf.artifacts import differences
        from bioptimus_hf.corpus.options import Corpus

        then, now = (build(Corpus, self.values[name]) for name in ("train_vocabulary", stage))
        before, after = (corpus.settings() for corpus in (then, now))
        if now.other_text:
            before, after = ({"validation_share": settings["validation_share"]} for settings in (before, after))
        changed = differences({"inputs": {}, "settings": before}, {}, after)
        if not now.other_text and _sizes(then.corpus) != _sizes(now.corpus):
            changed = ", ".join(filter(None, [f"corpus ({' '.join(then.corpus)}, {' '.join(now.corpus)})", changed]))
        if changed:
            advice = "" if now.other_text else ", or set other_text"
            raise InputError(f"the vocabulary has different {changed}: read the same text in every stage{advice}")

    def _is_reachable(self, name: str) -> bool:
        from bioptimus_hf.models import is_hub_name

        return self.online or not is_hub_name(name)


def check_options(stage: str, values: Mapping[str, Any]) -> None:
    """Check the values of a stage's options against their ranges.

    Raises:
        InputError: a value can't be used.
    """
    for type_ in importlib.import_module(f"bioptimus_hf.cli.{stage}").OPTIONS:
        if type_.__name__ != "PretrainingArguments":
            build(type_, values)
            continue
        from bioptimus_hf.pretraining.arguments import check_arguments

        # An object of this class would set up the devices.
        defaults = {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(type_)
        }
        check_arguments(cast(Any, SimpleNamespace(**{**defaults, **values})))


def check_launcher(path: Path) -> None:
    """Check a configuration of Accelerate.

    Raises:
        InputError: it can't be read, or Accelerate doesn't accept it.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    read_yaml(path)
    try:
        load_config_from_file(str(path))
    except Exception as error:  # of many kinds
        reason = format_error(error)
        raise InputError(f"{path} isn't a configuration of Accelerate ({reason})", argument="accelerate") from error


def free_megabytes(folder: Path) -> float:
    """Return the space that is free where a folder is, or is going to be, in 10^6 bytes."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(existing).free / 1e6


def check_space(folder: Path, megabytes: float) -> None:
    """Raise if there is clearly too little space for a run.

    Args:
        folder: of the run.
        megabytes: estimate of what is going to be written.

    Raises:
        InputError: there is.
    """
    free = free_megabytes(folder)
    if free < _CLEARLY_TOO_LITTLE * megabytes:
        raise InputError(
            f"the run writes about {megabytes / 1e3:.1f} GB to {folder}, where {free / 1e3:.1f} GB are free: free some "
            f"space, or choose another output_dir"
        )


@contextmanager
def _named(stage: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{stage.replace('_', '-')}: {error}") from error


def _read_first_documents(values: Mapping[str, Any]) -> None:
    from bioptimus_hf.corpus.files import CorpusFile, TextCounts, TextOptions, check_unit, resolve, texts_of
    from bioptimus_hf.corpus.options import Corpus

    found = resolve(values["corpus"])
    if not isinstance(found, str):
        corpus = build(Corpus, values)
        check_unit(found, corpus.unit)
        options = TextOptions(corpus.read_options())
        for _ in islice(texts_of(CorpusFile(found[0]), options, TextCounts()), _DOCUMENTS_READ):
            pass


def _sizes(corpus: Sequence[str]) -> list[int]:
    """Return the sizes of a corpus's files, none for one on the Hub: if those of two differ, so does their text."""
    from bioptimus_hf.corpus.files import resolve

    found = resolve(corpus)
    return [] if isinstance(found, str) else [file.stat().st_size for file in found]
