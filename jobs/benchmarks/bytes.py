"""Bytes that a visit moves over the bytes it trains, and whether the byte ledger is true.

Steady state is every visit of a stay with one span but those of its first trip, in which each node
also learns the final weights of the span that was left. Bytes are those to nodes that are each
alone on a machine, over the trained blocks' own bytes (float32).

With `--testbed`, the same kind of run goes over a network of three virtual machines (root and
iproute2: see cluster/README.md), in both deployments. What the ledger predicts for it stands beside
what Ray's object managers and the machines' interfaces counted.

    python jobs/benchmarks/bytes.py --json
    sudo python jobs/benchmarks/bytes.py --testbed --json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from command import Benchmark

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.records import VisitRecord
from ray_snake.storage import Storage

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jobs" / "configs" / "quickstart.toml"
CODECS = {"fp32": "none", "bf16": "bf16", "int8": "int8", "int4": "int4"}
LINKS = ("100mbit", "100mbit", "100mbit")
DEPLOYMENTS = (("p2p", "none"), ("client_server", "none"), ("p2p", "int8"))
# Blocks of a size that moves, and as little training as can be: only bytes count here.
COMMON = (
    'model.name="mlp"',
    "model.options={inputs=64, classes=10, hidden=[1024, 1024, 1024, 1024, 1024]}",
    "training.steps=1",
    "snake.train_last=false",
)


@click.command(cls=Benchmark)
@click.option("--trips-per-span", default=3, show_default=True)
@click.option("--testbed", is_flag=True, help="Compare with a real network's counters too.")
@click.option("--json", "as_json", is_flag=True)
def main(trips_per_span: int, testbed: bool, as_json: bool) -> None:
    """Train one step a visit, and read the ledger from the journal."""
    figures: dict[str, Any] = {"trips_per_span": trips_per_span}
    for name, codec in CODECS.items():
        steady, whole = _ratios(codec, trips_per_span)
        figures[f"{name}_ratio"] = round(steady, 4)
        figures[f"{name}_ratio_whole_run"] = round(whole, 4)
    if testbed:
        figures |= _on_a_network()
    click.echo(json.dumps(figures) if as_json else figures)


def _ratios(codec: str, trips_per_span: int) -> tuple[float, float]:
    """Return bytes moved over bytes trained, in steady state and over a whole run."""
    settings = [
        *COMMON,
        f'codec.name="{codec}"',
        f"snake.trips_per_span={trips_per_span}",
        f"snake.trips={6 * trips_per_span}",
        "nodes.nodes_per_actor=8",
    ]
    config = SnakeConfig.load(CONFIG, settings)
    with tempfile.TemporaryDirectory() as folder:
        result = SnakeTrainer(config=config, storage=folder).fit()
        visits = [one for one in read_records(Storage(result.run)) if isinstance(one, VisitRecord)]
    steady = [one for one in visits if (one.trip - 1) % trips_per_span > 0]
    return _ratio(steady), _ratio(visits)


def _ratio(visits: list[VisitRecord]) -> float:
    trained = sum(block.bytes for one in visits for block in one.blocks)
    return sum(one.bytes_pulled for one in visits) / trained


def _on_a_network() -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    from cluster.testbed import Testbed

    figures: dict[str, Any] = {}
    with Testbed(links=LINKS) as bed, tempfile.TemporaryDirectory() as folder:
        for mode, codec in DEPLOYMENTS:
            settings = [
                *COMMON,
                "data.partition.nodes=6",
                "snake.trips=12",
                "snake.trips_per_span=3",
                f'transport.mode="{mode}"',
                f'codec.name="{codec}"',
            ]
            before = bed.interface_bytes()
            done = bed.run(
                [
                    *("ray-snake", "train", str(CONFIG), "--json", "--storage", folder),
                    *(word for one in settings for word in ("--set", one)),
                ],
                environment={"PYTHONPATH": os.pathsep.join(sys.path)},
                capture=True,
            )
            if done.returncode != 0:
                raise click.ClickException(done.stderr[-2000:])
            network = json.loads(done.stdout.splitlines()[-1])["network"]
            after = bed.interface_bytes()
            interfaces = sum(after[name][0] - before[name][0] for name in after)
            figures[f"{mode}_{codec}"] = {
                "predicted_over_measured": round(network["predicted"] / network["measured"], 4),
                "predicted_over_interfaces": round(network["predicted"] / interfaces, 4),
                "predicted_bytes": network["predicted"],
                "measured_bytes": network["measured"],
                "interface_bytes": interfaces,
            }
    for key in ("predicted_over_measured", "predicted_over_interfaces"):
        figures[key] = max(
            (one[key] for one in figures.values() if isinstance(one, dict)),
            key=lambda ratio: abs(ratio - 1),
        )
    return figures


if __name__ == "__main__":
    main()
