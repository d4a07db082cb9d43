"""Measure what the engine costs and what it survives, and print tables.

    python -m benchmarks.engine                     all of it: about an hour, most of it `kills`
    python -m benchmarks.engine overhead stall --out results
    python -m benchmarks.engine kills --stages 2 --precisions bf16 --kills 5

Without a question, all are asked. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.common.command import answer_all, parse_questions, question_parser, replaced
from benchmarks.common.machine import cpu_name
from benchmarks.common.report import Table
from benchmarks.engine.options import SMOKE, Options

TITLE = "The engine"
QUESTIONS = {
    "overhead": "a step beside a bare loop of the same model, batch and optimizer",
    "stall": "how much longer a step takes while a checkpoint is written",
    "start": "seconds from the command to the first step, new and resumed",
    "resume": "the same early and late in a run",
    "export": "memory and seconds of exporting a checkpoint",
    "kills": "runs killed at random moments, compared bit for bit with one left alone",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = question_parser("benchmarks.engine", description, QUESTIONS)
    parser.add_argument("--folder", type=Path, help="for data and runs; by default a new one")
    parser.add_argument("--stages", type=int, nargs="+", choices=range(4), help="of ZeRO")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--overhead-rounds", type=int, help="pairs of steps")
    parser.add_argument("--start-rounds", type=int, help="in start and resume")
    parser.add_argument("--processes", type=int, help="ranks in start, resume and kills")
    parser.add_argument("--kills", type=int, help="of each run")
    parser.add_argument("--killed-run-steps", type=int)
    parser.add_argument("--seed", type=int, help="of the moments of the kills")
    return parse_questions(parser, arguments, QUESTIONS)


def make_options(chosen: argparse.Namespace) -> Options:
    """Return the options with what the command line says in place of defaults."""
    return replaced(SMOKE if chosen.smoke else Options(), chosen)


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
    answer_all(
        TITLE,
        chosen.questions or list(QUESTIONS),
        lambda question: answer(question, options),
        {"processor": cpu_name(), "torch": torch.__version__},
        chosen.out,
    )


if __name__ == "__main__":
    main()
