"""Pretraining within a budget of processor time, through `spade pretrain` and `spade export`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.report import Table
from benchmarks.downstream.budget import Budget
from benchmarks.downstream.corpus import make_data, make_review_data
from benchmarks.downstream.options import Options

SPADE, WINDOW, CONTINUED = "spade", "window", "spade-continued"


@dataclass(frozen=True)
class _Plan:
    """What a network is pretrained on."""

    changes: dict[str, Any] = field(default_factory=dict)
    """Of `Options.network`."""
    continues: str | None = None
    """The network whose weights it starts from; then it learns movie reviews."""
    learning_rate: float = 3e-3


NETWORKS = {
    SPADE: _Plan(),
    WINDOW: _Plan({"state_space": "none"}),
    CONTINUED: _Plan(continues=SPADE, learning_rate=1e-3),
}


def pretraining_tables(options: Options) -> list[Table]:
    """Pretrain both networks, and tell what they cost and learned."""
    make_data(options)
    new = [name for name, plan in NETWORKS.items() if plan.continues is None]
    with ThreadPoolExecutor(options.workers or len(new)) as pool:
        for future in [pool.submit(pretrained, options, name) for name in new]:
            future.result()
    rows = [_row(options, name, pretrained(options, name)) for name in NETWORKS]
    note = (
        f"Objective: UL2 on windows of {options.pretraining_length_tokens:,} tokens; nats a token "
        f"of held-out documents. {CONTINUED} goes on from {SPADE} with the movie reviews to learn "
        "from, without labels; its losses are of such. The unigram loss is that of the tokens' "
        "frequencies alone."
    )
    return [Table("pretraining", "Pretraining", rows, (note,))]


def run_folder(options: Options, name: str) -> Path:
    """Where the run of a network is."""
    return options.folder / "pretraining" / name


def pretrained(options: Options, name: str) -> Path:
    """Pretrain a network and export it, or go on with either; return the exported folder."""
    exported = options.folder / "pretraining" / f"{name}-exported"
    if exported.exists():
        return exported
    config = options.folder / "pretraining" / f"{name}.yaml"
    spent = budget(options, name)
    if not spent.is_over:
        _write_config(options, name, config)
        command = [sys.executable, "-m", "launch.cli", "pretrain", str(config)]
        spent.run(command, one_thread=options.workers > 0)
    command = [sys.executable, "-m", "launch.cli", "export", str(run_folder(options, name))]
    subprocess.run([*command, "--out", str(exported)], check=True)
    return exported


def _write_config(options: Options, name: str, path: Path) -> None:
    from pretrain.yaml_text import to_yaml

    plan = NETWORKS[name]
    made = make_data(options)
    steps, start = options.pretraining_steps, {}
    if plan.continues is not None:
        made = make_review_data(options)
        steps = options.continued_steps
        start = {"initial_weights": str(pretrained(options, plan.continues))}
    settings = {
        "name": name,
        "run_dir": str(options.folder / "pretraining"),
        **start,
        "model": options.network | plan.changes,
        "data": {
            "train": str(made / "shards" / "train"),
            "heldout": str(made / "shards" / "heldout"),
            "tokenizer": str(made / "shards" / "tokenizer"),
            "input_length_tokens": options.pretraining_length_tokens,
            "objective": {"kind": "ul2"},
        },
        "train": {
            "max_steps": steps,
            "global_batch_size": options.pretraining_batch_size,
            # Rows have the lengths of their denoisers: one at a time there is no padding.
            "micro_batch_size": 1,
            "precision": "bf16" if options.precision == "bfloat16" else "fp32",
        },
        # Tried for two minutes each: AdamW at 3e-3 and Muon at 6e-3 learned less.
        "optimizer": {
            "kind": "muon",
            "learning_rate": plan.learning_rate,
            "state_space_learning_rate": plan.learning_rate / 3,
        },
        "schedule": {"kind": "cosine", "warmup_steps": min(50, steps // 4), "final_ratio": 0.05},
        "evaluation": {"every_steps": math.ceil(steps / 4), "samples": 64},
        "checkpoint": {"every_steps": math.ceil(steps / 8), "keep_last": 2},
        "telemetry": {"sample_fills": 0},
        "deepspeed": {"zero_stage": 0},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(settings), encoding="utf-8")


def budget(options: Options, name: str) -> Budget:
    """What pretraining a network may cost and has cost."""
    path = options.folder / "pretraining" / f"{name}.cpu.json"
    return Budget(path, 60 * options.pretraining_cpu_minutes)


def _row(options: Options, name: str, exported: Path) -> dict[str, Any]:
    lines = [
        json.loads(line)
        for line in (run_folder(options, name) / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line for line in lines if "eval/heldout/loss" in line]
    trained = [line for line in lines if "tokens_seen" in line]
    weights = sum(path.stat().st_size for path in exported.glob("*.safetensors"))
    return {
        "network": name,
        "million parameters": weights / 4e6,
        "steps": trained[-1]["step"],
        "million tokens": trained[-1]["tokens_seen"] / 1e6,
        "CPU-minutes": budget(options, name).spent_seconds / 60,
        "held-out loss before": losses[0]["eval/heldout/loss"],
        "last": losses[-1]["eval/heldout/loss"],
        "at step": losses[-1]["step"],
        "unigram": losses[-1].get("eval/heldout/unigram_loss"),
    }
