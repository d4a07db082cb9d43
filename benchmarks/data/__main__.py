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
import dataclasses
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.common.report import Table, show, write
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join(f"  {name:<12}{what}" for name, what in QUESTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="see below; default: all")
    parser.add_argument("--out", type=Path, help="folder for results.json and tables.md")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--cache", type=Path, help="folder for the corpus and the peers' data sets")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement in reading")
    parser.add_argument("--workers", type=int, nargs="+", help="in reading")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="in reading")
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, help="in reading")
    parser.add_argument("--resumers", nargs="+", choices=RESUMERS, help="in resume")
    parser.add_argument("--order-sizes", type=int, nargs="+", help="in order")
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
    module = import_module(f"benchmarks.data.{question}")
    tables: Callable[[Options], list[Table]] = getattr(module, f"{question}_tables")
    return tables(options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    chosen = parse(arguments)
    options, facts, tables = make_options(chosen), facts_of_this_machine(), []
    print(", ".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
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
