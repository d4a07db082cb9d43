"""Measure how long the launchers take, over real processes on hosts raised on this machine.

    python -m benchmarks.launch                          all of them: about a quarter of an hour
    python -m benchmarks.launch local slurm --rounds 3 --out results

Raising hosts takes root and the programs of `tests/cluster/machines/packages.sh`; without these
only `local` is measured. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from benchmarks.common.command import parse_questions, question_parser
from benchmarks.common.machine import cpu_name
from benchmarks.common.report import Table, show, write
from benchmarks.engine.inputs import timed_run, write_config
from benchmarks.engine.options import SMALL_MODEL, Options
from benchmarks.launch.commands import PLACES
from benchmarks.launch.machines import Machines, raised_machines
from benchmarks.launch.measure import Timing, time_run

TITLE = "Launchers"
_ROUNDS = 5
_EVERY_STEPS = 10
_NOTES = (
    "First step: from the command, for Slurm from submitting, to the step's line in the metrics.",
    f"Back: from SIGKILL of a rank to new ranks' first step; {_EVERY_STEPS} steps a checkpoint.",
    "Hosts, Slurm and network are namespaces and daemons of the one machine; Kubernetes is not.",
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = question_parser("benchmarks.launch", description, PLACES)
    parser.add_argument("--folder", type=Path, help="for data and runs; by default a new one")
    parser.add_argument("--rounds", type=int, help=f"runs of each launcher ({_ROUNDS})")
    return parse_questions(parser, arguments, PLACES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    chosen = parse(arguments)
    rounds = chosen.rounds or (1 if chosen.smoke else _ROUNDS)
    folder = chosen.folder or Path(mkdtemp(prefix="spade-benchmarks-launch-"))
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }
    print(", ".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    rows, notes = [], list(_NOTES)
    with raised_machines() as machines:
        for launcher in chosen.questions or PLACES:
            if launcher in machines.why_not:
                notes.append(f"{launcher} was not measured: {machines.why_not[launcher]}.")
                continue
            print(f"{launcher}, {rounds} rounds", flush=True)
            rows.append(_row(launcher, machines, folder, rounds))
    table = Table("launch", "Seconds to the first step, and back to training", rows, tuple(notes))
    show(table)
    if chosen.out is not None:
        write(chosen.out, TITLE, facts, [table])
        print(f"written to {chosen.out}")


def _row(launcher: str, machines: Machines, folder: Path, rounds: int) -> dict[str, Any]:
    timings = [
        _timing(f"{launcher}-{number}", launcher, machines, folder) for number in range(rounds)
    ]
    first = [timing.first_step_seconds for timing in timings]
    back = [timing.back_seconds for timing in timings]
    return {
        "launcher": launcher,
        "ranks": PLACES[launcher],
        "first step, median s": statistics.median(first),
        "longest s": max(first),
        "back, median s": statistics.median(back),
        "longest back s": max(back),
        "rounds": len(timings),
    }


def _timing(name: str, launcher: str, machines: Machines, folder: Path) -> Timing:
    sizes = Options(folder=folder, model=SMALL_MODEL, input_length_tokens=64)
    settings = timed_run(sizes, name, checkpoint={"every_steps": _EVERY_STEPS, "keep_last": 2})
    config = write_config(sizes, settings)
    run = folder / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    try:
        return time_run(launcher, config, run, machines.start)
    finally:
        machines.restore()


if __name__ == "__main__":
    main()
