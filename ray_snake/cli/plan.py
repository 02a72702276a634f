"""`ray-snake plan`: what would run where, with predicted memory, bytes and time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ray_snake.cli.options import config_argument, set_option
from ray_snake.config import SnakeConfig
from ray_snake.planning.memory import rows_at_once, span_of, suffix_of
from ray_snake.planning.span import Visit
from ray_snake.telemetry.format import format_bytes, format_seconds


@click.command()
@config_argument
@set_option
@click.option("--trips", "shown_trips", type=click.IntRange(min=1), default=2, show_default=True)
def plan(config: Path, settings: tuple[str, ...], shown_trips: int) -> None:
    """Show the first trips of CONFIG, with predictions from this machine; trains nothing."""
    loaded = SnakeConfig.load(config, settings)

    import torch
    from rich.console import Console

    from ray_snake.runtime.forecast import forecast
    from ray_snake.runtime.placement import group_nodes
    from ray_snake.runtime.preflight import check_model, check_settings, check_shards
    from ray_snake.runtime.recipe import Recipe
    from ray_snake.trainer import evaluation_source, node_sources

    torch.set_num_threads(loaded.nodes.threads)
    recipe = Recipe(config=loaded)
    sources = node_sources(loaded, None)
    group_nodes(loaded.nodes, sources)
    stack = check_model(recipe, nodes=len(sources))
    task = recipe.named_task()
    nodes = check_shards(stack, sources, task)
    if (judged := evaluation_source(loaded)) is not None:
        check_shards(stack, [judged], task)
    check_settings(loaded, nodes)
    found = forecast(loaded, stack, nodes, trips=shown_trips)
    has_bases = any(one.base_bytes for one in found.blocks)
    bases = ["base"] if has_bases else []
    blocks = _table("Blocks", "block", "name", "weights", *bases, "forward/sample", "saved/sample")
    visits = _table(
        f"The first of {loaded.snake.trips} trips",
        *("visit", "trip", "node", "span", "trains", "rows", "at once", "trained", "frozen"),
        *("time", "GPU memory" if loaded.nodes.on_gpus else "memory", "pulls", "why"),
    )
    for index, one in enumerate(found.blocks):
        blocks.add_row(
            str(index),
            one.name,
            format_bytes(one.weight_bytes),
            *([format_bytes(one.base_bytes)] if has_bases else []),
            f"{one.forward_flops / 1e6:.2f} Mflop",
            format_bytes(one.saved_bytes),
        )
    for row in found.visits:
        training = found.training[row.visit.node]
        visits.add_row(
            str(row.visit.number),
            str(row.visit.trip),
            nodes[row.visit.node].name,
            str(row.visit.span),
            _ranges(row.visit.trained),
            str(nodes[row.visit.node].samples),
            str(rows_at_once(training, nodes[row.visit.node].samples)[0]),
            span_of(training),
            f"{training.residency}, {suffix_of(training)}",
            format_seconds(row.cost.seconds),
            format_bytes(row.cost.peak_bytes(on_gpu=loaded.nodes.on_gpus)),
            format_bytes(row.bytes_pulled),
            row.visit.why or _reason(row.visit, loaded),
        )
    console = Console()
    if not console.is_terminal:
        # Nothing cuts off what goes to a file.
        console = Console(width=160)
    console.print(blocks)
    console.print(visits)
    console.print(
        f"{len(nodes)} nodes, {len(found.blocks)} blocks, whole run about "
        f"{format_seconds(found.run_seconds)} on nodes like this machine "
        f"({found.flops_per_second / 1e9:.1f} Gflop/s on this network)."
    )


def _reason(visit: Visit, config: SnakeConfig) -> str:
    """Return what chose a visit that nothing changed."""
    return "whole model" if visit.place is None else config.snake.order


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for heading in headings:
        text = heading in ("name", "node", "span", "trains", "trained", "frozen", "why")
        table.add_column(heading, justify="left" if text else "right", no_wrap=True)
    return table


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as `0-4 9`."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), key=lambda one: one[1] - one[0])
    ]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
