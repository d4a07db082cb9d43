"""The file that asks the ranks to save and leave, told apart from one that a person has made."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pretrain.run_folder import RunFolder

_OURS = "made by spade launch slurm, job "


class StopFile:
    """STOP in a run's folder, as one job sees it."""

    def __init__(self, run: Path, job: str) -> None:
        self._path = RunFolder(run).stop_request
        self._marker = RunFolder(run).stop_marker
        self._text = f"{_OURS}{job}: the run goes on in another\n"
        self.others = False
        """Whether the ranks are leaving because somebody else wants it."""

    def make(self) -> None:
        """Ask the ranks, unless they are leaving already.

        Raises:
            OSError: If the file cannot be written.
        """
        if self._is_ours() or self.others:
            return
        self.others = self._marker.exists()
        try:
            with self._path.open("x", encoding="utf-8") as stream:
                stream.write(self._text)
        except FileExistsError:
            self.others = True

    def remove(self) -> None:
        """Remove a request that a job has made; a person's stays for the ranks to honour."""
        if self._is_ours():
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _is_ours(self) -> bool:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace").startswith(_OURS)
        except OSError:
            return False
