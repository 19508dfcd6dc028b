"""The phases of a curriculum under a stock Trainer: when they switch, what they export, and how they are resumed."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from helpers import build_tiny_bert, build_tiny_tokenizer
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bioptimus_hf.artifacts import identity, read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.callback import CurriculumCallback, RunAlreadyFinished
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, Phase, phase_ends, select_phases
from bioptimus_hf.pretraining.masking import BatchLayout, BioptimusDataCollator, MaskingPlan, MaskingStrategy
from bioptimus_hf.pretraining.modeling import BertForMaskedPositions
from bioptimus_hf.pretraining.versions import Provenance, VersionRecord, check_unchanged, export_version, run_of

TEXT = "aspirin binding in severe asthma patients with bronchoconstriction of the mice"


class Recorder(BioptimusDataCollator):
    """Keeps every training batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[dict[str, torch.Tensor]] = []

    def __call__(self, examples: Any) -> dict[str, torch.Tensor]:
        batch = super().__call__(examples)
        if "labels" not in examples[0]:
            self.batches.append(batch)
        return batch


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "max_steps": 20,
            "per_device_train_batch_size": 4,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            **changes,
        }
    )


def train(
    tokenizer: BertTokenizer, folder: Path, *, resume: str | None = None, rows: int = 24, **changes: Any
) -> tuple[Trainer, Recorder]:
    """A stock Trainer: our two lines are the collator and the callback."""
    collator = Recorder(tokenizer, seed=5)
    dataset = Dataset.from_dict({"input_ids": [tokenizer(TEXT)["input_ids"] for _ in range(rows)]})
    ready = Dataset.from_list([{"input_ids": [4, 40, 5], "labels": [-100, 41, -100]}] * 6)
    trainer = Trainer(
        model=build_tiny_bert(len(tokenizer)),
        args=arguments(folder / "trainer", **changes),
        train_dataset=dataset,
        eval_dataset=ready,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[CurriculumCallback(collator, export_dir=folder / "out")],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, collator


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its checkpoints, of steps 7, 14 and 20."""
    folder = tmp_path_factory.mktemp("finished")
    train(build_tiny_tokenizer(), folder, save_strategy="steps", save_steps=7)
    return folder


@pytest.fixture
def checkpointed(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run for the test alone."""
    return Path(shutil.copytree(finished, tmp_path, dirs_exist_ok=True))


def test_published_curriculum() -> None:
    table = [(p.version, p.masking.unit, p.masking.rate, p.masking.corrupt, p.share) for p in BIOPTIMUS_CURRICULUM]
    assert table == [
        ("0.1", "token", 0.15, True, 0.25),
        ("0.2", "word", 0.15, True, 0.25),
        ("0.3", "word", 0.20, True, 0.25),
        ("0.4", "word", 0.20, False, 0.25),
    ]


@pytest.mark.parametrize(("steps", "ends"), [(4, [1, 2, 3, 4]), (20, [5, 10, 15, 20]), (1001, [250, 500, 751, 1001])])
def test_phase_ends(steps: int, ends: list[int]) -> None:
    assert phase_ends(BIOPTIMUS_CURRICULUM, steps) == ends


def test_invalid_curricula_are_rejected() -> None:
    word = MaskingStrategy("word", 0.2, corrupt=True)
    with pytest.raises(InputError, match=r"add up to 1, not 0\.9"):
        phase_ends([Phase("0.1", word, 0.5), Phase("0.2", word, 0.4)], 10)
    with pytest.raises(InputError, match="3 optimizer steps are too few for 4 phases"):
        phase_ends(BIOPTIMUS_CURRICULUM, 3)
    with pytest.raises(InputError, match="must have different versions"):
        phase_ends([Phase("0.1", word, 0.5), Phase("0.1", word, 0.5)], 10)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_phases_switch_at_the_declared_step(tokenizer: BertTokenizer, tmp_path: Path, accumulation: int) -> None:
    # 24 rows are 6 micro-batches per epoch, so that phases end (after 5, 10 and 15 steps) within epochs.
    _, collator = train(tokenizer, tmp_path, gradient_accumulation_steps=accumulation, per_device_train_batch_size=4)
    assert len(collator.batches) >= 20 * accumulation
    bare = BioptimusDataCollator(tokenizer, seed=5)
    for micro_batch, batch in enumerate(collator.batches[: 20 * accumulation]):
        phase = BIOPTIMUS_CURRICULUM[micro_batch // accumulation // 5]
        bare.follow(MaskingPlan((0,), (phase.masking,), BatchLayout(4)))
        bare.begin(micro_batch)
        expected = bare([{"input_ids": tokenizer(TEXT)["input_ids"]}] * 4)
        assert torch.equal(batch["labels"], expected["labels"]), micro_batch
        assert torch.equal(batch["input_ids"], expected["input_ids"]), micro_batch


def test_each_phase_exports_a_plain_model(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    trainer, _ = train(tokenizer, tmp_path, eval_strategy="steps", eval_steps=1000)
    out = tmp_path / "out"
    assert sorted(folder.name for folder in out.iterdir()) == ["v0.1", "v0.2", "v0.3", "v0.4"]
    weights = []
    for number, phase in enumerate(BIOPTIMUS_CURRICULUM):
        folder = out / f"v{phase.version}"
        record = read_record(folder)["facts"]
        assert record["version"] == phase.version
        assert record["last_step"] == 5 * (number + 1)
        assert record["masking"] == {
            "unit": phase.masking.unit,
            "rate": phase.masking.rate,
            "corrupt": phase.masking.corrupt,
        }
        assert record["metrics"]["eval_loss"] > 0
        model = AutoModelForMaskedLM.from_pretrained(folder)
        assert type(model) is BertForMaskedLM
        assert model.config.architectures == ["BertForMaskedLM"]
        weights.append(model.state_dict())
        assert len(AutoTokenizer.from_pretrained(folder)) == len(tokenizer)
        assert (folder / "vocab.txt").read_text().splitlines()[4] == "[CLS]"
        assert not list(folder.glob("*.bin"))
    for before, after in itertools.pairwise(weights):
        assert any(not torch.equal(before[name], after[name]) for name in before)
    final = trainer.model.state_dict()
    assert all(torch.equal(final[name], weights[-1][name]) for name in final)


def test_versions_are_exported_atomically(
    tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VersionRecord.write

    def interrupted(self: VersionRecord, folder: Path) -> None:
        if self.facts["version"] == "0.2":
            raise KeyboardInterrupt
        real(self, folder)

    dead = subprocess.Popen(["true"])
    dead.wait()
    left_behind = tmp_path / "out" / f"v0.2.partial-{socket.gethostname()}-{dead.pid}"
    left_behind.mkdir(parents=True)
    monkeypatch.setattr(VersionRecord, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, tmp_path)
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["v0.1"]
    monkeypatch.undo()
    train(tokenizer, tmp_path)
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["v0.1", "v0.2", "v0.3", "v0.4"]


def test_the_identity_of_a_version_depends_on_its_weights(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    def export(name: str, seed: int, version: str = "0.1", run: Provenance | None = None) -> str:
        facts = {"version": version, "last_step": 5, "curriculum": [], "metrics": {}}
        record = VersionRecord(facts, run, seconds=1.0)
        export_version(tmp_path / name, build_tiny_bert(len(tokenizer), seed), tokenizer, record)
        return identity(tmp_path / name)

    run = Provenance({"corpus": "sha256:1"}, {"seed": 0})
    first = export("first", 0)
    assert export("same", 0) == first
    assert run_of(tmp_path / "same") is run_of(tmp_path / "nowhere") is None
    others = [export("seed", 1), export("version", 0, "0.2"), export("run", 0, run=run), export("both", 1, run=run)]
    assert len({first, *others}) == 5
    assert run_of(tmp_path / "run") == run_of(tmp_path / "both") == run.fingerprint
    (tmp_path / "run" / "README.md").write_text("A model card isn't part of the version.")
    check_unchanged(tmp_path / "run")
    shutil.copy(tmp_path / "both" / "model.safetensors", tmp_path / "run")
    with pytest.raises(InputError, match=r"the files in .*/run have changed since it was exported"):
        check_unchanged(tmp_path / "run")


def test_workers_draw_other_numbers_with_another_seed(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    drawn = []
    for seed in (1, 1, 2):
        trainer, _ = train(tokenizer, tmp_path / str(seed), max_steps=4, seed=seed)
        drawn.append(trainer.callback_handler.train_dataloader.generator.initial_seed())
    assert drawn == [1, 1, 2]


def test_the_log_names_the_phase(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    trainer, _ = train(tokenizer, tmp_path)
    by_step = {row["step"]: row for row in trainer.state.log_history if "loss" in row}
    assert [by_step[step]["phase"] for step in (1, 5, 6, 10, 11, 20)] == ["0.1", "0.1", "0.2", "0.2", "0.3", "0.4"]
    assert (by_step[20]["unit"], by_step[20]["rate"], by_step[20]["corrupt"]) == ("word", 0.2, False)


def test_evaluation_changes_no_mask(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    # The Trainer evaluates with the same collator.
    _, quiet_collator = train(tokenizer, tmp_path / "quiet")
    _, busy_collator = train(tokenizer, tmp_path / "busy", eval_strategy="steps", eval_steps=3)
    for expected, got in zip(quiet_collator.batches, busy_collator.batches, strict=True):
        assert torch.equal(expected["input_ids"], got["input_ids"])
        assert torch.equal(expected["labels"], got["labels"])


def test_an_unmasked_evaluation_set_is_masked_alike_in_all_phases(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """With the collator of the training, in any batches; it changes no mask of the training."""
    masks: list[list[list[int]]] = []

    class Watching(Recorder):
        def __call__(self, examples: Any) -> dict[str, torch.Tensor]:
            batch = super().__call__(examples)
            if self._plan is None:
                self.batches.pop()
                masks.append(batch["labels"].tolist())
            return batch

    _, quiet = train(tokenizer, tmp_path / "quiet")
    by_size: dict[int, list[list[int]]] = {}
    rows = Dataset.from_dict({"input_ids": [[*tokenizer(TEXT)["input_ids"], row] for row in range(20, 30)]})
    for size in (2, 5):
        masks.clear()
        collator = Watching(tokenizer, seed=5)
        trainer = Trainer(
            model=build_tiny_bert(len(tokenizer)),
            args=arguments(tmp_path, eval_strategy="steps", eval_steps=4, per_device_eval_batch_size=size),
            train_dataset=Dataset.from_dict({"input_ids": [tokenizer(TEXT)["input_ids"]] * 24}),
            eval_dataset=rows,
            data_collator=collator,
            callbacks=[CurriculumCallback(collator)],
        )
        trainer.train()
        trainer.evaluate()  # as run_mlm.py does after training
        evaluations = [
            list(itertools.chain(*masks[start : start + 10 // size])) for start in range(0, len(masks), 10 // size)
        ]
        assert len(evaluations) > 5
        assert all(labels == evaluations[0] for labels in evaluations)
        by_size[size] = evaluations[0]
        for expected, got in zip(quiet.batches, collator.batches, strict=True):
            assert torch.equal(expected["labels"], got["labels"])
    assert by_size[2] == by_size[5]
    trainer.train_dataset = rows.map(lambda row: {"labels": row["input_ids"]})
    with pytest.raises(InputError, match="the training set has labels, so it would never be masked"):
        trainer.train()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_with_another_collator_is_rejected(tokenizer: BertTokenizer, tmp_path: Path, workers: int) -> None:
    rows = Dataset.from_dict({"input_ids": [tokenizer(TEXT)["input_ids"]] * 24})
    for collator, named in (
        (BioptimusDataCollator(tokenizer), "another BioptimusDataCollator"),
        (DataCollatorForLanguageModeling(tokenizer), "a DataCollatorForLanguageModeling"),
    ):
        trainer = Trainer(
            model=build_tiny_bert(len(tokenizer)),
            args=arguments(tmp_path, dataloader_num_workers=workers),
            train_dataset=rows,
            data_collator=collator,
            callbacks=[CurriculumCallback(BioptimusDataCollator(tokenizer), export_dir=tmp_path / "out")],
        )
        with pytest.raises(InputError, match=f"data_collator is {named}, so the curriculum wouldn't reach its batches"):
            trainer.train()
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForMaskedPositions])
def test_losses_that_the_trainer_multiplies_are_not_recorded(
    kind: Any, tokenizer: BertTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collator = BioptimusDataCollator(tokenizer)
    plain = build_tiny_bert(len(tokenizer))
    model = kind(plain.config)
    model.load_state_dict(plain.state_dict())
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=5, max_steps=8),
        train_dataset=Dataset.from_dict({"input_ids": [tokenizer(TEXT)["input_ids"]] * 24}),
        eval_dataset=Dataset.from_dict({"input_ids": [tokenizer(TEXT)["input_ids"]] * 6}),
        data_collator=collator,
        callbacks=[CurriculumCallback(collator, export_dir=tmp_path / "out")],
    )
    trainer.train()
    warned = [record for record in caplog.records if "ignores num_items_in_batch" in record.getMessage()]
    metrics = read_record(tmp_path / "out" / "v0.4")["facts"]["metrics"]
    assert len(warned) == (kind is BertForMaskedLM)
    assert ("eval_loss" in metrics) == (kind is BertForMaskedPositions)


def test_only_training_exports_and_needs_no_processing_class(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    collator = BioptimusDataCollator(tokenizer)
    rows = Dataset.from_dict({"input_ids": [tokenizer(TEXT)["input_ids"]] * 24})
    trainer = Trainer(
        model=build_tiny_bert(len(tokenizer)),
        args=arguments(tmp_path / "trainer", eval_strategy="steps", eval_steps=1000, logging_steps=1000),
        train_dataset=rows,
        eval_dataset=Dataset.from_list([{"input_ids": [4, 40, 5], "labels": [-100, 41, -100]}] * 6),
        data_collator=collator,
        callbacks=[CurriculumCallback(collator, export_dir=tmp_path / "out")],
    )
    trainer.train()
    last = tmp_path / "out" / "v0.4" / "model.safetensors"
    written = last.stat().st_mtime_ns
    trainer.evaluate()  # as run_mlm.py does after training
    assert last.stat().st_mtime_ns == written
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [5, 10, 15, 20]
    assert not [row for row in trainer.state.log_history if "eval_loss" in row and "phase" in row]


def test_settings_that_hide_the_position_of_rows_are_rejected(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    callback = CurriculumCallback(BioptimusDataCollator(tokenizer))
    split = arguments(tmp_path, accelerator_config={"split_batches": True})
    with pytest.raises(InputError, match="with split_batches, dispatch_batches, or a streamed data set on several"):
        callback.on_train_begin(split, TrainerState(max_steps=20), TrainerControl())
    sent = arguments(tmp_path, accelerator_config={"dispatch_batches": True})
    with pytest.raises(InputError, match="with split_batches, dispatch_batches, or a streamed data set on several"):
        callback.on_train_begin(sent, TrainerState(max_steps=20), TrainerControl())
    found = arguments(tmp_path, auto_find_batch_size=True)
    with pytest.raises(InputError, match="auto_find_batch_size: changes the batch size"):
        callback.on_train_begin(found, TrainerState(max_steps=20), TrainerControl())


@pytest.mark.parametrize("step", [5, 7])  # the end of a phase; the middle of a phase and of an epoch
def test_resuming_gives_the_uninterrupted_weights(tokenizer: BertTokenizer, tmp_path: Path, step: int) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": step}
    whole, _ = train(tokenizer, tmp_path, **options)
    resumed, _ = train(tokenizer, tmp_path, resume=str(tmp_path / "trainer" / f"checkpoint-{step}"), **options)
    assert resumed.state.global_step == 20
    for (name, expected), got in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, got), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"per_device_train_batch_size": 2}, r"per_device_train_batch_size \(4 then, 2 now\)"),
        ({"gradient_accumulation_steps": 2}, r"gradient_accumulation_steps \(1 then, 2 now\)"),
        ({"max_steps": 24}, r"max_steps \(20 then, 24 now\)"),
        ({"seed": 43}, r"seed of the Trainer \(42 then, 43 now\)"),
        ({"data_seed": 9}, r"data_seed \(None then, 9 now\)"),
        ({"rows": 20}, r"number of rows \(24 then, 20 now\)"),
        ({"dataloader_num_workers": 2}, None),
    ],
)
def test_a_checkpoint_of_another_run_is_rejected(
    tokenizer: BertTokenizer, checkpointed: Path, change: dict[str, Any], said: str | None
) -> None:
    resume = str(checkpointed / "trainer" / "checkpoint-7")
    if said is None:  # workers change nothing
        assert train(tokenizer, checkpointed, resume=resume, **change)[0].state.global_step == 20
        return
    with pytest.raises(InputError, match=f"the checkpoint belongs to a run with other settings: {said}"):
        train(tokenizer, checkpointed, resume=resume, **change)


@pytest.mark.parametrize(
    "change",
    [{"ignore_data_skip": True}, {"save_only_model": True}, {"accelerator_config": {"use_seedable_sampler": False}}],
)
def test_what_cannot_be_resumed_exactly_is_rejected_at_the_start(
    tokenizer: BertTokenizer, checkpointed: Path, change: dict[str, Any]
) -> None:
    """Unless no checkpoint is ever saved."""
    with pytest.raises(InputError, match="use_seedable_sampler: false, a run can't be resumed exactly"):
        train(tokenizer, checkpointed / "new", save_strategy="steps", save_steps=7, **change)
    with pytest.raises(InputError, match="use_seedable_sampler: false, a run can't be resumed exactly"):
        train(tokenizer, checkpointed, resume=str(checkpointed / "trainer" / "checkpoint-7"), **change)
    train(tokenizer, checkpointed / "new", max_steps=4, **change)


def test_rows_in_an_order_of_global_random_numbers_are_rejected(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    grouped: dict[str, Any] = {"train_sampling_strategy": "group_by_length", "max_steps": 4}
    with pytest.raises(InputError, match="LengthGroupedSampler draws the order of rows from the global random numbers"):
        train(tokenizer, tmp_path, **grouped, save_strategy="steps")
    train(tokenizer, tmp_path, **grouped)


def test_the_checkpoint_of_the_last_step_is_rejected(tokenizer: BertTokenizer, checkpointed: Path) -> None:
    """The Trainer would train until the end of the epoch: 20 steps are 3 epochs and 2 steps."""
    with pytest.raises(RunAlreadyFinished, match="that of the last step, 20: the run is finished"):
        train(tokenizer, checkpointed, resume=str(checkpointed / "trainer" / "checkpoint-20"))


def test_a_checkpoint_of_more_processes_is_rejected(tokenizer: BertTokenizer, checkpointed: Path) -> None:
    state = checkpointed / "trainer" / "checkpoint-7" / "trainer_state.json"
    state.write_text(state.read_text().replace('"world_size": 1', '"world_size": 2'))
    with pytest.raises(InputError, match=r"belongs to a run with other settings: world_size \(2 then, 1 now\)"):
        train(tokenizer, checkpointed, resume=str(state.parent))


def test_a_checkpoint_with_another_curriculum_or_seed_is_rejected(tokenizer: BertTokenizer, checkpointed: Path) -> None:
    rows = Dataset.from_dict({"input_ids": [tokenizer(TEXT)["input_ids"]] * 24})
    for seed, curriculum, said in ((6, BIOPTIMUS_CURRICULUM, "seed"), (5, BIOPTIMUS_CURRICULUM[::-1], "curriculum")):
        collator = BioptimusDataCollator(tokenizer, seed=seed)
        trainer = Trainer(
            model=build_tiny_bert(len(tokenizer)),
            args=arguments(checkpointed / "trainer"),
            train_dataset=rows,
            data_collator=collator,
            callbacks=[CurriculumCallback(collator, curriculum)],
        )
        with pytest.raises(InputError, match=f"the checkpoint belongs to a run with other settings: {said}"):
            trainer.train(resume_from_checkpoint=str(checkpointed / "trainer" / "checkpoint-7"))


def test_a_checkpoint_without_a_curriculum_is_rejected(tokenizer: BertTokenizer, checkpointed: Path) -> None:
    state = checkpointed / "trainer" / "checkpoint-7" / "trainer_state.json"
    content = json.loads(state.read_text())
    del content["stateful_callbacks"]["CurriculumCallback"]
    state.write_text(json.dumps(content))
    with pytest.raises(InputError, match="the checkpoint belongs to a run without a curriculum"):
        train(tokenizer, checkpointed, resume=str(state.parent))


def test_callbacks_are_not_recreated_from_a_checkpoint(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="restore_callback_states_from_checkpoint: would recreate the callback"):
        train(tokenizer, tmp_path, restore_callback_states_from_checkpoint=True)


def test_the_last_phase_ends_with_the_run() -> None:
    """In a long run, shares that only nearly add up to 1 would miss the end by a step."""
    for share, number, steps in ((0.1428571, 7, 2_000_000), (0.1666667, 6, 3_000_000)):
        phases = [Phase(str(place), MaskingStrategy("token", 0.15, corrupt=True), share) for place in range(number)]
        assert phase_ends(phases, steps)[-1] == steps


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_data_set_without_length(tokenizer: BertTokenizer, tmp_path: Path, workers: int) -> None:
    """One process counts rows as they arrive; several workers would each read the stream from the beginning."""
    ids = tokenizer(TEXT)["input_ids"]
    streamed = IterableDataset.from_generator(lambda: ({"input_ids": ids} for _ in range(24)))
    collator = Recorder(tokenizer, seed=5)
    trainer = Trainer(
        model=build_tiny_bert(len(tokenizer)),
        args=arguments(tmp_path, dataloader_num_workers=workers, save_strategy="steps", save_steps=7),
        train_dataset=streamed,
        data_collator=collator,
        callbacks=[CurriculumCallback(collator)],
    )
    if workers:
        with pytest.raises(InputError, match="a streamed data set on several processes or worker processes"):
            trainer.train()
        return
    trainer.train()
    _, whole = train(tokenizer, tmp_path / "whole")  # all rows are the same
    for got, expected in zip(collator.batches[:20], whole.batches[:20], strict=True):
        assert torch.equal(got["labels"], expected["labels"])
    with pytest.raises(InputError, match="a run on a streamed data set can't be resumed"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


def test_select_phases() -> None:
    selected = select_phases(BIOPTIMUS_CURRICULUM, ["0.4", "0.2"])
    assert [(phase.version, phase.share) for phase in selected] == [("0.2", 0.5), ("0.4", 0.5)]
    assert phase_ends(selected, 10) == [5, 10]
    with pytest.raises(InputError, match=r"has no phase 0\.5; it has 0\.1, 0\.2, 0\.3, 0\.4"):
        select_phases(BIOPTIMUS_CURRICULUM, ["0.5"])
    with pytest.raises(InputError, match=r"must add up to 1, not 1\.25"):
        select_phases([*BIOPTIMUS_CURRICULUM, Phase("0.5", BIOPTIMUS_CURRICULUM[0].masking)], ["0.1"])


def test_phases_validate_their_values() -> None:
    word = MaskingStrategy("word", 0.2, corrupt=True)
    with pytest.raises(InputError, match="must be above 0, not -1"):
        Phase("0.1", word, -1)
    with pytest.raises(InputError, match=r"at most 1, not 1\.5"):
        Phase("0.1", word, last_rate=1.5)
    for version in ("", "../0.1", "/0.1", "0 1", ".1"):
        with pytest.raises(InputError, match="a version consists of letters, digits, dots and hyphens"):
            Phase(version, word)


def test_diverged_weights_are_not_exported(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^step 5: .* contains NaN or infinity: training diverged\. Nothing was saved at this step"
    ):
        train(tokenizer, tmp_path, learning_rate=1e38)
    assert not list((tmp_path / "out").glob("v*"))
