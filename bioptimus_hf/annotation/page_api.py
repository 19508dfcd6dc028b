"""Add to the web page what programs call: the endpoints `/annotate` and `/annotate_file` of gradio's API."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import gradio as gr

from bioptimus_hf.annotation.results import View, save
from bioptimus_hf.annotation.sessions import MAX_CHARACTERS, Run, Workshop
from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.corpus.formats import READABLE, WRITABLE
from bioptimus_hf.corpus.reading import ReadOptions, Unit
from bioptimus_hf.errors import InputError

BY_NAME = "by name"
"""Stands for the format that the name of a file ends in."""
UNITS = list(get_args(Unit))
"""What a document can be in plain text."""


def add_api(workshop: Workshop, downloads: Path) -> None:
    """Add the endpoints for programs."""

    def annotate(text: str, min_score: float = 0.0) -> list[dict[str, Any]]:
        """Return the entities of a text: start, end, text, label and score of each."""
        try:
            document = View(min_score).filter(workshop.annotate_text(text))
        except InputError as error:
            raise _api_error(error) from error
        return [_entity_row(entity) for entity in document.entities]

    def annotate_file(
        file: str,
        format: str = "jsonl",
        min_score: float = 0.0,
        input_format: str = BY_NAME,
        text_column: str = "text",
        id_column: str = "",
        unit: str = "line",
        encoding: str = "utf-8",
    ) -> str:
        """Return a file with the documents of a file and their entities."""
        run = Run()
        try:
            if format not in WRITABLE:
                raise InputError(f"must be one of {', '.join(WRITABLE)}, not {format!r}", argument="format")
            options = read_options(text_column, id_column, unit, encoding)
            deque(workshop.annotate_files([file], given_format(input_format), options, run, on_error="raise"), 0)
            if run.errors:
                raise InputError(run.errors[0])
            with workshop.collecting_notes(run.notes):
                path = save(downloads, format, run.results.documents(View(min_score)))
        except InputError as error:
            raise _api_error(error) from error
        for note in run.notes:
            gr.Warning(note)
        return str(path)

    any_value = {"allow_custom_value": True}  # so that wrong ones are our errors, of which gradio prints no traceback
    with gr.Group(visible=False):
        score = gr.Number(0.0, label="min_score", minimum=0, maximum=1)
        gr.Button().click(annotate, [gr.Textbox(label="text"), score], gr.JSON(label="entities"), api_name="annotate")
        inputs = [
            gr.File(label="file"),
            gr.Dropdown(list(WRITABLE), label="format", **any_value),
            score,
            gr.Dropdown([BY_NAME, *READABLE], label="input_format", **any_value),
            gr.Textbox("text", label="text_column"),
            gr.Textbox("", label="id_column"),
            gr.Dropdown(UNITS, label="unit", **any_value),
            gr.Textbox("utf-8", label="encoding"),
        ]
        gr.Button().click(annotate_file, inputs, gr.File(label="annotated file"), api_name="annotate_file")


def _entity_row(entity: Entity) -> dict[str, Any]:
    return {name: value for name, value in asdict(entity).items() if name != "identifier"}  # a model gives none


def _api_error(error: InputError) -> gr.Error:
    return gr.Error(str(error), print_exception=False)


def given_format(given: str) -> str | None:
    """Return a format that was chosen; None if the name of the file says which it is."""
    return None if given == BY_NAME else given


def read_options(columns: str, id_column: str, unit: str | None, encoding: str) -> ReadOptions:
    """Return how uploaded files are read.

    Args:
        columns: names of columns with text, separated by commas.
        id_column: name of the column with ids; empty for the default.
        unit: what is a document in plain text, by default a line.
        encoding: of text files.

    Raises:
        InputError: an encoding is unknown, or a column has no name.
    """
    return ReadOptions(
        text_column=[column.strip() for column in columns.split(",")],
        id_column=id_column.strip() or None,
        unit=cast(Unit, unit or "line"),
        encoding=encoding.strip(),
        max_document_megabytes=MAX_CHARACTERS / 1e6,
        annotations="optional",
    )
