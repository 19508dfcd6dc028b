"""A uniform sample of at most k sentences for each token, out of any number of candidates, in whatever order they come.

Bottom-k sampling: every (token, sentence) has a priority, a hash of seed, sentence and token, and the k smallest of a
token win. Losers can be thrown out anywhere, early and in pieces, without changing who wins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, Features, Value

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
_HELD = 1 << 20  # candidates, before the losers are thrown out for the first time
_READ_AT_ONCE = 1_000_000
_LARGEST = np.uint64(2**64 - 1)

Candidates = npt.NDArray[Any]  # structured, of dtype CANDIDATE


class Reservoir:
    """Keeps, of each token, the candidates with the k smallest priorities; the same sentence counts once.

    Args:
        copies: keep all copies of a sentence in the lead, for the caller to choose one; or that of the least row alone.

    Attributes:
        limits: of each token, a priority above which nothing can win any more; shape (tokens,).
    """

    def __init__(self, tokens: int, per_token: int, *, copies: bool) -> None:
        self.limits = np.full(tokens, _LARGEST, dtype=np.uint64)
        self._per_token = per_token
        self._copies = copies
        self._kept: list[Candidates] = [np.empty(0, dtype=CANDIDATE)]
        self._room = _HELD

    def add(self, candidates: Candidates) -> None:
        """Take candidates in; cut back to the best when their number has doubled."""
        self._kept.append(candidates)
        if sum(map(len, self._kept)) > self._room:
            self._room = max(2 * len(self.best()), _HELD)

    def satisfied(self) -> int:
        """Return how many tokens had k sentences when `best` was last called."""
        return int((self.limits != _LARGEST).sum())

    def best(self) -> Candidates:
        """Return what is in the lead, by token, then priority, then row; copies of a sentence follow each other."""
        every = np.concatenate(self._kept)
        every = _take(every, _order(every))
        if not self._copies:
            every = _take(every, np.flatnonzero(starts_sentence(every)))
        token, priority = every["token"], every["priority"]
        new_token = np.diff(token, prepend=-1) != 0
        count = np.cumsum(starts_sentence(every))
        before = np.repeat(count[new_token] - 1, np.diff(np.append(np.flatnonzero(new_token), len(every))))
        rank = count - before  # of the sentence among those of its token, from 1
        last = rank == self._per_token
        self.limits[token[last]] = priority[last]
        self._kept = [_take(every, np.flatnonzero(rank <= self._per_token))]
        return self._kept[0]


def merge(candidates: Dataset | None, tokens: int, per_token: int, *, copies: bool) -> Candidates:
    """Keep the best candidates of each token; one batch after the other, whatever their number."""
    reservoir = Reservoir(tokens, per_token, copies=copies)
    if candidates is not None:
        for table in candidates.with_format("arrow").iter(batch_size=_READ_AT_ONCE):
            batch = from_table(table)
            reservoir.add(batch[batch["priority"] <= reservoir.limits[batch["token"]]])
    return reservoir.best()


def from_table(table: pa.Table) -> Candidates:
    """Take candidates out of a table that has their fields as columns."""
    candidates = np.empty(len(table), dtype=CANDIDATE)
    for name in FIELDS:
        candidates[name] = table[name].to_numpy()
    return candidates


def starts_sentence(candidates: Candidates) -> npt.NDArray[np.bool_]:
    """Say, of sorted candidates, which are of another token or sentence than the one before."""
    token, priority = candidates["token"], candidates["priority"]
    starts: npt.NDArray[np.bool_] = (np.diff(token, prepend=-1) != 0) | (np.diff(priority, prepend=_LARGEST) != 0)
    return starts


def _take(candidates: Candidates, places: npt.NDArray[np.int64]) -> Candidates:
    """Take candidates as rows of 64-bit values, which is several times faster than field by field."""
    rows = candidates.view(np.uint64).reshape(len(candidates), CANDIDATE.itemsize // 8)
    return rows.take(places, axis=0).reshape(-1).view(CANDIDATE)


def _order(candidates: Candidates) -> npt.NDArray[np.int64]:
    """Return the order by token, priority and row: one sort of 64-bit keys, which is far faster than one by fields."""
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
