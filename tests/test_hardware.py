from __future__ import annotations

import json
import subprocess
import sys

import torch

from bioptimus_hf.hardware import describe_hardware


def test_the_machine_is_described_without_importing_torch() -> None:
    code = "import json, sys; from bioptimus_hf.hardware import describe_hardware as d; print(json.dumps(d()))"
    code += "; assert not {'torch', 'transformers'} & sys.modules.keys()"
    described = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    here = describe_hardware()
    assert described == {**here, "accelerators": []}
    assert here["cpu"]
    assert here["cores"] >= 1
    assert len(here["accelerators"]) == torch.accelerator.device_count()
