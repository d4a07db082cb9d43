"""What a recipe calls the files that it is to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.training import VALIDATION


def name_tests(tests: Sequence[Path]) -> dict[str, Path]:
    """Name each file by what stands before the first dot of its own name.

    Raises:
        FinetuneError: Two would have the same name, or that of other data of the run.
    """
    names: dict[str, Path] = {}
    for path in tests:
        name = path.name.partition(".")[0]
        if name in ("training", VALIDATION) or name in names:
            raise FinetuneError(
                f"{path}: results of another file are called {name!r} already; rename the file"
            )
        names[name] = path
    return names
