"""The ``spade`` command.

One file per group of commands under ``launch/commands``; each imports what it starts only when it
is called, so that ``spade --help`` answers at once on a login node.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import typer


_ORDER = (
    *("quickstart", "tokenizer", "data", "plan", "pretrain", "launch", "jobs", "checkpoint"),
    *("report", "export", "generate", "import", "finetune", "evaluate", "doctor", "schema"),
)


def create_application() -> typer.Typer:
    """Assembles the command from its groups. Only what works is listed."""
    import typer
    import typer.core

    from launch.commands import (
        checkpoint,
        data,
        doctor,
        evaluate,
        export,
        finetune,
        importing,
        jobs,
        launching,
        plan,
        pretrain,
        quickstart,
        report,
        schema,
        tokenizer,
    )
    from launch.console import is_terminal

    class InOrderOfUse(typer.core.TyperGroup):
        """Lists the commands in the order in which they are used, not groups behind the rest."""

        def list_commands(self, ctx: Any) -> list[str]:
            return sorted(super().list_commands(ctx), key=_ORDER.index)

    application = typer.Typer(
        name="spade",
        cls=InOrderOfUse,
        help="Pretrain SPADE, a long-document encoder-decoder: documents, shards, steps, weights.",
        epilog="Example: spade quickstart --out ./quickstart",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if is_terminal() else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    groups = (
        quickstart,
        tokenizer,
        data,
        plan,
        pretrain,
        launching,
        jobs,
        checkpoint,
        report,
        export,
        importing,
        finetune,
        evaluate,
        doctor,
        schema,
    )
    for group in groups:
        group.register(application)
    return application


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; nothing but that code leaves it.

    Args:
        arguments: What follows ``spade`` on the command line.
    """
    from launch import failures
    from launch.console import warn

    prefix = failures.prefix_of_rank()
    try:
        import typer

        command = typer.main.get_command(create_application())
        result = command.main(args=list(arguments), prog_name="spade", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        code = failures.EXIT_INTERRUPTED
    except failures.Stopped as stop:
        warn(f"{prefix}{stop}")
        return stop.exit_code
    except BrokenPipeError:
        # The reader of our output left (``spade … | head``): nothing to tell, nobody to tell it to.
        sys.stdout = None  # keeps the interpreter from flushing it
        return failures.EXIT_FAILED
    except Exception as error:
        if type(error).__name__ == "Abort":
            code = failures.EXIT_INTERRUPTED
        elif hasattr(error, "format_message"):
            return _usage_error(error)
        elif failures.wants_traceback():
            raise
        else:
            for line in failures.describe(error):
                warn(f"error: {prefix}{line}")
            return failures.EXIT_FAILED
    if code == failures.EXIT_INTERRUPTED:
        warn(f"{prefix}stopped by Ctrl-C")
    return code


def _usage_error(error: Exception) -> int:
    """Says what is wrong with the command line. Typer's own class for it is private."""
    from launch.console import say, warn
    from launch.failures import EXIT_USAGE

    context = getattr(error, "ctx", None)
    message = error.format_message()  # type: ignore[attr-defined]  # tested by the caller
    if type(error).__name__ == "NoArgsIsHelpError":
        if message:
            say(message)
        return EXIT_USAGE
    hint = f" (see '{context.command_path} --help')" if context is not None else ""
    warn(f"error: {' '.join(message.split())}{hint}")
    return EXIT_USAGE


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A character that the terminal's encoding lacks must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # while still importing
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    forget_interrupts()
    sys.exit(code)


def forget_interrupts() -> None:
    """Makes the interpreter leave with the exit code it is given.

    Where Ctrl-C falls into code that is compiled from text (dataclasses and named tuples are, while
    they are imported), CPython notes it as unhandled for ever after, and with ``python -m`` ends by
    the signal instead of the code. Compiling once more resets the note.
    """
    eval("0")


if __name__ == "__main__":
    main()
