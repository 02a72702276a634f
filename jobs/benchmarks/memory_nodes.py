"""Memory and CPU time of eight nodes: what a model costs, what starting costs, what Ray adds.

Each figure is of the whole process tree of one command that trains through `SnakeTrainer`: driver,
engine, nodes, Ray's own processes, and the command. A separate process samples it.

- `growth_models`: peak memory with a 100 MB fp32 model less that with a 1 MB model, in models.
  Eleven linear layers, spans of two, nodes in two processes. `_one_actor_each`: a process a node.
  `_whole`: the span is the whole model, so that every visit trains and moves all of it.
- `cpu_ratio`, `wall_ratio`: CPU seconds and time from the end of the first visit after all nodes
  were up to the end of the last one, over those of a bare loop: one process that calls
  `train_visit` for the very same visits, and ends with the same bits. Visits are three passes
  of a VGG-11 of half width over 512 pictures of 32x32, some three seconds on one thread.
- `start_cpu_seconds`: CPU seconds from the command's start to the end of its first visit, less
  those of the bare loop.

    python jobs/benchmarks/memory_nodes.py --gigabyte --json
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from process_tree import Usage, measure

from ray_snake import SnakeConfig

NODES = 8
LAYERS = 10
MIB = 2**20
SECTIONS = ("memory", "cpu")


@click.group(invoke_without_command=True)
@click.option("--gigabyte", is_flag=True, help="Also the peak with a model of 1 GB.")
@click.option("--only", type=click.Choice(SECTIONS), multiple=True, help="Leave out the others.")
@click.option("--repeats", default=3, show_default=True, help="Of the CPU runs; medians count.")
@click.option("--trips", default=3, show_default=True, help="Of the CPU runs, 8 visits each.")
@click.option("--verbose", is_flag=True, help="Show what each peak was made up of.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def main(
    context: click.Context,
    gigabyte: bool,
    only: tuple[str, ...],
    repeats: int,
    trips: int,
    verbose: bool,
    as_json: bool,
) -> None:
    """Train the same networks through Ray and without, and compare what they take."""
    if context.invoked_subcommand is not None:
        return
    chosen = only or SECTIONS
    figures: dict[str, float] = {}
    if "memory" in chosen:
        figures |= _memory_figures(verbose=verbose)
    if gigabyte:
        peak = _peak(1000, nodes_per_actor=4, span_width=2, verbose=verbose)
        figures["peak_pss_1gb_mib"] = round(peak / MIB)
    if "cpu" in chosen:
        figures |= _cpu_figures(repeats, trips)
    click.echo(json.dumps(figures) if as_json else figures)


def _memory_figures(*, verbose: bool) -> dict[str, float]:
    figures = {}
    for name, per_actor, width in (
        ("", 4, 2),
        ("_one_actor_each", 1, 2),
        ("_whole", 4, LAYERS + 2),
    ):
        small, large = (
            _peak(megabytes, nodes_per_actor=per_actor, span_width=width, verbose=verbose)
            for megabytes in (1, 100)
        )
        figures[f"growth_models{name}"] = round((large - small) / 100e6, 2)
        figures[f"peak_pss_1mb{name}_mib"] = round(small / MIB)
        figures[f"peak_pss_100mb{name}_mib"] = round(large / MIB)
    return figures


def _peak(megabytes: int, *, nodes_per_actor: int, span_width: int, verbose: bool) -> int:
    """Return the largest memory of a run with a model of that size, in bytes."""
    width = round((megabytes * 1e6 / 4 / LAYERS) ** 0.5)
    tree = {
        "model": {
            "name": "mlp",
            "options": {"inputs": 32, "classes": 10, "hidden": [width] * (LAYERS + 1)},
        },
        "snake": {"span_width": span_width, "trips": 3},
        "training": {"steps": 8, "batch_size": 8},
        "nodes": {"nodes_per_actor": nodes_per_actor},
    }
    with tempfile.TemporaryDirectory() as name:
        usage, _ = _run("train", tree, Path(name), shape=(32,), rows=32, memory=True)
    if verbose:
        click.echo(f"{megabytes} MB, {nodes_per_actor} nodes a process:", err=True)
        for process, size in usage.peak_by_process.items():
            click.echo(f"  {size / MIB:8.1f} MiB  {process}", err=True)
    return usage.peak_bytes


def _cpu_figures(repeats: int, trips: int) -> dict[str, float]:
    tree = {
        "model": {"name": "vgg11", "options": {"width": 0.5}},
        "snake": {"trips": trips},
        "training": {"epochs": 3},
        "nodes": {"nodes_per_actor": 4},
    }
    one_each = {**tree, "nodes": {"nodes_per_actor": 1}, "snake": {"trips": 1}}
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, number in _compare(tree, one_each).items():
            found.setdefault(name, []).append(number)
    figures = {name: round(statistics.median(numbers), 4) for name, numbers in found.items()}
    return {
        **figures,
        "cpu_ratio_lowest": round(min(found["cpu_ratio"]), 4),
        "cpu_ratio_highest": round(max(found["cpu_ratio"]), 4),
    }


def _compare(tree: dict[str, Any], one_each: dict[str, Any]) -> dict[str, float]:
    """Run the bare loop, the product, and the product with a process a node up to its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {}
        for part, command, settings in (
            ("bare", "bare", tree),
            ("ours", "train", tree),
            ("one_each", "train", one_each),
        ):
            (folder / part).mkdir()
            parts[part] = _run(
                command, settings, folder / part, shape=(3, 32, 32), rows=512, memory=False
            )
    (bare_usage, bare), (ours_usage, ours), (each_usage, each) = parts.values()
    if ours["sha256"] != bare["sha256"]:
        raise click.ClickException("the bare loop came to other weights: they can't be compared")
    first = next(
        number for number, when in enumerate(ours["visits"]) if when >= max(ours["nodes_ready"])
    )
    bare_cpu, ours_cpu = (
        usage.cpu_until(line["visits"][-1]) - usage.cpu_until(line["visits"][first])
        for usage, line in ((bare_usage, bare), (ours_usage, ours))
    )
    bare_wall, ours_wall = (line["visits"][-1] - line["visits"][first] for line in (bare, ours))
    bare_start = bare_usage.cpu_until(bare["visits"][0])
    return {
        "cpu_ratio": ours_cpu / bare_cpu,
        "wall_ratio": ours_wall / bare_wall,
        "start_cpu_seconds": ours_usage.cpu_until(ours["visits"][0]) - bare_start,
        "start_cpu_seconds_one_actor_each": each_usage.cpu_until(each["visits"][0]) - bare_start,
        "start_seconds": ours["visits"][0] - ours_usage.times[0],
        "steady_visits": len(ours["visits"]) - 1 - first,
        "bare_visit_cpu_seconds": bare_cpu / (len(ours["visits"]) - 1 - first),
        "ray_cpu_seconds_per_second": (ours_cpu - bare_cpu) / ours_wall,
    }


