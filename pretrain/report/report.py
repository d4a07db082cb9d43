"""The report of one run: one self-contained page and its loss curve.

It is written from what lies in the run folder, so it can be written at any time: of a run that
still goes on, of one that was copied from another machine, and again.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.report import html
from pretrain.report.curves import Curves, finite
from pretrain.report.run_figures import engine_figure, loss_figure, png, svg
from pretrain.report.run_record import RunRecord, read_run
from pretrain.run_folder import write_atomically


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
    run = read_run(run_dir)
    picture = png(loss_figure(run.curves, run.roll_backs, f"{run.name}: denoising loss"))
    write_bytes(run.folder.loss_plot_path, picture)
    curves = svg(loss_figure(run.curves, run.roll_backs, ""))
    engine = engine_figure(run.curves, run.roll_backs)
    page = run_page(run, [_plain(fill) for fill in fills], curves, svg(engine) if engine else b"")
    write_atomically(run.folder.report_path, page)
    return run.folder.report_path, run.folder.loss_plot_path


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file so that a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def parameter_count(run: RunRecord) -> int:
    """Parameters of the run's model, 0 where its configuration is not of this code's version."""
    model = run.config.get("model")
    if not isinstance(model, dict):
        return 0
    from spade_model.config import SpadeConfig
    from spade_model.cost import count_parameters

    try:
        return int(count_parameters(SpadeConfig.from_dict(model)).total)
    except (TypeError, ValueError, OverflowError):
        return 0


def median_speed(curves: Curves) -> float | None:
    """Tokens per second of the median logged step."""
    speeds = [finite(line.get("tokens_per_second")) for line in curves.train]
    known = sorted(speed for speed in speeds if speed is not None)
    return known[len(known) // 2] if known else None


def _plain(value: Any) -> Any:
    """Turns dataclasses into mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _cards(run: RunRecord) -> str:
    curves = run.curves
    cards = _loss_cards(curves)
    if curves.train:
        last = curves.train[-1]
        cards.append(html.card(html.number(last["step"]), "steps"))
        if "tokens_seen" in last:
            cards.append(html.card(html.number(last["tokens_seen"]), "tokens of text"))
        speed = median_speed(curves)
        if speed is not None:
            cards.append(html.card(html.number(round(speed)), "tokens per second"))
    parameters = parameter_count(run)
    if parameters:
        cards.append(html.card(html.number(parameters), "parameters"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _loss_cards(curves: Curves) -> list[str]:
    if not curves.evaluations:
        return []

    def number(line: Mapping[str, Any], key: str) -> float | None:
        return finite(line.get(f"eval/heldout/{key}"))

    last = curves.evaluations[-1]
    first_loss, loss = number(curves.evaluations[0], "loss"), number(last, "loss")
    cards = []
    if first_loss is not None and loss is not None:
        cards.append(html.card(f"{first_loss:.3f} → {loss:.3f}", "held-out loss"))
    unigram = number(last, "unigram_loss")
    if loss is not None and unigram is not None:
        side, kind = ("below", "good") if loss < unigram else ("above", "bad")
        label = f"unigram baseline of {unigram:.3f}"
        cards.append(html.card(f"{abs(unigram - loss):.3f} {side}", label, kind))
    text, text_unigram = number(last, "text_loss"), number(last, "unigram_text_loss")
    if text is not None and text_unigram is not None:
        label = f"on text alone, without sentinels (unigram {text_unigram:.3f})"
        cards.append(html.card(f"{text:.3f}", label))
    bits = number(last, "bits_per_byte")
    if bits is not None:
        cards.append(html.card(f"{bits:.3f}", "bits per byte of masked text"))
    return cards


def _data_rows(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the manifests of the data sets say, where they still lie at their place."""
    data = config.get("data")
    if not isinstance(data, dict):
        return []
    rows: list[tuple[str, Any]] = []
    manifests = {name: _manifest(data.get(name)) for name in ("train", "heldout")}
    for name, manifest in manifests.items():
        for key in ("documents", "tokens"):
            if key in manifest:
                rows.append((f"{name} {key}", manifest[key]))
        if isinstance(manifest.get("shards"), list):
            rows.append((f"{name} shards", len(manifest["shards"])))
    if "vocab_size" in manifests["train"]:
        rows.append(("vocabulary", manifests["train"]["vocab_size"]))
    source = manifests["train"].get("source")
    for key in ("inputs", "heldout_fraction", "quarantined", "fingerprint"):
        if isinstance(source, dict) and key in source:
            value = source[key]
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            rows.append((f"corpus {key.replace('_', ' ')}", shown))
    return rows


def _manifest(location: Any) -> dict[str, Any]:
    """The manifest of a data set on a disk; of several, or behind a URL, none."""
    if not isinstance(location, str):
        return {}
    try:
        value = json.loads((Path(location) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _evaluations(curves: Curves) -> str:
    keys = sorted({key for line in curves.evaluations for key in line if key.startswith("eval/")})
    head = ["step", *(key.removeprefix("eval/").replace("_", " ") for key in keys)]

    def cell(value: Any) -> str:
        known = finite(value)
        return "" if known is None else f"{known:.4f}"

    rows = [[line["step"], *(cell(line.get(key)) for key in keys)] for line in curves.evaluations]
    return html.table(head, rows, numbers=range(len(head))) if rows else ""


def _visible(text: Any) -> str:
    """A generated piece of text with its line ends, which may be all of it, made visible."""
    return html.text(text).replace("\n", "↵\n")


def _fill(fill: Mapping[str, Any]) -> str:
    """Shows one masked document beside what was masked and what was generated."""
    spans = [_plain(span) for span in fill.get("spans", ())]
    masked_text = html.text(fill.get("masked_text", ""))
    masked_text = re.sub(r"&lt;extra_id_([0-9]+)&gt;", r"<mark>\1</mark>", masked_text)
    cells = "".join(
        f"<tr><td><mark>{number}</mark></td>"
        f"<td><code>{_visible(span.get('truth', ''))}</code></td>"
        f"<td><code>{_visible(span.get('generated', ''))}</code></td></tr>"
        for number, span in enumerate(spans)
    )
    return (
        f'<div class="fill"><h3>{html.text(fill.get("name", ""))}</h3>'
        f"<pre>{masked_text}</pre>"
        '<div class="scroll"><table><thead><tr><th>gap</th><th>masked</th><th>generated</th></tr>'
        f"</thead><tbody>{cells}</tbody></table></div></div>"
    )


def _gaps(run: RunRecord) -> str:
    """The newest fills that the run itself made at an evaluation, a row a gap."""
    samples = run.fills.get("samples")
    gaps = [
        (number, gap)
        for number, sample in enumerate(samples if isinstance(samples, list) else [])
        if isinstance(sample, list)
        for gap in sample
        if isinstance(gap, dict)
    ]
    keys = ("before", "truth", "generated", "after")
    rows = [[number, *(gap.get(key, "") for key in keys)] for number, gap in gaps]
    return html.table(("sample", "before", "masked", "generated", "after"), rows) if rows else ""


def run_page(
    run: RunRecord, fills: Sequence[Mapping[str, Any]], curves: bytes, engine: bytes = b""
) -> str:
    """The page about a run.

    Args:
        run: What its folder holds.
        fills: As for `write_report`, as mappings.
        curves: Picture of its losses, SVG.
        engine: Picture of its speed, SVG; empty where nothing is known.
    """
    state = run.state
    for told, steps in (
        ("resumed after", run.curves.resumed_at),
        ("rolled back to", run.roll_backs),
    ):
        if steps:
            state += f"; {told} step {', '.join(f'{step:,}' for step in steps)}"
    if run.skipped_steps:
        state += f"; {run.skipped_steps:,} steps skipped"
    data_rows = _data_rows(run.config)
    step = html.number(run.fills.get("step", "?"))
    body = [
        _cards(run),
        html.problems(run.problems),
        html.image(curves, "svg+xml", "loss and learning rate over the steps"),
        html.section("Sample fills of held-out documents", "".join(map(_fill, fills))),
        html.section(f"Gaps filled in at step {step}", _gaps(run)),
        html.section("Evaluations", _evaluations(run.curves)),
        html.section(
            "Engine",
            html.image(engine, "svg+xml", "gradient norm, speed") if engine else "",
        ),
        html.columns(
            html.section("Data", html.table((), data_rows) if data_rows else ""),
            html.section("Machine", html.facts(run.environment) if run.environment else ""),
        ),
        html.section(
            "Configuration",
            f"<pre>{html.text(run.config_text)}</pre>" if run.config_text else "",
        ),
    ]
    footer = (
        f"{run.folder.path}: written by spade from metrics.jsonl, decisions.jsonl, config.yaml and "
        "environment.json."
    )
    return html.page(str(run.config.get("name", run.name)), state, "".join(body), footer)
