"""Memory of a benchmark and of its worker processes."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil


class MemoryWatch:
    """Looks at the memory of this process and its children that is not a mapped file, which the system can drop."""

    def __init__(self) -> None:
        self.peak = {"process": 0.0, "largest child": 0.0}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.05):
            children = [anonymous_mb(child.pid) for child in me.children()]
            self.peak["process"] = max(self.peak["process"], anonymous_mb(me.pid))
            self.peak["largest child"] = max(self.peak["largest child"], *children, 0.0)


def anonymous_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0.0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 1024
