"""Where the data are, and their commonest form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from benchmarks.downstream.made_up import write_made_up
from benchmarks.downstream.options import Options


def source_folder(options: Options) -> Path:
    """Where the data are; invented ones are made if there are none."""
    return write_made_up(options.folder / "made-up") if options.data is None else options.data


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read gzipped JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]
