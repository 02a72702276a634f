"""The predicted peak of a visit, and how a node trains so that it fits."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import LossConfig, SnakeConfig, TrainingConfig
from ray_snake.planning.blocks import BlockCost
from ray_snake.planning.cost import predict_visit
from ray_snake.planning.fit import fit_visits, ways_to_train
from ray_snake.planning.memory import (
    LOSS_COPIES,
    SCORES_AT_ONCE,
    positions_at_once,
    rows_at_once,
    wide_positions,
)
from ray_snake.planning.span import Span, Visit

NO_TEACHER = LossConfig(distillation=0.0)
ROWS = 64
SIZES = st.integers(0, 5000)


@st.composite
def networks(draw):
    """Blocks whose inputs are what the one before puts out."""
    widths = draw(st.lists(st.integers(1, 400), min_size=3, max_size=8))
    return [
        BlockCost(
            name=f"block{index}",
            weight_bytes=draw(SIZES),
            forward_flops=1.0,
            saved_bytes=draw(SIZES),
            input_bytes=before,
            output_bytes=after,
        )
        for index, (before, after) in enumerate(pairwise(widths))
    ]


def span_visit(start, blocks, *, last=True):
    trained = {start, len(blocks) - 1} if last else {start}
    return Visit(
        number=1, trip=1, node=0, span=Span(start, start + 1), trained=tuple(sorted(trained))
    )


def peak(blocks, start, *, rows=ROWS, loss=NO_TEACHER, last=True, **training):
    settings = TrainingConfig(**{"batch_size": 32, "cache_bytes": 0, **training})
    return predict_visit(
        span_visit(start, blocks, last=last),
        blocks,
        rows=rows,
        steps=4,
        training=settings,
        loss=loss,
    ).private_bytes


def starts(blocks):
    return st.integers(0, len(blocks) - 1)


@given(blocks=networks(), data=st.data())
def test_smaller_parts_of_a_batch_never_take_more(blocks, data):
    start = data.draw(starts(blocks))
    sizes = (16, 8, 4, 2, 1)
    peaks = [peak(blocks, start, micro_batch=size) for size in sizes]
    assert peaks == sorted(peaks, reverse=True)


@given(blocks=networks(), data=st.data())
def test_streaming_never_takes_more_than_all_at_once_in_another_precision(blocks, data):
    start = data.draw(starts(blocks))
    resident, stream = (
        peak(blocks, start, frozen_dtype="bfloat16", suffix="recompute", residency=one)
        for one in ("resident", "stream")
    )
    assert stream <= resident


@given(blocks=networks(), data=st.data(), factor=st.integers(2, 9))
def test_weights_that_stay_views_of_the_store_cost_nothing(blocks, data, factor):
    start = data.draw(starts(blocks))
    heavier = [
        one
        if index in (start, len(blocks) - 1)
        else replace(one, weight_bytes=factor * one.weight_bytes)
        for index, one in enumerate(blocks)
    ]
    for residency in ("resident", "stream"):
        assert peak(heavier, start, residency=residency) == peak(blocks, start, residency=residency)


@given(blocks=networks(), data=st.data())
def test_longer_sequences_take_more_but_not_more_than_in_proportion(blocks, data):
    start = data.draw(starts(blocks))
    longer = [
        replace(
            one,
            saved_bytes=2 * one.saved_bytes,
            input_bytes=2 * one.input_bytes,
            output_bytes=2 * one.output_bytes,
        )
        for one in blocks
    ]
    for options in ({}, {"residency": "stream", "frozen_dtype": "bfloat16", "micro_batch": 4}):
        short, long = peak(blocks, start, **options), peak(longer, start, **options)
        assert short <= long <= 2 * short + 1


@given(blocks=networks(), data=st.data())
def test_trained_weights_count_with_gradient_and_state(blocks, data):
    start = data.draw(starts(blocks))
    trained = {start, len(blocks) - 1}
    weights = sum(blocks[one].weight_bytes for one in trained)
    assert peak(blocks, start, optimizer="adamw") >= 4 * weights


def test_copies_of_frozen_blocks_count_all_at_once_or_the_largest_alone():
    blocks = [
        BlockCost(
            name=f"block{index}",
            weight_bytes=1_000_000 * (index + 1),
            forward_flops=1.0,
            saved_bytes=0,
            input_bytes=1,
            output_bytes=1,
        )
        for index in range(5)
    ]
    blocks[4] = replace(blocks[4], weight_bytes=0)
    kept, resident, stream = (
        peak(blocks, 1, **options)
        for options in (
            {},
            {"frozen_dtype": "bfloat16"},
            {"frozen_dtype": "bfloat16", "residency": "stream"},
        )
    )
    # Half of blocks 0, 2 and 3.
    assert resident - kept == pytest.approx(500_000 * (1 + 3 + 4), rel=1e-3)
    # Of block 3 when its turn is in the backward pass: the weights' state is there, no gradient.
    state = 2 * 2_000_000
    assert stream == pytest.approx(max(kept, state + 2_000_000), rel=1e-3)


def test_a_head_that_reads_a_frozen_embedding_holds_its_copy_over_the_loss():
    blocks = [
        BlockCost(
            name=name,
            weight_bytes=weights,
            forward_flops=1.0,
            saved_bytes=0,
            input_bytes=100,
            output_bytes=outputs,
            reads=reads,
        )
        for name, weights, outputs, reads in (
            ("embedding", 1_000_000, 100, ()),
            ("layer", 0, 100, ()),
            ("head", 0, 10_000, (0,)),
        )
    ]
    options = {"frozen_dtype": "bfloat16", "residency": "stream", "batch_size": 1}
    assert peak(blocks, 1, **options) >= 500_000 + 3 * 10_000
    assert peak(blocks, 1, residency="stream", batch_size=1) < 100_000


def language_model(tokens, positions, width=80):
    """An embedding, a layer, and a head with a weight of its own; the layer keeps nothing."""
    features = 4 * positions * width
    return [
        BlockCost(
            name=name,
            weight_bytes=weights,
            forward_flops=1.0,
            saved_bytes=0,
            input_bytes=inputs,
            output_bytes=outputs,
            position_scores=scores,
        )
        for name, weights, inputs, outputs, scores in (
            ("embedding", 4 * tokens * width, 8 * positions, features, 0),
            ("layer", 400, features, features, 0),
            ("head", 4 * tokens * width, features, 4 * positions * tokens, tokens),
        )
    ]


def test_wide_scores_count_for_the_positions_that_are_made_at_once():
    tokens = SCORES_AT_ONCE // 20
    wide = language_model(tokens, positions=100)
    assert wide_positions(wide[-1], 1) == positions_at_once(width=80, scores=tokens) == 20
    plain = [replace(one, position_scores=0) for one in wide]
    visit = {"batch_size": 1, "last": False}
    whole, pieces = (peak(one, 1, **visit) for one in (plain, wide))
    features = 4 * 80
    # The head's input and its gradient stay meanwhile, and some of the input is there once more.
    saved = LOSS_COPIES * 4 * tokens * (100 - 20)
    assert whole - pieces == saved - (2 * 100 + 20) * features


def test_a_frozen_head_of_wide_scores_does_not_run_again():
    wide = language_model(tokens=SCORES_AT_ONCE // 20, positions=100)
    plain = [replace(one, position_scores=0) for one in wide]
    settings = TrainingConfig(batch_size=1, suffix="recompute")
    visit = Visit(number=1, trip=1, node=0, span=Span(1, 2), trained=(1,))

    def flops(blocks):
        return predict_visit(
            visit, blocks, rows=1, steps=1, training=settings, loss=NO_TEACHER
        ).flops

    assert flops(plain) - flops(wide) == 1


@given(rows=st.integers(1, 40), tokens=st.integers(1, 300_000), positions=st.integers(1, 300))
def test_scores_are_wide_where_there_are_more_positions_than_at_once(rows, tokens, positions):
    head = language_model(tokens, positions)[-1]
    at_once = positions_at_once(width=80, scores=tokens)
    assert wide_positions(head, rows) == (at_once if rows * positions > at_once else 0)


@given(batch=st.integers(1, 70), rows=st.integers(1, 90), size=st.integers(1, 80))
def test_a_batch_goes_in_parts_that_hold_all_of_it(batch, rows, size):
    at_once, parts = rows_at_once(TrainingConfig(batch_size=batch, micro_batch=size), rows)
    whole = min(batch, rows)
    assert at_once <= min(size, whole)
    assert (parts - 1) * at_once < whole <= parts * at_once


def fit(blocks, limit, **training):
    settings = TrainingConfig(**{"batch_size": 32, "micro_batch": "auto", **training})
    config = SnakeConfig(training=settings, loss=NO_TEACHER)
    visits = [span_visit(start, blocks) for start in range(len(blocks))]
    return fit_visits(visits, blocks, rows=ROWS, limit=limit, config=config), visits


@given(blocks=networks(), limit=st.integers(1, 600_000))
def test_what_is_said_to_fit_fits_and_else_it_is_said_by_how_much_not(blocks, limit):
    found, visits = fit(blocks, limit, frozen_dtype="bfloat16")
    peaks = [
        predict_visit(
            one, blocks, rows=ROWS, steps=2, training=found.training, loss=NO_TEACHER
        ).private_bytes
        for one in visits
    ]
    assert found.private_bytes == max(peaks)
    assert found.lacking_bytes == max(0, max(peaks) - limit)
    if found.lacking_bytes:
        least = min(
            fit(blocks, None, **dict(one))[0].private_bytes
            for one in ways_to_train(
                TrainingConfig(batch_size=32, micro_batch="auto", frozen_dtype="bfloat16"), ROWS
            )
        )
        assert found.private_bytes <= least


@given(blocks=networks())
def test_a_node_without_a_limit_trains_whole_batches_all_at_once(blocks):
    found, _ = fit(blocks, None)
    assert (found.training.micro_batch, found.training.residency) == (32, "resident")


def test_fewer_rows_at_once_come_before_streaming():
    training = TrainingConfig(batch_size=4, micro_batch="auto", suffix="lean", span="eager")
    ways = list(ways_to_train(training, 64))
    tried = [(one.residency, one.micro_batch, one.cache_bytes > 0) for one in ways]
    assert tried == [
        *(("resident", size, True) for size in (4, 2, 1)),
        *(("stream", size, True) for size in (4, 2, 1)),
        *(("stream", size, False) for size in (4, 2, 1)),
    ]


def test_a_lean_suffix_and_a_span_that_runs_again_come_between_few_rows_and_one_at_a_time():
    ways = list(ways_to_train(TrainingConfig(batch_size=16, micro_batch="auto"), 64))
    resident = [one for one in ways if one.residency == "resident"]
    assert [(one.suffix, one.span, one.micro_batch) for one in resident] == [
        *(("eager", "eager", size) for size in (16, 8)),
        *(("lean", "eager", size) for size in (16, 8)),
        *(("lean", "recompute", size) for size in (16, 8, 4, 2, 1)),
    ]
    assert {one.span for one in ways if one.residency == "stream"} == {"recompute"}


def test_trained_blocks_that_run_again_keep_their_inputs_alone():
    blocks = [
        BlockCost(
            name=f"block{index}",
            weight_bytes=0,
            forward_flops=10.0**index,
            saved_bytes=1000,
            input_bytes=50,
            output_bytes=50,
            reads=(0,) if index == 3 else (),
        )
        for index in range(5)
    ]
    visit = Visit(number=1, trip=1, node=0, span=Span(0, 5), trained=tuple(range(5)))
    eager, again = (
        predict_visit(
            visit,
            blocks,
            rows=1,
            steps=1,
            training=TrainingConfig(batch_size=1, span=span),
            loss=NO_TEACHER,
        )
        for span in ("eager", "recompute")
    )
    # Blocks 1 and 2 keep their inputs, block 0 what is there anyway; of the last one and of one
    # that reads another's weights all stays.
    assert eager.private_bytes - again.private_bytes == 3 * 1000 - 2 * 50
    assert again.flops - eager.flops == 1 + 10 + 100


def test_settings_that_leave_no_choice_are_tried_alone():
    training = TrainingConfig(micro_batch=2, residency="stream", span="recompute")
    assert list(ways_to_train(training, 64)) == [training]


@given(networks(), st.data())
def test_a_gpu_holds_what_is_a_view_on_the_cpu(blocks, data):
    start = data.draw(st.integers(0, len(blocks) - 1))
    visit = span_visit(start, blocks)
    frozen = [one.weight_bytes for index, one in enumerate(blocks) if index not in visit.trained]

    def beside(**training):
        cost = predict_visit(
            visit,
            blocks,
            rows=ROWS,
            steps=4,
            training=TrainingConfig(**training),
            loss=NO_TEACHER,
        )
        assert cost.peak_bytes(on_gpu=False) == cost.private_bytes
        return cost.peak_bytes(on_gpu=True) - cost.private_bytes

    largest = max(frozen, default=0)
    assert beside() == sum(frozen)
    assert beside(frozen_dtype="bfloat16") == 0
    # The one at work and the one after it.
    assert beside(residency="stream") == 2 * largest
    # The one at work is a cast, which counts on the CPU too.
    assert beside(residency="stream", frozen_dtype="bfloat16") == largest
