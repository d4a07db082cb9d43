"""torchrun that keeps quiet and keeps the exit code: ``python -m launch.torchrun ARGUMENTS``.

``torch.distributed.run`` turns every exit code of a worker into 1 and prints a page of its own
tracebacks whenever a worker stops, also when it was asked to. The workers have said in one line
what happened; this process only adds what they could not say themselves (that one was killed) and
ends with the workers' own code: 75 where all of them stopped on request.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterable, Sequence


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
        codes = {rank: child.exitcode for rank, child in failure.failures.items()}
        for rank, code in sorted(codes.items()):
            # torchrun itself ends the others by SIGTERM once one has failed: that is no news.
            if code < 0 and code != -signal.SIGTERM:
                name = signal.Signals(-code).name
                hint = ": out of memory?" if name == "SIGKILL" else ""
                print(f"error: rank {rank} was ended by {name}{hint}", file=sys.stderr, flush=True)
        return combined_exit_code(codes.values())
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
