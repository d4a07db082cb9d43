"""``spade finetune …``: an exported model on a task."""

from __future__ import annotations

import typer

from launch.commands import (
    finetune_classify,
    finetune_listops,
    finetune_lm,
    finetune_lra,
    finetune_summarize,
)


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Fine-tune an exported model, with several seeds, and measure it.",
        epilog="Example: spade finetune classify --help",
        no_args_is_help=True,
    )
    # A group of one command would otherwise be that command.
    group.callback()(lambda: None)
    for command in (
        finetune_classify,
        finetune_listops,
        finetune_lm,
        finetune_lra,
        finetune_summarize,
    ):
        command.register(group)
    application.add_typer(group, name="finetune")
