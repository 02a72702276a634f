"""Nodes that differ in speed and links: what adapting is worth, and whether it knows what it does.

Eight nodes, each on a virtual machine of its own (root and iproute2: see cluster/README.md), with
links that differ by 20 times and CPUs that the kernel holds to shares that differ by 8 times. The
fixed order and the adaptive driver train the same network on the same rows with the same seed; the
adaptive driver with one head, and with two after some trips, which is what it has idle nodes for.

- `adaptive_over_fixed`: time until the adaptive driver with two heads has the accuracy on held-out
  rows of the fixed order at its end, over the fixed order's time. None where it never gets there.
- `one_head_over_fixed`: the same with one head.
- `whole_over_fixed`, `whole_one_head_over_fixed`: the time of all their visits, likewise.
- `equal_nodes_ratio`: time of the adaptive driver over that of the fixed order, same visits, nodes
  of equal speed on one machine.
- `prediction_error`: median of how far visits after the first trip were from their prediction, with
  one head; `prediction_error_two_heads` with two.
- `simulated_over_real`: the simulator's trip time over the real one with one head, both after the
  first trips, from which the simulator knows the nodes.

    sudo python jobs/benchmarks/adapt.py --seeds 3 --json
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from math import inf
from pathlib import Path
from typing import Any

import click
import numpy as np
from command import Benchmark
from cpu_limit import limited, network_of

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.data import NodeDataset
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.records import EvaluationRecord, VisitRecord
from ray_snake.simulation.like import world_like
from ray_snake.simulation.simulator import Simulator
from ray_snake.storage import Storage
from ray_snake.trainer import node_sources

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jobs" / "configs" / "quickstart.toml"
# Half a CPU at most: a node that has to wait for its turn makes up for that within the period of
# its limit, so that its speed is its share, whatever runs beside it. Links are slow in proportion.
SHARES = (0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625)
LINKS = ("50mbit", "25mbit", "10mbit", "50mbit", "5mbit", "25mbit", "2500kbit", "10mbit")
KNOWN_TRIPS = 4
DRIVERS = {
    "fixed": ("snake.adapt=false",),
    "one-head": ("snake.adapt=true",),
    "two-heads": (
        "snake.adapt=true",
        "snake.heads=2",
        "snake.heads_after_trips=3",
        # Nobody waits for a slow node, so that it may take longer.
        "adaptation.patience=2",
    ),
}
# Two classes a node, and as many rows.
SETTINGS = (
    'data.partition.scheme="shards"',
    "model.options.width=24",
    "training.epochs=3",
    # What holds on to the classes of other nodes.
    "loss.distillation=0.5",
    "evaluation.every_visits=4",
)


@click.command(cls=Benchmark)
@click.option("--trips", default=12, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Seeds 1 to this; medians count.")
@click.option("--set", "settings", multiple=True, help="Change a setting of both.")
@click.option("--only", type=click.Choice(["unequal", "equal"]), multiple=True)
@click.option("--storage", type=click.Path(path_type=Path), help="Keep the runs there.")
@click.option("--json", "as_json", is_flag=True)
def main(
    trips: int,
    seeds: int,
    settings: tuple[str, ...],
    only: tuple[str, ...],
    storage: Path | None,
    as_json: bool,
) -> None:
    """Train with the fixed order and with the adaptive driver, and compare their journals."""
    chosen = only or ("unequal", "equal")
    common = (*SETTINGS, f"snake.trips={trips}", *settings)
    figures: dict[str, Any] = {"trips": trips, "seeds": seeds}
    runs = []
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if storage is None else storage / f"seed-{seed}"
            own = (*common, f"seed={seed}")
            found = {}
            if "unequal" in chosen:
                found |= _unequal(own, folder)
            if "equal" in chosen:
                found |= _equal(own, folder)
            click.echo(f"seed {seed}: {found}", err=True)
            runs.append(found)
    for key in runs[0]:
        values = [one[key] for one in runs]
        # A seed that never gets there takes longer than all others.
        middle = statistics.median_high(inf if one is None else one for one in values)
        figures[key] = None if middle == inf else round(middle, 4)
        figures[f"{key}_of_seeds"] = values
    click.echo(json.dumps(figures) if as_json else figures)


def _unequal(settings: tuple[str, ...], folder: Path) -> dict[str, float | None]:
    sys.path.insert(0, str(ROOT))
    from cluster.testbed import MachineSpec, Testbed

    machines = [MachineSpec(link=link, cpus=1) for link in LINKS]
    names = {}
    with Testbed(machines=machines) as bed:
        places: dict[int, int] = {}

        def place(pid: int) -> int | None:
            return places.get(network_of(pid))

        for index in range(len(LINKS)):
            program = "import os; print(os.stat('/proc/self/ns/net').st_ino)"
            done = bed.run([sys.executable, "-c", program], machine=index, capture=True)
            places[int(done.stdout)] = index
        errors = {}
        for name, own in DRIVERS.items():
            with limited(list(SHARES), place):
                done = bed.run(
                    [
                        *("ray-snake", "train", str(CONFIG), "--storage", str(folder)),
                        *("--name", name, "--json"),
                        # A machine for each.
                        *("--set", "nodes.cpus=1"),
                        *(word for one in (*settings, *own) for word in ("--set", one)),
                    ],
                    environment={"PYTHONPATH": os.pathsep.join(sys.path)},
                    capture=True,
                )
            if done.returncode != 0:
                raise click.ClickException(done.stderr[-2000:])
            names[name] = str(folder / name)
            errors[name] = _summary(done.stdout).get("prediction_error")
    fixed, one, two = (_curve(names[name]) for name in DRIVERS)
    (whole, mark) = fixed[-1]

    def reached(curve: list[tuple[float, float]]) -> float | None:
        return next((seconds / whole for seconds, accuracy in curve if accuracy >= mark), None)

    return {
        "adaptive_over_fixed": reached(two),
        "one_head_over_fixed": reached(one),
        "whole_over_fixed": two[-1][0] / whole,
        "whole_one_head_over_fixed": one[-1][0] / whole,
        "fixed_seconds": whole,
        "fixed_accuracy": mark,
        "adaptive_accuracy": two[-1][1],
        "one_head_accuracy": one[-1][1],
        "prediction_error": errors["one-head"],
        "prediction_error_two_heads": errors["two-heads"],
        "simulated_over_real": _simulated_over_real(
            SnakeConfig.load(CONFIG, [*settings, *DRIVERS["one-head"]]), names["one-head"]
        ),
    }


def _equal(settings: tuple[str, ...], folder: Path) -> dict[str, float | None]:
    """Compare the two on one machine: adapting has nothing to win, so what it takes shows."""
    seconds = {}
    for name, adapt in (("equal-fixed", False), ("equal-adaptive", True)):
        config = SnakeConfig.load(
            CONFIG, [*settings, f"snake.adapt={str(adapt).lower()}", "nodes.nodes_per_actor=4"]
        )
        run = SnakeTrainer(config=config, storage=folder, name=name).fit().run
        # Starting is over with the first trip.
        visits = [one for one in _visits(run) if one.trip > 1]
        seconds[name] = visits[-1].finished_at - visits[0].finished_at
    return {"equal_nodes_ratio": seconds["equal-adaptive"] / seconds["equal-fixed"]}


def _simulated_over_real(config: SnakeConfig, run: str) -> float:
    rows = np.array([len(NodeDataset.open(one)) for one in node_sources(config, None)])
    world, costs = world_like(run, config, rows, trips=KNOWN_TRIPS)
    trips = Simulator(config, world, costs).run().trips
    simulated = trips[-1].ended_at_seconds - trips[KNOWN_TRIPS - 1].ended_at_seconds
    # Evaluations happen beside visits; what the driver does between them is part of a visit.
    visits = [one for one in _visits(run) if one.trip > KNOWN_TRIPS]
    return simulated / (visits[-1].finished_at - (visits[0].finished_at - visits[0].seconds))


def _curve(run: str) -> list[tuple[float, float]]:
    """Return (seconds in which a visit was under way so far, accuracy) of each evaluation."""
    seconds, until = 0.0, 0.0
    curve = []
    for one in read_records(Storage(run)):
        if isinstance(one, VisitRecord):
            began = one.finished_at - one.seconds
            seconds += max(0.0, one.finished_at - max(began, until))
            until = max(until, one.finished_at)
        elif isinstance(one, EvaluationRecord) and one.visit and one.accuracy is not None:
            curve.append((seconds, one.accuracy))
    return curve


def _visits(run: str) -> list[VisitRecord]:
    return [one for one in read_records(Storage(run)) if isinstance(one, VisitRecord)]


def _summary(stdout: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return summary


if __name__ == "__main__":
    main()
