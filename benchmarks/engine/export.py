"""What `spade export` costs: memory over that of its imports, and seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.report import Table
from benchmarks.engine.inputs import timed_run, write_config
from benchmarks.engine.options import Options
from benchmarks.engine.ranks import run
from pretrain.checkpoints.checkpoint_format import latest_complete, read_manifest
from pretrain.exporting.weights import WEIGHT_TYPES, CheckpointWeights

_MEGABYTE = 10**6
_MEASURED = """
import json, re, sys, time
from pathlib import Path
import spade_model.huggingface
from pretrain.exporting.export import export

def peak_bytes():
    # Not `ru_maxrss`, which a process inherits from the one that has started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024

imports, began = peak_bytes(), time.perf_counter()
export(Path(sys.argv[1]), Path(sys.argv[2]), dtype=sys.argv[3])
seconds = time.perf_counter() - began
print(json.dumps({"imports": imports, "peak": peak_bytes(), "seconds": seconds}))
"""


def export_tables(options: Options) -> list[Table]:
    """Export one checkpoint in each type, each time in a process that does nothing else."""
    settings = timed_run(options, "export") | {"model": options.export_model}
    config = write_config(options, settings)
    run(config, "train.max_steps=1", processes=options.processes)
    checkpoint = latest_complete(options.folder / "runs" / "export")
    numbers = CheckpointWeights(checkpoint, "float32").parameters
    rows = []
    for dtype in WEIGHT_TYPES:
        found = _measure(checkpoint, options.folder / f"exported-{dtype}", dtype)
        rows.append(
            {
                "stored as": dtype,
                "float32 weights MB": 4 * numbers / _MEGABYTE,
                "imports MB": found["imports"] / _MEGABYTE,
                "peak MB": found["peak"] / _MEGABYTE,
                "copies": (found["peak"] - found["imports"]) / (4 * numbers),
                "s": found["seconds"],
            }
        )
    ranks = read_manifest(checkpoint)["world_size"]
    note = (
        f"A checkpoint of {ranks} ranks. Copies: memory over that of the imports, in float32 "
        "weights. Seconds include loading transformers and both comparisons."
    )
    return [Table("export", "Exporting a checkpoint", rows, (note,))]


def _measure(checkpoint: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Peak memory and seconds of one export.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-c", _MEASURED, str(checkpoint), str(out), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the export failed: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
