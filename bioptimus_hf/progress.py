"""Show how far a long step is: a bar on a terminal or in a notebook, and elsewhere a line a minute in the log."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60.0
_PERIODS = (("second", 1), ("minute", 60), ("hour", 3600))


def bars_are_drawn() -> bool:
    """Return whether progress is shown as a bar.

    It is if stderr is a terminal, or in a notebook, unless the environment variable TQDM_DISABLE is set. Of the
    processes of one launch, only the first draws bars.
    """
    if os.environ.get("TQDM_DISABLE", "0") not in ("", "0") or not _is_first_process():
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(iterable: Iterable[Any] | None = None, *, desc: str, **options: Any) -> Any:
    """Return a bar of tqdm, or `ProgressLines` where no bars are drawn.

    Args:
        iterable: what is iterated over; without it, the caller calls `update`.
        desc: what is being done, for example "Reading contexts".
        options: for tqdm. `unit` begins with a blank and is a plural, or is "B" for bytes.
    """
    if bars_are_drawn():
        from tqdm.auto import tqdm  # takes longer to import than the rest of `bioptimus --help`

        return tqdm(iterable, desc=desc, dynamic_ncols=True, disable=False, **options)
    return ProgressLines(iterable, desc=desc, **options)


@contextmanager
def progress_of_datasets() -> Iterator[None]:
    """Make `Dataset.map` show its progress as this package does, for the time of a `with` block.

    `datasets` would redraw its bar in a log file ten times a second, and can only be told to say nothing at all.
    """
    if bars_are_drawn():
        yield
        return
    from datasets import arrow_dataset  # takes long to import

    its_own, arrow_dataset.hf_tqdm = arrow_dataset.hf_tqdm, ProgressLines
    try:
        yield
    finally:
        arrow_dataset.hf_tqdm = its_own


class ProgressLines:
    """Log a line a minute that says how far a step is; a step of less than a minute is not mentioned.

    Has the part of tqdm's interface that is used here and in `datasets`.

    Args:
        iterable: what is iterated over; without it, the caller calls `update`.
        desc: what is being done.
        total: number of units; by default the length of `iterable`, if it has one.
        unit: a plural that begins with a blank, or "B" for bytes.
        initial: number of units that were done before.
        clock: returns the time in seconds.
        options: of tqdm, which only concern how a bar looks.

    Attributes:
        n: number of units that are done.
        total: number of units, or None.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        desc: str,
        total: int | None = None,
        unit: str = " items",
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self.n = initial
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._iterable = iterable
        self._desc = desc
        self._unit = " MB" if unit == "B" else unit
        self._scale = 1e6 if unit == "B" else 1.0
        self._initial = initial
        self._clock = clock
        self._postfix = ""
        self._mentioned = False
        self._began = self._last_line = clock()

    def __iter__(self) -> Iterator[Any]:
        """Yield the items, and count them."""
        with self:
            for item in self._iterable or ():
                yield item
                self.update()

    def __enter__(self) -> ProgressLines:
        """Return the object itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close, unless there was an error."""
        if error[0] is None:
            self.close()

    def update(self, n: int = 1) -> None:
        """Add to the number of units that are done, and log a line if the last one is a minute old."""
        self.n += n
        if self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = self._clock()
            self._mentioned = True
            self._log(self._state())

    def set_description(self, desc: str, refresh: bool = True) -> None:
        """Change what is being done."""
        self._desc = desc.removesuffix(": ")

    def set_postfix_str(self, postfix: str, refresh: bool = True) -> None:
        """Set what the next line says in addition."""
        self._postfix = postfix

    def close(self) -> None:
        """Log how long the step took, if it was mentioned before, and where it stopped, if it isn't done."""
        if self._mentioned:
            self._mentioned = False
            took = _clock_time(self._clock() - self._began)
            done = not self.total or self.n >= self.total
            self._log(f"finished in {took}" if done else f"stopped after {took} at {self._amount_done()}")

    def _log(self, state: str) -> None:
        if _is_first_process():
            logger.info("%s: %s", self._desc, state)

    def _state(self) -> str:
        """Return how far the step is, its speed, and the time that remains."""
        parts = [self._amount_done()]
        per_second = (self.n - self._initial) / (self._clock() - self._began)
        if per_second > 0:
            period, seconds = next(one for one in _PERIODS if per_second * one[1] >= self._scale or one == _PERIODS[-1])
            speed = self._amount(per_second * seconds)
            parts.append(f"{speed}{' MB' if self._scale > 1 else ''} per {period}")
            if self.total:
                parts.append(f"{_clock_time((self.total - self.n) / per_second)} left")
        return ", ".join([*parts, *([self._postfix] if self._postfix else [])])

    def _amount_done(self) -> str:
        if not self.total:
            return f"{self._amount(self.n)}{self._unit}"
        return f"{self._amount(self.n)} of {self._amount(self.total)}{self._unit} ({self.n / self.total:.0%})"

    def _amount(self, units: float) -> str:
        scaled = units / self._scale
        return f"{scaled:,.1f}" if scaled < 100 and scaled != int(scaled) else f"{scaled:,.0f}"


def _clock_time(seconds: float) -> str:
    """Return a duration as tqdm writes it, such as `1:02:03` or `02:03`."""
    from tqdm import tqdm

    return str(tqdm.format_interval(seconds))


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
