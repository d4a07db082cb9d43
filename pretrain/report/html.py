"""Pieces of a self-contained page. Whatever text they are given arrives as text.

No script, no link, nothing that is loaded from elsewhere; the page's policy forbids them besides.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pretrain.report.curves import finite

_STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5b6875; --line: #e3e8ed; --wash: #f6f8fa;
  --accent: #3b6fb6; --good: #1d7a5f; --bad: #b3374a; }
* { box-sizing: border-box; }
body { margin: 0; background: white; color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 2.6rem 0 .8rem; padding-bottom: .35rem;
  border-bottom: 1px solid var(--line); }
p.lead { margin: 0 0 1.6rem; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .8rem; }
.card { background: var(--wash); border-radius: .5rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
th.run { max-width: 14rem; }
ul.problems { color: var(--bad); padding-left: 1.2rem; }
img { width: 100%; height: auto; display: block; margin: 1.4rem 0 .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; }
table.facts td:first-child { white-space: nowrap; color: var(--soft); }
td:has(mark) { width: 3.5rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr));
  gap: 0 2.5rem; }
pre { background: var(--wash); border-radius: .5rem; padding: .9rem 1rem; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.fill { margin: 0 0 1.6rem; } .fill h3 { font-size: .95rem; margin: 0 0 .4rem; }
mark { background: #fdebc8; border-radius: .2rem; padding: 0 .2rem; }
code { font: .85rem ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""
# Nothing on the page may run or load anything, whatever a document or a name holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


# Halves of surrogate pairs cannot be written, control characters may not stand in HTML, and those
# that turn the direction of writing would let a name rewrite the line it stands in.
_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def clean(value: Any) -> str:
    """Text that can be written and read; what cannot becomes a replacement character."""
    return _UNPRINTABLE.sub("\ufffd", str(value))


def text(value: Any) -> str:
    """Any value as the text of a page."""
    return escape(clean(value))


def number(value: Any) -> str:
    """Writes a number for people; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**18 else "a very large number"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e18 else f"{value:.4g}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """Builds a table.

    Args:
        head: Column names; none for a table without a head.
        rows: Cells.
        numbers: Columns aligned to the right.
    """

    def cell(tag: str, column: int, value: Any) -> str:
        kind = ' class="number"' if column in numbers else ""
        return f"<{tag}{kind}>{text(number(value))}</{tag}>"

    def line(tag: str, values: Sequence[Any]) -> str:
        return "<tr>" + "".join(cell(tag, i, value) for i, value in enumerate(values)) + "</tr>"

    top = f"<thead>{line('th', head)}</thead>" if head else ""
    body = "".join(line("td", row) for row in rows)
    kind = "" if head else ' class="facts"'
    return f'<div class="scroll"><table{kind}>{top}<tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and values as a table; numbers of bytes are written in GiB."""
    rows = []
    for name, value in values.items():
        size_bytes = finite(value)
        if name.endswith("_bytes") and size_bytes is not None:
            name, value = name.removesuffix("_bytes"), f"{size_bytes / 2**30:.1f} GiB"
        rows.append((name.replace("_", " "), value))
    return table((), rows)


def image(data: bytes, kind: str, description: str) -> str:
    """A picture inside the page: ``svg+xml`` or ``png``."""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img alt="{text(description)}" src="data:image/{kind};base64,{encoded}">'


def card(value: str, label: str, kind: str = "") -> str:
    """One fact in large figures."""
    return f'<div class="card"><b class="{kind}">{text(value)}</b><span>{text(label)}</span></div>'


def section(title: str, body: str) -> str:
    """A heading and what follows; nothing where nothing follows."""
    return f"<h2>{text(title)}</h2>{body}" if body else ""


def columns(*parts: str) -> str:
    """Parts side by side where there is room."""
    cells = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="columns">{cells}</div>' if cells else ""


def problems(lines: Sequence[str]) -> str:
    """What could not be read."""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f'<ul class="problems">{items}</ul>' if items else ""


def page(title: str, lead: str, body: str, footer: str) -> str:
    """The whole document around a body of the pieces above."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)} · SPADE pretraining</title><style>{_STYLE}</style></head>"
        f'<body><main><h1>{text(title)}</h1><p class="lead">{text(lead)}</p>{body}'
        f"<footer>{text(footer)}</footer></main></body></html>\n"
    )
