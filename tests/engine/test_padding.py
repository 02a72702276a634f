"""Padding that all rows of a batch share is cut off, and nothing that counts changes."""

import numpy as np
import pytest
import torch

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.objective import Objective, cross_entropy
from ray_snake.engine.padding import row_lengths, without_padding
from ray_snake.engine.visit import train_visit

NAMES = ["decoder", "huggingface"]


def padded(samples, extra):
    """Return the same rows with so many more tokens of padding behind them."""
    wider = np.pad(samples.inputs, ((0, 0), (0, extra)))
    return type(samples)(wider, samples.targets)


def seen_lengths(stack):
    """Return a list that the sequence length of each batch goes to that the network computes."""
    lengths = []
    stack.blocks[1].register_forward_hook(lambda _m, inputs, _o: lengths.append(inputs[0].shape[1]))
    return lengths


@pytest.mark.parametrize("name", NAMES)
def test_a_row_ends_with_its_last_token_that_is_no_padding(name, registered, array_samples):
    stack, _ = registered(name)
    samples = array_samples([[3, 0, 4, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], [0, 1, 0])
    assert row_lengths(stack, samples).tolist() == [3, 5, 5]


def test_without_a_token_of_padding_nothing_is_cut(registered):
    stack, samples = registered("cnn")
    assert row_lengths(stack, samples) is None
    inputs = torch.zeros(2, 3)
    assert without_padding(stack, inputs) is inputs


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_features_end_with_the_longest_row(name, registered):
    stack, _ = registered(name)
    tokens = torch.tensor([[3, 0, 0, 0], [1, 2, 0, 0]])
    assert without_padding(stack, tokens).tolist() == [[3, 0], [1, 2]]
    features = stack.eval()(tokens, 0, 2)
    assert torch.equal(without_padding(stack, features), features[:, :2])
    nothing = torch.zeros(2, 4, dtype=torch.int64)
    assert without_padding(stack, nothing) is nothing


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"epochs": 2}, {"epochs": 2, "residency": "stream"}])
def test_a_visit_computes_no_common_padding_and_trains_to_the_same(name, settings, registered):
    results = []
    for extra in (0, 5):
        stack, samples = registered(name)
        lengths = seen_lengths(stack)
        train_visit(
            stack,
            padded(samples, extra),
            trained=(2, 3),
            learning_rate=0.1,
            seed=1,
            training=TrainingConfig(batch_size=4, **settings),
            objective=Objective(LossConfig(distillation=0.0)),
        )
        results.append([*stack.tensors(2).values(), *stack.tensors(3).values()])
        if not settings:
            # Two epochs keep the prefix's outputs, which are of one length.
            assert max(lengths) <= 6
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("teacher", ["logits", "top_k", "last_hidden"])
def test_a_teacher_compares_rows_of_any_length_whole_or_in_parts(teacher, registered):
    results = []
    for micro_batch in (None, 1):
        stack, samples = registered("decoder")
        train_visit(
            stack,
            padded(samples, 5),
            trained=(2, 3),
            learning_rate=0.1,
            seed=1,
            training=TrainingConfig(batch_size=4, epochs=3, micro_batch=micro_batch),
            objective=Objective(LossConfig(distillation=0.5, teacher=teacher)),
        )
        results.append([*stack.tensors(2).values(), *stack.tensors(3).values()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_judged_by_length_to_the_same_result(name, registered):
    stack, samples = registered(name)
    expected = evaluate(stack, samples, task=cross_entropy, batch_size=len(samples))
    lengths = seen_lengths(stack)
    found = evaluate(stack, padded(samples, 5), task=cross_entropy, batch_size=3)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.accuracy == expected.accuracy
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == 6


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_one_length_are_as_short_as_they_can_be(name, registered):
    computed = {}
    for grouped in (False, True):
        stack, samples = registered(name)
        lengths = seen_lengths(stack)
        outcome = train_visit(
            stack,
            samples,
            trained=(1, 2, 3),
            learning_rate=0.1,
            seed=1,
            training=TrainingConfig(batch_size=2, group_lengths=grouped),
            objective=Objective(LossConfig(distillation=0.0)),
        )
        assert outcome.samples == len(samples)
        computed[grouped] = sum(lengths)
    # Of twelve rows four have four tokens, the others six: two batches and four.
    assert computed[True] == 2 * 4 + 4 * 6 < computed[False]


def test_evaluation_in_bfloat16_is_near_to_that_in_float32(registered):
    stack, samples = registered("decoder")
    exact = evaluate(stack, samples, task=cross_entropy, batch_size=4)
    rounded = evaluate(stack, samples, task=cross_entropy, batch_size=4, precision="bf16")
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)
