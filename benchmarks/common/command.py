"""The command line that benchmarks share: questions, options that replace defaults, tables out."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common.report import Table, show, write

Chosen = TypeVar("Chosen")


def question_parser(
    program: str, description: str, questions: Mapping[str, str]
) -> argparse.ArgumentParser:
    """A parser for questions, ``--out`` and ``--smoke``; the caller adds its own options.

    Args:
        program: What follows ``python -m``.
        description: One line.
        questions: What each question measures, by name.
    """
    width = max(map(len, questions)) + 2
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog="\n".join(f"  {name:<{width}}{what}" for name, what in questions.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="see below; default: all")
    parser.add_argument("--out", type=Path, help="folder for results.json and tables.md")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    return parser


def parse_questions(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    questions: Mapping[str, str],
) -> argparse.Namespace:
    """Parse a command line; a question that does not exist is an error."""
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.questions) - set(questions))
    if unknown:
        parser.error(f"unknown question {unknown[0]!r}; choose from {', '.join(questions)}")
    return chosen


def replaced(options: Chosen, chosen: argparse.Namespace, *but: str) -> Chosen:
    """Put what the command line says in place of the defaults of a dataclass.

    Args:
        options: The defaults.
        chosen: What was parsed; names that are no field are left alone.
        but: Fields that stay as they are.
    """
    given = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value = getattr(chosen, field.name, None)
        if value is not None and field.name not in but:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(options, **given)  # type: ignore[type-var]


def answer_all(
    title: str,
    questions: Sequence[str],
    answer: Callable[[str], list[Table]],
    facts: dict[str, Any],
    out: Path | None,
) -> None:
    """Measure one question after another, print the tables, and write them if asked to.

    Args:
        title: Of the report.
        questions: Their names.
        answer: Measures one.
        facts: Of the machine; how long each question took is added.
        out: Folder for the report.
    """
    print(", ".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    tables: list[Table] = []
    for question in questions:
        started = time.perf_counter()
        answers = answer(question)
        for table in answers:
            show(table)
        tables += answers
        facts[f"{question} took s"] = round(time.perf_counter() - started)
        if out is not None:
            write(out, title, facts, tables)
    if out is not None:
        print(f"written to {out}")
