"""Many nodes: what planning for them takes, and what holding them takes.

- `plan_seconds`: planning one trip over 10,000 nodes and 100 blocks, adapting, ten blocks a span:
  handing out its visits and taking in what they took.
- `simulate_seconds`: simulating 100 such trips, a million visits.
- `peak_pss_mib_64`: peak proportional set size of a whole run of 64 node actors, its command and
  Ray's own processes included; `_8`: of eight, `_8_shared`: of eight in one process; `_1000`: of a
  thousand nodes in eight processes.

    python jobs/benchmarks/scale.py --json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import click
from command import Benchmark
from process_tree import measure

from ray_snake import SnakeConfig
from ray_snake.config import SnakeSection
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.outlook import Facts, Outcome
from ray_snake.planning.strategy import make_strategy
from ray_snake.simulation.distribution import Distribution
from ray_snake.simulation.simulator import Simulator
from ray_snake.simulation.world import World

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jobs" / "configs" / "quickstart.toml"
MIB = 2**20
NODES, BLOCKS, TRIPS = 10_000, 100, 100
# What a run of so many nodes needs to be one: a visit of few steps for each.
RUNS = {
    "8": (8, 1, 2),
    "8_shared": (8, 8, 2),
    "64": (64, 1, 1),
    "1000": (1000, 125, 1),
}
COSTS = tuple(
    BlockCost(
        name=f"block{block}",
        weight_bytes=100_000,
        forward_flops=1e7,
        saved_bytes=10_000,
        input_bytes=1000,
        output_bytes=1000,
        forward_seconds=1e-4 * (2 - block / BLOCKS),
        backward_seconds=1e-4 * (2 - block / BLOCKS),
        training_seconds=2e-4 * (2 - block / BLOCKS),
    )
    for block in range(BLOCKS)
)
DRAWN = {
    "rows": "uniform(100, 1000)",
    "pace": "lognormal(1, 0.7)",
    "bytes_per_second": "uniform(1e6, 2e7)",
    "latency_seconds": "0.01",
}


@click.command(cls=Benchmark)
@click.option("--only", type=click.Choice(["plan", "simulate", *RUNS]), multiple=True)
@click.option("--verbose", is_flag=True, help="Show what each peak was made up of.")
@click.option("--json", "as_json", is_flag=True)
def main(only: tuple[str, ...], verbose: bool, as_json: bool) -> None:
    """Plan, simulate, and run."""
    chosen = only or ("plan", "simulate", *RUNS)
    figures: dict[str, float] = {}
    if "plan" in chosen:
        figures["plan_seconds"] = round(_plan_seconds(), 3)
    if "simulate" in chosen:
        began = time.perf_counter()
        Simulator(_config(), _world(), COSTS).run()
        figures["simulate_seconds"] = round(time.perf_counter() - began, 1)
    for name in RUNS:
        if name in chosen:
            figures[f"peak_pss_mib_{name}"] = _peak(name, verbose=verbose)
    click.echo(json.dumps(figures) if as_json else figures)


def _config() -> SnakeConfig:
    return SnakeConfig(snake=SnakeSection(span_width=10, trips=TRIPS, adapt=True))


def _world() -> World:
    given = {name: Distribution.parse(name, text) for name, text in DRAWN.items()}
    return World.draw(NODES, 1, given)


def _plan_seconds() -> float:
    """Return the seconds of the third trip: until then nodes have become known."""
    world = _world()
    strategy = make_strategy(_config(), nodes=NODES, blocks=BLOCKS)
    outlook = strategy.know(Facts(rows=tuple(world.rows.tolist()), costs=COSTS))
    seconds = 0.0
    for _ in range(3):
        seconds = 0.0
        for _ in range(NODES):
            began = time.perf_counter()
            visit = strategy.next()
            seconds += time.perf_counter() - began
            if visit is None:
                raise click.ClickException("the run was over before its third trip")
            work = float(world.pace[visit.node]) * outlook.work(visit, visit.node)
            outcome = Outcome(
                visit=visit,
                steps=visit.steps or outlook.full_steps(visit.node),
                train_seconds=work,
                seconds=work + 0.1,
            )
            began = time.perf_counter()
            strategy.observe(outcome)
            seconds += time.perf_counter() - began
    return seconds


def _peak(name: str, *, verbose: bool) -> int:
    """Return the largest memory of a run, in MiB."""
    nodes, per_actor, trips = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        left_out = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
        environment = {key: text for key, text in os.environ.items() if key not in left_out}
        environment |= {"HOME": folder, "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        settings = (
            f"data.partition.nodes={nodes}",
            'data.partition.scheme="iid"',
            f"nodes.nodes_per_actor={per_actor}",
            f"snake.trips={trips}",
            "training.steps=2",
        )
        usage = measure(
            [
                *(sys.executable, "-c", "from ray_snake.cli.main import main; main()"),
                *("train", str(CONFIG), "--storage", f"{folder}/runs"),
                *(word for one in settings for word in ("--set", one)),
            ],
            environment,
            Path(folder),
            memory=True,
        )
    if verbose:
        for process, size in usage.peak_by_process.items():
            click.echo(f"  {size / MIB:8.1f} MiB  {process}", err=True)
    return round(usage.peak_bytes / MIB)


if __name__ == "__main__":
    main()
