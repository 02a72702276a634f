"""From the end of one visit to the start of training in the next, against a plain copy.

Two node actors pass a span to and fro. The time between two visits' training is what the journal
has of a visit besides training and its own pulling; it is set against a memcpy of the span's bytes,
measured in the same run.

    python jobs/benchmarks/handover.py --megabytes 100 --json
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time

import click
import numpy as np
from torch import nn

from ray_snake import (
    LossConfig,
    NodesConfig,
    SnakeConfig,
    SnakeSection,
    SnakeTrainer,
    TrainingConfig,
)
from ray_snake.runtime.journal import VisitRecord, read_records
from ray_snake.storage import Storage


@click.command()
@click.option("--megabytes", default=100, show_default=True, help="Size of the span.")
@click.option("--trips", default=10, show_default=True)
@click.option(
    "--steps", default=20, show_default=True, help="A visit's steps; storing ends meanwhile."
)
@click.option("--json", "as_json", is_flag=True)
def main(megabytes: int, trips: int, steps: int, as_json: bool) -> None:
    """Train one wide layer on two nodes in turn."""
    width = int((megabytes * 1e6 / 4) ** 0.5)

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 2))

    config = SnakeConfig(
        snake=SnakeSection(span_width=3, trips=trips, train_last=False),
        training=TrainingConfig(steps=steps, batch_size=2, momentum=0.0, clip_norm=None),
        loss=LossConfig(distillation=0.0),
        nodes=NodesConfig(nodes_per_actor=1),
    )
    rng = np.random.default_rng(0)
    shards = [(rng.normal(size=(2, 8)).astype("float32"), np.array([0, 1])) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        result = SnakeTrainer(build, shards, config, storage=folder).fit()
        visits = [one for one in read_records(Storage(result.run)) if isinstance(one, VisitRecord)]
    steady = visits[4:]
    handover = statistics.median(one.seconds - one.train_seconds for one in steady)
    copy = _copy_seconds(visits[0].bytes_returned)
    figures = {
        "same_machine_over_memcpy": round(handover / copy, 2),
        "handover_seconds": round(handover, 4),
        "pull_seconds": round(statistics.median(one.pull_seconds for one in steady), 4),
        "memcpy_seconds": round(copy, 4),
        "span_bytes": visits[0].bytes_returned,
        "visits": len(steady),
    }
    click.echo(json.dumps(figures) if as_json else figures)


def _copy_seconds(size: int) -> float:
    source = np.ones(size, dtype=np.uint8)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        source.copy()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
