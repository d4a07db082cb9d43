"""The training of the quickstart: stopped half way by a real SIGTERM, resumed, and proved."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.console import say
from launch.curves import compare_curves, last_step
from launch.failures import EXIT_INTERRUPTED, StageFailed, Stopped
from launch.keep_running import RunResult
from launch.local import run_local

if TYPE_CHECKING:
    from pretrain.config import RunConfig
    from pretrain.run_folder import RunFolder

STOPPED_BY_USER = "stopped; the same command goes on from there"


def train(config_path: Path, config: RunConfig, processes: int) -> dict[str, Any]:
    """Trains with a stop half way, or goes on with a training that was stopped by the user.

    Args:
        config_path: The configuration's file.
        config: The same, loaded.
        processes: Number of ranks.

    Returns:
        Facts: the step of the stop, and the seconds that starting, training and ending took.

    Raises:
        StageFailed: The training ended before its last step.
        Stopped: The user asked for it.
    """
    from pretrain.run_folder import RunFolder

    folder = RunFolder(config.run_path)
    half = config.train.max_steps // 2
    facts: dict[str, Any] = {"stopped_at_step": None, "seconds_before_stop": 0.0}
    say(f"spade pretrain {config_path} --dry-run shows what is run")
    if last_step(folder.metrics_path) < half:
        say(f"training {config.train.max_steps} steps; a SIGTERM will stop it at step {half}")
        sent: list[int] = []

        def stop_half_way() -> None:
            if not sent and last_step(folder.metrics_path) >= half:
                say("sending SIGTERM to this very process, as a scheduler would")
                sent.append(os.getpid())
                os.kill(os.getpid(), signal.SIGTERM)

        result = run_local([str(config_path)], processes=processes, watch=stop_half_way)
        _check(result, folder, own_signals=len(sent))
        facts["seconds_before_stop"] = result.seconds
        if not result.stopped:
            say("the training was done before the signal reached it")
            return facts
        facts["stopped_at_step"] = last_step(folder.metrics_path)
        say(f"stopped after step {facts['stopped_at_step']}; starting the same command again")
    else:
        say(f"going on after step {last_step(folder.metrics_path)}")
    result = run_local([str(config_path)], processes=processes)
    _check(result, folder, own_signals=0)
    facts["seconds_after_stop"] = result.seconds
    return facts


def prove(config_path: Path, config: RunConfig, processes: int) -> dict[str, Any]:
    """Trains once more without a stop, and compares every number that was logged.

    Args:
        config_path: The configuration's file.
        config: The same, loaded.
        processes: Number of ranks.

    Returns:
        Facts: whether the curves are equal, and over how many steps and numbers.

    Raises:
        StageFailed: The second training failed, or the curves differ.
        Stopped: The user asked for it.
    """
    from pretrain.run_folder import RunFolder

    name = f"{config.name}-uninterrupted"
    other = RunFolder(config.run_dir / name)
    if other.path.exists():  # half a proof proves nothing: this run must not have been stopped
        shutil.rmtree(other.path)
    say(f"training once more without a stop, in {other.path}")
    result = run_local([str(config_path), f"name={name}"], processes=processes)
    _check(result, other, own_signals=0)
    comparison = compare_curves(RunFolder(config.run_path).metrics_path, other.metrics_path)
    if not comparison.equal:
        for line in comparison.differences[:5]:
            say(line)
        raise StageFailed(
            f"the resumed run differs from the uninterrupted one in "
            f"{len(comparison.differences)} numbers over {comparison.steps} steps"
        )
    say(
        f"the stopped and resumed run equals the uninterrupted one bit for bit: "
        f"{comparison.steps} steps, {comparison.values} numbers"
    )
    return {"equal": True, "steps": comparison.steps, "values": comparison.values}


def raise_if_stopped(signals: Sequence[signal.Signals], own_signals: int = 0) -> None:
    """Raises ``Stopped`` where somebody asked, beside the signals we sent ourselves."""
    theirs = list(signals)
    for _ in range(own_signals):
        if signal.SIGTERM in theirs:
            theirs.remove(signal.SIGTERM)
    if theirs:
        code = EXIT_INTERRUPTED if theirs[0] == signal.SIGINT else 128 + int(theirs[0])
        raise Stopped(STOPPED_BY_USER, code)


def _check(result: RunResult, folder: RunFolder, *, own_signals: int) -> None:
    raise_if_stopped(result.signals, own_signals)
    if result.exit_code != 0 and not result.stopped:
        raise StageFailed(
            f"the training failed with exit code {result.exit_code}: {folder.logs} has each rank's "
            "log; once mended, the same command goes on from the last checkpoint"
        )
