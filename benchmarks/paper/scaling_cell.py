"""One encoder at one length, in a process of its own that may end by its limits.

A process of its own has peak memory that nothing else has touched, and can be refused memory or
stopped without harm to anyone. It is forked from one that has imported all it needs, and done
nothing with it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import psutil
import torch

from benchmarks.common.machine import PeakMemory
from benchmarks.model.encoders import Encoder, Sizes, make_ids
from benchmarks.model.machine import measure
from spade_model.seq2seq import SpadeModel
from spade_model.state_space.mixer import SequenceMixer

OUT_OF_MEMORY, OUT_OF_TIME = "out of memory", "over the time limit"
FULL, TILED = "full", "full in tiles"
_IMPORTED_FIRST = [__name__, "transformers.models.t5.modeling_t5"]
_WARM_UP_TOKENS = 256
_LONG_SECONDS = 5.0
"""What takes longer is measured once: its noise is small beside the differences of lengths."""
_MEASURED_SECONDS = 0.1
"""Passes are repeated for so long; some kernels count processor time in steps of 4 ms."""


@dataclass(frozen=True)
class Length:
    """What one process measures."""

    model: str
    """One of `benchmarks.model.encoders.MODELS`, `FULL` or `TILED`."""
    sizes: Sizes
    layers: int
    run: str
    """One of `benchmarks.model.encoders.PASSES`."""
    tokens: int
    memory_limit_bytes: int
    """Beyond what the process has when weights are made and a short pass is done."""
    cpu_limit_seconds: float
    """From there on as well."""


@dataclass(frozen=True)
class Cost:
    """Of one pass over one row; nothing but `ended` where a limit was met."""

    cpu_seconds: float | None = None
    """Mean of the passes."""
    extra_bytes: int | None = None
    """Peak of resident memory above weights and ids."""
    ended: str | None = None
    """`OUT_OF_MEMORY` or `OUT_OF_TIME`."""


def measure_length(length: Length) -> Cost:
    """Measure in a fresh process.

    Raises:
        RuntimeError: It ended otherwise than by its limits; what it printed says why.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_FIRST)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure_into, args=(length, theirs))
    process.start()
    theirs.close()
    try:
        cost: Cost = ours.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return Cost(ended=OUT_OF_TIME)
        raise RuntimeError(f"{length} ended with {process.exitcode}") from None
    process.join()
    return cost


def _measure_into(length: Length, connection: Connection) -> None:
    torch.set_num_threads(1)
    encoder = _make_encoder(length)
    mixers = [x for x in encoder.module.modules() if isinstance(x, SequenceMixer)]
    ids = make_ids(length.sizes, length.tokens, 1)
    encoder.run(length.run, ids[:, :_WARM_UP_TOKENS])  # what libraries make once
    _limit(length)

    def run() -> None:
        for mixer in mixers:
            mixer.forget_kernels()  # as in training, where each step makes them anew
        encoder.run(length.run, ids)

    try:
        with PeakMemory() as peak:
            first_seconds = measure(run).cpu
        seconds = first_seconds if first_seconds > _LONG_SECONDS else _mean_seconds(run)
        cost = Cost(seconds, peak.extra_bytes)
    except (MemoryError, RuntimeError) as error:
        # torch's allocator has no error of its own.
        if not (isinstance(error, MemoryError) or "allocate memory" in str(error)):
            raise
        cost = Cost(ended=OUT_OF_MEMORY)
    connection.send(cost)


def _mean_seconds(run: Callable[[], object]) -> float:
    started, passes, spent_seconds = time.process_time(), 0, 0.0
    while spent_seconds < _MEASURED_SECONDS:
        run()
        passes += 1
        spent_seconds = time.process_time() - started
    return spent_seconds / passes


def _limit(length: Length) -> None:
    """From now on so much more memory and processor time, and no more."""
    process = psutil.Process()
    most_bytes = process.memory_info().vms + length.memory_limit_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    times = process.cpu_times()
    most_seconds = max(1, round(times.user + times.system + length.cpu_limit_seconds))
    # The kernel ends the process with SIGXCPU.
    resource.setrlimit(resource.RLIMIT_CPU, (most_seconds, most_seconds + 1))


def _make_encoder(length: Length) -> Encoder:
    """Return an encoder; full attention is ours without a state space, seeing everything."""
    if length.model not in (FULL, TILED):
        return Encoder(length.model, length.sizes, length.layers, "fp32")
    encoder = Encoder("spade none", length.sizes, length.layers, "fp32")
    assert isinstance(encoder.module, SpadeModel)
    config = dataclasses.replace(encoder.module.config, attention="full")
    everything = SpadeModel(config)
    everything.set_attention_backend("tiled" if length.model == TILED else "reference")
    encoder.module = everything
    return encoder
