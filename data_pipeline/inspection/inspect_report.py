"""What is in a data set, as a picture of its lengths and a page that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data_pipeline.files import make_folder, write_atomically

PAGE_FILE, PICTURE_FILE = "inspect.html", "lengths.png"

_INK, _FAINT, _DOCUMENTS, _TOKENS = "#1c2733", "#d7dde3", "#3b6fb6", "#e09f3e"
# Nothing on the page may run or load anything, whatever a document or a name holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
body { margin: 2.5rem auto; max-width: 58rem; padding: 0 1.5rem; color: #1c2733;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .4rem; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .7rem; padding-bottom: .3rem;
  border-bottom: 1px solid #e3e8ed; }
p, th, figcaption { color: #5b6875; }
img { width: 100%; height: auto; display: block; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem 1.6rem .3rem 0; border-bottom: 1px solid #e3e8ed;
  vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f6f8fa; border-radius: .5rem; padding: .8rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .82rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
"""


def write_inspection(descriptions: Sequence[Mapping[str, Any]], out: Path) -> tuple[Path, Path]:
    """Writes the page and the picture.

    Args:
        descriptions: What `inspect.describe_dataset` says of each data set.
        out: Folder to write into, created if needed.

    Returns:
        Paths of the page and of the picture.

    Raises:
        DataError: If the system refuses.
    """
    picture = length_picture(descriptions)
    make_folder(out)
    write_atomically(out / PICTURE_FILE, picture)
    write_atomically(out / PAGE_FILE, page(descriptions, picture).encode())
    return out / PAGE_FILE, out / PICTURE_FILE


def length_picture(descriptions: Sequence[Mapping[str, Any]]) -> bytes:
    """Histograms of document lengths as a PNG, one row a data set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.9 * len(descriptions)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, description in enumerate(descriptions):
        classes = description["document_tokens_histogram"]
        places = range(len(classes))
        labels = [_short(item["from"]) for item in classes]
        for column, (quantity, colour) in enumerate(
            (("documents", _DOCUMENTS), ("tokens", _TOKENS))
        ):
            axes = figure.add_subplot(len(descriptions), 2, 2 * row + column + 1)
            axes.bar(places, [item[quantity] for item in classes], color=colour, width=0.9)
            axes.set_xticks(places, labels, rotation=45, fontsize="small")
            axes.set_title(
                f"{_part(description)}: {quantity} by length", loc="left", color=_INK, fontsize=10
            )
            axes.set_xlabel("tokens of a document, from")
            axes.grid(visible=True, axis="y", color=_FAINT, linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    # Without the version of the library the bytes depend on what is shown alone.
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def page(descriptions: Sequence[Mapping[str, Any]], picture: bytes) -> str:
    """The page, with the picture within."""
    encoded = base64.b64encode(picture).decode("ascii")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
        f"<title>Data set</title><style>{_STYLE}</style></head><body>",
        "<h1>Data set</h1>",
        f'<img alt="Histograms of document lengths" src="data:image/png;base64,{encoded}">',
    ]
    for description in descriptions:
        parts += _section(description)
    return "\n".join([*parts, "</body></html>", ""])


def _section(description: Mapping[str, Any]) -> list[str]:
    source = description["source"]
    facts = [
        ("folder", description["folder"]),
        ("documents", description["documents"]),
        ("tokens", description["tokens"]),
        ("shards", description["shards"]),
        ("bytes", description["size_bytes"]),
        ("text bytes", source.get("text_bytes", "-")),
        ("left out as duplicates", source.get("duplicates", {}).get("documents", 0)),
        ("left out by filters", sum(source.get("filtered", {}).values())),
        ("quarantined", source.get("quarantined", 0)),
        ("normalization", source.get("normalization", "-")),
        ("fingerprint", description["fingerprint"]),
    ]
    parts = [f"<h2>{escape(_part(description))}</h2>", _table(("", ""), facts)]
    lengths = description["document_tokens_percentiles"].items()
    parts += ["<h2>Lengths</h2>", _table(("percentile", "tokens of a document"), lengths)]
    inputs = [
        (item["input"], item["documents"], item["tokens"]) for item in source.get("sources", [])
    ]
    if inputs:
        parts += ["<h2>Inputs</h2>", _table(("input", "documents", "tokens"), inputs)]
    if "epoch" in description:
        rows = [
            (mode, item["windows"], item["tokens_left_out"], f"{item['full']:.2%}")
            for mode, item in description["epoch"].items()
        ]
        length = description["epoch"]["concat"]["window_tokens"]
        parts += [
            f"<h2>An epoch of windows of {length:,} tokens</h2>",
            _table(("windows", "number", "tokens left out", "full"), rows),
        ]
    for document in description["first_documents"]:
        text = document.get("text", " ".join(map(str, document["first_ids"])))
        title = f"{document['name']} ({document['tokens']:,} tokens)"
        parts += [f"<h2>{escape(title)}</h2>", f"<pre>{escape(text)}</pre>"]
    return parts


def _table(columns: Sequence[str], rows: Any) -> str:
    def cell(tag: str, value: object) -> str:
        if isinstance(value, int):
            return f'<{tag} class="number">{value:,}</{tag}>'
        return f"<{tag}>{escape(str(value))}</{tag}>"

    head = "".join(cell("th", column) for column in columns) if any(columns) else ""
    lines = ["".join(cell("td", value) for value in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in [head, *lines] if line) + "</table>"


def _part(description: Mapping[str, Any]) -> str:
    return str(description["source"].get("part") or Path(description["folder"]).name)


def _short(number: int) -> str:
    for bound, unit in ((2**20, "Mi"), (2**10, "Ki")):
        if number >= bound:
            return f"{number // bound} {unit}"
    return str(number)
