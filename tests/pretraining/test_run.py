from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import ROOT, build_tiny_bert, run_until_killed
from matplotlib.figure import Figure
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizer
from transformers.training_args import ParallelMode

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_masked_lm
from bioptimus_hf.plots import plot_history
from bioptimus_hf.pretraining.arguments import PretrainingArguments, shaping_settings
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, Phase
from bioptimus_hf.pretraining.masking import BioptimusDataCollator, MaskingStrategy
from bioptimus_hf.pretraining.modeling import END_TO_END, BertForMaskedPositions
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.pretraining.run import (
    VALIDATION_MASKING,
    check_blocks,
    last_checkpoint,
    mask_once,
    prepare_model,
    pretrain,
)
from bioptimus_hf.pretraining.trainer import PretrainingTrainer, loss_and_count

TEXTS = [
    "Aspirin binding in severe asthma patients was induced by protein expression.",
    "The mice of the renal cells.",
    "Bronchoconstriction (acute) is a disease with cancer therapy on the gene, for patients and failure.",
]


def blocks(tokenizer: BertTokenizer, copies: int = 12, max_length: int = 16) -> Dataset:
    return tokenize_and_pack(Dataset.from_dict({"text": TEXTS * copies}), tokenizer, max_length=max_length)


def masked_head(tokenizer: BertTokenizer) -> BertForMaskedPositions:
    plain = build_tiny_bert(len(tokenizer))
    model = BertForMaskedPositions(plain.config)
    model.load_state_dict(plain.state_dict())
    return model


def arguments(folder: Path, **changes: Any) -> PretrainingArguments:
    return PretrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "disable_tqdm": True,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            **changes,
        }
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def assert_close_rows(left: dict[str, Any], right: dict[str, Any], *, rel: float) -> None:
    for name in {"loss", "grad_norm", "eval_loss"} & {*left, *right}:
        assert left[name] == pytest.approx(right[name], rel=rel), (left["step"], name)


def test_validation_is_masked_once_and_fixed(tokenizer: BertTokenizer) -> None:
    packed = blocks(tokenizer)
    once = mask_once(packed, tokenizer, seed=1)
    assert once.to_dict() == mask_once(packed, tokenizer, seed=1).to_dict()
    assert once.to_dict() != mask_once(packed, tokenizer, seed=2).to_dict()
    labelled = packed.map(lambda row: {"labels": row["input_ids"], "token_type_ids": [0] * len(row["input_ids"])})
    other = mask_once(labelled, tokenizer, seed=1)  # as run_mlm.py groups texts
    assert "token_type_ids" in other.column_names
    assert other.select_columns(once.column_names).to_dict() == once.to_dict()
    hidden = 0
    for before, after in zip(packed["input_ids"], once, strict=True):
        assert len(after["input_ids"]) == len(before) == sum(after["attention_mask"])
        for was, now, label in zip(before, after["input_ids"], after["labels"], strict=True):
            assert (now, label) == (was, -100) or (now, label) == (tokenizer.mask_token_id, was)
            hidden += label != -100
    assert hidden / sum(map(len, packed["input_ids"])) == pytest.approx(VALIDATION_MASKING.rate, abs=0.05)


def test_validation_loss_is_the_mean_over_tokens_not_over_batches(tokenizer: BertTokenizer) -> None:
    model = masked_head(tokenizer).train()
    ready = mask_once(blocks(tokenizer), tokenizer)
    collator = BioptimusDataCollator(tokenizer)
    state = torch.get_rng_state()
    total, count = loss_and_count(model, ready, collator, batch_size=5).tolist()
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    plain = build_tiny_bert(len(tokenizer))
    losses = [
        torch.nn.functional.cross_entropy(
            plain(torch.tensor([row["input_ids"]])).logits[0], torch.tensor(row["labels"]), reduction="sum"
        ).item()
        for row in ready
    ]
    assert count == sum(label != -100 for row in ready for label in row["labels"])
    assert total == pytest.approx(sum(losses), rel=1e-4)


