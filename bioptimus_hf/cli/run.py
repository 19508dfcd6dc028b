"""Run all stages of a recipe: vocabulary, contexts, distillation, pre-training, NER heads and a report.

    bioptimus run my.yaml
    bioptimus run my.yaml --output_dir runs/mine --corpus abstracts.txt.gz --ner_data data/ner
    bioptimus run my.yaml --dry_run

First prints what it is going to do and roughly how long each stage takes. Each stage runs in a process of its own. When
the same command is given again, finished stages are skipped and interrupted ones resumed. Relative paths in a recipe
are relative to its folder. The package brings the recipes demo, biomedical_20mb and biomedical_100mb, by name.
"""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import read_json
from bioptimus_hf.cli import estimates, lookahead
from bioptimus_hf.cli.__main__ import COMMANDS
from bioptimus_hf.cli.options import check_recipe, parse_values
from bioptimus_hf.cli.recipes import SECTIONS, default_output_dir, read_recipe, relative_to_recipe
from bioptimus_hf.errors import InputError, Terminated
from bioptimus_hf.ner.options import JOINT
from bioptimus_hf.recipes import find

STAGES = ("train_vocabulary", "find_contexts", "distill", "pretrain", "finetune_ner", "report")
_RECORDS = {  # of finished stages; of heads, patterns match one for each
    "train_vocabulary": "tokenizer/made.json",
    "find_contexts": "contexts/made.json",
    "distill": "v0.0/made.json",
    "pretrain": "pretraining*/made.json",
    "finetune_ner": "ner/*/*/*/made.json",
}
_TRAINED = ("pretrain", "finetune_ner")  # the stages that Accelerate may launch on several devices


