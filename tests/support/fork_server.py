"""A process that has imported what ranks need and forks them in milliseconds.

``python fork_server.py CONTROL MODULE...`` imports the modules, then serves the socket whose
descriptor is CONTROL: each message is a JSON object and two descriptors, and makes one process that
behaves as ``python ARGUMENTS`` would: environment, folder, session, signal handlers, randomness and
the way it ends (the interpreter's own) are those of a fresh one. What an interpreter reads while it
starts or imports is the server's: PYTHONPATH, PYTHONHASHSEED, OMP_NUM_THREADS.

    arguments    as of ``python``: a script, or -m and a module, and their arguments
    environment  the whole of it
    folder       working folder

The first descriptor becomes the standard output and error; on the second the server tells the
process id and, when it has ended, the exit code (negative: the signal). When the other side closes
the socket, the server ends its processes and itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

LONGEST_MESSAGE_BYTES = 2**17


class Server:
    """Forks processes on request and tells how they ended."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ)
        self.running: dict[int, tuple[int, int]] = {}
        """Descriptor that becomes readable when a process ends -> its id, where to tell."""

    def serve(self) -> dict[str, Any] | None:
        """Returns None at the end of the service, and in each new process its request."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is not self.control:
                    self._bury(key.fd)
                    continue
                message, descriptors, *_ = socket.recv_fds(self.control, LONGEST_MESSAGE_BYTES, 2)
                if not message:
                    self._end_all()
                    return None
                if self._fork(*descriptors):
                    return json.loads(message)

    def _fork(self, output: int, status: int) -> bool:
        process = os.fork()
        if process == 0:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            self._let_go(output, status)
            return True
        os.close(output)
        os.write(status, b"%d\n" % process)
        ended = os.pidfd_open(process)
        self.running[ended] = (process, status)
        self.selector.register(ended, selectors.EVENT_READ)
        return False

    def _let_go(self, *descriptors: int) -> None:
        """Closes, in a new process, what is the server's."""
        for ended, (_, status) in self.running.items():
            os.close(ended)
            os.close(status)
        for descriptor in descriptors:
            os.close(descriptor)
        self.control.close()
        self.selector.close()

    def _bury(self, ended: int) -> None:
        process, status = self.running.pop(ended)
        self.selector.unregister(ended)
        os.close(ended)
        _, code = os.waitpid(process, 0)
        with contextlib.suppress(BrokenPipeError):  # nobody wants to know
            os.write(status, b"%d\n" % os.waitstatus_to_exitcode(code))
        os.close(status)

    def _end_all(self) -> None:
        for process, _ in self.running.values():
            os.kill(process, signal.SIGKILL)


def run(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Does in this process what ``python ARGUMENTS`` does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    _draw_seeds()
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], folder
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def _draw_seeds() -> None:
    """Numpy and torch take their first seeds from the system; Python's own generator sees to it."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(random.SystemRandom().randrange(2**32))
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()


def main() -> None:
    control, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:  # they would be missing in the forked processes, their locks held for ever
        raise SystemExit(f"importing {' '.join(modules)} started {threads - 1} threads")
    gc.collect()
    gc.freeze()  # the forked processes' garbage collections leave these pages shared
    request = Server(socket.socket(fileno=int(control))).serve()
    if request is not None:
        run(**request)


if __name__ == "__main__":
    main()
