"""What a step of the engine costs beside a bare loop of the same model, batch and optimizer.

Both run in one process on one thread, step by step in turn. The bare loop has its micro-batches as
tensors in memory; the engine reads, votes, times, judges and logs as in any run.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common.report import Table
from benchmarks.engine.inputs import timed_run
from benchmarks.engine.options import Options

_ROOT = Path(__file__).resolve().parents[2]


def overhead_tables(options: Options) -> list[Table]:
    """Measure each stage and precision in a process of its own."""
    rows = [
        _in_own_process(options, stage, precision)
        for stage in options.stages
        for precision in options.precisions
    ]
    note = (
        f"One rank, one thread, {options.overhead_rounds} pairs of steps; medians, and the "
        "quartiles of the pairs' ratios."
    )
    return [Table("overhead", "A step of the engine beside a bare loop", rows, (note,))]


def _in_own_process(options: Options, stage: int, precision: str) -> dict[str, Any]:
    given = asdict(options) | {"folder": str(options.folder)}
    cell = json.dumps({"options": given, "stage": stage, "precision": precision})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine.overhead", cell],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"stage {stage}, {precision}: {done.stderr.strip()[-2000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(options: Options, stage: int, precision: str) -> dict[str, Any]:
    """One row: medians of both, and how their pairs compare."""
    from pretrain.config import RunConfig

    settings = timed_run(
        options,
        f"overhead-{stage}-{precision}",
        train={"precision": precision},
        deepspeed={"zero_stage": stage},
    )
    config = RunConfig.load(_written(options, settings))
    with _engine_step(config) as (engine_step, engine):
        bare_step = _bare_step(config, engine)
        for _ in range(options.warm_up_steps):
            engine_step()
            bare_step()
        pairs = [_pair(engine_step, bare_step, number) for number in range(options.overhead_rounds)]
    ratios = sorted(ours / bare for ours, bare in pairs)
    lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "stage": stage,
        "precision": precision,
        "engine s": statistics.median(ours for ours, _ in pairs),
        "bare s": statistics.median(bare for _, bare in pairs),
        "overhead %": 100 * (middle - 1),
        "quartiles %": f"{100 * (lower - 1):.1f} to {100 * (upper - 1):.1f}",
    }


def _pair(one: Callable[[], None], other: Callable[[], None], number: int) -> tuple[float, float]:
    """Seconds of each; every second time the other goes first."""
    if number % 2:
        second, first = _seconds(other), _seconds(one)
        return first, second
    return _seconds(one), _seconds(other)


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _written(options: Options, settings: dict[str, Any]) -> Path:
    from benchmarks.engine.inputs import write_config

    return write_config(options, settings)


@contextlib.contextmanager
def _engine_step(config: Any) -> Iterator[tuple[Callable[[], None], Any]]:
    """A step of a run that is set up as the worker sets it up, and its engine."""
    import torch
    from torch import distributed

    from pretrain.assembly import Rank, assemble_trainer
    from pretrain.engine.start import start_processes
    from pretrain.ranks import export_rendezvous, find_ranks
    from pretrain.resilience.collectives import CollectiveRecorder
    from pretrain.resilience.stop import StopRequest
    from pretrain.resilience.watchdog import Watchdog
    from pretrain.run_folder import RunFolder

    ranks, device, recorder = find_ranks({}), torch.device("cpu"), CollectiveRecorder()
    export_rendezvous(ranks, os.environ)
    logs = RunFolder(config.run_path).logs
    logs.mkdir(parents=True, exist_ok=True)
    stop = StopRequest().install()
    stop.watch(file=RunFolder(config.run_path).stop_request, wall_clock_seconds=None)
    start_processes(device)
    recorder.attach()
    with Watchdog(
        config.resilience.watchdog, rank=0, log_folder=logs, recorder=recorder
    ) as watchdog:
        rank = Rank(
            ranks=ranks,
            device=device,
            stop=stop,
            watchdog=watchdog,
            control_group=distributed.new_group(backend="gloo"),
            saving_group=distributed.new_group(backend="gloo"),
            logger=logging.getLogger("spade"),
        )
        trainer = assemble_trainer(config, rank, fresh=True)
        try:
            yield trainer.make_step, trainer.engine
        finally:
            trainer.close()
    distributed.destroy_process_group()


def _bare_step(config: Any, engine: Any) -> Callable[[], None]:
    """The loop one writes by hand, on a few steps' micro-batches kept as tensors."""
    import itertools

    import torch

    from data_pipeline.reading.batch_loader import BatchLoader, Stripes
    from pretrain.model_inputs import model_inputs
    from pretrain.optimization.optimizers import make_optimizer
    from spade_model import SpadeForSeq2Seq

    train, device = config.train, torch.device("cpu")
    model = SpadeForSeq2Seq(config.model)
    model.set_attention_backend(train.attention_backend)
    optimizer = make_optimizer(model, config.optimizer, zero_stage=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    stripes = Stripes(
        global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch_size,
        rank=0,
        world_size=1,
        start_sample=0,
    )
    loader = BatchLoader(config.data.stream_settings(train.seed), stripes)
    accumulated = stripes.micro_batches_per_step
    steps = [
        [copy.deepcopy(model_inputs(next(loader), device)) for _ in range(accumulated)]
        for _ in range(8)
    ]
    loader.close()
    in_memory = itertools.cycle(steps)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16")

    def step() -> None:
        for inputs in next(in_memory):
            with autocast:
                loss = model(**inputs).loss
            (loss / accumulated).backward()
        torch.nn.utils.clip_grad_norm_(parameters, train.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    folder = Path(asked["options"].pop("folder"))
    sizes = replace(Options(folder=folder), **asked["options"])
    print(json.dumps(measure(sizes, asked["stage"], asked["precision"])))
