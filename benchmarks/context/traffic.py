"""Bytes that one rank sends for one layer, by formula and as counted while they leave.

Two other ways to cut a sequence serve for comparison. Both compute full attention, and what they
send grows with the length. With L tokens, R ranks, heads of together i numbers:

    Ulysses (arXiv 2309.14509, section 3)   4 (L / R) i (R - 1) / R: queries, keys, values and
                                            outputs of all tokens of a rank change hands by an
                                            all-to-all, of which a rank keeps its own R-th part
    ring (arXiv 2310.01889, section 3)      2 (L / R) i (R - 1): keys and values of a rank's size
                                            are handed on R - 1 times
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from benchmarks.common.report import Table
from benchmarks.context.options import Options
from benchmarks.context.ranks import run_on_ranks
from spade_model.config import SpadeConfig
from spade_model.context_parallel.checks import cut_lengths
from spade_model.context_parallel.cost import (
    LayerTraffic,
    attention_traffic,
    cross_attention_traffic,
    state_space_traffic,
)
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart
from spade_model.context_parallel.traffic import Traffic, TransferKind
from spade_model.seq2seq import SpadeForSeq2Seq

_FLOAT32_BYTES = 4
_LAYERS: tuple[TransferKind, ...] = ("attention", "state_space", "cross_attention")


def ulysses_bytes(tokens: int, ranks: int, width: int, activation_bytes: int) -> int:
    """Return what a rank sends for the attention of one layer, forward.

    Args:
        tokens: L.
        ranks: R, which divides L.
        width: Of all heads together.
        activation_bytes: Of one number.
    """
    whole = 4 * (tokens // ranks) * width * activation_bytes
    return whole * (ranks - 1) // ranks


def ring_bytes(tokens: int, ranks: int, width: int, activation_bytes: int) -> int:
    """Return what a rank sends for the attention of one layer, forward; see `ulysses_bytes`."""
    return 2 * (ranks - 1) * (tokens // ranks) * width * activation_bytes


def formulas(
    config: SpadeConfig,
    lengths_tokens: tuple[int, ...],
    rank: int,
    *,
    target_tokens: int,
    activation_bytes: int,
) -> dict[TransferKind, LayerTraffic]:
    """Return what a rank sends in one layer of each kind, for one sequence."""
    size = len(lengths_tokens)
    return {
        "attention": attention_traffic(
            config, lengths_tokens, rank, batch_size=1, activation_bytes=activation_bytes
        ),
        "state_space": state_space_traffic(config, size, rank, batch_size=1),
        "cross_attention": cross_attention_traffic(
            config,
            size,
            batch_size=1,
            target_tokens=target_tokens,
            activation_bytes=activation_bytes,
        ),
    }


def _config(options: Options) -> SpadeConfig:
    one_of_each = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return SpadeConfig(**(options.traffic_model | one_of_each))


def _compare(options: Options) -> Table:
    config = _config(options)
    rows: list[dict[str, Any]] = []
    for tokens in options.traffic_tokens:
        for ranks in options.traffic_ranks:
            lengths = cut_lengths(tokens, ranks)
            each = [
                formulas(
                    config,
                    lengths,
                    rank,
                    target_tokens=options.target_tokens,
                    activation_bytes=options.traffic_bytes,
                )
                for rank in range(ranks)
            ]
            most = {kind: max(x[kind].forward_bytes for x in each) for kind in _LAYERS}
            both = most["attention"] + most["state_space"]
            others = (tokens, ranks, config.inner_dim, options.traffic_bytes)
            ulysses, ring = ulysses_bytes(*others), ring_bytes(*others)
            rows.append(
                {
                    "tokens": tokens,
                    "ranks": ranks,
                    "local attention KiB": most["attention"] / 2**10,
                    "state space KiB": most["state_space"] / 2**10,
                    "cross-attention KiB": most["cross_attention"] / 2**10,
                    "Ulysses MiB": ulysses / 2**20,
                    "ring MiB": ring / 2**20,
                    "Ulysses / ours": ulysses / both,
                    "ring / ours": ring / both,
                }
            )
    notes = (
        f"one sequence, one layer, forward; {options.traffic_bytes} bytes an activation, 4 a state",
        f"heads of together {config.inner_dim}, radius {config.local_radius_tokens}",
        f"{config.state_dim} states of {config.d_model} features, {options.target_tokens} targets",
        "of the rank that sends most; Ulysses and ring: full attention in place of the local one",
        "ours: local attention and state space together, though not all layers have one",
        "cross-attention is in layers of its own, the decoder's, and not part of the ratios",
    )
    return Table("traffic", "Bytes that a rank sends for a layer", rows, notes)


def count_traffic(group: ContextGroup, options: Options) -> dict[str, Any]:
    """Count what this rank sends in training steps of a network with one layer of each kind.

    Returns:
        ``steps``, for each length: the transfers, each its kind, whether backward, and bytes.
    """
    torch.manual_seed(options.seed)
    model = SpadeForSeq2Seq(_config(options))
    labels = torch.full((1, options.target_tokens), 2)
    steps = []
    for tokens in options.counted_tokens:
        traffic = Traffic()
        part = ContextPart.of(dataclasses.replace(group, traffic=traffic), tokens)
        ids = torch.full((1, part.lengths_tokens[group.rank]), 2)
        model(ids, labels, part=part).loss.backward()
        steps.append([(x.kind, x.backward, x.sent_bytes) for x in traffic.transfers])
    return {"steps": steps}


def _counted(options: Options) -> Table:
    config = _config(options)
    rows: list[dict[str, Any]] = []
    for size in options.counted_ranks:
        answers = run_on_ranks(count_traffic, size, options)
        for place, tokens in enumerate(options.counted_tokens):
            lengths = cut_lengths(tokens, size)
            for rank, answer in enumerate(answers):
                expected = formulas(
                    config,
                    lengths,
                    rank,
                    target_tokens=options.target_tokens,
                    activation_bytes=_FLOAT32_BYTES,
                )
                rows.append(
                    {"ranks": size, "tokens": tokens, "rank": rank}
                    | _counted_cells(answer["steps"][place], expected)
                )
    notes = (
        "one training step with one layer of each kind, float32: counted bytes forward / backward",
        "as the formulas say: whether all of a rank's bytes are equal to them",
        "agreement: facts that ranks compare before they wait for each other, once a step",
    )
    return Table("traffic_counted", "Bytes that ranks sent, counted", rows, notes)


def _counted_cells(
    transfers: list[list[Any]], expected: dict[TransferKind, LayerTraffic]
) -> dict[str, Any]:
    def sent(kind: TransferKind, backward: bool) -> int:
        return sum(x[2] for x in transfers if x[:2] == [kind, backward])

    counted = {kind: LayerTraffic(sent(kind, False), sent(kind, True)) for kind in _LAYERS}
    cells: dict[str, Any] = {
        kind.replace("_", " "): f"{x.forward_bytes:,} / {x.backward_bytes:,}"
        for kind, x in counted.items()
    }
    cells["agreement"] = sent("agreement", False)
    cells["all of it"] = sum(x[2] for x in transfers)
    cells["as the formulas say"] = counted == expected
    return cells


def traffic_tables(options: Options) -> list[Table]:
    """Compare by formula, and count where that can be run."""
    return [_compare(options), _counted(options)]
