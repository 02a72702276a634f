"""Frozen blocks that come and go, that compute in another precision; batches in parts."""

import numpy as np
import pytest
import torch
from torch import nn

from ray_snake.config import AugmentationConfig, LossConfig, TrainingConfig
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import Objective
from ray_snake.engine.residency import FrozenBlocks
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.layers.tensors import pack, unpack
from ray_snake.models.registry import build_model, model_names

TOKENS, LENGTH = 23, 8
CPU = torch.device("cpu")
NO_TEACHER = LossConfig(logit_adjustment=0.0, distillation=0.0)


def language_model(array_samples, *, tied=True, rows=12):
    torch.manual_seed(5)
    options = {"vocabulary": TOKENS, "width": 16, "layers": 4, "tied": tied}
    stack = BlockStack.cut(build_model("decoder", options))
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, TOKENS, (rows, LENGTH + 1))
    targets = tokens[:, 1:].copy()
    # Rows of different length: what doesn't count is spread unevenly.
    for row in range(rows):
        targets[row, LENGTH - row % 4 :] = -100
    return stack, array_samples(tokens[:, :-1], targets)


def freeze_in_store(stack):
    """Put the stack's weights into read-only memory, as they arrive from an object store."""
    for block in range(len(stack)):
        state = pack(block, 0, {name: one.clone() for name, one in stack.tensors(block).items()})
        for array in state.arrays.values():
            array.setflags(write=False)
        stack.load(block, unpack(state), trainable=False)
    return stack


def trained_weights(stack, samples, trained, *, loss=NO_TEACHER, augmentation=None, **training):
    """Do a visit; return the trained blocks' tensors and what it reports."""
    settings = {"batch_size": 4, "epochs": 2, "learning_rate": 0.05, **training}
    outcome = train_visit(
        stack,
        samples,
        trained=trained,
        learning_rate=0.05,
        seed=3,
        training=TrainingConfig(**settings),
        objective=Objective(loss),
        augmentation=augmentation,
    )
    return {(i, n): one for i in trained for n, one in stack.tensors(i).items()}, outcome


def assert_same(one, other, tolerance=None):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        if tolerance is None:
            assert torch.equal(tensor, other[key]), key
        else:
            torch.testing.assert_close(tensor, other[key], rtol=tolerance, atol=tolerance)


