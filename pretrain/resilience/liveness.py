"""No rank outlives another: one that dies, fails or cannot be reached takes all of them down.

Collective operations wait for a dead rank for as long as half an hour, or for ever. So each rank
keeps a connection of its own to rank 0 and gives a sign of life over it every second, which rank 0
answers.

===============================  =================================================================
what happens                     who notices
===============================  =================================================================
a process dies                   the other end, by the closed connection, within milliseconds
a process is stopped, a host or  both ends, by the silence
the network vanishes
a rank ends with an error        all: it says why
a rank is done                   nobody: it says goodbye, and rank 0 stays until all have
===============================  =================================================================

Rank 0 tells the others what it noticed. Its cost is one message and one answer a second for each
rank; the others' does not depend on how many they are.
"""

from __future__ import annotations

import hmac
import os
import secrets
import selectors
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from pretrain.resilience.awake_time import AwakeClock
from pretrain.resilience.collectives import CollectiveRecorder
from pretrain.resilience.ending import LOST_EXIT_CODE, end_process
from pretrain.resilience.line_connection import LineConnection, listen
from pretrain.resilience.settings import LivenessSettings

_CONNECT_SECONDS = 60.0
_BEAT, _GOODBYE, _DEAD, _FAILED = "beat", "goodbye", "dead", "failed"
_NAMED_RANKS = 8


