"""Estimate how long the stages of a recipe take, and how much they write.

The rates were measured with a 22.7M-parameter model on two CPU cores with AVX512-BF16. They are scaled by the size of
the encoder and the number of cores: expect errors by a factor of two, and far less time on a GPU.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioptimus_hf.artifacts import read_json
from bioptimus_hf.ner.options import GRID

if TYPE_CHECKING:  # which loads transformers
    from bioptimus_hf.ner.experiments import PlannedTraining

_START_UP = 8  # seconds until a stage begins to work
_MEASURED_WEIGHTS = 12 * 6 * 384**2  # of the encoder's layers, without embeddings
_MEASURED_CORES = 2
_MEGABYTES_PER_SECOND = {"train_vocabulary": 4.0, "find_contexts": 15.0}  # one process
_RATES = {  # a second, without and with bf16
    "distill": (160.0, 380.0),  # contexts
    "pretrain": (2600.0, 8300.0),  # tokens
    "finetune_ner": (55.0, 95.0),  # training sentences; the evaluation of each epoch is included
}
_BYTES_PER_TOKEN = 5.0
_NEW_TOKENS_SHARE = 0.6  # of a new vocabulary, beside a general one
_CONTEXTS_FOUND_SHARE = 0.75  # of those asked for; many tokens are rare
_CONTEXTS_PER_MEGABYTE = 1e4  # at most, in a small corpus
_BYTES_PER_CONTEXT = 500.0  # a sentence and its places, in the parts of the search and in the result
_PHASES = 4
_BLURB_TASKS = 5  # that `all` stands for
_UNPACKED = {".gz": 3.0, ".parquet": 1.8}  # bytes of text for a byte of a file


def megabytes(corpus: list[str], limit: float | None = None) -> float | None:
    """Return the size of a corpus in 10^6 bytes of text, roughly; None if it isn't made of local files."""
    total = 0.0
    for name in corpus:
        path = Path(name)
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else []
        files = files or [one for one in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor or ".")))]
        if not files:
            return None
        total += sum(file.stat().st_size * _UNPACKED.get(file.suffix, 1.0) for file in files) / 1e6
    return min(total, limit) if limit else total


def encoder_weights(folder: str | None) -> int:
    """Return the number of weights in the layers of a BERT; that of BERT base if the model isn't local."""
    layers, width = _shape(folder)
    return 12 * layers * width**2


def megabytes_written(stage: str, options: Mapping[str, Any], text: float | None, base: str | None) -> float:
    """Estimate how much a stage writes, in 10^6 bytes. The cache of `datasets` isn't included.

    Args:
        stage: name of its section in a recipe.
        options: of the stage, and `size` and `per_token` of vocabulary and contexts.
        text: size of the corpus in 10^6 bytes.
        base: folder of the base model, or its name on the Hub.
    """
    model: float = 4e-6 * (encoder_weights(base) + options["size"] * _shape(base)[1])
    if stage == "find_contexts":
        return 1e-6 * _BYTES_PER_CONTEXT * _contexts(options, text)
    models = 0.0
    if stage == "distill":
        models = 1
    if stage == "pretrain":
        # A checkpoint has two moments of each weight, too; a new one is written beside the old ones.
        models = (len(options["phases"] or []) or _PHASES) + 3 * ((options["save_total_limit"] or 1) + 1)
    if stage == "finetune_ner":
        models = 1 + heads(options)
    return model * models


def seconds(
    stage: str, options: Mapping[str, Any], text: float | None, weights: int, cores: int | None = None
) -> float | None:
    """Estimate the wall time of a stage.

    Args:
        stage: name of its section in a recipe.
        options: of the stage.
        text: size of the corpus in 10^6 bytes.
        weights: in the layers of the encoder.
        cores: of the machine.

    Returns:
        Seconds, or None if the size of the work isn't known.
    """
    speed = _MEASURED_WEIGHTS / weights * (cores or os.cpu_count() or 1) / _MEASURED_CORES
    work = _work(stage, options, text)
    if work is None:
        return None
    if stage in _MEGABYTES_PER_SECOND:
        processes = min(options.get("num_proc") or 1, cores or os.cpu_count() or 1) if stage == "find_contexts" else 1
        return _START_UP + work / _MEGABYTES_PER_SECOND[stage] / processes
    rates = _RATES.get(stage)
    return _START_UP + (work / rates[bool(options.get("bf16"))] / speed if rates else 0.0)


