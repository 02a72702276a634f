"""Parts of a network: versions of blocks, and the bases that no visit changes."""

import numpy as np
import pytest
import torch
from torch import nn

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.errors import ModelError


class Shifted(nn.Module):
    """A linear layer that never trains, and a shift of its outputs that does."""

    never_trains = ("linear.weight", "linear.bias")

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.linear(x) + self.shift


class Fixed(nn.Module):
    """A layer of which nothing trains."""

    never_trains = ("weight",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))

    def forward(self, x):
        return x * self.weight


def network():
    torch.manual_seed(0)
    return nn.Sequential(Fixed(), Shifted(), nn.Linear(4, 4), Shifted(), Fixed(), nn.Linear(4, 2))


def test_parts_are_versions_and_then_the_bases_there_are():
    stack = BlockStack.build(network)
    # What never trains is no block: it belongs to a neighbour.
    assert len(stack) == 4
    assert stack.owners == (0, 1, 2, 3, 0, 2)
    assert stack.part_bytes() == (16, 80, 16, 40, 4 * 24, 4 * 24)
    assert stack.block_bytes() == (16, 80, 16, 40)
    assert list(stack.part(0)) == ["1.shift"]
    assert sorted(stack.part(4)) == ["0.weight", "1.linear.bias", "1.linear.weight"]
    assert list(stack.trainable(2)) == ["0.shift"]
    assert not stack.base(1)


def test_a_part_is_put_in_without_touching_the_other():
    stack = BlockStack.build(network)
    stack.load(0, stack.tensors(0), trainable=True)
    (shift,) = stack.trainable(0).values()
    assert shift.requires_grad
    stack.load_base(0, {name: one * 2 for name, one in stack.base(0).items()})
    assert stack.trainable(0)["1.shift"] is shift
    assert not any(
        one.requires_grad for name, one in stack.blocks[0].named_parameters() if name != "1.shift"
    )
    base = stack.base(0)
    stack.load_part(0, {"1.shift": torch.ones(4)})
    assert torch.equal(stack.part(0)["1.shift"], torch.ones(4))
    assert all(torch.equal(one, base[name]) for name, one in stack.base(0).items())


@pytest.mark.parametrize(
    ("part", "tensors", "says"),
    [
        (0, {"0.weight": torch.ones(4)}, r"block 0 \(1\).*missing or unknown: 0\.weight, 1\.shift"),
        (4, {"1.shift": torch.ones(4)}, r"block 0 \(1\).*1\.linear\.bias, .*1\.shift"),
        (0, {"1.shift": torch.ones(5)}, r"block 0 \(1\).*size mismatch for 1\.shift"),
    ],
)
def test_what_is_no_part_is_refused(part, tensors, says):
    with pytest.raises(ModelError, match=says):
        BlockStack.build(network).load_part(part, tensors)


def test_a_visit_changes_versions_alone(array_samples):
    stack = BlockStack.build(network)
    before = [{n: one.clone() for n, one in stack.part(i).items()} for i in range(6)]
    rng = np.random.default_rng(0)
    samples = array_samples(rng.normal(size=(16, 4)).astype("float32"), np.arange(16) % 2)
    outcome = train_visit(
        stack,
        samples,
        trained=(0, 2, 3),
        learning_rate=0.1,
        seed=1,
        training=TrainingConfig(batch_size=8),
        objective=Objective(LossConfig(distillation=0.0)),
        proximal=0.1,
        measure_update=True,
    )
    changed = [
        any(not torch.equal(one, before[i][n]) for n, one in stack.part(i).items())
        for i in range(6)
    ]
    assert changed == [True, False, True, True, False, False]
    moved = [one - before[i][n] for i in (0, 2, 3) for n, one in stack.part(i).items()]
    norm = torch.cat([one.flatten() for one in moved]).norm()
    assert outcome.update_norm == pytest.approx(float(norm), rel=1e-4)


def test_what_is_measured_of_a_block_knows_its_base():
    costs, _ = profile_blocks(BlockStack.skeleton(network), (4,), integer_inputs=False, batch=1)
    assert [one.weight_bytes for one in costs] == [16, 80, 16, 40]
    assert [one.base_bytes for one in costs] == [96, 0, 96, 0]
    assert [one.trained_share for one in costs] == [4 / 28, 1, 4 / 28, 1]
    assert costs[0].largest_bytes == 16
