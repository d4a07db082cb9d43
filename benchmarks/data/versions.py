"""Where the numbers are from: the machine and the versions of everything compared."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import psutil

from benchmarks.common.machine import cpu_name

_DISTRIBUTIONS = (
    *("torch", "numpy", "webdataset", "mosaicml-streaming", "litdata", "megatron-energon"),
    *("torchdata", "xxhash", "sentencepiece"),
)


def facts_of_this_machine() -> dict[str, Any]:
    """Return names and values."""
    facts = {
        "CPU": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory GiB": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    }
    for name in _DISTRIBUTIONS:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts
