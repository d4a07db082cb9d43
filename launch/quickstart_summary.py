"""What the quickstart says at its end: did it learn, how fast, and where everything lies."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.console import human_seconds, printable, say, table

if TYPE_CHECKING:
    from pretrain.config import RunConfig

_CONTEXT_CHARACTERS = 34
_LOSS = "eval/heldout/loss"
_UNIGRAM = "eval/heldout/unigram_loss"
_TEXT = "eval/heldout/text_loss"
_TEXT_UNIGRAM = "eval/heldout/unigram_text_loss"


def show_fills(fills: Sequence[Mapping[str, Any]]) -> None:
    """Prints what was masked, between its neighbours, and what the model put there."""
    for fill in fills:
        say(f"{fill['name']}:")
        parts = re.split(r"<extra_id_[0-9]+>", fill["masked_text"])
        for number, span in enumerate(fill["spans"]):
            context = f"gap {number}"
            if len(parts) == len(fill["spans"]) + 1:  # else the text itself holds a sentinel
                left, right = parts[number][-_CONTEXT_CHARACTERS:], parts[number + 1]
                context = f"{printable(left)} [___] {printable(right[:_CONTEXT_CHARACTERS])}"
            say(f"  {context}")
            say(
                f"      was {printable(span['truth'], limit=50)!r}, "
                f"the model says {printable(span['generated'], limit=50)!r}"
            )


def summarize(
    *,
    config: RunConfig,
    seconds: Mapping[str, float],
    proof: Mapping[str, Any],
    paths: Mapping[str, str],
    must_beat_baseline: bool,
) -> int:
    """Prints the end-of-run table and the verdict.

    Args:
        config: The run.
        seconds: Seconds of every stage by its title.
        proof: Facts of the proof; empty where none was asked for.
        paths: What was made, by what it is.
        must_beat_baseline: Whether a model no better than token frequencies is a failure.

    Returns:
        Exit code.
    """
    from pretrain.run_folder import RunFolder
    from pretrain.telemetry.metrics import read_metrics

    lines = read_metrics(RunFolder(config.run_path).metrics_path)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if _LOSS in line]
    before, after = evaluations[0], evaluations[-1]
    middle = evaluations[len(evaluations) // 2]
    gain = after[_UNIGRAM] - after[_LOSS]
    speed = statistics.median(line["tokens_per_second"] for line in steps)
    rows = [(f"seconds: {title}", human_seconds(value)) for title, value in seconds.items()]
    rows += [
        ("seconds: all stages", human_seconds(sum(seconds.values()))),
        ("parameters", f"{_parameters(config):,}"),
        ("tokens of text trained on", f"{steps[-1]['tokens_seen']:,} in {steps[-1]['step']} steps"),
        ("tokens per second", f"{speed:,.0f}"),
        (
            f"held-out loss at step {before['step']}, {middle['step']}, {after['step']}",
            f"{before[_LOSS]:.3f} → {middle[_LOSS]:.3f} → {after[_LOSS]:.3f} nats per token",
        ),
        ("unigram baseline", f"{after[_UNIGRAM]:.3f} nats per token"),
        (
            "on text alone, without sentinels",
            f"{after[_TEXT]:.3f}, unigram {after[_TEXT_UNIGRAM]:.3f}",
        ),
        ("stopped and resumed", _resumed(lines, proof)),
    ]
    rows += list(paths.items())
    table("Summary", ("what", "value"), rows)
    if gain > 0:
        say(f"the model ends {gain:.3f} nats per token below the unigram baseline")
        return 0
    say(
        f"the model ends {-gain:.3f} nats per token ABOVE the unigram baseline: it has not learned "
        "more than token frequencies yet"
    )
    return 1 if must_beat_baseline else 0


def _resumed(lines: Sequence[Mapping[str, Any]], proof: Mapping[str, Any]) -> str:
    steps = [str(line["step"]) for line in lines if line.get("event") == "resume"]
    if not steps:
        return "no: the training was done before it could be stopped"
    text = f"after step {', '.join(steps)}"
    if proof:
        return f"{text}; bit for bit the curve of a run without a stop ({proof['steps']} steps)"
    return f"{text}; --prove-resume compares with a run without a stop"


def _parameters(config: RunConfig) -> int:
    from spade_model.cost import count_parameters

    return int(count_parameters(config.model).total)


def relative(path: Path) -> str:
    """Writes a path from here where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
