"""Make version 0.0 of a run: the base model with the new vocabulary and initialised embeddings."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import (
    RECORD,
    Run,
    building,
    identity,
    is_finished,
    read_record,
    remedy,
    verify,
    write_json,
)
from bioptimus_hf.distillation.contextual import contextual_embeddings
from bioptimus_hf.distillation.initialization import initial_rows
from bioptimus_hf.distillation.options import FROM_CONTEXTS, DistillationOptions, RowTraining
from bioptimus_hf.distillation.report import inspect_rows
from bioptimus_hf.distillation.token_distillation import distill_tokens
from bioptimus_hf.distillation.transplant import transplant_vocabulary
from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.models import Source, base_of_run, check_base, load_by_name, load_masked_lm, save_masked_lm

logger = logging.getLogger(__name__)


@check_call()
def make_distilled_model(run: Run, options: DistillationOptions) -> Path:
    """Replace the base model's vocabulary with that of the run, and initialise the embeddings of new tokens.

    Reads the run's `tokenizer` and, for initializers that need them, `contexts`. Does nothing if the same model has
    been made before.

    Args:
        run: folder and seed of the run.
        options: base model and initializer.

    Returns:
        The folder `v0.0` of the run: a `BertForMaskedLM` and its tokenizer, `made.json`, and a report on the new
        embeddings (`report.md`, `report.json`, `norms.png`).

    Raises:
        InputError: an earlier stage is missing or was made for another base model or tokenizer, the base model can't
            be loaded, or the folder holds a model made from other inputs or settings and `run.force` is false.
    """
    with run.working_on("v0.0") as folder:
        _make(folder, run, options)
    return folder


def _make(folder: Path, run: Run, options: DistillationOptions) -> None:
    needs_contexts = options.initializer in FROM_CONTEXTS
    stages = ["tokenizer", "contexts"] if needs_contexts else ["tokenizer"]
    base = _check_stages(run.root, stages, options.base_model)
    inputs = {"base_model": base.identity, **{name: identity(run.root / name) for name in stages}}
    settings = _settings(run, options)
    if is_finished(folder, inputs, settings, force=run.force):
        return
    check_base(base.folder)
    source = load_by_name(AutoTokenizer, base.folder)
    target = load_by_name(AutoTokenizer, str(run.root / "tokenizer"))
    model, new_weights = load_masked_lm(base.folder, seed=run.seed)
    with building(folder, inputs, settings, sources={name: run.root / name for name in stages}) as built:
        vectors, counts = None, None
        if needs_contexts:
            contexts = _load_contexts(run.root / "contexts")
            counts = Counter(contexts["token"])
            vectors = _make_vectors(model, source, target, contexts, options, run.seed)
        new = initial_rows(model, source, target, initializer=options.initializer, vectors=vectors, seed=run.seed)
        report = inspect_rows(model, source, target, new, contexts=counts)
        transplant_vocabulary(model, source, target, new.rows)
        save_masked_lm(model, target, built.path)
        (built.path / "report.md").write_text(report.markdown(), encoding="utf-8")
        write_json(built.path / "report.json", report.facts())
        report.plot(built.path / "norms.png")
        built.facts |= {
            "new_tokens": len(new.rows),
            "new_tokens_from_contexts": len(new.rows) - len(new.without_vectors) if needs_contexts else 0,
            "unknown_to_base": new.unknown,
            "fallen_back": new.without_vectors,
            "newly_initialised_weights": new_weights,
        }
    logger.info(
        "%d new tokens, initialised by %s; %d of them fall back on the mean of their pieces, %d contain characters "
        "unknown to the base",
        len(new.rows),
        options.initializer,
        len(new.without_vectors),
        len(new.unknown),
    )


def _load_contexts(folder: Path) -> Dataset:
    """Load the contexts of a run, which may also be the user's own.

    Raises:
        InputError: they can't be read, or a column is missing.
    """
    try:
        contexts = load_from_disk(folder)
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{folder} can't be read ({format_error(error)}): {remedy(folder)}") from error
    columns = contexts.column_names
    if not isinstance(contexts, Dataset) or not {"token", "text", "start", "end"} <= set(columns):
        raise InputError(f"{folder} must have the columns token, text, start and end, not {columns}: {remedy(folder)}")
    return contexts


def _check_stages(root: Path, stages: list[str], base_model: str | None) -> Source:
    """Check that earlier stages exist and belong together, and return the base model."""
    for name in stages:
        if not (root / name).is_dir():
            raise InputError(f"{root / name} doesn't exist: make the {name} of this run first", argument="output_dir")
        verify(root / name)
    base = base_of_run(root, base_model)
    # Tokenizers and contexts that a user brings have no record, and contexts of a list of words have no base model.
    records = {name: read_record(root / name)["inputs"] for name in stages if (root / name / RECORD).is_file()}
    for name, inputs in records.items():
        if inputs.get("base_model", base.identity) != base.identity:
            raise InputError(
                f"{root / name} was made for another base model than {root / 'tokenizer'}: redo it with force"
            )
    if "contexts" in records and records["contexts"].get("tokenizer") != identity(root / "tokenizer"):
        raise InputError(
            f"{root / 'contexts'} was made for another tokenizer than {root / 'tokenizer'}: redo it with force"
        )
    return base


def _settings(run: Run, options: DistillationOptions) -> dict[str, Any]:
    """Return the settings that affect the result, for the record."""
    settings: dict[str, Any] = {"initializer": options.initializer, "seed": run.seed}
    if options.initializer in FROM_CONTEXTS:
        settings |= {"layer": options.layer, "bf16": options.bf16}
    if options.initializer == "token_distillation":
        settings["max_tokens"] = options.max_tokens
    return settings


def _make_vectors(
    model: BertForMaskedLM,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    contexts: Dataset,
    options: DistillationOptions,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Make a vector for each new token that has usable contexts, on a GPU if there is one."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if options.initializer == "token_distillation":
        start = initial_rows(model, source, target, initializer="subtoken_mean").rows
        training = RowTraining(options.max_tokens, options.layer, seed, options.bf16)
        vectors = distill_tokens(model, source, contexts, start, training)
    else:
        vectors = contextual_embeddings(
            model, source, contexts, layer=options.layer, batch_size=options.batch_size, bf16=options.bf16
        )
    model.to("cpu")
    return vectors
