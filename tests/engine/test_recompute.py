"""Frozen blocks that run again in the backward pass: the same bits for less memory."""

import numpy as np
import pytest
import torch

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import Objective
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.models.registry import build_model


class Pictures:
    def __len__(self):
        return 32

    def batch(self, rows):
        pictures = np.random.default_rng(0).normal(size=(32, 3, 32, 32)).astype("float32")
        return pictures[rows], rows % 10


def visit(suffix, *, precision="fp32"):
    torch.manual_seed(0)
    stack = BlockStack.cut(build_model("vgg11", {"width": 0.25}))

    def work():
        train_visit(
            stack,
            Pictures(),
            trained=(1, 9),
            learning_rate=0.01,
            seed=1,
            training=TrainingConfig(suffix=suffix, precision=precision),
            objective=Objective(LossConfig(logit_adjustment=0.0, distillation=0.0)),
        )

    return work, stack


def weights_after(suffix, **options):
    work, stack = visit(suffix, **options)
    work()
    assert stack.runs == {}
    return torch.cat([one.flatten() for one in stack.parameters()])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bits_are_the_same(precision):
    kept = weights_after("eager", precision=precision)
    assert torch.equal(weights_after("recompute", precision=precision), kept)


def test_the_peak_is_lower():
    kept, again = (peak_bytes(visit(one)[0]) for one in ("eager", "recompute"))
    assert again < 0.9 * kept


def test_a_frozen_block_runs_a_second_time():
    work, stack = visit("recompute")
    calls = {3: 0, 9: 0}
    for block in calls:
        stack.blocks[block].register_forward_pre_hook(
            lambda *_, block=block: calls.update({block: calls[block] + 1})
        )
    work()
    assert calls == {3: 2, 9: 1}
