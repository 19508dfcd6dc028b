"""Compute the logits of a NER head with PyTorch, onnxruntime or OpenVINO, behind one interface."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from bioptimus_hf.annotation.extras import require_packages
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
    """Runs an ONNX file with onnxruntime, on the CPU.

    Args:
        folder: a folder written by `export_onnx`.

    Raises:
        InputError: onnxruntime is not installed (extra `onnx`), the folder can't be loaded, or the labels in its
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
        origin = self._session.get_modelmeta().custom_metadata_map
        _check_labels(path, self.config, origin.get("labels"), self._session.get_outputs()[0].shape[-1])
        self.vocabulary: str | None = origin.get("vocabulary")

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See `Engine.logits`; the result is float32."""
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return torch.from_numpy(self._session.run(["logits"], inputs)[0])


class OpenVinoEngine:
    """Runs an ONNX file with OpenVINO, on the CPU.

    Args:
        folder: a folder written by `export_onnx`, in fp32.
        bf16: compute in bfloat16 where the processor supports it, with the weights of the fp32 file.

    Raises:
        InputError: OpenVINO is not installed (extra `openvino`), the folder can't be loaded, or the labels in its
            configuration aren't those that the file was exported with.
    """

    def __init__(self, folder: str | Path, *, bf16: bool = False) -> None:
        require_packages("openvino", "openvino")
        core = _openvino_core()
        self.config: PretrainedConfig = load_by_name(AutoConfig, folder)
        path = Path(folder) / ONNX_FILE
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # by default it is bf16 on some processors
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",  # all threads work on one batch: batches come one at a time
        }
        try:
            model = core.read_model(path)
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise InputError(f"{path} can't be loaded ({format_error(error)}): export it again") from error
        keys = [["framework", name] for name in ("labels", "vocabulary")]
        noted = {key[1]: str(model.get_rt_info(key).value) for key in keys if model.has_rt_info(key)}
        outputs = model.output(0).partial_shape[2]
        _check_labels(
            path, self.config, noted.get("labels"), outputs.get_length() if outputs.is_static else str(outputs)
        )
        self.vocabulary: str | None = noted.get("vocabulary")

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See `Engine.logits`; the result is float32."""
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return torch.from_numpy(self._request.infer(inputs)["logits"])


@functools.cache
def _openvino_core() -> Any:
    """Return what compiles models, one for the life of the process.

    OpenVINO gives the thread that first uses its CPU plugin another stack for signals, and unmaps it with the core. If
    that happens in another thread, the first one keeps it, and the next signal, such as Ctrl-C, ends the process
    without a word (openvino 2026.4).
    """
    import openvino

    return openvino.Core()


def _check_labels(path: Path, config: PretrainedConfig, noted: str | None, outputs: int | str) -> None:
    """Check that a configuration belongs to an ONNX file.

    Args:
        path: the file.
        config: the configuration beside it.
        noted: labels that the file was exported with, as JSON, if it says so.
        outputs: how many logits it computes; a string if it doesn't say.
    """
    labels = [label for _, label in sorted(config.id2label.items())]
    exported = json.loads(noted) if noted is not None else labels
    if exported != labels or (isinstance(outputs, int) and outputs != len(labels)):
        raise InputError(
            f"{path} has other labels ({outputs}: {', '.join(exported[:9])}) than the config.json beside it "
            f"({len(labels)}: {', '.join(labels[:9])}): it comes from another export. Export the head again"
        )


def is_exported(model: str | Path | PreTrainedModel) -> bool:
    """Tell whether a model is the folder of an ONNX file, which only runs on a CPU."""
    if isinstance(model, PreTrainedModel) or (Path(model) / "model.safetensors").is_file():
        return False
    return (Path(model) / ONNX_FILE).is_file()