def _run(
    command: str,
    tree: dict[str, Any],
    folder: Path,
    *,
    shape: tuple[int, ...],
    rows: int,
    memory: bool,
) -> tuple[Usage, dict[str, Any]]:
    """Run a command of this file as a process of its own; return what it took and its timeline."""
    shards = _write_shards(folder, shape, rows)
    settings = {**tree, "data": {"shards": shards}, "storage": {"uri": str(folder / "runs")}}
    (folder / "settings.json").write_text(json.dumps(settings))
    left_out = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
    environment = {name: text for name, text in os.environ.items() if name not in left_out}
    environment |= {"HOME": str(folder), "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    # Ray's workers step back for other programs by default, which the bare loop does not.
    environment["RAY_worker_niceness"] = "0"
    arguments = [str(folder / "settings.json"), str(folder / "timeline.json")]
    usage = measure(
        [sys.executable, __file__, command, *arguments], environment, folder, memory=memory
    )
    return usage, json.loads((folder / "timeline.json").read_text())


def _write_shards(folder: Path, shape: tuple[int, ...], rows: int) -> list[str]:
    from ray_snake.data.shards import make_table, write_shard

    rng = np.random.default_rng(0)
    paths = []
    for node in range(NODES):
        inputs = rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
        path = str(folder / f"node_{node}.arrow")
        write_shard(path, make_table(inputs, rng.integers(0, 10, rows)))
        paths.append(path)
    return paths


settings_argument = click.argument("settings", type=click.Path(path_type=Path))
timeline_argument = click.argument("timeline", type=click.Path(path_type=Path))


@main.command(hidden=True)
@settings_argument
@timeline_argument
def train(settings: Path, timeline: Path) -> None:
    """Train through Ray; leave when nodes were ready and visits ended."""
    from ray_snake import SnakeTrainer
    from ray_snake.runtime.events import Event, NodeReady
    from ray_snake.runtime.journal import read_records
    from ray_snake.runtime.records import VisitRecord
    from ray_snake.storage import Storage

    ready = []

    def look(event: Event) -> None:
        if isinstance(event, NodeReady):
            ready.append(time.time())

    config = SnakeConfig.from_tree(json.loads(settings.read_text()))
    result = SnakeTrainer(config=config, on_event=look).fit()
    records = read_records(Storage(result.run))
    line = {
        "nodes_ready": ready,
        "visits": [one.finished_at for one in records if isinstance(one, VisitRecord)],
        "sha256": result.summary["weights_sha256"],
    }
    timeline.write_text(json.dumps(line))


@main.command(hidden=True)
@settings_argument
@timeline_argument
def bare(settings: Path, timeline: Path) -> None:
    """Train the same visits in this process; leave when they ended."""
    import torch

    from ray_snake.data import NodeDataset
    from ray_snake.engine.visit import train_visit
    from ray_snake.layers.state import weights_sha256
    from ray_snake.layers.tensors import pack
    from ray_snake.planning.strategy import make_strategy
    from ray_snake.runtime.recipe import Recipe
    from ray_snake.seeds import derive_seed
    from ray_snake.trainer import node_sources

    torch.set_num_threads(1)
    config = SnakeConfig.from_tree(json.loads(settings.read_text()))
    recipe = Recipe(config=config)
    stack = recipe.initial()
    shards = [NodeDataset.open(source) for source in node_sources(config, None)]
    objectives = [recipe.objective(shard.label_counts(10)) for shard in shards]
    strategy = make_strategy(config, nodes=NODES, blocks=len(stack))
    ended = []
    while (visit := strategy.next()) is not None:
        train_visit(
            stack,
            shards[visit.node],
            trained=visit.trained,
            learning_rate=strategy.learning_rate(visit),
            seed=derive_seed(config.seed, "visit", visit.number),
            training=config.training,
            objective=objectives[visit.node],
        )
        ended.append(time.time())
    states = [pack(block, 0, stack.tensors(block)) for block in range(len(stack))]
    timeline.write_text(json.dumps({"visits": ended, "sha256": weights_sha256(states)}))


if __name__ == "__main__":
    main()
