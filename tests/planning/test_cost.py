"""What a visit is predicted to cost."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.planning.cost import BlockCost, predict_visit
from ray_snake.planning.span import Span, Visit

BLOCKS = [
    BlockCost(
        name=f"block{index}",
        weight_bytes=1000 * (index + 1),
        forward_flops=10.0 * (index + 1),
        saved_bytes=100,
        input_bytes=40,
        output_bytes=8,
    )
    for index in range(4)
]

NO_TEACHER = LossConfig(distillation=0.0)


def visit(start: int, stop: int) -> Visit:
    span = Span(start, stop)
    return Visit(number=1, trip=1, node=0, span=span, trained=tuple(span.blocks()))


def predict(start: int, stop: int, *, rows: int = 64, distillation: float = 0.0, **training):
    settings = TrainingConfig(batch_size=32, **training)
    return predict_visit(
        visit(start, stop),
        BLOCKS,
        rows=rows,
        steps=settings.steps or settings.epochs * rows // 32,
        training=settings,
        loss=LossConfig(distillation=distillation),
    )


def test_a_whole_model_epoch_is_three_forward_passes_of_every_row():
    assert predict(0, 4).flops == 64 * 3 * (10 + 20 + 30 + 40)


def test_the_prefix_runs_once_where_several_epochs_share_its_cache():
    once, thrice = predict(3, 4, epochs=1), predict(3, 4, epochs=3)
    assert once.flops == 64 * (10 + 20 + 30) + 64 * 3 * 40
    assert thrice.flops == 64 * (10 + 20 + 30) + 3 * 64 * 3 * 40


def test_a_frozen_suffix_costs_its_forward_pass_twice():
    assert predict(0, 1).flops == 64 * (3 * 10 + 2 * (20 + 30 + 40))


def test_a_teacher_adds_a_forward_pass_from_the_first_trained_block():
    extra = predict(2, 3, distillation=0.5).flops - predict(2, 3).flops
    assert extra == 64 * (30 + 40)


@pytest.mark.parametrize(
    ("training", "copies"),
    [({"momentum": 0.0}, 2), ({}, 3), ({"optimizer": "adamw"}, 4)],
    ids=["plain sgd", "momentum", "adamw"],
)
def test_private_memory_holds_weights_optimizer_state_and_activations(training, copies):
    # At its most where the last block's backward pass begins: no gradients of weights yet.
    activations = 32 * (40 + 4 * 100 + 40 + 8)
    assert predict(0, 1, **training).private_bytes == (copies - 1) * 1000 + activations


def test_a_step_takes_its_loss_and_the_update_of_what_it_trains_however_many_rows():
    blocks = [
        replace(one, forward_seconds=1e-3, update_seconds=0.1 * (index + 1))
        for index, one in enumerate(BLOCKS)
    ]
    blocks[-1] = replace(blocks[-1], loss_seconds=5.0)
    seconds = {
        (start, batch): predict_visit(
            visit(start, start + 2),
            blocks,
            rows=64,
            steps=64 // batch,
            training=TrainingConfig(batch_size=batch),
            loss=NO_TEACHER,
        ).seconds
        for start in (0, 1)
        for batch in (8, 32)
    }
    # The same rows in eight steps and in two.
    assert seconds[0, 8] - seconds[0, 32] == pytest.approx(6 * (5.0 + 0.1 + 0.2))
    assert seconds[1, 8] - seconds[1, 32] == pytest.approx(6 * (5.0 + 0.2 + 0.3))


def test_a_prefix_cache_counts_until_it_goes_to_disk():
    small, on_disk = predict(1, 2, epochs=2), predict(1, 2, epochs=2, cache_bytes=0)
    assert small.private_bytes - on_disk.private_bytes == 64 * 40


def test_frozen_weights_are_shared_and_trained_ones_are_not():
    assert predict(1, 3).shared_bytes == 1000 + 4000


@given(rows=st.integers(1, 500), steps=st.integers(1, 50))
def test_steps_in_place_of_epochs_never_predict_fewer_samples_than_steps(rows, steps):
    assert predict(0, 2, rows=rows, steps=steps).samples >= steps


def test_of_a_network_that_is_cut_the_node_holds_the_front_alone():
    settings = TrainingConfig(batch_size=32)
    whole = replace(visit(0, 4), cut=None)
    front, alone = (
        predict_visit(one, BLOCKS, rows=64, steps=2, training=settings, loss=NO_TEACHER)
        for one in (replace(whole, cut=1), visit(0, 1))
    )
    # Weight, momentum and gradient; what one block keeps, and what passes through it.
    assert front.private_bytes == 3 * 1000 + 32 * (40 + 100 + 40 + 8)
    assert front.private_bytes < alone.private_bytes
    assert front.shared_bytes == 0
    everything = predict_visit(whole, BLOCKS, rows=64, steps=2, training=settings, loss=NO_TEACHER)
    assert front.flops == everything.flops


def test_a_frozen_suffix_that_runs_again_keeps_its_input_and_costs_one_more_forward_pass():
    eager, again = (predict(0, 1, suffix=one) for one in ("eager", "recompute"))
    assert again.flops == eager.flops + 64 * (20 + 30 + 40)
    # One block's activations are there while it runs again.
    assert again.private_bytes == eager.private_bytes - 32 * (3 * (100 - 40) - 100)


def test_a_lean_suffix_keeps_and_does_again_what_was_measured():
    lean = {"lean_bytes": 5, "lean_flops": 0.0}
    blocks = [replace(one, **lean, forward_seconds=1.0) for one in BLOCKS]
    # Half of the last block's forward pass runs again.
    blocks[3] = replace(blocks[3], lean_flops=20.0)
    predicted = {}
    for suffix in ("eager", "lean"):
        training = TrainingConfig(batch_size=32, suffix=suffix)
        predicted[suffix] = predict_visit(
            visit(0, 1), blocks, rows=64, steps=2, training=training, loss=NO_TEACHER
        )
    assert predicted["lean"].flops - predicted["eager"].flops == 64 * 20
    assert predicted["lean"].seconds - predicted["eager"].seconds == 64 * 0.5
    saved = predicted["eager"].private_bytes - predicted["lean"].private_bytes
    # What a lean block needs for the moment is all that an eager one keeps.
    assert saved == 32 * (3 * (100 - 5) - 100 + 40 + 8)


def test_trained_blocks_cost_the_same_with_every_suffix():
    costs = {predict(0, 4, suffix=one) for one in ("eager", "recompute", "lean")}
    assert len(costs) == 1
