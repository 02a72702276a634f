"""A network that is cut in two trains as a whole one does."""

import copy

import pytest
import torch
from torch import nn

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.objective import Objective
from ray_snake.engine.split import BackTrainer, train_front
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import VisitControl, VisitStoppedError, train_visit

SEED = 5
RATE = 0.05
PLAIN = LossConfig(distillation=0.0)
TRAINING = TrainingConfig(batch_size=5, epochs=2, clip_norm=None)


def objective(samples):
    counts = torch.bincount(torch.from_numpy(samples.targets), minlength=4)
    return Objective(PLAIN, label_counts=counts)


def whole(stack, samples, training):
    trained = tuple(range(len(stack)))
    return train_visit(
        stack,
        samples,
        trained=trained,
        learning_rate=RATE,
        seed=SEED,
        training=training,
        objective=objective(samples),
        measure_update=True,
    )


def split(stack, samples, training, cut, *, seen=None, **options):
    """Train both sides; each sees only a stack of which the other's blocks are not loaded."""
    front, rear = copy.deepcopy(stack), copy.deepcopy(stack)
    for block in range(len(stack)):
        (rear if block < cut else front).unload(block)
    back = BackTrainer(
        rear,
        cut=cut,
        learning_rate=RATE,
        seed=SEED,
        training=training,
        objective=objective(samples),
        measure_update=True,
    )

    def exchange(features, targets):
        reply = back.step(features, targets)
        if seen is not None:
            seen.append((features, targets, reply))
        return reply

    outcome = train_front(
        front,
        samples,
        cut=cut,
        exchange=exchange,
        learning_rate=RATE,
        seed=SEED,
        training=training,
        measure_update=True,
        **options,
    )
    tensors = [(front if b < cut else rear).tensors(b) for b in range(len(stack))]
    return outcome, back.result(), tensors


def differing(stack, tensors):
    return [
        (block, name)
        for block, own in enumerate(tensors)
        for name, tensor in own.items()
        if not torch.equal(tensor, stack.tensors(block)[name])
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "vgg11", "resnet18"])
def test_both_sides_together_give_the_bits_of_the_whole(model, optimizer, registered):
    stack, samples = registered(model)
    training = TRAINING.model_copy(update={"optimizer": optimizer})
    for cut in {1, len(stack) // 2, len(stack) - 1}:
        together = copy.deepcopy(stack)
        expected = whole(together, samples, training)
        outcome, (finite, change), tensors = split(stack, samples, training, cut)
        assert differing(together, tensors) == []
        assert differing(stack, tensors) != []
        for name in ("samples", "steps", "loss", "first_loss", "accuracy", "finite"):
            assert getattr(outcome, name) == getattr(expected, name)
        assert finite
        assert (outcome.update_norm**2 + change**2) ** 0.5 == pytest.approx(expected.update_norm)


def test_arriving_weights_are_not_written_to(registered):
    stack, samples = registered("cnn")
    before = copy.deepcopy(stack)
    split(stack, samples, TRAINING, 2)
    assert differing(before, [stack.tensors(block) for block in range(len(stack))]) == []


def test_each_side_clips_by_its_own_norm(registered):
    stack, samples = registered("mlp")
    training = TrainingConfig(
        batch_size=64, steps=1, clip_norm=0.01, momentum=0.0, weight_decay=0.0
    )
    outcome, (_, change), _ = split(stack, samples, training, 1)
    assert outcome.update_norm == pytest.approx(RATE * 0.01, rel=1e-3)
    assert change == pytest.approx(RATE * 0.01, rel=1e-3)


def test_every_byte_that_is_exchanged_counts(registered):
    stack, samples = registered("mlp")
    seen = []
    outcome, _, _ = split(stack, samples, TRAINING, 1, seen=seen)
    assert len(seen) == outcome.steps
    values = sum(features.numel() for features, _, _ in seen)
    rows = sum(len(targets) for _, targets, _ in seen)
    assert outcome.sent_bytes == 4 * values + 8 * rows
    assert outcome.received_bytes == 4 * values
    assert outcome.samples == rows


def test_a_back_that_works_in_place_on_read_only_features(random_samples):
    torch.manual_seed(1)
    blocks = [
        nn.Sequential(nn.Flatten(), nn.Linear(4, 6)),
        nn.Sequential(nn.ReLU(True), nn.Linear(6, 4)),
    ]
    stack = BlockStack.cut(blocks)
    samples = random_samples(20, (4,))
    together = copy.deepcopy(stack)
    whole(together, samples, TRAINING)
    seen = []
    _, _, tensors = split(stack, samples, TRAINING, 1, seen=seen)
    assert differing(together, tensors) == []
    assert min(float(features.min()) for features, _, _ in seen) < 0


class Noise(nn.Dropout):
    """Dropout that notes what it let through."""

    def __init__(self, masks):
        super().__init__(0.5)
        self.masks = masks

    def __deepcopy__(self, memo):
        return Noise(self.masks)

    def forward(self, x):
        kept = super().forward(torch.ones_like(x))
        self.masks.append(kept)
        return x * kept


def test_what_layers_draw_comes_from_the_visits_seed_and_differs_between_the_sides(random_samples):
    masks = []
    torch.manual_seed(1)
    stack = BlockStack.cut(
        [
            nn.Sequential(nn.Linear(4, 6), Noise(masks)),
            nn.Sequential(nn.Linear(6, 6), Noise(masks), nn.Linear(6, 4)),
        ]
    )
    samples = random_samples(20, (4,))
    _, _, first = split(stack, samples, TRAINING, 1)
    assert len({tuple(one.flatten().tolist()) for one in masks}) == len(masks)
    torch.rand(7)
    _, _, second = split(stack, samples, TRAINING, 1)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(first, second, strict=True) for n in a)


def test_a_front_that_is_told_to_stop_stops(registered):
    stack, samples = registered("mlp")
    control = VisitControl()
    control.stop.set()
    with pytest.raises(VisitStoppedError):
        split(stack, samples, TRAINING, 1, control=control)


def test_a_side_that_diverged_says_so(registered):
    stack, samples = registered("mlp")
    with torch.no_grad():
        stack.blocks[len(stack) - 1][-1].weight.fill_(float("inf"))
    outcome, (finite, change), _ = split(stack, samples, TRAINING, 1)
    assert not finite
    assert change == float("inf")
    assert not outcome.finite
