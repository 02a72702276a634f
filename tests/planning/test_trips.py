"""Nodes join and leave at any time; trips, coverage and plans stay what they promise to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.outlook import Facts, Outcome
from ray_snake.planning.strategy import make_strategy
from ray_snake.planning.trips import Trips

BLOCKS = 6


def strategy_of(order="span_major", nodes=3, trips=4, name="snake", **snake):
    config = SnakeConfig.from_tree(
        {"seed": 1, "strategy": name, "snake": {"order": order, "trips": trips, **snake}}
    )
    return make_strategy(config, nodes=nodes, blocks=BLOCKS)


def test_without_changes_a_run_has_all_nodes_in_all_trips():
    trips = Trips(nodes=3, trips=2)
    assert trips.total == 6
    visited = []
    while not trips.is_over:
        if not trips.left:
            trips.begin()
        one = next(iter(trips.left))
        trips.take(*one)
        visited.append(one)
        assert trips.total == 6
        assert trips.ends_trip(len(visited)) == (len(visited) in (3, 6))
    assert visited == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_a_node_that_joins_takes_part_from_the_next_trip_on():
    strategy = strategy_of()
    strategy.next()
    assert strategy.total == 12
    assert strategy.join(8) == 3
    assert strategy.total == 12 + 3
    nodes = [visit.node for visit in iter(strategy.next, None)]
    assert nodes == [1, 2, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0]


def test_a_node_that_leaves_is_dropped_from_the_rest_of_the_trip():
    strategy = strategy_of()
    strategy.next()
    strategy.leave(1)
    assert strategy.total == 12 - 4
    assert [visit.node for visit in iter(strategy.next, None)] == [2, 2, 0, 0, 2, 2, 0]
    assert strategy.coverage.nodes == [0, 2]


def test_a_trip_is_over_when_its_last_node_leaves():
    strategy = strategy_of()
    strategy.next()
    strategy.next()
    assert not strategy.ends_trip(2)
    strategy.leave(2)
    assert strategy.ends_trip(2)
    assert not strategy.ends_trip(3)


def test_a_node_that_joins_warms_up_where_all_can():
    strategy = strategy_of(warmup_trips=2)
    strategy.next()
    node = strategy.join(8)
    visits = [visit for visit in iter(strategy.next, None) if visit.node == node]
    assert [len(visit.span) == BLOCKS for visit in visits] == [True, False, False]


def test_the_walk_of_a_diagonal_begins_with_the_first_visit_after_the_warm_up():
    strategy = strategy_of("diagonal", warmup_trips=1)
    strategy.next()
    strategy.leave(2)
    strategy.join(8)
    places = [visit.place for visit in iter(strategy.next, None) if visit.place is not None]
    assert places[:3] == [0, 1, 2]


def test_the_last_node_stays():
    strategy = strategy_of(nodes=1)
    with pytest.raises(ConfigError, match="last one"):
        strategy.leave(0)


@pytest.mark.parametrize(("name", "nodes"), [("fedcybgd", 3), ("local", 1), ("centralised", 1)])
def test_strategies_that_keep_to_their_nodes_say_so(name, nodes):
    strategy = strategy_of(name=name, nodes=nodes)
    with pytest.raises(ConfigError, match="no node can join or leave on the way"):
        strategy.join(8)
    with pytest.raises(ConfigError, match="no node can join or leave on the way"):
        strategy.leave(0)


@st.composite
def runs(draw):
    """A strategy's settings, and what happens before each of its visits."""
    order = draw(st.sampled_from(["span_major", "diagonal", "random"]))
    nodes = draw(st.integers(1, 5))
    trips = draw(st.integers(1, 8))
    warmup = draw(st.integers(0, 2))
    changes = draw(
        st.dictionaries(
            st.integers(0, 30), st.lists(st.sampled_from(["join", "leave"]), max_size=3)
        )
    )
    return {"order": order, "nodes": nodes, "trips": trips, "warmup_trips": warmup}, changes


def play(settings, changes, pick):
    """Do a run; return its strategy, and visits, joins and leaves as they came."""
    strategy = strategy_of(**settings)
    story = []
    for number in range(1000):
        for change in changes.get(number, ()):
            if change == "join":
                trip = strategy.trip
                story.append(("join", strategy.join(8), trip))
            elif len(strategy.members) > 1:
                node = strategy.members[pick % len(strategy.members)]
                story.append(("leave", node, strategy.trip))
                strategy.leave(node)
        visit = strategy.next()
        if visit is None:
            return strategy, story
        story.append(visit)
    raise AssertionError("the run has no end")


