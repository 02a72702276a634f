"""From the end of one visit's training to the start of the next one's, against a plain copy.

Two node actors pass a span to and fro, first on one machine and then on two raylets, each with an
object store of its own. A handover is the time from one decision to the next without training:
storing the returned blocks, the answer to the driver, its decision, the next visit's task, pulling
and loading. It is set against

- on one machine, a memcpy of the span's bytes, made by the same process in the same visit, while it
  trains: one for each handover, so that a busy machine slows both;
- across raylets, a bare Ray get of the same arrays between the same two, before and after the run.

What a change moves from the handover into training shows in `train_seconds` and `visit_seconds`,
which leave out that memcpy. Each figure is a median over visits, each `spread` its quartiles.

    python jobs/benchmarks/handover.py --megabytes 100 --json
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from command import Benchmark
from torch import Tensor, nn

from ray_snake import (
    LossConfig,
    NodesConfig,
    SnakeConfig,
    SnakeSection,
    SnakeTrainer,
    TrainingConfig,
)
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.records import VisitRecord
from ray_snake.storage import Storage

# The first visits start processes, and first touch the memory of the object stores.
STORE_BYTES = 2 * 10**9
WARM_UP_VISITS = 4
GETS = 6


@click.command(cls=Benchmark)
@click.option("--megabytes", default=100, show_default=True, help="Size of the span.")
@click.option("--trips", default=12, show_default=True)
@click.option(
    "--steps", default=20, show_default=True, help="A visit's steps; storing ends meanwhile."
)
@click.option("--raylets/--no-raylets", default=True, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(megabytes: int, trips: int, steps: int, raylets: bool, as_json: bool) -> None:
    """Train one wide layer on two nodes in turn."""
    width = int((megabytes * 1e6 / 4) ** 0.5)
    figures = _same_machine(width, trips, steps)
    if raylets:
        figures.update(_two_raylets(width, trips, steps))
    click.echo(json.dumps(figures) if as_json else figures)


def _same_machine(width: int, trips: int, steps: int) -> dict[str, Any]:
    visits, copies = _run(width, trips, steps)
    handovers = _handovers(visits)
    steady = [visits[place] for place in _steady(visits)]
    beside = [copies[place] for place in _steady(visits)]
    ratios = [handover / copy for handover, copy in zip(handovers, beside, strict=True)]
    train = [one.train_seconds - copy for one, copy in zip(steady, beside, strict=True)]
    return {
        "same_machine_over_memcpy": round(statistics.median(ratios), 2),
        "same_machine_over_memcpy_spread": _quartiles(ratios),
        "handover_seconds": round(statistics.median(handovers), 4),
        "handover_seconds_spread": _quartiles(handovers),
        "memcpy_seconds": round(statistics.median(beside), 4),
        "memcpy_seconds_spread": _quartiles(beside),
        "pull_seconds": round(statistics.median(one.pull_seconds for one in steady), 4),
        "driver_seconds": round(
            statistics.median(
                handover - (one.seconds - one.train_seconds)
                for handover, one in zip(handovers, steady, strict=True)
            ),
            4,
        ),
        "train_seconds": round(statistics.median(train), 4),
        "visit_seconds": round(
            statistics.median(a + b for a, b in zip(train, handovers, strict=True)), 4
        ),
        "span_bytes": visits[0].bytes_returned,
        "visits": len(steady),
    }


def _two_raylets(width: int, trips: int, steps: int) -> dict[str, Any]:
    with _cluster() as machines:
        gets = _bare_gets(machines, width)
        # Each raylet has one CPU, so that each hosts one node.
        visits, copies = _run(width, trips, steps, cpus=1.0)
        gets += _bare_gets(machines, width)
    handovers = _handovers(visits)
    get = statistics.median(gets)
    return {
        "two_raylets_over_get": round(statistics.median(handovers) / get, 2),
        "two_raylets_handover_seconds": round(statistics.median(handovers), 4),
        "two_raylets_handover_seconds_spread": _quartiles(handovers),
        "get_seconds": round(get, 4),
        "get_seconds_spread": _quartiles(gets),
        "two_raylets_pull_seconds": round(
            statistics.median(visits[place].pull_seconds for place in _steady(visits)), 4
        ),
        "two_raylets_memcpy_seconds": round(statistics.median(copies[WARM_UP_VISITS:]), 4),
    }


def _steady(visits: list[VisitRecord]) -> list[int]:
    """Return the places of visits, but the first, to which another node's result was handed over.

    At its turns the snake visits a node twice in a row.
    """
    return [
        place
        for place in range(WARM_UP_VISITS, len(visits))
        if visits[place].node != visits[place - 1].node
    ]


def _handovers(visits: list[VisitRecord]) -> list[float]:
    """Return the seconds from the decision before to the decision on it that were not training."""
    return [
        visits[place].finished_at - visits[place - 1].finished_at - visits[place].train_seconds
        for place in _steady(visits)
    ]


def _quartiles(values: list[float]) -> list[float]:
    lower, _, upper = statistics.quantiles(values, n=4)
    return [round(lower, 4), round(upper, 4)]


def _run(
    width: int, trips: int, steps: int, cpus: float | None = None
) -> tuple[list[VisitRecord], list[float]]:
    """Return the visits of a run in the cluster at hand, and a memcpy's seconds in each."""
    config = SnakeConfig(
        snake=SnakeSection(span_width=3, trips=trips, train_last=False),
        training=TrainingConfig(steps=steps, batch_size=2, momentum=0.0, clip_norm=None),
        loss=LossConfig(distillation=0.0),
        nodes=NodesConfig(nodes_per_actor=1, **({} if cpus is None else {"cpus": cpus})),
    )
    rng = np.random.default_rng(0)
    shards = [(rng.normal(size=(2, 8)).astype("float32"), np.array([0, 1])) for _ in range(2)]

    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 2))

    with tempfile.TemporaryDirectory() as folder:
        loss = _copying_loss(4 * (width * width + 12 * width + 2), steps, folder)
        storage = Path(folder) / "runs"
        result = SnakeTrainer(build, shards, config, loss=loss, storage=storage).fit()
        visits = [one for one in read_records(Storage(result.run)) if isinstance(one, VisitRecord)]
        lines = [line for path in Path(folder).glob("*.copies") for line in path.open()]
    timed = sorted(tuple(map(float, line.split())) for line in lines)
    return visits, [seconds for _, seconds in timed]


