"""The report of a run: one self-contained page and its loss curve.

It is written from what lies in the run folder, so it can be written at any time: of a run that
still goes on, of one that was copied from another machine, and again.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pretrain.errors import RunError
from pretrain.report.report_figures import Curves, engine_figure, loss_figure, png, svg
from pretrain.run_folder import RunFolder, write_atomically
from pretrain.telemetry.metrics import read_metrics

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


def write_report(run_dir: Path, fills: Sequence[Any] = ()) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``loss.png`` into a run folder.

    Args:
        run_dir: The run folder; the run may still be going on.
        fills: Sample fills, as dataclasses or mappings with ``name``, ``masked_text``, and
            ``spans`` (each with ``truth`` and ``generated``).

    Returns:
        The paths of the page and of the picture.

    Raises:
        RunError: There is no such folder, or no run has written into it.
        OSError: The folder cannot be written.
    """
    folder = RunFolder(run_dir)
    if not folder.metrics_path.exists() and not folder.config_path.exists():
        raise RunError(f"{run_dir}: no run has written here; name a folder below run_dir")
    curves = Curves.from_metrics(read_metrics(folder.metrics_path))
    config = _read_yaml(folder.config_path)
    picture = png(loss_figure(curves, f"{run_dir.name}: denoising loss"))
    _write_bytes(folder.loss_plot_path, picture)
    page = _page(folder, curves, config, [_plain(fill) for fill in fills])
    write_atomically(folder.report_path, page)
    return folder.report_path, folder.loss_plot_path


