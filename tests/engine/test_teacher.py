"""Teachers for wide outputs: what they keep, and how far they see the current model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.teacher import LastHidden, TopK, distillation, make_teacher
from ray_snake.engine.visit import train_visit

CLASSES = 7
seeds = st.integers(0, 2**16)


def logits(seed, *shape):
    return 3 * torch.randn(*shape, CLASSES, generator=torch.Generator().manual_seed(seed))


def distance(k, outputs, arrived, temperature=2.0):
    teacher = TopK(k, temperature)
    return float(teacher.distance(outputs, outputs, teacher.keep(arrived, arrived), classes=True))


@given(seeds, st.floats(0.5, 4))
def test_with_all_classes_it_is_the_whole_divergence(seed, temperature):
    outputs, arrived = logits(seed, 2, 5).unbind()
    whole = float(distillation(outputs, arrived, temperature))
    for k in (CLASSES, CLASSES + 3):
        assert distance(k, outputs, arrived, temperature) == pytest.approx(whole, abs=1e-4)


@given(seeds, st.integers(1, CLASSES - 1))
def test_fewer_classes_see_less_of_it(seed, k):
    outputs, arrived = logits(seed, 2, 5).unbind()
    seen = distance(k, outputs, arrived)
    assert -1e-5 <= seen <= float(distillation(outputs, arrived, 2.0)) + 1e-4
    assert seen <= distance(k + 1, outputs, arrived) + 1e-4


@given(seeds, st.integers(1, CLASSES))
def test_it_is_zero_for_the_teacher_itself(seed, k):
    arrived = logits(seed, 4, 3)
    assert distance(k, arrived, arrived) == pytest.approx(0, abs=1e-5)


def test_what_is_kept_is_small():
    values, indices = TopK(2, 2.0).keep(logits(0, 5), logits(0, 5))
    assert (values.shape, indices.shape) == ((5, 2), (5, 2))
    assert values.nbytes + indices.nbytes == 5 * 8 * 2


def test_bf16_outputs_are_compared_in_fp32():
    outputs, arrived = logits(1, 2, 5).to(torch.bfloat16).unbind()
    assert math.isfinite(distance(2, outputs, arrived))


def test_bf16_logits_are_softened_in_fp32_under_autocast_too():
    arrived = logits(1, 64).to(torch.bfloat16)
    outputs = arrived + 0.05 * logits(2, 64).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = float(distillation(outputs, arrived, 3.0))
    assert found == pytest.approx(float(distillation(outputs.float(), arrived.float(), 3.0)))


def test_outputs_that_are_no_logits_have_no_likeliest_classes():
    teacher = TopK(2, 2.0)
    arrived = logits(0, 5)
    with pytest.raises(ValueError, match="no logits"):
        teacher.distance(arrived, arrived, teacher.keep(arrived, arrived), classes=False)


def test_the_last_hidden_state_is_compared_by_its_squared_error():
    hidden, arrived = torch.randn(2, 5, 3).unbind()
    kept = LastHidden().keep(arrived, logits(0, 5))
    found = LastHidden().distance(hidden, logits(1, 5), kept, classes=True)
    assert float(found) == pytest.approx(float(((hidden - arrived) ** 2).mean()))


def test_the_last_hidden_state_without_its_padding_is_as_far_as_with_it():
    hidden, arrived = torch.randn(2, 5, 4, 3).unbind()
    hidden[:, 2:] = arrived[:, 2:] = 0
    whole, cut = (
        LastHidden().distance(one, logits(1, 5), (arrived,), classes=True)
        for one in (hidden, hidden[:, :2])
    )
    assert float(cut) == pytest.approx(float(whole))


class Rows:
    def __len__(self):
        return 12

    def batch(self, rows):
        inputs = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
        return inputs[rows], rows % CLASSES


def visit(trained, **loss):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, CLASSES)]
    stack = BlockStack.cut(torch.nn.Sequential(*layers))
    settings = LossConfig(logit_adjustment=0.0, **loss)
    train_visit(
        stack,
        Rows(),
        trained=trained,
        learning_rate=0.1,
        seed=1,
        training=TrainingConfig(batch_size=4, epochs=3),
        objective=Objective(settings),
    )
    return torch.cat([one.flatten() for one in stack.parameters()])


@pytest.mark.parametrize("teacher", ["logits", "top_k", "last_hidden"])
def test_each_holds_a_visit_back(teacher):
    free = visit((0, 1), distillation=0.0)
    held = visit((0, 1), distillation=0.9, teacher=teacher, teacher_top_k=2)
    start = visit((0, 1), distillation=1.0, teacher=teacher, teacher_top_k=2)
    assert not torch.equal(free, held)
    assert (held - start).norm() < (free - start).norm()


def test_the_last_hidden_state_says_nothing_of_the_last_block():
    halved = visit((1,), distillation=0.5, teacher="last_hidden")
    assert not torch.equal(halved, visit((1,), distillation=0.0))
    assert make_teacher(LossConfig(teacher="last_hidden")).__class__ is LastHidden
