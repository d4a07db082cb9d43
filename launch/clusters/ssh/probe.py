"""What a host is asked before a start: ``python -m launch.clusters.ssh.probe QUESTIONS``.

The questions are JSON, and so is the answer, the only line of its output that begins with MARK:
whatever else a login or a module prints is no part of it. Nothing heavy is loaded.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.clusters.versions import code_fingerprint, installed_version

MARK = "spade-host "
_LIBRARIES = ("torch", "deepspeed", "numpy")


@dataclass(frozen=True)
class Questions:
    """What is asked."""

    config: str
    """The configuration that will run, as an absolute path."""
    token_file: str
    """A file that the launcher has just written beside it."""
    folders: list[str]
    """What must exist, from the working folder on."""
    first_machine: str
    """Name of the host that all others must reach."""


@dataclass(frozen=True)
class Answer:
    """What a host says of itself."""

    versions: dict[str, str]
    """Of Python, of this package's own files, of the libraries that the ranks must agree on."""
    token: str | None
    """What the file holds; none where it is not there."""
    missing: list[str]
    """Folders that are not there."""
    first_address: str | None
    """What the first machine's name means here; none for nothing."""
    busy: list[int]
    """Processes of this very run."""
    port: int
    """Free here at the moment."""


def own_versions() -> dict[str, str]:
    """What must be the same on all hosts."""
    libraries = {name: installed_version(name) or "none" for name in _LIBRARIES}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **libraries, "spade": code_fingerprint()}


def processes_of_run(config: str) -> list[int]:
    """Processes on this machine that run a configuration: agents, torchrun, ranks."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if config in words and ("launch.clusters.node" in words or "pretrain" in words):
            found.append(process.pid)
    return found


def answer(questions: Questions) -> Answer:
    """Look around."""
    try:
        token = Path(questions.token_file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        token = None
    try:
        address = socket.getaddrinfo(questions.first_machine, None)[0][4][0]
    except (OSError, UnicodeError):
        address = None
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return Answer(
        versions=own_versions(),
        token=token,
        missing=[folder for folder in questions.folders if not Path(folder).exists()],
        first_address=None if address is None else str(address),
        busy=processes_of_run(questions.config),
        port=port,
    )


def read_answer(output: str) -> Answer | None:
    """Find the answer in what a host printed; none where it says nothing of the kind."""
    for line in output.splitlines():
        if line.startswith(MARK):
            try:
                return Answer(**json.loads(line.removeprefix(MARK)))
            except (ValueError, TypeError):
                return None
    return None


def main(arguments: Sequence[str]) -> int:
    """Answer on standard output."""
    (questions,) = arguments
    found = answer(Questions(**json.loads(questions)))
    sys.stdout.write(f"\n{MARK}{json.dumps(asdict(found))}{os.linesep}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
