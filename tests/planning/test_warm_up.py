"""Warm-up visits, and spans that the settings name block by block."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import SnakeConfig, TrainingConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.snake import Snake
from ray_snake.planning.strategy import make_strategy

NODES = 4
BLOCKS = 6


def make(*, nodes=NODES, blocks=BLOCKS, training=None, **snake):
    config = SnakeConfig.from_tree(
        {"snake": {"span_width": 2, "trips": 6, **snake}, "training": training or {}}
    )
    return Snake(config, nodes=nodes, blocks=blocks)


def drain(strategy):
    return list(iter(strategy.next, None))


def whole_trip(visits, trip):
    return {len(one.trained) == BLOCKS for one in visits if one.trip == trip} == {True}


def by_node(visits, nodes):
    return [[one.trained for one in visits if one.node == node] for node in range(nodes)]


def test_the_first_trips_train_the_whole_model():
    visits = drain(make(warmup_trips=2))
    whole = [visit.trip for visit in visits if len(visit.trained) == BLOCKS]
    assert whole == [1] * NODES + [2] * NODES


def test_nodes_that_can_not_train_it_whole_train_spans_meanwhile():
    visits = drain(make(warmup_trips=2, warmup_nodes=[1, 3]))
    early = {visit.node for visit in visits if visit.trip <= 2 and len(visit.trained) == BLOCKS}
    assert early == {1, 3}
    assert all(len(visit.trained) <= 3 for visit in visits if visit.node in (0, 2))


@given(
    warmup=st.integers(0, 4),
    order=st.sampled_from(["span_major", "diagonal"]),
    nodes=st.integers(1, 6),
)
def test_after_the_warm_up_the_walk_is_that_of_a_run_without(warmup, order, nodes):
    # An odd number of trips would turn the direction in which nodes are crossed.
    warmup *= 2
    warmed = drain(make(nodes=nodes, order=order, warmup_trips=warmup, trips=warmup + 5))
    plain = drain(make(nodes=nodes, order=order, trips=5))
    assert [(one.node, one.span, one.trained) for one in warmed[warmup * nodes :]] == [
        (one.node, one.span, one.trained) for one in plain
    ]


def test_the_whole_model_trains_at_a_rate_of_its_own():
    strategy = make(
        warmup_trips=1,
        warmup_rate=0.5,
        warmup_nodes=[0],
        training={"learning_rate": 0.1, "schedule": "constant"},
    )
    rates = {visit.number: strategy.learning_rate(visit) for visit in drain(strategy)}
    assert rates == {number: 0.05 if number == 1 else 0.1 for number in rates}
    assert TrainingConfig().learning_rate > 0


def test_warm_up_visits_are_what_only_some_nodes_can_do():
    strategy = make(warmup_trips=1, warmup_nodes=[2])
    assert [visit.node for visit in drain(strategy) if strategy.is_warm_up(visit)] == [2]


def test_whole_trips_recur_after_the_warm_up():
    visits = drain(make(warmup_trips=1, whole_every=3, trips=8))
    assert [whole_trip(visits, trip) for trip in range(1, 9)] == [
        *(True, False, False, True),
        *(False, False, True, False),
    ]


def test_whole_trips_recur_without_a_warm_up():
    visits = drain(make(whole_every=2, trips=4))
    assert [whole_trip(visits, trip) for trip in range(1, 5)] == [False, True, False, True]


@given(
    warmup=st.integers(0, 2),
    every=st.integers(2, 4),
    order=st.sampled_from(["span_major", "diagonal"]),
    nodes=st.integers(1, 6),
)
def test_whole_trips_leave_the_walk_over_the_spans_as_it_was(warmup, every, order, nodes):
    whole = drain(make(nodes=nodes, order=order, warmup_trips=warmup, whole_every=every, trips=9))
    spans = [one for one in whole if len(one.trained) < BLOCKS]
    plain = drain(make(nodes=nodes, order=order, trips=len(spans) // nodes))
    # By node: whole trips turn the direction in which nodes are crossed.
    if order == "span_major":
        assert by_node(spans, nodes) == by_node(plain, nodes)
    for node in range(nodes):
        counts = Counter(one.trained for one in spans if one.node == node)
        assert not counts or max(counts.values()) - min(counts.values()) <= 1


def test_nodes_that_can_not_train_it_whole_train_spans_evenly_in_recurring_whole_trips():
    visits = drain(make(warmup_trips=1, whole_every=3, warmup_nodes=[1], trips=10))
    assert [one.trip for one in visits if len(one.trained) == BLOCKS] == [1, 4, 7, 10]
    for node in (0, 2, 3):
        own = [one.trained for one in visits if one.node == node]
        assert sorted(Counter(own).values()) == [3, 3, 4]


def test_recurring_whole_visits_are_what_only_some_nodes_can_do_at_a_rate_of_their_own():
    strategy = make(
        whole_every=2,
        warmup_rate=0.5,
        warmup_nodes=[0],
        trips=2,
        training={"learning_rate": 0.1, "schedule": "constant"},
    )
    visits = drain(strategy)
    (whole,) = [one for one in visits if strategy.is_warm_up(one)]
    assert (whole.trip, whole.node) == (2, 0)
    assert strategy.learning_rate(whole) == 0.05


def test_the_whole_model_has_a_weight_of_distillation_of_its_own():
    strategy = make(whole_every=2, warmup_nodes=[0], warmup_distillation=0.4, trips=2)
    weights = {visit.number: strategy.distillation(visit) for visit in drain(strategy)}
    # The second trip goes back: node 0 comes last.
    assert weights == {number: 0.4 if number == 2 * NODES else None for number in weights}
    plain = make(warmup_trips=1, trips=1)
    assert {plain.distillation(visit) for visit in drain(plain)} == {None}


@pytest.mark.parametrize("strategy", ["snake", "cyclic"])
def test_every_node_waits_equally_long_where_the_snake_does_not_turn(strategy):
    config = SnakeConfig.from_tree(
        {"strategy": strategy, "snake": {"trips": 4, "turns": False, "whole_every": 2}}
    )
    visits = drain(make_strategy(config, nodes=NODES, blocks=BLOCKS))
    assert [one.node for one in visits] == [*range(NODES)] * 4


def test_a_node_that_joins_trains_the_whole_model_in_whole_trips_too():
    strategy = make(whole_every=2, trips=4)
    visits = [strategy.next() for _ in range(NODES)]
    assert strategy.join(8) == NODES
    visits += drain(strategy)
    whole = [(one.trip, one.node) for one in visits if len(one.trained) == BLOCKS]
    assert sorted(whole) == [(trip, node) for trip in (2, 4) for node in range(NODES + 1)]


def test_every_trip_whole_is_no_snake():
    with pytest.raises(ConfigError, match=r"snake\.whole_every"):
        make(whole_every=1)


def test_a_refused_warm_up_visit_leaves_the_coverage_alone():
    strategy = make(warmup_trips=1)
    strategy.refused(strategy.next())
    assert strategy.coverage.counts(0) == (0, 0, 0)


def test_a_warm_up_node_that_is_not_there_is_refused():
    with pytest.raises(ConfigError) as caught:
        make(warmup_nodes=[0, 4])
    assert str(caught.value) == (
        "snake.warmup_nodes: there is no node 4 of 4; use numbers from 0 to 3"
    )


def test_spans_are_those_that_the_settings_name():
    visits = drain(make(spans=[[2, 3], [1, 4]], train_last=False, trips=4))
    trained = [{visit.trained for visit in visits if visit.trip == trip} for trip in range(1, 5)]
    assert trained == [{(2, 3)}, {(1, 4)}, {(1, 4)}, {(2, 3)}]


@given(
    st.lists(
        st.sets(st.integers(0, BLOCKS - 2), min_size=1), min_size=1, max_size=5, unique_by=frozenset
    )
)
def test_every_node_trains_named_spans_equally_often(spans):
    strategy = make(spans=[sorted(one) for one in spans], trips=2 * len(spans))
    visits = drain(strategy)
    for node in range(NODES):
        own = [visit.trained for visit in visits if visit.node == node]
        expected = [tuple(sorted(one | {BLOCKS - 1})) for one in spans]
        assert sorted(own) == sorted(expected * 2)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0], [6]], "there is no block 6 in a network of 6; use numbers from 0 to 5"),
        ([[0, 0], [1]], "[0, 0] names a block twice; name each block of a span once"),
        ([[0, 1], [1, 0]], "[0, 1] stands there twice; keep one of them"),
    ],
)
def test_spans_that_do_not_fit_are_refused(spans, message):
    with pytest.raises(ConfigError) as caught:
        make(spans=spans)
    assert str(caught.value) == f"snake.spans: {message}"
