"""``spade finetune make-listops``: the data of Long Range Arena's ListOps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import print_json, say, table


def register(group: typer.Typer) -> None:
    """Adds the command."""
    group.command(
        "make-listops",
        epilog="Example: spade finetune make-listops --out listops; then spade finetune lra --task "
        "listops --train listops/train.tsv …",
    )(make_listops)


def make_listops(
    out: Annotated[Path, typer.Option(help="New folder for train, validation and test.tsv.")],
    training_rows: Annotated[int, typer.Option(min=1)] = 96_000,
    validation_rows: Annotated[int, typer.Option(min=1)] = 2_000,
    test_rows: Annotated[int, typer.Option(min=1)] = 2_000,
    longer_than: Annotated[int, typer.Option(min=1, help="Tokens, brackets included.")] = 500,
    shorter_than: Annotated[int, typer.Option(min=3, help="Tokens.")] = 2_000,
    max_depth: Annotated[int, typer.Option(min=2, help="Of the deepest digits.")] = 10,
    max_arguments: Annotated[int, typer.Option(min=2, help="Of one operation.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same one gives the same files.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Write ListOps with the grammar and the lengths of Long Range Arena.

    The defaults are the published ones and take some minutes. No expression occurs twice, and test
    and validation rows do not depend on the number of training rows.
    """
    from finetune.long_range_arena.listops import ListOpsGrammar
    from finetune.long_range_arena.listops_files import ListOpsCounts, write_listops

    facts = write_listops(
        out,
        counts=ListOpsCounts(training=training_rows, validation=validation_rows, test=test_rows),
        grammar=ListOpsGrammar(
            longer_than_tokens=longer_than,
            shorter_than_tokens=shorter_than,
            max_depth=max_depth,
            max_arguments=max_arguments,
        ),
        seed=seed,
        say=(lambda line: None) if as_json else say,
    )
    if as_json:
        print_json(facts)
        return
    numbers = ("rows", "least_tokens", "mean_tokens", "most_tokens")
    rows = [
        (name, *(f"{found[number]:,}" for number in numbers))
        for name, found in facts["files"].items()
    ]
    table(f"ListOps in {out}", ("file", "rows", "least tokens", "mean", "most"), rows)
