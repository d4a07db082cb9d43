"""A page on a run, in one file: the table and the curves."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.checkpoints import write_atomically
from finetune.results import TABLE_COLUMNS, table_rows
from finetune.training import VALIDATION

_WIDTH, _HEIGHT, _MARGIN = 640, 240, 44
_COLOURS = ("#1b6ca8", "#c8553d", "#2a9d5c", "#7b4ea3", "#b8860b")
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:46em;margin:2em auto;padding:0 1em}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ccc}"
    "svg{background:#fafafa;width:100%}pre{overflow:auto}"
)


def write_report(path: Path, results: dict[str, Any]) -> None:
    """Write the page; it needs nothing beside it and no network."""
    recipe = results["settings"]["recipe"]
    title = html.escape(f"Fine-tuning: {recipe['name']}")
    tables = _table(TABLE_COLUMNS, table_rows(results))
    for table in results["tables"]:
        tables += f"<h2>{html.escape(table['title'])}</h2>"
        tables += _table(table["columns"], table["rows"])
    score = results["score"]
    plots = _plot(f"{VALIDATION} {score}", _curves(results, f"{VALIDATION}/{score}"))
    plots += _plot("training loss", _curves(results, "loss"))
    settings = html.escape(_lines(results["settings"]))
    write_atomically(
        path,
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1>{tables}{plots}"
        f"<h2>Settings</h2><pre>{settings}</pre>\n",
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _lines(value: Any, name: str = "") -> str:
    if isinstance(value, dict):
        return "".join(_lines(v, f"{name}.{k}" if name else str(k)) for k, v in value.items())
    return f"{name} = {value}\n"


def _curves(results: dict[str, Any], name: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Points (step, value) of each seed."""
    return [
        (
            f"seed {seed['seed']}",
            [(line["step"], line[name]) for line in seed["history"] if name in line],
        )
        for seed in results["seeds"]
    ]


def _plot(title: str, curves: Sequence[tuple[str, list[tuple[float, float]]]]) -> str:
    """Draw curves as SVG; empty where there are no points."""
    points = [point for _, curve in curves for point in curve]
    if not points:
        return ""
    last = max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    inner_width, inner_height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def place(step: float, value: float) -> str:
        across = _MARGIN + inner_width * step / last
        down = _HEIGHT - _MARGIN - inner_height * (value - low) / ((high - low) or 1)
        return f"{across:.1f},{down:.1f}"

    shapes = []
    for number, (name, curve) in enumerate(curves):
        line = " ".join(place(*point) for point in curve)
        colour = _COLOURS[number % len(_COLOURS)]
        shapes.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2">'
            f"<title>{html.escape(name)}</title></polyline>"
        )
    labels = (
        (4, _MARGIN, f"{high:.4g}"),
        (4, _HEIGHT - _MARGIN, f"{low:.4g}"),
        (_WIDTH - _MARGIN, _HEIGHT - 12, f"step {last:g}"),
    )
    texts = "".join(
        f'<text x="{x}" y="{y}" font-size="12" text-anchor="{"end" if x > 4 else "start"}">'
        f"{html.escape(text)}</text>"
        for x, y, text in labels
    )
    return (
        f"<h2>{html.escape(title)}</h2>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(shapes)}{texts}</svg>'
    )