def _work(stage: str, options: Mapping[str, Any], text: float | None) -> float | None:
    """Return the amount of work: megabytes, contexts, tokens or sentences."""
    if stage in _MEGABYTES_PER_SECOND:
        return text
    if stage == "distill":
        return _contexts(options, text)
    if stage == "pretrain":
        steps: int = options.get("max_steps") or -1
        if steps > 0:
            return float(steps * options["max_length"] * options["per_device_train_batch_size"])
        return None if text is None else 1e6 * text / _BYTES_PER_TOKEN * float(options["num_train_epochs"])
    if stage == "finetune_ner":
        sentences = _training_sentences(options)
        epochs: float = options["num_train_epochs"] * len(options["models"]) * (_seeds(options) + _searched(options))
        return None if sentences is None else sentences * epochs
    return 0.0


def _contexts(options: Mapping[str, Any], text: float | None) -> float:
    contexts: float = _NEW_TOKENS_SHARE * options["size"] * options["per_token"] * _CONTEXTS_FOUND_SHARE
    return contexts if text is None else min(contexts, _CONTEXTS_PER_MEGABYTE * text)


def duration(estimate: float | None) -> str:
    """Return an estimate in words."""
    if estimate is None:
        return "unknown"
    if estimate < 90:
        return f"about {max(10, round(estimate, -1)):.0f} s"
    minutes = estimate / 60
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.1f} h"


def seconds_left(trainings: Sequence[PlannedTraining], *, bf16: bool, at_once: int = 1) -> float:
    """Estimate how long the trainings that aren't finished take.

    The estimate is made from finished trainings of the same encoder, or from those of other encoders, scaled by the
    sizes of the encoders; if nothing is finished, from the rate that `seconds` uses.
    """
    costs: dict[str, list[float]] = {}  # seconds for a sentence, by encoder
    for one in trainings:
        if one.finished and one.seconds:
            costs.setdefault(one.encoder, []).append(one.seconds / one.work)
    sizes = {encoder: encoder_weights(encoder) for encoder in {one.encoder for one in trainings}}
    if costs:
        per_weight = statistics.fmean(cost / sizes[encoder] for encoder, found in costs.items() for cost in found)
    else:
        per_weight = 1 / _RATES["finetune_ner"][bf16] / _MEASURED_WEIGHTS * _MEASURED_CORES / (os.cpu_count() or 1)
    rates = {
        encoder: statistics.fmean(costs[encoder]) if encoder in costs else per_weight * sizes[encoder]
        for encoder in sizes
    }
    left = [one for one in trainings if not one.finished]
    spent = sum(one.work * rates[one.encoder] for one in left)
    # The rate that `seconds` uses is that of all cores, however many heads share them.
    return spent / max(1, min(at_once, len(left))) if costs else spent


def _shape(folder: str | None) -> tuple[int, int]:
    """Return the number of layers of a BERT and the size of its states; those of BERT base if it isn't local."""
    path = Path(folder or "") / "config.json"
    config: dict[str, Any] = read_json(path) if folder and path.is_file() else {}
    return int(config.get("num_hidden_layers", 12)), int(config.get("hidden_size", 768))


def heads(options: Mapping[str, Any]) -> int:
    """Return how many heads fine-tuning trains: one for each task, model and seed, or a joint one for all tasks."""
    tasks = 1 if options.get("joint") else sum(_BLURB_TASKS if task == "all" else 1 for task in options["tasks"])
    return max(1, tasks * len(options["models"]) * _seeds(options))


def _seeds(options: Mapping[str, Any]) -> int:
    seeds = options["seeds"] if isinstance(options["seeds"], list) else [options["seeds"]]
    return int(seeds[0]) if len(seeds) == 1 else len(set(seeds))


def _searched(options: Mapping[str, Any]) -> int:
    """Return how many trainings the search of the settings adds for each task and model."""
    grid = (options.get(name) for name in GRID)
    return math.prod(len(values) if isinstance(values, list) else 1 for values in grid) - 1


def _training_sentences(options: Mapping[str, Any]) -> int | None:
    """Count the sentences of the training sets that are local files."""
    from bioptimus_hf.corpus.ner_files import split_file  # loads all formats, which the help of `run` doesn't need

    folder = Path(str(options.get("ner_data") or ""))
    own = split_file(folder, "train")
    inner = sorted(one for one in folder.glob("*") if one.is_dir())
    files = [own] if own else [file for one in inner if (file := split_file(one, "train"))]
    wanted = {str(task).replace("-", "").lower() for task in options["tasks"]}
    chosen = [
        file
        for file in files
        if len(files) == 1 or "all" in wanted or file.parent.name.replace("-", "").lower() in wanted
    ]
    if not chosen:
        return None
    return sum(file.read_bytes().count(b"\n\n") for file in chosen)
