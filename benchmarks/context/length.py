"""Does the time of a token grow with the length, up to a million of them?"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.common.machine import PeakMemory
from benchmarks.common.report import Table
from benchmarks.context.options import Options
from benchmarks.context.ranks import run_on_ranks
from benchmarks.model.machine import alternate
from spade_model.config import SpadeConfig
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart
from spade_model.initialization import initialize_parameters
from spade_model.seq2seq import SpadeModel
from spade_model.state_space.mixer import SequenceMixer


@torch.no_grad()
def encode_lengths(group: ContextGroup, options: Options) -> dict[str, Any]:
    """Encode texts of all lengths in turn, then each once more for its memory.

    Returns:
        ``cpu`` and ``wall`` seconds of each round, and ``extra_bytes``, by length as text.
    """
    torch.manual_seed(options.seed)
    changes = {"num_decoder_layers": 0, "trained_length_tokens": max(options.lengths)}
    config = SpadeConfig(**(options.model | changes))
    model = SpadeModel(config).eval()
    initialize_parameters(model, config, tokens=model.shared)
    mixers = [x for x in model.modules() if isinstance(x, SequenceMixer)]
    text = torch.randint(2, config.vocab_size, (1, max(options.lengths)))

    def encode(tokens: int) -> None:
        for mixer in mixers:
            mixer.forget_kernels()  # As in training, where each step makes them anew.
        part = ContextPart.of(group, tokens)
        model.encode(text[:, :tokens][:, part.tokens], part=part)

    functions = {str(x): (lambda tokens=x: encode(tokens)) for x in options.lengths}
    durations = alternate(functions, options.repeats)
    extra_bytes = {}
    for name, function in functions.items():
        function()  # Lets go what other lengths left in caches.
        with PeakMemory() as peak:
            function()
        extra_bytes[name] = peak.extra_bytes
    return {
        "cpu": {name: [x.cpu for x in taken] for name, taken in durations.items()},
        "wall": {name: [x.wall for x in taken] for name, taken in durations.items()},
        "extra_bytes": extra_bytes,
    }


def length_tables(options: Options) -> list[Table]:
    """Measure all lengths with one group of processes; the first length is the unit."""
    ranks = run_on_ranks(encode_lengths, options.processes, options)
    rows: list[dict[str, Any]] = []
    unit: dict[str, float] = {}
    for tokens in options.lengths:
        name = str(tokens)
        of_all = [sum(x) for x in zip(*(rank["cpu"][name] for rank in ranks), strict=True)]
        seconds = {"CPU": of_all, "clock": ranks[0]["wall"][name]}
        row: dict[str, Any] = {"tokens": tokens}
        for clock, taken in seconds.items():
            each = statistics.median(taken) / tokens
            row[f"us/token ({clock})"] = 1e6 * each
            row[f"/ first ({clock})"] = each / unit.setdefault(clock, each)
        peak = max(rank["extra_bytes"][name] for rank in ranks)
        row["peak MiB of each"] = peak / 2**20
        row["bytes/token of a part"] = peak * options.processes / tokens
        rows.append(row)
    title = f"A forward pass of an encoder on {options.processes} processes"
    notes = (
        "CPU: of all processes together; kernels are made anew at every pass",
        f"lengths in turn, medians of {options.repeats} rounds after one unmeasured",
        "peak: resident memory above weights, imports and the text's ids, in a pass of its own",
    )
    return [Table("length", title, rows, notes)]
