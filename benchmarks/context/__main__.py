"""Measure one sequence on several processes, and print tables.

    python -m benchmarks.context                      all of it: about half an hour
    python -m benchmarks.context traffic training --out results
    python -m benchmarks.context length --lengths 16384 1048576 --repeats 5
    python -m benchmarks.context retrieval --stages 1024:8:500 --retrieval-tokens 1024 4096

Without a question, all are asked. The machine should do nothing else meanwhile, and have 8 GB free.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module

import psutil
import torch

from benchmarks.common.command import answer_all, parse_questions, question_parser, replaced
from benchmarks.common.machine import cpu_name
from benchmarks.common.report import Table
from benchmarks.context.options import SMOKE, Options, Stage

TITLE = "One sequence on several processes"
QUESTIONS = {
    "traffic": "bytes that a rank sends, beside Ulysses and ring attention, and as counted",
    "training": "one long document in training steps: memory, time and loss by processes",
    "length": "time a token and memory of a forward pass at growing lengths",
    "retrieval": "what a text's beginning says, asked at its end, with and without a state space",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = question_parser("benchmarks.context", description, QUESTIONS)
    parser.add_argument("--training-tokens", type=int, help="of the document")
    parser.add_argument("--training-ranks", type=int, nargs="+", help="processes, one run each")
    parser.add_argument("--training-steps", type=int)
    parser.add_argument("--processes", type=int, help="of length and retrieval")
    parser.add_argument("--lengths", type=int, nargs="+", help="of length, in tokens")
    parser.add_argument("--repeats", type=int, help="measured rounds of length")
    parser.add_argument(
        "--stages",
        type=Stage.parse,
        nargs="+",
        metavar="LENGTH:BATCH:STEPS",
        help="of the training for retrieval; lengths are multiples of 4",
    )
    parser.add_argument("--retrieval-tokens", type=int, nargs="+", help="lengths asked at")
    parser.add_argument("--texts", type=int, help="of each length, in retrieval")
    parser.add_argument("--seed", type=int)
    return parse_questions(parser, arguments, QUESTIONS)


def make_options(chosen: argparse.Namespace) -> Options:
    """Return the options with what the command line says in place of defaults."""
    return replaced(SMOKE if chosen.smoke else Options(), chosen)


def answer(question: str, options: Options) -> list[Table]:
    """Measure what one question asks."""
    module = import_module(f"benchmarks.context.{question}")
    tables: Callable[[Options], list[Table]] = getattr(module, f"{question}_tables")
    return tables(options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    chosen = parse(arguments)
    options = make_options(chosen)
    facts = {
        "processor": cpu_name(),
        "cores": psutil.cpu_count(logical=True),
        "threads of a process": 1,
        "torch": torch.__version__,
    }
    answer_all(
        TITLE,
        chosen.questions or list(QUESTIONS),
        lambda question: answer(question, options),
        facts,
        chosen.out,
    )


if __name__ == "__main__":
    main()