@dataclass(frozen=True)
class RecipeOptions:
    """What is run."""

    recipe: str = field(
        metadata={"help": "YAML file, or the name of a recipe of the package", "positional": True, "path": True}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the run (default: runs/NAME OF RECIPE)"})
    base_model: str | None = field(default=None, metadata={"help": "Model to adapt: local folder or name on the Hub"})
    corpus: list[str] | None = field(default=None, metadata={"help": "Files, folders or a data set on the Hub"})
    ner_data: str | None = field(
        default=None,
        metadata={"help": "Folder of the NER sets, whose test sentences are also removed from the pre-training text"},
    )
    stages: list[str] = field(
        default_factory=lambda: list(STAGES), metadata={"help": f"Run only these, of {' '.join(STAGES)}"}
    )
    accelerate: str | None = field(
        default=None,
        metadata={
            "help": "Launch training with this configuration of Accelerate: a YAML file, or one of cpu, one_gpu, "
            "several_gpus, several_machines, fsdp"
        },
    )
    force: bool = field(default=False, metadata={"help": "Redo finished stages"})
    dry_run: bool = field(default=False, metadata={"help": "Print the plan and stop"})

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage.replace("-", "_") not in STAGES:
                raise InputError(f"{stage} is not one of {', '.join(STAGES)}", argument="stages")


OPTIONS = (RecipeOptions,)


def execute(options: RecipeOptions) -> None:
    """Print the plan, then run the stages one after another."""
    plan = Plan(options)
    plan.look_ahead()
    print(plan.table(), flush=True)
    if options.dry_run:
        return
    began = time.monotonic()
    for stage in plan.stages:
        print(f"== {stage.replace('_', '-')}", file=sys.stderr, flush=True)
        run_stage(plan.command(stage))
    print(f"Done in {time.monotonic() - began:.0f} s. Run it again, and finished stages are skipped.", file=sys.stderr)


class Plan:
    """The stages of a recipe that are to be run, and their commands."""

    def __init__(self, options: RecipeOptions) -> None:
        self.options = options
        self.path = find(options.recipe)
        self.content = read_recipe(self.path)
        self.output_dir = Path(options.output_dir or default_output_dir(self.path, self.content))
        wanted = [stage.replace("-", "_") for stage in options.stages]
        self._left_out = "finetune_ner" in wanted and not self._has_ner_data()
        self.stages = [
            stage for stage in STAGES if stage in wanted and not (self._left_out and stage == "finetune_ner")
        ]
        if not self.stages:
            raise InputError("there is nothing to run: finetune-ner needs NER data (ner_data)", argument="stages")
        self._launcher = find(options.accelerate, "accelerate") if options.accelerate else None
        # Before the first stage: the mistake in a late one would come out after hours.
        for section in self.content.keys() & set(SECTIONS):
            check_recipe(_options_of(section), self.path, section)
        self._values = {stage: self._parse(stage) for stage in STAGES}
        self._base: str = self._values["train_vocabulary"]["base_model"]
        for stage in self.stages:
            self._check_sources(stage)

    def look_ahead(self) -> None:
        """Check what is needed by all stages. In a dry run, nothing is looked up on the Hub.

        Raises:
            InputError: a stage would fail, or there is clearly too little space on the disk.
        """
        from bioptimus_hf.models import find_model

        if self._launcher:
            lookahead.check_launcher(self._launcher)
        online = not self.options.dry_run
        lookahead.Prospect(self._values, self.stages, self.output_dir, online=online).check()
        if online and "train_vocabulary" in self.stages:
            self._base = find_model(self._base).folder
        if Path(self._base).is_dir():  # otherwise the size of the model is a guess
            lookahead.check_space(self.output_dir, self._megabytes())

    def table(self) -> str:
        """Return what each stage does, how long it takes, and how much is written."""
        rows = [(name := stage.replace("_", "-"), COMMANDS[name], self._state(stage)) for stage in self.stages]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        base = self._values["train_vocabulary"]["base_model"]
        written, free = self._megabytes() / 1e3, lookahead.free_megabytes(self.output_dir) / 1e3
        space = f"  disk: about {written:.1f} GB will be written, {free:.1f} GB are free"
        lines = [f"{self.path} -> {self.output_dir}", f"  base model: {base}", space]
        lines += [f"  {name:<{widths[0]}}  {summary:<{widths[1]}}  {state}" for name, summary, state in rows]
        if self._left_out:
            lines.append("  finetune-ner  left out: no NER data is named (ner_data)")
        return "\n".join(lines)

    def command(self, stage: str) -> list[str]:
        """Return the command line of a stage."""
        launcher = [sys.executable]
        if self._launcher and stage in _TRAINED:
            launcher += ["-m", "accelerate.commands.launch", "--quiet", "--config_file", str(self._launcher)]
        recipe = ["--recipe", str(self.path)] if stage != "report" or "report" in self.content else []
        return [*launcher, "-m", "bioptimus_hf.cli", stage.replace("_", "-"), *recipe, *self._overrides(stage)]

    def _overrides(self, stage: str) -> Iterator[str]:
        options = self.options
        yield from ("--output_dir", str(self.output_dir))
        if options.base_model and stage not in ("pretrain", "report"):
            yield from ("--base_model", options.base_model)
        if options.corpus and stage in ("train_vocabulary", "find_contexts", "pretrain"):
            yield from ("--corpus", *options.corpus)
        if options.ner_data and stage in _TRAINED:
            yield from ("--ner_data" if stage == "finetune_ner" else "--decontaminate", options.ner_data)
        if options.force and stage != "report":
            yield "--force"

    def _has_ner_data(self) -> bool:
        section = self.content.get("finetune_ner") or {}
        tasks = section.get("tasks") or []
        named = [str(task) for task in (tasks if isinstance(tasks, list) else [tasks])]
        beside = (Path(relative_to_recipe(self.path, task, new=False)) for task in named)
        sources = [
            task for task, path in zip(named, beside, strict=True) if re.search(r"=|/|\.ya?ml$", task) or path.is_file()
        ]
        return bool(self.options.ner_data or section.get("ner_data") or sources)

    def _state(self, stage: str) -> str:
        if records := self._records(stage):
            contents = map(read_json, records)
            spent = sum(content.get("seconds", 0) for content in contents if isinstance(content, dict))
            if (rest := self._rest(stage)) == 0:
                return f"finished before, in {spent:.0f} s; skipped if nothing has changed"
            done = f"{len(records)} of {estimates.heads(self._sizes(stage))} heads finished before; the rest "
        else:
            rest, done = 1.0, ""
        weights = estimates.encoder_weights(self._base)
        seconds = estimates.seconds(stage, self._sizes(stage), self._text, weights)
        return done + estimates.duration(None if seconds is None else seconds * rest)

    def _rest(self, stage: str) -> float:
        """Return the share of a stage's work that isn't finished: of heads, some may be."""
        finished = len(self._records(stage))
        wanted = estimates.heads(self._sizes(stage)) if stage == "finetune_ner" else 1
        return max(0.0, 1 - finished / wanted)

    def _megabytes(self) -> float:
        """Return roughly how much the stages that aren't finished write, in 10^6 bytes."""
        return sum(
            self._rest(stage) * estimates.megabytes_written(stage, self._sizes(stage), self._text, self._base)
            for stage in self.stages
        )

    def _records(self, stage: str) -> list[Path]:
        """Return the records of the results of a stage that are finished and won't be redone."""
        records = [] if self.options.force else sorted(self.output_dir.glob(_RECORDS.get(stage, "none")))
        if stage == "finetune_ner":
            joint = self._values[stage]["joint"]
            records = [record for record in records if (record.parts[-4] == JOINT) == joint]
        return records

    @cached_property
    def _text(self) -> float | None:
        vocabulary = self._values["train_vocabulary"]
        return estimates.megabytes(vocabulary["corpus"], vocabulary["max_megabytes"])

    def _sizes(self, stage: str) -> dict[str, Any]:
        """Return the options of a stage, and those of others that say how much it has to do."""
        size, per_token = self._values["train_vocabulary"]["size"], self._values["find_contexts"]["per_token"]
        return {"size": size, "per_token": per_token, **self._values[stage]}

    def _parse(self, stage: str) -> dict[str, Any]:
        """Return the options of a stage as its command will read them."""
        command = self.command(stage)
        arguments = command[command.index("bioptimus_hf.cli") + 2 :]
        return parse_values(_options_of(stage), stage, None, arguments)

    def _check_sources(self, stage: str) -> None:
        """Raise if the corpus or the NER data of a stage is neither there nor a name on the Hub."""
        from bioptimus_hf.corpus.files import resolve
        from bioptimus_hf.models import is_hub_name

        values, name_of_stage = self._values[stage], stage.replace("_", "-")
        if "corpus" in values:
            if not values["corpus"]:
                raise InputError(f"{name_of_stage}: corpus: name files, folders or a data set on the Hub")
            resolve(values["corpus"])
        for name in ("base_model", "model", "ner_data", "decontaminate", "tokenizer", "words"):
            source = values.get(name)
            if source and not Path(source).exists() and (name == "words" or not is_hub_name(source)):
                raise InputError(f"{name_of_stage}: {name}: there is no {source}")


def _options_of(section: str) -> tuple[type, ...]:
    """Return the dataclasses of a command's options."""
    options: tuple[type, ...] = importlib.import_module(f"bioptimus_hf.cli.{section}").OPTIONS
    return options


def run_stage(command: Sequence[str]) -> None:
    """Run a stage in a process of its own, and pass SIGTERM on to it.

    Raises:
        InputError: the stage failed; it has said why.
        Terminated: the process was asked to stop.
        KeyboardInterrupt: the user interrupted the stage.
    """
    asked: list[int] = []
    with subprocess.Popen(command) as process:

        def stop(number: int, _: object) -> None:
            asked.append(number)
            process.send_signal(number)

        before = signal.signal(signal.SIGTERM, stop)
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the stage too
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    if asked:
        raise Terminated("the run was stopped")
    name = command[command.index("bioptimus_hf.cli") + 1]
    if status < 0:
        raise InputError(f"{name} was ended by {signal.Signals(-status).name}: run the same command again to resume")
    if status:
        raise InputError(f"{name} failed with status {status}, see above")