def run_once(
    tokenizer: BertTokenizer,
    folder: Path,
    *,
    dropout: float = 0.1,
    restart_each_phase: bool = False,
    curriculum: tuple[Phase, ...] = BIOPTIMUS_CURRICULUM,
    **changes: Any,
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    return pretrain(
        masked_head(tokenizer),
        tokenizer,
        blocks(tokenizer, copies=15).select(range(35)),  # not a whole number of batches
        mask_once(blocks(tokenizer, copies=2), tokenizer),
        arguments(folder / "checkpoints", **changes),
        curriculum=curriculum,
        export_dir=folder,
        restart_each_phase=restart_each_phase,
        dropout=dropout,
    )


@pytest.mark.parametrize(
    ("capability", "changes", "attention", "replayed"),
    [
        ((7, 5), {}, "sdpa", False),
        ((8, 0), {}, END_TO_END, True),
        ((9, 0), {"torch_compile": False}, END_TO_END, False),
        ((9, 0), {"gradient_checkpointing": True}, END_TO_END, False),
        ((9, 0), {"parallel_mode": ParallelMode.DISTRIBUTED}, END_TO_END, False),
        ((9, 0), {"parallel_mode": ParallelMode.NOT_DISTRIBUTED}, END_TO_END, False),
        ((9, 0), {"torch_compile_mode": "reduce-overhead"}, END_TO_END, False),
        ((9, 0), {"torch_compile_backend": "cudagraphs"}, END_TO_END, False),
        ((9, 0), {"hip": "6.4"}, "sdpa", False),
    ],
    ids=str,
)
def test_what_is_chosen_on_a_gpu(
    tokenizer: BertTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    changes: dict[str, Any],
    attention: str,
    replayed: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", changes.get("hip"))
    model = masked_head(tokenizer)
    one_gpu = {"torch_compile": True, "torch_compile_mode": None, "torch_compile_backend": "inductor"}
    one_gpu |= {"gradient_checkpointing": False, "parallel_mode": ParallelMode.NOT_PARALLEL}
    one_gpu["dataloader_pin_memory"] = True
    chosen = SimpleNamespace(device=torch.device("cuda"), **one_gpu | changes)
    prepare_model(model, tokenizer, chosen)
    assert model.config._attn_implementation == attention
    assert (model.replay is not None) == replayed
    assert chosen.dataloader_pin_memory != replayed
    chosen.torch_compile = False
    prepare_model(model, tokenizer, chosen)
    assert model.replay is None


def test_heads_of_a_width_that_flash_attention_refuses(
    tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of TinyBERT, 26 wide."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    model = BertForMaskedPositions(
        BertConfig(vocab_size=99, hidden_size=52, num_attention_heads=2, num_hidden_layers=1)
    )
    prepare_model(model, tokenizer, SimpleNamespace(device=torch.device("cuda")))
    assert model.config._attn_implementation == "sdpa"


def test_a_compiled_run_gives_the_weights_of_a_plain_one(
    tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer by layer, traced and not made fast; evaluated in between."""
    for name in ("BACKEND", "MODE", "USE_REGIONAL_COMPILATION"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")  # what it was comes back at the end
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}")
    run_once(tokenizer, tmp_path / "plain", dropout=0, bf16=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    run_once(tokenizer, tmp_path / "compiled", dropout=0, torch_compile_backend="aot_eager", eval_steps=3, bf16=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    plain, compiled = (weights(tmp_path / kind / "v0.4") for kind in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-3) for name in plain)


def test_a_run_learns_exports_and_logs(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    history = run_once(tokenizer, tmp_path, max_steps=60)
    losses = {row["step"]: row["eval_loss"] for row in history if "eval_loss" in row}
    assert list(losses) == [0, 15, 30, 45, 60]
    assert losses[60] < losses[0] - 0.5
    for version in ("v0.1", "v0.2", "v0.3", "v0.4"):
        record = json.loads((tmp_path / version / "phase.json").read_text())
        assert record["metrics"]["eval_loss"] == losses[record["last_step"]]
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "v0.4")) is BertForMaskedLM


def test_exports_and_checkpoints_are_plain_and_carry_a_whole_tokenizer(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    run_once(tokenizer, tmp_path, save_steps=4, save_total_limit=None)
    for folder in (tmp_path / "v0.2", tmp_path / "checkpoints" / "checkpoint-4"):
        assert AutoConfig.from_pretrained(folder).architectures == ["BertForMaskedLM"]
        assert len((folder / "vocab.txt").read_text().splitlines()) == len(tokenizer)
    assert_same(weights(tmp_path / "v0.2"), weights(tmp_path / "checkpoints" / "checkpoint-4"))


@pytest.mark.parametrize(("rows", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_accumulation_changes_neither_loss_nor_gradient(
    tokenizer: BertTokenizer, tmp_path: Path, rows: int, accumulation: int
) -> None:
    """Over epochs that fill no whole number of steps. The stock model multiplies its loss by the micro-batches."""
    whole = run_once(tokenizer, tmp_path / "whole", dropout=0.0, per_device_train_batch_size=8, max_steps=12)
    halves = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    cut = run_once(tokenizer, tmp_path / "cut", dropout=0.0, max_steps=12, **halves)
    for left, right in zip(whole, cut, strict=True):
        assert_close_rows(left, right, rel=1e-3)
    for left, right in zip(
        weights(tmp_path / "whole" / "v0.4").values(), weights(tmp_path / "cut" / "v0.4").values(), strict=True
    ):
        assert torch.allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        {"eval_steps": 1},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 4},
        {"gradient_checkpointing": True},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    ],
    ids=["evaluation", "2 workers", "4 workers", "gradient checkpointing", "persistent workers"],
)
def test_what_changes_no_weight(
    tokenizer: BertTokenizer, tmp_path: Path, change: dict[str, Any], accumulation: int
) -> None:
    same = {"gradient_accumulation_steps": accumulation, "max_steps": 14, "dropout": 0.1}
    run_once(tokenizer, tmp_path / "plain", **same)
    run_once(tokenizer, tmp_path / "other", **same | change)
    for version in ("v0.1", "v0.4"):
        assert_same(weights(tmp_path / "plain" / version), weights(tmp_path / "other" / version))


@pytest.mark.parametrize("workers", [0, 2, -2])  # -2: persistent ones
@pytest.mark.parametrize("step", [5, 7, 9])  # an edge, and the middle of a phase and of an epoch, the first and a later
def test_going_on_gives_the_uninterrupted_weights(
    tokenizer: BertTokenizer, tmp_path: Path, step: int, workers: int
) -> None:
    rising = (
        Phase("0.1", MaskingStrategy("token", 0.15, True), 0.5),
        Phase("0.2", MaskingStrategy("word", 0.1, True), 0.5, last_rate=0.5),
    )
    options: dict[str, Any] = {"curriculum": rising, "max_steps": 14, "restart_each_phase": True}
    whole = run_once(tokenizer, tmp_path / "whole", **options)
    options |= {"dataloader_num_workers": abs(workers), "dataloader_persistent_workers": workers < 0}
    run_once(tokenizer, tmp_path / "cut", save_steps=step, save_total_limit=None, **options)
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)
    shutil.rmtree(tmp_path / "cut" / "v0.2")
    history = run_once(tokenizer, tmp_path / "cut", **options)
    for version in ("v0.1", "v0.2"):
        assert_same(weights(tmp_path / "whole" / version), weights(tmp_path / "cut" / version))
    kept = ("step", "loss", "learning_rate", "rate", "phase")
    assert [[row.get(name) for name in kept] for row in history if "loss" in row] == [
        [row.get(name) for name in kept] for row in whole if "loss" in row
    ]


def test_a_run_that_only_lacks_its_papers_is_not_trained_on(
    tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written when training is over may fail; the last checkpoint may lie within an epoch."""
    whole = run_once(tokenizer, tmp_path, max_steps=14)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = run_once(tokenizer, tmp_path, max_steps=14)
    assert [row for row in again if "loss" in row] == [row for row in whole if "loss" in row]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=r"another max_steps \(14 then, 13 now\)"):
        run_once(tokenizer, tmp_path, max_steps=13)


def test_arguments_that_would_not_be_heeded_are_refused(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    model, train = masked_head(tokenizer), blocks(tokenizer)
    for change, said in (
        (
            {"resume_from_checkpoint": "elsewhere"},
            "--resume_from_checkpoint: a run goes on from its own last checkpoint",
        ),
        ({"save_only_model": True}, "--save_only_model, --save_strategy best: a run could not go on from there"),
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, "--save_strategy best: a run could not go on"),
        ({"eval_strategy": "steps"}, "without a validation set there is none to measure a loss on"),
    ):
        with pytest.raises(InputError, match=said):
            pretrain(model, tokenizer, train, None, arguments(tmp_path, **change), export_dir=tmp_path)


def test_the_learning_rate_over_the_run_or_each_phase(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 16, "warmup_steps": 0.25}
    run = [row["learning_rate"] for row in run_once(tokenizer, tmp_path / "run", **options) if "loss" in row]
    again = run_once(tokenizer, tmp_path / "phase", restart_each_phase=True, **options)
    phase = [row["learning_rate"] for row in again if "loss" in row]
    # In the log stands the rate that a step was made with; each phase has 4 steps, the first of them the warm-up.
    assert run == pytest.approx([1e-3 * min(step / 4, (16 - step) / 12) for step in range(16)])
    assert phase == pytest.approx([1e-3 * share for share in [0, 1, 2 / 3, 1 / 3] * 4])
    with pytest.raises(InputError, match="reduce_lr_on_plateau cannot start anew in each phase"):
        run_once(
            tokenizer, tmp_path / "x", restart_each_phase=True, lr_scheduler_type="reduce_lr_on_plateau", **options
        )


def test_the_plot_has_losses_rates_and_the_edges_of_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **kwargs: drawn.append(figure))
    history = [
        {"step": 0, "eval_loss": 5.0},
        {"step": 1, "loss": 4.0, "rate": 0.15, "learning_rate": 1e-3},
        {"step": 2, "loss": 3.0, "rate": 0.2, "learning_rate": 5e-4},
        {"step": 2, "eval_loss": 4.5},
    ]
    plot_history(tmp_path / "history.png", history, {"0.1": 1, "0.2": 2})
    (figure,) = drawn
    curves = [[line.get_xydata().tolist() for line in place.lines] for place in figure.axes]
    assert [lines[:-2] for lines in curves] == [
        [[[1, 4.0], [2, 3.0]], [[0, 5.0], [2, 4.5]]],
        [[[1, 0.15], [2, 0.2]]],
        [[[1, 1e-3], [2, 5e-4]]],
    ]
    assert [[line[0][0] for line in lines[-2:]] for lines in curves] == [[1, 2]] * 3
    assert [text.get_text() for text in figure.axes[0].texts] == ["v0.1", "v0.2"]


@pytest.mark.parametrize(
    ("seldom", "said"),
    [({}, "loss is"), ({"logging_steps": 99}, "contains NaN or infinity"), ({"save_steps": 99}, "loss is")],
    ids=["", "seldom logged", "seldom saved"],
)
def test_a_run_that_diverges_ends_and_keeps_its_checkpoint(
    tokenizer: BertTokenizer, tmp_path: Path, seldom: dict[str, Any], said: str
) -> None:
    options: dict[str, Any] = {
        "curriculum": (Phase("0.1", MaskingStrategy("token", 0.15, True), 1.0),),
        "save_steps": 1,
    }
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InputError, match=rf"step [23]: the ({said})"):
        run_once(tokenizer, tmp_path, learning_rate=1e38, warmup_steps=4, **options | seldom)
    assert signal.getsignal(signal.SIGTERM) == before
    if "save_steps" in seldom:
        return
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint  # at least of the first step, which is made with a rate of 0
    assert all(torch.isfinite(values).all() for values in weights(Path(checkpoint)).values())


