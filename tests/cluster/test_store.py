"""Superseded block versions are let go: a long run does not grow the object stores."""

import numpy as np
import ray
from ray._private.internal_api import node_stats
from scenarios import fit, until, with_sections
from torch import nn

from ray_snake import NodesConfig, SnakeConfig, SnakeSection, SnakeTrainer
from ray_snake.runtime.events import VisitDecided

NODES = 4
TRIPS = 60
LAST = NODES * TRIPS - 1


def bytes_in_stores():
    machines = [one for one in ray.nodes() if one["Alive"]]
    stats = [node_stats(one["NodeManagerAddress"], one["NodeManagerPort"]) for one in machines]
    return sum(one.store_stats.object_store_bytes_used for one in stats)


def test_hundreds_of_visits_do_not_grow_the_stores(raylets, tmp_path):
    # Within the test, so that it travels by value: the machines can't import this module.
    def build():
        return nn.Sequential(
            nn.Linear(8, 256), nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, 2)
        )

    rng = np.random.default_rng(0)
    shards = [(rng.normal(size=(16, 8)).astype("float32"), np.arange(16) % 2) for _ in range(NODES)]
    model_bytes = sum(4 * parameter.numel() for parameter in build().parameters())
    before = bytes_in_stores()
    looked_at = []

    # How much waits to be freed depends on how fast visits follow each other. So the driver stands
    # still here until it is: it decides the next visit when this returns.
    def let_go(event):
        if isinstance(event, VisitDecided) and event.record.visit in {NODES * TRIPS // 2, LAST}:
            until(lambda: bytes_in_stores() - before <= 3 * model_bytes, "what is superseded to go")
            looked_at.append(event.record.visit)

    config = SnakeConfig(
        snake=SnakeSection(span_width=1, trips=TRIPS), nodes=NodesConfig(nodes_per_actor=2)
    )
    SnakeTrainer(build, shards, config, storage=tmp_path, progress=False, on_event=let_go).fit()
    # The current versions are one model. All that was ever trained would be half a model a visit,
    # one block of four that is never freed 15 models by the last visit.
    assert looked_at == [NODES * TRIPS // 2, LAST]


def test_transfers_through_the_drivers_side_give_the_same_weights(raylets, reference, tmp_path):
    config = with_sections(transport={"mode": "client_server"})
    result = fit(config, tmp_path)
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]
    assert result.summary["bytes_moved"] == reference.summary["bytes_moved"]
