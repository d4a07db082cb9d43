"""Measure what the engine costs and what it survives, and print tables.

    python -m benchmarks.engine                     all of it: about an hour, most of it `kills`
    python -m benchmarks.engine overhead stall --out results
    python -m benchmarks.engine kills --stages 2 --precisions bf16 --kills 5

Without a question, all are asked. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.common.machine import cpu_name
from benchmarks.common.report import Table, show, write
from benchmarks.engine.options import SMOKE, Options

TITLE = "The engine"
QUESTIONS = {
    "overhead": "a step beside a bare loop of the same model, batch and optimizer",
    "stall": "how much longer a step takes while a checkpoint is written",
    "start": "seconds from the command to the first step, new and resumed",
    "resume": "the same early and late in a run",
    "kills": "runs killed at random moments, compared bit for bit with one left alone",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join(f"  {name:<12}{what}" for name, what in QUESTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="see below; default: all")
    parser.add_argument("--out", type=Path, help="folder for results.json and tables.md")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--folder", type=Path, help="for data and runs; by default a new one")
    parser.add_argument("--stages", type=int, nargs="+", choices=range(4), help="of ZeRO")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--overhead-rounds", type=int, help="pairs of steps")
    parser.add_argument("--start-rounds", type=int, help="in start and resume")
    parser.add_argument("--processes", type=int, help="ranks in start, resume and kills")
    parser.add_argument("--kills", type=int, help="of each run")
    parser.add_argument("--killed-run-steps", type=int)
    parser.add_argument("--seed", type=int, help="of the moments of the kills")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.questions) - set(QUESTIONS))
    if unknown:
        parser.error(f"unknown question {unknown[0]!r}; choose from {', '.join(QUESTIONS)}")
    return chosen


def make_options(chosen: argparse.Namespace) -> Options:
    """Return the options with what the command line says in place of defaults."""
    options = SMOKE if chosen.smoke else Options()
    given = {}
    for field in dataclasses.fields(options):
        value = getattr(chosen, field.name, None)
        if value is not None:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(options, **given)


def answer(question: str, options: Options) -> list[Table]:
    """Measure what one question asks."""
    module = import_module(f"benchmarks.engine.{question}")
    tables: Callable[[Options], list[Table]] = getattr(module, f"{question}_tables")
    return tables(options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    chosen = parse(arguments)
    options = make_options(chosen)
    options.folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, object] = {"processor": cpu_name(), "torch": torch.__version__}
    tables: list[Table] = []
    for question in chosen.questions or QUESTIONS:
        started = time.perf_counter()
        answers = answer(question, options)
        for table in answers:
            show(table)
        tables += answers
        facts[f"{question} took s"] = round(time.perf_counter() - started)
        if chosen.out is not None:
            write(chosen.out, TITLE, facts, tables)
    if chosen.out is not None:
        print(f"written to {chosen.out}")


if __name__ == "__main__":
    main()
