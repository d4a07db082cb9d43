"""Pretrain a small SPADE, fine-tune it, and compare it with what is simpler.

    python -m benchmarks.downstream --data DATA --folder work --out results
    python -m benchmarks.downstream sentences summaries --data DATA --folder work --out results
    python -m benchmarks.downstream --smoke

Without a question, all are asked: about three hours of processor time. The same command goes on
where it was interrupted; what is done stays as it is. It needs scikit-learn.
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
from benchmarks.downstream.options import SMOKE, Options

TITLE = "Downstream"
QUESTIONS = {
    "pretraining": "two networks pretrained within a budget, with a state space and without",
    "sentences": "SST-2 and MRPC: pretrained, from scratch, TF-IDF",
    "summaries": "SumPubMed: pretrained, window attention only, cut at 512, from scratch, LEAD",
    "reviews": "whole movie reviews as bytes against n-grams",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = question_parser("benchmarks.downstream", description, QUESTIONS)
    parser.add_argument("--data", type=Path, help="folder of the data sets; needed but for --smoke")
    parser.add_argument("--folder", type=Path, help="for all that is made; by default a new one")
    parser.add_argument("--workers", type=int, help="processes at a time, of one thread each")
    parser.add_argument("--pretraining-steps", type=int)
    parser.add_argument("--pretraining-cpu-minutes", type=float, help="of each network, at most")
    chosen = parse_questions(parser, arguments, QUESTIONS)
    if chosen.data is None and not chosen.smoke:
        parser.error("give --data, or --smoke for invented data")
    return chosen


def make_options(chosen: argparse.Namespace) -> Options:
    """Return the options with what the command line says in place of defaults."""
    return replaced(SMOKE if chosen.smoke else Options(), chosen)


def answer(question: str, options: Options) -> list[Table]:
    """Measure what one question asks."""
    module = import_module(f"benchmarks.downstream.{question}")
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
