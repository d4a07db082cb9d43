"""Measure again what the paper claims, at a size that fits two CPU cores.

    python -m benchmarks.paper --data DATA --out results
    python -m benchmarks.paper recall ablations --out results
    python -m benchmarks.paper --draw results
    python -m benchmarks.paper --smoke

Without a question, all are asked. The same command goes on where it was interrupted, and further
questions with the same ``--out`` join what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.common.command import answer_all, parse_questions, question_parser, replaced
from benchmarks.common.machine import cpu_name
from benchmarks.common.report import Table, write
from benchmarks.paper.options import SMOKE, Options
from benchmarks.paper.plots import draw, read_tables

TITLE = "The paper's claims, measured again"
QUESTIONS = {
    "recall": "far evidence: SPADE, its parts and full attention beside the best that is possible",
    "ablations": "where, how many and which state spaces, how joined, how trained; positions",
    "extrapolation": "trained at 1,024 tokens, asked at up to 16,384 (needs --data)",
    "scaling": "time and memory of a forward pass and of a step to 65,536 tokens",
    "pretraining": "denoising: held-out loss at equal compute, three networks (needs --data)",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = question_parser("benchmarks.paper", description, QUESTIONS)
    parser.add_argument("--data", type=Path, help="folder that holds sotu/docs.jsonl.gz")
    parser.add_argument("--workers", type=int, help="processes at a time, of one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", help="of each variant")
    parser.add_argument("--pretraining-cpu-minutes", type=float, help="of each pretraining run")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="only draw its plots again")
    chosen = parse_questions(parser, arguments, QUESTIONS)
    if chosen.workers is not None and chosen.workers < 0:
        parser.error(f"--workers {chosen.workers} is below 0; 0 measures in this process")
    if chosen.pretraining_cpu_minutes is not None and chosen.pretraining_cpu_minutes <= 0:
        parser.error("--pretraining-cpu-minutes is not above 0; give minutes, for instance 6")
    return chosen


def make_options(chosen: argparse.Namespace) -> Options:
    """Return the options with what the command line says in place of defaults."""
    options = replaced(SMOKE if chosen.smoke else Options(), chosen)
    if chosen.pretraining_cpu_minutes is None:
        return options
    minutes = chosen.pretraining_cpu_minutes
    pretraining = dataclasses.replace(options.pretraining, cpu_minutes=minutes)
    return dataclasses.replace(options, pretraining=pretraining)


def answer(question: str, options: Options) -> list[Table]:
    """Measure what one question asks."""
    module = import_module(f"benchmarks.paper.{question}")
    tables: Callable[[Options], list[Table]] = getattr(module, f"{question}_tables")
    return tables(options)


def keep(out: Path, facts: dict[str, Any], question: str, tables: Sequence[Table]) -> None:
    """Write a question's tables beside those of other questions, and draw all of them."""
    kept = [table for table in read_tables(out) if table.name.partition("_")[0] != question]
    write(out, TITLE, facts, [*kept, *tables])
    draw(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    chosen = parse(arguments)
    try:
        _measure_or_draw(chosen)
    except ValueError as error:
        sys.exit(f"benchmarks.paper: {error}")


def _measure_or_draw(chosen: argparse.Namespace) -> None:
    if chosen.draw is not None:
        draw(chosen.draw)
        return
    options = make_options(chosen)
    facts = {
        "processor": cpu_name(),
        "cores": psutil.cpu_count(logical=True),
        "threads of a process": 1,
        "torch": torch.__version__,
    }

    def answer_and_keep(question: str) -> list[Table]:
        tables = answer(question, options)
        keep(options.out, facts, question, tables)
        return tables

    answer_all(TITLE, chosen.questions or list(QUESTIONS), answer_and_keep, facts, None)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
