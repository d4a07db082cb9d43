"""ListOps as files, in the layout of the published ones: ``Source``, tab, ``Target``."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.long_range_arena.listops import ListOpsGrammar, draw_expressions
from finetune.long_range_arena.vocabulary import Ids, listops_text

FACTS = "listops.json"


@dataclass(frozen=True, kw_only=True)
class ListOpsCounts:
    """How many rows; the defaults are Long Range Arena's.

    Raises:
        FinetuneError: A number is below 1.
    """

    training: int = 96_000
    """Rows of ``train.tsv``."""
    validation: int = 2_000
    """Rows of ``validation.tsv``."""
    test: int = 2_000
    """Rows of ``test.tsv``."""

    def __post_init__(self) -> None:
        for name, count in asdict(self).items():
            if count < 1:
                raise FinetuneError(f"{name} rows are {count}: use 1 or more")


def write_listops(
    out: Path,
    *,
    counts: ListOpsCounts,
    grammar: ListOpsGrammar,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write ``train.tsv``, ``validation.tsv`` and ``test.tsv``; no expression occurs twice.

    Test and validation rows are drawn first: they are the same whatever the number of training
    rows.

    Args:
        out: New or empty folder; it appears when all is written.
        counts: How many rows.
        grammar: Which expressions.
        seed: From 0; the same one gives the same files, byte for byte.
        say: Takes lines of progress.

    Returns:
        What `FACTS` in the folder holds: grammar, seed, and for each file rows, SHA-256, lengths
        and how often each value occurs.

    Raises:
        FinetuneError: The folder holds something, or there are not as many expressions.
        OSError: The disk refuses.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FinetuneError(f"{out}: exists and is not an empty folder; choose another --out")
    drawn = draw_expressions(grammar, seed)
    unfinished = out.parent / f".{out.name}.{os.getpid()}"
    unfinished.mkdir(parents=True)
    try:
        files = {}
        for name, rows in (
            ("test", counts.test),
            ("validation", counts.validation),
            ("train", counts.training),
        ):
            files[f"{name}.tsv"] = _write_rows(unfinished / f"{name}.tsv", islice(drawn, rows))
            say(f"{name}.tsv: {rows:,} rows")
        facts = {"grammar": asdict(grammar), "seed": seed, "files": files}
        (unfinished / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    return facts


def _write_rows(path: Path, rows: Iterator[tuple[Ids, int]]) -> dict[str, Any]:
    digest = hashlib.sha256()
    lengths: list[int] = []
    values: collections.Counter[int] = collections.Counter()
    with path.open("wb") as stream:
        line = b"Source\tTarget\n"
        stream.write(line)
        digest.update(line)
        for ids, value in rows:
            line = f"{listops_text(ids)}\t{value}\n".encode()
            stream.write(line)
            digest.update(line)
            lengths.append(len(ids))
            values[value] += 1
    return {
        "rows": len(lengths),
        "sha256": digest.hexdigest(),
        "least_tokens": min(lengths),
        "mean_tokens": round(sum(lengths) / len(lengths), 1),
        "most_tokens": max(lengths),
        "values": {str(value): values[value] for value in sorted(values)},
    }
