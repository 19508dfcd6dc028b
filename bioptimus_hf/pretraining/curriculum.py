"""The phases of a masking curriculum, laid out over the optimizer steps of a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bioptimus_hf.artifacts import read_yaml
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.masking import BioptimusDataCollator, MaskingStrategy

logger = logging.getLogger(__name__)
_VERSION = re.compile(r"\w[\w.-]*")  # names a folder


@dataclass(frozen=True)
class Phase:
    """A part of pre-training, at whose end a version is exported.

    Attributes:
        version: of the model that the phase makes ("0.1" is exported as `v0.1`).
        masking: the strategy of the phase.
        share: of the run's optimizer steps; the shares of a curriculum add up to 1.
        last_rate: masking rate that the last step reaches, in even steps from that of `masking`. None: it stays.

    Raises:
        InputError: a rate or share that is none, or a version that is not made of letters, digits, dots and hyphens.
    """

    version: str
    masking: MaskingStrategy
    share: float = 0.25
    last_rate: float | None = None

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.version):
            raise InputError(f"a version is made of letters, digits, dots and hyphens, not {self.version!r}")
        if not self.share > 0:
            raise InputError(f"the share of a phase is above 0, not {self.share}")
        if self.last_rate is not None:
            replace(self.masking, rate=self.last_rate)  # which checks it


# The README of the published model (rttl-ai/BIOptimus) names units, rates and corruption; the equal shares are ours.
BIOPTIMUS_CURRICULUM: tuple[Phase, ...] = (
    Phase("0.1", MaskingStrategy("token", 0.15, corrupt=True)),
    Phase("0.2", MaskingStrategy("word", 0.15, corrupt=True)),
    Phase("0.3", MaskingStrategy("word", 0.20, corrupt=True)),
    Phase("0.4", MaskingStrategy("word", 0.20, corrupt=False)),
)


def select_phases(curriculum: Sequence[Phase], versions: Sequence[str]) -> tuple[Phase, ...]:
    """Return the phases of these versions, in the curriculum's order, with shares that add up to 1 again.

    Raises:
        InputError: a version that the curriculum does not have; or the shares of all phases do not add up to 1, or a
            version stands twice.
    """
    _check(curriculum)
    known = [phase.version for phase in curriculum]
    for version in versions:
        if version not in known:
            raise InputError(f"the curriculum has no phase {version}: it has {', '.join(known)}")
    chosen = [phase for phase in curriculum if phase.version in versions]
    total = sum(phase.share for phase in chosen)
    return tuple(replace(phase, share=phase.share / total) for phase in chosen)


def phase_ends(curriculum: Sequence[Phase], steps: int) -> list[int]:
    """Return the optimizer step after which each phase ends, the last one being `steps`.

    Raises:
        InputError: the shares do not add up to 1, a version stands twice, or a phase would have no step.
    """
    _check(curriculum)
    ends, reached = [], 0.0
    for phase in curriculum:
        reached += phase.share
        ends.append(round(reached * steps))
    ends[-1:] = [steps]  # shares may add up to a little less or more than 1
    if any(end <= before for before, end in zip([0, *ends], ends, strict=False)):
        raise InputError(f"{steps} optimizer steps leave a phase of {len(curriculum)} without any: train for longer")
    return ends


def _check(curriculum: Sequence[Phase]) -> None:
    total = sum(phase.share for phase in curriculum)
    if abs(total - 1) > 1e-6:
        raise InputError(f"the shares of a curriculum's phases must add up to 1, not {total:g}")
    versions = [phase.version for phase in curriculum]
    if len(set(versions)) < len(versions):
        raise InputError(f"each phase of a curriculum needs a version of its own, not {', '.join(versions)}")


def follow_curriculum(
    collator: BioptimusDataCollator,
    curriculum: Sequence[Phase] = BIOPTIMUS_CURRICULUM,
    *,
    steps: int,
    batch_size: int,
    accumulation: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> dict[int, Phase]:
    """Lay a curriculum out over the optimizer steps of a run, in a loop without a `Trainer`.

    The loop says `collator.begin(micro_batch)` before each iterator over its data, with the number of micro-batches
    that this process has had so far in the run; see scripts/examples/accelerate_loop.py.

    Args:
        steps: optimizer steps of the whole run.
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of an optimizer step, on each process.
        rank: of this process, among `world_size`.

    Returns:
        The phase that ends with each step (counted from 1) with which one ends.

    Raises:
        InputError: as for `phase_ends`.
    """
    ends = phase_ends(curriculum, steps)
    collator.follow(
        [0, *ends],
        [phase.masking for phase in curriculum],
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        accumulation=accumulation,
        last_rates=[phase.last_rate or phase.masking.rate for phase in curriculum],
    )
    return dict(zip(ends, curriculum, strict=True))


_PHASE_KEYS: dict[str, Any] = {
    "version": (str, int, float),
    "unit": str,
    "rate": (int, float),
    "corrupt": bool,
    "share": (int, float),
    "last_rate": (int, float),
}


def read_curriculum(path: str | Path) -> tuple[Phase, ...]:
    """Read a curriculum: a YAML list of phases: `version`, `unit`, `rate`, `corrupt`, `share`, and maybe `last_rate`.

    Raises:
        InputError: it cannot be read, or a phase is not as `Phase` and `MaskingStrategy` say (which one).
    """
    rows = read_yaml(path)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} must be a list of phases")
    phases = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, phase {number}: a mapping with {', '.join(_PHASE_KEYS)} is wanted")
        wrong = sorted(set(row) - _PHASE_KEYS.keys()) or sorted(set(_PHASE_KEYS) - {"last_rate"} - set(row))
        if wrong:
            raise InputError(f"{path}, phase {number}: {wrong[0]} is unknown or missing")
        for key, value in row.items():  # true is a number to Python
            kinds = _PHASE_KEYS[key]
            if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
                raise InputError(f"{path}, phase {number}: {key} cannot be {value!r}")
        try:
            masking = MaskingStrategy(row["unit"], row["rate"], row["corrupt"])
            phases.append(Phase(str(row["version"]), masking, row["share"], row.get("last_rate")))
        except InputError as error:
            raise InputError(f"{path}, phase {number}: {error}") from error
    return tuple(phases)
