"""The corpus every machine has: the sources of the running Python's own standard library."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.files import explaining, make_folder, readable_json, write_atomically

CORPUS_FILE = "python_standard_library.jsonl"
FACTS_FILE = "corpus.json"

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
)
_SKIPPED_PREFIXES = ("config-", "lib-dynload", ".")
# Written while Python is built: full of paths of the machine, and another on each.
_GENERATED_PREFIX = "_sysconfigdata"


def write_standard_library_corpus(out: Path) -> Path:
    """Writes the sources of the standard library as one JSON lines file.

    Tests, installed packages, links, generated and empty files and files that are not UTF-8 are
    left out. Next to it `corpus.json` records the Python version, counts, bytes and checksum.

    Args:
        out: Folder to write into, created if needed.

    Returns:
        The path of the JSON lines file, whose objects hold `id` (relative path) and `text`.

    Raises:
        DataError: If the library has no sources on this machine or `out` cannot be written.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    lines: list[bytes] = []
    text_bytes = 0
    num_not_utf8 = 0
    for path in _source_files(root):
        with explaining("read", path):
            data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            num_not_utf8 += 1
            continue
        if not text:
            continue
        text_bytes += len(data)
        record = {"id": path.relative_to(root).as_posix(), "text": text}
        lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    if not lines:
        raise DataError(
            f"{root} holds no Python sources (a stripped installation): name a corpus of your own"
        )
    content = b"".join(lines)
    make_folder(out)
    write_atomically(out / CORPUS_FILE, content)
    facts = {
        "source": "sources of the Python standard library",
        "python_version": platform.python_version(),
        "license": "PSF-2.0",
        "documents": len(lines),
        "text_bytes": text_bytes,
        "skipped_not_utf8": num_not_utf8,
        "file": CORPUS_FILE,
        "file_bytes": len(content),
        "file_sha256": hashlib.sha256(content).hexdigest(),
    }
    write_atomically(out / FACTS_FILE, readable_json(facts))
    return out / CORPUS_FILE


def _source_files(root: Path) -> Iterator[Path]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in _SKIPPED_FOLDERS and not name.startswith(_SKIPPED_PREFIXES)
        ]
        sources = (name for name in names if name.endswith(".py"))
        paths = (Path(folder) / name for name in sources if not name.startswith(_GENERATED_PREFIX))
        # A link would bring in a file of the machine (Debian's sitecustomize.py).
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return iter(sorted(found, key=lambda path: path.relative_to(root).as_posix()))
