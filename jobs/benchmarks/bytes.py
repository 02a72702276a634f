"""Bytes a visit moves in the steady state of `span_major`, over the bytes it trains.

Steady state is every visit of a stay with one span but those of its first trip, in which each node
also learns the final weights of the span that was left.

    python jobs/benchmarks/bytes.py --json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from ray_snake import SnakeConfig, SnakeTrainer
from ray_snake.runtime.journal import VisitRecord, read_records
from ray_snake.storage import Storage

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.toml"


@click.command()
@click.option("--trips-per-span", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(trips_per_span: int, as_json: bool) -> None:
    """Train the quickstart with longer stays and read the ledger from its journal."""
    trips = 6 * trips_per_span
    settings = [
        f"snake.trips_per_span={trips_per_span}",
        f"snake.trips={trips}",
        "snake.train_last=false",
        "training.epochs=1",
        "nodes.nodes_per_actor=8",
    ]
    config = SnakeConfig.load(CONFIG, settings)
    with tempfile.TemporaryDirectory() as folder:
        result = SnakeTrainer(config=config, storage=folder).fit()
        visits = [one for one in read_records(Storage(result.run)) if isinstance(one, VisitRecord)]
    steady = [one for one in visits if _is_steady(one, trips_per_span)]
    ratio = sum(one.bytes_pulled for one in steady) / sum(one.bytes_returned for one in steady)
    whole = sum(one.bytes_pulled for one in visits) / sum(one.bytes_returned for one in visits)
    figures = {
        "fp32_ratio": round(ratio, 4),
        "fp32_ratio_whole_run": round(whole, 4),
        "trips_per_span": trips_per_span,
        "visits": len(visits),
        "steady_visits": len(steady),
    }
    click.echo(json.dumps(figures) if as_json else figures)


def _is_steady(visit: VisitRecord, trips_per_span: int) -> bool:
    return (visit.trip - 1) % trips_per_span > 0


if __name__ == "__main__":
    main()
