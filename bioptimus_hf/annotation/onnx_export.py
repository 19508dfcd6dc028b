"""Export NER heads as ONNX files for CPUs, in 8-bit integers or in full precision."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, BatchEncoding, PretrainedConfig, PreTrainedTokenizerBase

from bioptimus_hf.annotation.engines import ONNX_FILE, OnnxEngine
from bioptimus_hf.annotation.extras import require_packages
from bioptimus_hf.annotation.options import Weights
from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, building, fingerprint, is_finished, read_record, verify
from bioptimus_hf.corpus.cache import cached_folder
from bioptimus_hf.errors import InputError, format_error, lacks_memory
from bioptimus_hf.models import (
    check_tokenizer,
    find_model,
    load_by_name,
    load_token_classifier,
    longest_input,
    save_tokenizer,
    vocabulary_hash,
)
from bioptimus_hf.storage import LOCKS, locked

logger = logging.getLogger(__name__)

_TEXTS_MEASURED = 16  # texts of the sample, enough to find the features that are always large
_TEXTS_PADDED = 4  # of these, as many in one batch as well
_TOLERANCE = 1e-3  # of the largest logit; the difference by rounding is a hundred times smaller
_EXPORTERS = ("torch.onnx", "onnxscript", "onnx_ir")
_Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
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


def _export_once(model: str | Path, folder: Path, precision: Weights) -> None:
    source = find_model(model)
    made_from = {"model": source.identity}, {"precision": precision}
    if folder.exists() and any(folder.iterdir()):
        if (folder / RECORD).is_file() and read_record(folder)["fingerprint"] == fingerprint(*made_from):
            is_finished(folder, *made_from)  # verifies the sizes of its files
            return
        raise InputError(f"{folder} is not empty: choose another folder for the ONNX file")
    model = source.pinned
    verify(model)
    sources = {} if source.commit else {"model": Path(source.folder)}
    with building(folder, *made_from, sources=sources) as stage:
        _write_export(model, stage.path, precision)


@check_call()
def cached_export(model: str | Path, precision: Weights) -> Path:
    """Return the folder of an export in the cache, which is made if it isn't there.

    The entry is found by the content of the model, compared with its hashes each time, and made again if it is damaged.

    Args:
        model: folder or Hub name of a token classifier.
        precision: as for `export_onnx`.

    Raises:
        InputError: as for `export_onnx`, or nothing can be written to the cache.
    """
    source = find_model(model)

    def write(folder: Path) -> Mapping[str, Any]:
        require_packages("onnx", "onnx", "onnxruntime", "onnxscript")
        verify(source.pinned)
        logger.info("exporting %s to ONNX in %s, which takes a while, but is done only once", model, precision)
        _write_export(source.pinned, folder, precision)
        return {}

    return cached_folder("onnx", {"model": source.identity, "precision": precision}, write)


def _write_export(model: str, folder: Path, precision: Weights) -> None:
    """Write the ONNX file, the configuration and the tokenizer of a head."""
    # Fused attention would be exported with a check for rows that mask every key, which takes longer than attention.
    head = load_token_classifier(model, attn_implementation="eager").eval()
    tokenizer = load_by_name(AutoTokenizer, model)
    check_tokenizer(tokenizer, head.config, name=model)
    _check(_Logits(head), tokenizer, head.config, model)
    save_tokenizer(tokenizer, folder)
    if precision == "fp32":
        _write_fp32(head, tokenizer, folder, model)
        return
    head.config.save_pretrained(folder)
    _level(head, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        _write_fp32(head, tokenizer, Path(scratch), model)
        _quantise(Path(scratch) / ONNX_FILE, folder / ONNX_FILE)
    _note_origin(folder / ONNX_FILE, head.config, tokenizer)
    _check(OnnxEngine(folder).logits, tokenizer, head.config, model)


def _write_fp32(head: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, name: str) -> None:
    """Write a head's ONNX file in full precision, and its configuration; check that it computes the same."""
    head.config.save_pretrained(folder)
    _export(head, folder / ONNX_FILE)
    _note_origin(folder / ONNX_FILE, head.config, tokenizer)
    # An incomplete file can't be loaded.
    _check(OnnxEngine(folder).logits, tokenizer, head.config, name, expected=_Logits(head))


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
    max_length = longest_input(config, tokenizer)
    for text in sample.read_text(encoding="utf-8").splitlines()[:_TEXTS_MEASURED]:
        yield tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")


@torch.no_grad()
def _check(
    logits: _Function,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    name: str | Path,
    *,
    expected: _Function | None = None,
) -> None:
    """Raise if a model computes NaN or infinity, or other than expected logits, on the texts of the sample."""
    texts = [(inputs["input_ids"], inputs["attention_mask"]) for inputs in _sample(tokenizer, config)]
    several = zip(*((ids[0], mask[0]) for ids, mask in texts[:_TEXTS_PADDED]), strict=True)
    padded, kept = (torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True) for rows in several)
    padded = padded.where(kept > 0, tokenizer.pad_token_id or 0)
    for ids, mask in [*texts, (padded, kept)]:
        found = logits(ids, mask)[mask > 0]
        if not bool(found.isfinite().all()):
            raise InputError(f"{name} computes NaN or infinity: its training may have diverged. Give another head")
        if expected is None:
            continue
        wanted = expected(ids, mask)[mask > 0]
        if (found - wanted).abs().max() > _TOLERANCE * wanted.abs().max().clamp(min=1):
            raise InputError(
                f"{name}: a {config.model_type} model doesn't compute the same once it is exported to ONNX: use engine "
                f"torch"
            )


def _export(head: Any, path: Path) -> None:
    """Write the ONNX file of a head in full precision.

    Raises:
        InputError: the exporter doesn't support models of this type.
    """
    example = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]])
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=longest_input(head.config))}
    try:
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
    except OSError:
        raise
    except Exception as error:  # of many kinds, without a common base class
        if lacks_memory(error):
            raise
        raise InputError(
            f"a {head.config.model_type} model can't be exported to ONNX ({format_error(error)}): use engine torch"
        ) from error


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
