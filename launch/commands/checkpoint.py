"""``spade checkpoint list|verify|prune|deepspeed``: what a run can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import human_bytes, print_json, say, table
from launch.failures import EXIT_FAILED, CommandError

_Run = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="List, verify, prune and translate the checkpoints of a run.",
        epilog="Example: spade checkpoint list runs/base",
        no_args_is_help=True,
    )
    group.command("list", epilog="Example: spade checkpoint list runs/base --json")(list_)
    group.command("verify", epilog="Example: spade checkpoint verify runs/base")(verify)
    group.command(
        "prune", epilog="Example: spade checkpoint prune runs/base --keep-last 3 --dry-run"
    )(prune)
    group.command(
        "deepspeed", epilog="Example: spade checkpoint deepspeed runs/base --out base-deepspeed"
    )(deepspeed)
    application.add_typer(group, name="checkpoint")


def list_(run: _Run, as_json: _Json = False) -> None:
    """List the checkpoints of a run, the oldest first, and what is wrong with broken ones."""
    _check_run(run)
    from pretrain.checkpoints.checkpoint_format import list_checkpoints

    found = list_checkpoints(run)
    if as_json:
        print_json(
            [
                {
                    "step": item.step,
                    "path": str(item.path),
                    "complete": item.complete,
                    "size_bytes": item.size_bytes,
                    "kind": item.kind,
                    "heldout_loss": item.heldout_loss,
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
        (
            str(item.step),
            human_bytes(item.size_bytes),
            item.kind or "",
            "" if item.heldout_loss is None else f"{item.heldout_loss:.4f}",
            item.problem or "complete",
            str(item.path),
        )
        for item in found
    ]
    table("", ("step", "size", "written as", "held-out loss", "state", "path"), rows)


def verify(
    place: Annotated[Path, typer.Argument(help="Run folder or checkpoint.", metavar="RUN")],
    as_json: _Json = False,
) -> None:
    """Read every file of the checkpoints and compare it with its recorded hash."""
    if not place.is_dir():
        raise CommandError(f"{place}: no such folder; name a run folder or one of its checkpoints")
    from pretrain.checkpoints.checkpoint_format import list_checkpoints, verify_checkpoint

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


def prune(
    run: _Run,
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="Newest complete checkpoints to keep.")
    ] = None,
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Keep those at multiples of so many steps.")
    ] = None,
    keep_best: Annotated[
        int | None, typer.Option(min=0, help="Checkpoints of the lowest held-out loss to keep.")
    ] = None,
    keep_stopped: Annotated[
        int | None, typer.Option(min=0, help="Newest ones written on a stop to keep besides.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = False,
    as_json: _Json = False,
) -> None:
    """Remove the checkpoints that no rule keeps.

    The rules are those of the run's configuration, and those given here instead of them. The newest
    complete checkpoint always stays, and so do damaged ones: remove these by hand. A run that is
    training may be pruned too.
    """
    _check_run(run)
    from pretrain.checkpoints.checkpoint_format import (
        latest_complete,
        list_checkpoints,
        load_run_config,
    )
    from pretrain.checkpoints.retention import doomed, remove_checkpoint

    given = {
        "keep_last": keep_last,
        "keep_every_steps": keep_every,
        "keep_best": keep_best,
        "keep_stopped": keep_stopped,
    }
    settings = load_run_config(latest_complete(run)).checkpoint.model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    leaving = doomed(list_checkpoints(run), settings, None)
    if not dry_run:
        for item in leaving:
            remove_checkpoint(item.path)
    if as_json:
        print_json(
            {
                "removed": not dry_run,
                "checkpoints": [
                    {"step": item.step, "path": str(item.path), "size_bytes": item.size_bytes}
                    for item in leaving
                ],
            }
        )
        return
    for item in leaving:
        done = "would remove" if dry_run else "removed"
        say(f"{done} {item.path} ({human_bytes(item.size_bytes)})")
    if not leaving:
        say(f"{run}: the rules keep every checkpoint")


def deepspeed(
    place: Annotated[Path, typer.Argument(help="Run folder or checkpoint.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    as_json: _Json = False,
) -> None:
    """Write a checkpoint's weights as DeepSpeed lays them out.

    DeepSpeed's own tools read the folder, such as python -m deepspeed.utils.zero_to_fp32 OUT FILE.
    It holds no optimizer, so that nothing can be trained on from it.
    """
    if not place.is_dir():
        raise CommandError(f"{place}: no such folder; name a run folder or one of its checkpoints")
    from pretrain.checkpoints.checkpoint_format import latest_complete
    from pretrain.checkpoints.deepspeed_layout import write_deepspeed_folder

    checkpoint = latest_complete(place) if (place / "checkpoints").is_dir() else place
    written = write_deepspeed_folder(checkpoint, out)
    if as_json:
        print_json(
            {
                "path": str(written.path),
                "checkpoint": str(checkpoint),
                "tag": written.tag,
                "ranks": written.ranks,
                "size_bytes": written.size_bytes,
            }
        )
        return
    say(
        f"{written.path}: {written.tag} of {written.ranks} ranks, "
        f"{human_bytes(written.size_bytes)}; python -m deepspeed.utils.zero_to_fp32 "
        f"{written.path} WEIGHTS puts it together"
    )


def _check_run(run: Path) -> None:
    if not run.is_dir():
        raise CommandError(f"{run}: no such run folder; name a folder that spade pretrain wrote")
