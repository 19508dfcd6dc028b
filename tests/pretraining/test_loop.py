"""A loop of the structure of run_mlm_no_trainer.py of transformers, with a curriculum: exact, also when resumed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, set_seed
from datasets import Dataset
from helpers import build_tiny_bert
from torch.utils.data import DataLoader
from transformers import BertForMaskedLM, BertTokenizer, DataCollatorForLanguageModeling, get_scheduler

from bioptimus_hf.artifacts import read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM
from bioptimus_hf.pretraining.loop import CurriculumLoop
from bioptimus_hf.pretraining.masking import BioptimusDataCollator, MaskingStrategy, mask_once

STEPS = 16  # four for each phase
ROWS = 13  # of batches of 2: an epoch has 7 batches, the last one smaller


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state()
    GradientState._reset_state()


def rows_of_text() -> Dataset:
    return Dataset.from_list([{"input_ids": [2, *range(10 + row, 22 + row), 3]} for row in range(ROWS)])


class Script:
    """The loop of run_mlm_no_trainer.py, in its order and with its arithmetic, with our four lines.

    Args:
        save_at: save the state after these steps, as `--checkpointing_steps` does.
        resume: load the state that was saved after this step.
        stop_at: end after this step, as a kill would.
    """

    def __init__(self, tokenizer: BertTokenizer, folder: Path, **options: Any) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.accumulation = options.pop("accumulation", 1)
        self.workers = options.pop("workers", 0)
        self.seedable = options.pop("seedable", False)
        self.evaluates = options.pop("evaluates", False)
        self.steps = options.pop("steps", STEPS)
        self.skips = options.pop("skips", "skip_first_batches")
        self.seed = options.pop("seed", 7)
        self.masks: dict[int, list[list[int]]] = {}
        self.phases: list[str] = []
        self.evaluated: list[list[list[int]]] = []
        assert not options

    def run(self, *, save_at: tuple[int, ...] = (), resume: int = 0, stop_at: int = STEPS) -> dict[str, torch.Tensor]:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=self.accumulation,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=self.seedable),
        )
        model = build_tiny_bert(len(self.tokenizer))
        set_seed(self.seed)
        model.train()
        data_collator = BioptimusDataCollator(self.tokenizer)  # 1
        loader: Any = DataLoader(
            rows_of_text(), shuffle=True, collate_fn=data_collator, batch_size=2, num_workers=self.workers
        )
        eval_loader: Any = DataLoader(rows_of_text(), collate_fn=data_collator, batch_size=4)
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler: Any = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=self.steps)
        model, optimizer, loader, eval_loader, scheduler = accelerator.prepare(
            model, optimizer, loader, eval_loader, scheduler
        )
        per_epoch = math.ceil(len(loader) / self.accumulation)
        curriculum = CurriculumLoop(accelerator, loader, self.steps, export_dir=self.folder)  # 2
        completed, first_epoch, skip = 0, 0, 0
        if resume:
            accelerator.load_state(str(self.folder / f"step_{resume}"))
            micro_batches = resume * self.accumulation
            completed, first_epoch = resume, micro_batches // (per_epoch * self.accumulation)
            skip = micro_batches - first_epoch * per_epoch * self.accumulation
        for epoch in range(first_epoch, math.ceil(self.steps / per_epoch)):
            model.train()
            resuming = bool(skip) and epoch == first_epoch
            skipping = resuming and self.skips == "skip_first_batches"
            active = accelerator.skip_first_batches(loader, skip) if skipping else loader
            for number, batch in enumerate(active):
                if resuming and self.skips == "continue" and number < skip:
                    continue
                with accelerator.accumulate(model):
                    self.masks.setdefault(completed, []).append(batch["labels"].tolist())
                    accelerator.backward(model(**batch).loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    completed += 1
                    self.phases.append(curriculum.phase.version)
                    curriculum.step(model)  # 3
                    if completed in save_at:
                        accelerator.save_state(str(self.folder / f"step_{completed}"))
                if completed >= min(self.steps, stop_at):
                    return {name: value.clone() for name, value in accelerator.unwrap_model(model).state_dict().items()}
            if self.evaluates:
                model.eval()
                self.evaluated += [batch["labels"].tolist() for batch in eval_loader]
        raise AssertionError("the loop ended early")


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"workers": 2},
        {"accumulation": 2},
        {"accumulation": 3, "workers": 2, "seedable": True},
        {"seedable": True},
        {"evaluates": True},
        {"skips": "continue", "workers": 2},
    ],
    ids=str,
)
def test_a_resumed_loop_ends_with_the_same_bits(
    options: dict[str, Any], tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    """In the middle of an epoch, at its end, and at the end of a phase; with dropout."""
    whole = Script(tokenizer, tmp_path / "whole", **options)
    expected = whole.run()
    per_epoch = math.ceil(7 / whole.accumulation)
    points = sorted({1, 4, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch, 12, 15} - {0})
    if whole.workers:  # starting them takes time
        points = points[::2]
    saving = Script(tokenizer, tmp_path / "resumed", **options)
    saved = saving.run(save_at=tuple(point for point in points if point < STEPS))
    assert_equal(saved, expected)  # saving changes nothing
    for point in points:
        resumed = Script(tokenizer, tmp_path / "resumed", **options)
        assert_equal(resumed.run(resume=point), expected)
        assert resumed.masks == {step: masks for step, masks in whole.masks.items() if step >= point}
    for phase in BIOPTIMUS_CURRICULUM:
        name = f"v{phase.version}/model.safetensors"
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_phases_follow_one_another_and_are_exported(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    script = Script(tokenizer, tmp_path)
    final = script.run()
    assert script.phases == [version for version in ("0.1", "0.2", "0.3", "0.4") for _ in range(4)]
    exported = BertForMaskedLM.from_pretrained(tmp_path / "v0.4")
    assert torch.equal(exported.bert.embeddings.word_embeddings.weight, final["bert.embeddings.word_embeddings.weight"])
    facts = [read_record(tmp_path / f"v0.{number}")["facts"] for number in range(1, 5)]
    assert [fact["last_step"] for fact in facts] == [4, 8, 12, 16]
    assert [fact["masking"]["unit"] for fact in facts] == ["token", "word", "word", "word"]


def test_evaluation_with_the_same_collator_is_not_affected_by_the_curriculum(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    """Its batches take no part in the numbering of training rows, and are masked by one strategy in all phases."""
    quiet, evaluating = Script(tokenizer, tmp_path / "a"), Script(tokenizer, tmp_path / "b", evaluates=True)
    assert_equal(evaluating.run(), quiet.run())
    assert evaluating.masks == quiet.masks
    assert len(evaluating.evaluated) > 4


def test_labelled_rows_pass_through(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    collator = BioptimusDataCollator(tokenizer)
    masked = mask_once(rows_of_text(), tokenizer)
    accelerator = Accelerator(cpu=True)
    loader: Any = accelerator.prepare(DataLoader(rows_of_text(), collate_fn=collator, batch_size=2))
    CurriculumLoop(accelerator, loader, 16)
    assert collator(masked.to_list())["labels"].tolist() == masked["labels"][:]
    next(iter(loader))  # an iterator that isn't used to its end
    assert collator(masked.to_list())["labels"].tolist() == masked["labels"][:]


def test_masks_do_not_depend_on_workers_or_accumulation(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    runs = []
    for number, workers in enumerate((0, 1, 3)):
        script = Script(tokenizer, tmp_path / str(number), workers=workers)
        script.run()
        runs.append(script.masks)
    assert runs[0] == runs[1] == runs[2]


def changed(**options: Any) -> Callable[[BertTokenizer, Path], Script]:
    return lambda tokenizer, folder: Script(tokenizer, folder, **options)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (changed(steps=20), "max_steps (16 then, 20 now)"),
        (changed(accumulation=2), "gradient_accumulation_steps (1 then"),
    ],
)
def test_the_state_of_another_run_is_refused(
    other: Callable[[BertTokenizer, Path], Script], named: str, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    Script(tokenizer, tmp_path).run(save_at=(4,), stop_at=5)
    with pytest.raises(InputError) as error:
        other(tokenizer, tmp_path).run(resume=4)
    assert named in str(error.value)


def test_a_loop_that_skips_nothing_after_a_resume_is_rejected(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    Script(tokenizer, tmp_path).run(save_at=(4,), stop_at=5)
    with pytest.raises(InputError, match="hasn't skipped the batches that it had seen"):
        Script(tokenizer, tmp_path, skips="none").run(resume=4)


def test_what_cannot_be_followed_is_rejected(tokenizer: BertTokenizer) -> None:
    accelerator = Accelerator(cpu=True)
    rows, ours = rows_of_text(), BioptimusDataCollator(tokenizer)
    stock = DataCollatorForLanguageModeling(tokenizer)
    masked = mask_once(rows, tokenizer, strategy=MaskingStrategy("token", 0.2, True))
    for loader, message in (
        (DataLoader(rows, batch_size=2, collate_fn=stock), "is a DataCollatorForLanguageModeling: give it a Bioptimus"),
        (DataLoader(masked, batch_size=2, collate_fn=ours), "the training set has labels"),
        (DataLoader(rows.to_iterable_dataset(), batch_size=2, collate_fn=ours), "streamed data set"),
    ):
        with pytest.raises(InputError, match=message):
            CurriculumLoop(accelerator, accelerator.prepare(loader), 16)
    with pytest.raises(InputError, match="isn't prepared: create the CurriculumLoop after"):
        CurriculumLoop(accelerator, DataLoader(rows, batch_size=2, collate_fn=ours), 16)
    loader = accelerator.prepare(DataLoader(rows, batch_size=2, collate_fn=ours))
    with pytest.raises(InputError, match="too few for 4 phases"):
        CurriculumLoop(accelerator, loader, 3)
    loop = CurriculumLoop(accelerator, loader, 4)
    for _ in itertools.islice(loader, 4):
        loop.step(None)
    with pytest.raises(InputError, match="all 4 steps of the curriculum are done"):
        loop.step(None)


def test_a_launch_with_a_single_process_is_reported(
    tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As `accelerate launch --cpu --num_processes 2` leaves the environment without MPI."""
    loader: Any = DataLoader(rows_of_text(), batch_size=2, collate_fn=BioptimusDataCollator(tokenizer))
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(loader)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    CurriculumLoop(accelerator, loader, 16)
    assert "use `torchrun --nproc_per_node NUMBER SCRIPT ...`" in caplog.text


