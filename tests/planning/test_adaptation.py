"""How visits are suited to nodes that are slower, or have less room, than others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_snake.config import AdaptationConfig, NodesConfig, SnakeConfig, SnakeSection
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.outlook import Facts, Outcome, Outlook, Ratio
from ray_snake.planning.snake import Snake

# Early blocks take longer than late ones, as in most convolutional networks.
BLOCKS = 6
COSTS = tuple(
    BlockCost(
        name=f"block{index}",
        weight_bytes=1000,
        forward_flops=1e6,
        saved_bytes=1000 * (BLOCKS - index),
        input_bytes=100,
        output_bytes=100,
        forward_seconds=1e-4 * (BLOCKS - index),
        backward_seconds=1e-4 * (BLOCKS - index),
        training_seconds=2e-4 * (BLOCKS - index),
    )
    for index in range(BLOCKS)
)


def snake(
    *, nodes=8, rows=320, trips=24, memory_bytes=0, gpus=0, adapt=True, adaptation=None, **section
):
    config = SnakeConfig(
        snake=SnakeSection(span_width=2, trips=trips, adapt=adapt, **section),
        adaptation=AdaptationConfig(**(adaptation or {})),
        nodes=NodesConfig(memory_bytes=memory_bytes, gpus=gpus),
    )
    made = Snake(config, nodes=nodes, blocks=BLOCKS)
    made.know(Facts(rows=(rows,) * nodes, costs=COSTS))
    return made


def outcome(strategy, visit, *, pace=1.0, others=0.1, late=False):
    """What a visit takes a node that computes `pace` times as long as the one that measured."""
    cost = strategy.outlook.cost(visit, visit.node)
    steps = visit.steps or strategy.outlook.full_steps(visit.node)
    seconds = pace * cost.seconds
    return Outcome(
        visit=visit, steps=steps, train_seconds=seconds, seconds=seconds + others, late=late
    )


def crawl(strategy, paces, others=None):
    """Do a whole run; return its visits."""
    visits = []
    while (visit := strategy.next()) is not None:
        visits.append(visit)
        own = 0.1 if others is None else others[visit.node]
        strategy.observe(outcome(strategy, visit, pace=paces[visit.node], others=own))
    return visits


def seconds(strategy, visits, paces):
    return sum(outcome(strategy, one, pace=paces[one.node]).seconds for one in visits)


@given(
    st.lists(st.floats(0.95, 1.05), min_size=3, max_size=3),
    st.sampled_from(["span_major", "diagonal", "random"]),
)
@settings(max_examples=20, deadline=None)
def test_equal_nodes_get_the_fixed_order(paces, order):
    fixed = crawl(snake(nodes=3, adapt=False, order=order), paces)
    assert crawl(snake(nodes=3, order=order), paces) == fixed


def test_nodes_that_differ_eight_times_take_about_as_long_as_the_middling_one():
    paces = [1.0, 1.35, 1.8, 2.4, 3.3, 4.5, 6.0, 8.0]
    suited, fixed = snake(), snake(adapt=False)
    visits, before = crawl(suited, paces), crawl(fixed, paces)
    assert seconds(suited, visits, paces) < 0.65 * seconds(fixed, before, paces)
    assert all(one.why for one in visits[8:] if one.steps is not None)


@given(st.lists(st.floats(1, 20), min_size=5, max_size=5), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_coverage_bends_no_further_than_the_settings_say(paces, least):
    made = snake(nodes=5, trips=40, adaptation={"min_coverage": least})
    counts = [Counter() for _ in range(5)]
    for visit in crawl(made, paces):
        counts[visit.node][visit.place] += 1
    fair = 40 / len(made.spans)
    for own in counts:
        assert all(own[place] >= int(least * fair) - 1 for place in range(len(made.spans)))


@given(st.lists(st.floats(0.2, 20), min_size=4, max_size=4), st.floats(0.05, 1))
@settings(max_examples=30, deadline=None)
def test_no_visit_makes_fewer_steps_than_the_settings_say(paces, least):
    made = snake(nodes=4, adaptation={"min_steps": least})
    full = made.outlook.full_steps(0)
    for visit in crawl(made, paces):
        assert visit.steps is None or round(least * full) <= max(visit.steps, 1) <= full


def test_equal_measurements_give_equal_decisions():
    paces = [1.0, 5.0, 2.0, 9.0, 1.0, 1.0, 3.0, 1.5]
    assert crawl(snake(), paces) == crawl(snake(), paces)


def test_small_changes_of_pace_change_nothing():
    made = snake(nodes=3, trips=12)
    given = []
    for number in range(36):
        visit = made.next()
        wobble = 1.08 if number % 2 else 0.93
        pace = {0: 1.0, 1: 1.0, 2: 4.0}[visit.node] * wobble
        made.observe(outcome(made, visit, pace=pace))
        if visit.node == 2:
            given.append((visit.place, visit.steps))
    # One number of steps for each place, once the pace is known: the first visit is forgotten.
    assert len(set(given[2:])) == len({place for place, _ in given[2:]})


def test_spans_that_slow_nodes_leave_behind_go_to_fast_ones():
    made = snake(nodes=4, trips=60, adaptation={"min_coverage": 0.2})
    visits = crawl(made, [1.0, 1.0, 1.0, 6.0])
    counts = [Counter(one.place for one in visits if one.node == node) for node in range(4)]
    assert counts[3][0] < counts[3][len(made.spans) - 1]
    assert counts[0][0] > counts[0][len(made.spans) - 1]
    assert any(one.why == "left behind by slow nodes" for one in visits)


def test_a_node_gets_no_span_that_it_has_no_room_for():
    # Without a limit, spans need 48,000 bytes and more for a batch's activations.
    costs = [snake().outlook.cost(one, 0).private_bytes for one in snake()._places.values()]
    assert costs[0] > costs[-1]
    limit = (costs[-1] + costs[0]) // 2
    made = snake(memory_bytes=limit)
    visits = crawl(made, [1.0] * 8)
    assert all(made.outlook.cost(one, one.node).private_bytes <= limit for one in visits)
    assert {one.why for one in visits if one.why} <= {"no room for the other span"}
    assert len(visits) == 24 * 8


def test_a_node_with_a_limit_of_its_own_gets_no_span_beyond_it():
    costs = [snake().outlook.cost(one, 0).private_bytes for one in snake()._places.values()]
    limit = (costs[-1] + costs[0]) // 2
    made = snake()
    made.know(Facts(rows=(320,) * 8, costs=COSTS, limits=(0, limit, *(0,) * 6)))
    visits = crawl(made, [1.0] * 8)
    most = [
        max(made.outlook.cost(one, one.node).private_bytes for one in visits if one.node == node)
        for node in (0, 1)
    ]
    assert most[1] <= limit < most[0]


def test_a_node_that_joins_has_its_own_limit_and_way_to_train():
    made = snake()
    parts = made.config.training.model_copy(update={"micro_batch": 4})
    limited, free, fitted = made.join(320, limit=7), made.join(320), made.join(320, training=parts)
    assert [made.outlook.room(node) for node in (limited, free, fitted)] == [7, None, None]
    visit = made.next()
    whole, in_parts = (made.outlook.cost(visit, node).private_bytes for node in (free, fitted))
    assert in_parts < whole


def test_a_heap_limit_says_nothing_of_a_gpu_whose_free_memory_counts():
    costs = [snake().outlook.cost(one, 0).device_bytes for one in snake()._places.values()]
    made = snake(memory_bytes=1, gpus=0.5)
    assert made.outlook.room(0) is None
    first = made.next()
    assert made.outlook.has_room(first, first.node)
    free = (min(costs) + max(costs)) // 2
    made.observe(replace(outcome(made, first), free_bytes=free))
    assert made.outlook.room(first.node) == free
    fits = [made.outlook.has_room(one, first.node) for one in made._places.values()]
    assert fits == [one <= free for one in costs]


def test_what_a_visit_takes_goes_by_how_its_node_trains():
    made = snake()
    parts = made.config.training.model_copy(update={"micro_batch": 4})
    made.know(Facts(rows=(320,) * 8, costs=COSTS, training=(None, parts, *(None,) * 6)))
    visit = made.next()
    whole, in_parts = (made.outlook.cost(visit, node).private_bytes for node in (0, 1))
    assert in_parts < whole


def test_a_machine_that_runs_short_of_memory_is_given_less():
    made = snake(nodes=2)
    first = made.next()
    least = min(made.outlook.cost(one, 0).private_bytes for one in made._places.values())
    made.observe(replace(outcome(made, first), free_bytes=least))
    made.next()
    again = [one for one in crawl(made, [1.0, 1.0]) if one.node == first.node][:1]
    assert made.outlook.room(first.node) is None
    assert made.outlook.cost(again[0], first.node).private_bytes == least


def test_a_late_node_comes_last_for_a_while_and_makes_the_fewest_steps():
    made = snake(nodes=4, trips=6)
    first = made.next()
    made.observe(outcome(made, first, late=True))
    visits = [first, *crawl(made, [1.0] * 4)]
    second, third = ([one for one in visits if one.trip == trip] for trip in (2, 3))
    assert second[-1].node == first.node
    assert second[-1].steps == round(0.25 * made.outlook.full_steps(0))
    assert [one.node for one in third] == [0, 1, 2, 3]
    assert third[0].steps is None


def test_slow_nodes_make_fewer_steps_in_warm_up_too():
    made = snake(nodes=3, trips=6, warmup_trips=2)
    visits = crawl(made, [1.0, 1.0, 8.0])
    (warm_up,) = [one for one in visits if one.trip == 2 and one.node == 2]
    assert len(warm_up.trained) == BLOCKS
    assert warm_up.steps is not None


def test_a_pace_measured_on_one_span_holds_for_others():
    made = snake(nodes=2)
    visit = made.next()
    made.observe(outcome(made, visit, pace=3.0, others=0.5))
    for place in made._places.values():
        cost = made.outlook.cost(place, visit.node)
        assert made.outlook.seconds(place, visit.node) == pytest.approx(3 * cost.seconds + 0.5)
    assert made.outlook.flops_per_second(visit.node) == pytest.approx(
        made.outlook.facts.flops_per_second / 3
    )


@given(st.floats(0.1, 10), st.lists(st.floats(0.01, 10), min_size=1, max_size=20))
def test_a_ratio_that_stays_is_found_from_the_first_measurement(value, sizes):
    ratio = Ratio()
    assert ratio.value is None
    for size in sizes:
        ratio.add(value * size, size)
        assert ratio.value == pytest.approx(value)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.lists(st.floats(0.01, 10), min_size=1))
def test_what_a_process_takes_the_first_time_is_forgotten_with_the_second(first, value, sizes):
    ratio = Ratio(settles=True)
    ratio.add(first, 1.0)
    assert ratio.value == pytest.approx(first)
    for size in sizes:
        ratio.add(value * size, size)
        assert ratio.value == pytest.approx(value)


def test_a_slow_first_visit_spoils_no_prediction_after_the_second():
    made = snake(nodes=2)
    paces = iter([20.0, 20.0, 3.0, 3.0])
    for pace in paces:
        made.observe(outcome(made, made.next(), pace=pace, others=pace / 10))
    assert [made.outlook.pace(node) for node in range(2)] == pytest.approx([3.0, 3.0])
    assert [made.outlook.overhead(node) for node in range(2)] == pytest.approx([0.3, 0.3])


def test_a_node_not_seen_yet_is_taken_for_a_middling_one():
    config = SnakeConfig()
    outlook = Outlook(config, Facts(rows=(32,) * 4, costs=COSTS))
    assert outlook.pace(0) == 1.0
    made = snake(nodes=4)
    for pace in (2.0, 3.0, 7.0):
        visit = made.next()
        made.observe(outcome(made, visit, pace=pace))
    assert made.outlook.pace(3) == pytest.approx(3.0)
