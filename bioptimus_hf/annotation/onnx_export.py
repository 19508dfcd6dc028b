"""Export NER heads as ONNX files for CPUs, in 8-bit integers or in full precision."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

from bioptimus_hf.annotation.engines import ONNX_FILE, OnnxEngine
from bioptimus_hf.annotation.extras import require_packages
from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, building, fingerprint, is_finished, read_record, verify
from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.models import (
    check_tokenizer,
    find_model,
    load_by_name,
    load_token_classifier,
    save_tokenizer,
    vocabulary_hash,
)
from bioptimus_hf.storage import LOCKS, locked

_TEXTS_MEASURED = 16  # texts of the sample, enough to find the features that are always large
_EXPORTERS = ("torch.onnx", "onnxscript", "onnx_ir")
_TYPICAL = 0.99  # quantile of the features' sizes below which they count as typical


@check_call()
def export_onnx(model: str | Path, folder: str | Path, *, precision: Literal["int8", "fp32"] = "int8") -> None:
    """Export a NER head to a folder that `Annotator` loads: an ONNX file, the configuration and the tokenizer.

    Args:
        model: folder or Hub name (`name@revision`) of a token classifier.
        folder: a new or empty folder. Nothing is done if it holds this very export.
        precision: `int8` quantises weights to 8-bit integers with one scale per column, and activations with scales
            computed at run time. The file is a quarter of the size and faster; a few predictions change.

    Raises:
        InputError: a package is missing (extra `onnx`), the folder is not empty, there is no such model, it isn't a
            trained token classifier, or the exported file computes NaN or can't be loaded.
    """
    require_packages("onnx", "onnx", "onnxruntime", "onnxscript")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another folder for the ONNX file")
    with locked(folder.parent / LOCKS / f"{folder.name}.lock", folder):
        _export_once(model, folder, precision)


def _export_once(model: str | Path, folder: Path, precision: str) -> None:
    source = find_model(model)
    made_from = {"model": source.identity}, {"precision": precision}
    if folder.exists() and any(folder.iterdir()):
        if (folder / RECORD).is_file() and read_record(folder)["fingerprint"] == fingerprint(*made_from):
            is_finished(folder, *made_from)  # verifies the sizes of its files
            return
        raise InputError(f"{folder} is not empty: choose another folder for the ONNX file")
    model = source.pinned
    verify(model)
    # Fused attention would be exported with a check for rows that mask every key, which takes longer than attention.
    head = load_token_classifier(model, attn_implementation="eager").eval()
    tokenizer = load_by_name(AutoTokenizer, model)
    check_tokenizer(tokenizer, head.config, name=model)
    _check(_Logits(head), tokenizer, head.config, model)
    sources = {} if source.commit else {"model": Path(source.folder)}
    with building(folder, *made_from, sources=sources) as stage, tempfile.TemporaryDirectory() as scratch:
        head.config.save_pretrained(stage.path)
        save_tokenizer(tokenizer, stage.path)
        if precision == "int8":
            full_precision = Path(scratch) / ONNX_FILE
            _level(head, tokenizer)
            _export(head, full_precision)
            _quantise(full_precision, stage.path / ONNX_FILE)
        else:
            _export(head, stage.path / ONNX_FILE)
        _note_origin(stage.path / ONNX_FILE, head.config, tokenizer)
        # An incomplete file can't be loaded.
        _check(OnnxEngine(stage.path).logits, tokenizer, head.config, model)


class _Logits(torch.nn.Module):
    """Returns the logits as a tensor instead of an object that contains them."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