class Liveness:
    """This rank's part in watching over all; a context manager around the training.

    Leaving it by an exception tells the other ranks, which end soon after.
    """

    def __init__(
        self,
        settings: LivenessSettings,
        *,
        rank: int,
        world_size: int,
        host: str,
        group: dist.ProcessGroup,
        log_folder: Path,
        recorder: CollectiveRecorder,
    ) -> None:
        """Start watching, unless the settings have it off or there is nobody else.

        Every rank calls this at the same time.

        Args:
            settings: The limits.
            rank: This process's rank.
            world_size: Number of ranks.
            host: Name or address of rank 0's host.
            group: All ranks, over gloo; tells where rank 0 listens.
            log_folder: Folder for ``rank-NNNNN-stacks.txt``; it exists.
            recorder: Knows the last collective operations.

        Raises:
            OSError: If rank 0's host cannot be reached.
        """
        self._settings = settings
        self._rank = rank
        self._log_folder = log_folder
        self._recorder = recorder
        self._closed = threading.Event()
        self._all_gone = threading.Event()
        self._connections: dict[int, LineConnection] = {}
        """By rank."""
        self._heard: dict[int, float] = {}
        """Rank -> when it was last heard, for those that have not said goodbye."""
        self._selector = selectors.DefaultSelector()
        self._clock = AwakeClock(settings.beat_seconds)
        self._secret = ""
        if not settings.enabled or world_size == 1:
            self._all_gone.set()
            return
        self._heard = dict.fromkeys(range(1, world_size) if rank == 0 else (0,), 0.0)
        self._listener = self._meet(host, group)
        # A worker of the loader that outlives this process must not hold its connections open.
        os.register_at_fork(after_in_child=self._let_go)
        threading.Thread(target=self._watch, name="liveness", daemon=True).start()

    def abort(self, reason: str) -> None:
        """End the other ranks at once; they give the reason."""
        self._tell(f"{_DEAD} {reason}")

    def close(self) -> None:
        """Say goodbye; on rank 0, wait until all others have or are dead."""
        self._closed.set()
        if self._rank == 0:
            self._all_gone.wait()
        else:
            self._tell(_GOODBYE)

    def __enter__(self) -> Liveness:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        self._closed.set()
        first_line = (str(error).splitlines() or [""])[0]
        self._tell(f"{_FAILED} rank {self._rank} failed: {first_line or type(error).__name__}")

    def _meet(self, host: str, group: dist.ProcessGroup) -> socket.socket | None:
        """Connect to rank 0, or listen there; only who knows the secret is taken for a rank."""
        numbers = torch.zeros(2, dtype=torch.int64)
        listener = None
        if self._rank == 0:
            listener = listen()
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
            numbers = torch.tensor([listener.getsockname()[1], secrets.randbits(63)])
        dist.broadcast(numbers, src=0, group=group)
        port, secret = (int(number) for number in numbers)
        self._secret = str(secret)
        if self._rank != 0:
            connected = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
            connection = LineConnection(connected, 0)
            connection.send(f"{self._secret} {self._rank}")
            self._connections[0] = connection
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return listener

    def _tell(self, line: str) -> None:
        for connection in tuple(self._connections.values()):
            connection.send(line)

    def _let_go(self) -> None:
        """Close, in a forked process, what belongs to this one."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._connections.values():
            connection.close()

    def _watch(self) -> None:
        """Exchange signs of life until nobody is left, or this rank has said goodbye."""
        next_beat = time.monotonic()
        while self._heard and not (self._closed.is_set() and self._rank != 0):
            if self._rank != 0 and time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._settings.beat_seconds
                self._tell(_BEAT)
            for key, _ in self._selector.select(self._settings.beat_seconds):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            now = self._clock.seconds()
            limit = now - self._settings.silence_seconds
            silent = [rank for rank, heard in self._heard.items() if heard < limit]
            if silent:
                self._give_up(
                    f"{_names(silent)} gave no sign of life for "
                    f"{self._settings.silence_seconds:g} s: the process stands still, or its host "
                    "or the network is dead",
                    silent,
                )
        self._all_gone.set()

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            connection = LineConnection(self._listener.accept()[0])
        except OSError:  # too many open files: whoever waits is silent, and named after a while
            time.sleep(self._settings.beat_seconds)
            return
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _hear(self, connection: LineConnection) -> None:
        lines = connection.receive()
        for line in lines or ():
            if connection.rank is None:
                self._welcome(connection, line)
            if connection.rank is None:
                lines = None  # no rank of ours
                break
            self._heed(connection, connection.rank, line)
        if lines is None:
            self._selector.unregister(connection.socket)
            connection.close()
            if connection.rank in self._heard:
                reason = f"rank {connection.rank} has died: its connection is closed"
                self._give_up(reason, [connection.rank])

    def _welcome(self, connection: LineConnection, line: str) -> None:
        secret, _, rank = line.partition(" ")
        known = hmac.compare_digest(secret.encode(), self._secret.encode())
        if known and rank.isdecimal() and int(rank) not in self._connections:
            connection.rank = int(rank)
            self._connections[connection.rank] = connection

    def _heed(self, connection: LineConnection, rank: int, line: str) -> None:
        word, _, reason = line.partition(" ")
        if rank in self._heard:
            self._heard[rank] = self._clock.seconds()
        if word == _BEAT and self._rank == 0:
            connection.send(_BEAT)
        elif word == _GOODBYE and self._rank == 0:
            self._heard.pop(rank, None)
        elif word == _DEAD:
            self._give_up(reason, [rank])
        elif word == _FAILED:
            if self._rank == 0:
                self._tell(line)
            # Who fails by the same cause can say so itself meanwhile.
            self._closed.wait(3 * self._settings.beat_seconds)
            self._give_up(reason, [rank])

    def _give_up(self, reason: str, ranks: list[int]) -> None:
        """End this rank, and on rank 0 all others; one that is leaving only waits no longer."""
        if self._closed.is_set():
            for rank in ranks:
                self._heard.pop(rank, None)
            return
        if self._rank == 0:
            self._tell(f"{_DEAD} {reason}")
        end_process(LOST_EXIT_CODE, self._rank, reason, self._log_folder, self._recorder.lines)


def _names(ranks: list[int]) -> str:
    names = ", ".join(map(str, ranks[:_NAMED_RANKS]))
    more = f" and {len(ranks) - _NAMED_RANKS} more" if len(ranks) > _NAMED_RANKS else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {names}{more}"
