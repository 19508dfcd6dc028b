"""Choose the engine that is fastest on this machine, by a short trial on the texts that are to be annotated."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from typing import Any, Protocol, get_args

from bioptimus_hf.annotation.options import EngineName, EngineOption, Precision
from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.errors import InputError, format_error

logger = logging.getLogger(__name__)

TOLERANCE = 0.97
"""F1 of entities, measured against those in full precision, that an engine needs to count as `fast`."""
MARGIN = 1.05
"""How many times as fast as the first candidate another one has to be."""

_TEXTS = 16  # two batches of abstracts: a trial takes a few seconds on two cores
_CHARACTERS = 30_000
_LONGEST = 5_000  # characters; the rest of a long text would only take longer
_ROUNDS = 2  # the faster one counts, since other processes may disturb either
_PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}


@dataclass(frozen=True)
class EngineChoice:
    """An engine and how exactly it computes; see `load_engine`."""

    engine: EngineName
    precision: Precision

    def __str__(self) -> str:
        fast = "int8" if self.engine == "onnx" else "bf16"
        return f"{self.engine} in {'fp32' if self.precision == 'exact' else fast}"


CHOICES = [EngineChoice(name, one) for one in get_args(Precision) for name in get_args(EngineName)]
"""All of them, the exact ones first."""


class Finder(Protocol):
    """Finds entities, as `Annotator` does."""

    def annotate(self, texts: Iterable[str]) -> Iterator[list[Entity]]:
        """Yield the entities of each text."""
        ...


def candidates(precision: Precision, *, on_cpu: bool = True) -> list[EngineChoice]:
    """Return what can be chosen: first the one that the others are compared with, which is exact.

    The packages that are missing are logged, with how to install them.

    Args:
        precision: `exact` leaves out what computes with fewer bits.
        on_cpu: whether models run on a CPU. On a GPU there is only PyTorch.
    """
    engines = get_args(EngineName) if on_cpu else ("torch",)
    missing = [name for name in engines if any(find_spec(package) is None for package in _PACKAGES.get(name, ()))]
    if missing:
        logger.info(
            "engine auto leaves out %s, which can be faster: pip install 'bioptimus-hf[%s]'",
            *(" and ".join(missing), ",".join(missing)),
        )
    return [
        choice
        for choice in CHOICES
        if choice.engine in engines and choice.engine not in missing and choice.precision in ("exact", precision)
    ]


def choose_engine(
    load: Callable[[EngineChoice], Finder],
    choices: Sequence[EngineChoice],
    texts: Iterable[str] = (),
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> EngineChoice:
    """Return the fastest of several engines that finds the same entities as the first, and log why.

    Engines that compute in full precision have to find exactly the same entities, others the same but for `TOLERANCE`.
    The first one stays unless another is faster by `MARGIN`. What can't be loaded doesn't take part.

    Args:
        load: makes something that finds entities with an engine.
        choices: the engines; the first that can be loaded is what the others are compared with.
        texts: the beginnings of the first few are tried; without any, those of the sample.
        clock: returns the time in seconds.

    Raises:
        InputError: none of them can be loaded.
    """
    finders = _loaded(load, choices)
    first = next(iter(finders))
    if len(finders) == 1:
        logger.info("engine auto: %s, the only one that can run these models", first)
        return first
    texts = _beginnings(texts) or _beginnings(_sample())
    found = {choice: list(finder.annotate(texts)) for choice, finder in finders.items()}  # the first call is slow, too
    same = {choice: agreement(found[first], entities) for choice, entities in found.items()}
    accepted = [choice for choice in finders if same[choice] >= (1 if choice.precision == "exact" else TOLERANCE)]
    seconds = dict.fromkeys(accepted, float("inf"))
    for _ in range(_ROUNDS):
        for choice in accepted:
            started = clock()
            for _ in finders[choice].annotate(texts):
                pass
            seconds[choice] = min(seconds[choice], clock() - started)
    fastest = min(accepted, key=seconds.__getitem__)
    chosen = fastest if seconds[fastest] * MARGIN <= seconds[first] else first
    _report(chosen, first, same, {choice: seconds[first] / max(taken, 1e-9) for choice, taken in seconds.items()})
    return chosen


def _report(
    chosen: EngineChoice,
    first: EngineChoice,
    same: Mapping[EngineChoice, float],
    speeds: Mapping[EngineChoice, float],
) -> None:
    others = [
        f"{choice} {speeds[choice]:.2f} times" if choice in speeds else f"{choice} finds others ({100 * share:.1f} %)"
        for choice, share in same.items()
        if choice not in (chosen, first)
    ]
    logger.info(
        "engine auto: %s, %.2f times as fast as %s on this machine, with %.1f %% the same entities%s",
        *(chosen, speeds[chosen], first, 100 * same[chosen]),
        f" (tried: {', '.join(others)})" if others else "",
    )


def agreement(reference: Iterable[Iterable[Entity]], found: Iterable[Iterable[Entity]]) -> float:
    """Return the F1 of entities measured against others in the same texts: offsets and labels have to be the same."""
    pairs = [
        tuple({(entity.start, entity.end, entity.label) for entity in entities} for entities in both)
        for both in zip(reference, found, strict=True)
    ]
    total = sum(len(one) + len(other) for one, other in pairs)
    return 2 * sum(len(one & other) for one, other in pairs) / total if total else 1.0


def _loaded(load: Callable[[EngineChoice], Finder], choices: Sequence[EngineChoice]) -> dict[EngineChoice, Finder]:
    """Load what can be loaded. An error of the models themselves, which all engines share, is raised."""
    finders: dict[EngineChoice, Finder] = {}
    reasons: dict[str, EngineChoice] = {}
    last: InputError | None = None
    for choice in choices:
        try:
            finders[choice] = load(choice)
        except InputError as error:
            last = error
            reasons.setdefault(format_error(error), choice)
    if not finders:
        raise last or InputError("no engine to choose from")
    for reason, choice in reasons.items():
        logger.info("engine auto leaves out %s: %s", choice, reason)
    return finders


def _beginnings(texts: Iterable[str]) -> list[str]:
    kept: list[str] = []
    room = _CHARACTERS
    for text in texts:
        kept.append(text[: min(_LONGEST, room)])
        room -= len(kept[-1])
        if len(kept) == _TEXTS or room <= 0:
            break
    return kept


def _sample() -> list[str]:
    file = resources.files("bioptimus_hf") / "sample" / "corpus.txt"
    return file.read_text(encoding="utf-8").splitlines()


def record_engine(engine: EngineOption | None, precision: Precision | None, *, exported: bool) -> dict[str, Any]:
    """Return what the record of an annotated file says about the engine.

    Args:
        engine: as for `load_engine`, and so is `precision`.
        exported: whether all models are exported, so that onnxruntime with the precision of the file is the default.
    """
    plain = engine in (None, "onnx" if exported else "torch")
    if plain:  # records from before there was a choice have no other key
        return {"bf16": precision == "fast" and not exported}
    name = "torch" if engine is None or engine == "auto" else engine
    return {"bf16": False, "engine": str(EngineChoice(name, precision or "exact"))}


def recorded_engine(settings: Mapping[str, Any], *, exported: bool) -> EngineChoice | None:
    """Return the engine that a record tells of; None if it is the default for exported files."""
    if "engine" in settings:
        return next((choice for choice in CHOICES if str(choice) == settings["engine"]), None)
    return None if exported else EngineChoice("torch", "fast" if settings.get("bf16") else "exact")
