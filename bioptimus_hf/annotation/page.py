"""Lay out the web page with gradio, and connect it to the sessions of its users."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from bioptimus_hf.annotation.page_api import BY_NAME, UNITS, add_api, given_format, read_options
from bioptimus_hf.annotation.page_html import (
    CSS,
    alert,
    heading,
    lines,
    marked_text,
    parts,
    progress,
    recommendation,
    size_in_words,
    summary,
    table_rows,
)
from bioptimus_hf.annotation.results import View, without_folder
from bioptimus_hf.annotation.sessions import Run, Sessions, Workshop
from bioptimus_hf.corpus.files import check_unit
from bioptimus_hf.corpus.formats import FORMATS, READABLE, WRITABLE, find_format
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError

MAX_UPLOAD_MEGABYTES = 100
"""The largest file that can be uploaded."""
KEPT_SECONDS = 3600  # how long files stay available
_AT_ONCE = 8  # users; more wait in a queue
_EXAMPLES = [
    "Two children with severe asthma were given magnesium sulfate after salbutamol had failed. Bronchoconstriction "
    "eased within the hour; one of them had transient hypotension.",
    "Loss of PTEN activated AKT in the tumour cells, and rapamycin slowed their growth in mice. Cells with a mutation "
    "of the TP53 gene did not respond.",
    "A 71-year-old woman who took methotrexate for rheumatoid arthritis developed pancytopenia and acute renal "
    "failure two weeks after trimethoprim was added. Both resolved with folinic acid.",
]

Updates = dict[Any, Any]
"""New values or properties by component; also what a function is given."""


def build_page(
    workshop: Workshop, sessions: Sessions, models: Sequence[str], recommended: Mapping[str, float]
) -> gr.Blocks:
    """Return the page, with the API endpoints `/annotate` and `/annotate_file`.

    Args:
        workshop: finds the entities.
        sessions: keeps the results of the users.
        models: names of the models, shown on the page.
        recommended: the least score that gave a model the best F1 on its development set, for those that say so.
    """
    with gr.Blocks(title="Find entities", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as blocks:
        blocks.queue(default_concurrency_limit=_AT_ONCE)
        gr.HTML(heading(models))
        page = _Page(workshop, sessions, recommendation(recommended))
        page.connect()
        blocks.unload(page.end)
        add_api(workshop, sessions.downloads)
    return blocks


class _Page:
    """The components of the page, and what happens when they are used."""

    def __init__(self, workshop: Workshop, sessions: Sessions, about_scores: str) -> None:
        self._workshop = workshop
        self._sessions = sessions
        self._about_scores = about_scores
        with gr.Tab("Text"):
            self._text = gr.Textbox(
                label="Text", placeholder="A sentence, an abstract, a full paper", lines=6, max_lines=16, elem_id="text"
            )
            self._find = gr.Button("Find entities", variant="primary", elem_id="find")
            gr.Examples(_EXAMPLES, self._text, label="Examples", cache_examples=False)
        with gr.Tab("Files", elem_id="files-tab"):
            self._add_files()
        self._status = gr.HTML(css_template=CSS, elem_id="status")
        with gr.Column(visible=False, elem_id="results") as self._results:
            self._add_results()

    def _add_files(self) -> None:
        endings = ", ".join(dict.fromkeys(FORMATS[name].suffix for name in READABLE))
        self._files = gr.File(label="Files", file_count="multiple", elem_id="files", height=180)
        gr.HTML(f"<small>{endings}, most of them also as .gz; at most {MAX_UPLOAD_MEGABYTES} MB each</small>")
        self._problems = gr.HTML(css_template=CSS, elem_id="problems", visible=False)
        self._unit = gr.Radio(
            [(f"a {unit}", unit) for unit in UNITS], label="A document in .txt files is", visible=False, elem_id="unit"
        )
        with gr.Group(visible=False, elem_id="reading") as self._reading:
            with gr.Row():
                self._format = gr.Dropdown([BY_NAME, *READABLE], label="Format", min_width=140)
                self._encoding = gr.Textbox("utf-8", label="Encoding", min_width=140)
            with gr.Row():
                self._columns = gr.Textbox(
                    "text", label="Text columns", info="separated by commas", min_width=140, elem_id="columns"
                )
                self._id_column = gr.Textbox(
                    "", label="Id column", info="by default id, if there is one", min_width=140
                )
        with gr.Row():
            self._find_files = gr.Button("Find entities", variant="primary", elem_id="find-files")
            self._stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")

    def _add_results(self) -> None:
        with gr.Row(visible=False, elem_id="pager") as self._pager:
            with gr.Column(min_width=280), gr.Row():
                self._number = gr.Number(1, label="Document", minimum=1, precision=0, min_width=110, elem_id="number")
                self._part = gr.Number(1, label="Part", minimum=1, precision=0, min_width=110, elem_id="part")
            with gr.Column(min_width=280), gr.Row():
                self._previous = gr.Button("Previous", min_width=110, elem_id="previous")
                self._next = gr.Button("Next", min_width=110, elem_id="next")
        with gr.Row():
            self._min_score = gr.Slider(
                *(0, 1, 0),
                step=0.01,
                label="Lowest score",
                info=self._about_scores or None,
                min_width=280,
                elem_id="min-score",
            )
            self._labels = gr.CheckboxGroup(label="Labels", min_width=280, elem_id="labels")
        self._found = gr.HTML(css_template=CSS, elem_id="found", max_height="70vh")
        self._table = gr.Dataframe(
            headers=["entity", "label", "score", "start", "end"],
            column_widths=["150px", "110px", "80px", "90px", "90px"],
            datatype=["str", "str", "number", "number", "number"],
            label="Entities",
            interactive=False,
            wrap=True,
            elem_id="table",
        )
        with gr.Row(elem_id="saving"):
            self._file_format = gr.Dropdown(list(WRITABLE), label="Format", min_width=110, elem_id="format")
            self._save = gr.Button("Prepare download", min_width=110, elem_id="save")
            self._download = gr.DownloadButton(visible=False, variant="primary", min_width=110, elem_id="download")
        self._save_problem = gr.HTML(css_template=CSS, elem_id="save-problem", visible=False)

    def connect(self) -> None:
        """Say which function each event calls, and which components it changes."""
        reading = [self._format, self._encoding, self._columns, self._id_column, self._unit]
        # Given as a set, so that functions get them by component.
        place = {self._number, self._part, self._min_score, self._labels}
        shown = [
            *(self._status, self._pager, self._previous, self._number, self._part, self._next),
            *(self._found, self._table, self._download, self._save_problem),
        ]
        finished = [self._results, self._labels, *shown]
        private = {"api_visibility": "private"}
        latest = {**private, "trigger_mode": "always_last", "show_progress": "hidden"}
        self._find.click(self._on_text, {self._text, self._min_score}, finished, show_progress_on=self._find, **private)
        for event in (self._files.change, *(component.change for component in reading)):
            event(self._on_upload, {self._files, *reading}, [self._problems, self._unit, self._reading], **latest)
        self._find_files.click(
            self._on_files,
            {self._files, *reading, self._min_score},
            [self._find_files, self._stop, *finished],
            show_progress="hidden",
            **private,
        )
        self._stop.click(self._on_stop, None, self._stop, queue=False, **private)
        self._previous.click(self._on_previous, place, shown, **latest)
        self._next.click(self._on_next, place, shown, **latest)
        gr.on(
            [
                self._number.submit,
                self._number.blur,
                self._part.submit,
                self._part.blur,
                self._min_score.input,
                self._labels.input,
            ],
            *(self._on_view, place, shown),
            **latest,
        )
        self._file_format.input(lambda: gr.DownloadButton(visible=False), None, self._download, **latest)
        self._save.click(
            self._on_save,
            {self._file_format, self._min_score, self._labels},
            [self._download, self._save_problem],
            show_progress_on=self._save,
            **private,
        )

    def end(self, request: gr.Request) -> None:
        """End the session of a user who has closed the page."""
        self._sessions.end(_user(request))

    def _on_text(self, given: Updates, request: gr.Request) -> Updates:
        run = self._sessions.begin(_user(request))
        try:
            run.results.extend([self._workshop.annotate_text(given[self._text])])
        except InputError as error:
            run.errors.append(str(error))
        return self._finished(run, given[self._min_score])

    def _on_upload(self, given: Updates) -> Updates:
        messages: list[str] = []
        try:
            options = self._read_options(given)
            messages = self._workshop.check_files(given[self._files] or [], given_format(given[self._format]), options)
            self._check_unit(given)
        except InputError as error:
            messages.append(str(error))
        reading = (self._format, self._encoding, self._columns, self._id_column)
        changed = any(given[component] != component.value for component in reading)
        return {
            self._problems: gr.HTML("".join(map(alert, messages)), visible=bool(messages)),
            self._unit: gr.Radio(visible=bool(self._texts(given))),
            self._reading: gr.Group(visible=bool(messages) or changed),
        }

    def _check_unit(self, given: Updates) -> None:
        """Raise InputError for many small files of plain text, if the user hasn't said what a document is."""
        with self._workshop.collecting_notes([]):  # for few of them, the choice is there to be seen
            try:
                check_unit(self._texts(given), given[self._unit])
            except InputError as error:
                text = self._texts(given)[0]
                raise InputError(without_folder(str(error), text)) from error

    def _texts(self, given: Updates) -> list[Path]:
        """Return the files of plain text."""
        format = given_format(given[self._format])
        files = map(Path, given[self._files] or [])
        return [file for file in files if (FORMATS[format] if format else find_format(file)) == FORMATS["txt"]]

    def _on_files(self, given: Updates, request: gr.Request) -> Iterator[Updates]:
        run = self._sessions.begin(_user(request))
        begin, end = (
            {self._find_files: gr.Button(interactive=not busy), self._stop: gr.Button(visible=busy, interactive=busy)}
            for busy in (True, False)
        )
        try:
            if not given[self._files]:
                raise InputError("There is no file: choose one or several.")
            options = self._read_options(given)
            self._check_unit(given)
            yield {**begin, self._status: progress(run), self._results: gr.Column(visible=False)}
            for _ in self._workshop.annotate_files(given[self._files], given_format(given[self._format]), options, run):
                yield {self._status: progress(run)}
        except InputError as error:
            run.errors.append(str(error))
        # Another run may have begun meanwhile, whose results are shown.
        current = self._sessions.run(_user(request)) is run
        yield {**end, **self._finished(run, given[self._min_score])} if current else end

    def _read_options(self, given: Updates) -> ReadOptions:
        return read_options(given[self._columns], given[self._id_column], given[self._unit], given[self._encoding])

    def _on_stop(self, request: gr.Request) -> gr.Button:
        self._sessions.stop(_user(request))
        return gr.Button(interactive=False)

    def _on_previous(self, given: Updates, request: gr.Request) -> Updates:
        number, part = given[self._number] or 1, given[self._part] or 1
        before = (number, part - 1) if part > 1 else (number - 1, sys.maxsize)
        return self._on_view({**given, self._number: before[0], self._part: before[1]}, request)

    def _on_next(self, given: Updates, request: gr.Request) -> Updates:
        return self._on_view({**given, self._part: (given[self._part] or 1) + 1}, request)

    def _on_view(self, given: Updates, request: gr.Request) -> Updates:
        run = self._sessions.run(_user(request))
        if run is None or not len(run.results):
            return {self._status: alert("The results are no longer there: annotate once more.")}
        return self._place(run, given[self._number] or 1, given[self._part] or 1, self._view(given))

    def _view(self, given: Updates) -> View:
        return View(given[self._min_score], frozenset(given[self._labels]))

    def _on_save(self, given: Updates, request: gr.Request) -> Updates:
        notes: list[str] = []
        try:
            with self._workshop.collecting_notes(notes):
                path = self._sessions.save(_user(request), given[self._file_format], self._view(given))
        except InputError as error:
            return {
                self._download: gr.DownloadButton(visible=False),
                self._save_problem: gr.HTML(alert(str(error)), visible=True),
            }
        label = f"Download {path.name} ({size_in_words(path.stat().st_size)})"
        return {
            self._download: gr.DownloadButton(label, value=path, visible=True),
            self._save_problem: gr.HTML(lines(notes), visible=bool(notes)),
        }

    def _finished(self, run: Run, min_score: float) -> Updates:
        counts = sorted(run.results.labels.items())
        updates: Updates = {self._status: summary(run), self._results: gr.Column(visible=len(run.results) > 0)}
        if not len(run.results):
            return updates
        labels = [label for label, _ in counts]
        choices = [(f"{label} ({count:,})", label) for label, count in counts]
        return {
            **updates,
            self._labels: gr.CheckboxGroup(choices, value=labels, visible=len(labels) > 1),
            **self._place(run, 1, 1, View(min_score)),
        }

    def _place(self, run: Run, number: int, part: int, view: View) -> Updates:
        """Show a part of a document. What is after the last part is the first part of the next document."""
        last = len(run.results)
        number = min(max(number, 1), last)
        document = run.results.document(number, view)
        places = parts(document)
        if len(places) < part < sys.maxsize and number < last:
            return self._place(run, number + 1, 1, view)
        part = min(max(part, 1), len(places))
        shown = places[part - 1]
        rows = table_rows(document, shown)
        return {
            self._pager: gr.Row(visible=last > 1 or len(places) > 1),
            self._previous: gr.Button(interactive=number > 1 or part > 1),
            self._number: gr.Number(number, label=f"Document, of {last:,}", maximum=last, visible=last > 1),
            self._part: gr.Number(part, label=f"Part, of {len(places)}", maximum=len(places), visible=len(places) > 1),
            self._next: gr.Button(interactive=number < last or part < len(places)),
            self._found: marked_text(document, shown, heading=last > 1),
            self._table: gr.Dataframe(rows, visible=bool(rows)),
            self._download: gr.DownloadButton(visible=False),  # it was made with another view
            self._save_problem: gr.HTML(visible=False),
        }


def _user(request: gr.Request) -> str:
    return str(request.session_hash)


def _view(min_score: float, labels: list[str]) -> View:
    return View(min_score, frozenset(labels))