def spans(count):
    return [(0,), (count // 2, count - 1), (count - 1,)]


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("distillation", [0.0, 0.4])
def test_streaming_gives_the_bits_of_all_at_once(registered, name, distillation):
    loss = LossConfig(logit_adjustment=0.0, distillation=distillation)
    count = len(registered(name)[0])
    for trained in spans(count):
        found = []
        for residency in ("resident", "stream"):
            stack, samples = registered(name)
            found.append(
                trained_weights(
                    freeze_in_store(stack), samples, trained, loss=loss, residency=residency
                )
            )
        (resident, first), (stream, second) = found
        assert_same(resident, stream)
        assert (first.loss, first.accuracy) == (second.loss, second.accuracy)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("trained", [(0,), (0, 5), (2,), (2, 5), (5,)])
def test_streaming_a_language_model_gives_the_bits_of_all_at_once(array_samples, tied, trained):
    found = []
    for residency in ("resident", "stream"):
        stack, samples = language_model(array_samples, tied=tied)
        weights, _ = trained_weights(freeze_in_store(stack), samples, trained, residency=residency)
        found.append(weights)
    assert_same(*found)


def test_one_pass_streams_to_the_same_weights_up_to_rounding(array_samples):
    # Without a cache the prefix runs on shuffled batches; streaming runs it in the rows' order.
    found = []
    for residency in ("resident", "stream"):
        stack, samples = language_model(array_samples)
        weights, _ = trained_weights(stack, samples, (2, 5), residency=residency, epochs=1)
        found.append(weights)
    assert_same(*found, tolerance=1e-6)


def test_streaming_with_drawn_pictures_gives_the_same_bits(registered):
    augmentation = AugmentationConfig(flip=True, crop=1, variants=2)
    found = []
    for residency in ("resident", "stream"):
        stack, samples = registered("vgg11")
        weights, _ = trained_weights(
            stack, samples, (4, 9), residency=residency, epochs=3, augmentation=augmentation
        )
        found.append(weights)
    assert_same(*found)


def test_after_a_visit_frozen_blocks_have_what_arrived_with_them(array_samples):
    for options in ({"residency": "stream"}, {"frozen_dtype": "bfloat16"}):
        stack, samples = language_model(array_samples)
        before = {(i, n): t for i in range(len(stack)) for n, t in stack.tensors(i).items()}
        trained_weights(freeze_in_store(stack), samples, (2,), **options)
        assert stack.runs == {}
        for (block, name), tensor in before.items():
            now = stack.tensors(block)[name]
            assert now.dtype == torch.float32
            assert torch.equal(now, tensor) == (block != 2)


def test_at_most_the_block_at_work_and_those_it_reads_are_in_memory(array_samples):
    stack, samples = language_model(array_samples)
    seen = {}

    def look(block):
        def hook(module, args):
            here = [i for i in range(len(stack)) if not next(stack.blocks[i].parameters()).is_meta]
            seen.setdefault(block, set()).add(tuple(here))

        return hook

    for index, block in enumerate(stack.blocks):
        block.register_forward_pre_hook(look(index))
    trained_weights(stack, samples, (2,), residency="stream")
    # Block 2 is the span; the head reads the embedding.
    assert seen == {0: {(0, 2)}, 1: {(1, 2)}, 2: {(2,)}, 3: {(2, 3)}, 4: {(2, 4)}, 5: {(0, 2, 5)}}


def test_a_frozen_block_before_the_span_is_brought_in_once_a_visit(array_samples, monkeypatch):
    stack, samples = language_model(array_samples)
    brought = []
    fetch = FrozenBlocks._bring_in
    monkeypatch.setattr(
        FrozenBlocks, "_bring_in", lambda own, block: brought.append(block) or fetch(own, block)
    )
    trained_weights(stack, samples, (3,), residency="stream", epochs=2)
    steps = 6
    assert [brought.count(one) for one in (1, 2)] == [1, 1]
    # The last layer and the head, forward and backward; the embedding with the head, and once.
    assert [brought.count(one) for one in (0, 4, 5)] == [1 + 2 * steps, 2 * steps, 2 * steps]


class Wide(nn.Module):
    """A block whose weights outweigh its activations."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(64, 4096)
        self.down = nn.Linear(4096, 64)

    def forward(self, x):
        return x + self.down(self.up(x))


def wide_visit(random_samples, **training):
    torch.manual_seed(0)
    blocks = [("first", nn.Linear(8, 64)), *((f"wide{i}", Wide()) for i in range(6))]
    stack = BlockStack([*blocks, ("last", nn.Linear(64, 4))])
    samples = random_samples(8, (8,))
    return lambda: trained_weights(stack, samples, (3, 7), **training)


def test_streaming_needs_less_memory_than_casts_of_all_frozen_blocks(random_samples):
    block = 2 * 2 * 64 * 4096
    resident, stream = (
        peak_bytes(wide_visit(random_samples, frozen_dtype="bfloat16", residency=one))
        for one in ("resident", "stream")
    )
    # Five frozen wide blocks in bfloat16, of which one at a time is enough.
    assert resident - stream >= 3.9 * block


def test_streaming_takes_no_copies_where_the_dtype_is_the_models(random_samples):
    block = 4 * 2 * 64 * 4096
    stream = peak_bytes(wide_visit(random_samples, residency="stream"))
    # The span's weights, gradients, momentum and a step's own; activations are small beside them.
    assert stream < 4.2 * block


def test_bfloat16_blocks_compute_in_it_and_trained_ones_in_their_own(array_samples):
    stack, samples = language_model(array_samples)
    seen = {}
    for index, block in enumerate(stack.blocks):
        block.register_forward_hook(
            lambda module, args, y, index=index: seen.setdefault(index, set()).add(
                (args[0].dtype, y.dtype)
            )
        )
    weights, outcome = trained_weights(stack, samples, (2,), frozen_dtype="bfloat16")
    half, single = torch.bfloat16, torch.float32
    assert seen == {
        0: {(torch.int64, half)},
        **{block: {(half, half)} for block in (1, 3, 4, 5)},
        2: {(single, single)},
    }
    assert all(one.dtype == single for one in weights.values())
    assert outcome.finite


@pytest.mark.parametrize("residency", ["resident", "stream"])
@pytest.mark.parametrize("trained", [(0,), (0, 5), (2, 5), (3,)])
def test_bfloat16_blocks_train_to_nearly_the_same_weights(array_samples, residency, trained):
    changes = []
    for dtype in ("model", "bfloat16"):
        stack, samples = language_model(array_samples)
        before = torch.cat(
            [one.flatten().clone() for i in trained for one in stack.tensors(i).values()]
        )
        weights, _ = trained_weights(
            stack, samples, trained, residency=residency, frozen_dtype=dtype
        )
        changes.append(torch.cat([one.flatten() for one in weights.values()]) - before)
    full, half = changes
    assert torch.cosine_similarity(full, half, dim=0) > 0.98


@pytest.mark.parametrize("name", model_names())
def test_every_network_trains_with_bfloat16_blocks(registered, name):
    for residency in ("resident", "stream"):
        stack, samples = registered(name)
        middle = len(stack) // 2
        _, outcome = trained_weights(
            stack, samples, (middle,), residency=residency, frozen_dtype="bfloat16"
        )
        assert outcome.finite
        assert outcome.loss < 10


def test_streaming_bfloat16_gives_the_bits_of_resident_bfloat16(array_samples):
    found = []
    for residency in ("resident", "stream"):
        stack, samples = language_model(array_samples)
        weights, _ = trained_weights(
            stack, samples, (2, 5), residency=residency, frozen_dtype="bfloat16"
        )
        found.append(weights)
    assert_same(*found)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("distillation", [0.0, 0.4])
def test_parts_of_a_batch_take_the_batchs_step(array_samples, size, distillation):
    loss = LossConfig(logit_adjustment=0.0, distillation=distillation, proximal=0.1)
    found = []
    for micro in (None, size):
        stack, samples = language_model(array_samples)
        found.append(
            trained_weights(stack, samples, (2, 5), loss=loss, micro_batch=micro, batch_size=6)
        )
    (whole, one), (parts, other) = found
    assert_same(whole, parts, tolerance=2e-6)
    assert other.loss == pytest.approx(one.loss, rel=1e-3)
    assert (other.samples, other.steps, other.accuracy) == (one.samples, one.steps, one.accuracy)


@pytest.mark.parametrize("name", ["mlp", "vgg11"])
def test_parts_of_a_batch_of_classes_take_the_batchs_step(registered, name):
    found = []
    for micro in (None, 3):
        stack, samples = registered(name)
        last = len(stack) - 1
        weights, _ = trained_weights(stack, samples, (last,), micro_batch=micro, batch_size=8)
        found.append(weights)
    assert_same(*found, tolerance=2e-6)


def test_parts_need_less_memory(array_samples):
    peaks = []
    for micro in (None, 2):
        stack, samples = language_model(array_samples, rows=32)
        peaks.append(
            peak_bytes(
                lambda stack=stack, samples=samples, micro=micro: trained_weights(
                    stack, samples, (1,), micro_batch=micro, batch_size=32
                )
            )
        )
    assert peaks[1] < 0.5 * peaks[0]


def test_a_part_in_which_nothing_counts_changes_nothing(array_samples):
    found = []
    for micro in (None, 1):
        stack, samples = language_model(array_samples)
        samples.targets[::2] = -100
        weights, outcome = trained_weights(stack, samples, (2,), micro_batch=micro)
        assert outcome.finite
        found.append(weights)
    assert_same(*found, tolerance=2e-6)
