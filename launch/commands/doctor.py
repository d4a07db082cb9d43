"""``spade doctor``: what this machine or a cluster has, what is missing, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.console import print_json, printable, say, table
from launch.failures import EXIT_FAILED, CommandError

if TYPE_CHECKING:
    from launch.clusters.doctor.examination import Report
    from launch.doctor import Finding

# More machines than this become rows, so that the table stays readable.
_MOST_COLUMNS = 4
_CELL_CHARACTERS = 44


def register(application: typer.Typer) -> None:
    """Adds the command."""
    application.command(
        "doctor",
        epilog="Example: spade doctor --cluster ssh --hostfile hosts",
        no_args_is_help=False,
    )(doctor)


def doctor(
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Check all machines of a cluster: local, slurm, ssh or mpi.", metavar="KIND"
        ),
    ] = None,
    description: Annotated[
        Path | None,
        typer.Option(
            help="Description of the cluster as YAML: launch's --cluster.", metavar="FILE"
        ),
    ] = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(help="Hosts for ssh and mpi, HOST slots=N a line.", metavar="FILE"),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines (default: all known).")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs that each machine should have.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Folder that all machines should share.", metavar="FOLDER")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine, or all machines of a cluster together, and say what to fix.

    Exit code 1 where something essential fails; a warning does not.
    """
    if cluster is None:
        if description or hostfile or nodes or gpus_per_node:
            raise CommandError("these options need --cluster KIND: local, slurm, ssh or mpi")
        _this_machine(as_json)
        return
    from launch.clusters.doctor.examination import examine_cluster
    from launch.clusters.doctor.kinds import machines_of

    report = examine_cluster(
        machines_of(
            cluster,
            description=description,
            hostfile=hostfile,
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            folder=folder,
        )
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report)
    if report.failed:
        raise typer.Exit(EXIT_FAILED)


def _this_machine(as_json: bool) -> None:
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


def _show(report: Report) -> None:
    """The table, and below it what to do."""
    checks = list(dict.fromkeys(item.name for column in report.columns for item in column.findings))
    cells = [
        {item.name: _cell(item.state, item.value) for item in column.findings}
        for column in report.columns
    ]
    names = [column.name for column in report.columns]
    if len(names) <= _MOST_COLUMNS:
        rows = [[check, *(cell.get(check, "-") for cell in cells)] for check in checks]
        table("", ["check", *names], rows)
    else:
        table(
            "",
            ["machine", *checks],
            [
                [name, *(cell.get(check, "-") for check in checks)]
                for name, cell in zip(names, cells, strict=True)
            ],
        )
    problems: dict[Finding, list[str]] = {}
    for column in report.columns:
        for item in column.findings:
            if item.state != "ok":
                problems.setdefault(item, []).append(column.name)
    for item in sorted(problems, key=lambda item: item.state != "fail"):
        say(f"{item.state} {', '.join(problems[item])}, {item.name}: {printable(item.value)}")
        say(f"     {item.remedy}")
    failed = sum(item.state == "fail" for item in problems)
    count = f"{len(names)} machine{'s' * (len(names) != 1)}"
    say(
        f"{count}: {failed} to fix, {len(problems) - failed} to know about"
        if failed
        else f"{count}: ready to train together; {len(problems)} to know about"
    )


def _cell(state: str, value: str) -> str:
    word = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}[state]
    return f"{word} {printable(value, limit=_CELL_CHARACTERS)}"
