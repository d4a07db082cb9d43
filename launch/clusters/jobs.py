"""What a run folder tells about its run: state, step, speed, and what happened last.

Only files are read, none is locked, and a run that writes meanwhile is not disturbed. A scheduler
is not asked: a job that it has forgotten stays queued here.
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launch.clusters.record import read_events
from launch.first_failure import read_failures
from pretrain.run_folder import RunFolder
from pretrain.yaml_text import read_yaml

State = Literal[
    "queued", "starting", "running", "stalled", "stopped", "failed", "done", "unreadable"
]

QUIET_SECONDS = 120.0
"""A run that logs often may be silent for so long: it evaluates, or saves."""
QUIET_INTERVALS = 10
"""And one that logs rarely for so many times its usual silence."""
START_SECONDS = 1800.0
"""What a start may take, until its first step is logged."""
_CLOCK_SECONDS = 5.0
"""By which the clocks of two hosts and of a file server may differ."""
_TAIL_BYTES = 1 << 18
_LARGEST_CONFIG_BYTES = 1 << 22
_LINES = 20
"""Steps over which speed is averaged."""
_WAITING = ("submitted", "requeued", "chained")
_BEGUN = ("started", "restarted")


@dataclass(frozen=True)
class RunRow:
    """One run. What is not known is None."""

    name: str
    path: str
    state: State
    step: int | None = None
    """Optimizer updates made; what `max_steps` counts."""
    max_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    """Median over the last steps."""
    seconds_left: float | None = None
    """At that speed, evaluations and checkpoints not counted; for runs that run."""
    launcher: str | None = None
    job: str | None = None
    """Number or name of the job, where a scheduler has one."""
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None
    silent_seconds: float | None = None
    """Since the run last wrote something."""
    reason: str | None = None
    """Why it failed, or what cannot be read."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Seen:
    """What was found in a run folder."""

    events: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    """The last lines of training in the metrics."""
    metrics_written: float
    """When; 0 where there are none."""
    written: float
    """When the run last wrote anything."""
    max_steps: int | None
    log_every_steps: int
    checkpoint: tuple[int, float] | None
    """Step of the newest complete one, and when it was written."""
    stopped: bool


def find_runs(place: Path) -> list[Path]:
    """Run folders: the place itself if it is one, else those in it, by name.

    Raises:
        OSError: The place cannot be read.
    """
    if _is_run(place):
        return [place]
    return sorted(path for path in place.iterdir() if path.is_dir() and _is_run(path))


def read_row(run: Path, now: float | None = None) -> RunRow:
    """Look at one run; a folder that cannot be read is a row too.

    Args:
        run: Its folder.
        now: The time, in seconds since 1970 (default: now).
    """
    try:
        return _row(run, _look(run), time.time() if now is None else now)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        return RunRow(run.name, str(run), "unreadable", reason=reason)


