"""Export a NER head as an ONNX file, by default in 8-bit integers: smaller, and faster on a CPU.

    bioptimus export-onnx --model runs/mine/ner/ncbi-disease/v0.4/0 --output_dir runs/mine/onnx/ncbi-disease
    bioptimus annotate --models runs/mine/onnx/ncbi-disease --input abstracts.jsonl --output_dir found

Needs the extra `onnx`: pip install 'bioptimus-hf[onnx]'.
"""

from __future__ import annotations

import logging
from pathlib import Path

from bioptimus_hf.annotation.options import ExportOptions

OPTIONS = (ExportOptions,)
logger = logging.getLogger(__name__)


def execute(options: ExportOptions) -> None:
    """Export the head."""
    from bioptimus_hf.annotation.engines import ONNX_FILE
    from bioptimus_hf.annotation.onnx_export import export_onnx

    export_onnx(options.model, options.output_dir, precision=options.precision)
    size = (Path(options.output_dir) / ONNX_FILE).stat().st_size / 1e6
    logger.info("%s has %.1f MB", ONNX_FILE, size)
