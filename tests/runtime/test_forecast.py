"""A run's first trips as they would go."""

import numpy as np
import pytest
from torch import nn

from ray_snake.config import (
    BaselineConfig,
    LossConfig,
    SnakeConfig,
    SnakeSection,
    TrainingConfig,
)
from ray_snake.data import ShardSource
from ray_snake.engine.stack import BlockStack
from ray_snake.runtime.forecast import forecast
from ray_snake.runtime.preflight import check_shards


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))


def predict(trips=2, sections=None, **snake):
    shards = [(np.zeros((rows, 4), "float32"), np.arange(rows) % 2) for rows in (10, 20, 30)]
    stack = BlockStack.skeleton(build)
    nodes = check_shards(stack, [ShardSource.of(one, index=i) for i, one in enumerate(shards)])
    snake = SnakeSection(**{"span_width": 1, "trips": 6, **snake})
    config = SnakeConfig(snake=snake, **(sections or {}))
    return stack, forecast(config, stack, nodes, trips=trips)


def test_the_first_trips_are_listed_and_the_whole_run_is_timed():
    _, found = predict(trips=2)
    assert [one.visit.number for one in found.visits] == [1, 2, 3, 4, 5, 6]
    assert found.run_seconds > sum(one.cost.seconds for one in found.visits) > 0


def test_a_first_visit_pulls_the_whole_model_and_later_ones_what_changed():
    stack, found = predict(train_last=False)
    sizes = stack.block_bytes()
    assert [one.bytes_pulled for one in found.visits[:3]] == [sum(sizes)] * 3
    # The second trip goes back: its first node trained last, and has all but nothing to learn.
    assert found.visits[3].bytes_pulled == 0
    assert found.visits[4].bytes_pulled == sizes[0] + sizes[1]


def test_whole_trips_that_recur_are_listed_and_pull_the_whole_model():
    stack, found = predict(trips=3, train_last=False, whole_every=2)
    sizes = stack.block_bytes()
    assert [one.visit.trained for one in found.visits] == [(0,)] * 3 + [(0, 1, 2)] * 3 + [(1,)] * 3
    # From the second visit of a whole trip on, all blocks are news, and so in the trip after it.
    assert [one.bytes_pulled for one in found.visits[4:6]] == [sum(sizes)] * 2
    assert [one.bytes_pulled for one in found.visits[6:]] == [0, sum(sizes), sum(sizes)]


@pytest.mark.parametrize(("optimizer", "kept"), [("adamw", 2), ("sgd", 1)])
def test_what_an_optimizer_left_comes_with_a_block(optimizer, kept):
    training = TrainingConfig(optimizer=optimizer, momentum=0.9, optimizer_state="carry")
    stack, found = predict(sections={"training": training}, train_last=False)
    sizes = stack.block_bytes()
    first, second = found.visits[:2]
    assert first.bytes_pulled == sum(sizes)
    assert second.bytes_pulled == sum(sizes) + kept * sizes[0]


def test_every_node_pulls_the_mean_of_a_round():
    stack, found = predict(trips=3, sections={"strategy": "fedavg"})
    assert [one.bytes_pulled for one in found.visits] == [sum(stack.block_bytes())] * 9


def test_visits_to_larger_shards_take_longer():
    _, found = predict()
    first_trip = sorted(found.visits[:3], key=lambda one: one.visit.node)
    assert first_trip[0].cost.seconds < first_trip[1].cost.seconds < first_trip[2].cost.seconds


def test_of_a_network_that_is_cut_nodes_pull_the_front():
    sections = {
        "strategy": "split",
        "loss": LossConfig(distillation=0.0),
        "baseline": BaselineConfig(cut=1, shares_activations=True),
    }
    stack, found = predict(sections=sections)
    front = stack.block_bytes()[0]
    assert [one.bytes_pulled for one in found.visits] == [front, front, front, 0, front, front]