class _Levelled(torch.nn.Module):
    """A linear layer whose inputs are divided, and whose weights are multiplied, by one factor per feature."""

    def __init__(self, linear: torch.nn.Linear, factors: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.linear.weight.data *= factors
        self.inverse_factors = torch.nn.Buffer(1 / factors)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        levelled: torch.Tensor = self.linear(states * self.inverse_factors)
        return levelled


@torch.no_grad()
def _level(head: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Scale down the few outlier features that would otherwise set the 8-bit scale of all others.

    In BERT they are large at [CLS] only, whatever the text. Weights are scaled up in turn, so that the products stay
    the same, as in SmoothQuant (Xiao et al. 2023, section 4), which levels all features instead of only the outliers.
    """
    linears = {name: module for name, module in head.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, sizes in _feature_sizes(head, tokenizer, linears).items():
        typical = sizes.quantile(_TYPICAL, interpolation="lower")
        if sizes.max() > 2 * typical > 0:
            head.set_submodule(name, _Levelled(linears[name], (sizes / typical).clamp(min=1)))


def _feature_sizes(
    head: Any, tokenizer: PreTrainedTokenizerBase, linears: dict[str, torch.nn.Linear]
) -> dict[str, torch.Tensor]:
    """Return the largest absolute value of each input feature of each linear layer, over some texts of the sample."""
    largest: dict[str, torch.Tensor] = {}

    def measure(name: str, states: torch.Tensor) -> None:
        sizes = states.abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest.get(name, sizes), sizes)

    hooks = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: measure(name, inputs[0]))
        for name, linear in linears.items()
    ]
    for inputs in _sample(tokenizer, head.config):
        head(**inputs)
    for hook in hooks:
        hook.remove()
    return largest


def _sample(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> Iterator[BatchEncoding]:
    """Yield some texts of the sample as inputs of a model."""
    sample = resources.files("bioptimus_hf") / "sample" / "corpus.txt"
    max_length = config.max_position_embeddings - 2  # RoBERTa doesn't use two of its positions
    for text in sample.read_text(encoding="utf-8").splitlines()[:_TEXTS_MEASURED]:
        yield tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")


@torch.no_grad()
def _check(
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    name: str | Path,
) -> None:
    """Raise if a model computes NaN or infinity on the texts of the sample."""
    for inputs in _sample(tokenizer, config):
        if not bool(logits(inputs["input_ids"], inputs["attention_mask"]).isfinite().all()):
            raise InputError(f"{name} computes NaN or infinity: its training may have diverged. Give another head")


def _export(head: Any, path: Path) -> None:
    example = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]])
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=head.config.max_position_embeddings)}
    with _exporters_are_quiet():
        torch.onnx.export(
            _Logits(head),
            (example, (example > 0).long()),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(sizes, sizes),
            dynamo=True,  # the older exporter freezes the example's mask without a warning
            external_data=False,
            verbose=False,
        )


def _quantise(path: Path, quantised: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with _exporters_are_quiet():
            quantize_dynamic(str(path), str(quantised), weight_type=QuantType.QInt8, per_channel=True)
    except OSError:
        raise
    except Exception as error:  # an intermediate file is written without a check, and may be incomplete
        raise InputError(
            f"the weights can't be quantised ({format_error(error)}): if the disk is full, free some space and run the "
            f"same command again"
        ) from error


@contextmanager
def _exporters_are_quiet() -> Iterator[None]:
    """Silence warnings, and what the libraries of the export log below ERROR, for the time of a `with` block.

    They report each node of the graph that they change or leave alone, and advise a pre-processing that makes no
    difference for these models.
    """
    loggers = [logging.getLogger(name) for name in _EXPORTERS]
    levels = [logger.level for logger in loggers]
    root = logging.getLogger()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    root.addFilter(_is_error)  # onnxruntime logs with the root logger; a filter isn't asked about records of others
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(_is_error)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _note_origin(path: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write into an ONNX file which labels and vocabulary it was exported with, since files of exports get mixed up."""
    import onnx

    labels = [label for _, label in sorted(config.id2label.items())]
    try:
        model = onnx.load(str(path))
    except Exception as error:  # of protobuf: an incomplete file
        raise InputError(f"{path} can't be read ({format_error(error)}): free some disk space and try again") from error
    onnx.helper.set_model_props(model, {"labels": json.dumps(labels), "vocabulary": vocabulary_hash(tokenizer)})
    onnx.save(model, str(path))
