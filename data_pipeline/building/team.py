"""The processes that work on one build: a single one, or those that an MPI launcher started.

Rank 0 hands out the tasks and works itself meanwhile. Each process is given neighbouring tasks one
by one, so that it reads its own stretch of the corpus; one that is done takes over the second half
of the longest stretch that is left. Messages are JSON, sent to and from rank 0 only. Waiting sleeps
instead of spinning, so a process that waits leaves its core to the others. If any process fails,
all of them end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from data_pipeline.errors import DataError
from data_pipeline.progress import Work

# Each is set by a launcher for the processes it starts: MPICH and Intel MPI, Open MPI, PMIx (srun).
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_SIZE_VARIABLES = (
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)
_PRESENCE_VARIABLES = (*_SIZE_VARIABLES, "PMI_RANK", "PMIX_RANK")

_TAG = 1
_POLL_SECONDS = 0.002
_REPORT_SECONDS = 0.2

Report = Callable[[Work], None]


class Team:
    """Rank and size of this process, and the work it shares with the others."""

    def __init__(self, communicator: Any = None) -> None:
        """Wraps an mpi4py communicator, or stands for a single process.

        Args:
            communicator: `MPI.COMM_WORLD`, or None.
        """
        self._communicator = communicator
        self._outbox: list[tuple[Any, bytes]] = []
        self.rank: int = 0 if communicator is None else communicator.rank
        self.size: int = 1 if communicator is None else communicator.size

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which plans, collects and writes what is common."""
        return self.rank == 0

    def threads(self) -> int:
        """Threads this process may use so that all of them together fill their machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        local = next(
            (int(os.environ[name]) for name in _LOCAL_SIZE_VARIABLES if _is_number(name)), self.size
        )
        return max(1, (cores or 1) // max(1, local))

    def broadcast(self, value: Any) -> Any:
        """Hands the value of rank 0 to all; the others' argument does not matter."""
        if not self.is_first:
            return self._receive(0)
        for rank in range(1, self.size):
            self._send(rank, value)
        self._flush()
        return value

    def run(
        self,
        work: Callable[[int, Report], Any],
        costs: Sequence[int],
        on_progress: Callable[[Work], None],
    ) -> list[Any]:
        """Does tasks 0, 1, 2, ..., each on the process that comes to it first.

        Args:
            work: Does the task of a number and returns a JSON value; meanwhile it reports often
                what it has done, or on rank 0 the others wait for it.
            costs: [tasks] about how much work each is.
            on_progress: Called on rank 0 with what all have reported so far.

        Returns:
            On rank 0 the results of all tasks in order; elsewhere an empty list.
        """
        if self.is_first:
            return _Foreman(self, work, costs, on_progress).run()
        pending, last_seconds = Work(), time.monotonic()

        def report(done: Work) -> None:
            nonlocal pending, last_seconds
            pending = pending.plus(done)
            if time.monotonic() - last_seconds > _REPORT_SECONDS:
                self._send(0, {"done": pending})
                pending, last_seconds = Work(), time.monotonic()

        self._send(0, {"done": pending, "wants": True})
        while (task := self._receive(0)) is not None:
            result = work(task, report)
            self._send(0, {"done": pending, "wants": True, "task": task, "result": result})
            pending = Work()
        self._flush()
        return []

    def _send(self, rank: int, value: Any) -> None:
        if self._communicator is None:
            return
        data = json.dumps(value).encode()
        self._outbox.append((self._communicator.Isend([data, _byte_type()], rank, _TAG), data))
        self._outbox = [entry for entry in self._outbox if not entry[0].Test()]

    def _flush(self) -> None:
        while self._outbox:
            self._outbox = [entry for entry in self._outbox if not entry[0].Test()]
            if self._outbox:
                time.sleep(_POLL_SECONDS)

    def _receive(self, rank: int) -> Any:
        while not self._communicator.Iprobe(rank, _TAG):
            time.sleep(_POLL_SECONDS)
        return self._take(rank)

    def _arrived(self) -> Iterator[tuple[int, Any]]:
        """Ranks and messages that are there now, those of any one rank in the order sent."""
        if self._communicator is None:
            return
        from mpi4py import MPI

        # One question for all ranks: with hundreds of them, asking each would take rank 0's time.
        status = MPI.Status()
        while self._communicator.Iprobe(MPI.ANY_SOURCE, _TAG, status):
            rank = status.Get_source()
            yield rank, self._take(rank)

    def _take(self, rank: int) -> Any:
        from mpi4py import MPI

        status = MPI.Status()
        self._communicator.Probe(rank, _TAG, status)
        data = bytearray(status.Get_count(_byte_type()))
        self._communicator.Recv([data, _byte_type()], rank, _TAG)
        return json.loads(data)