def _write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file so that a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    from pretrain.yaml_text import read_yaml

    return read_yaml(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    """Turns dataclasses into mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _number(value: Any) -> str:
    """Writes a number for people; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """Builds a table.

    Args:
        head: Column names; none for a table without a head.
        rows: Cells.
        numbers: Columns aligned to the right.
    """

    def cell(tag: str, column: int, value: Any) -> str:
        kind = ' class="number"' if column in numbers else ""
        return f"<{tag}{kind}>{escape(_number(value))}</{tag}>"

    def line(tag: str, values: Sequence[Any]) -> str:
        return "<tr>" + "".join(cell(tag, i, value) for i, value in enumerate(values)) + "</tr>"

    top = f"<thead>{line('th', head)}</thead>" if head else ""
    body = "".join(line("td", row) for row in rows)
    kind = "" if head else ' class="facts"'
    return f'<div class="scroll"><table{kind}>{top}<tbody>{body}</tbody></table></div>'


def _image(data: bytes, kind: str, description: str) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/{kind};base64,{encoded}">'


def _card(value: str, label: str, kind: str = "") -> str:
    return (
        f'<div class="card"><b class="{kind}">{escape(value)}</b><span>{escape(label)}</span></div>'
    )


def _state(folder: RunFolder, curves: Curves, max_steps: Any) -> str:
    step = curves.train[-1]["step"] if curves.train else 0
    if folder.stop_marker.exists():
        return f"stopped on request after step {step:,}; the same command goes on"
    if isinstance(max_steps, int) and step >= max_steps:
        return f"finished after {step:,} steps"
    of = f" of {max_steps:,}" if isinstance(max_steps, int) else ""
    return f"step {step:,}{of} when this report was written"


def _cards(curves: Curves, config: Mapping[str, Any]) -> str:
    cards = []
    if curves.evaluations:
        first, last = curves.evaluations[0], curves.evaluations[-1]
        loss = last["eval/heldout/loss"]
        cards.append(_card(f"{first['eval/heldout/loss']:.3f} → {loss:.3f}", "held-out loss"))
        unigram = last.get("eval/heldout/unigram_loss")
        if isinstance(unigram, (int, float)):
            side, kind = ("below", "good") if loss < unigram else ("above", "bad")
            cards.append(
                _card(
                    f"{abs(unigram - loss):.3f} {side}", f"unigram baseline of {unigram:.3f}", kind
                )
            )
        text, text_unigram = (last.get(f"eval/heldout/{key}text_loss") for key in ("", "unigram_"))
        if isinstance(text, (int, float)) and isinstance(text_unigram, (int, float)):
            cards.append(
                _card(
                    f"{text:.3f}", f"on text alone, without sentinels (unigram {text_unigram:.3f})"
                )
            )
    if curves.train:
        last = curves.train[-1]
        cards.append(_card(_number(last["step"]), "steps"))
        if "tokens_seen" in last:
            cards.append(_card(_number(last["tokens_seen"]), "tokens of text"))
        speeds = sorted(
            line["tokens_per_second"] for line in curves.train if "tokens_per_second" in line
        )
        if speeds:
            cards.append(_card(_number(round(speeds[len(speeds) // 2])), "tokens per second"))
    parameters = _parameters(config)
    if parameters:
        cards.append(_card(_number(parameters), "parameters"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _parameters(config: Mapping[str, Any]) -> int:
    if "model" not in config:
        return 0
    from spade_model.config import SpadeConfig
    from spade_model.cost import count_parameters

    try:
        return int(count_parameters(SpadeConfig.from_dict(config["model"])).total)
    except (TypeError, ValueError):
        return 0  # a configuration of another version of this code


def _facts(values: Mapping[str, Any]) -> str:
    rows = []
    for name, value in values.items():
        if name.endswith("_bytes") and isinstance(value, int):
            name, value = name.removesuffix("_bytes"), f"{value / 2**30:.1f} GiB"
        rows.append(
            (name.replace("_", " "), value if not isinstance(value, dict) else json.dumps(value))
        )
    return _table((), rows)


def _data_rows(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the manifests of the data sets say, where they still lie at their place."""
    data = config.get("data", {})
    rows: list[tuple[str, Any]] = []
    for name in ("train", "heldout"):
        manifest = _read_json(Path(str(data.get(name, ""))) / "manifest.json")
        for key in ("documents", "tokens"):
            if key in manifest:
                rows.append((f"{name} {key}", manifest[key]))
        if isinstance(manifest.get("shards"), list):
            rows.append((f"{name} shards", len(manifest["shards"])))
    manifest = _read_json(Path(str(data.get("train", ""))) / "manifest.json")
    if "vocab_size" in manifest:
        rows.append(("vocabulary", manifest["vocab_size"]))
    source = manifest.get("source")
    for key in ("inputs", "heldout_fraction", "quarantined", "fingerprint"):
        if isinstance(source, dict) and key in source:
            value = source[key]
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            rows.append((f"corpus {key.replace('_', ' ')}", text))
    return rows


def _evaluations(curves: Curves) -> str:
    keys = sorted({key for line in curves.evaluations for key in line if key.startswith("eval/")})
    head = ["step", *(key.removeprefix("eval/").replace("_", " ") for key in keys)]
    rows = [
        [line["step"], *(f"{line[key]:.4f}" if key in line else "" for key in keys)]
        for line in curves.evaluations
    ]
    return _table(head, rows, numbers=range(len(head)))


def _visible(text: Any) -> str:
    """Escapes a generated piece of text and shows its line ends, which may be all of it."""
    return escape(str(text)).replace("\n", "↵\n")


def _fill(fill: Mapping[str, Any]) -> str:
    """Shows one masked document beside what was masked and what was generated."""
    spans = [_plain(span) for span in fill.get("spans", ())]
    masked_text = escape(str(fill.get("masked_text", "")))
    masked_text = re.sub(r"&lt;extra_id_([0-9]+)&gt;", r"<mark>\1</mark>", masked_text)
    cells = "".join(
        f"<tr><td><mark>{number}</mark></td>"
        f"<td><code>{_visible(span.get('truth', ''))}</code></td>"
        f"<td><code>{_visible(span.get('generated', ''))}</code></td></tr>"
        for number, span in enumerate(spans)
    )
    return (
        f'<div class="fill"><h3>{escape(str(fill.get("name", "")))}</h3>'
        f"<pre>{masked_text}</pre>"
        '<div class="scroll"><table><thead><tr><th>gap</th><th>masked</th><th>generated</th></tr>'
        f"</thead><tbody>{cells}</tbody></table></div></div>"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _columns(*parts: str) -> str:
    cells = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="columns">{cells}</div>'


def _page(
    folder: RunFolder,
    curves: Curves,
    config: Mapping[str, Any],
    fills: Sequence[Mapping[str, Any]],
) -> str:
    """Builds the whole page; every text from outside passes ``escape``."""
    name = str(config.get("name", folder.path.name))
    state = _state(folder, curves, config.get("train", {}).get("max_steps"))
    resumes = ", ".join(f"{step:,}" for step in curves.resumed_at)
    if resumes:
        state += f"; resumed after step {resumes}"
    engine = engine_figure(curves)
    engine_image = _image(svg(engine), "svg+xml", "gradient norm, speed") if engine else ""
    yaml_text = folder.config_path.read_text(encoding="utf-8") if config else ""
    environment = _read_json(folder.environment_path)
    sections = [
        _image(svg(loss_figure(curves, "")), "svg+xml", "loss and learning rate over the steps"),
        _section("Sample fills of held-out documents", "".join(_fill(fill) for fill in fills)),
        _section("Evaluations", _evaluations(curves) if curves.evaluations else ""),
        _section("Engine", engine_image),
        _columns(
            _section("Data", _table((), _data_rows(config)) if _data_rows(config) else ""),
            _section("Machine", _facts(environment) if environment else ""),
        ),
        _section("Configuration", f"<pre>{escape(yaml_text)}</pre>" if yaml_text else ""),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · SPADE pretraining</title><style>{_STYLE}</style></head>"
        f'<body><main><h1>{escape(name)}</h1><p class="lead">{escape(state)}</p>'
        f"{_cards(curves, config)}{''.join(sections)}"
        f"<footer>{escape(str(folder.path))}: written by spade from metrics.jsonl, config.yaml and "
        "environment.json.</footer></main></body></html>\n"
    )
