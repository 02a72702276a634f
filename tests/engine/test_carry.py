"""Optimizer state that travels: visits in a row are one training, bit for bit."""

import numpy as np
import pytest
import torch
from torch import nn

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.trained import TrainedBlocks
from ray_snake.engine.visit import train_visit, visit_batches

CPU = torch.device("cpu")
ROWS = 24


class Rows:
    inputs = np.random.default_rng(1).normal(size=(ROWS, 6)).astype("float32")

    def __len__(self):
        return ROWS

    def batch(self, rows):
        return self.inputs[rows], rows % 3


def make_stack():
    torch.manual_seed(0)
    return BlockStack.cut(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))


def in_visits(seeds, training, *, carried):
    stack = make_stack()
    for seed in seeds:
        train_visit(
            stack,
            Rows(),
            trained=(0, 1),
            learning_rate=0.05,
            seed=seed,
            training=training,
            objective=Objective(LossConfig(logit_adjustment=0.0, distillation=0.0)),
            carried=carried,
        )
    return stack


def uninterrupted(seeds, training):
    stack = make_stack()
    blocks = TrainedBlocks(
        stack, (0, 1), training=training, learning_rate=0.05, keeps_arrived=False, device=CPU
    )
    stack.freeze_all_but((0, 1))
    for seed in seeds:
        for _, rows in visit_batches(ROWS, training, seed):
            inputs, targets = (torch.from_numpy(one) for one in Rows().batch(rows))
            blocks.step(nn.functional.cross_entropy(stack(inputs), targets))
    return stack


def same(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_visits_that_carry_are_one_training(optimizer):
    training = TrainingConfig(optimizer=optimizer, batch_size=8)
    seeds = (1, 2, 3)
    whole = uninterrupted(seeds, training)
    assert same(in_visits(seeds, training, carried={}), whole)
    assert not same(in_visits(seeds, training, carried=None), whole)


def test_what_is_carried_is_not_written_to():
    training = TrainingConfig(batch_size=8)
    carried = {}
    in_visits((1,), training, carried=carried)
    before = {block: dict(kept) for block, kept in carried.items()}
    copies = {b: {k: t.clone() for k, t in kept.items()} for b, kept in before.items()}
    in_visits((2,), training, carried=carried)
    for block, kept in before.items():
        for name, tensor in kept.items():
            assert torch.equal(tensor, copies[block][name])
            assert not torch.equal(carried[block][name], tensor)


def test_without_momentum_there_is_nothing_to_carry():
    carried = {}
    in_visits((1,), TrainingConfig(momentum=0.0, batch_size=8), carried=carried)
    assert carried == {0: {}, 1: {}}
