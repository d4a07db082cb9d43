"""The options that every launcher takes, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="Configuration as YAML.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings that replace the file's.", metavar="a.b=c …"),
]
Cluster = Annotated[
    Path | None,
    typer.Option("--cluster", help="Description of the cluster as YAML.", metavar="FILE"),
]
Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
MinNodes = Annotated[
    int | None,
    typer.Option(min=1, help="Machines with which to go on when others fail (default: all)."),
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Ranks of each machine (default: one a GPU, or one)."),
]
GpusPerNode = Annotated[
    int, typer.Option(min=0, help="GPUs of each machine, one a rank; 0 asks for none.")
]
MaxRestarts = Annotated[
    int,
    typer.Option(min=0, help="After a failure go on from the newest checkpoint, so often in vain."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show exactly what would run, and start nothing.")
]
