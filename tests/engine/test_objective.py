import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import LossConfig
from ray_snake.engine.objective import (
    Objective,
    correct,
    cross_entropy,
    is_classification,
    log_frequencies,
    mean_squared_error,
)
from ray_snake.engine.teacher import distillation
from ray_snake.errors import ConfigError

CLASSES = 4


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def reference(logits, labels, teacher, counts, *, a, tau, temperature):
    """The loss of docs, written out in double precision for counts without zeros."""
    prior = np.log(counts / counts.sum())
    probabilities = softmax(logits + tau * prior)
    task = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    p, q = softmax(teacher / temperature), softmax(logits / temperature)
    kept = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    return (1 - a) * task + a * kept


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 6),
    a=st.floats(0, 1),
    tau=st.floats(0, 2),
    temperature=st.floats(0.5, 8),
)
def test_the_loss_is_adjusted_cross_entropy_and_softened_divergence(
    seed, rows, a, tau, temperature
):
    generator = np.random.Generator(np.random.PCG64(seed))
    logits, teacher = generator.normal(0, 2, (2, rows, CLASSES))
    labels = generator.integers(0, CLASSES, rows)
    counts = generator.integers(1, 50, CLASSES)
    settings = LossConfig(distillation=a, logit_adjustment=tau, temperature=temperature)
    objective = Objective(settings, label_counts=torch.from_numpy(counts))
    loss = objective(torch.tensor(logits), torch.tensor(labels), (torch.tensor(teacher),))
    expected = reference(logits, labels, teacher, counts, a=a, tau=tau, temperature=temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_a_teacher_the_loss_is_the_task_alone():
    outputs, targets = torch.randn(3, CLASSES), torch.tensor([0, 1, 3])
    objective = Objective(LossConfig(distillation=0.3))
    assert torch.equal(objective(outputs, targets, None), cross_entropy(outputs, targets))


def test_a_teacher_is_needed_only_for_distillation():
    assert Objective(LossConfig(distillation=0.1)).needs_teacher
    assert not Objective(LossConfig(distillation=0.0)).needs_teacher


def test_a_visits_own_weight_of_distillation_takes_the_place_of_the_settings():
    outputs, targets = torch.randn(3, CLASSES), torch.tensor([0, 1, 3])
    kept = (torch.randn(3, CLASSES),)
    counts = torch.tensor([5, 1, 1, 1])[:CLASSES]
    mild = Objective(LossConfig(distillation=0.1), label_counts=counts)
    strong = Objective(LossConfig(distillation=0.6), label_counts=counts)
    before = mild(outputs, targets, kept)
    assert torch.equal(mild.weighted(0.6)(outputs, targets, kept), strong(outputs, targets, kept))
    assert torch.equal(mild.weighted(None)(outputs, targets, kept), before)
    assert torch.equal(mild(outputs, targets, kept), before)


def test_without_label_counts_nothing_is_adjusted():
    outputs, targets = torch.randn(3, CLASSES), torch.tensor([0, 1, 3])
    plain = Objective(LossConfig(logit_adjustment=1.0))
    off = Objective(LossConfig(logit_adjustment=0.0), label_counts=torch.tensor([1, 2, 3, 4]))
    assert torch.equal(plain(outputs, targets, None), off(outputs, targets, None))


def test_distillation_is_zero_for_the_teachers_own_outputs_and_positive_else():
    teacher = torch.randn(5, CLASSES)
    assert float(distillation(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(teacher + torch.eye(5)[:, :CLASSES], teacher, 2.0)) > 1e-3


def test_distillation_over_sequences_is_the_mean_over_all_positions():
    outputs, teacher = torch.randn(2, 3, CLASSES), torch.randn(2, 3, CLASSES)
    one_by_one = [
        float(distillation(outputs[i, j][None], teacher[i, j][None], 2.0))
        for i in range(2)
        for j in range(3)
    ]
    assert float(distillation(outputs, teacher, 2.0)) == pytest.approx(np.mean(one_by_one))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=12).filter(any))
