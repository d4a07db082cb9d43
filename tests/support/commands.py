"""Typing commands in tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def spade(*arguments: str | Path, code: int = 0) -> str:
    """Runs a command that must end with ``code``; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-m", "launch.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=240,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout if code == 0 else result.stdout + result.stderr
