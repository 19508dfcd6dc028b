#!/usr/bin/env python
r"""Write a head as an ONNX file, by default in 8-bit integers: smaller, and faster on a CPU.

    python scripts/export_onnx.py --model runs/mine/ner/ncbi-disease/v0.4/0 --output_dir runs/mine/onnx/ncbi-disease
    python scripts/annotate.py --models runs/mine/onnx/ncbi-disease --input abstracts.jsonl --output_dir found

Needs the extra `onnx`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bioptimus_hf.annotation.engines import ONNX_FILE
from bioptimus_hf.annotation.onnx_export import export_onnx
from bioptimus_hf.cli.legacy import parse, run

logger = logging.getLogger("export_onnx")


@dataclass
class Options:
    """What is written where."""

    model: str = field(metadata={"help": "Folder or Hub name of a token classifier"})
    output_dir: str = field(metadata={"help": "An empty or new folder, for the file, its configuration and tokenizer"})
    precision: Literal["int8", "fp32"] = field(
        default="int8", metadata={"help": "int8 is a quarter of the size and faster; a few predictions change"}
    )


def main() -> None:
    """Export."""
    (options,) = parse(Options, section="export_onnx", description=__doc__)
    export_onnx(options.model, options.output_dir, precision=options.precision)
    size = (Path(options.output_dir) / ONNX_FILE).stat().st_size / 1e6
    logger.info("saved %s (%.1f MB)", options.output_dir, size)


if __name__ == "__main__":
    run(main)
