"""``spade launch``: starts the ranks of a run and keeps it running."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.console import say


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Start a run on a machine and keep it running.",
        epilog="Example: spade launch local configs/quickstart.yaml --processes 2 --max-restarts 3",
        no_args_is_help=True,
    )
    group.command(
        "local",
        epilog="Example: spade launch local configs/quickstart.yaml name=trial --processes 2",
    )(local)
    # With one command a group would be that command.
    group.callback()(lambda: None)
    application.add_typer(group, name="launch")


def local(
    config: Annotated[Path, typer.Argument(help="Configuration as YAML.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that replace the file's.", metavar="a.b=c …"),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Ranks on this machine.")] = 1,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0, help="After a failure go on from the newest checkpoint, so often in vain."
        ),
    ] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, and start nothing.")
    ] = False,
) -> None:
    """Run a training as several processes of this machine; Ctrl-C saves and ends all of them.

    Ranks that are killed, hang or lose one another are started again from the newest checkpoint;
    each newer checkpoint gives all restarts back. Exit codes are those of `spade pretrain`.
    """
    from launch.local import local_command, run_local

    arguments = [str(config), *(overrides or [])]
    if dry_run:
        from pretrain.config import RunConfig

        RunConfig.load(config, overrides or []).most_accumulation_steps(processes)
        worker = ["-m", "launch.cli", "pretrain", *arguments]
        say(shlex.join([sys.executable, *local_command(worker, processes)]))
        return
    result = run_local(arguments, processes=processes, max_restarts=max_restarts)
    if result.restarts:
        say(f"restarted {result.restarts} times")
    if result.exit_code:
        raise typer.Exit(result.exit_code if result.exit_code > 0 else 128 - result.exit_code)