@pytest.mark.parametrize("accumulation", [2, 4])
def test_an_accumulation_that_accelerate_does_not_know_is_rejected(
    accumulation: int, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    """Phases would switch too early."""
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(
        DataLoader(rows_of_text(), batch_size=1, collate_fn=BioptimusDataCollator(tokenizer))  # type: ignore[arg-type]
    )
    loop = CurriculumLoop(accelerator, loader, 16)

    def step_after_some() -> None:
        for number, _ in enumerate(loader, start=1):
            if number % accumulation == 0:
                loop.step(None)

    with pytest.raises(InputError, match="more than 1 batches for an optimizer step: give the Accelerator"):
        step_after_some()


def test_a_step_within_an_optimizer_step_is_rejected(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    loader = accelerator.prepare(
        DataLoader(rows_of_text(), batch_size=1, collate_fn=BioptimusDataCollator(tokenizer))  # type: ignore[arg-type]
    )
    loop = CurriculumLoop(accelerator, loader, 16)
    next(iter(loader))
    with pytest.raises(InputError, match="step was called before the batches of an optimizer step were used"):
        loop.step(None)


def test_a_folder_that_is_not_a_version_is_not_replaced(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    (tmp_path / "v0.3").mkdir()
    (tmp_path / "v0.3" / "notes.txt").write_text("mine")
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(
        DataLoader(rows_of_text(), batch_size=1, collate_fn=BioptimusDataCollator(tokenizer))  # type: ignore[arg-type]
    )
    with pytest.raises(InputError, match=r"v0\.3 is not a result of this project: move it away"):
        CurriculumLoop(accelerator, loader, 16, export_dir=tmp_path)


def test_another_order_of_rows_is_refused(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    Script(tokenizer, tmp_path, seedable=True).run(save_at=(4,), stop_at=5)
    with pytest.raises(InputError, match="seed of the order"):
        Script(tokenizer, tmp_path, seedable=True, seed=8).run(resume=4)


def test_the_training_set_can_be_evaluated_with_a_loader_of_its_own(tokenizer: BertTokenizer) -> None:
    accelerator = Accelerator(cpu=True)
    collator = BioptimusDataCollator(tokenizer)
    loader: Any = accelerator.prepare(DataLoader(rows_of_text(), batch_size=2, collate_fn=collator))
    CurriculumLoop(accelerator, loader, 16)
    again = [
        [batch["labels"].tolist() for batch in DataLoader(loader.dataset, batch_size=4, collate_fn=collator)]
        for _ in range(2)
    ]
    assert again[0] == again[1]
