"""Stages that are done once: what was made, from what, and how long it took.

Each finished stage is recorded with a fingerprint of its inputs. When the same command is started
again, stages whose inputs and outputs are unchanged are passed over; the first that differs, and
what follows from it, is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.console import human_seconds, rule, say
from launch.failures import CommandError

RECORD_FILE = "stages.json"


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Identifies plain data by a hash of its canonical JSON."""
    canonical = json.dumps(inputs, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Holds a folder for one process at a time; the lock vanishes with the process.

    Args:
        folder: The folder, made if it is missing.

    Raises:
        CommandError: Another process holds it.
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"{folder}: another command is working there; wait for it or give another --out"
            ) from None
        yield


class Stages:
    """The stages of a piece of work, recorded in ``stages.json``.

    Args:
        folder: Where the record and the outputs lie.

    Raises:
        CommandError: The record is unreadable.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD_FILE
        self._record: dict[str, dict[str, Any]] = {}
        self.title = "preparing"
        if self._path.exists():
            try:
                self._record = json.loads(self._path.read_text(encoding="utf-8"))
            except ValueError:
                raise CommandError(
                    f"{self._path}: damaged; remove it and start the same command again"
                ) from None

    def run(
        self,
        name: str,
        title: str,
        *,
        inputs: Mapping[str, Any],
        outputs: Sequence[Path],
        work: Callable[[], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Does a stage, unless it is done.

        Args:
            name: Key of the stage in the record.
            title: What is announced.
            inputs: All that the outputs depend on, as plain data.
            outputs: Files and folders that the stage leaves; one that is missing undoes it.
            work: Does it and returns facts, as plain data, for the stages after it.

        Returns:
            The facts, from now or from the record.
        """
        self.title = title
        key = fingerprint(inputs)
        done = self._record.get(name)
        rule(title)
        if done and done["inputs"] == key and all(path.exists() for path in outputs):
            say(f"done before, in {human_seconds(done['seconds'])}")
            return dict(done["facts"])
        started = time.monotonic()
        facts = dict(work())
        seconds = time.monotonic() - started
        self._write(name, {"inputs": key, "seconds": seconds, "facts": facts, "title": title})
        say(f"[{human_seconds(seconds)}]")
        return facts

    def claim(self, folder: Path, *, inputs: Mapping[str, Any]) -> None:
        """Makes sure that what lies in a folder came from these inputs, half done or whole.

        Args:
            folder: A folder of ours that a stage goes on in after a stop. What came from other
                inputs is removed.
            inputs: All that its content depends on, as plain data.
        """
        name, key = f"{folder.name}/", fingerprint(inputs)
        if self._record.get(name, {}).get("inputs") != key and folder.exists():
            say(f"data or settings have changed: {folder} is made anew")
            shutil.rmtree(folder)
        self._write(name, {"inputs": key})

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage by its title, in the order done."""
        return {
            stage["title"]: stage["seconds"] for stage in self._record.values() if "title" in stage
        }

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._record.pop(name, None)  # a stage done again moves to the end
        self._record[name] = value
        self._save()

    def _save(self) -> None:
        from pretrain.run_folder import write_json

        write_json(self._path, self._record)
