"""Batch norms of blocks that train: FixBN, and rows that come alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ray_snake.config import LossConfig, SnakeConfig, TrainingConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.split import BackTrainer, train_front
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.models.registry import build_model

PLAIN = LossConfig(logit_adjustment=0.0, distillation=0.0)


@pytest.fixture
def rows(array_samples):
    def make(count, shape=(6,)):
        inputs = np.random.default_rng(0).normal(3.0, 2.0, size=(count, *shape))
        return array_samples(inputs.astype("float32"), np.arange(count) % 2)

    return make


def network():
    torch.manual_seed(0)
    return BlockStack.cut(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)))


def train(stack, samples, *, fix_norms=False, **settings):
    train_visit(
        stack,
        samples,
        trained=tuple(range(len(stack))),
        learning_rate=0.1,
        seed=1,
        training=TrainingConfig(**{"batch_size": 8, **settings}),
        objective=Objective(PLAIN),
        fix_norms=fix_norms,
    )
    return stack


def changed(after):
    before, now = network().tensors(0), after.tensors(0)
    return {name for name in before if not torch.equal(before[name], now[name])}


def batches_seen(stack):
    return [int(one) for name, one in stack.named_buffers() if name.endswith("batches_tracked")]


def test_statistics_follow_the_rows_at_first(rows):
    seen = changed(train(network(), rows(16)))
    assert seen >= {"1.running_mean", "1.running_var", "1.weight"}


def test_fixed_statistics_stay_and_weights_train(rows):
    seen = changed(train(network(), rows(16), fix_norms=True))
    assert {"1.weight", "1.bias", "0.weight"} <= seen
    assert not seen & {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize(
    ("after", "trips", "first_fixed"),
    [("auto", 12, 5), ("auto", 20, 8), ("auto", 2, 2), ("auto", 1, None), (9, 10, 10)],
)
def test_statistics_are_fixed_after_so_many_trips(after, trips, first_fixed):
    config = SnakeConfig.from_tree(
        {"snake": {"trips": trips}, "training": {"fix_norms_after_trips": after}}
    )
    fixed = [trip for trip in range(1, trips + 1) if config.fixes_norms(trip)]
    assert fixed == ([] if first_fixed is None else list(range(first_fixed, trips + 1)))


def test_statistics_may_stay_free():
    config = SnakeConfig.from_tree({"training": {"fix_norms_after_trips": "none"}})
    assert not any(config.fixes_norms(trip) for trip in range(1, 100))
    assert 'fix_norms_after_trips = "none"' in config.toml()


ALONE = {"batch_size": 3, "micro_batch": 2}
"""A batch goes through as two rows and a single one."""


def test_a_row_alone_trains_with_the_statistics_of_those_before(rows):
    stack = train(network(), rows(18), **ALONE)
    assert batches_seen(stack) == [6]
    assert all(layer.training for layer in stack.modules() if isinstance(layer, nn.BatchNorm1d))
    assert changed(train(network(), rows(1))) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_it_comes_to_the_same_where_blocks_run_again(rows):
    eager, again = (
        train(network(), rows(18), span=span, **ALONE).state_dict()
        for span in ("eager", "recompute")
    )
    assert all(torch.equal(eager[name], again[name]) for name in eager)


@pytest.mark.parametrize("size", [{"batch_size": 1}, {"micro_batch": 1}])
def test_rows_that_all_go_alone_leave_statistics_as_they_are(size, rows):
    assert batches_seen(train(network(), rows(16), **size)) == [0]


@pytest.mark.parametrize("name", ["cnn", "vgg11", "resnet18"])
def test_networks_train_on_a_picture_that_is_alone(name, rows):
    options = {"channels": 1, "width": 4 if name == "cnn" else 0.125}
    stack = BlockStack.cut(build_model(name, options))
    train(stack, rows(18, (1, 8, 8)), **ALONE)
    assert set(batches_seen(stack)) == {6}


def test_both_sides_of_a_cut_train_on_a_row_alone(rows):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(2)]
    stack = BlockStack.cut(nn.Sequential(*layers, nn.Linear(6, 2)))
    samples = rows(5)
    training = TrainingConfig(batch_size=1, clip_norm=None)
    common = {"cut": 1, "learning_rate": 0.1, "seed": 1, "training": training}
    front, rear = copy.deepcopy(stack), copy.deepcopy(stack)
    back = BackTrainer(rear, objective=Objective(PLAIN), **common)
    train_front(front, samples, exchange=back.step, **common)
    whole = train(stack, samples, clip_norm=None, batch_size=1)
    assert batches_seen(whole) == [0, 0]
    for block in range(len(stack)):
        own = (front if block < 1 else rear).tensors(block)
        assert all(torch.equal(one, own[name]) for name, one in whole.tensors(block).items())
