import copy
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_snake.config import SnakeConfig, SnakeSection, TrainingConfig
from ray_snake.errors import ConfigError
from ray_snake.extensions import OWN
from ray_snake.planning.snake import Snake
from ray_snake.planning.strategy import scheduled


@st.composite
def runs(draw, orders=tuple(OWN["order"]), **fixed):
    """A run's settings: snake, nodes, blocks, seed."""
    blocks = draw(st.integers(1, 12))
    snake = {
        "order": draw(st.sampled_from(orders)),
        "span_width": draw(st.integers(1, blocks)),
        "trips": draw(st.integers(1, 10)),
        "train_first": draw(st.booleans()),
        "train_last": draw(st.booleans()),
        **fixed,
    }
    return {
        "snake": SnakeSection(**snake),
        "nodes": draw(st.integers(1, 9)),
        "blocks": blocks,
        "seed": draw(st.integers(0, 3)),
    }


def make(run):
    return schedule_of(run["snake"], nodes=run["nodes"], blocks=run["blocks"], seed=run["seed"])


def schedule_of(snake, *, nodes, blocks, seed):
    return Snake(SnakeConfig(snake=snake, seed=seed), nodes=nodes, blocks=blocks)


def drain(schedule):
    return list(iter(schedule.next, None))


@given(runs())
def test_every_trip_visits_every_node_once(run):
    visits = drain(make(run))
    assert len(visits) == run["snake"].trips * run["nodes"]
    for trip in range(1, run["snake"].trips + 1):
        nodes = [visit.node for visit in visits if visit.trip == trip]
        assert sorted(nodes) == list(range(run["nodes"]))


@given(runs())
def test_visits_are_numbered_from_one_and_trips_never_go_back(run):
    visits = drain(make(run))
    assert [visit.number for visit in visits] == list(range(1, len(visits) + 1))
    trips = [visit.trip for visit in visits]
    assert trips == sorted(trips)


@given(runs(orders=("span_major", "diagonal")))
def test_the_snake_crosses_the_nodes_forth_and_back(run):
    schedule = make(run)
    crossed = [visit.node for visit in drain(schedule)]
    forth = list(range(run["nodes"]))
    trips = range(1, run["snake"].trips + 1)
    assert crossed == [node for trip in trips for node in (forth if trip % 2 else forth[::-1])]


@given(runs())
def test_a_nodes_counts_of_any_two_spans_differ_by_at_most_one_at_any_time(run):
    schedule = make(run)
    counts = [dict.fromkeys(schedule.spans, 0) for _ in range(run["nodes"])]
    for visit in drain(schedule):
        own = counts[visit.node]
        own[visit.span] += 1
        assert max(own.values()) - min(own.values()) <= 1


@given(runs(trips=24))
def test_no_node_is_locked_to_a_span(run):
    schedule = make(run)
    visits = drain(schedule)
    seen = [set() for _ in range(run["nodes"])]
    for visit in visits[: len(schedule.spans) * run["nodes"]]:
        seen[visit.node].add(visit.span)
    assert all(spans == set(schedule.spans) for spans in seen)


@given(runs(trips=24, train_first=False, train_last=False))
def test_every_pair_of_node_and_block_is_trained_equally_often(run):
    schedule = make(run)
    laps = run["snake"].trips // len(schedule.spans)
    counts = [[0] * run["blocks"] for _ in range(run["nodes"])]
    for visit in drain(schedule)[: laps * len(schedule.spans) * run["nodes"]]:
        for block in visit.trained:
            counts[visit.node][block] += 1
    assert counts == [[laps] * run["blocks"]] * run["nodes"]


