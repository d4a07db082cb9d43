"""Small invented data in the layout of the real ones, to see that everything runs."""

from __future__ import annotations

import gzip
import json
import random
import zipfile
from collections.abc import Iterable
from pathlib import Path

_WORDS = [a + b + c for a in "bdglmnrst" for b in "aeiou" for c in ("", "n", "r")]
_SIGNS = ("dreary", "lovely")
"""Words that decide of a text's class."""


def write_made_up(folder: Path) -> Path:
    """Write all folders that the benchmark reads, unless they are there."""
    if (folder / "done").exists():
        return folder
    draw = random.Random(0)
    for name in ("sotu", "peps", "sumpubmed", "sst2", "mrpc", "movie_reviews"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_documents(folder, draw)
    for name, rows in (("train", 40), ("dev", 12), ("test", 12)):
        lines = [f"{_sentence(draw, row % 2)}\t{row % 2}" for row in range(rows)]
        (folder / "sst2" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, rows in (("train", 40), ("test", 12)):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for row in range(rows):
            first = _sentence(draw, 0)
            second = first if row % 2 else _sentence(draw, 0)
            lines.append(f"{row % 2}\t{row}\t{row}\t{first}\t{second}")
        path = folder / "mrpc" / f"msr_paraphrase_{name}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    with zipfile.ZipFile(folder / "movie_reviews" / "movie_reviews.zip", "w") as archive:
        for label, sign in (("neg", 0), ("pos", 1)):
            for number in (*range(12), *range(800, 804), *range(900, 904)):
                name = f"movie_reviews/{label}/cv{number:03}_{number}.txt"
                archive.writestr(name, "\n".join(_sentence(draw, sign) for _ in range(8)))
    (folder / "done").touch()
    return folder


def _sentence(draw: random.Random, sign: int) -> str:
    words = draw.choices(_WORDS, k=draw.randint(5, 15))
    words.insert(draw.randrange(len(words)), _SIGNS[sign])
    return " ".join(words)


def _document(draw: random.Random) -> str:
    return ". ".join(_sentence(draw, draw.randrange(2)) for _ in range(30))


def _write_documents(folder: Path, draw: random.Random) -> None:
    for source in ("sotu", "peps"):
        rows = [{"id": f"{source}-{row}", "text": _document(draw)} for row in range(60)]
        _write(folder / source / "docs.jsonl.gz", rows)
    for name, rows_of_split in (("train", 8), ("val", 4), ("test", 6)):
        pairs = []
        for row in range(rows_of_split):
            document = _document(draw)
            summary = f"{document[:50]}\u2028{document[50:60]}"  # a line's end to some readers
            pairs.append({"id": f"{name}-{row}", "document": document, "summary": summary})
        _write(folder / "sumpubmed" / f"{name}.jsonl.gz", pairs)
        asked = [{"id": f"peps-{row}", "document": "", "summary": ""} for row in range(2)]
        _write(folder / "peps" / f"sum_{name}.jsonl.gz", asked)


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row) + "\n")
