"""``spade schema``: the configuration's JSON schema, for editors that complete YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from launch.console import print_json, say


def register(application: typer.Typer) -> None:
    """Adds the command."""
    application.command(
        "schema", epilog="Example: spade schema --out configs/schema.json", no_args_is_help=False
    )(schema)


def schema(
    out: Annotated[
        Path | None, typer.Option(help="File to write; without it the schema is printed.")
    ] = None,
) -> None:
    """Print or write the JSON schema of a run's configuration."""
    from pretrain.config import json_schema

    if out is None:
        print_json(json_schema())
        return
    out.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    say(f"wrote {out}; in a YAML file: # yaml-language-server: $schema={out}")
