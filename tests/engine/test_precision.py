"""bf16: forward and backward passes in bfloat16, weights and optimizer in fp32."""

import numpy as np
import pytest
import torch

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit


class Rows:
    def __init__(self, rows=32):
        rng = np.random.default_rng(0)
        self._inputs = rng.normal(size=(rows, 8)).astype("float32")
        self._labels = (self._inputs[:, 0] > 0).astype("int64")

    def __len__(self):
        return len(self._labels)

    def batch(self, rows):
        return self._inputs[rows], self._labels[rows]


def visit(precision, seen=None, **training):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh()]
    stack = BlockStack.cut(torch.nn.Sequential(*layers, torch.nn.Linear(16, 2)))
    if seen is not None:
        for block in stack.blocks:
            block.register_forward_hook(lambda *args: seen.add(args[2].dtype))
    outcome = train_visit(
        stack,
        Rows(),
        trained=(1, 2),
        learning_rate=0.1,
        seed=1,
        training=TrainingConfig(precision=precision, batch_size=8, **training),
        objective=Objective(LossConfig(logit_adjustment=0.0)),
    )
    return outcome, stack


def test_blocks_compute_in_bf16_and_weights_stay_fp32():
    seen = set()
    outcome, stack = visit("bf16", seen)
    assert torch.bfloat16 in seen
    assert {weight.dtype for weight in stack.parameters()} == {torch.float32}
    assert outcome.finite


def test_fp32_is_untouched():
    seen = set()
    visit("fp32", seen)
    assert seen == {torch.float32}


@pytest.mark.parametrize("epochs", [1, 4])
def test_both_learn_alike(epochs):
    exact, rounded = (visit(one, epochs=epochs)[0] for one in ("fp32", "bf16"))
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)
    assert rounded.loss != exact.loss
