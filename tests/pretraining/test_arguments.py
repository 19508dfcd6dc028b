"""Which training options work, which shape the result, and which are rejected."""

from __future__ import annotations

import copy
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
