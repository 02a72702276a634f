"""`ray-snake simulate`: a run on virtual clocks, on nodes that are drawn, traced or known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_snake.cli.options import LocalPath, check_new, config_argument, json_option, set_option
from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.telemetry.format import format_bytes, format_seconds

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from ray_snake.engine.stack import BlockStack
    from ray_snake.planning.cost import BlockCost
    from ray_snake.simulation.distribution import Distribution
    from ray_snake.simulation.simulator import Simulation
    from ray_snake.simulation.world import World

SHOWN_TRIPS = 12
STAYS_LOOKED_AT = 1000
LEAST_SHARE = 1e-6
# Option, quantity of `World.draw`, help.
DRAWN = (
    ("--rows", "rows", "Rows of a node's shard; by default those of CONFIG's nodes."),
    ("--pace", "pace", "How many times as long as this machine a node computes."),
    ("--link", "bytes_per_second", "Bytes per second of a node's link; by default no limit."),
    ("--latency", "latency_seconds", "Seconds that a visit takes beside all that."),
    ("--online", "online_seconds", "Seconds for which a node is there at a time."),
    ("--offline", "offline_seconds", "Seconds for which it is away in between."),
)


def _drawn_options(command: Callable[..., None]) -> Callable[..., None]:
    for option, name, text in reversed(DRAWN):
        command = click.option(option, name, metavar="DIST", help=text)(command)
    return command


@click.command(
    epilog="DIST is a number or a distribution: constant(value), uniform(low, high), "
    "lognormal(median, sigma), exponential(mean), choice(a, b, ..)."
)
@config_argument
@set_option
@click.option("--nodes", type=click.IntRange(min=1), help="How many; by default CONFIG's.")
@click.option("--trips", type=click.IntRange(min=1), help="How many; by default CONFIG's.")
@_drawn_options
@click.option("--trace", metavar="FILE", help="CSV or Parquet: a row for each node.")
@click.option("--like", metavar="RUN", help="Nodes as they turned out in a run that adapted.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of what is drawn."
)
@click.option("--plot", "picture", type=LocalPath(), help="Picture file to write.")
@click.option("--out", type=LocalPath(), help="Parquet file of trips to write.")
@json_option
def simulate(
    config: Path,
    settings: tuple[str, ...],
    nodes: int | None,
    trips: int | None,
    trace: str | None,
    like: str | None,
    seed: int,
    picture: Path | None,
    out: Path | None,
    as_json: bool,
    **drawn: str | None,
) -> None:
    """Run CONFIG's planning on virtual clocks: trip time, idle share, bytes, coverage.

    The same code plans as in a real run; computing time comes from the network's blocks, measured
    here, and from what is said of nodes and links. Trains nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ray_snake.simulation.distribution import Distribution
    from ray_snake.simulation.simulator import Simulator
    from ray_snake.simulation.world import read_trace

    asked = () if trips is None else (f"snake.trips={trips}",)
    loaded = SnakeConfig.load(config, (*settings, *asked))
    if picture is not None:
        from ray_snake.simulation.plot import check_picture

        check_picture(picture)
        check_new("--plot", picture)
    if out is not None:
        check_new("--out", out)
    if (drawn["online_seconds"] is None) != (drawn["offline_seconds"] is None):
        raise ConfigError("--online", "goes with --offline", "give both, or neither")
    given = {
        name: Distribution.parse(option, text)
        for option, name, _ in DRAWN
        if (text := drawn[name]) is not None
    }
    if "online_seconds" in given:
        _check_stays(given["online_seconds"], given["offline_seconds"])
    traced = None if trace is None else read_trace(trace)
    world, costs = _world(loaded, nodes, seed, given, like, traced)
    simulator = Simulator(loaded, world, costs)
    progress = Progress(
        TextColumn("simulating trip {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    )
    with progress:
        task = progress.add_task("", total=loaded.snake.trips)
        found = simulator.run(lambda trip: progress.update(task, completed=trip))
    if picture is not None:
        from ray_snake.simulation.plot import plot

        plot({config.stem: found}, picture)
    if out is not None:
        import pyarrow.parquet as pq

        pq.write_table(found.table, out)
    _show(found, Console(stderr=as_json))
    if as_json:
        click.echo(json.dumps(asdict(found.summary)))


def _check_stays(stays: Distribution, gaps: Distribution) -> None:
    """See that nodes are there for long enough to get anything done.

    Raises:
        ConfigError: If they aren't.
    """
    import numpy as np

    there, away = (
        one.draw(np.random.default_rng(0), STAYS_LOOKED_AT).sum() for one in (stays, gaps)
    )
    if there <= LEAST_SHARE * (there + away):
        raise ConfigError(
            "--online",
            f"{stays.text} with --offline {gaps.text}: nodes are there for less than a millionth "
            "of the time",
            "give longer stays, or shorter gaps",
        )


def _world(
    config: SnakeConfig,
    nodes: int | None,
    seed: int,
    given: dict[str, Distribution],
    like: str | None,
    traced: pa.Table | None,
) -> tuple[World, tuple[BlockCost, ...]]:
    """Return nodes and block costs, from the settings' own data or from a run."""
    import numpy as np
    import torch

    from ray_snake.runtime.forecast import measured_costs
    from ray_snake.runtime.memory_checks import most_demanding
    from ray_snake.runtime.placement import group_nodes
    from ray_snake.runtime.preflight import check_model, check_settings, check_shards
    from ray_snake.runtime.recipe import Recipe
    from ray_snake.simulation.distribution import Distribution
    from ray_snake.simulation.like import world_like
    from ray_snake.simulation.world import World
    from ray_snake.trainer import node_sources

    torch.set_num_threads(config.nodes.threads)
    sources = node_sources(config, None)
    group_nodes(config.nodes, sources)
    recipe = Recipe(config=config)
    stack = check_model(recipe, nodes=len(sources))
    # Rows of all, where they are the nodes'; else the first shard tells what a row is.
    looked_at = sources if "rows" not in given else sources[:1]
    specs = check_shards(stack, looked_at, recipe.named_task())
    check_settings(config, specs)
    rows = np.array([one.samples for one in specs])
    costs: tuple[BlockCost, ...] = ()
    if like is not None:
        if nodes is not None or given:
            raise ConfigError(
                "--like", "says all of the nodes", "leave out --nodes and what would be drawn"
            )
        world, costs = world_like(like, config, rows)
    else:
        if "rows" not in given:
            text = ", ".join(str(one) for one in rows)
            given = given | {"rows": Distribution.parse("--rows", f"choice({text})")}
        world = World.draw(len(sources) if nodes is None else nodes, seed, given)
        if not world.bytes_per_second.all():
            raise ConfigError("--link", "leaves a node 0 bytes per second", "use numbers above 0")
        if nodes is None and len(rows) == len(world):
            world = world.with_rows(rows)
    if traced is not None:
        world = world.with_trace(traced)
    largest = most_demanding(specs)
    return replace(world, base_bytes=_base_bytes(stack)), costs or measured_costs(
        config, stack, sample_shape=largest.sample_shape, integer_inputs=largest.integer_inputs
    )


def _base_bytes(stack: BlockStack) -> int:
    """Return the bytes of bases that nodes pull: those that no file holds, here as on a node."""
    from ray_snake.runtime.bases import bases_at_hand

    at_hand = sum(one.nbytes for one in bases_at_hand(stack))
    return sum(stack.part_bytes()[len(stack) :]) - at_hand


def _show(found: Simulation, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("trip", "time", "idle", "late", "moved", "samples", "covered"):
        table.add_column(heading, justify="right", no_wrap=True)
    ends = [0.0, *(one.ended_at_seconds for one in found.trips)]
    every = -(-len(found.trips) // SHOWN_TRIPS)
    for before, one in zip(ends, found.trips, strict=False):
        if one.trip % every and one.trip not in (1, len(found.trips)):
            continue
        seconds = one.ended_at_seconds - before
        idle = 1 - one.busy_seconds / (found.nodes * seconds) if seconds > 0 else 0.0
        table.add_row(
            str(one.trip),
            format_seconds(seconds),
            f"{idle:.1%}",
            str(one.late),
            format_bytes(one.bytes),
            f"{one.samples:,}",
            "" if one.covered is None else f"{one.covered:.1%}",
        )
    console.print(table)
    whole = found.summary
    console.print(
        f"{whole.nodes:,} nodes, {whole.visits:,} visits: {format_seconds(whole.seconds)}, "
        f"{format_seconds(whole.trip_seconds)} a trip, nodes idle {whole.idle_share:.1%}, "
        f"{format_bytes(whole.bytes_moved)} moved.",
        highlight=False,
    )
