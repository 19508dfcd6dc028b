"""Measure the memory of a benchmark and of its worker processes."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil


class MemoryWatch:
    """Records the peak memory of this process and of its largest child, while the context is open.

    Memory-mapped files don't count, because the system can drop them at any time.

    Attributes:
        peak: in MB, under "process" and "largest child".
    """

    def __init__(self) -> None:
        self.peak = {"process": 0.0, "largest child": 0.0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._ended.wait(0.05):
            children = [anonymous_mb(child.pid) for child in process.children()]
            self.peak["process"] = max(self.peak["process"], anonymous_mb(process.pid))
            self.peak["largest child"] = max(self.peak["largest child"], *children, 0.0)


def anonymous_mb(pid: int) -> float:
    """Return the resident memory of a process without memory-mapped files, in MB; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 1024
