"""What must be the same on all machines: our own code and the libraries it runs on."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_OUR_PACKAGES = ("launch", "pretrain", "data_pipeline", "spade_model")


def installed_version(name: str) -> str:
    """The version of a package, "" where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def code_fingerprint() -> str:
    """Our version and a hash of all our source files, e.g. ``0.1.0+1a2b3c4d5e``.

    A commit would not tell edited files apart.
    """
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in _OUR_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(content)}\n".encode())
            digest.update(content)
    return f"{installed_version('spade-pretrain') or 'unknown'}+{digest.hexdigest()[:10]}"
