"""Training with objects: what a run learns, exports and logs, and how it is resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import build_tiny_bert, build_tiny_tokenizer
from matplotlib.figure import Figure
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizer
from transformers.training_args import ParallelMode, TrainingArguments

from bioptimus_hf import About, publish
from bioptimus_hf.artifacts import building, read_record
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import save_masked_lm, save_tokenizer
from bioptimus_hf.plots import plot_history
from bioptimus_hf.pretraining.arguments import PretrainingArguments
from bioptimus_hf.pretraining.checkpoints import newest_checkpoint
from bioptimus_hf.pretraining.curriculum import BIOPTIMUS_CURRICULUM, Phase
from bioptimus_hf.pretraining.masking import VALIDATION_MASKING, BioptimusDataCollator, MaskingStrategy, mask_once
from bioptimus_hf.pretraining.modeling import VARLEN, BertForMaskedPositions, prepare_model
from bioptimus_hf.pretraining.packing import tokenize_and_pack
from bioptimus_hf.pretraining.run import check_blocks, pretrain
from bioptimus_hf.pretraining.trainer import PretrainingTrainer, loss_and_count
from bioptimus_hf.pretraining.versions import run_of

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
        dropout=dropout,
    )


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training."""
    monkeypatch.setattr("bioptimus_hf.pretraining.history.plot_history", lambda *_: None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, list[dict[str, Any]]]]:
    """Make a run with `run_once`, or find the one that another test has made with the same options."""
    made: dict[str, tuple[Path, list[dict[str, Any]]]] = {}

    def make(**options: Any) -> tuple[Path, list[dict[str, Any]]]:
        key = repr(sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            made[key] = folder, run_once(build_tiny_tokenizer(), folder, **options)
        return made[key]

    return make


@pytest.mark.parametrize(
    ("capability", "changes", "attention", "replayed"),
    [
        ((7, 5), {}, "sdpa", False),
        ((8, 0), {}, VARLEN, True),
        ((9, 0), {"torch_compile": False}, VARLEN, False),
        ((9, 0), {"gradient_checkpointing": True}, VARLEN, False),
        ((9, 0), {"parallel_mode": ParallelMode.DISTRIBUTED}, VARLEN, False),
        ((9, 0), {"parallel_mode": ParallelMode.NOT_DISTRIBUTED}, VARLEN, False),
        ((9, 0), {"torch_compile_mode": "reduce-overhead"}, VARLEN, False),
        ((9, 0), {"torch_compile_backend": "cudagraphs"}, VARLEN, False),
        ((9, 0), {"hip": "6.4"}, "sdpa", False),
    ],
    ids=str,
)
def test_attention_and_replay_on_a_gpu(
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


def test_a_compiled_run_gives_the_weights_of_a_plain_one(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """Compiled layer by layer, traced but not optimised; evaluated in between. The environment stays as it was."""
    run_once(tokenizer, tmp_path / "plain", dropout=0, bf16=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    environment = dict(os.environ)
    run_once(tokenizer, tmp_path / "compiled", dropout=0, torch_compile_backend="aot_eager", eval_steps=3, bf16=True)
    assert dict(os.environ) == environment
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
        facts = read_record(tmp_path / version)["facts"]
        assert facts["metrics"]["eval_loss"] == losses[facts["last_step"]]
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
    tokenizer: BertTokenizer, tmp_path: Path, uninterrupted: Any, rows: int, accumulation: int
) -> None:
    """Over epochs that don't fill a whole number of steps. The stock model multiplies its loss by the micro-batches."""
    whole, expected = uninterrupted(dropout=0.0, per_device_train_batch_size=8, max_steps=12)
    divided = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    history = run_once(tokenizer, tmp_path, dropout=0.0, max_steps=12, **divided)
    for left, right in zip(expected, history, strict=True):
        assert_close_rows(left, right, rel=1e-3)
    for left, right in zip(weights(whole / "v0.4").values(), weights(tmp_path / "v0.4").values(), strict=True):
        assert torch.allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        {"eval_steps": 1},
        {"dataloader_num_workers": 3},
        {"gradient_checkpointing": True},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        {"dataloader_drop_last": True, "torch_empty_cache_steps": 2, "skip_memory_metrics": False},
    ],
    ids=["evaluation", "3 workers", "gradient checkpointing", "persistent workers", "harmless options"],
)
def test_what_changes_no_weight(
    tokenizer: BertTokenizer, tmp_path: Path, uninterrupted: Any, change: dict[str, Any], accumulation: int
) -> None:
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 14, "dropout": 0.1}
    plain, _ = uninterrupted(**options)
    run_once(tokenizer, tmp_path, **options | change)
    for version in ("v0.1", "v0.4"):
        assert_same(weights(plain / version), weights(tmp_path / version))


