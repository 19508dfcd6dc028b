"""Options: command line before recipe before defaults, every fault named in one line."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import TrainingArguments

from bioptimus_hf.annotation.options import AnnotationOptions
from bioptimus_hf.artifacts import Run
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.cli.options import build_parser, parse, with_dashes
from bioptimus_hf.cli.recipes import COMMON
from bioptimus_hf.cli.report import HeadsToReport
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.errors import InputError


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
    (options,) = parse([kind], "pretrain", "", ["--recipe", str(path), *arguments])
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
    assert parse([Options], "pretrain", "", []) == (Options(),)


def test_recipe_with_an_equals_sign(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("pretrain: {size: 7}")
    assert parse([Options], "pretrain", "", [f"--recipe={path}"]) == (Options(size=7),)


def test_a_recipe_serves_every_stage_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 3\noutput_dir: runs/x\nmax_megabytes: 64\npretrain: {learning_rate: 1.0e-3}\ndistill:\n")
    argv = ["--recipe", str(path)]
    (run,) = parse([Run], "distill", "", argv)
    assert run == Run(output_dir=str(tmp_path / "runs" / "x"), seed=3)
    (arguments,) = parse([TrainingArguments], "pretrain", "", argv)
    assert (arguments.seed, arguments.learning_rate) == (3, 1e-3)
    assert arguments.output_dir == str(tmp_path / "runs" / "x")
    corpus_and_run = parse([Run, Corpus], "find_contexts", "", [*argv, "--corpus", "a.txt", "--output-dir", "here"])
    assert corpus_and_run == (Run("here", seed=3), Corpus(["a.txt"], max_megabytes=64))


def test_own_section_goes_before_the_common_part(tmp_path: Path) -> None:
    (options,) = (from_recipe(tmp_path, "seed: 1\npretrain: {seed: 2}", kind=Run),)
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
    (command_line,) = parse([Options], "pretrain", "", typed)
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
        ("size: 5", f"size is neither the section of a command nor one of {', '.join(COMMON)}"),
        ("pretrian: {size: 5}", "pretrian is neither the section of a command nor .*: did you mean pretrain"),
        ("pretrain: [size]", "pretrain must be a mapping"),
        ("- size", "must be a mapping"),
        ("", "must be a mapping"),
        ("pretrain: {size: [", "is not YAML"),
        ("seed: 1\npretrain: {size: 5}\nseed: 2", "line 3: seed is given twice, first in line 1"),
        ("pretrain:\n  size: 5\n  rate: 1\n  size: 5", "line 4: size is given twice, first in line 2"),
        ("output_dir: ''", "output_dir is empty: name a folder"),
        ("annotate: {output_dir: ''}", "output_dir is empty: name a folder"),
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
    with pytest.raises(InputError, match=rf"recipe\.yaml[:,]? .*{message}") as error:
        from_recipe(tmp_path, recipe)
    assert "\n" not in str(error.value)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.yaml", "neither a file nor one of"),
        (tmp_path, "neither a file nor one of"),
    ):
        with pytest.raises(InputError, match=message):
            parse([Options], "pretrain", "", ["--recipe", str(path)])
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9")
    with pytest.raises(InputError, match=r"latin\.yaml is not YAML"):
        parse([Options], "pretrain", "", ["--recipe", str(tmp_path / "latin.yaml")])
    with pytest.raises(InputError, match="--recipe: expected one argument"):
        parse([Options], "pretrain", "", ["--recipe"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sise", "5"], "unknown option --sise: did you mean --size?"),
        (["--siz", "5"], "--siz"),  # abbreviations would change their meaning with the next option
        (["--size", "many"], "--size: invalid int value: 'many'"),
        (["--kind", "last"], "--kind"),
        (["--sise=5"], "unknown option --sise: did you mean --size?"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_a_fault_on_the_command_line_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=rf"{re.escape(message)}.*; see --help"):
        parse([Options], "pretrain", "", arguments)


def test_a_mapping_may_override_a_value_that_it_merges(tmp_path: Path) -> None:
    recipe = "publish: &common {license: mit, size: 1}\npretrain: {<<: {size: 1, rate: 2}, size: 5}"
    assert from_recipe(tmp_path, recipe) == Options(size=5, rate=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "demo"],
        ["demo"],
        ["train-vocabulary", "--corpus", "a.txt"],
        ["annotate", "--models", "a", "--input", "b"],
        ["export-onnx", "--model", "a"],
        ["report"],
        ["publish", "--repo_id", "a/b", "--license", "mit", "--language", "en"],
    ],
)
def test_an_empty_output_dir_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be the working directory."""
    monkeypatch.chdir(tmp_path)
    more = ["--corpus_description", "a", "--corpus_license", "b"] if arguments[0] == "publish" else []
    assert main([*arguments, *more, "--output_dir", ""]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: --output_dir: is empty: name a file or folder"
    assert not list(tmp_path.iterdir())


def test_training_arguments_check_their_values() -> None:
    argv = ["--output_dir", "x", "--eval_strategy", "steps", "--load_best_model_at_end", "--save_strategy", "epoch"]
    with pytest.raises(InputError, match="load_best_model_at_end"):
        parse([TrainingArguments], "pretrain", "", argv)


def test_a_hyphen_is_as_good_as_an_underscore() -> None:
    assert parse([Run], "report", "", ["--output-dir", "x", "--num-proc=2"]) == (Run("x", num_proc=2),)


def test_options_that_two_dataclasses_share_go_to_both() -> None:
    run, arguments = parse([Run, TrainingArguments], "pretrain", "", ["--seed", "5", "--output_dir", "x"])
    assert (run.seed, run.output_dir) == (arguments.seed, arguments.output_dir) == (5, "x")


def test_every_training_argument_with_a_form_on_the_command_line_is_accepted() -> None:
    argv = ["--output_dir", "x", "--report_to", "tensorboard", "--optim", "adafactor", "--torch_compile", "false"]
    argv += [
        "--lr_scheduler_type",
        "cosine",
        "--label_names",
        "a",
        "b",
        "--accelerator_config",
        '{"split_batches": true}',
    ]
    (arguments,) = parse([TrainingArguments], "pretrain", "", argv)
    assert (arguments.report_to, arguments.optim, arguments.label_names) == (["tensorboard"], "adafactor", ["a", "b"])
    assert arguments.accelerator_config.split_batches
    with pytest.raises(InputError, match="lr_scheduler_type: invalid choice: 'cosin'"):
        parse([TrainingArguments], "pretrain", "", ["--lr_scheduler_type", "cosin"])
    with pytest.raises(InputError, match="not JSON"):
        parse([TrainingArguments], "pretrain", "", ["--accelerator_config", "{"])


@dataclass
class Paths:
    data: str | None = field(default=None, metadata={"path": True})
    models: list[str] = field(default_factory=list, metadata={"path": True})
    written: str = field(default="out", metadata={"path": "output"})


def test_paths_in_a_recipe_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names on the Hub, of versions and of tasks look like relative paths, and stay as they are."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    recipe = "pretrain: {data: texts/*.txt, models: [v0.4, owner/name, texts/a.txt, mine=texts], written: runs/x}"
    options = from_recipe(tmp_path, recipe, kind=Paths)
    assert options == Paths(
        f"{tmp_path}/texts/*.txt",
        ["v0.4", "owner/name", f"{tmp_path}/texts/a.txt", f"mine={tmp_path}/texts"],
        f"{tmp_path}/runs/x",
    )
    monkeypatch.chdir(tmp_path / "texts")  # the command line is relative to the working directory
    assert from_recipe(tmp_path, recipe, "--data", "a.txt", kind=Paths).data == "a.txt"


def test_a_stage_writes_where_the_whole_recipe_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bioptimus pretrain --recipe mine.yaml` continues what `bioptimus run mine.yaml` has begun."""
    monkeypatch.chdir(tmp_path)
    assert from_recipe(tmp_path, "seed: 0", kind=Run).output_dir == str(tmp_path / "runs" / "recipe")
    assert parse([Run], "distill", "", ["--recipe", "demo"])[0].output_dir == str(tmp_path / "runs" / "demo")
    assert parse([Run], "report", "", []) == (Run("runs/default"),)


@dataclass
class Many:
    """What is seldom needed"""

    SHOWN_OPTIONS = frozenset({"often"})
    often: int = field(default=1, metadata={"help": "100 % of users need this"})
    seldom: int = field(default=2, metadata={"help": "Few do"})


def test_help_begins_with_an_example_and_groups_the_options() -> None:
    text = build_parser([Run, Many], "Do it.\n\n    bioptimus do --often 5\n\nMore.").format_help()
    assert text.startswith("Example:\n\n    bioptimus do --often 5\n\nDo it.\n\nMore.\n\nWhere a run is kept")
    assert "\nWhat is seldom needed:\n  --often OFTEN" in text
    assert "100 % of users need this (default: 1)" in text
    assert "--seldom" not in text
    assert "--help_all" in text
    assert "--seldom" in build_parser([Many], "", all_options=True).format_help()
    assert parse([Many], "pretrain", "", ["--seldom", "3"]) == (Many(1, 3),)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            InputError("redo it with force, or choose another output_dir"),
            "redo it with --force, or choose another --output_dir",
        ),
        (InputError("/a/output_dir/x.force: use force"), "/a/output_dir/x.force: use --force"),
        (InputError("by force of seed_x, or output_dirs"), "by force of seed_x, or output_dirs"),
        (InputError("must be above 0", argument="seed"), "--seed: must be above 0"),
        (InputError("must be above 0", argument="num_proc"), "--num_proc: must be above 0"),
        (InputError("fix it, or set on_error=skip"), "fix it, or set --on_error=skip"),
        (InputError("is no head", argument="heads"), "heads: is no head"),  # not an option
        (InputError("leave it out", argument="split_seed"), "split_seed: leave it out"),  # of a task's YAML file
    ],
)
def test_errors_name_options_as_they_are_written(said: InputError, shown: str) -> None:
    assert with_dashes(said, [Run, AnnotationOptions, HeadsToReport]) == shown


@pytest.mark.parametrize("option", ["--ner_data=data", "--tasks=a", "--force", "--no_verify"])
def test_options_of_the_report_of_heads_need_heads(option: str) -> None:
    name = option[2:].partition("=")[0]
    with pytest.raises(InputError, match=f"^{name}: is for the report of heads: name their folders, too"):
        parse([HeadsToReport], "report", "", [option])


@pytest.mark.parametrize("arguments", [["--corpus", ""], ["--corpus", "a.txt", ""], ["--output_dir", ""]])
def test_an_empty_path_is_not_the_working_directory(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=f"{arguments[0][2:]}: is empty: name a file or folder"):
        parse([Run, Corpus], "train_vocabulary", None, arguments)


@pytest.mark.parametrize(
    ("command", "name"), [("package", "head"), ("report", "heads"), ("check", "folder"), ("run", "recipe")]
)
def test_an_empty_positional_argument_has_no_dashes(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "", *(["--name", "x"] if command == "package" else [])]) == 2
    assert capsys.readouterr().err == f"error: {name}: is empty: name a file or folder\n"


@pytest.mark.parametrize("arguments", [["--num_proc", "0"], ["--num_proc", "-3"], ["--max_megabytes", "inf"]])
def test_numbers_that_nothing_can_be_done_with(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=f"{arguments[0][2:]}: must be"):
        parse([Run, Corpus], "train_vocabulary", None, ["--corpus", "a.txt", *arguments])
