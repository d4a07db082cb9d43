"""``spade pretrain``: one worker process of a run; a launcher starts as many as it wants."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import human_bytes, print_json, say, table
from launch.failures import EXIT_INTERRUPTED, EXIT_RESUMABLE
from launch.rank_output import send_output_to_file


def register(application: typer.Typer) -> None:
    """Adds the command."""
    application.command(
        "pretrain",
        epilog="Example: spade pretrain configs/quickstart.yaml name=trial train.max_steps=100 "
        "--dry-run",
    )(pretrain)


def pretrain(
    config: Annotated[Path, typer.Argument(help="Configuration as YAML.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that replace the file's.", metavar="a.b=c …"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, and start nothing.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse to go on from a checkpoint: begin a new run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Train, or go on training, as the configuration says.

    One process is one rank: start it alone, or by torchrun, deepspeed, srun or mpiexec. A run
    whose folder holds a complete checkpoint goes on from there. SIGTERM or Ctrl-C saves and ends
    with exit code 75; the same command goes on.
    """
    if as_json and not dry_run:
        raise typer.BadParameter("--json belongs to --dry-run; a run's numbers are in its folder")
    for override in overrides or ():
        if "=" not in override or override.startswith("="):
            raise typer.BadParameter(f"{override!r} is not of the form section.key=value")
    if dry_run:
        _show_plan(config, overrides or [], as_json)
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from launch.processes import end_with_parent

        end_with_parent()  # torchrun may be killed before it can end us
    code = _train(config, overrides or [], fresh=fresh)
    if code:
        raise typer.Exit(EXIT_RESUMABLE if code == EXIT_INTERRUPTED else code)


def _train(config: Path, overrides: list[str], *, fresh: bool) -> int:
    """Becomes a rank; leaves word for the launcher if it fails."""
    from pretrain.config import RunConfig
    from pretrain.ranks import find_ranks
    from pretrain.resilience.failures import log_folder_of_launcher, recorded_errors
    from pretrain.run_folder import RunFolder

    rank = find_ranks(os.environ).rank
    with recorded_errors(rank, log_folder_of_launcher(os.environ)):
        settings = RunConfig.load(config, overrides)
        send_output_to_file(
            rank,
            RunFolder(settings.run_path).logs,
            os.environ,
            most_bytes=int(settings.telemetry.log_megabytes * 1e6),
            files=settings.telemetry.log_files,
        )
        from pretrain import worker

        return worker.main(settings, fresh=fresh)


def _show_plan(config: Path, overrides: list[str], as_json: bool) -> None:
    """Prints what a run would be."""
    from pretrain.config import RunConfig
    from pretrain.planning.planner import describe

    plan: dict[str, Any] = describe(RunConfig.load(config, overrides))
    if as_json:
        print_json(plan)
        return
    import yaml

    rows: list[tuple[str, str]] = []
    for name, value in plan.items():
        if name.endswith("_bytes"):
            rows += [(f"memory of one rank: {part}", human_bytes(n)) for part, n in value.items()]
        elif isinstance(value, dict):
            say(f"# {name}")
            say(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
        else:
            rows.append((name.replace("_", " "), f"{value:,}"))
    table("", ("what", "value"), rows)
