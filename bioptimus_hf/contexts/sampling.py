"""Draw a uniform sample of at most k sentences per token from any number of candidates, in any order.

The method is bottom-k sampling: every pair of token and sentence has a priority, which is a hash of seed, sentence and
token, and the k smallest priorities of a token win. Candidates that can't win may be dropped anywhere and at any time
without changing the result.

Row numbers are the same for every way to run the search. The text is divided into parts, which are the units of work
(the whole data set, a range of documents, or a file), and the row number of a sentence is
`part << ROW_BITS | row within the part`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Features, Value

CANDIDATE = np.dtype([("token", "i4"), ("row", "i8"), ("priority", "u8"), ("start", "i4"), ("end", "i4")], align=True)
FIELDS = ("token", "row", "priority", "start", "end")
FEATURES = Features(
    {
        "token": Value("int32"),
        "row": Value("int64"),
        "priority": Value("uint64"),
        "start": Value("int32"),
        "end": Value("int32"),
    }
)
ROW_BITS = 40
_HELD = 1 << 20  # number of candidates at which losers are dropped for the first time
_LARGEST = np.uint64(2**64 - 1)

Candidates = npt.NDArray[Any]  # structured array with dtype CANDIDATE
Rows = npt.NDArray[np.int64]


class Reservoir:
    """Keep the candidates with the k smallest priorities of each token; identical sentences count once.

    Args:
        tokens: number of tokens.
        per_token: k, the maximum number of sentences per token.
        copies: keep all copies of a winning sentence and leave the choice to the caller, instead of keeping only the
            copy with the smallest row number.

    Attributes:
        limits: for each token, the priority above which a candidate can't win any more; shape (tokens,).
    """

    def __init__(self, tokens: int, per_token: int, *, copies: bool) -> None:
        self.limits = np.full(tokens, _LARGEST, dtype=np.uint64)
        self._per_token = per_token
        self._copies = copies
        self._kept: list[Candidates] = [np.empty(0, dtype=CANDIDATE)]
        self._room = _HELD

    def add(self, candidates: Candidates) -> Candidates:
        """Add candidates, and drop the losers whenever the number of candidates has doubled.

        Returns:
            The given candidates that could still win.
        """
        candidates = _take(candidates, np.flatnonzero(candidates["priority"] <= self.limits[candidates["token"]]))
        self._kept.append(candidates)
        if sum(map(len, self._kept)) > self._room:
            self._room = max(2 * len(self.best()), _HELD)
        return candidates

    def satisfied(self) -> int:
        """Return the number of tokens that had k sentences at the last call of `best`."""
        return int((self.limits != _LARGEST).sum())

    def best(self) -> Candidates:
        """Return the current sample, sorted by token, priority and row; duplicate sentences are adjacent."""
        candidates = np.concatenate(self._kept)
        candidates = _take(candidates, _order(candidates))
        if not self._copies:
            candidates = _take(candidates, np.flatnonzero(starts_sentence(candidates)))
        token, priority = candidates["token"], candidates["priority"]
        new_token = np.diff(token, prepend=-1) != 0
        count = np.cumsum(starts_sentence(candidates))
        before = np.repeat(count[new_token] - 1, np.diff(np.append(np.flatnonzero(new_token), len(candidates))))
        rank = count - before  # of the sentence among those of its token, from 1
        last = rank == self._per_token
        self.limits[token[last]] = priority[last]
        self._kept = [_take(candidates, np.flatnonzero(rank <= self._per_token))]
        return self._kept[0]


def first_row(part: int) -> int:
    """Return the row number of the first sentence of a part."""
    return part << ROW_BITS


def part_of(rows: Rows) -> Rows:
    """Return the part that each row is in."""
    return rows >> ROW_BITS


def positions(rows: Rows, sizes: Sequence[int]) -> Rows:
    """Convert row numbers to positions in the concatenated parts, given the number of sentences in each part."""
    starts = np.cumsum([0, *sizes])
    places: Rows = starts[part_of(rows)] + (rows & (first_row(1) - 1))
    return places


def from_table(table: pa.Table) -> Candidates:
    """Convert a table with a column for each field to an array of candidates."""
    candidates = np.empty(len(table), dtype=CANDIDATE)
    for name in FIELDS:
        candidates[name] = table[name].to_numpy()
    return candidates


def starts_sentence(candidates: Candidates) -> npt.NDArray[np.bool_]:
    """Mark the sorted candidates that differ in token or sentence from the candidate before them."""
    token, priority = candidates["token"], candidates["priority"]
    starts: npt.NDArray[np.bool_] = (np.diff(token, prepend=-1) != 0) | (np.diff(priority, prepend=_LARGEST) != 0)
    return starts


def _take(candidates: Candidates, places: Rows) -> Candidates:
    """Select candidates as rows of 64-bit values, which is several times faster than field by field."""
    rows = candidates.view(np.uint64).reshape(len(candidates), CANDIDATE.itemsize // 8)
    return rows.take(places, axis=0).reshape(-1).view(CANDIDATE)


def _order(candidates: Candidates) -> Rows:
    """Return the order by token, priority and row.

    A single sort of 64-bit keys is far faster than a sort by several fields. Ties are broken afterwards.
    """
    bits = np.uint64(int(candidates["token"].max(initial=0)).bit_length())
    keys = candidates["priority"] >> bits
    if bits:
        keys |= candidates["token"].astype(np.uint64) << (np.uint64(64) - bits)
    order = np.argsort(keys)
    keys = keys[order]
    same = np.zeros(len(keys) + 1, dtype=np.bool_)
    np.equal(keys[1:], keys[:-1], out=same[1:-1])
    tied = np.flatnonzero(same[1:] | same[:-1])  # copies of a sentence, and priorities that differ in their last bits
    among = candidates[order[tied]]
    order[tied] = order[tied][np.lexsort((among["row"], among["priority"], among["token"]))]
    return order
