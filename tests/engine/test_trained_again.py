"""Trained blocks that run again in the backward pass: the same bits for less memory."""

import numpy as np
import pytest
import torch
from torch import nn

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import Objective
from ray_snake.engine.split import BackTrainer, train_front
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.models.registry import build_model, model_names

OBJECTIVE = Objective(LossConfig(logit_adjustment=0.0, distillation=0.0))


def settings(span, **training):
    return TrainingConfig(**{"batch_size": 4, "steps": 3, "span": span, **training})


def visit(stack, samples, span, *, trained=None, **training):
    """Train; return all tensors of the stack after that."""
    train_visit(
        stack,
        samples,
        trained=tuple(range(len(stack))) if trained is None else trained,
        learning_rate=0.05,
        seed=1,
        training=settings(span, **training),
        objective=OBJECTIVE,
    )
    assert stack.runs == {}
    return {
        (block, name): one
        for block in range(len(stack))
        for name, one in stack.tensors(block).items()
    }


def assert_same(some, others):
    assert some.keys() == others.keys()
    assert [key for key, one in some.items() if not torch.equal(one, others[key])] == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", model_names())
def test_every_registered_model_ends_with_the_same_bits(registered, name, precision):
    results = []
    for span in ("eager", "recompute"):
        stack, samples = registered(name)
        results.append(visit(stack, samples, span, precision=precision))
    assert_same(*results)


class Counting(nn.Module):
    """Keeps the largest input it has seen, and computes with it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("largest", torch.ones(()))
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        # Not in place: another tensor takes the place.
        self.largest = torch.maximum(self.largest, x.detach().abs().max())
        return self.scale * x / self.largest


BLOCKS = {
    "dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6)),
    "in place": lambda: nn.Sequential(nn.LeakyReLU(0.1, inplace=True), nn.Linear(6, 6)),
    "own buffers": Counting,
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_a_block_draws_counts_and_overwrites_is_as_if_it_ran_once(random_samples, kind):
    results = []
    for span in ("eager", "recompute"):
        torch.manual_seed(0)
        blocks = [nn.Linear(6, 6), BLOCKS[kind](), nn.Sequential(nn.Tanh(), nn.Linear(6, 4))]
        results.append(visit(BlockStack.cut(blocks), random_samples(12, (6,)), span))
    assert_same(*results)
    if kind == "own buffers":
        assert results[1][1, "runs"] == 3


@pytest.mark.parametrize("suffix", ["recompute", "lean"])
def test_a_frozen_block_that_works_in_place_leaves_its_input_as_it_is(random_samples, suffix):
    results = []
    for way in ("eager", suffix):
        torch.manual_seed(0)
        blocks = [nn.Linear(6, 6), BLOCKS["in place"](), nn.Linear(6, 4)]
        stack = BlockStack.cut(blocks)
        results.append(visit(stack, random_samples(12, (6,)), "eager", trained=(0,), suffix=way))
    for key, one in results[0].items():
        torch.testing.assert_close(results[1][key], one)


def decoder():
    torch.manual_seed(0)
    options = {"vocabulary": 64, "width": 64, "layers": 6}
    return BlockStack.cut(build_model("decoder", options))


@pytest.fixture
def texts(array_samples):
    tokens = np.random.default_rng(0).integers(0, 64, (8, 65))
    return array_samples(tokens[:, :-1], tokens[:, 1:])


def test_the_peak_of_a_wide_span_is_far_lower(texts):
    trained = tuple(range(1, 7))
    eager, again = (
        peak_bytes(lambda span=span: visit(decoder(), texts, span, trained=trained))
        for span in ("eager", "recompute")
    )
    assert again < 0.6 * eager


def test_trained_blocks_run_a_second_time_but_for_the_last(texts):
    stack = decoder()
    calls = dict.fromkeys(range(len(stack)), 0)
    for block in calls:
        stack.blocks[block].register_forward_pre_hook(
            lambda *_, block=block: calls.update({block: calls[block] + 1})
        )
    visit(stack, texts, "recompute", trained=(2, 3, 7), steps=1)
    assert calls == {0: 1, 1: 1, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1}


def test_the_front_of_a_network_that_is_cut_ends_with_the_same_bits(registered):
    results = []
    for span in ("eager", "recompute"):
        stack, samples = registered("vgg11")
        back = BackTrainer(
            registered("vgg11")[0],
            cut=5,
            learning_rate=0.05,
            seed=1,
            training=settings(span),
            objective=OBJECTIVE,
        )
        train_front(
            stack,
            samples,
            cut=5,
            exchange=back.step,
            learning_rate=0.05,
            seed=1,
            training=settings(span),
        )
        assert stack.runs == {}
        results.append(dict(stack.named_parameters()) | dict(stack.named_buffers()))
    assert_same(*results)
