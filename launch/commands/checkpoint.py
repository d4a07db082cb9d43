"""``spade checkpoint list|verify``: what a run can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import human_bytes, print_json, say, table
from launch.failures import EXIT_FAILED, CommandError

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="List and verify the checkpoints of a run.",
        epilog="Example: spade checkpoint list runs/base",
        no_args_is_help=True,
    )
    group.command("list", epilog="Example: spade checkpoint list runs/base --json")(list_)
    group.command("verify", epilog="Example: spade checkpoint verify runs/base")(verify)
    application.add_typer(group, name="checkpoint")


def list_(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    as_json: _Json = False,
) -> None:
    """List the checkpoints of a run, the oldest first, and what is wrong with broken ones."""
    if not run.is_dir():
        raise CommandError(f"{run}: no such run folder; name a folder that spade pretrain wrote")
    from pretrain.checkpoints.checkpoint import list_checkpoints

    found = list_checkpoints(run)
    if as_json:
        print_json(
            [
                {
                    "step": item.step,
                    "path": str(item.path),
                    "complete": item.complete,
                    "size_bytes": item.size_bytes,
                    "problem": item.problem,
                }
                for item in found
            ]
        )
        return
    if not found:
        say(f"{run}: no checkpoint yet")
        return
    rows = [
        (str(item.step), human_bytes(item.size_bytes), item.problem or "complete", str(item.path))
        for item in found
    ]
    table("", ("step", "size", "state", "path"), rows)


def verify(
    place: Annotated[Path, typer.Argument(help="Run folder or checkpoint.", metavar="RUN")],
    as_json: _Json = False,
) -> None:
    """Read every file of the checkpoints and compare it with its recorded hash."""
    if not place.is_dir():
        raise CommandError(f"{place}: no such folder; name a run folder or one of its checkpoints")
    from pretrain.checkpoints.checkpoint import list_checkpoints, verify_checkpoint

    paths = [place]
    if (place / "checkpoints").is_dir():
        paths = [item.path for item in list_checkpoints(place)]
    problems = {str(path): verify_checkpoint(path) for path in paths}
    if as_json:
        print_json(problems)
    else:
        for path, found in problems.items():
            for line in found:
                say(f"damaged: {line}")
            if not found:
                say(f"ok: {path}")
        if not problems:
            say(f"{place}: no checkpoint yet")
    if any(problems.values()):
        raise typer.Exit(EXIT_FAILED)