@given(run=runs(), pick=st.integers(0, 20))
def test_whoever_comes_and_goes_trips_and_coverage_hold(run, pick):
    settings, changes = run
    strategy, story = play(settings, changes, pick)
    visits = [one for one in story if not isinstance(one, tuple)]
    assert [visit.number for visit in visits] == list(range(1, strategy.total + 1))
    members = set(range(settings["nodes"]))
    begun, expected, seen = 0, {}, {}
    for one in story:
        if not isinstance(one, tuple):
            if one.trip > begun:
                begun = one.trip
                expected[begun] = set(members)
            assert one.node in members
            assert one.node not in seen.setdefault(one.trip, set())
            seen[one.trip].add(one.node)
        elif one[0] == "join":
            members.add(one[1])
        else:
            members.discard(one[1])
            expected.get(begun, set()).discard(one[1])
    assert set(seen) == set(range(1, settings["trips"] + 1))
    for trip, nodes in expected.items():
        # Whoever left after its visit was there too.
        assert nodes <= seen[trip]
        assert seen[trip] - nodes <= {
            one[1] for one in story if isinstance(one, tuple) and one[0] == "leave"
        }
    assert strategy.coverage.nodes == sorted(members)
    for node in members:
        counts = strategy.coverage.counts(node)
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == sum(v.node == node and v.place is not None for v in visits)


@given(run=runs(), pick=st.integers(0, 20))
def test_the_same_changes_at_the_same_visits_give_the_same_plan(run, pick):
    _, story = play(*run, pick)
    again = strategy_of(**run[0])
    for one in story:
        if not isinstance(one, tuple):
            assert again.next() == one
        elif one[0] == "join":
            assert again.join(8, trip=one[2]) == one[1]
        else:
            again.leave(one[1], trip=one[2])
    assert again.next() is None


@given(run=runs(), pick=st.integers(0, 20))
def test_a_total_says_how_many_visits_are_to_come(run, pick):
    settings, changes = run
    last = max(changes, default=0)
    strategy = strategy_of(**settings)
    done = 0
    for number in range(last + 1):
        for change in changes.get(number, ()):
            if change == "join":
                strategy.join(8)
            elif len(strategy.members) > 1:
                strategy.leave(strategy.members[pick % len(strategy.members)])
        done += strategy.next() is not None
    total = strategy.total
    assert done + len(list(iter(strategy.next, None))) == total


COSTS = tuple(
    BlockCost(
        name=f"block{index}",
        weight_bytes=10,
        forward_flops=1e3,
        saved_bytes=10,
        input_bytes=10,
        output_bytes=10,
        forward_seconds=1e-3 * (index + 1),
        backward_seconds=1e-3,
        training_seconds=2e-3,
    )
    for index in range(BLOCKS)
)


def adapting(settings):
    strategy = strategy_of(**settings, adapt=True)
    strategy.know(Facts(rows=(64,) * settings["nodes"], costs=COSTS))
    return strategy


def outcome_of(visit):
    """Return what a visit took: nodes with higher numbers are slower, and have slower links."""
    slower = 1 + visit.node % 4
    return Outcome(
        visit=visit,
        steps=visit.steps or 2,
        train_seconds=0.1 * slower * (visit.steps or 2),
        seconds=0.1 * slower * (visit.steps or 2) + 0.2 * slower,
        pull_bytes=20,
        pull_seconds=0.1 * slower,
    )


@given(run=runs(), pick=st.integers(0, 20))
def test_a_run_that_adapts_visits_every_member_once_a_trip_whoever_comes_and_goes(run, pick):
    settings, changes = run
    strategy = adapting(settings)
    seen, members = set(), set(range(settings["nodes"]))
    number = 0
    while (visit := strategy.next()) is not None:
        assert visit.node in members
        assert (visit.trip, visit.node) not in seen
        seen.add((visit.trip, visit.node))
        strategy.peek()
        strategy.observe(outcome_of(visit))
        number += 1
        for change in changes.get(number, ()):
            if change == "join":
                members.add(strategy.join(64))
            elif len(members) > 1:
                node = sorted(members)[pick % len(members)]
                strategy.leave(node)
                members.discard(node)
    assert number == strategy.total
    assert strategy.outlook.members == sorted(members)
    assert strategy.coverage.nodes == sorted(members)


@given(run=runs(), pick=st.integers(0, 20))
def test_looking_ahead_changes_nothing_in_a_run_that_adapts(run, pick):
    # A run that goes on from its journal plans anew without having looked ahead.
    settings, changes = run
    looking, again = adapting(settings), adapting(settings)
    number = 0
    while (visit := looking.next()) is not None:
        assert again.next() == visit
        looking.peek()
        looking.observe(outcome_of(visit))
        again.observe(outcome_of(visit))
        number += 1
        for change in changes.get(number, ()):
            if change == "join":
                assert again.join(64, trip=looking.trip) == looking.join(64)
            elif len(looking.members) > 1:
                node = looking.members[pick % len(looking.members)]
                again.leave(node, trip=looking.trip)
                looking.leave(node)
