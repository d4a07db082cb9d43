"""One measurement in a process of its own, whose peak memory nothing else has touched.

    python -m benchmarks.model.cell '{"kind": "encoder", …}'

prints JSON. `run_cell` starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent.parent
_WARM_UP_TOKENS = 256


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Run a cell in a fresh process.

    Raises:
        RuntimeError: It failed; the message is its last line.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.model.cell", json.dumps(cell)],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"cell {cell} ended with {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _encoder(cell: dict[str, Any]) -> Callable[[], object]:
    from benchmarks.model.encoders import Encoder, Sizes, make_ids

    sizes = Sizes(**cell["sizes"])
    checkpointing = cell["checkpointing"]
    encoder = Encoder(cell["model"], sizes, cell["layers"], cell["precision"], checkpointing)
    ids = make_ids(sizes, cell["length"], cell["tokens"])
    short = make_ids(sizes, min(cell["length"], _WARM_UP_TOKENS), 1)
    encoder.run(cell["pass"], short)  # thread pools and compiled kernels of the libraries
    return lambda: encoder.run(cell["pass"], ids)


def _kernel(cell: dict[str, Any]) -> Callable[[], object]:
    from benchmarks.model.kernel import kernel_function, make_mixer

    mixer = make_mixer(cell["features"], cell["state_dim"])
    function = kernel_function(mixer, cell["method"], cell["pass"])
    function(min(cell["length"], _WARM_UP_TOKENS))
    return lambda: function(cell["length"])


def main() -> None:
    """Measure the cell of the command line."""
    import torch

    from benchmarks.common.machine import PeakMemory
    from benchmarks.model.machine import measure

    cell = json.loads(sys.argv[1])
    torch.set_num_threads(cell["threads"])
    function = {"encoder": _encoder, "kernel": _kernel}[cell["kind"]](cell)
    with PeakMemory() as peak:
        taken = measure(function)
    print(json.dumps({"extra_bytes": peak.extra_bytes, "seconds": taken.wall}))


if __name__ == "__main__":
    main()
