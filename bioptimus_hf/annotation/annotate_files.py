"""Annotate files and folders of documents; a second call resumes where the first one stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bioptimus_hf.annotation.annotator import best_score, recommended_score
from bioptimus_hf.annotation.engine_choice import record_engine, recorded_engine
from bioptimus_hf.annotation.engines import is_exported
from bioptimus_hf.annotation.inputs import RECORDS, begun, input_files, old_target, record_of, target_files
from bioptimus_hf.annotation.jobs import (
    Job,
    Progress,
    Provenance,
    annotate_file,
    load_annotator,
    remove_empty_folders,
    size_of,
)
from bioptimus_hf.annotation.labels import BEST, read_renames
from bioptimus_hf.annotation.on_ray import annotate_on_ray
from bioptimus_hf.annotation.options import AnnotationOptions, RunnerOptions
from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import differences, is_finished, read_record, verification, verify
from bioptimus_hf.corpus.encodings import codec_name
from bioptimus_hf.corpus.files import check_unit, no_text, some
from bioptimus_hf.corpus.formats import DocumentReader, UnwritableError, written_files
from bioptimus_hf.corpus.reading import named_columns
from bioptimus_hf.errors import InputError, counted
from bioptimus_hf.models import find_model
from bioptimus_hf.progress import progress_bar
from bioptimus_hf.storage import locked

logger = logging.getLogger(__name__)

_SETTINGS = ("format", "input_format", "text_column", "errors", "keep")


@check_call()
def annotate_files(options: AnnotationOptions, runner: RunnerOptions | None = None) -> list[Path]:
    """Annotate files of documents that aren't annotated yet.

    Each input file becomes one file in `options.output_dir`, in the same sub-folder and named after it (`a.txt` becomes
    `a.txt.jsonl`). In the format `brat` it becomes a folder (`a.jsonl.brat`), or two files if it is a text that is one
    document (`a.txt` and `a.ann`). It is written atomically, with a record of models and settings in `.records`. Files
    with a matching record are skipped. If a file can't be annotated, the others still are, and the error comes at the
    end.

    Documents without an id are named by their file and number (`sub/a.txt:12`), so that ids are unique in all files.

    Args:
        options: input files, models, formats and the folder of the results.
        runner: where the work is done; by default in this process.

    Returns:
        The annotated files, including those that were finished before, in the order of the input files.

    Raises:
        InputError: there are no input files, or two would have the same result; the folder can't be written, or
            contains results of other models or settings and `force` is false. At the end: some files can't be annotated
            (which ones, and why), fewer than half of a file's documents could be read, or there was no document at all.
            With Ray, see `RunnerOptions`.
    """
    root = Path(options.output_dir)
    lock = root / RECORDS / "annotation.lock"
    with verification(not options.no_verify), locked(lock, root, take_over=options.take_over):
        return _annotate_all(options, runner or RunnerOptions(), lock)


def _annotate_all(options: AnnotationOptions, runner: RunnerOptions, lock: Path) -> list[Path]:
    root = Path(options.output_dir)
    found = input_files(options.input, root, any_name=options.input_format is not None)
    targets = target_files(found, root, options.format, options.input_format, options.unit)
    check_unit(targets, options.unit, format=options.input_format)
    models = [find_model(model) for model in options.models]
    options = replace(options, models=[model.pinned for model in models])  # what the records say is what is loaded
    options = _with_engine(targets, options)
    settings: dict[str, Any] = {name: getattr(options, name) for name in _SETTINGS}
    settings |= {"encoding": codec_name(options.encoding), "text_column": named_columns(options.text_column)}
    # Records of files that were annotated without these have no such keys.
    settings |= {
        name: given
        for name in ("id_column", "unit", "context")
        if (given := getattr(options, name)) not in (None, "line")
    }
    if options.labels:
        settings["labels"] = read_renames(options.labels)
    least = [best_score(model) for model in options.models] if options.min_score == BEST else [options.min_score]
    if any(least):
        settings["min_score"] = least[0] if len(set(least)) == 1 else least
    settings |= record_engine(options.engine, options.precision, exported=all(map(is_exported, options.models)))
    provenance = Provenance({f"model {number}": model.identity for number, model in enumerate(models)}, settings)
    outcome = _Outcome(targets)
    rest: list[Job] = []
    for file, target in targets.items():
        with outcome.noting(file):
            facts = _finished(file, target, provenance, options)
            if facts is None:
                rest.append(Job(file, target, found[file].as_posix()))
            else:
                begun(target).unlink(missing_ok=True)  # of a process that ended just before it could do so
                outcome.facts[file] = facts
    if outcome.facts:
        logger.info("%d of %d files are already annotated", len(outcome.facts), len(targets))
    _warn_of_old_names(rest, options.format)
    if rest:
        if options.min_score == 0:
            _offer_scores(options.models)
        _annotate(rest, provenance, options, outcome, runner, lock)
    outcome.report()
    return list(targets.values())


def _with_engine(targets: Mapping[Path, Path], options: AnnotationOptions) -> AnnotationOptions:
    """Put the engine of the files that are already annotated, or else the fastest, in place of `auto`."""
    if options.engine != "auto":
        return options
    recorded = None if options.force else next(_recorded_settings(targets.values()), None)
    if recorded is not None:
        exported = all(map(is_exported, options.models))
        choice = recorded_engine(recorded, exported=exported)
        logger.info(
            "engine auto: %s, as in the files that are already annotated", choice or "that of the exported file"
        )
        engine, precision = (choice.engine, choice.precision) if choice else (None, options.precision)
        if options.precision != "fast" and precision == "fast":
            engine, precision = ("torch", "exact")  # which the files don't have, and that is said
    else:
        annotator = load_annotator(replace(options, engine=None, precision=None))
        chosen = annotator.fastest_engine(options.precision or "exact", _first_texts(targets, options))
        engine, precision = chosen.engine, chosen.precision
    return replace(options, engine=engine, precision=precision)


def _recorded_settings(targets: Iterable[Path]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings in records of results; what is wrong with a record is said when its file is annotated."""
    for target in targets:
        try:
            if record_of(target).is_file():
                yield read_record(record_of(target))["settings"]
        except InputError:
            continue


def _first_texts(files: Iterable[Path], options: AnnotationOptions) -> Iterator[str]:
    """Yield the texts of files; what is wrong with a file is said when it is annotated."""
    for file in files:
        try:
            for document in DocumentReader(file, format=options.input_format, options=options.read_options()):
                yield document.text
        except InputError:
            continue


def _skipped(facts: Mapping[str, Any]) -> int:
    """Return how many documents were skipped; records of older versions list all of them."""
    return int(facts.get("documents_skipped", len(facts["skipped"])))


class _OtherResultsError(InputError):
    """A folder has results of other models or settings, which must not be mixed with new ones."""


class _Outcome:
    """What became of the files of a call.

    Attributes:
        facts: the facts in the record of each annotated file.
    """

    def __init__(self, targets: Mapping[Path, Path]) -> None:
        self.facts: dict[Path, Mapping[str, Any]] = {}
        self._targets = targets
        self._failures: dict[Path, str] = {}

    @contextmanager
    def noting(self, file: Path) -> Iterator[None]:
        """Log and keep an error that concerns this file alone, so that the others can be annotated."""
        try:
            yield
        except (UnwritableError, _OtherResultsError):
            raise
        except InputError as error:
            named = any(str(path) in str(error) for path in (file, self._targets[file]))
            message = str(error) if named else f"{file}: {error}"
            if len(self._targets) > 1:  # otherwise it will be the only line
                logger.error("%s", message)
            self._failures[file] = message

    def report(self) -> None:
        """Say how many documents were skipped and how many annotations replaced.

        Raises:
            InputError: some files couldn't be annotated, or so few documents could be read that it is no success.
        """
        # In the order of the input, whatever the order in which the files were finished.
        done = {file: self.facts[file] for file in self._targets if file in self.facts}
        skipped = {file: missing for file, facts in done.items() if (missing := _skipped(facts))}
        if skipped:
            number, files = counted(sum(skipped.values()), "document"), counted(len(skipped), "file")
            records = [str(record_of(self._targets[file])) for file in skipped]
            logger.warning("skipped %s of %s: listed under facts in %s", number, files, some(records))
        for file, number_skipped in skipped.items():
            read = self.facts[file]["documents"]
            if read < number_skipped:
                self._failures[file] = (
                    f"{file}: only {read:,} of {counted(read + number_skipped, 'document')} could be read, as "
                    f"{record_of(self._targets[file])} says: fix the file, or give its format and encoding"
                )
        if self._failures:
            failures = [self._failures[file] for file in self._targets if file in self._failures]
            if len(self._targets) == 1:
                raise InputError(failures[0])
            more = f" (and {len(failures) - 3} more)" if failures[3:] else ""
            raise InputError(
                f"{len(failures)} of {len(self._targets)} files could not be annotated: {'; '.join(failures[:3])}{more}"
            )
        if not any(facts["documents"] for facts in self.facts.values()):
            raise no_text(list(self._targets))


def _finished(file: Path, target: Path, provenance: Provenance, options: AnnotationOptions) -> Mapping[str, Any] | None:
    """Return the facts about a result that is in place, None if the file is still to be annotated.

    Raises:
        InputError: the result isn't ours, has been damaged, or belongs to another input or other settings, or its
            record can't be read.
    """
    record = record_of(target)
    aside = f"move {target} and {record} away, and run the same command again"
    if record.is_dir():
        raise InputError(f"{record} is a folder, not the record of {file}: {aside}")
    present = next((path for path in (target, *written_files(target, options.format)) if path.exists()), None)
    if present and not record.is_file() and not begun(target).is_file():
        raise InputError(f"{present} exists but wasn't annotated here: move it away, or choose another output_dir")
    if options.force or not target.exists() or not record.is_file():
        return None
    try:
        then = read_record(record)
        skipped = _skipped(then["facts"])
        shared = {name: value for name, value in then["inputs"].items() if name not in ("file", "annotations")}
        if changed := differences({**then, "inputs": shared}, provenance.models, provenance.settings):
            advice = "choose another output_dir, or use force to redo all files"
            raise _OtherResultsError(f"{record} was made with different {changed}: {advice}")
        verify(record)
    except _OtherResultsError:
        raise
    except InputError as error:
        raise InputError(f"{str(error).rpartition(': ')[0]}: {aside}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{record} is not a record of this version: {aside}") from error
    is_finished(record, provenance.inputs(file), provenance.settings)  # raises if the input is another
    if skipped and options.on_error == "raise":
        raise InputError(
            f"{target} lacks {counted(skipped, 'document')} of {file} that couldn't be read: fix the file and use "
            f"force, or accept the gap with on_error=skip"
        )
    facts: Mapping[str, Any] = then["facts"]
    return facts


