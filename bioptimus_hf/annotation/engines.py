"""Compute the logits of a NER head with PyTorch or from an ONNX file, behind one interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from bioptimus_hf.annotation.extras import require_packages
from bioptimus_hf.artifacts import verify
from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.hardware import prepare_for_cpu
from bioptimus_hf.models import check_token_classifier, load_by_name, load_token_classifier

ONNX_FILE = "model.onnx"
"""Name of the ONNX file in a folder written by `export_onnx`."""


class Engine(Protocol):
    """A token classifier that is ready for inference.

    Attributes:
        config: the model's configuration; `id2label` names the labels.
        vocabulary: hash of the vocabulary that the model reads, if its file records it.
    """

    config: PretrainedConfig
    vocabulary: str | None

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (windows, pieces, labels).

        Args:
            input_ids: int64 of shape (windows, pieces), on the engine's device.
            attention_mask: 1 for pieces and 0 for padding, of the same shape and type.
        """
        ...


class TorchEngine:
    """Runs a PyTorch model.

    Args:
        model: a model, or its folder or Hub name. A model object is moved and modified, not copied.
        device: where the model runs.
        dtype: data type of the weights; by default the model's own, or float32 for one loaded from files.

    Raises:
        InputError: the model isn't a trained token classifier, or its weights contain NaN or infinity.
    """

    def __init__(self, model: str | Path | PreTrainedModel, device: torch.device, dtype: torch.dtype | None) -> None:
        if isinstance(model, PreTrainedModel):
            check_token_classifier("the model", model)
            loaded: Any = model
        else:
            loaded = load_token_classifier(model)
        self.model = loaded.to(device, dtype or loaded.dtype).eval()
        self.config: PretrainedConfig = self.model.config
        self.vocabulary: str | None = None
        prepare_for_cpu(self.model, device)

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See `Engine.logits`."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


class OnnxEngine:
    """Runs an ONNX file on the CPU.

    Args:
        folder: a folder written by `export_onnx`.

    Raises:
        InputError: onnxruntime is not installed (extra `onnx`), the folder can't be loaded, or the labels of its
            configuration aren't those that the file was exported with.
    """

    def __init__(self, folder: str | Path) -> None:
        require_packages("onnx", "onnxruntime")
        import onnxruntime

        self.config: PretrainedConfig = load_by_name(AutoConfig, folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        path = Path(folder) / ONNX_FILE
        try:
            self._session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # slower than the operations it replaces
            )
        except Exception as error:  # onnxruntime's errors have no common base class
            raise InputError(f"{path} can't be loaded ({format_error(error)}): export it again") from error
        self.vocabulary: str | None = None
        self._check_origin(path)

    def _check_origin(self, path: Path) -> None:
        """Check that the configuration belongs to the file, and read which vocabulary does."""
        labels = [label for _, label in sorted(self.config.id2label.items())]
        origin = self._session.get_modelmeta().custom_metadata_map
        exported = json.loads(origin["labels"]) if "labels" in origin else labels
        outputs = self._session.get_outputs()[0].shape[-1]
        if exported != labels or (isinstance(outputs, int) and outputs != len(labels)):
            raise InputError(
                f"{path} has other labels ({outputs}: {', '.join(exported[:9])}) than the config.json beside it "
                f"({len(labels)}: {', '.join(labels[:9])}): it comes from another export. Export the head again"
            )
        self.vocabulary = origin.get("vocabulary")

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See `Engine.logits`; the result is float32."""
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return torch.from_numpy(self._session.run(["logits"], inputs)[0])


def is_exported(model: str | Path | PreTrainedModel) -> bool:
    """Tell whether a model is the folder of an ONNX file, which only runs on a CPU."""
    if isinstance(model, PreTrainedModel) or (Path(model) / "model.safetensors").is_file():
        return False
    return (Path(model) / ONNX_FILE).is_file()


def load_engine(model: str | Path | PreTrainedModel, device: torch.device, dtype: torch.dtype | None) -> Engine:
    """Make a model ready for inference with the engine that fits its files.

    Args:
        model: a token classifier, its folder or Hub name, or the folder of an exported one.
        device: where the model runs.
        dtype: data type of the weights; None keeps that of a model object and loads files in float32.

    Raises:
        InputError: there is no such model, it isn't a trained token classifier, or it is an exported file and `device`
            or `dtype` ask for something else than its weights on a CPU.
    """
    if not isinstance(model, PreTrainedModel):
        verify(model)
    if not is_exported(model):
        return TorchEngine(model, device, dtype)
    if dtype is not None or device.type != "cpu":
        raise InputError(
            f"{model} contains an exported file ({ONNX_FILE}): it runs on a CPU only, with the weights it has"
        )
    return OnnxEngine(str(model))
