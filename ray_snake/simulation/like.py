"""Nodes as they turned out in a real run."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ray_snake.config import SnakeConfig
from ray_snake.errors import DataError
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.outlook import Facts, Outlook
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.records import StartRecord, VisitRecord
from ray_snake.runtime.run_folder import RunFolder
from ray_snake.simulation.world import World


def world_like(
    run: str, config: SnakeConfig, rows: NDArray[np.int64], *, trips: int | None = None
) -> tuple[World, tuple[BlockCost, ...]]:
    """Return a run's nodes as its journal shows them, and what its blocks cost.

    A link that no visit waited for has no limit.

    Args:
        run: The run's folder or URI.
        config: The run's settings.
        rows: Rows of each node's shard.
        trips: The first trips to look at; none: all.

    Raises:
        StorageError: If there is no run.
        DataError: If it measured no costs, or is of other nodes.
    """
    records = read_records(RunFolder.open(run).storage)
    costs = next((one.costs for one in records if isinstance(one, StartRecord)), ())
    visits = [one for one in records if isinstance(one, VisitRecord)]
    if not costs or not visits:
        raise DataError(
            run, "has no visits with measured costs", "give a run with snake.adapt = true"
        )
    if max(one.node for one in visits) >= len(rows):
        raise DataError(
            run, f"has more nodes than these settings' {len(rows)}", "give the run's own settings"
        )
    outlook = Outlook(config, Facts(rows=tuple(rows.tolist()), costs=costs))
    for visit in visits:
        if trips is None or visit.trip <= trips:
            outlook.observe(visit.outcome)
    nodes = range(len(rows))
    world = World.draw(len(rows), 0, {}).with_rows(rows)
    return (
        world.with_known(
            pace=[outlook.pace(node) for node in nodes],
            latency_seconds=[outlook.overhead(node) for node in nodes],
            bytes_per_second=[outlook.bytes_per_second(node) or math.inf for node in nodes],
            corrections={one.trained: outlook.correction(one.planned) for one in visits},
        ),
        costs,
    )
