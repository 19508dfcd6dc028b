"""Token classifiers as ONNX files for CPUs, in 8-bit integers or in full."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from bioptimus_hf.errors import InputError
from bioptimus_hf.models import load_by_name, load_token_classifier, save_tokenizer

ONNX_FILE = "model.onnx"
_TEXTS_SEEN = 16  # of the sample, to learn how large features are
_USUAL = 0.99  # the share of features that are as large as usual


def export_onnx(model: str | Path, folder: str | Path, *, precision: Literal["int8", "fp32"] = "int8") -> None:
    """Write a head as an ONNX file, with configuration and tokenizer beside it: a folder for `Annotator`.

    Args:
        model: folder or Hub name (`name@revision`) of a token classifier.
        folder: must not hold anything yet.
        precision: `int8`: weights in 8-bit integers, a scale for each column, and activations too, with scales found as
            they come: a quarter of the size, and faster. Predictions change a little.

    Raises:
        InputError: the packages are missing (extra `onnx`), the folder is not empty, there is no such model, or it is
            not a trained token classifier.
    """
    _check_packages("onnx", "onnxruntime", "onnxscript")
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another folder for the ONNX file")
    # Plain attention: the fused one is exported with a search for rows without any key, slower than attention itself.
    head = load_token_classifier(model, attn_implementation="eager").eval()
    tokenizer = load_by_name(AutoTokenizer, model)
    with tempfile.TemporaryDirectory() as place:  # so that what fails leaves the folder as it was
        whole, plain = Path(place) / "whole", Path(place) / ONNX_FILE
        head.config.save_pretrained(whole)
        save_tokenizer(tokenizer, whole)
        if precision == "int8":
            _level(head, tokenizer)
        _export(head, plain)
        if precision == "int8":
            _quantize(plain, whole / ONNX_FILE)
        else:
            plain.rename(whole / ONNX_FILE)
        shutil.copytree(whole, folder, dirs_exist_ok=True)


class OnnxHead:
    """A token classifier of `export_onnx`, called as the model it was made of.

    Args:
        folder: what `export_onnx` wrote.
    """

    def __init__(self, folder: str | Path) -> None:
        _check_packages("onnxruntime")
        import onnxruntime

        self.config: PretrainedConfig = AutoConfig.from_pretrained(str(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            str(Path(folder) / ONNX_FILE),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],  # slower than what it replaces
        )

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Return an object with `logits`, float32 of shape (rows, length, labels); the arguments are int64."""
        given = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return SimpleNamespace(logits=torch.from_numpy(self._session.run(["logits"], given)[0]))


class _Logits(torch.nn.Module):
    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


class _Levelled(torch.nn.Module):
    """A linear layer whose inputs are divided, and its weights multiplied, by a factor for each feature."""

    def __init__(self, linear: torch.nn.Linear, factors: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.linear.weight.data *= factors
        self.shares = torch.nn.Buffer(1 / factors)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        levelled: torch.Tensor = self.linear(states * self.shares)
        return levelled


@torch.no_grad()
def _level(head: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Bring down the few features that would set the scale of all others in 8 bits.

    In BERT these are large at [CLS] alone, whatever the text. The products stay the same, as in SmoothQuant (Xiao et
    al. 2023, section 4), which levels all features and not only those that stand out.
    """
    largest: dict[str, torch.Tensor] = {}

    def see(name: str, states: torch.Tensor) -> None:
        now = states.abs().flatten(0, -2).amax(0)
        largest[name] = torch.maximum(largest.get(name, now), now)

    linears = {name: module for name, module in head.named_modules() if isinstance(module, torch.nn.Linear)}
    watches = [
        module.register_forward_pre_hook(lambda _, given, name=name: see(name, given[0]))
        for name, module in linears.items()
    ]
    sample = resources.files("bioptimus_hf") / "sample" / "corpus.txt"
    room = head.config.max_position_embeddings - 2  # of which RoBERTa leaves out two
    for text in sample.read_text(encoding="utf-8").splitlines()[:_TEXTS_SEEN]:
        head(**tokenizer(text, truncation=True, max_length=room, return_tensors="pt"))
    for watch in watches:
        watch.remove()
    for name, features in largest.items():
        usual = features.quantile(_USUAL, interpolation="lower")
        if features.max() > 2 * usual > 0:
            head.set_submodule(name, _Levelled(linears[name], (features / usual).clamp(min=1)))


def _export(head: Any, path: Path) -> None:
    example = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]])
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=head.config.max_position_embeddings)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(head),
            (example, (example > 0).long()),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(sizes, sizes),
            dynamo=True,  # the older exporter keeps the example's mask, and says nothing
            external_data=False,
            verbose=False,
        )


def _quantize(plain: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().addFilter(_not_about_preprocessing)
    try:
        quantize_dynamic(str(plain), str(path), weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.getLogger().removeFilter(_not_about_preprocessing)


def _not_about_preprocessing(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()  # which changes nothing here


def _check_packages(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} missing, which ONNX files need: pip install 'bioptimus-hf[onnx]'")