class _Foreman:
    """Rank 0 while tasks are done: works, hands out, collects."""

    def __init__(
        self,
        team: Team,
        work: Callable[[int, Report], Any],
        costs: Sequence[int],
        on_progress: Callable[[Work], None],
    ) -> None:
        self._team = team
        self._work = work
        self._num_tasks = len(costs)
        self._on_progress = on_progress
        self._dealer = Dealer(costs, team.size)
        self._results: dict[int, Any] = {}
        self._working_ranks = team.size - 1
        self._done = Work()
        self._served_seconds = self._told_seconds = time.monotonic()

    def run(self) -> list[Any]:
        while (task := self._dealer.next(0)) is not None:
            self._results[task] = self._work(task, self._report)
            self._serve()
        while self._working_ranks:
            time.sleep(_POLL_SECONDS)
            self._serve()
        self._on_progress(self._done)
        return [self._results[task] for task in range(self._num_tasks)]

    def _report(self, done: Work) -> None:
        self._done = self._done.plus(done)
        if time.monotonic() - self._served_seconds > _POLL_SECONDS:
            self._serve()

    def _serve(self) -> None:
        for rank, message in self._team._arrived():
            self._done = self._done.plus(Work(*message["done"]))
            if "task" in message:
                self._results[message["task"]] = message["result"]
            if message.get("wants"):
                task = self._dealer.next(rank)
                self._team._send(rank, task)
                self._working_ranks -= task is None
        self._served_seconds = time.monotonic()
        if self._served_seconds - self._told_seconds > _REPORT_SECONDS:
            self._on_progress(self._done)
            self._told_seconds = self._served_seconds


class Dealer:
    """Decides who does which task next: neighbours of one's last task, then others' leftovers."""

    def __init__(self, costs: Sequence[int], num_ranks: int) -> None:
        """Deals nothing yet.

        Args:
            costs: [tasks] about how much work each is.
            num_ranks: Number of processes.
        """
        self._costs = costs
        self._runs: list[deque[int]] = [deque() for _ in range(num_ranks)]
        for task, rank in enumerate(split_by_cost(costs, num_ranks)):
            self._runs[rank].append(task)

    def next(self, rank: int) -> int | None:
        """The next task for a process, or None where none is left."""
        if not self._runs[rank]:
            longest = max(self._runs, key=lambda run: (sum(map(self._cost, run)), len(run)))
            half, taken = sum(map(self._cost, longest)) / 2, 0
            while longest and (not self._runs[rank] or taken + self._cost(longest[-1]) <= half):
                task = longest.pop()
                taken += self._cost(task)
                self._runs[rank].appendleft(task)
        return self._runs[rank].popleft() if self._runs[rank] else None

    def _cost(self, task: int) -> int:
        # Free tasks take their time too.
        return self._costs[task] + 1


@contextlib.contextmanager
def joined_team() -> Iterator[Team]:
    """The team this process belongs to; MPI is loaded only where a launcher started us.

    If the block fails in a team of several, one line (for a program error a traceback) goes to
    standard error and all processes end with exit status 1: the others would wait for ever.

    Raises:
        DataError: If a launcher started us but MPI does not work.
    """
    if not any(name in os.environ for name in _PRESENCE_VARIABLES):
        yield Team()
        return
    team = _mpi_team()
    if team.size == 1:
        yield team
        return
    try:
        yield team
    except DataError as error:
        _abort(team, f"error on rank {team.rank} of {team.size}: {error}")
    except KeyboardInterrupt:
        _abort(team, None, exit_status=128 + signal.SIGINT)
    except BaseException:
        _abort(team, traceback.format_exc().rstrip())


def _mpi_team() -> Team:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"this process was started by an MPI launcher, but mpi4py finds no MPI ({error}): "
            'install one ("pip install mpich") or start without the launcher'
        ) from error
    team = Team(MPI.COMM_WORLD)
    announced = next((int(os.environ[name]) for name in _SIZE_VARIABLES if _is_number(name)), None)
    if announced is not None and announced != team.size:
        raise DataError(
            f"the MPI launcher started {announced} processes, but mpi4py's MPI sees {team.size}: "
            "use the launcher of the same MPI (the mpiexec beside this Python)"
        )
    return team


_PIPE_SECONDS = 0.3


def _abort(team: Team, message: str | None, *, exit_status: int = 1) -> NoReturn:
    sys.stdout.flush()
    if message is not None:
        # In one piece, or the launcher may mix it with another process's lines.
        sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    # The launcher reads our line through a pipe, and drops what it has not read when it hears of
    # the abort.
    time.sleep(_PIPE_SECONDS)
    # MPI would add a line of its own about the call; ours says what is wrong.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    team._communicator.Abort(exit_status)
    os._exit(exit_status)


def _is_number(variable: str) -> bool:
    return os.environ.get(variable, "").isdigit()


def _byte_type() -> Any:
    from mpi4py import MPI

    return MPI.BYTE


def split_by_cost(costs: Sequence[int], num_ranks: int) -> list[int]:
    """Deals tasks out in runs of neighbours of about the same cost.

    Neighbours stay together so that each process reads its own stretch of the corpus.

    Args:
        costs: [tasks] non-negative.
        num_ranks: Number of processes.

    Returns:
        [tasks] ranks, never falling.
    """
    total = sum(costs) or 1
    owners, before = [], 0
    for cost in costs:
        owners.append(min(num_ranks - 1, num_ranks * (2 * before + cost) // (2 * total)))
        before += cost
    return owners
