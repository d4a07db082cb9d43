"""Measure the data path beside its peers and print tables.

    python -m benchmarks.data                       all of it: about ten minutes
    python -m benchmarks.data reading --loaders "flat memmap" ours --workers 2
    python -m benchmarks.data objectives order --out results

Without a question, all are asked. Peers are those of benchmarks/data/peers.txt that are installed;
the others are named with the reason. Loaders run in turn, A B C A B C. The corpus, Python sources
of this machine, is made and tokenized once and kept in the temporary folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.common.command import answer_all, parse_questions, question_parser, replaced
from benchmarks.common.report import Table
from benchmarks.data.options import LOADERS, RESUMERS, SETS, SMOKE, Options
from benchmarks.data.versions import facts_of_this_machine

TITLE = "The data path beside its peers"
QUESTIONS = {
    "objectives": "tokens a second of each objective, span corruption beside the usual collator",
    "order": "what the order of samples costs at a million to a billion of them",
    "reading": "tokens a second and CPU a token with 0, 1 and 2 workers",
    "resume": "seconds to the first batch at half an epoch, and whether the next ones are the same",
    "preparing": "megabytes a second of tokenizing and writing shards",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = question_parser("benchmarks.data", description, QUESTIONS)
    parser.add_argument("--cache", type=Path, help="folder for the corpus and the peers' data sets")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement in reading")
    parser.add_argument("--workers", type=int, nargs="+", help="in reading")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="in reading")
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, help="in reading")
    parser.add_argument("--resumers", nargs="+", choices=RESUMERS, help="in resume")
    parser.add_argument("--order-sizes", type=int, nargs="+", help="in order")
    return parse_questions(parser, arguments, QUESTIONS)


def make_options(chosen: argparse.Namespace) -> Options:
    """Return the options with what the command line says in place of defaults."""
    return replaced(SMOKE if chosen.smoke else Options(), chosen)


def answer(question: str, options: Options) -> list[Table]:
    """Measure what one question asks."""
    module = import_module(f"benchmarks.data.{question}")
    tables: Callable[[Options], list[Table]] = getattr(module, f"{question}_tables")
    return tables(options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    chosen = parse(arguments)
    options = make_options(chosen)
    answer_all(
        TITLE,
        chosen.questions or list(QUESTIONS),
        lambda question: answer(question, options),
        facts_of_this_machine(),
        chosen.out,
    )


if __name__ == "__main__":
    main()
