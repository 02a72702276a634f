import math

import numpy as np
import pytest
import torch
from torch import nn

from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.objective import cross_entropy, mean_squared_error
from ray_snake.engine.stack import BlockStack
from ray_snake.models.registry import build_model


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_loss_and_accuracy_are_means_over_rows_whatever_the_batches(batch_size, registered):
    stack, samples = registered("cnn")
    result = evaluate(stack, samples, task=cross_entropy, batch_size=batch_size)
    logits = stack.eval()(torch.from_numpy(samples.inputs)).detach()
    labels = torch.from_numpy(samples.targets)
    assert result.samples == 12
    assert result.loss == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    assert result.accuracy == float((logits.argmax(-1) == labels).double().mean())


def test_evaluation_changes_no_statistic_and_keeps_no_gradient(registered):
    stack, samples = registered("cnn")
    stack.train()
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    evaluate(stack, samples, task=cross_entropy, batch_size=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())
    assert all(parameter.grad is None for parameter in stack.parameters())


def test_without_classes_there_is_a_loss_and_no_accuracy(array_samples):
    stack = BlockStack.cut([nn.Linear(1, 1, bias=False)])
    nn.init.ones_(stack.blocks[0].weight)
    samples = array_samples(np.array([[1.0], [3.0]], np.float32), np.array([0.0, 0.0], np.float32))
    result = evaluate(stack, samples, task=mean_squared_error, batch_size=2)
    assert (result.loss, result.accuracy) == (5.0, None)


def test_every_position_of_a_sequence_is_judged(array_samples):
    stack = BlockStack.cut([nn.Embedding(3, 3)])
    stack.load(0, {"weight": torch.eye(3) * 9}, trainable=False)
    samples = array_samples([[0, 1], [2, 2]], [[0, 1], [2, 0]])
    result = evaluate(stack, samples, task=cross_entropy, batch_size=1)
    assert (result.samples, result.accuracy) == (2, 0.75)


@pytest.mark.parametrize("vocabulary", [50, 2**19], ids=["narrow", "wide"])
def test_evaluation_computes_as_it_is_told_to(vocabulary, array_samples):
    torch.manual_seed(0)
    options = {"vocabulary": vocabulary, "width": 16, "layers": 1, "tied": True}
    stack = BlockStack.cut(build_model("decoder", options))
    tokens = np.random.default_rng(0).integers(0, 50, (2, 5))
    samples = array_samples(tokens[:, :-1], tokens[:, 1:])
    exact = evaluate(stack, samples, task=cross_entropy, batch_size=2)
    rough = evaluate(stack, samples, task=cross_entropy, batch_size=2, precision="bf16")
    assert rough.loss != exact.loss
    # Scores are rounded, their loss is not.
    assert rough.loss == pytest.approx(exact.loss, rel=1e-3)


def test_no_rows_give_no_number(random_samples):
    stack = BlockStack.cut([nn.Linear(2, 2)])
    result = evaluate(stack, random_samples(0, (2,)), task=cross_entropy, batch_size=2)
    assert math.isnan(result.loss)
    assert result.accuracy is None
