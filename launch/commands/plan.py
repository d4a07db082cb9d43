"""``spade plan``: memory, communication, time and money of a run, before anything is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import human_bytes, human_seconds, print_json, say, table

if TYPE_CHECKING:
    from pretrain.planning.plan import LayoutPlan, RunPlan


def register(application: typer.Typer) -> None:
    """Adds the command."""
    application.command(
        "plan",
        epilog="Example: spade plan configs/base.yaml --nodes 4 --gpus-per-node 8 --device h100 "
        "--price-per-gpu-hour 2.5 train.micro_batch_size=8",
    )(plan)


def plan(
    config: Annotated[Path, typer.Argument(help="Configuration as YAML.", metavar="CONFIG")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")],
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of each, one process a GPU.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that replace the file's.", metavar="a.b=c …"),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="b200, h200, h100, a100, a100-40gb, l40s, a10, v100, mi300x, or cpu: one core of "
            "this machine."
        ),
    ] = "h100",
    network_gbit: Annotated[
        float | None,
        typer.Option(min=0.001, help="Network of one GPU in Gbit/s, if not its maker's."),
    ] = None,
    disk_gb_per_second: Annotated[
        float, typer.Option(min=0.001, help="Writing to the run folder's disk, GB/s in all.")
    ] = 2.0,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to train on, instead of train.max_steps.")
    ] = None,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(min=0.0, help="In any currency; gives the cost.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Work out what a run needs on machines that need not be at hand.

    Memory of a GPU for each ZeRO stage and offload, the micro-batch that fits, what a step
    communicates, speed, days and cost, checkpoints. Speeds are ranges: a plan knows the peak, and
    utilisation only from a run.
    """
    from pretrain.config import RunConfig
    from pretrain.planning.advice import out_of_memory_advice
    from pretrain.planning.plan import USABLE_MEMORY, Machines, plan_run
    from pretrain.planning.this_machine import find_device

    settings = RunConfig.load(config, overrides or [])
    chosen = find_device(device)
    if network_gbit is not None:
        rate = network_gbit * 1e9 / 8
        chosen = dataclasses.replace(chosen, network_bytes_per_second=rate)
    machines = Machines(chosen, nodes, gpus_per_node, disk_gb_per_second * 1e9)
    planned = plan_run(settings, machines)
    budget = tokens or planned.tokens_in_run
    advice: list[str] = []
    if not planned.configured.fits:
        usable = int(USABLE_MEMORY * chosen.memory_bytes)
        sizes = (machines.world_size, usable)
        advice = out_of_memory_advice(settings, *sizes, device_type=machines.device_type)
    if as_json:
        data = _as_data(planned, budget, price_per_gpu_hour)
        print_json({**data, "advice": advice})
        return
    _show_memory(planned)
    for number, line in enumerate(advice):
        say(f"  {line}" if number else f"The configuration (*) does not fit: {line}; with")
    _show_speed(planned)
    _show_run(planned, budget, price_per_gpu_hour)


def _as_data(planned: RunPlan, budget: int, price: float | None) -> dict[str, Any]:
    hours = planned.device_hours(budget)
    data = dataclasses.asdict(planned)
    for layout, fields in zip(planned.layouts, data["layouts"], strict=True):
        fields["memory"]["device_bytes"] = layout.memory.device_bytes
        fields["memory"]["host_bytes"] = layout.memory.host_bytes
    days = planned.days(budget)
    cost = None if price is None else [price * number for number in hours]
    return {**data, "budget_tokens": budget, "days": days, "device_hours": hours, "cost": cost}


def _name(layout: LayoutPlan) -> str:
    name = f"ZeRO {layout.zero_stage}"
    if layout.offload_parameters != "none":
        name += f", all on {layout.offload_parameters}"
    elif layout.offload_optimizer != "none":
        name += f", optimizer on {layout.offload_optimizer}"
    return name + (" *" if layout.configured else "")


def _show_memory(planned: RunPlan) -> None:
    """One row a component, one column a layout."""
    layouts = planned.layouts
    device = planned.machines.device
    parts = list(dict.fromkeys(part for layout in layouts for part in layout.memory.device))
    rows = [
        (part, *(human_bytes(layout.memory.device.get(part, 0)) for layout in layouts))
        for part in parts
    ]
    rows.append(("total", *(human_bytes(layout.memory.device_bytes) for layout in layouts)))
    rows.append(("highest in the", *(layout.memory.moment for layout in layouts)))
    rows.append(("fits", *("yes" if layout.fits else "no" for layout in layouts)))
    rows.append(
        ("largest micro-batch", *(str(layout.largest_micro_batch_size) for layout in layouts))
    )
    rows.append(
        ("host memory a node", *(human_bytes(layout.host_bytes_per_node) for layout in layouts))
    )
    title = f"Memory of one of {planned.machines.world_size} {device.name} with "
    title += f"{human_bytes(device.memory_bytes)}; * is what the configuration says"
    table(title, ("", *(_name(layout) for layout in layouts)), rows)


def _show_speed(planned: RunPlan) -> None:
    shares = planned.configured.communication.context_ranks > 1
    rows = []
    for layout in planned.layouts:
        slow, fast = layout.tokens_per_second
        sent = layout.communication
        between = (human_bytes(sent.context_bytes),) if shares else ()
        rows.append(
            (
                _name(layout),
                human_bytes(sent.sent_bytes),
                *between,
                f"{1000 * layout.communication_seconds:,.1f} ms",
                f"{slow:,.0f} to {fast:,.0f}",
            )
        )
    between = ("to those of its inputs",) if shares else ()
    columns = ("", "sent by a rank in a step", *between, "on the wire", "tokens/s")
    table("Communication and speed", columns, rows)


def _show_run(planned: RunPlan, budget: int, price: float | None) -> None:
    machines = planned.machines
    few, many = planned.days(budget)
    low, high = (f"{100 * share:.0f}" for share in machines.device.utilisation)
    rows = [
        ("parameters", f"{planned.parameters:,}"),
        ("tokens of a step", f"{planned.tokens_per_step:,}"),
        ("ranks that share each input", str(planned.configured.communication.context_ranks)),
        ("micro-batches of a step on a rank", str(planned.micro_batches_per_step)),
        ("tokens to train on", f"{budget:,}"),
        ("days", f"{few:,.1f} to {many:,.1f}"),
        ("checkpoint", human_bytes(planned.checkpoint_bytes)),
        ("writing it", human_seconds(planned.checkpoint_write_seconds)),
        ("training waits for it", human_seconds(planned.checkpoint_stall_seconds)),
    ]
    if price is not None:
        few, many = (price * hours for hours in planned.device_hours(budget))
        rows.insert(5, ("cost", f"{few:,.0f} to {many:,.0f}"))
    table("Run", ("what", "value"), rows)
    say(
        f"Speeds assume {low} to {high} % of the peak for arithmetic, and links at 75 % of their "
        "rate; measure the utilisation in metrics.jsonl of a short run."
    )
