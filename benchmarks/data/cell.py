"""One measurement in a process of its own, which nothing else has touched.

    python -m benchmarks.data.cell '{"kind": "reading", …}'

prints JSON. `run_cell` starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent.parent
_LONGEST_SECONDS = 300
_MARK = "RESULT "


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Run a cell in a fresh process.

    Returns:
        What it found, or {"skipped": reason}.
    """
    command = [sys.executable, "-m", "benchmarks.data.cell", json.dumps(cell)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=_ROOT,
            check=False,
            timeout=_LONGEST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {_LONGEST_SECONDS} s"}
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"skipped": f"ended with {done.returncode}: {last[:200]}"}


def main() -> None:
    """Measure the cell of the command line."""
    cell = json.loads(sys.argv[1])
    module = import_module(f"benchmarks.data.{cell['kind']}")
    try:
        found = module.measure_cell(cell)
    except ImportError as error:
        found = {"skipped": f"not installed: {error}"}
    print(_MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
