"""Does time grow with the length, and not with its square?

One training step (forward and backward, bfloat16 autocast) of a SPADE encoder-decoder beside the
same sizes in T5 of transformers, whose encoder attends fully, at several lengths and the same
number of tokens a step. Each pair is measured in turn in one process; medians are printed with the
ratio.

    python benchmarks/linear_length.py --lengths 512 1024 2048 4096 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from transformers import T5Config, T5ForConditionalGeneration

from pretrain.hardware import pick_device
from spade_model import SpadeConfig, SpadeForSeq2Seq

SIZES = {"d_model": 256, "num_heads": 4, "d_ff": 1024}
LAYERS = 4
VOCABULARY = 8320
TARGET_FRACTION = 0.22


def spade_loss(max_target_length_tokens: int, device: torch.device) -> Callable[..., torch.Tensor]:
    """The loss of a SPADE model of these sizes."""
    config = SpadeConfig(
        vocab_size=VOCABULARY,
        head_dim=64,
        num_encoder_layers=LAYERS,
        num_decoder_layers=LAYERS,
        max_target_length_tokens=max_target_length_tokens,
        **SIZES,
    )
    model = SpadeForSeq2Seq(config).to(device)
    return lambda ids, labels: model(ids, labels).loss


def t5_loss(device: torch.device) -> Callable[..., torch.Tensor]:
    """The loss of a T5 model of these sizes."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_kv=64,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        decoder_start_token_id=0,
        dropout_rate=0.0,
        **SIZES,
    )
    model = T5ForConditionalGeneration(config).to(device)
    return lambda ids, labels: model(input_ids=ids, labels=labels).loss


def seconds(loss: Callable[..., torch.Tensor], ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Seconds of one forward and backward pass."""
    if ids.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(ids.device.type, torch.bfloat16):
        value = loss(ids, labels)
    value.backward()
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a table, and JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, default=4096, help="encoder tokens of a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = pick_device(0)
    rows = []
    for length in options.lengths:
        batch, target = max(1, options.tokens // length), int(length * TARGET_FRACTION)
        ids = torch.randint(2, VOCABULARY, (batch, length), device=device)
        labels = torch.randint(2, VOCABULARY, (batch, target), device=device)
        losses = {"spade": spade_loss(target, device), "t5": t5_loss(device)}
        times: dict[str, list[float]] = {name: [] for name in losses}
        for repeat in range(options.repeats + 1):  # the first round warms up
            for name, loss in losses.items():
                taken = seconds(loss, ids, labels)
                if repeat:
                    times[name].append(taken)
        rates = {n: batch * length / statistics.median(taken) for n, taken in times.items()}
        rows.append(
            {"length": length, "batch": batch, **rates, "ratio": rates["spade"] / rates["t5"]}
        )
    if options.json:
        print(json.dumps(rows))
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, bf16 autocast")
    print(f"{'length':>7} {'batch':>6} {'SPADE tok/s':>12} {'T5 tok/s':>10} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['length']:>7} {row['batch']:>6} {row['spade']:>12,.0f} {row['t5']:>10,.0f} "
            f"{row['ratio']:>6.2f}"
        )


if __name__ == "__main__":
    main()
