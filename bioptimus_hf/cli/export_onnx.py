"""Export a NER head as an ONNX file, by default in 8-bit integers: smaller, and faster on a CPU.

    bioptimus export-onnx --model runs/mine/ner/ncbi-disease/v0.4/0 --output_dir runs/mine/onnx/ncbi-disease
    bioptimus annotate --models runs/mine/onnx/ncbi-disease --input abstracts.jsonl --output_dir found

Needs the extra `onnx`: pip install 'bioptimus-hf[onnx]'.
"""

from __future__ import annotations

from bioptimus_hf.annotation.options import ExportOptions

OPTIONS = (ExportOptions,)


def execute(options: ExportOptions) -> None:
    """Export the head."""
    from bioptimus_hf.annotation.onnx_export import export_onnx

    export_onnx(options.model, options.output_dir, precision=options.precision)