def _copying_loss(size: int, steps: int, folder: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return cross-entropy that times a memcpy once in each visit, late: storing has ended."""
    calls = 0
    source: Any = None

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        import torch

        nonlocal calls, source
        calls += 1
        if calls % steps == steps - 2:
            if source is None:
                source = np.ones(size, dtype=np.uint8)
            started = time.perf_counter()
            source.copy()
            seconds = time.perf_counter() - started
            with Path(folder, f"{os.getpid()}.copies").open("a") as file:
                file.write(f"{time.time()} {seconds}\n")
        return torch.nn.functional.cross_entropy(outputs, targets)

    return loss


@contextlib.contextmanager
def _cluster() -> Iterator[list[str]]:
    """Join a cluster of two raylets, with room for one node each; give the machines' ids."""
    import ray
    from ray.cluster_utils import Cluster

    # By default its stores have 150 MB: they would spill spans to disk, and read them back.
    room = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=room)
    try:
        cluster.add_node(**room)
        ray.init(address=cluster.address, log_to_driver=False)
        yield [one["NodeID"] for one in ray.nodes()]
    finally:
        ray.shutdown()
        cluster.shutdown()


class _Machine:
    """Makes arrays like a span's on one machine, and gets them on another."""

    def make(self, width: int) -> tuple[Any, ...]:
        shapes = [((width, 8), (width,)), ((width, width), (width,)), ((2, width), (2,))]
        return tuple([np.ones(one, dtype=np.float32) for one in block] for block in shapes)

    def get(self, refs: list[Any]) -> float:
        import ray

        started = time.perf_counter()
        ray.get(refs)
        return time.perf_counter() - started


def _bare_gets(machines: list[str], width: int) -> list[float]:
    """Return the seconds of bare gets of a span's arrays between two machines, to and fro."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(num_cpus=0)(_Machine)
    ends = [
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False)
        ).remote()
        for machine in machines
    ]
    seconds = []
    for number in range(GETS + 2):
        source, sink = ends if number % 2 == 0 else reversed(ends)
        refs = source.make.options(num_returns=3).remote(width)
        ray.wait(refs, num_returns=len(refs), fetch_local=False)
        seconds.append(ray.get(sink.get.remote(refs)))
    return seconds[2:]


if __name__ == "__main__":
    main()
