"""Options: command line before recipe before defaults, every fault named in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import ROOT
from transformers import (
    TrainingArguments,
)
from transformers.utils.import_utils import is_env_variable_true

from bioptimus_hf.cli.legacy import COMMON, SECTIONS, CorpusOptions, RunOptions, StageOptions, parse, run
from bioptimus_hf.errors import InputError, Terminated
from bioptimus_hf.pretraining.curriculum import Phase, read_curriculum
from bioptimus_hf.pretraining.masking import MaskingStrategy


@dataclass
class Options:
    size: int = 100
    rate: float = 0.5
    name: str = "default"
    fast: bool = True
    slow: bool = False
    limit: float | None = None
    kind: Literal["mean", "first"] = "mean"
    layers: list[int] = field(default_factory=lambda: [1, 2])


@dataclass
class Required:
    data: str


def from_recipe(tmp_path: Path, recipe: str, *arguments: str, kind: type = Options) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(textwrap.dedent(recipe), encoding="utf-8")
    (options,) = parse(kind, section="pretrain", description="", argv=["--recipe", str(path), *arguments])
    return options


def test_command_line_before_recipe_before_defaults(tmp_path: Path) -> None:
    recipe = """
    pretrain:
      size: 7
      rate: 0.25
      fast: false
      slow: true
      layers: [3]
    """
    options = from_recipe(tmp_path, recipe, "--size", "8", "--slow", "false", "--layers", "4", "5")
    assert options == Options(size=8, rate=0.25, fast=False, slow=False, layers=[4, 5])
    assert from_recipe(tmp_path, recipe) == Options(size=7, rate=0.25, fast=False, slow=True, layers=[3])
    assert from_recipe(tmp_path, recipe, "--fast") == Options(size=7, rate=0.25, slow=True, layers=[3])
    assert from_recipe(tmp_path, "{}") == Options()
    # A second reading is not coloured by the first.
    assert parse(Options, section="pretrain", description="", argv=[]) == (Options(),)


def test_recipe_with_an_equals_sign(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("pretrain: {size: 7}")
    assert parse(Options, section="pretrain", description="", argv=[f"--recipe={path}"]) == (Options(size=7),)


def test_a_recipe_serves_every_script_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "seed: 3\noutput_dir: runs/x\nmax_megabytes: 64\npretrain: {learning_rate: 1.0e-3}\ndistill_embeddings:\n"
    )
    argv = ["--recipe", str(path)]
    options, stage = parse(RunOptions, StageOptions, section="distill_embeddings", description="", argv=argv)
    assert options == RunOptions(output_dir="runs/x", seed=3)
    assert stage == StageOptions()
    (arguments,) = parse(TrainingArguments, section="pretrain", description="", argv=argv)
    assert (arguments.seed, arguments.output_dir, arguments.learning_rate) == (3, "runs/x", 1e-3)


def test_own_section_goes_before_the_common_part(tmp_path: Path) -> None:
    (options,) = (from_recipe(tmp_path, "seed: 1\npretrain: {seed: 2}", kind=RunOptions),)
    assert options.seed == 2


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    """S8: YAML 1.1 takes 5e-5 for a string, which TrainingArguments would take as it is."""
    arguments = from_recipe(tmp_path, "pretrain: {learning_rate: 5e-5, output_dir: x}", kind=TrainingArguments)
    assert arguments.learning_rate == 5e-5
    assert isinstance(arguments.learning_rate, float)


def test_a_value_means_the_same_in_a_recipe_and_on_the_command_line(tmp_path: Path) -> None:
    """Settings go into the fingerprint of a stage, where 5 and 5.0 differ."""
    recipe = from_recipe(tmp_path, "pretrain: {rate: 5, limit: 2, name: 2024, fast: 'no', kind: first, layers: 9}")
    typed = ["--rate", "5", "--limit", "2", "--name", "2024", "--fast", "no", "--kind", "first", "--layers", "9"]
    (command_line,) = parse(Options, section="pretrain", description="", argv=typed)
    assert repr(recipe) == repr(command_line)
    assert repr(recipe.rate) == "5.0"
    assert from_recipe(tmp_path, "pretrain: {limit: null}").limit is None
    assert from_recipe(tmp_path, "pretrain: {limit: 2}", "--limit", "3").limit == 3.0


def test_a_mapping_for_the_training_arguments(tmp_path: Path) -> None:
    recipe = "pretrain: {output_dir: x, lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 1.0e-6}}"
    assert from_recipe(tmp_path, recipe, kind=TrainingArguments).lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_a_recipe_satisfies_a_required_option(tmp_path: Path) -> None:
    assert from_recipe(tmp_path, "pretrain: {data: here}", kind=Required) == Required("here")
    with pytest.raises(InputError, match="--data"):
        from_recipe(tmp_path, "{}", kind=Required)
    with pytest.raises(InputError, match="data must be of type str, not None"):
        from_recipe(tmp_path, "pretrain: {data: }", kind=Required)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("pretrain: {sise: 5}", "pretrain has no option sise"),
        ("pretrain: {recipe: other.yaml}", "pretrain has no option recipe"),
        ("size: 5", f"size is neither a script's section nor one of {', '.join(COMMON)}"),
        ("pretrian: {size: 5}", "pretrian is neither a script's section nor"),
        ("pretrain: [size]", "pretrain must be a mapping"),
        ("- size", "must be a mapping"),
        ("", "must be a mapping"),
        ("pretrain: {size: [", "is not YAML"),
        ("pretrain: {size: 1.5}", "size must be of type int, not 1.5"),
        ("pretrain: {size: many}", "size must be of type int, not 'many'"),
        ("pretrain: {size: yes}", "size must be of type int, not True"),
        ("pretrain: {size: }", "size must be of type int, not None"),
        ("pretrain: {size: [1, 2]}", r"size must be of type int, not \[1, 2\]"),
        ("pretrain: {rate: high}", "rate must be of type float, not 'high'"),
        ("pretrain: {fast: perhaps}", "fast must be of type bool, not 'perhaps'"),
        ("pretrain: {kind: last}", "kind must be one of mean, first, not 'last'"),
        ("pretrain: {layers: [1, x]}", "layers must be of type int, not 'x'"),
        ("pretrain: {layers: }", "layers must be of type int, not None"),
    ],
)
def test_a_fault_in_a_recipe_is_named_with_its_file(tmp_path: Path, recipe: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"--recipe .*recipe\.yaml:? .*{message}") as error:
        from_recipe(tmp_path, recipe)
    assert "\n" not in str(error.value)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=f"--recipe {path}: .*{message}"):
            parse(Options, section="pretrain", description="", argv=["--recipe", str(path)])
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9")
    with pytest.raises(InputError, match=r"latin\.yaml is not YAML"):
        parse(Options, section="pretrain", description="", argv=["--recipe", str(tmp_path / "latin.yaml")])
    with pytest.raises(InputError, match="--recipe: expected one argument"):
        parse(Options, section="pretrain", description="", argv=["--recipe"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sise", "5"], "--sise"),
        (["--siz", "5"], "--siz"),  # abbreviations would change their meaning with the next option
        (["--size", "many"], "--size: invalid int value: 'many'"),
        (["--kind", "last"], "--kind"),
        (["stray"], "stray"),
    ],
)
def test_a_fault_on_the_command_line_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=rf"{message}.*; see --help"):
        parse(Options, section="pretrain", description="", argv=arguments)


def test_training_arguments_check_their_values() -> None:
    argv = ["--output_dir", "x", "--eval_strategy", "steps", "--load_best_model_at_end", "--save_strategy", "epoch"]
    with pytest.raises(InputError, match="load_best_model_at_end"):
        parse(TrainingArguments, section="pretrain", description="", argv=argv)


def test_corpus_options(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"document {number}\n" for number in range(300)))
    (options,) = parse(
        CorpusOptions,
        section="pretrain",
        description="",
        argv=["--corpus", str(tmp_path / "a.txt"), "--validation_share", "0.1"],
    )
    parts = options.load()
    assert len(parts["train"]) + len(parts["validation"]) == 300
    assert 10 < len(parts["validation"]) < 60
    assert options.inputs()["corpus"].startswith("sha256:")
    settings = options.settings()
    assert settings == {
        "text_column": "text",
        "max_megabytes": None,
        "errors": "strict",
        "validation_share": 0.1,
    }
    with pytest.raises(InputError, match="no --corpus given"):
        parse(CorpusOptions, section="pretrain", description="", argv=[])


def test_sections_are_the_scripts() -> None:
    root = ROOT
    scripts = {path.stem for folder in ("scripts", "app") for path in (root / folder).glob("*.py")}
    unread = {script for script in SECTIONS if script not in scripts}
    assert not unread, "a section of a recipe that no script reads"


SCRIPT = '''
"""Say what is wrong.

    python script.py --size 3

