"""Python processes of a test: truly fresh ones, or forked in milliseconds by a warm server."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

WARM_MODULES = (
    "pretrain.worker",
    "pretrain.assembly",
    "launch.cli",
    "torch.utils.tensorboard",
    # What torch and DeepSpeed import late: most of a rank's start.
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "setuptools",
)
"""What the fork server imports: all that a rank would."""


class Output:
    """Standard output and error of a process: a file, so that nobody waits for a reader."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process's object)

    def read(self) -> str:
        """All that was written so far."""
        size_bytes = os.fstat(self.file.fileno()).st_size
        return os.pread(self.file.fileno(), size_bytes, 0).decode("utf-8", errors="replace")


class FreshProcess:
    """``python ARGUMENTS`` in a session of its own."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._output = Output()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=self._output.file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def output(self) -> str:
        return self._output.read()

    def poll(self) -> int | None:
        """The exit code, None while it runs; negative for a signal."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; raises ``subprocess.TimeoutExpired``."""
        return self._process.wait(timeout)

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()


def wait_for_output(process: FreshProcess, sign: str, timeout_seconds: float = 200) -> None:
    """Returns when a running process has said something."""
    deadline = time.monotonic() + timeout_seconds
    while sign not in process.output:
        assert process.poll() is None, process.output
        assert time.monotonic() < deadline, process.output
        time.sleep(0.02)


class ForkedProcess:
    """The same, forked by a server that has the modules already."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self._output = Output()
        self._status, status = os.pipe()
        server().ask(arguments, environment, self._output.file.fileno(), status)
        os.close(status)
        self._told = b""
        self.pid = int(self._read_line(None))

    def __del__(self) -> None:
        os.close(self._status)

    @property
    def output(self) -> str:
        return self._output.read()

    def poll(self) -> int | None:
        """The exit code, None while it runs; negative for a signal."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; raises ``subprocess.TimeoutExpired``."""
        if self.returncode is None:
            self.returncode = int(self._read_line(timeout))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read_line(self, timeout: float | None) -> bytes:
        """The next thing the server tells of this process."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._told:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._status], [], [], left)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
            told = os.read(self._status, 64)
            if not told:
                raise RuntimeError(f"the fork server has ended: {server().output.read()}")
            self._told += told
        line, _, self._told = self._told.partition(b"\n")
        return line


class ForkServer:
    """The server's process, seen from the tests; it ends with them, whatever ends them."""

    def __init__(self) -> None:
        self.output = Output()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = Path(__file__).with_name("fork_server.py")
        self.process = subprocess.Popen(
            [sys.executable, script, str(theirs.fileno()), *WARM_MODULES],
            # Looking for GPUs through the driver's library alone: CUDA does not survive a fork.
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.output.file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        theirs.close()

    def ask(
        self, arguments: list[str], environment: Mapping[str, str], output: int, status: int
    ) -> None:
        """Asks for a process; ``status`` will tell its id and how it ended."""
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "folder": str(Path.cwd()),
        }
        socket.send_fds(self.control, [json.dumps(request).encode()], [output, status])

    def close(self) -> None:
        """Ends the server and what still runs under it."""
        self.control.close()
        self.process.wait()


@functools.cache
def server() -> ForkServer:
    """The fork server of this process, started when first asked for."""
    instance = ForkServer()
    atexit.register(instance.close)
    return instance