@given(runs(orders=("span_major",)))
def test_span_major_keeps_the_span_within_a_trip_and_moves_it_between_trips(run):
    schedule = make(run)
    visits = drain(schedule)
    spans = [
        {visit.span for visit in visits if visit.trip == trip}
        for trip in range(1, run["snake"].trips + 1)
    ]
    assert all(len(of_trip) == 1 for of_trip in spans)
    for lap in range(0, len(spans) - len(schedule.spans) + 1, len(schedule.spans)):
        lap_spans = [of_trip.copy().pop() for of_trip in spans[lap : lap + len(schedule.spans)]]
        forth = list(schedule.spans)
        assert lap_spans == (forth if (lap // len(forth)) % 2 == 0 else forth[::-1])


@given(blocks=st.integers(2, 12), nodes=st.integers(2, 40))
def test_diagonal_moves_the_span_to_its_neighbour_with_every_visit(blocks, nodes):
    schedule = schedule_of(
        SnakeSection(order="diagonal", span_width=1, trips=1), nodes=nodes, blocks=blocks, seed=0
    )
    starts = [visit.span.start for visit in drain(schedule)]
    forth = list(range(blocks))
    walk = (forth + forth[::-1]) * nodes
    assert starts == walk[:nodes]


def test_diagonal_moves_on_where_the_walk_would_lock_nodes_to_spans():
    # With 2 * spans nodes the uncorrected walk brings every node back to the same span.
    schedule = schedule_of(
        SnakeSection(order="diagonal", span_width=1, trips=3), nodes=6, blocks=3, seed=0
    )
    seen = [set() for _ in range(6)]
    for visit in drain(schedule):
        seen[visit.node].add(visit.span.start)
    assert seen == [{0, 1, 2}] * 6


@given(runs())
def test_the_same_run_gives_the_same_visits(run):
    assert drain(make(run)) == drain(make(run))


@given(runs(orders=("span_major",), trips=24), st.integers(1, 4))
def test_span_major_stays_for_the_trips_it_is_told_and_covers_evenly(run, stay):
    run = {**run, "snake": run["snake"].model_copy(update={"trips_per_span": stay})}
    schedule = make(run)
    counts = [dict.fromkeys(schedule.spans, 0) for _ in range(run["nodes"])]
    spans = {}
    for visit in drain(schedule):
        spans.setdefault(visit.trip, set()).add(visit.span)
        own = counts[visit.node]
        own[visit.span] += 1
        assert max(own.values()) - min(own.values()) <= stay
    forth = list(schedule.spans)
    walk = [span for lap in range(24) for span in (forth[::-1] if lap % 2 else forth)]
    assert [spans[trip] for trip in range(1, 25)] == [{walk[trip // stay]} for trip in range(24)]


@given(runs())
def test_looking_at_the_next_visit_does_not_hand_it_out(run):
    looked, plain = make(run), make(run)
    visits = []
    while (ahead := looked.peek()) is not None:
        assert looked.peek() == ahead
        visits.append(looked.next())
        assert visits[-1] == ahead
    assert visits == drain(plain)


def test_the_random_order_is_decided_by_the_seed():
    snake = SnakeSection(order="random", span_width=1, trips=4)
    first, again, other = (
        drain(schedule_of(snake, nodes=8, blocks=5, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert [visit.node for visit in first] != [visit.node for visit in other]
    assert [visit.span for visit in first] != [visit.span for visit in other]


@given(runs())
def test_a_visit_trains_its_span_and_the_chosen_ends(run):
    snake = run["snake"]
    for visit in drain(make(run)):
        expected = set(visit.span.blocks())
        expected |= {0} if snake.train_first else set()
        expected |= {run["blocks"] - 1} if snake.train_last else set()
        assert visit.trained == tuple(sorted(expected))


@given(runs(trips=24), st.data())
def test_a_refused_visit_comes_back_before_its_node_trains_another_span_twice(run, data):
    schedule = make(run)
    at = data.draw(st.integers(1, 12 * run["nodes"]))
    for _ in range(at):
        refused = schedule.next()
    schedule.refused(refused)
    later = [visit.span for visit in drain(schedule) if visit.node == refused.node]
    until_then = later[: later.index(refused.span)]
    assert len(until_then) < len(schedule.spans)
    assert len(set(until_then)) == len(until_then)


@pytest.mark.parametrize("order", OWN["order"])
def test_a_refused_visit_comes_back_sooner_than_it_would_have(order):
    snake = SnakeSection(order=order, span_width=1, trips=12)
    for at in range(3, 30, 3):
        waits = []
        for refuse in (True, False):
            schedule = schedule_of(snake, nodes=3, blocks=4, seed=1)
            for _ in range(at):
                visit = schedule.next()
            if refuse:
                schedule.refused(visit)
            own = [later.span for later in drain(schedule) if later.node == visit.node]
            waits.append(own.index(visit.span) if visit.span in own else math.inf)
        assert waits[0] <= waits[1]
        # At the end of a lap all other spans are done, so the refused one is next.
        if at % 12 == 0:
            assert waits[0] == 0


@given(runs(), st.sets(st.integers(0, 89)))
def test_counts_stay_level_when_visits_are_refused(run, refusals):
    schedule = make(run)
    counts = [dict.fromkeys(schedule.spans, 0) for _ in range(run["nodes"])]
    for index, visit in enumerate(iter(schedule.next, None)):
        if index in refusals:
            schedule.refused(visit)
        else:
            counts[visit.node][visit.span] += 1
        assert max(counts[visit.node].values()) - min(counts[visit.node].values()) <= 1


@settings(deadline=None)
@given(runs(), st.data())
def test_upcoming_nodes_are_those_of_the_visits_that_follow(run, data):
    schedule = make(run)
    for _ in range(data.draw(st.integers(0, schedule.total))):
        schedule.next()
    upcoming = schedule.upcoming_nodes()
    followed = [visit.node for visit in drain(copy.deepcopy(schedule))]
    assert upcoming == list(dict.fromkeys(followed))


def test_asking_for_upcoming_nodes_changes_nothing():
    snake = SnakeSection(order="random", span_width=1, trips=3)
    asked = schedule_of(snake, nodes=4, blocks=3, seed=1)
    visits = []
    while True:
        asked.upcoming_nodes()
        visit = asked.next()
        if visit is None:
            break
        visits.append(visit)
    assert visits == drain(schedule_of(snake, nodes=4, blocks=3, seed=1))


def test_after_the_last_visit_there_is_none():
    schedule = schedule_of(SnakeSection(span_width=1, trips=1), nodes=2, blocks=2, seed=0)
    drain(schedule)
    assert schedule.next() is None
    assert schedule.upcoming_nodes() == []


def test_a_span_wider_than_the_network_is_refused():
    with pytest.raises(ConfigError, match=r"snake\.span_width: 5 blocks .* network's 4"):
        schedule_of(SnakeSection(span_width=5), nodes=2, blocks=4, seed=0)


@pytest.mark.parametrize("order", OWN["order"])
def test_a_trip_over_ten_thousand_nodes_and_fifty_spans_is_planned(order):
    snake = SnakeSection(order=order, span_width=1, trips=2)
    schedule = schedule_of(snake, nodes=10_000, blocks=50, seed=0)
    visits = [schedule.next() for _ in range(10_000)]
    assert sorted(visit.node for visit in visits) == list(range(10_000))
    assert sorted(schedule.upcoming_nodes()) == list(range(10_000))


@given(trips=st.integers(1, 50), peak=st.floats(1e-6, 10))
def test_the_cosine_schedule_starts_at_the_peak_and_falls_towards_zero(trips, peak):
    training = TrainingConfig(learning_rate=peak, schedule="cosine")
    rates = [scheduled(training, trip=trip, trips=trips) for trip in range(1, trips + 1)]
    assert rates[0] == peak
    assert all(after < before for before, after in itertools.pairwise(rates))
    assert rates[-1] > 0
    for trip, rate in enumerate(rates):
        assert rate == pytest.approx(peak / 2 * (1 + math.cos(math.pi * trip / trips)))


def test_the_constant_schedule_stays_at_the_peak():
    training = TrainingConfig(learning_rate=0.1, schedule="constant")
    assert [scheduled(training, trip=trip, trips=5) for trip in (1, 3, 5)] == [0.1] * 3
