"""Superseded block versions are let go: a long run does not grow the object stores."""

import numpy as np
import ray
from ray._private.internal_api import node_stats
from scenarios import fit, with_sections
from torch import nn

from ray_snake import NodesConfig, SnakeConfig, SnakeSection, SnakeTrainer
from ray_snake.runtime.events import VisitDecided

NODES = 4
TRIPS = 60


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
    held = []

    def look(event):
        if isinstance(event, VisitDecided) and event.record.visit % 4 == 0:
            held.append((bytes_in_stores() - before) / model_bytes)

    config = SnakeConfig(
        snake=SnakeSection(span_width=1, trips=TRIPS), nodes=NodesConfig(nodes_per_actor=2)
    )
    SnakeTrainer(build, shards, config, storage=tmp_path, progress=False, on_event=look).fit()
    assert len(held) == NODES * TRIPS // 4
    # The stores hold the current versions, what the recorder has not stored yet, and what Ray will
    # free at the end of its second. All that was ever trained would be half a model a visit.
    trained = NODES * TRIPS / 2
    assert max(held) <= trained / 3
    # How much waits to be freed depends on how fast visits follow each other. What is never freed
    # would lift the least that was held: by 7 models over these visits, were it one block of four.
    half = len(held) // 2
    assert min(held[half:]) <= min(held[:half]) + 4


def test_transfers_through_the_drivers_side_give_the_same_weights(raylets, reference, tmp_path):
    config = with_sections(transport={"mode": "client_server"})
    result = fit(config, tmp_path)
    assert result.summary["weights_sha256"] == reference.summary["weights_sha256"]
    assert result.summary["bytes_moved"] == reference.summary["bytes_moved"]
