"""Augmentation: named seeds decide per row and epoch, whatever batch a row is in."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import AugmentationConfig, LossConfig, TrainingConfig
from ray_snake.engine.augment import Augmentation
from ray_snake.engine.objective import Objective
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit, visit_batches

ROWS = 12
PICTURES = torch.arange(ROWS * 2 * 5 * 4, dtype=torch.float32).reshape(ROWS, 2, 5, 4) + 1


def make(passes=3, seed=7, **values):
    return Augmentation(AugmentationConfig(**values), rows=ROWS, passes=passes, seed=seed)


def changed(augment, rows, draw=0):
    rows = np.asarray(rows, dtype=np.int64)
    return augment(PICTURES[torch.from_numpy(rows)], rows, draw)


@given(
    rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=8),
    crop=st.integers(0, 3),
    flip=st.booleans(),
    draw=st.integers(0, 2),
)
def test_a_row_becomes_the_same_in_every_batch(rows, crop, flip, draw):
    augment = make(crop=crop, flip=flip)
    together = changed(augment, rows, draw)
    alone = torch.cat([changed(make(crop=crop, flip=flip), [row], draw) for row in rows])
    assert torch.equal(together, alone)


@given(crop=st.integers(1, 3), row=st.integers(0, ROWS - 1), draw=st.integers(0, 2))
def test_a_crop_is_a_part_of_the_padded_picture(crop, row, draw):
    found = changed(make(crop=crop), [row], draw)[0]
    padded = torch.nn.functional.pad(PICTURES[row], (crop,) * 4)
    parts = [
        padded[:, down : down + 5, right : right + 4]
        for down in range(2 * crop + 1)
        for right in range(2 * crop + 1)
    ]
    assert any(torch.equal(found, part) for part in parts)


def test_some_pictures_are_mirrored_and_others_are_not():
    found = changed(make(flip=True), range(ROWS))
    mirrored = [
        torch.equal(one, before.flip(-1)) for one, before in zip(found, PICTURES, strict=True)
    ]
    kept = [torch.equal(one, before) for one, before in zip(found, PICTURES, strict=True)]
    assert any(mirrored)
    assert any(kept)
    assert all(one or other for one, other in zip(mirrored, kept, strict=True))


def test_draws_and_seeds_differ():
    rows = range(ROWS)
    first = changed(make(crop=2, flip=True), rows)
    assert not torch.equal(first, changed(make(crop=2, flip=True), rows, draw=1))
    assert not torch.equal(first, changed(make(crop=2, flip=True, seed=8), rows))
    assert torch.equal(first, changed(make(crop=2, flip=True), rows))


@pytest.mark.parametrize(
    ("values", "passes", "draws"),
    [
        ({}, 5, 1),
        ({"variants": 3}, 5, 1),
        ({"flip": True}, 5, 5),
        ({"flip": True, "variants": 3}, 5, 3),
        ({"crop": 1, "variants": 3}, 2, 2),
    ],
)
def test_there_are_as_many_draws_as_the_visit_can_use(values, passes, draws):
    assert make(passes=passes, **values).draws == draws


class Pictures:
    def __init__(self):
        self.asked = 0

    def __len__(self):
        return ROWS

    def batch(self, rows):
        self.asked += len(rows)
        return PICTURES.numpy()[rows] / 100, rows % 2


def visit(trained, *, distillation=0.3, epochs=4, **augmentation):
    torch.manual_seed(0)
    stack = BlockStack.cut(
        torch.nn.Sequential(
            torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(18, 2)
        )
    )
    samples = Pictures()
    train_visit(
        stack,
        samples,
        trained=trained,
        learning_rate=0.1,
        seed=3,
        training=TrainingConfig(batch_size=4, epochs=epochs),
        objective=Objective(LossConfig(logit_adjustment=0.0, distillation=distillation)),
        augmentation=AugmentationConfig(**augmentation),
    )
    return samples, torch.cat([one.flatten() for one in stack.parameters()])


def test_the_prefix_is_computed_once_for_each_draw():
    samples, _ = visit((1,), flip=True, crop=1, variants=2)
    assert samples.asked == 2 * ROWS
    samples, _ = visit((1,))
    assert samples.asked == ROWS


def test_steps_on_a_kept_prefix_are_those_on_fresh_pictures():
    _, kept = visit((1,), distillation=0.0, flip=True, crop=1, variants=2)
    torch.manual_seed(0)
    convolution, head = torch.nn.Conv2d(2, 3, 3), torch.nn.Linear(18, 2)
    training = TrainingConfig(batch_size=4, epochs=4)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=0.1, momentum=training.momentum, weight_decay=training.weight_decay
    )
    augment = make(passes=4, seed=3, flip=True, crop=1, variants=2)
    for epoch, rows in visit_batches(ROWS, training, 3):
        with torch.no_grad():
            pictures = augment(PICTURES[torch.from_numpy(rows)] / 100, rows, epoch % 2)
            features = convolution(pictures).relu().flatten(1)
        loss = torch.nn.functional.cross_entropy(head(features), torch.from_numpy(rows % 2))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), training.clip_norm)
        optimizer.step()
    expected = [convolution.weight, convolution.bias, head.weight, head.bias]
    torch.testing.assert_close(kept, torch.cat([one.flatten() for one in expected]))


def test_augmentation_changes_what_is_learnt():
    _, plain = visit((1,))
    _, augmented = visit((1,), flip=True)
    assert not torch.equal(plain, augmented)