RISING = (
    Phase("0.1", MaskingStrategy("token", 0.15, True), 0.5),
    Phase("0.2", MaskingStrategy("word", 0.1, True), 0.5, last_rate=0.5),
)


@pytest.mark.parametrize(
    (
        "step",
        "workers",
    ),  # an edge, and the middle of a phase and of an epoch, the first and a later; -2: persistent ones
    [(5, 0), (7, 0), (9, 0), (7, 2), (9, 2), (7, -2)],
)
def test_resuming_gives_the_uninterrupted_weights(
    tokenizer: BertTokenizer, tmp_path: Path, uninterrupted: Any, step: int, workers: int
) -> None:
    options: dict[str, Any] = {"curriculum": RISING, "max_steps": 14, "logging_steps": 4}  # checkpoints between rows
    whole, _ = uninterrupted(**options)
    options |= {"dataloader_num_workers": abs(workers), "dataloader_persistent_workers": workers < 0}
    saved, _ = uninterrupted(**options, save_steps=1, save_total_limit=None)
    shutil.copytree(saved / "checkpoints" / f"checkpoint-{step}", tmp_path / "checkpoints" / f"checkpoint-{step}")
    if step >= 7:
        shutil.copytree(saved / "v0.1", tmp_path / "v0.1")
    run_once(tokenizer, tmp_path, **options)
    for version in ("v0.1", "v0.2"):
        assert_same(weights(whole / version), weights(tmp_path / version))
    assert read_record(tmp_path / "pretraining")["facts"]["resumed"]
    histories = [(folder / "pretraining" / "history.json").read_text() for folder in (tmp_path, whole)]
    assert histories[0] == histories[1]


