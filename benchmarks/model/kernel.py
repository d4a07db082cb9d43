"""The S4 kernel and its convolution: time, memory, and the error of float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.report import Table
from benchmarks.model.cauchy import cauchy_kernel
from benchmarks.model.cell import run_cell
from benchmarks.model.machine import alternate, median
from spade_model.config import SpadeConfig
from spade_model.state_space.fft_convolution import fft_convolution
from spade_model.state_space.s4 import S4

METHODS = ("two-level", "Cauchy")


@dataclass(frozen=True)
class KernelOptions:
    """What to measure."""

    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    features: int = 512
    state_dim: int = 64
    longest_cauchy: int = 4096
    """Longest kernel by the Cauchy sum, for whose memory see its file."""
    longest_cauchy_backward: int = 1024
    convolution_tokens: int = 16384
    repeats: int = 3


def make_mixer(features: int, state_dim: int) -> S4:
    """Build a bidirectional S4 layer as pretraining starts with it: C, D and dt are learned."""
    torch.manual_seed(0)
    config = SpadeConfig(vocab_size=2, d_model=features, state_dim=state_dim)
    return S4(config, causal=False)


def kernel_function(mixer: S4, method: str, run: str) -> Callable[[int], Tensor]:
    """Return a function that makes a kernel of a length, and its gradients if asked to."""

    def compute(length: int) -> Tensor:
        make = mixer.compute_kernel if method == "two-level" else lambda n: cauchy_kernel(mixer, n)
        with torch.set_grad_enabled(run != "forward"):
            kernel = make(length)
        if run != "forward":
            kernel.backward(torch.ones_like(kernel))
            mixer.zero_grad(set_to_none=True)
        return kernel.detach()

    return compute


@torch.no_grad()
def relative_errors(
    mixer: S4, lengths: tuple[int, ...], longest_cauchy: int
) -> dict[tuple[str, int], float]:
    """Return the relative L2 error of float32 kernels, by method and length.

    The reference is the same formula in float64, from the same float32 parameters.
    """
    exact = copy.deepcopy(mixer).double()
    errors: dict[tuple[str, int], float] = {}
    for length in lengths:
        reference = exact.compute_kernel(length).flatten(0, 1)
        for method in METHODS:
            if method == "Cauchy" and length > longest_cauchy:
                continue
            found = kernel_function(mixer, method, "forward")(length).flatten(0, 1)
            difference = sum(
                float((mine.double() - theirs).square().sum())
                for mine, theirs in zip(found, reference, strict=True)
            )
            errors[method, length] = (difference / float(reference.square().sum())) ** 0.5
    return errors


def kernel_tables(options: KernelOptions, threads: int) -> list[Table]:
    """Measure kernels of every length, and the convolution with them."""
    mixer = make_mixer(options.features, options.state_dim)
    errors = relative_errors(mixer, options.lengths, options.longest_cauchy)
    rows = []
    for length in options.lengths:
        for method in METHODS:
            if method == "Cauchy" and length > options.longest_cauchy:
                continue
            row: dict[str, Any] = {"length": length, "method": method}
            for run, name in (("forward", "fwd"), ("fwd+bwd", "f+b")):
                backward_fits = method == "two-level" or length <= options.longest_cauchy_backward
                measured = run == "forward" or backward_fits
                row |= _cell(mixer, method, run, length, options, threads, name, measured)
            row["error of float32"] = errors[method, length]
            rows.append(row)
    title = f"S4 kernel, {options.features} features, {options.state_dim} states, both directions"
    notes = ("ms by CPU time over threads; MiB: peak above parameters, in a process of its own",)
    return [Table("kernel", title, rows, notes), _convolution_table(mixer, options)]


def _cell(
    mixer: S4,
    method: str,
    run: str,
    length: int,
    options: KernelOptions,
    threads: int,
    name: str,
    measured: bool,
) -> dict[str, Any]:
    columns = (f"{name} ms", f"{name} ms (clock)", f"{name} MiB")
    if not measured:
        return dict.fromkeys(columns)
    function = kernel_function(mixer, method, run)
    taken = median(alternate({"": lambda: function(length)}, options.repeats)[""])
    cell = {
        "kind": "kernel",
        "features": options.features,
        "state_dim": options.state_dim,
        "threads": threads,
        "method": method,
        "pass": run,
        "length": length,
    }
    memory = run_cell(cell)["extra_bytes"] / 2**20
    return dict(zip(columns, (1e3 * taken.cpu, 1e3 * taken.wall, memory), strict=True))


def _convolution_table(mixer: S4, options: KernelOptions) -> Table:
    """The convolution alone, with a kernel that is there already."""
    rows = []
    for length in options.lengths:
        with torch.no_grad():
            kernel = mixer.compute_kernel(length)
        count = max(1, options.convolution_tokens // length)
        hidden = torch.randn(count, length, options.features)

        def forward(hidden: Tensor = hidden, kernel: Tensor = kernel) -> None:
            with torch.no_grad():
                fft_convolution(hidden, kernel, mixer.D)

        def step(hidden: Tensor = hidden, kernel: Tensor = kernel) -> None:
            leaves = [x.detach().requires_grad_() for x in (hidden, kernel)]
            fft_convolution(leaves[0], leaves[1], mixer.D).sum().backward()
            mixer.zero_grad(set_to_none=True)

        taken = alternate({"fwd": forward, "f+b": step}, options.repeats)
        rows.append(
            {"length": length, "rows": count}
            | {f"{name} ms": 1e3 * median(x).cpu for name, x in taken.items()}
            | {f"{name} ms (clock)": 1e3 * median(x).wall for name, x in taken.items()}
        )
    return Table("convolution", f"FFT convolution, {options.features} features", rows)
