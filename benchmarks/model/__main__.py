"""Measure the network beside its peers and print tables.

    python -m benchmarks.model                        all of it, short: about half an hour
    python -m benchmarks.model speed --lengths 4096 --dtypes bf16 --repeats 7
    python -m benchmarks.model memory kernel --out results

Without a question, all are asked. Models run in turn, A B C A B C. Rates and times are by the clock
and by CPU time over the number of threads: where the two differ, other work disturbed the run, and
the second is the better one. Threads wait as torch lets them; with OMP_WAIT_POLICY=PASSIVE waiting
does not count as CPU time.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import TypeVar

import torch

from benchmarks.common.command import parse_questions, question_parser, replaced
from benchmarks.common.report import Table, show
from benchmarks.model.encoders import MODELS, Sizes
from benchmarks.model.kernel import KernelOptions, kernel_tables
from benchmarks.model.length import LengthOptions, length_tables
from benchmarks.model.machine import machine_facts
from benchmarks.model.memory import memory_tables
from benchmarks.model.recall import RecallOptions, recall_tables
from benchmarks.model.report import write
from benchmarks.model.share import ShareOptions, share_tables
from benchmarks.model.speed import SpeedOptions, speed_tables

QUESTIONS = {
    "speed": "tokens a second of the encoder, and its share of the rate of matrix products",
    "memory": "peak memory, with and without activation checkpointing",
    "kernel": "the S4 kernel and the convolution: time, memory, error of float32",
    "share": "what the state-space branch costs in a whole encoder",
    "length": "time a token at growing lengths, and answers beyond the trained length",
}
Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of every question."""

    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    speed: SpeedOptions = dataclasses.field(default_factory=SpeedOptions)
    memory: SpeedOptions = dataclasses.field(default_factory=SpeedOptions)
    kernel: KernelOptions = dataclasses.field(default_factory=KernelOptions)
    share: ShareOptions = dataclasses.field(default_factory=ShareOptions)
    length: LengthOptions = dataclasses.field(default_factory=LengthOptions)
    recall: RecallOptions = dataclasses.field(default_factory=RecallOptions)


SMOKE = Plan(
    sizes=Sizes(d_model=32, num_heads=2, d_ff=64, radius=15, vocab_size=64, state_dim=8),
    speed=SpeedOptions(lengths=(64,), tokens=128, layers=2, repeats=1, both_precisions=True),
    memory=SpeedOptions(
        lengths=(512,),
        dtypes=("fp32",),
        models=("spade", "LongT5 local"),
        passes=("fwd+bwd",),
        tokens=512,
        layers=2,
    ),
    kernel=KernelOptions(
        lengths=(64,),
        features=16,
        state_dim=8,
        longest_cauchy=64,
        longest_cauchy_backward=0,
        convolution_tokens=128,
        repeats=1,
    ),
    share=ShareOptions(length=128, tokens=128, layers=2, dtypes=("fp32",), repeats=2),
    length=LengthOptions(lengths=(64, 128), dtypes=("fp32",), tokens=128, repeats=1),
    recall=RecallOptions(trained_length=128, lengths=(128, 256), steps=3, batch=2, texts=2),
)
"""Everything once, at sizes that show only that it runs."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = question_parser("benchmarks.model", description, QUESTIONS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="measured rounds")
    parser.add_argument("--lengths", type=int, nargs="+", help="of all questions asked")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--models", nargs="+", choices=MODELS, help="of speed and memory")
    parser.add_argument("--tokens", type=int, help="of a step; a longer text is one by itself")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--long-layers", type=int, help="speed and memory: beyond --layers-until")
    parser.add_argument("--layers-until", type=int, metavar="LENGTH")
    parser.add_argument("--longest-full", type=int, metavar="LENGTH", help="longest text of T5")
    parser.add_argument(
        "--both-precisions", action="store_const", const=True, help="see SpeedOptions"
    )
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int)
    parser.add_argument("--steps", type=int, help="of training, length only")
    parser.add_argument("--dt-min", type=float, help="of the trained state space, length only")
    return parse_questions(parser, arguments, QUESTIONS)


def make_plan(chosen: argparse.Namespace) -> Plan:
    """Return the options of every question."""
    plan = SMOKE if chosen.smoke else Plan()
    return Plan(
        sizes=replaced(plan.sizes, chosen),
        speed=replaced(plan.speed, chosen),
        memory=replaced(plan.memory, chosen),
        kernel=replaced(plan.kernel, chosen),
        share=replaced(plan.share, chosen),
        length=replaced(plan.length, chosen),
        recall=replaced(plan.recall, chosen, "lengths"),
    )


def answer(question: str, plan: Plan, threads: int) -> list[Table]:
    """Measure what one question asks."""
    if question == "speed":
        return speed_tables(plan.sizes, plan.speed)
    if question == "memory":
        return memory_tables(plan.sizes, plan.memory, threads)
    if question == "kernel":
        return kernel_tables(plan.kernel, threads)
    if question == "share":
        return share_tables(plan.sizes, plan.share)
    return [*length_tables(plan.sizes, plan.length), *recall_tables(plan.recall)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked to."""
    chosen = parse(arguments)
    torch.set_num_threads(chosen.threads)
    plan, facts, tables = make_plan(chosen), machine_facts(), []
    print(", ".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    for question in chosen.questions or QUESTIONS:
        started = time.perf_counter()
        answers = answer(question, plan, chosen.threads)
        for table in answers:
            show(table)
        tables += answers
        facts[f"{question} took s"] = round(time.perf_counter() - started)
        if chosen.out is not None:
            write(chosen.out, facts, tables)
    if chosen.out is not None:
        print(f"written to {chosen.out}")


if __name__ == "__main__":
    main()
