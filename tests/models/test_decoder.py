"""The small decoder: its blocks, what they compute, and visits that train some of them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.evaluate import evaluate
from ray_snake.engine.fit import output_shape
from ray_snake.engine.objective import IGNORED, Objective, cross_entropy
from ray_snake.engine.profile import profile_blocks, time_blocks
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.errors import ModelError
from ray_snake.models.decoder import rotated
from ray_snake.models.registry import build_model

TOKENS = 13
SMALL = {"vocabulary": TOKENS, "width": 16, "layers": 3, "heads": 2}
CLASSES = {**SMALL, "task": "sequence_classification", "classes": 3, "padding": 0}


class Sequences:
    """Rows of tokens that count up by one, with the tokens that follow as targets."""

    def __init__(self, rows=48, length=8, padded=0):
        starts = np.random.Generator(np.random.PCG64(1)).integers(0, TOKENS, rows)
        tokens = (starts[:, None] + np.arange(length + 1)) % TOKENS
        self.inputs, self.targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        if padded:
            self.inputs[:, -padded:] = 0
            self.targets[:, -padded:] = IGNORED

    def __len__(self):
        return len(self.inputs)

    def batch(self, rows):
        return self.inputs[rows], self.targets[rows]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(**options):
    torch.manual_seed(0)
    return BlockStack.cut(build_model("decoder", {**SMALL, **options}))


def visit(stack, samples, trained, *, loss=None, epochs=4, rate=0.02, **more):
    training = TrainingConfig(
        optimizer="adamw", batch_size=8, epochs=epochs, weight_decay=0.0, clip_norm=1.0, **more
    )
    return train_visit(
        stack,
        samples,
        trained=trained,
        learning_rate=rate,
        seed=1,
        training=training,
        objective=Objective(loss or LossConfig(distillation=0.0)),
    )


def test_blocks_are_the_embedding_each_layer_and_the_head():
    stack = make()
    assert stack.names == ("embedding", "layer1", "layer2", "layer3", "head")
    assert stack.reads == (frozenset(),) * 5
    hidden = 43  # 8/3 of the width, rounded up
    layer = 2 * 16 + 3 * 16 * 16 + 16 * 16 + 3 * 16 * hidden
    expected = [TOKENS * 16, layer, layer, layer, 16 + TOKENS * 16]
    assert stack.block_bytes() == tuple(4 * one for one in expected)


def test_scores_depend_on_earlier_tokens_alone():
    stack = make().eval()
    tokens = torch.randint(0, TOKENS, (2, 7), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[:, 4] = (tokens[:, 4] + 1) % TOKENS
    one, other = stack(tokens), stack(changed)
    assert one.shape == (2, 7, TOKENS)
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.isclose(one[:, 4:], other[:, 4:]).all(-1).any()


def test_the_order_of_earlier_tokens_matters():
    stack = make().eval()
    one, other = stack(torch.tensor([[1, 2, 3]])), stack(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(one[:, -1], other[:, -1])


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    draw = torch.Generator().manual_seed(3)
    query, key = torch.randn(8, generator=draw), torch.randn(8, generator=draw)
    queries, keys = rotated(query.expand(6, 8)), rotated(key.expand(6, 8))
    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(6))
    torch.testing.assert_close(queries[0], query)
    products = queries @ keys.T
    torch.testing.assert_close(products[1:, 1:], products[:-1, :-1])
    assert not torch.isclose(products[0, 0], products[0, 3])


def test_classes_are_read_off_the_last_token_before_the_padding():
    stack = make(**CLASSES).eval()
    short = torch.tensor([[3, 4, 5], [6, 7, 8]])
    padded = F.pad(short, (0, 4), value=0)
    torch.testing.assert_close(stack(padded), stack(short), rtol=0, atol=1e-6)
    assert stack(short).shape == (2, 3)
    assert not torch.allclose(stack(short), stack(torch.tensor([[3, 4, 9], [6, 7, 9]])))


def test_padding_stays_zero_from_block_to_block():
    stack = make(**CLASSES).eval()
    features = torch.tensor([[3, 4, 0, 0]])
    for block in stack.blocks[:-1]:
        features = block(features)
        assert not features[:, 2:].any()
        assert features[:, :2].any()


def test_a_tied_head_owns_its_norm_and_reads_the_embedding():
    stack = make(tied=True)
    assert stack.block_bytes()[-1] == 4 * 16
    assert stack.reads[-1] == {0}
    tokens = torch.tensor([[1, 2, 3]])
    before = stack(tokens)
    weights = {name: tensor * 2 for name, tensor in stack.tensors(0).items()}
    stack.load(0, weights, trainable=False)
    scores = F.linear(stack.blocks[-1].norm(stack(tokens, 0, 4)), weights["tokens.weight"])
    torch.testing.assert_close(stack(tokens), scores)
    assert not torch.allclose(before, scores)


def test_gradients_reach_a_tied_weight_from_both_of_its_uses():
    tied, untied = make(tied=True), make()
    for block in range(4):
        untied.load(block, tied.tensors(block), trainable=True)
    own = {"norm.weight": tied.tensors(4)["norm.weight"]}
    untied.load(4, {**own, "out.weight": tied.tensors(0)["tokens.weight"]}, trainable=True)
    tokens, targets = (torch.from_numpy(one) for one in Sequences().batch(np.arange(8)))
    for stack in (tied, untied):
        stack.freeze_all_but(range(5))
        cross_entropy(stack(tokens), targets).backward()
    both = untied.blocks[0].tokens.weight.grad + untied.blocks[4].out.weight.grad
    torch.testing.assert_close(tied.blocks[0].tokens.weight.grad, both)


def test_a_skeleton_of_a_tied_network_is_measured_block_by_block():
    skeleton = BlockStack.skeleton(lambda: build_model("decoder", {**SMALL, "tied": True}))
    shape = output_shape(skeleton, (5,), integer_inputs=True, subject="a.arrow", largest=12)
    assert shape == (5, TOKENS)
    costs, _ = profile_blocks(skeleton, (5,), integer_inputs=True, batch=2)
    assert costs[-1].forward_flops == 2 * 5 * 16 * TOKENS
    assert costs[-1].weight_bytes == 4 * 16
    timed = time_blocks(
        skeleton,
        costs,
        (5,),
        integer_inputs=True,
        training=TrainingConfig(batch_size=2),
        loss=LossConfig(),
        threads=1,
    )
    assert all(cost.training_seconds > 0 for cost in timed)
    assert all(parameter.is_meta for parameter in skeleton.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("trained", [(0,), (1, 2), (2, 3), (3, 4), (0, 1, 4)])
def test_a_visit_trains_its_blocks_to_a_lower_perplexity(trained, tied):
    stack, samples = make(tied=tied, dropout=0.0), Sequences()
    before = [{k: v.clone() for k, v in stack.tensors(block).items()} for block in range(5)]
    arrived = evaluate(stack, samples, task=cross_entropy, batch_size=16)
    outcome = visit(stack, samples, trained)
    found = evaluate(stack, samples, task=cross_entropy, batch_size=16)
    assert outcome.finite
    assert found.perplexity < 0.8 * arrived.perplexity
    for block in range(5):
        changed = [not torch.equal(v, before[block][k]) for k, v in stack.tensors(block).items()]
        assert all(changed) if block in trained else not any(changed)


@pytest.mark.parametrize("tied", [False, True])
def test_frozen_blocks_behind_a_trained_one_may_keep_little(tied):
    weights = {}
    for suffix in ("eager", "recompute", "lean"):
        stack = make(tied=tied)
        visit(stack, Sequences(), (0, 2), epochs=2, suffix=suffix)
        weights[suffix] = [*stack.tensors(0).values(), *stack.tensors(2).values()]
    for eager, again, lean in zip(*weights.values(), strict=True):
        assert torch.equal(again, eager)
        torch.testing.assert_close(lean, eager, rtol=0, atol=1e-4)


def test_visits_over_all_spans_learn_to_count():
    stack, samples = make(), Sequences()
    for trained in [(0, 1, 4), (2, 3, 4), (0, 1, 4), (2, 3, 4)]:
        visit(stack, samples, trained, loss=LossConfig(distillation=0.1), epochs=6)
    found = evaluate(stack, samples, task=cross_entropy, batch_size=16)
    assert found.accuracy > 0.95
    assert found.perplexity < 1.5


def test_targets_that_do_not_count_change_neither_loss_nor_distillation():
    samples = Sequences(padded=3)
    results = []
    for filler in (0, 7):
        stack = make()
        samples.inputs[:, -3:] = filler
        outcome = visit(stack, samples, (2, 4), loss=LossConfig(distillation=0.5), epochs=2)
        results.append((outcome.loss, outcome.accuracy, stack.tensors(4)["out.weight"].clone()))
    assert results[0][:2] == pytest.approx(results[1][:2], abs=1e-6)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=0, atol=1e-5)


def test_perplexity_is_over_the_tokens_that_count_however_they_are_batched():
    stack, samples = make().eval(), Sequences(rows=7)
    samples.targets[2:4, 3:] = IGNORED
    counted = torch.from_numpy(samples.targets) != IGNORED
    with torch.no_grad():
        logs = stack(torch.from_numpy(samples.inputs)).log_softmax(-1)
    targets = torch.from_numpy(samples.targets).clamp(min=0)
    losses = -logs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)[counted]
    for batch_size in (2, 7):
        found = evaluate(stack, samples, task=cross_entropy, batch_size=batch_size)
        assert found.loss == pytest.approx(float(losses.mean()), rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(float(losses.mean())), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": 3}, "3 heads don't divide a width of 16"),
        ({"width": 18, "heads": 2}, "2 heads don't divide a width of 18 into even parts"),
        ({"padding": 13}, "13 is not one of the tokens 0 to 12"),
        ({**CLASSES, "tied": True}, "a head for classes has no embedding to share"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, says):
    with pytest.raises(ModelError, match=says):
        build_model("decoder", {**SMALL, **options})
