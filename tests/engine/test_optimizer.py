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
    return torch.optim.AdamW(weights, lr=RATE, weight_decay=training.weight_decay, fused=True)


def draw(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


BOTH = [
    (TrainingConfig(optimizer="sgd"), torch_sgd),
    (TrainingConfig(optimizer="sgd", momentum=0.0), torch_sgd),
    (TrainingConfig(optimizer="sgd", weight_decay=0.0), torch_sgd),
    (TrainingConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0), torch_sgd),
    (TrainingConfig(optimizer="adamw"), torch_adamw),
    (TrainingConfig(optimizer="adamw", weight_decay=0.1), torch_adamw),
]


@pytest.mark.parametrize(("training", "theirs"), BOTH)
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


@pytest.mark.parametrize(("training", "theirs"), BOTH)
def test_all_that_is_kept_of_a_weight_is_where_the_weight_is(training, theirs):
    """Without that torch's kernel for a GPU reads a step's number from the host's memory."""
    del theirs
    (weight,) = own = [torch.zeros(4, 3, device="meta", requires_grad=True)]
    optimizer = make_optimizer(own, training, RATE)
    for _ in range(2):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert {one.device for one in optimizer.state(0)} <= {weight.device}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("training", "theirs"), BOTH)
def test_steps_from_read_only_memory_piece_by_piece_are_torchs_bit_for_bit(
    training, theirs, threads, monkeypatch
):
    monkeypatch.setattr("ray_snake.engine.optimizer.PIECE", 2**16)
    size = 3 * 2**16 + 11
    arrived = draw([(size,), (size // 2, 2)], 0)
    before = [one.clone() for one in arrived]
    own = [one.view_as(one).requires_grad_() for one in arrived]
    other = [one.clone().requires_grad_() for one in arrived]
    optimizer, reference = make_optimizer(own, training, RATE), theirs(other, training)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in range(3):
            for index, gradient in enumerate(draw([one.shape for one in arrived], 1 + step)):
                own[index].grad = gradient
                other[index].grad = gradient.clone()
            optimizer.step()
            reference.step()
            # As integers, so that the sign of a zero counts too.
            assert all(
                torch.equal(a.detach().view(torch.int32), b.detach().view(torch.int32))
                for a, b in zip(own, other, strict=True)
            )
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(a, b) for a, b in zip(arrived, before, strict=True))


@pytest.mark.parametrize(("training", "theirs"), BOTH)
def test_weights_that_are_not_contiguous_take_torchs_steps_too(training, theirs):
    shape = (4, 3, 5, 5)
    own, other = (
        draw([shape], 0)[0].to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)
    )
    optimizer, reference = make_optimizer([own], training, RATE), theirs([other], training)
    for step in range(3):
        (own.grad,), (other.grad,) = draw([shape], 1 + step), draw([shape], 1 + step)
        optimizer.step()
        reference.step()
        assert torch.equal(own, other)
    assert own.is_contiguous(memory_format=torch.channels_last)


def test_only_a_first_step_takes_new_memory_and_only_with_a_gradient():
    stepped, left = (one.requires_grad_() for one in draw([(3,), (3,)], 0))
    arrived = [one.data_ptr() for one in (stepped, left)]
    optimizer = make_optimizer([stepped, left], TrainingConfig(), RATE)
    seen = []
    for _ in range(3):
        stepped.grad = torch.ones(3)
        optimizer.step()
        seen.append(stepped.data_ptr())
    assert seen[0] == seen[1] == seen[2] != arrived[0]
    assert left.data_ptr() == arrived[1]


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