Writes nothing.
"""
import logging
from dataclasses import dataclass, field
from bioptimus_hf.errors import InputError
from bioptimus_hf.cli.legacy import parse
from bioptimus_hf.cli.legacy import run

@dataclass
class Options:
    size: int = field(default=5, metadata={"help": "A number"})

def main():
    (options,) = parse(Options, section="pretrain", description=__doc__)
    logging.getLogger("script").info("size %d", options.size)
    if options.size > 9:
        raise InputError("--size is\\ntoo large")
    if options.size < 0:
        raise ZeroDivisionError("a fault of ours")

run(main)
'''


def run_script(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_an_input_error_is_one_line_and_status_2(tmp_path: Path) -> None:
    for arguments, message in ((["--size", "x"], "argument --size"), (["--recipe", "none.yaml"], "No such file")):
        ended = run_script(tmp_path, *arguments)
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert not ended.stdout
    ended = run_script(tmp_path, "--size", "10")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "error: --size is too large"
    assert "Traceback" not in ended.stderr


def test_a_good_end_a_fault_of_ours_and_help(tmp_path: Path) -> None:
    ended = run_script(tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "script: size 5" in ended.stderr
    assert (fault := run_script(tmp_path, "--size=-1")).returncode == 1
    assert "Traceback" in fault.stderr
    assert (shown := run_script(tmp_path, "--help")).returncode == 0
    assert "    python script.py --size 3\n" in shown.stdout
    assert "A number (default: 5)" in shown.stdout
    assert "--recipe FILE" in shown.stdout


def test_no_script_asks_an_outside_service_to_convert_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """S14: transformers asks for a converted copy of a repository that has only a pytorch_model.bin."""
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "")
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION")
    seen = []
    with pytest.raises(SystemExit) as ended:
        run(lambda: seen.append(os.environ.get("DISABLE_SAFETENSORS_CONVERSION")))
    assert ended.value.code == 0
    assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")
    assert seen == ["1"]


GOOD = "{version: 0.1, unit: token, rate: 0.15, corrupt: true, share: 0.5}"


def test_a_curriculum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "curriculum.yaml"
    path.write_text(f"- {GOOD}\n- {{version: two, unit: word, rate: 1, corrupt: false, share: 0.5, last_rate: 0.3}}\n")
    assert read_curriculum(path) == (
        Phase("0.1", MaskingStrategy("token", 0.15, True), 0.5),
        Phase("two", MaskingStrategy("word", 1, False), 0.5, 0.3),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "must be a list of phases"),
        ("- 5", "phase 1: a mapping with version, unit"),
        (f"- {GOOD}\n- {{version: 0.1}}", "phase 2: corrupt is unknown or missing"),
        ("- " + GOOD.replace("unit", "units"), "phase 1: units is unknown or missing"),
        ("- " + GOOD.replace("0.15", "high"), "phase 1: rate cannot be 'high'"),
        ("- " + GOOD.replace("0.15", "true"), "phase 1: rate cannot be True"),
        ("- " + GOOD.replace("true", "1"), "phase 1: corrupt cannot be 1"),
        ("- " + GOOD.replace("0.15", "1.5"), "phase 1: a masking rate lies above 0"),
        ("- [", "is not YAML"),
    ],
)
def test_a_curriculum_that_cannot_be(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "curriculum.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=f"--curriculum {path}.*{said}"):
        read_curriculum(path)


@pytest.mark.parametrize("write", ["safetensors.torch.save_file({'a': x}, 'w')", "torch.save({'a': x}, 'w')"])
def test_a_full_disk_in_the_middle_of_a_checkpoint(tmp_path: Path, write: str) -> None:
    """The writers of weights and of optimizer states have errors of their own for it."""
    program = f"""
    import resource, safetensors.torch, torch
    from bioptimus_hf.cli.legacy import run
    def main():
        x = torch.zeros(100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        {write}
    run(main)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: no room left on the disk")


@pytest.mark.parametrize(("end", "status"), [(None, 0), (Terminated("ended at step 3"), 143)])
def test_other_processes_that_are_gone_change_no_status(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: Exception | None, status: int
) -> None:
    def main() -> None:
        if end:
            raise end

    def part() -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", part)
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == status
    assert "could not leave the process group: Connection closed by peer" in caplog.text


def test_a_gpu_without_memory(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert "a smaller --per_device_train_batch_size, with more --gradient_accumulation_steps" in capsys.readouterr().err