def launcher_at_work(event: Mapping[str, Any]) -> bool | None:
    """Whether the launcher that began a start still lives.

    Args:
        event: The line that it wrote.

    Returns:
        None where this host cannot know.
    """
    import psutil

    process = event.get("process")
    if event.get("host") != socket.gethostname() or type(process) is not int:
        return None
    try:
        began = float(psutil.Process(process).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return False
    return began <= _time_of(event) + _CLOCK_SECONDS  # or the number is another process's by now


def last_start(run: Path) -> dict[str, Any] | None:
    """The start that no end has followed yet; None where there is none."""
    events = read_events(run)
    return events[-1] if events and events[-1].get("event") in _BEGUN else None


def _is_run(path: Path) -> bool:
    folder = RunFolder(path)
    return any(p.exists() for p in (folder.config_path, folder.metrics_path, folder.launch))


def _row(run: Path, seen: _Seen, now: float) -> RunRow:
    last: Mapping[str, Any] = seen.lines[-1] if seen.lines else {}
    step = _count(last.get("updates", last.get("step")))
    state, reason = _state(run, seen, step, now)
    seconds = [s for line in seen.lines if (s := _number(line.get("step_seconds"))) is not None]
    rates = [r for line in seen.lines if (r := _number(line.get("tokens_per_second"))) is not None]
    left = None
    if state == "running" and seconds and step is not None and seen.max_steps is not None:
        left = statistics.median(seconds) * max(0, seen.max_steps - step)
    event = seen.events[-1] if seen.events else {}
    jobs = [str(e["job"]) for e in seen.events if e.get("job") is not None]
    return RunRow(
        name=run.resolve().name,
        path=str(run),
        state=state,
        step=step,
        max_steps=seen.max_steps,
        loss=_number(last.get("loss")),
        tokens_per_second=statistics.median(rates) if rates else None,
        seconds_left=left,
        launcher=str(event["launcher"]) if "launcher" in event else None,
        job=jobs[-1] if jobs else None,
        checkpoint_step=None if seen.checkpoint is None else seen.checkpoint[0],
        checkpoint_age_seconds=None if seen.checkpoint is None else now - seen.checkpoint[1],
        silent_seconds=max(0.0, now - seen.written) if seen.written else None,
        reason=reason,
    )


def _state(run: Path, seen: _Seen, step: int | None, now: float) -> tuple[State, str | None]:
    """The state, and why it failed.

    What a launcher said last counts, unless the run has written something since. A run that goes on
    is `running` while it is silent for no longer than `QUIET_SECONDS`, or `QUIET_INTERVALS` times
    the usual time between two lines of its metrics, and `stalled` beyond; before its first line
    since the start it is `starting` for `START_SECONDS`.
    """
    event = seen.events[-1] if seen.events else {}
    name, said = event.get("event"), _time_of(event)
    said_last = seen.written <= said + _CLOCK_SECONDS
    if _has_finished(seen, step) or (name == "done" and said_last):
        return "done", None
    if name in _WAITING and said_last:
        return "queued", None
    if seen.stopped or (name == "stopped" and said_last):
        return "stopped", None
    reason = _failure(run, seen, event, said_last=said_last)
    if reason is not None:
        return "failed", reason
    silent = now - max(seen.written, said)
    if not seen.lines or seen.metrics_written < _began(seen) or (name == "failed" and said_last):
        return ("starting" if silent <= START_SECONDS else "stalled"), None
    interval = seen.log_every_steps * (_number(seen.lines[-1].get("step_seconds")) or 0.0)
    quiet = max(QUIET_SECONDS, QUIET_INTERVALS * interval)
    return ("running" if silent <= quiet else "stalled"), None


def _has_finished(seen: _Seen, step: int | None) -> bool:
    """Whether the last step is made and saved."""
    if seen.checkpoint is None or not seen.lines or step is None or seen.max_steps is None:
        return False
    last_step = _count(seen.lines[-1].get("step")) or 0
    return step >= seen.max_steps and seen.checkpoint[0] >= last_step


def _failure(run: Path, seen: _Seen, event: Mapping[str, Any], *, said_last: bool) -> str | None:
    """Why a run has failed and is not started again; None where it has not."""
    if event.get("event") == "failed" and said_last and event.get("restart") is not True:
        return _text(event.get("reason")) or f"exit code {event.get('exit_code')}"
    if event.get("event") in _BEGUN and launcher_at_work(event) is False:
        return "its launcher is gone"
    if not seen.events:  # nobody else tells of an end
        for failure in read_failures(run):
            if failure.unix_seconds >= seen.written - QUIET_SECONDS:
                return f"rank {failure.rank}: {failure.message}"
    return None


def _began(seen: _Seen) -> float:
    """When the ranks were last started or announced, as far as a launcher has said."""
    names = (*_WAITING, *_BEGUN)
    return max((_time_of(item) for item in seen.events if item.get("event") in names), default=0.0)


def _look(run: Path) -> _Seen:
    folder = RunFolder(run)
    lines = list(_last_lines(folder.metrics_path))
    newest = max((folder.config_path, folder.launch / "config.yaml"), key=_written)
    config = _settings(newest)
    train = config.get("train")
    train = train if isinstance(train, dict) else {}
    metrics_written = _written(folder.metrics_path)
    signs = (folder.environment_path, folder.checkpoints, folder.logs / "rank-00000.log")
    return _Seen(
        events=read_events(run),
        lines=lines,
        metrics_written=metrics_written,
        written=max(metrics_written, *(_written(path) for path in signs)),
        max_steps=_count(train.get("max_steps")),
        log_every_steps=_count(train.get("log_every_steps")) or 1,
        checkpoint=_newest_checkpoint(folder),
        stopped=folder.stop_marker.exists(),
    )


def _newest_checkpoint(folder: RunFolder) -> tuple[int, float] | None:
    found = []
    for manifest in folder.checkpoints.glob("step-*/manifest.json"):
        step = manifest.parent.name.partition("-")[2]
        if step.isdecimal():  # not one that is being written or removed
            found.append((int(step), _written(manifest)))
    return max(found, default=None)


def _last_lines(metrics: Path) -> Iterator[dict[str, Any]]:
    """The last lines of training, the oldest first; one still being written is left out."""
    try:
        with metrics.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - _TAIL_BYTES))
            # The first one is cut, unless the file begins with it; then it is no JSON either way.
            texts = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return
    found = []
    for text in reversed(texts):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and "loss" in line:
            found.append(line)
        if len(found) == _LINES:
            break
    yield from reversed(found)


def _settings(path: Path) -> dict[str, Any]:
    """A configuration as plain data; empty where there is none that can be read."""
    try:
        if path.stat().st_size > _LARGEST_CONFIG_BYTES:
            return {}
        return read_yaml(path)
    # PyYAML's constructors stumble in all these ways over scalars that are not what they claim.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _written(path: Path) -> float:
    """When a file was last written, 0 where there is none."""
    try:
        return path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return 0.0


def _time_of(event: Mapping[str, Any]) -> float:
    return _number(event.get("unix_seconds")) or 0.0


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
