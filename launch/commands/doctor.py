"""``spade doctor``: what this machine has, what is missing, what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.console import print_json, say, table
from launch.failures import EXIT_FAILED


def register(application: typer.Typer) -> None:
    """Adds the command."""
    application.command(
        "doctor", epilog="Example: spade doctor --json > machine.json", no_args_is_help=False
    )(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and this environment, and say what to fix.

    Exit code 1 where something essential fails; a warning does not.
    """
    from launch.doctor import examine

    findings = examine()
    if as_json:
        print_json([finding.to_dict() for finding in findings])
    else:
        table(
            "",
            ("state", "what", "found", "what to do"),
            [(item.state, item.name, item.value, item.remedy) for item in findings],
        )
        failed = sum(item.state == "fail" for item in findings)
        warned = sum(item.state == "warn" for item in findings)
        say(
            f"{failed} to fix before anything runs, {warned} to know about"
            if failed
            else f"ready to train; {warned} to know about"
        )
    if any(item.state == "fail" for item in findings):
        raise typer.Exit(EXIT_FAILED)
