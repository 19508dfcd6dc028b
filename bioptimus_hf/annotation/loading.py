"""Load a NER head with the engine that is asked for, or that fits its files."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from bioptimus_hf.annotation.engines import ONNX_FILE, Engine, OnnxEngine, OpenVinoEngine, TorchEngine, is_exported
from bioptimus_hf.annotation.onnx_export import cached_export
from bioptimus_hf.annotation.options import EngineName, Precision, Weights
from bioptimus_hf.artifacts import RECORD, read_record, verify
from bioptimus_hf.errors import InputError

_WEIGHTS: dict[tuple[str, Precision], Weights] = {  # of the files that engines read
    ("onnx", "exact"): "fp32",
    ("onnx", "fast"): "int8",
    ("openvino", "exact"): "fp32",
    ("openvino", "fast"): "fp32",  # computes in bfloat16 with these weights
}


def load_engine(
    model: str | Path | PreTrainedModel,
    device: torch.device,
    *,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    dtype: torch.dtype | None = None,
) -> Engine:
    """Make a model ready for inference.

    Args:
        model: a token classifier, its folder or Hub name, or the folder of an exported one.
        device: where the model runs.
        engine: what computes the logits; by default PyTorch, or onnxruntime for an exported model. The others read an
            ONNX file, which is exported to the cache if the model isn't exported.
        precision: `exact` is float32. `fast` is bfloat16 for PyTorch and OpenVINO, and 8-bit integers for onnxruntime.
            By default exact, or the precision of an exported model.
        dtype: data type of the weights for PyTorch, instead of `precision`; by default that of a model object.

    Raises:
        InputError: there is no such model, it isn't a trained token classifier or can't be exported, a package is
            missing, or engine, precision, device and files don't fit together.
    """
    if not isinstance(model, PreTrainedModel):
        verify(model)
    exported = is_exported(model)
    engine = engine or ("onnx" if exported else "torch")
    if engine == "torch":
        if exported:
            raise InputError(
                f"{model} contains an exported file ({ONNX_FILE}), which PyTorch can't run: use engine onnx or "
                f"openvino, or give the head that it was exported from"
            )
        return TorchEngine(model, device, dtype or (torch.bfloat16 if precision == "fast" else None))
    if dtype is not None or device.type != "cpu":
        subject = f"{model} contains an exported file ({ONNX_FILE})" if exported else f"engine {engine}"
        raise InputError(f"{subject}: it runs on a CPU only, with the weights it has")
    folder = Path(str(model)) if exported else _exported(model, _WEIGHTS[engine, precision or "exact"])
    if exported:
        _check_weights(folder, engine, precision)
    return OnnxEngine(folder) if engine == "onnx" else OpenVinoEngine(folder, bf16=precision == "fast")


def _exported(model: str | Path | PreTrainedModel, weights: Weights) -> Path:
    if isinstance(model, PreTrainedModel):
        raise InputError("a model object runs on engine torch only: save it, and give its folder")
    return cached_export(model, weights)


def _check_weights(folder: Path, engine: str, precision: Precision | None) -> None:
    """Raise if an exported file doesn't have the weights that an engine needs for a precision."""
    weights = read_record(folder)["settings"].get("precision") if (folder / RECORD).is_file() else None
    if engine == "onnx" and precision is None:
        return
    needed = _WEIGHTS[engine, precision or "exact"]
    if weights != needed:
        raise InputError(
            f"{folder} is exported in {weights or 'an unknown precision'}, and engine {engine} needs {needed} for "
            f"precision {precision or 'exact'}: give the head that it was exported from, or export it in {needed}"
        )
