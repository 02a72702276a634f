"""Wide scores, made some positions at a time, against all of them at once."""

import copy

import numpy as np
import pytest
import torch

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.head import is_wide
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import IGNORED, Objective, cross_entropy
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.models.registry import build_model

TOKENS, WIDTH, LENGTH, ROWS = 16_384, 16, 24, 8
LAYERS = 2
LAST = LAYERS + 1


def network(tied=True):
    torch.manual_seed(1)
    options = {"vocabulary": TOKENS, "width": WIDTH, "layers": LAYERS, "tied": tied}
    stack = BlockStack.cut(build_model("decoder", options))
    with torch.no_grad():
        # Larger than initial weights, so that the scores of tokens differ.
        for weight in stack.parameters():
            weight.mul_(3)
    return stack


def at_once(stack):
    """Return the same network, whose last block doesn't say that positions are independent."""
    whole = copy.deepcopy(stack)
    whole.blocks[-1].position_scores = 0
    return whole


@pytest.fixture
def rows(array_samples):
    tokens = np.random.default_rng(0).integers(0, TOKENS, (ROWS, LENGTH + 1))
    targets = tokens[:, 1:].copy()
    # Padding of uneven length; of the last three rows so much that some pieces have nothing else.
    targets[1, -7:] = IGNORED
    targets[5:] = IGNORED
    targets[5, :3] = tokens[5, 1:4]
    return array_samples(tokens[:, :-1], targets)


def visit(stack, rows, trained, loss=None, **training):
    settings = {"batch_size": 8, "steps": 2, "weight_decay": 0.0, **training}
    return train_visit(
        stack,
        rows,
        trained=trained,
        learning_rate=0.5,
        seed=0,
        training=TrainingConfig(**settings),
        objective=Objective(loss or LossConfig(distillation=0.0)),
    )


def compare(stack, rows, trained, *, tolerance=1e-4, **settings):
    whole = at_once(stack)
    before = copy.deepcopy(stack.state_dict())
    found = visit(stack, rows, trained, **settings)
    expected = visit(whole, rows, trained, **settings)
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    assert found.first_loss == pytest.approx(expected.first_loss, rel=tolerance)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=tolerance)
    assert found.samples == expected.samples
    changed = 0
    for name, tensor in whole.state_dict().items():
        change = tensor - before[name]
        own = stack.state_dict()[name] - before[name]
        assert float((own - change).norm()) <= tolerance * float(change.norm()), name
        changed += bool(change.any())
    assert changed


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("trained", [(0, LAST), (2,), (LAST,), tuple(range(LAST + 1))])
@pytest.mark.parametrize("batch", [{}, {"micro_batch": 3}], ids=["whole", "parts"])
def test_a_visit_comes_to_the_same_weights(rows, trained, tied, batch):
    stack = network(tied)
    assert is_wide(stack, torch.empty(3, LENGTH, WIDTH))
    compare(stack, rows, trained, **batch)


class SequenceFirst(torch.nn.Module):
    """A layer that leaves its features in memory as (sequence, batch, width)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, features):
        return self.layer(features).transpose(0, 1).contiguous().transpose(0, 1)


def test_so_it_does_however_features_lie_in_memory(rows):
    stack = network()
    stack.blocks[LAST - 1] = SequenceFirst(stack.blocks[LAST - 1])
    compare(stack, rows, (1, LAST))


@pytest.mark.parametrize(
    "settings",
    [
        {"suffix": "recompute"},
        {"suffix": "lean"},
        {"residency": "stream"},
        {"residency": "stream", "frozen_dtype": "bfloat16", "tolerance": 0.02},
        {"precision": "bf16", "tolerance": 0.02},
        {
            "residency": "stream",
            "frozen_dtype": "bfloat16",
            "precision": "bf16",
            "micro_batch": 4,
            "tolerance": 0.02,
        },
    ],
    ids=["recompute", "lean", "stream", "stream bf16", "autocast", "all of it"],
)
@pytest.mark.parametrize("trained", [(0, LAST), (2,)])
def test_so_it_does_wherever_frozen_blocks_are_and_in_whatever_precision(rows, trained, settings):
    compare(network(), rows, trained, **settings)


@pytest.mark.parametrize("teacher", ["logits", "top_k", "last_hidden"])
@pytest.mark.parametrize("residency", ["resident", "stream"])
def test_so_it_does_with_a_teacher(rows, teacher, residency):
    loss = LossConfig(distillation=0.5, teacher=teacher)
    compare(network(), rows, (1, LAST), loss=loss, residency=residency)


def test_so_it_does_where_distance_from_the_weights_that_arrived_counts(rows):
    found, expected = network(), network()
    expected.blocks[-1].position_scores = 0
    for stack in (found, expected):
        train_visit(
            stack,
            rows,
            trained=(1, LAST),
            learning_rate=0.5,
            seed=0,
            training=TrainingConfig(batch_size=8, steps=2, micro_batch=4),
            objective=Objective(LossConfig(distillation=0.0)),
            proximal=0.3,
        )
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_task_of_ones_own_sees_all_scores_at_once(rows):
    seen = []

    def task(outputs, targets):
        seen.append(outputs.shape)
        return cross_entropy(outputs, targets)

    train_visit(
        network(),
        rows,
        trained=(1, LAST),
        learning_rate=0.5,
        seed=0,
        training=TrainingConfig(batch_size=8, steps=1),
        objective=Objective(LossConfig(distillation=0.0), task=task),
    )
    assert seen == [(ROWS, LENGTH, TOKENS)]


def test_evaluation_comes_to_the_same(rows):
    stack = network()
    found = evaluate(stack, rows, task=cross_entropy, batch_size=8)
    expected = evaluate(at_once(stack), rows, task=cross_entropy, batch_size=8)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert (found.accuracy, found.samples) == (expected.accuracy, expected.samples)


def test_neither_a_visit_nor_evaluation_ever_has_all_scores(rows):
    stack = network(tied=False)

    def judge(one):
        return peak_bytes(lambda: evaluate(one, rows, task=cross_entropy, batch_size=8))

    def train(one):
        return peak_bytes(lambda: visit(one, rows, (1,)))

    all_scores = 4 * ROWS * LENGTH * TOKENS
    for work in (judge, train):
        assert work(at_once(stack)) > all_scores + work(stack)
