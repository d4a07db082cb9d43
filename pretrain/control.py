"""What all ranks must be of one mind about before each piece of work."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pretrain.checkpoints.saver import CheckpointSaver
from pretrain.ranks import Ranks
from pretrain.resilience.stop import StopRequest
from pretrain.resilience.watchdog import Watchdog


class StopAgreed(Exception):
    """Some rank was asked to stop; raised on every rank at the same place."""


class Control:
    """Asks, before each piece of work, whether any rank has a reason not to begin it.

    Args:
        group: A gloo group of all ranks: the votes travel beside the device's work and wait for
            none of it.
        ranks: This process's place.
        stop: Its request to stop.
        watchdog: Told that this rank is alive.
        saver: Whose failures in the background end the run.
    """

    def __init__(
        self,
        group: Any,
        ranks: Ranks,
        stop: StopRequest,
        watchdog: Watchdog,
        saver: CheckpointSaver,
    ) -> None:
        self.group = group
        self._ranks = ranks
        self._stop = stop
        self._watchdog = watchdog
        self._saver = saver

    def check(self, activity: str, *numbers: int) -> list[int]:
        """Go on, or not.

        Args:
            activity: What begins now, should it hang.
            numbers: To be summed over the ranks by the way.

        Returns:
            The sums.

        Raises:
            StopAgreed: If any rank was asked to stop.
            CheckpointError: If a checkpoint could not be written in the background.
        """
        self._watchdog.beat(activity)
        votes = self.sum(int(self._stop.requested), int(self._saver.failed), *numbers)
        if votes[1]:
            self._saver.wait()  # all ranks agree on a failure: it raises on each of them
        if votes[0]:
            raise StopAgreed
        return votes[2:]

    def should_stop(self, activity: str) -> bool:
        """The same as an answer instead of an exception, where no number is to be summed."""
        try:
            self.check(activity)
        except StopAgreed:
            return True
        return False

    def sum(self, *numbers: int) -> list[int]:
        """Sums over the ranks."""
        shared = torch.tensor(numbers, dtype=torch.int64)
        if self._ranks.world_size > 1:
            dist.all_reduce(shared, group=self.group)
        sums: list[int] = shared.tolist()
        return sums

    def gather(self, value: Any) -> list[Any]:
        """Plain data of all ranks, in their order."""
        if self._ranks.world_size == 1:
            return [value]
        found: list[Any] = [None] * self._ranks.world_size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def stop_reason(self) -> str:
        """Who asked to stop; every rank must call this."""
        reasons = [reason for reason in self.gather(self._stop.reason) if reason is not None]
        return str(reasons[0]) if reasons else "unknown"
