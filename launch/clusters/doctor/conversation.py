"""The doctor's side of the connections to all machines: orders out, answers in, never a hang."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.clusters.doctor.messages import Assembler

_END_SECONDS = 5.0
_KEPT_LINES = 20
# srun tells of a task that ended early while the others go on.
_SRUN_TASK_ENDED = re.compile(r"srun: error: .*: task (\d+): (.*)")
# A connection's last words that say nothing about the reason.
_IDLE_WORDS = re.compile(r"^srun: (?:Job step aborted|Terminating|launch/)|^$")


@dataclass(frozen=True)
class Start:
    """A program that starts the agents of some machines and carries their input and output."""

    command: tuple[str, ...]
    nodes: tuple[int, ...]
    """Numbers of the machines it serves."""
    environment: Mapping[str, str] | None = None
    explain: Callable[[int, str], str] | None = None
    """Puts an exit code and what was said on standard error into words."""


@dataclass
class _Channel:
    start: Start
    process: subprocess.Popen[str]
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    readers: list[threading.Thread] = field(default_factory=list)


class Conversation:
    """All connections; use it as a context manager."""

    def __init__(self, starts: Sequence[Start]) -> None:
        """Start every program.

        Args:
            starts: Which.

        Raises:
            OSError: If one cannot be started on this machine.
        """
        self.lost: dict[int, str] = {}
        """Machines that cannot be heard any more, and why."""
        self._answers: queue.Queue[tuple[int, dict[str, Any]] | None] = queue.Queue()
        self._channels: list[_Channel] = []
        try:
            for start in starts:
                self._open(start)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @property
    def nodes(self) -> list[int]:
        """Machines that can still be heard."""
        all_nodes = {node for channel in self._channels for node in channel.start.nodes}
        return sorted(all_nodes - set(self.lost))

    def order(self, order: Mapping[str, Any], limit_seconds: float) -> dict[int, dict[str, Any]]:
        """Tell all machines the same and wait for their answers.

        A machine whose connection ends or that does not answer in time is lost.

        Args:
            order: What to do.
            limit_seconds: Longest wait.

        Returns:
            The answers by machine.
        """
        self._say(order)
        until = time.monotonic() + limit_seconds
        answers: dict[int, dict[str, Any]] = {}
        while missing := set(self.nodes) - set(answers):
            left = until - time.monotonic()
            if left <= 0:
                for node in missing:
                    self._lose(node, f"no answer in {limit_seconds:.0f} s")
                break
            with contextlib.suppress(queue.Empty):
                item = self._answers.get(timeout=left)
                if item is not None and item[1].get("to") == order["do"]:
                    answers[item[0]] = item[1]
        return {node: answer for node, answer in answers.items() if node not in self.lost}

    def close(self) -> None:
        """Let all agents end, and whatever carries them."""
        self._say({"do": "end"})
        for channel in self._channels:
            with contextlib.suppress(OSError):
                assert channel.process.stdin is not None
                channel.process.stdin.close()
        until = time.monotonic() + _END_SECONDS
        for channel in self._channels:
            for stop in (channel.process.terminate, channel.process.kill):
                try:
                    channel.process.wait(max(0.1, until - time.monotonic()))
                    break
                except subprocess.TimeoutExpired:
                    stop()
            channel.process.wait()

    def _open(self, start: Start) -> None:
        process = subprocess.Popen(
            start.command,
            env=start.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Ctrl-C ends the doctor, who ends the connections in order.
            start_new_session=True,
        )
        channel = _Channel(start, process)
        self._channels.append(channel)
        for target in (self._read_errors, self._read_answers):
            thread = threading.Thread(target=target, args=(channel,), daemon=True)
            thread.start()
            channel.readers.append(thread)

    def _say(self, order: Mapping[str, Any]) -> None:
        line = json.dumps(order) + "\n"
        for channel in self._channels:
            # A broken connection shows by the end of its output.
            with contextlib.suppress(OSError, ValueError):
                assert channel.process.stdin is not None
                channel.process.stdin.write(line)
                channel.process.stdin.flush()

    def _lose(self, node: int, reason: str) -> None:
        self.lost.setdefault(node, reason)
        self._answers.put(None)  # whoever waits looks again

    def _read_answers(self, channel: _Channel) -> None:
        assembler = Assembler()
        assert channel.process.stdout is not None
        for line in channel.process.stdout:
            found = assembler.feed(line)
            if found is not None:
                self._answers.put(found)
        channel.process.wait()
        channel.readers[0].join(_END_SECONDS)  # that of the errors
        reason = _reason(channel)
        for node in channel.start.nodes:
            self._lose(node, reason)

    def _read_errors(self, channel: _Channel) -> None:
        assert channel.process.stderr is not None
        for line in channel.process.stderr:
            channel.errors.append(line.strip())
            ended = _SRUN_TASK_ENDED.search(line)
            if ended:
                before = [x for x in channel.errors if x.startswith(f"{ended[1]}: ")]
                self._lose(int(ended[1]), before[-1] if before else ended[2])


def _reason(channel: _Channel) -> str:
    """Why a connection has ended."""
    code = channel.process.returncode
    if channel.start.explain is not None:
        explained = channel.start.explain(code, "\n".join(channel.errors))
        if explained:
            return explained
    said = [line for line in channel.errors if not _IDLE_WORDS.search(line)]
    return f"the connection ended: {said[-1] if said else f'exit code {code}'}"
