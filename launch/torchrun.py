"""torchrun that keeps quiet and keeps the exit code: ``python -m launch.torchrun ARGUMENTS``.

``torch.distributed.run`` turns every exit code of a worker into 1 and prints a page of its own
tracebacks whenever a worker stops, also when it was asked to. The workers have said in one line
what happened; this process only adds what they could not say themselves (that one was killed) and
ends with the workers' own code: 75 where all of them stopped on request. Under a launcher that
tells the first failure (``SPADE_LOG_FOLDER`` says so) it leaves word there and is silent.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


def combined_exit_code(worker_codes: Iterable[int]) -> int:
    """Makes one exit code of those of failed workers.

    Args:
        worker_codes: Exit codes in the order in which they were noticed; negative ones are
            signals, as in ``subprocess``.

    Returns:
        The code of the rank that failed first, signals as 128 + n; without one that of a rank that
        ended because it lost another, which tells less; without either 75 where any stopped on
        request. SIGTERM is no failure beside these: torchrun sends it to the ranks that are left,
        even while they are leaving.
    """
    from pretrain.resilience.ending import LOST_EXIT_CODE

    codes = [128 - code if code < 0 else code for code in worker_codes]
    failures = [code for code in codes if code not in (0, 75, 128 + signal.SIGTERM)]
    if failures:
        return next((code for code in failures if code != LOST_EXIT_CODE), LOST_EXIT_CODE)
    return 75 if 75 in codes else max(codes, default=0)


def tell_failure(rank: int, child: ProcessFailure) -> None:
    """Says of a worker what it could not say itself: that it was killed, or ended without a word.

    Args:
        rank: Among all workers.
        child: How it ended; its time is when that was noticed, in whole seconds.
    """
    from pretrain.resilience.failures import log_folder_of_launcher, record_failure

    code = child.exitcode
    # torchrun itself ends the others by SIGTERM once one has failed: that is no news.
    if code in (0, 75, -signal.SIGTERM):
        return
    message = f"ended with exit code {code}"
    if code < 0:
        message = f"was ended by {signal_name(-code)}"
        message += ": out of memory?" if code == -signal.SIGKILL else ""
    folder = log_folder_of_launcher(os.environ)
    told = folder is not None and record_failure(
        folder, rank, message, code, unix_seconds=float(child.timestamp)
    )
    if code < 0 and not told:
        print(f"error: rank {rank} {message}", file=sys.stderr, flush=True)


def signal_name(number: int) -> str:
    """SIGKILL for 9; signals of real time have no names of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main(arguments: Sequence[str]) -> int:
    """Runs torchrun in this process.

    Args:
        arguments: Arguments of ``torch.distributed.run``.

    Returns:
        The exit code.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    for name in logging.root.manager.loggerDict:
        if name.startswith(("torch.distributed.elastic", "torch.distributed.run")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torchrun(list(arguments))
    except ChildFailedError as failure:
        for rank, child in sorted(failure.failures.items()):
            tell_failure(rank, child)
        return combined_exit_code(child.exitcode for child in failure.failures.values())
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