def test_a_run_that_only_lacks_its_record_is_not_trained_further(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """What is written after training may fail; the last checkpoint may lie within an epoch."""
    whole = run_once(tokenizer, tmp_path, max_steps=14)
    shutil.rmtree(tmp_path / "pretraining")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = run_once(tokenizer, tmp_path, max_steps=14)
    assert again == whole
    assert json.loads((tmp_path / "pretraining" / "history.json").read_text()) == again
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(InputError, match=r"other settings: max_steps \(14 then, 13 now\)"):
        run_once(tokenizer, tmp_path, max_steps=13)


def test_a_run_records_what_it_is_made_from(
    tokenizer: BertTokenizer, tmp_path: Path, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"dropout": 0.0, "per_device_train_batch_size": 8, "max_steps": 12}
    folder, history = uninterrupted(**options)
    record = read_record(folder / "pretraining")
    assert record["inputs"].keys() == {"model", "train", "validation"}
    assert (record["settings"]["max_length"], record["settings"]["max_steps"]) == (16, 12)
    assert [phase["version"] for phase in record["settings"]["curriculum"]] == ["0.1", "0.2", "0.3", "0.4"]
    losses = {str(row["step"]): row["eval_loss"] for row in history if "eval_loss" in row}
    assert record["facts"]["validation_losses"] == losses
    assert record["facts"]["training_tokens"] == 35 * 16
    assert {run_of(folder / f"v0.{number}") for number in (1, 2, 3, 4)} == {record["fingerprint"]}
    run_once(tokenizer, tmp_path / "again", **options)
    run_once(tokenizer, tmp_path / "other", **options | {"learning_rate": 2e-3})
    fingerprints = [read_record(tmp_path / name / "pretraining")["fingerprint"] for name in ("again", "other")]
    assert [found == record["fingerprint"] for found in fingerprints] == [True, False]
    monkeypatch.undo()
    model, packed = masked_head(tokenizer), blocks(tokenizer)
    training = arguments(tmp_path / "checkpoints", max_steps=4, eval_strategy="no", save_strategy="no")
    pretrain(model, tokenizer, packed, None, training, export_dir=tmp_path / "plotted")
    assert (tmp_path / "plotted" / "pretraining" / "history.png").is_file()
    assert not training.eval_on_start


def test_publish_accepts_a_run_made_with_objects(
    tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # a model card has the plot
    base = {"base_model": f"name:google-bert/bert-base-uncased@{'0' * 40}"}
    facts: dict[str, Any] = {"tokens": len(tokenizer), "shared": 100, "new": 20, "dropped": 5}
    facts |= {"fertility_before": 1.25, "fertility_after": 1.125}
    with building(tmp_path / "tokenizer", base, {"size": len(tokenizer)}) as stage:
        save_tokenizer(tokenizer, stage.path)
        stage.facts |= facts
    facts = {"new_tokens": 20, "new_tokens_from_contexts": 20, "fallen_back": [], "unknown_to_base": []}
    with building(tmp_path / "v0.0", base, {"initializer": "contextual_mean"}) as stage:
        save_masked_lm(build_tiny_bert(len(tokenizer)), tokenizer, stage.path)
        stage.facts |= facts
    history = run_once(tokenizer, tmp_path)
    about = About(license="apache-2.0", language="en", corpus="abstracts", corpus_license="CC0-1.0")
    published = publish(tmp_path, "ada/encoder", about=about)
    assert [version.tag for version in published] == ["v0.1", "v0.2", "v0.3", "v0.4"]
    assert f"{history[-1]['eval_loss']:.3f}" in published[-1].card


@pytest.mark.parametrize("change", [{"save_only_model": True}, {"label_smoothing_factor": 0.1}, {"use_cache": True}])
def test_arguments_of_transformers_are_checked(
    tokenizer: BertTokenizer, tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **change)
    with pytest.raises(InputError, match=f"{next(iter(change))}: not supported, because"):
        pretrain(masked_head(tokenizer), tokenizer, blocks(tokenizer), None, plain, export_dir=tmp_path)
    with pytest.raises(InputError, match="there is no validation set"):
        pretrain(masked_head(tokenizer), tokenizer, blocks(tokenizer), None, arguments(tmp_path), export_dir=tmp_path)


def test_the_learning_rate_warms_up_and_decays_over_the_run(uninterrupted: Any) -> None:
    _, history = uninterrupted(max_steps=16, warmup_steps=0.25)
    rates = [row["learning_rate"] for row in history if "loss" in row]
    # The log contains the rate that a step was made with.
    assert rates == pytest.approx([1e-3 * min(step / 4, (16 - step) / 12) for step in range(16)])


def test_a_warm_up_as_long_as_the_run_is_rejected(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"warmup_steps: 8 steps are as many as the run has \(8\)"):
        run_once(tokenizer, tmp_path, warmup_steps=8)


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
    with pytest.raises(InputError, match=rf"^step [23]: .*{said}.*: training diverged. Nothing was saved"):
        run_once(tokenizer, tmp_path, learning_rate=1e38, warmup_steps=4, **options | seldom)
    assert signal.getsignal(signal.SIGTERM) == before
    if "save_steps" in seldom:
        return
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint  # at least of the first step, which is made with a rate of 0
    assert all(torch.isfinite(values).all() for values in weights(checkpoint).values())


def test_too_little_text_is_rejected(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the corpus fills 3 blocks, but an optimizer step needs 8"):
        pretrain(
            masked_head(tokenizer),
            tokenizer,
            blocks(tokenizer, copies=1),
            None,
            arguments(tmp_path, per_device_train_batch_size=8),
            export_dir=tmp_path,
        )


def test_blocks_longer_than_the_positions_are_rejected(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    tokenizer.model_max_length = 10**30  # as of a tokenizer that names no limit
    long = tokenize_and_pack(Dataset.from_dict({"text": TEXTS * 90}), tokenizer, max_length=600)
    with pytest.raises(InputError, match="max_length: the model reads 512 tokens, not blocks of 600"):
        check_blocks(long, masked_head(tokenizer), arguments(tmp_path, per_device_train_batch_size=1))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "running_loss_0.json"])
def test_a_checkpoint_that_lacks_a_file_is_kept_but_not_used(
    tokenizer: BertTokenizer, tmp_path: Path, uninterrupted: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"save_steps": 3, "save_total_limit": None}
    whole, expected = uninterrupted(**options)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    checkpoints = tmp_path / "checkpoints"
    shutil.rmtree(checkpoints / "checkpoint-8")
    (checkpoints / "checkpoint-6" / name).unlink()
    caplog.set_level("INFO")
    assert run_once(tokenizer, tmp_path, **options) == expected
    assert f"{checkpoints / 'checkpoint-6' / name} is missing: checkpoint-6 isn't used" in caplog.text
    assert f"resuming from {checkpoints / 'checkpoint-3'}, the newest complete checkpoint" in caplog.text
    assert_same(weights(whole / "v0.4"), weights(tmp_path / "v0.4"))
    (damaged,) = checkpoints.glob("checkpoint-6.damaged-*")
    assert (damaged / "model.safetensors").is_file()
    assert newest_checkpoint(checkpoints) == checkpoints / "checkpoint-8"


def test_without_a_usable_checkpoint_nothing_begins_anew(
    tokenizer: BertTokenizer, tmp_path: Path, uninterrupted: Any
) -> None:
    whole, _ = uninterrupted(save_steps=3, save_total_limit=None)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for optimizer in tmp_path.glob("checkpoints/*/optimizer.pt"):
        optimizer.write_bytes(optimizer.read_bytes()[:-1])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=r"checkpoint-8/optimizer\.pt has [\d,]+ bytes instead of .*: use force"):
        run_once(tokenizer, tmp_path, save_steps=3, save_total_limit=None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_checkpoint_that_fails_leaves_nothing_behind(
    tokenizer: BertTokenizer, tmp_path: Path, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, in a process that tries again."""
    whole, expected = uninterrupted(save_steps=3, save_total_limit=None)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("bioptimus_hf.pretraining.checkpoints.sync", fail)
        with pytest.raises(OSError, match="No space left"):
            run_once(tokenizer, tmp_path, save_steps=3, save_total_limit=None)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert run_once(tokenizer, tmp_path, save_steps=3, save_total_limit=None) == expected
    assert_same(weights(whole / "v0.4"), weights(tmp_path / "v0.4"))


def test_a_checkpoint_of_other_settings_is_rejected(
    tokenizer: BertTokenizer, tmp_path: Path, uninterrupted: Any
) -> None:
    whole, _ = uninterrupted(save_steps=3, save_total_limit=None)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"other settings: max_steps \(8 then, 12 now\)"):
        run_once(tokenizer, tmp_path, save_steps=3, save_total_limit=None, max_steps=12)


@pytest.mark.parametrize("kind", ["link", "file", "folder"])
def test_a_version_that_cannot_be_replaced_is_rejected_before_training(
    tokenizer: BertTokenizer, tmp_path: Path, kind: str
) -> None:
    version = tmp_path / "v0.4"
    (tmp_path / "elsewhere").mkdir()
    if kind == "link":
        version.symlink_to("elsewhere")
    elif kind == "file":
        version.write_text("mine")
    else:
        version.mkdir()
        (version / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"v0\.4 is (a symbolic link|a file|not a result).*: move it away"):
        run_once(tokenizer, tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} <= {"elsewhere", "v0.4", "mine.txt"}


@pytest.mark.parametrize("other", [{"fsdp_version": 1}, {"cpu_ram_efficient_loading": True}], ids=str)
def test_another_way_of_sharding_is_rejected(other: dict[str, Any]) -> None:
    plugin = SimpleNamespace(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False} | other)
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    with pytest.raises(InputError, match="FSDP is supported only with fsdp_version: 2 and"):
        PretrainingTrainer._prepare_for_fsdp(trainer)
