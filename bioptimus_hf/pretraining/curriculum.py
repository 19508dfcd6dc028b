"""Define masking curricula and lay them out over the optimizer steps of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import read_yaml
from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.masking import (
    VALIDATION_MASKING,
    BatchLayout,
    BioptimusDataCollator,
    MaskingPlan,
    MaskingStrategy,
)
from bioptimus_hf.recipes import find

_VERSION = re.compile(r"\w[\w.-]*")  # names a folder


@check_call()
@dataclass(frozen=True)
class Phase:
    """A section of pre-training that ends with the export of a version.

    Attributes:
        version: version of the model at the end of the phase ("0.1" is exported as `v0.1`).
        masking: masking strategy of the phase.
        share: share of the run's optimizer steps; the shares of a curriculum add up to 1.
        last_rate: masking rate at the last step of the phase, reached in equal steps from the rate of `masking`. None
            keeps the rate constant.

    Raises:
        InputError: a rate or share is out of range, or the version has characters other than letters, digits, dots and
            hyphens.
    """

    version: str
    masking: MaskingStrategy
    share: float = 0.25
    last_rate: float | None = None

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.version):
            raise InputError(f"a version consists of letters, digits, dots and hyphens, not {self.version!r}")
        if not self.share > 0:
            raise InputError(f"the share of a phase must be above 0, not {self.share}")
        if self.last_rate is not None:
            replace(self.masking, rate=self.last_rate)  # checks the rate


# The README of the published model (rttl-ai/BIOptimus) gives units, rates and corruption; the equal shares are ours.
BIOPTIMUS_CURRICULUM: tuple[Phase, ...] = (
    Phase("0.1", MaskingStrategy("token", 0.15, corrupt=True)),
    Phase("0.2", MaskingStrategy("word", 0.15, corrupt=True)),
    Phase("0.3", MaskingStrategy("word", 0.20, corrupt=True)),
    Phase("0.4", MaskingStrategy("word", 0.20, corrupt=False)),
)


def select_phases(curriculum: Sequence[Phase], versions: Sequence[str]) -> tuple[Phase, ...]:
    """Return the phases of some versions, in the order of the curriculum, with shares rescaled to add up to 1.

    Raises:
        InputError: the curriculum has no such version; or the shares of all phases don't add up to 1, or a version
            occurs twice.
    """
    _check(curriculum)
    known = [phase.version for phase in curriculum]
    for version in versions:
        if version not in known:
            raise InputError(f"the curriculum has no phase {version}; it has {', '.join(known)}")
    chosen = [phase for phase in curriculum if phase.version in versions]
    total = sum(phase.share for phase in chosen)
    return tuple(replace(phase, share=phase.share / total) for phase in chosen)


def phase_ends(curriculum: Sequence[Phase], steps: int) -> list[int]:
    """Return the last optimizer step of each phase (counted from 1); the last phase ends at `steps`.

    Raises:
        InputError: the shares don't add up to 1, a version occurs twice, or a phase would have no step.
    """
    _check(curriculum)
    ends, reached = [], 0.0
    for phase in curriculum:
        reached += phase.share
        ends.append(round(reached * steps))
    ends[-1:] = [steps]  # shares may add up to slightly less or more than 1
    if any(end <= before for before, end in zip([0, *ends], ends, strict=False)):
        raise InputError(
            f"{steps} optimizer steps are too few for {len(curriculum)} phases, at least one would have none: train "
            f"for longer"
        )
    return ends


def _check(curriculum: Sequence[Phase]) -> None:
    total = sum(phase.share for phase in curriculum)
    if abs(total - 1) > 1e-6:
        raise InputError(f"the shares of a curriculum's phases must add up to 1, not {total:g}")
    versions = [phase.version for phase in curriculum]
    if len(set(versions)) < len(versions):
        raise InputError(f"the phases of a curriculum must have different versions, not {', '.join(versions)}")


class PhasePlan:
    """A curriculum laid out over the optimizer steps of one run, with the collator that masks its batches.

    `follow_curriculum` and `CurriculumCallback` are thin layers over this object. It knows at which step each phase
    ends, tells the collator where in the run the data begins, and says whether a checkpoint belongs to the same run.

    Args:
        collator: masks the batches of the run; creating the plan makes the collator follow it.
        curriculum: phases in order.
        steps: optimizer steps of the whole run.
        batches: how rows are distributed over micro-batches and processes.

    Attributes:
        curriculum: phases in order.
        steps: optimizer steps of the whole run.
        batches: how rows are distributed over micro-batches and processes.
        ends: the phase that ends with a step (counted from 1), for each such step.

    Raises:
        InputError: as for `phase_ends`.
    """

    def __init__(
        self, collator: BioptimusDataCollator, curriculum: Sequence[Phase], steps: int, batches: BatchLayout
    ) -> None:
        ends = phase_ends(curriculum, steps)
        self.curriculum = tuple(curriculum)
        self.steps = steps
        self.batches = batches
        self.ends: dict[int, Phase] = dict(zip(ends, self.curriculum, strict=True))
        self._collator = collator
        self._masking = MaskingPlan(
            edges=(0, *ends),
            strategies=tuple(phase.masking for phase in curriculum),
            batches=batches,
            last_rates=tuple(phase.last_rate or phase.masking.rate for phase in curriculum),
        )
        collator.follow(self._masking)

    def begin(self, step: int) -> None:
        """Announce that an iterator over the data is about to begin.

        Args:
            step: number of optimizer steps that are already done.
        """
        self._collator.begin(step * self._masking.batches.accumulation)

    def phase_of(self, step: int) -> Phase:
        """Return the phase of an optimizer step, counted from 1 (as `TrainerState.global_step` after the step)."""
        return next(phase for end, phase in self.ends.items() if step <= end)

    def masking_of(self, step: int) -> MaskingStrategy:
        """Return the masking strategy of an optimizer step, counted from 1."""
        return self._masking.strategy_at(step - 1)

    def identity(self) -> dict[str, Any]:
        """Return what must not change when a run is resumed, as JSON. A checkpoint keeps it for `check_same_run`."""
        return {
            "curriculum": [asdict(phase) for phase in self.curriculum],
            "seed": self._collator.seed,
            "max_steps": self.steps,
            "per_device_train_batch_size": self._masking.batches.batch_size,
            "gradient_accumulation_steps": self._masking.batches.accumulation,
            "world_size": self._masking.batches.world_size,
        }

    def facts_of(self, phase: Phase) -> dict[str, Any]:
        """Return what a version's record says about the phase that ends with the version, and about the run."""
        last_steps = {phase.version: end for end, phase in self.ends.items()}
        return {
            **asdict(phase),
            "last_step": last_steps[phase.version],
            "steps": self.steps,
            "curriculum": [asdict(phase) | {"last_step": end} for end, phase in self.ends.items()],
        }