def _offer_scores(models: Sequence[str]) -> None:
    """Say which heads recommend a least score, and what it would do. It isn't applied unless somebody wants it."""
    for model in models:
        found = recommended_score(model)
        if found is not None and found.best > 0:
            logger.info(
                "%s: leaving out entities with a score below %.2f (%.0f%% of them) raised F1 on its development set "
                "from %.1f to %.1f; set min_score to best to do so",
                *(model, found.best, 100 * found.left_out, 100 * found.f1_of_all, 100 * found.f1),
            )


def _warn_of_old_names(jobs: Sequence[Job], format: str) -> None:
    pairs = [(job, old) for job in jobs if (old := old_target(job.file, job.target, format))]
    if pairs:
        logger.warning(
            "%s of an older version named otherwise, for example %s instead of %s, annotated again: move the old away",
            *(counted(len(pairs), "result"), pairs[0][1], pairs[0][0].target.name),
        )


def _annotate(
    jobs: Sequence[Job],
    provenance: Provenance,
    options: AnnotationOptions,
    outcome: _Outcome,
    runner: RunnerOptions,
    lock: Path,
) -> None:
    replaced: dict[Path, int] = {}
    size = sum(size_of(job.file) for job in jobs)
    with progress_bar(total=size, unit="B", unit_scale=True, desc="Annotating") as bar:
        progress = _Progress(bar)
        if runner.runner == "ray":
            results = annotate_on_ray(jobs, provenance, options, runner, lock, progress)
        else:
            results = _annotate_here(jobs, provenance, options, progress)
        with closing(results), _removing_empty_folders(jobs, options):
            for job, result in results:
                with outcome.noting(job.file):
                    if isinstance(result, InputError):
                        raise result
                    outcome.facts[job.file] = result
                    if result["replaced"]:
                        replaced[job.file] = result["replaced"]
    if replaced:
        logger.warning(
            "replaced %s of %s, for example of %s: use keep to keep them",
            counted(sum(replaced.values()), "annotation"),
            *(counted(len(replaced), "input file"), next(job.file for job in jobs if job.file in replaced)),
        )
    if progress.documents:  # otherwise an error follows
        logger.info(
            "annotated %s with %s in %s, %.1f documents per second",
            counted(progress.documents, "document"),
            f"{progress.entities:,} {'entity' if progress.entities == 1 else 'entities'}",
            *(options.output_dir, progress.documents_per_second),
        )


def _annotate_here(
    jobs: Iterable[Job], provenance: Provenance, options: AnnotationOptions, progress: Progress
) -> Generator[tuple[Job, Mapping[str, Any] | InputError]]:
    """Annotate files one after the other, and yield each with the facts of its record, or with its error."""
    annotator = load_annotator(options)
    progress.begin()
    for job in jobs:
        try:
            result: Mapping[str, Any] | InputError = annotate_file(job, annotator, provenance, options, progress)
        except InputError as error:
            result = error
        yield job, result


@contextmanager
def _removing_empty_folders(jobs: Iterable[Job], options: AnnotationOptions) -> Iterator[None]:
    """Remove the folders that were created for results, at the end of a `with` block, if nothing is in them."""
    try:
        yield
    finally:
        for job in jobs:
            if not job.target.exists():
                remove_empty_folders(job.target, Path(options.output_dir))


class _Progress:
    """Counts documents and entities, and shows how many bytes of the files have been read.

    Args:
        bar: from `progress_bar`, whose total is the size of all files in bytes.
    """

    def __init__(self, bar: Any) -> None:
        self.documents = self.entities = 0
        self._began = time.monotonic()
        self._bar = bar

    @property
    def documents_per_second(self) -> float:
        """Average speed so far."""
        return self.documents / (time.monotonic() - self._began)

    def begin(self) -> None:
        """See `jobs.Progress.begin`."""
        if not self.documents:
            self._began = time.monotonic()

    def add(self, documents: int, entities: int, size: int) -> None:
        """See `jobs.Progress.add`."""
        self.documents += documents
        self.entities += entities
        if documents:
            speed = f"{self.documents_per_second:.1f}/s"
            self._bar.set_postfix_str(f"{counted(self.documents, 'document')}, {speed}", refresh=False)
        self._bar.update(size)
