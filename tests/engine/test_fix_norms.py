"""FixBN: statistics stay as they arrived, the norm's weights still train."""

import numpy as np
import pytest
import torch
from torch import nn

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit


class Rows:
    def __len__(self):
        return 16

    def batch(self, rows):
        inputs = np.random.default_rng(0).normal(3.0, 2.0, size=(16, 6)).astype("float32")
        return inputs[rows], rows % 2


def norm_after(*, fix_norms):
    torch.manual_seed(0)
    stack = BlockStack.cut(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)))
    before = {name: one.clone() for name, one in stack.tensors(0).items()}
    train_visit(
        stack,
        Rows(),
        trained=(0, 1),
        learning_rate=0.1,
        seed=1,
        training=TrainingConfig(batch_size=8),
        objective=Objective(LossConfig(logit_adjustment=0.0)),
        fix_norms=fix_norms,
    )
    after = stack.tensors(0)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_statistics_follow_the_rows_at_first():
    assert norm_after(fix_norms=False) >= {"1.running_mean", "1.running_var", "1.weight"}


def test_fixed_statistics_stay_and_weights_train():
    changed = norm_after(fix_norms=True)
    assert {"1.weight", "1.bias", "0.weight"} <= changed
    assert not changed & {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize(("after", "fixed"), [(None, []), (2, [3, 4]), (1, [2, 3, 4])])
def test_the_setting_counts_trips(after, fixed):
    training = TrainingConfig(fix_norms_after_trips=after)
    assert [trip for trip in range(1, 5) if training.fixes_norms(trip)] == fixed
