import pytest
import torch

from ray_snake.config import TrainingConfig
from ray_snake.engine.optimizer import keeps_finite, make_optimizer

STEPS = 6
RATE = 0.05


def torch_sgd(weights, training):
    return torch.optim.SGD(
        weights, lr=RATE, momentum=training.momentum, weight_decay=training.weight_decay
    )


def torch_adamw(weights, training):
    return torch.optim.AdamW(weights, lr=RATE, weight_decay=training.weight_decay)


def draw(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(
    ("training", "theirs"),
    [
        (TrainingConfig(optimizer="sgd"), torch_sgd),
        (TrainingConfig(optimizer="sgd", momentum=0.0), torch_sgd),
        (TrainingConfig(optimizer="sgd", weight_decay=0.0), torch_sgd),
        (TrainingConfig(optimizer="adamw"), torch_adamw),
        (TrainingConfig(optimizer="adamw", weight_decay=0.1), torch_adamw),
    ],
)
def test_steps_are_torchs_bit_for_bit_weights_without_gradients_included(training, theirs):
    shapes = [(4, 3), (4,), (2, 2, 3), ()]
    own = [one.requires_grad_() for one in draw(shapes, 0)]
    other = [one.requires_grad_() for one in draw(shapes, 0)]
    optimizer, reference = make_optimizer(own, training, RATE), theirs(other, training)
    for step in range(STEPS):
        optimizer.zero_grad()
        reference.zero_grad()
        for index, gradient in enumerate(draw(shapes, 1 + step)):
            # The second weight never has a gradient, the third only from the third step on.
            if index == 1 or (index == 2 and step < 2):
                continue
            own[index].grad = gradient
            other[index].grad = gradient.clone()
        optimizer.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert torch.equal(own[1], draw(shapes, 0)[1])
    assert not torch.equal(own[2], draw(shapes, 0)[2])


def test_forgotten_gradients_change_nothing():
    (weight,) = draw([(3,)], 0)
    weight.requires_grad_().grad = torch.ones(3)
    optimizer = make_optimizer([weight], TrainingConfig(), RATE)
    optimizer.zero_grad()
    optimizer.step()
    assert weight.grad is None
    assert torch.equal(weight, draw([(3,)], 0)[0])


@pytest.mark.parametrize(
    ("changes", "rate", "dtype", "expected"),
    [
        ({}, RATE, torch.float32, True),
        ({"optimizer": "adamw"}, RATE, torch.bfloat16, True),
        ({"clip_norm": None}, RATE, torch.float32, False),
        ({"weight_decay": 1e3}, RATE, torch.float32, False),
        ({"clip_norm": 1e30}, RATE, torch.float32, False),
        ({}, 1e30, torch.float32, False),
        # Half precision ends at 65504: nothing is certain there.
        ({}, RATE, torch.float16, False),
    ],
)
def test_clipped_steps_of_a_sane_size_keep_weights_finite(changes, rate, dtype, expected):
    weights = [torch.ones(3), torch.ones(2, dtype=dtype)]
    assert keeps_finite(weights, TrainingConfig(**changes), rate) is expected
