"""Several runs side by side: one self-contained page and its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.report import html
from pretrain.report.comparison_figure import comparison_figure
from pretrain.report.curves import Curves, finite
from pretrain.report.report import median_speed, parameter_count, write_bytes
from pretrain.report.run_figures import png, svg
from pretrain.report.run_record import RunRecord, flatten, read_run
from pretrain.run_folder import write_atomically

PAGE_NAME = "comparison.html"
PICTURE_NAME = "comparison.png"
_ABSENT = "—"
_NOT_COMPARED = ("name", "run_dir")
"""Settings that only say where a run lies."""


@dataclass(frozen=True)
class RunSummary:
    """A run in one line; what is not known is None."""

    run: str
    """Name of its folder."""
    path: str
    state: str
    """In words: finished, stopped, or how far it is."""
    step: int
    max_steps: int | None
    tokens_seen: float | None
    """Of text, before masking."""
    loss: float | None
    """Mean of the last twentieth of the logged steps."""
    heldout_loss: float | None
    """At the last evaluation."""
    best_heldout_loss: float | None
    best_heldout_step: int | None
    bits_per_byte: float | None
    """Of masked held-out text, at the last evaluation."""
    tokens_per_second: float | None
    """Median."""
    model_flops_utilisation: float | None
    """At the last logged step."""
    parameters: int | None
    resumed: int
    """How often it was started again."""
    rolled_back: int
    """How often it went back to a checkpoint because of a spike."""
    skipped_steps: int
    problems: list[str]
    """What could not be read."""


def summarize(run: RunRecord) -> RunSummary:
    """Take from a run what a table of runs shows."""
    curves = run.curves
    losses = [loss for line in curves.train if (loss := finite(line.get("loss"))) is not None]
    tail = losses[-max(1, len(losses) // 20) :]
    heldout = [
        (loss, line["step"])
        for line in curves.evaluations
        if (loss := finite(line.get("eval/heldout/loss"))) is not None
    ]
    best = min(heldout, default=(None, None))
    return RunSummary(
        run=run.name,
        path=str(run.folder.path),
        state=run.state,
        step=run.last_step,
        max_steps=run.max_steps,
        tokens_seen=_last(curves.train, "tokens_seen"),
        loss=sum(tail) / len(tail) if tail else None,
        heldout_loss=heldout[-1][0] if heldout else None,
        best_heldout_loss=best[0],
        best_heldout_step=best[1],
        bits_per_byte=_last(curves.evaluations, "eval/heldout/bits_per_byte"),
        tokens_per_second=median_speed(curves),
        model_flops_utilisation=_last(curves.train, "model_flops_utilisation"),
        parameters=parameter_count(run) or None,
        resumed=len(curves.resumed_at),
        rolled_back=len(run.roll_backs),
        skipped_steps=run.skipped_steps,
        problems=run.problems,
    )


def differing(of_runs: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """The settings in which runs differ.

    Args:
        of_runs: For each run, values by name.

    Returns:
        Names in the order in which they are first met; for each the runs' values, None where a run
        has no such setting.
    """
    names = dict.fromkeys(name for values in of_runs for name in values)
    found = {name: [values.get(name) for values in of_runs] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def write_comparison(run_dirs: Sequence[Path], out: Path) -> tuple[Path, Path, list[RunSummary]]:
    """Writes ``comparison.html`` and ``comparison.png``.

    Args:
        run_dirs: Run folders; the runs may still be going on.
        out: Folder to write into, made if it is not there.

    Returns:
        The paths of the page and of the picture, and the runs' summaries.

    Raises:
        RunError: No run has written into one of the folders.
        OSError: ``out`` cannot be written.
    """
    runs = [read_run(path) for path in run_dirs]
    summaries = [summarize(run) for run in runs]
    figure = comparison_figure(runs)
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / PICTURE_NAME, png(figure))
    write_atomically(out / PAGE_NAME, _page(runs, summaries, svg(figure)))
    return out / PAGE_NAME, out / PICTURE_NAME, summaries


def _last(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The newest finite value of a quantity."""
    for line in reversed(lines):
        value = finite(line.get(key))
        if value is not None:
            return value
    return None