def test_too_little_text_is_refused(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the corpus fills 3 blocks, an optimizer step needs 8"):
        pretrain(
            masked_head(tokenizer),
            tokenizer,
            blocks(tokenizer, copies=1),
            None,
            arguments(tmp_path, per_device_train_batch_size=8),
            export_dir=tmp_path,
        )


def test_blocks_longer_than_the_positions_are_refused(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    tokenizer.model_max_length = 10**30  # as of a tokenizer that names no limit
    long = tokenize_and_pack(Dataset.from_dict({"text": TEXTS * 90}), tokenizer, max_length=600)
    with pytest.raises(InputError, match="blocks of 600 tokens: the model reads 512"):
        check_blocks(long, masked_head(tokenizer), arguments(tmp_path, per_device_train_batch_size=1))


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    run_once(tokenizer, tmp_path / "whole", save_steps=3, save_total_limit=None)
    run_once(tokenizer, tmp_path / "cut", save_steps=3, save_total_limit=None)
    checkpoints = tmp_path / "cut" / "checkpoints"
    for folder in (checkpoints / "checkpoint-8", checkpoints / "checkpoint-6"):
        (folder / "trainer_state.json").unlink(missing_ok=True)
    (checkpoints / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 0.')
    assert last_checkpoint(checkpoints) == str(checkpoints / "checkpoint-3")
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-3"]
    shutil.rmtree(tmp_path / "cut" / "v0.4")
    history = run_once(tokenizer, tmp_path / "cut", save_steps=3, save_total_limit=None)
    assert [row["step"] for row in history if "loss" in row] == list(range(1, 9))
    assert_same(weights(tmp_path / "whole" / "v0.4"), weights(tmp_path / "cut" / "v0.4"))
    assert last_checkpoint(tmp_path / "nowhere") is None
    # Of two processes, one was killed before the state of its random numbers was there.
    (checkpoints / "checkpoint-8-backup").mkdir()
    newest = checkpoints / "checkpoint-8"
    state = newest / "trainer_state.json"
    state.write_text(state.read_text().replace('"world_size": 1', '"world_size": 2'))
    for rank in range(2):
        shutil.copy(newest / "rng_state.pth", newest / f"rng_state_{rank}.pth")
    assert last_checkpoint(checkpoints) == str(newest)
    with pytest.raises(InputError, match=r"another world_size \(2 then, 1 now\)"):
        run_once(tokenizer, tmp_path / "cut", save_steps=3, save_total_limit=None)
    (newest / "rng_state_1.pth").unlink()
    assert last_checkpoint(checkpoints, shared=False) == str(newest)
    assert last_checkpoint(checkpoints) == str(checkpoints / "checkpoint-6")
    assert not newest.exists()


def test_what_shapes_the_weights_is_told_from_what_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    plain = shaping_settings(arguments(tmp_path))
    assert plain == shaping_settings(arguments(tmp_path / "elsewhere", logging_steps=7, save_steps=3, eval_steps=2))
    assert plain != shaping_settings(arguments(tmp_path, learning_rate=2e-3))
    assert plain != shaping_settings(arguments(tmp_path, gradient_accumulation_steps=2))
    # `accelerate launch` says these in the environment.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert shaping_settings(arguments(tmp_path)) == {**plain, "mixed_precision": "bf16", "sharded": True}


def command(run: Path, corpus: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "scripts" / "pretrain.py"), "--output_dir", str(run), "--corpus", str(corpus)),
        *("--validation_share", "0.2", "--max_length", "16", "--per_device_train_batch_size", "4"),
        *("--max_steps", "40", "--save_steps", "3", "--logging_steps", "1", "--disable_tqdm", "True", *more),
    ]


def prepare(tokenizer: BertTokenizer, folder: Path) -> tuple[Path, Path]:
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(f"{text} {number}.\n" for number in range(20) for text in TEXTS))
    save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, folder / "run" / "v0.0")
    return folder / "run", corpus


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    run, corpus = prepare(tokenizer, tmp_path)
    shutil.copytree(run, tmp_path / "whole")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    _, script, *options = command(run, corpus)
    run_until_killed("checkpoint-24/trainer_state.json", Path(script), *options, environment=environment)
    assert not (run / "pretraining").exists()
    (half,) = run.glob("checkpoints/*/checkpoint-24")
    assert (half / "model.safetensors").is_file()
    shutil.copytree(run, tmp_path / "anew")
    anew = subprocess.run(
        command(tmp_path / "anew", corpus, "--force"), env=environment, capture_output=True, text=True, timeout=300
    )
    assert anew.returncode == 0, anew.stderr
    assert "going on from" not in anew.stderr
    for label in ("made by this run", "without any version"):
        wider = subprocess.run(
            command(run, corpus, "--per_device_train_batch_size", "2"), env=environment, capture_output=True, text=True
        )
        assert wider.returncode == 2
        assert "is of another run with other per_device_train_batch_size (4 then, 2 now)" in wider.stderr, label
        for version in run.glob("v0.[1-4]"):
            shutil.move(version, tmp_path / version.name)
    for version in tmp_path.glob("v0.*"):
        shutil.move(version, run / version.name)
    said = run_until_killed("history.json.partial", Path(script), *options, environment=environment)
    assert f"{half} was not written to its end: removed" in said
    assert re.search("going on from .*checkpoint-21", said)
    done = subprocess.run(
        command(run, corpus), env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert re.search("going on from .*checkpoint-40", done.stderr)
    subprocess.run(command(tmp_path / "whole", corpus), env=environment, capture_output=True, check=True, timeout=300)
    for version in ("v0.1", "v0.2", "v0.3", "v0.4"):
        assert_same(weights(run / version), weights(tmp_path / "whole" / version))
    assert not (run / "checkpoints").exists()
    resumed = [
        json.loads((one / "pretraining" / "made.json").read_text())["facts"]["resumed"]
        for one in (run, tmp_path / "whole")
    ]
    assert resumed == [True, False]
    history = json.loads((run / "pretraining" / "history.json").read_text())
    assert [row["step"] for row in history if "loss" in row] == list(range(1, 41))

    again = subprocess.run(
        command(run, corpus), env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert "already there" in again.stderr
    other = subprocess.run(
        command(run, corpus, "--learning_rate", "0.5"), env=environment, capture_output=True, text=True
    )
    assert other.returncode == 2
    assert "learning_rate" in other.stderr.splitlines()[-1]

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    for option, value, said in (
        ("--resume_from_checkpoint", "elsewhere", "a run goes on from its own last checkpoint by itself"),
        ("--model", str(run / "v0.3"), "v0.3 is where a phase would write its version"),
        ("--max_length", "1000", "--max_length must lie between"),
        ("--max_steps", "3", "3 optimizer steps leave a phase of 4 without any"),
        ("--label_smoothing_factor", "0.1", "the loss of pre-training is computed without it"),
    ):
        bad = subprocess.run(
            command(run, corpus, "--force", option, value), env=environment, capture_output=True, text=True
        )
        assert bad.returncode == 2
        assert said in bad.stderr.splitlines()[-1]
        assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
        assert (run / "pretraining" / "history.json").is_file()
    shutil.rmtree(run / "v0.2")
    phase = json.loads((run / "v0.3" / "phase.json").read_text())
    (run / "v0.3" / "phase.json").write_text(json.dumps(phase | {"run": "another"}))
    gone = subprocess.run(command(run, corpus), env=environment, capture_output=True, text=True)
    assert gone.returncode == 2
    assert re.search(r"v0\.2, \S*v0\.3 is gone, or of another run: --force", gone.stderr.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_told_to_end_saves_a_checkpoint_and_goes_on(
    tokenizer: BertTokenizer, tmp_path: Path, two_ranks: tuple[str, ...], ranks: int
) -> None:
    run, corpus = prepare(tokenizer, tmp_path)
    shutil.copytree(run, tmp_path / "whole")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def start(folder: Path) -> list[str]:
        more = ("--per_device_train_batch_size", str(4 // ranks), "--save_steps", "1000", "--max_steps", "400")
        python, *rest = command(folder, corpus, *more, "--report_to", "tensorboard")
        return [python, *(two_ranks if ranks == 2 else ()), *rest]

    process = subprocess.Popen(start(run), env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (run / "v0.1").is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == (128 + signal.SIGTERM if ranks == 1 else 1), said
    ends = [line for line in said.splitlines() if "run the same command again, without --force, to go on" in line]
    assert len(ends) == ranks
    (checkpoint,) = (run / "checkpoints").glob("*/checkpoint-*")
    assert 100 <= int(checkpoint.name.rpartition("-")[2]) < 400
    for folder in (run, tmp_path / "whole"):
        done = subprocess.run(start(folder), env=environment, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        events = EventAccumulator(str(next((folder / "tensorboard").iterdir()))).Reload()
        assert [(event.step, event.value) for event in events.Scalars("train/rate")][-1] == (400, pytest.approx(0.2))
        assert len(events.Scalars("train/loss")) == 400
    for version in ("v0.1", "v0.2", "v0.3", "v0.4"):
        assert_same(weights(run / version), weights(tmp_path / "whole" / version))


@pytest.mark.slow
def test_a_part_of_a_curriculum_of_ones_own(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    run, corpus = prepare(tokenizer, tmp_path)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    rows = "".join(
        f"- {{version: 1.{number}, unit: word, rate: 0.1, last_rate: 0.{number}, corrupt: true, share: 0.2}}\n"
        for number in range(1, 6)
    )
    (tmp_path / "own.yaml").write_text(rows)
    options = ("--curriculum", str(tmp_path / "own.yaml"), "--phases", "1.2", "1.5", "--model", str(run / "v0.0"))
    options += ("--disable_tqdm", "False", "--report_to", "trackio", "--run_name", "own")
    environment["TRACKIO_DIR"] = str(tmp_path / "trackio")
    done = subprocess.run(command(run, corpus, *options), env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    trackio = (str(Path(sys.executable).with_name("trackio")), "get", "metric", "--project", "huggingface", "--json")
    seen = subprocess.run([*trackio, "--run", "own", "--metric", "train/rate"], env=environment, stdout=subprocess.PIPE)
    logged = [row["value"] for row in json.loads(seen.stdout)["values"]]
    assert [logged[step - 1] for step in (1, 20, 21, 40)] == pytest.approx([0.1, 0.2, 0.1, 0.5])
    assert re.search(rb"v1\.5: 100%\|.+\| 40/40 \[\d\d:\d\d<00:00, .+ steps/s, [\d,]+ tokens/s\]", done.stderr)
    assert sorted(path.name for path in run.glob("v*")) == ["v0.0", "v1.2", "v1.5"]
    history = json.loads((run / "pretraining-1.2-1.5" / "history.json").read_text())
    rates = {row["step"]: row["rate"] for row in history if "loss" in row}
    assert [rates[step] for step in (1, 20, 21, 40)] == pytest.approx([0.1, 0.2, 0.1, 0.5])
    assert (run / "pretraining-1.2-1.5" / "history.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "v1.5" / "phase.json").read_text())["share"] == 0.5


@pytest.mark.slow
def test_accelerate_launches_the_script(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    run, corpus = prepare(tokenizer, tmp_path)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    _, *rest = command(run, corpus)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "scripts/accelerate/cpu.yaml"),
    ]
    subprocess.run([*launch, *rest], env=environment, capture_output=True, check=True, timeout=300)
    assert (run / "v0.4" / "model.safetensors").is_file()
    assert (run / "pretraining" / "history.json").is_file()


@pytest.mark.parametrize("other", [{"fsdp_version": 1}, {"cpu_ram_efficient_loading": True}], ids=str)
def test_another_way_of_sharding_is_refused(other: dict[str, Any]) -> None:
    plugin = SimpleNamespace(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False} | other)
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    with pytest.raises(InputError, match="FSDP is supported with fsdp_version: 2 and"):
        PretrainingTrainer._prepare_to_be_sharded(trainer)


# accelerate shards on accelerators alone: processes on CPU that it takes for GPUs, and that say when they shard.
SHARDED_ON_CPU = """
import os, runpy, sys
import accelerate.accelerator
from accelerate import DistributedType, PartialState
begin, prepare = PartialState.__init__, accelerate.accelerator.fsdp2_prepare_model
def __init__(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
def fsdp2_prepare_model(*args):
    print("sharded", file=sys.stderr)
    return prepare(*args)
PartialState.__init__ = __init__
accelerate.accelerator.fsdp2_prepare_model = fsdp2_prepare_model
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "sharded"), [(2, False), (1, True)], ids=["DDP", "FSDP"])
def test_two_ranks_train_as_one(
    tokenizer: BertTokenizer, tmp_path: Path, two_ranks: tuple[str, ...], accumulation: int, sharded: bool
) -> None:
    run, corpus = prepare(tokenizer, tmp_path)
    shutil.copytree(run, tmp_path / "two")
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command(run, corpus), env=environment, capture_output=True, check=True, timeout=300)
    parts = ("--per_device_train_batch_size", str(2 // accumulation), "--gradient_accumulation_steps")
    # Validation in batches of one, of which the second process has one less.
    _, *rest = command(tmp_path / "two", corpus, *parts, str(accumulation), "--per_device_eval_batch_size", "1")
    launch = two_ranks
    if sharded:
        (tmp_path / "cpu.py").write_text(SHARDED_ON_CPU)
        configuration = ("--config_file", str(ROOT / "scripts/accelerate/fsdp.yaml"), "--num_processes", "2")
        launch = ("-m", "accelerate.commands.launch", *configuration, "--mixed_precision", "no")
        launch += (str(tmp_path / "cpu.py"),)
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run([sys.executable, *launch, *rest], env=environment, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"sharded") == (2 if sharded else 0)
    assert json.loads((run / "pretraining" / "made.json").read_text())["facts"]["validation_blocks"] % 2
    one, two = (
        [row for row in json.loads((folder / "pretraining" / "history.json").read_text()) if "step" in row]
        for folder in (run, tmp_path / "two")
    )
    for left, right in zip(one, two, strict=True):
        assert_close_rows(left, right, rel=2e-3)
    for version in ("v0.1", "v0.4"):
        whole, parted = (weights(folder / version) for folder in (run, tmp_path / "two"))
        assert whole.keys() == parted.keys()
        assert all(torch.allclose(whole[name], parted[name], atol=1e-4) for name in whole)