def evaluation_masking(curriculum: Sequence[Phase]) -> MaskingStrategy:
    """Return how rows without labels are masked in an evaluation, the same in all phases.

    Only a curriculum that masks whole words needs a tokenizer that knows them.
    """
    words = any(phase.masking.unit == "word" for phase in curriculum)
    return VALIDATION_MASKING if words else replace(VALIDATION_MASKING, unit="token")


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Reject a checkpoint of another run.

    Args:
        before: what the checkpoint keeps, see `PhasePlan.identity`.
        now: the same of the run that would continue it.

    Raises:
        InputError: they differ; the message names each difference.
    """
    changed = [
        f"{name} ({before.get(name)} then, {value} now)" for name, value in now.items() if before.get(name) != value
    ]
    if changed:
        raise InputError(
            f"the checkpoint belongs to a run with other settings: {', '.join(changed)}. Training from here wouldn't "
            f"continue that run"
        )


@check_call()
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
    """Make a collator follow a curriculum in a training loop without a `Trainer`.

    In a loop with Accelerate, use a `CurriculumLoop` instead. Before each iterator over the data, the loop calls
    `collator.begin(micro_batch)` with the number of micro-batches that this process has consumed in the run so far.

    Args:
        collator: masks the batches of the loop.
        curriculum: phases in order.
        steps: optimizer steps of the whole run.
        batch_size: rows per micro-batch.
        accumulation: micro-batches per optimizer step, on each process.
        rank: index of this process among `world_size`.
        world_size: number of processes.

    Returns:
        The phase that ends with a step (counted from 1), for each such step.

    Raises:
        InputError: as for `phase_ends`.
    """
    return PhasePlan(collator, curriculum, steps, BatchLayout(batch_size, accumulation, rank, world_size)).ends


_PHASE_KEYS: dict[str, Any] = {
    "version": (str, int, float),
    "unit": str,
    "rate": (int, float),
    "corrupt": bool,
    "share": (int, float),
    "last_rate": (int, float),
}


def read_curriculum(path: str | Path) -> tuple[Phase, ...]:
    """Read a curriculum from a YAML list of phases.

    Each phase has `version`, `unit`, `rate`, `corrupt`, `share` and, optionally, `last_rate`.

    Args:
        path: of the file, or the name of a curriculum that comes with the package: `tokens` or `words_always`.

    Raises:
        InputError: the file can't be read, or a phase isn't valid; the message says which one, and why.
    """
    path = find(str(path), "curricula")
    rows = read_yaml(path)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} must be a list of phases")
    phases = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, phase {number}: must be a mapping with {', '.join(_PHASE_KEYS)}")
        wrong = sorted(set(row) - _PHASE_KEYS.keys()) or sorted(set(_PHASE_KEYS) - {"last_rate"} - set(row))
        if wrong:
            raise InputError(f"{path}, phase {number}: {wrong[0]} is unknown or missing")
        for key, value in row.items():  # Python counts True as a number
            kinds = _PHASE_KEYS[key]
            if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
                raise InputError(f"{path}, phase {number}: {key} can't be {value!r}")
        try:
            masking = MaskingStrategy(row["unit"], row["rate"], row["corrupt"])
            phases.append(Phase(str(row["version"]), masking, row["share"], row.get("last_rate")))
        except InputError as error:
            raise InputError(f"{path}, phase {number}: {error}") from error
    return tuple(phases)
