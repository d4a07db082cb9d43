"""One start of all ranks: an ssh to each host, held until the last one has ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import IO, TextIO

from launch.clusters.control import ALIVE, BEAT_SECONDS, KILL, SILENCE_SECONDS, STOP
from launch.clusters.ssh.connection import LOST
from launch.clusters.ssh.hostfile import Host
from launch.console import warn
from launch.processes import ProcessResult, StopRequests, end_with_parent
from launch.torchrun import combined_exit_code

_POLL_SECONDS = 0.1
_KILL_SECONDS = 10.0
_LAST_OUTPUT_SECONDS = 5.0


class Agent:
    """The ssh that runs the agent of one host, which runs its ranks."""

    def __init__(self, host: Host, command: Sequence[str]) -> None:
        """Start it.

        Raises:
            OSError: ssh cannot be started.
        """
        self.host = host
        # The kernel ends it with us; of the terminal's Ctrl-C it shall hear nothing.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)

    def say(self, word: bytes) -> None:
        """Tell the agent something; lost where it has ended or nobody listens."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            os.write(self.process.stdin.fileno(), word)

    @property
    def lost(self) -> bool:
        """Whether ssh has ended without having heard how the agent did."""
        code = self.process.poll()
        return code is not None and (code < 0 or code == LOST)

    def exit_code(self) -> int | None:
        """The exit code of the host's ranks, 82 where it is not known; none while they run."""
        from pretrain.resilience.ending import LOST_EXIT_CODE

        return LOST_EXIT_CODE if self.lost else self.process.poll()


class Output:
    """Shows what the agents say, in a thread: a terminal that stands still must hold nobody up.

    The first host's words appear as they are, since rank 0 is there; in front of the others', which
    only speak of trouble, stands the name of their host.
    """

    def __init__(self, agents: Sequence[Agent]) -> None:
        self._selector = selectors.DefaultSelector()
        for number, agent in enumerate(agents):
            prefix = "" if number == 0 else f"{agent.host.name}: "
            self._add(agent.process.stdout, sys.stdout if number == 0 else sys.stderr, prefix)
            self._add(agent.process.stderr, sys.stderr, prefix)
        self._thread = threading.Thread(target=self._show, name="output", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the last words."""
        self._thread.join(_LAST_OUTPUT_SECONDS)

    def _add(self, source: IO[bytes] | None, sink: TextIO, prefix: str) -> None:
        assert source is not None
        self._selector.register(source, selectors.EVENT_READ, (sink, prefix, bytearray()))

    def _show(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                sink, prefix, rest = key.data
                received = os.read(key.fd, 65536)
                rest += received
                *lines, last = rest.split(b"\n")
                if not received:
                    self._selector.unregister(key.fileobj)
                    lines, last = [*lines, last] if last else lines, bytearray()
                rest[:] = last
                with contextlib.suppress(OSError, ValueError):  # nobody reads us any more
                    for line in lines:
                        sink.write(f"{prefix}{line.decode('utf-8', errors='replace')}\n")
                    sink.flush()


def run_attempt(
    hosts: Sequence[Host], commands: Sequence[Sequence[str]], *, end_seconds: float
) -> ProcessResult:
    """Start the ranks of all hosts and wait until none is left.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 make all ranks save together and end; a second Ctrl-C kills
    them. Once a host has failed, the others are asked to stop as well: their ranks cannot go on.

    Args:
        hosts: Those that take part.
        commands: For each host the arguments of ssh that run its agent.
        end_seconds: Longest wait, after a host has failed, until the others have ended.

    Returns:
        How it ended; the exit code is that of the host that failed first.

    Raises:
        OSError: ssh cannot be started.
    """
    requests = StopRequests()
    began = time.monotonic()
    agents: list[Agent] = []
    with requests.listening():
        try:
            for host, command in zip(hosts, commands, strict=True):
                agents.append(Agent(host, command))
            output = Output(agents)
            codes = _hold(agents, requests, end_seconds)
            output.close()
        finally:
            _leave(agents)
    return ProcessResult(
        exit_code=combined_exit_code(codes),
        signals=tuple(requests.received),
        seconds=time.monotonic() - began,
    )


def _hold(agents: Sequence[Agent], requests: StopRequests, end_seconds: float) -> list[int]:
    """Hold the agents until all have ended.

    Returns:
        Their exit codes in the order in which they ended.
    """
    left = list(agents)
    codes: list[int] = []
    beat_at = 0.0
    stopped = False
    kill_at: float | None = None
    while left:
        now = time.monotonic()
        for agent in list(left):
            code = agent.exit_code()
            if code is None:
                continue
            left.remove(agent)
            codes.append(code)
            if agent.lost:
                _tell_of_loss(agent)
            if code not in (0, 75) and kill_at is None:
                kill_at = now + end_seconds
        if (requests.received or kill_at is not None) and not stopped:
            stopped = True
            _say(left, STOP)
        if requests.wants_kill or (kill_at is not None and now > kill_at):
            return codes + _kill(left)
        if now >= beat_at:
            beat_at = now + BEAT_SECONDS
            _say(left, ALIVE)
        time.sleep(_POLL_SECONDS)
    return codes


def _tell_of_loss(agent: Agent) -> None:
    warn(
        f"{agent.host.name}: the connection is lost; its ranks save if they can, and end by "
        f"themselves after {SILENCE_SECONDS:g} s of silence"
    )


def _say(agents: Sequence[Agent], word: bytes) -> None:
    for agent in agents:
        agent.say(word)


def _kill(left: Sequence[Agent]) -> list[int]:
    """Have the ranks killed where they are, which only their own host can."""
    _say(left, KILL)
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline and any(agent.exit_code() is None for agent in left):
        time.sleep(_POLL_SECONDS)
    return [128 + signal.SIGKILL if (code := agent.exit_code()) is None else code for agent in left]


def _leave(agents: Sequence[Agent]) -> None:
    """End every ssh; an agent that still runs stops, as its line is closed."""
    for agent in agents:
        assert agent.process.stdin is not None
        agent.process.stdin.close()
    for agent in agents:
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.process.wait(_POLL_SECONDS)
        agent.process.kill()
        agent.process.wait()