def test_log_frequencies_are_finite_and_sum_to_one(counts):
    logs = log_frequencies(torch.tensor(counts))
    assert logs.dtype == torch.float32
    assert bool(torch.isfinite(logs).all())
    assert float(logs.double().exp().sum()) == pytest.approx(1, rel=1e-5)


def test_log_frequencies_are_the_nodes_own():
    logs = log_frequencies(torch.tensor([30, 10, 60]))
    assert logs.tolist() == pytest.approx([math.log(0.3), math.log(0.1), math.log(0.6)])


def test_an_absent_class_counts_as_a_thousandth_of_an_even_share():
    logs = log_frequencies(torch.tensor([50, 50, 0, 0]))
    assert float(logs[2]) == pytest.approx(math.log(1e-3 / 4), abs=1e-2)


def test_absent_classes_leave_loss_and_gradients_finite():
    outputs = (torch.randn(3, CLASSES) * 50).requires_grad_()
    objective = Objective(LossConfig(logit_adjustment=5.0), label_counts=torch.tensor([7, 0, 0, 0]))
    loss = objective(outputs, torch.tensor([0, 0, 3]), (torch.randn(3, CLASSES),))
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(outputs.grad).all())


def test_the_adjustment_takes_a_skewed_shards_bias_out_of_the_gradient():
    counts = torch.tensor([97, 1, 1, 1])
    labels = torch.repeat_interleave(torch.arange(4), counts)
    outputs = torch.zeros(100, CLASSES, requires_grad=True)
    Objective(LossConfig(logit_adjustment=1.0), label_counts=counts)(
        outputs, labels, None
    ).backward()
    # Logits that favour no class are already right for this shard's prior.
    assert outputs.grad.sum(0).abs().max() < 1e-6


def test_float_targets_are_neither_adjusted_nor_softened():
    outputs, targets, teacher = torch.randn(3, 3, 2).unbind()
    settings = LossConfig(name="mse", distillation=0.25, logit_adjustment=1.0)
    objective = Objective(settings, label_counts=torch.tensor([1, 9]))
    expected = 0.75 * ((outputs - targets) ** 2).mean() + 0.25 * ((outputs - teacher) ** 2).mean()
    assert float(objective(outputs, targets, (teacher,))) == pytest.approx(float(expected))


def test_mean_squared_error_takes_targets_without_the_last_axis():
    outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0])
    assert float(mean_squared_error(outputs, targets)) == 5.0


def test_a_users_own_loss_takes_the_place_of_the_settings():
    objective = Objective(
        LossConfig(distillation=0.0, logit_adjustment=0.0),
        task=lambda outputs, targets: outputs.sum() + targets.sum(),
    )
    assert float(objective(torch.ones(2, 3), torch.tensor([1, 2]), None)) == 9.0


def test_a_users_own_loss_of_classes_gets_adjusted_outputs():
    seen = []
    counts = torch.tensor([3, 1])
    objective = Objective(
        LossConfig(distillation=0.0, logit_adjustment=1.0),
        label_counts=counts,
        task=lambda outputs, targets: seen.append(outputs) or outputs.sum(),
    )
    objective(torch.zeros(1, 2), torch.tensor([0]), None)
    assert torch.allclose(seen[0], log_frequencies(counts)[None])


def test_correct_counts_right_classes_and_all_of_them():
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert correct(outputs, torch.tensor([0, 1, 1])) == (2, 3)
    assert correct(outputs[None], torch.tensor([[0, 1, 1]])) == (2, 3)


def test_whole_numbers_are_classes_and_floats_are_not():
    assert is_classification(torch.tensor([1]))
    assert not is_classification(torch.tensor([1.0]))


def test_a_name_of_something_that_is_no_function_is_refused_as_it_was_given():
    with pytest.raises(ConfigError) as caught:
        Objective(LossConfig(name="math:pi"))
    assert str(caught.value) == (
        "loss.name: 'math:pi' is a float, no class or function; name one in that module"
    )
