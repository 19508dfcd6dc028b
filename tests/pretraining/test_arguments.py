"""Which training options work, which shape the result, and which are rejected."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from transformers.training_args import TrainingArguments

from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.arguments import (
    HARMLESS,
    REJECTED,
    REJECTED_VALUES,
    SHAPING,
    PretrainingArguments,
    check_arguments,
    shaping_settings,
)
from bioptimus_hf.pretraining.options import PretrainingOptions

DEFAULTS = {
    field.name: field.default if field.default_factory is MISSING else field.default_factory()
    for field in fields(TrainingArguments)
    if field.init
}


def another_value(name: str) -> Any:
    default = DEFAULTS[name]
    return not default if isinstance(default, bool) else 0.5 if isinstance(default, float) else "another"


def test_every_option_of_transformers_is_classified_once() -> None:
    """After an update of transformers: try what a new option does in pre-training, and put it where it belongs."""
    classified = [*SHAPING, *HARMLESS, *REJECTED]
    assert sorted(DEFAULTS.keys() - set(classified)) == []
    assert len(classified) == len(set(classified))
    assert {name for name, _ in REJECTED_VALUES} <= SHAPING | HARMLESS


@pytest.mark.parametrize("name", sorted(REJECTED))
def test_an_option_without_effect_is_rejected(tmp_path: Path, name: str) -> None:
    if name not in DEFAULTS:
        pytest.skip("this version of transformers doesn't have the option")
    with pytest.raises(InputError, match=f"^{name}: not supported, because ") as error:
        PretrainingArguments(output_dir=str(tmp_path), **{name: another_value(name)})
    assert REJECTED[name] in str(error.value)
    assert "--" not in str(error.value)


@pytest.mark.parametrize(("name", "value"), list(REJECTED_VALUES))
def test_a_value_that_cannot_be_respected_is_rejected(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: {value} is not supported, because"):
        PretrainingArguments(output_dir=str(tmp_path), **{name: value})


NUMBERS = [  # of all options that work
    field.name
    for field in fields(TrainingArguments)
    if ("int" in str(field.type) or "float" in str(field.type)) and field.name not in REJECTED
    if field.name != "local_rank"  # -1 outside of a launch
]
ZERO_IS_FINE = {
    "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay", "neftune_noise_alpha", "adam_beta1", "adam_beta2",
    "dataloader_num_workers", "seed", "data_seed",
}  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -2, 0])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_range_is_rejected(tmp_path: Path, name: str, value: float) -> None:
    if value == 0 and name in ZERO_IS_FINE:
        return
    with pytest.raises(InputError, match=rf"^{name}: must be .*, not {value}$"):
        PretrainingArguments(output_dir=str(tmp_path), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("adam_beta1", 1), ("per_device_train_batch_size", 1.5), ("save_steps", 2.5), ("seed", 2**32), ("max_steps", 0.5)],
)
def test_other_numbers_without_meaning_are_rejected(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name}: must be "):
        PretrainingArguments(output_dir=str(tmp_path), **{name: value})


def test_sensible_numbers_are_accepted(tmp_path: Path) -> None:
    for options in (
        dict.fromkeys(ZERO_IS_FINE, 0),
        {"max_steps": -1, "save_steps": 0.1, "logging_steps": 7, "eval_steps": None, "save_total_limit": None},
    ):
        PretrainingArguments(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize("given", [{"use_seedable_sampler": False}, '{"use_seedable_sampler": false}', "file"])
def test_a_sampler_that_cannot_be_resumed_is_rejected_at_the_start(tmp_path: Path, given: Any) -> None:
    if given == "file":
        (tmp_path / "accelerator.json").write_text('{"use_seedable_sampler": false}')
        given = str(tmp_path / "accelerator.json")
    with pytest.raises(InputError, match="accelerator_config: not supported with use_seedable_sampler: false"):
        PretrainingArguments(output_dir=str(tmp_path), accelerator_config=given)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--push_to_hub",), "--push_to_hub: not supported, because nothing is uploaded during training; publish"),
        (("--eval_accumulation_steps", "2"), "--eval_accumulation_steps: not supported, because validation measures"),
        (("--include_for_metrics", "inputs"), "--include_for_metrics: not supported, because validation measures"),
        (("--load_best_model_at_end",), "--load_best_model_at_end: not supported, because there is no best model"),
        (("--resume_from_checkpoint", "x"), "--resume_from_checkpoint: not supported, because a run resumes from"),
        (("--max_length", "4"), "--max_length: must be at least 8, not 4"),
        (("--dropout", "1"), "--dropout: must be at least 0 and below 1, not 1.0"),
        (("--learning_rate", "nan"), "--learning_rate: must be above 0, not nan"),
        (("--seed", "-1"), "--seed: must be a whole number from 0 to 4294967295, not -1"),
        (("--ignore_data_skip", "true"), "--ignore_data_skip: not supported, because a resumed run would train on the"),
    ],
)
def test_the_command_gives_the_reason_in_one_line(
    capsys: pytest.CaptureFixture[str], option: tuple[str, ...], reason: str
) -> None:
    assert main(["pretrain", "--corpus", "text.txt", *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {reason}")


def test_what_shapes_the_weights_is_in_the_fingerprint_and_nothing_else(tmp_path: Path) -> None:
    arguments = PretrainingArguments(output_dir=str(tmp_path))
    plain = shaping_settings(arguments)
    changed = set()
    for name in DEFAULTS.keys() - REJECTED.keys():
        other = copy.copy(arguments)
        value = another_value(name)
        setattr(other, name, value if value != getattr(other, name) else 0.25)
        if shaping_settings(other) != plain:
            changed.add(name)
    assert changed == SHAPING & DEFAULTS.keys()


def test_the_launcher_shapes_the_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    plain = shaping_settings(PretrainingArguments(output_dir=str(tmp_path)))
    assert plain.items() >= {"seed": 0, "learning_rate": 1e-4, "weight_decay": 0.01, "world_size": 1}.items()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    launched = shaping_settings(PretrainingArguments(output_dir=str(tmp_path)))
    assert launched == {**plain, "mixed_precision": "bf16", "sharded": True}


def test_deepspeed_is_rejected_however_it_is_launched(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    check_arguments(arguments)
    arguments.deepspeed_plugin = object()  # as `accelerate launch --use_deepspeed` has it
    with pytest.raises(InputError, match="deepspeed: not supported"):
        check_arguments(arguments)


def test_constructing_arguments_leaves_the_environment_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    PretrainingArguments(output_dir=str(tmp_path), torch_compile=True)
    assert dict(os.environ) == before


def test_options_check_themselves() -> None:
    with pytest.raises(InputError, match="phases: name at least one version"):
        PretrainingOptions(phases=[])
