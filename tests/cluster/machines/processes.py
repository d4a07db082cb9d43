"""Processes on a host, seen from the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


class HostProcess(subprocess.Popen[bytes]):
    """A command in a host's namespaces. Signals reach the command, not `nsenter` around it.

    Both outputs go to a file, so that the command never waits for a reader.
    """

    def __init__(
        self,
        first_process: int,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        log: Path | None = None,
    ) -> None:
        """Start it.

        Args:
            first_process: Of the host, as numbered outside.
            command: The program, found in the PATH of `environment`, and its arguments.
            environment: All of its variables.
            folder: Where it runs.
            stdin: As for `subprocess.Popen`.
            log: File for the output; none is a temporary one.
        """
        # Each namespace by its name: `--all` of some versions enters the user's as well, and fails.
        inside = ("--net", "--uts", "--ipc", "--mount", "--pid")
        self._output = (
            tempfile.TemporaryFile() if log is None else log.open("wb+")  # noqa: SIM115 (leave)
        )
        super().__init__(
            # A folder entered from outside would lie on the mounts outside.
            [
                *("nsenter", "--target", str(first_process), *inside),
                *("env", f"--chdir={folder}", *command),
            ],
            env=dict(environment),
            stdin=stdin,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        """What it has written on standard output and error so far."""
        size_bytes = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size_bytes, 0).decode("utf-8", errors="replace")

    @property
    def command_pid(self) -> int | None:
        """Number of the command's process as seen from outside; None once it has ended."""
        while self.poll() is None:
            children = children_of(self.pid)
            if children:
                return children[0]
            time.sleep(0.005)
        return None

    def send_signal(self, number: int) -> None:
        """Signal the command; nothing happens where it has ended."""
        process = self.command_pid
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
            if number == signal.SIGCONT:
                super().send_signal(number)  # `nsenter` has stopped with its command

    def leave(self) -> None:
        """Forget it, whatever it does."""
        if self.stdin is not None:
            self.stdin.close()
        if self.poll() is None:
            super().send_signal(signal.SIGKILL)
            self.wait()
        self._output.close()


def children_of(process: int) -> list[int]:
    """Numbers of the child processes of a process, started by its first thread."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in text.split()]


def processes_beside(first_process: int) -> dict[int, str]:
    """Command lines of all processes in the PID namespace of a process, but its own."""
    namespace = Path(f"/proc/{first_process}/ns/pid").readlink()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == first_process:
            continue
        try:
            if (folder / "ns" / "pid").readlink() != namespace:
                continue
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended meanwhile
        if line:  # a zombie has none
            found[int(folder.name)] = line.strip()
    return found


def listens(process: int, port: int) -> bool:
    """Tell whether somebody in the network namespace of a process accepts connections on a port."""
    lines = []
    for table in ("tcp", "tcp6"):
        try:
            lines += Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            return False
    return any(
        fields[1].endswith(f":{port:04X}") and fields[3] == "0A"
        for fields in (line.split() for line in lines)
    )
