"""The machine that is measured."""

from __future__ import annotations

import ctypes
import gc
import platform
import threading
from pathlib import Path

import psutil

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cpu_name() -> str:
    """Return what the processor calls itself."""
    names = Path("/proc/cpuinfo")
    if names.is_file():
        for line in names.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class PeakMemory:
    """Peak resident memory above what was resident on entering, in bytes.

    Linux counts the peak and can be told to start anew; elsewhere a thread looks every millisecond.
    """

    extra_bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # freed memory would otherwise be used again unseen
        self._before = psutil.Process().memory_info().rss
        self._highest, self._done, self._watch = self._before, threading.Event(), None
        try:
            _CLEAR.write_text("5")
        except OSError:
            self._watch = threading.Thread(target=self._look, daemon=True)
            self._watch.start()
        return self

    def _look(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.001):
            self._highest = max(self._highest, process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self._watch is None:
            text = _STATUS.read_text(encoding="ascii", errors="replace")
            line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
            self._highest = 1024 * int(line.split()[1])
        else:
            self._done.set()
            self._watch.join()
        self.extra_bytes = max(0, self._highest - self._before)
