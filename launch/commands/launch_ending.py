"""How the commands end that stay with a run: local, ssh and mpi."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from launch.console import say

if TYPE_CHECKING:
    from launch.keep_running import RunResult


def end_as(result: RunResult) -> None:
    """Tell of restarts, and end the command with the ranks' exit code.

    Raises:
        typer.Exit: Unless the run is done.
    """
    if result.restarts:
        say(f"restarted {result.restarts} times")
    if result.exit_code:
        raise typer.Exit(result.exit_code if result.exit_code > 0 else 128 - result.exit_code)