def _or_absent(write: Callable[[Any], str], value: Any) -> str:
    return _ABSENT if value is None else write(value)


def _summary_table(summaries: Sequence[RunSummary]) -> str:
    """One row a run, numbered as in the figure."""

    def whole(value: float) -> str:
        return f"{value:,.0f}"

    def loss(value: float) -> str:
        return f"{value:.4f}"

    def share(value: float) -> str:
        return f"{value:.1%}"

    head = (
        *("", "run", "step", "tokens", "loss", "held-out", "best held-out", "bits/byte"),
        *("tokens/s", "utilisation", "parameters", "resumed", "rolled back", "skipped"),
    )
    rows = []
    for number, item in enumerate(summaries, 1):
        best = _or_absent(loss, item.best_heldout_loss)
        if item.best_heldout_step is not None:
            best += f" at {item.best_heldout_step:,}"
        of = "" if item.max_steps is None else f" of {html.number(item.max_steps)}"
        rows.append(
            (
                f"{number}",
                item.run,
                f"{item.step:,}{of}",
                _or_absent(whole, item.tokens_seen),
                _or_absent(loss, item.loss),
                _or_absent(loss, item.heldout_loss),
                best,
                _or_absent(loss, item.bits_per_byte),
                _or_absent(whole, item.tokens_per_second),
                _or_absent(share, item.model_flops_utilisation),
                _or_absent(whole, item.parameters),
                f"{item.resumed}",
                f"{item.rolled_back}",
                f"{item.skipped_steps}",
            )
        )
    return html.table(head, rows, numbers=range(2, len(head)))


def _differences_table(of_runs: Sequence[Mapping[str, str]], head: Sequence[str]) -> str:
    rows = [
        (name, *(_ABSENT if value is None else value for value in values))
        for name, values in differing(of_runs).items()
        if name not in _NOT_COMPARED
    ]
    return html.table(("", *head), rows) if rows else ""


def _evaluations_table(runs: Sequence[RunRecord], head: Sequence[str]) -> str:
    """Every quantity of the last evaluations, a column a run."""
    newest = [_newest_evaluations(run.curves) for run in runs]
    keys = sorted({key for values in newest for key in values})
    rows = [
        (
            key.removeprefix("eval/").replace("_", " "),
            *(f"{values[key]:.4f}" if key in values else _ABSENT for values in newest),
        )
        for key in keys
    ]
    return html.table(("", *head), rows, numbers=range(1, len(head) + 1)) if rows else ""


def _newest_evaluations(curves: Curves) -> dict[str, float]:
    line = curves.evaluations[-1] if curves.evaluations else {}
    return {
        key: number
        for key, value in line.items()
        if key.startswith("eval/") and (number := finite(value)) is not None
    }


def _page(runs: Sequence[RunRecord], summaries: Sequence[RunSummary], picture: bytes) -> str:
    head = [f"{number}. {run.name}" for number, run in enumerate(runs, 1)]
    rows = [(name, item.state, item.path) for name, item in zip(head, summaries, strict=True)]
    settings = _differences_table([flatten(run.config) for run in runs], head)
    same = "<p>All settings that are known are the same.</p>"
    body = [
        html.image(picture, "svg+xml", "losses, speed and learning rate of the runs"),
        html.section("Runs", _summary_table(summaries)),
        html.problems(
            [
                f"{name}: {problem}"
                for name, item in zip(head, summaries, strict=True)
                for problem in item.problems
            ]
        ),
        html.section("Settings that differ", settings or same),
        html.section("Newest evaluations", _evaluations_table(runs, head)),
        html.section(
            "Machines and versions that differ",
            _differences_table([flatten(run.environment) for run in runs], head),
        ),
        html.section("State", html.table(("run", "state", "folder"), rows)),
    ]
    lead = (
        "Thin lines with dots are held-out losses. A triangle that points up marks a restart, one "
        "that points down a roll-back to this step."
    )
    footer = "Written by spade report from the runs' folders."
    return html.page(f"{len(runs)} runs compared", lead, "".join(body), footer)


def summary_data(summary: RunSummary) -> dict[str, Any]:
    """A summary as plain data."""
    return asdict(summary)
