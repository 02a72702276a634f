"""What slow links change: the order of nodes and what is expected of a visit, not its steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adaptation import COSTS
from test_adaptation import snake as small_snake

from ray_snake.planning.outlook import LEAST_BYTES, RATES_KEPT, Facts, Outcome

COSTS_OF_LARGE = tuple(replace(one, weight_bytes=200_000) for one in COSTS)
SPAN_BYTES = 400_000


def snake(**section):
    """A snake with blocks that are large enough to tell something of a link."""
    made = small_snake(**section)
    made.know(Facts(rows=(320,) * 8, costs=COSTS_OF_LARGE))
    return made


def outcome(strategy, visit, *, sender, rates, pace=1.0, overhead=0.01):
    """What a visit takes whose node pulls its span from another's."""
    computing = pace * strategy.outlook.work(visit, visit.node)
    moved = sender is not None and sender != visit.node
    pulled = SPAN_BYTES if moved else 0
    pulling = pulled / min(rates[visit.node], rates[sender]) if moved else 0.0
    return Outcome(
        visit=visit,
        steps=visit.steps or strategy.outlook.full_steps(visit.node),
        train_seconds=computing,
        seconds=computing + pulling + overhead,
        pull_bytes=pulled,
        pull_seconds=pulling,
    )


def crawl(strategy, rates):
    """Do a whole run; return its visits and what they took."""
    found, sender = [], None
    while (visit := strategy.next()) is not None:
        took = outcome(strategy, visit, sender=sender, rates=rates)
        strategy.observe(took)
        found.append((visit, took))
        sender = visit.node
    return found


def nodes_of(found, trip):
    return [visit.node for visit, _ in found if visit.trip == trip]


# Pulling a span takes the slowest node here 20 seconds, and a visit computes for about .1 second.
RATES = [200e3, 1.6e9, 20e3, 2e9, 1e6, 1.4e9, 1.8e9, 20e6]


def test_trips_go_from_fast_links_to_slow_ones_and_back():
    found = crawl(snake(trips=8), RATES)
    assert nodes_of(found, 1) == list(range(8))
    forth, back = nodes_of(found, 7), nodes_of(found, 8)
    # The second has slow neighbours at first, and seems as slow as they are.
    assert forth == [1, 3, 5, 6, 7, 4, 0, 2]
    assert back == forth[::-1]


def test_slow_links_are_waited_for_half_as_long():
    waited = {
        adapt: sum(
            took.pull_seconds
            for visit, took in crawl(snake(trips=12, adapt=adapt), RATES)
            if visit.trip > 4
        )
        for adapt in (True, False)
    }
    assert waited[True] < 0.6 * waited[False]


def test_a_slow_link_takes_no_steps_away():
    assert all(visit.steps is None for visit, _ in crawl(snake(), RATES))


@given(fast=st.permutations([1.6e9, 1.8e9, 2e9, 4e9, 8e9, 16e9, 32e9, 64e9]))
@settings(max_examples=20)
def test_links_that_hardly_count_leave_the_order_alone(fast):
    found = crawl(snake(trips=4), fast)
    assert [nodes_of(found, trip) for trip in (1, 2, 3, 4)] == 2 * [
        list(range(8)),
        list(range(8))[::-1],
    ]


def test_a_visit_is_expected_to_wait_for_its_bytes_over_the_slower_link():
    strategy = snake(trips=8)
    for visit, took in crawl(strategy, RATES)[-8:]:
        del took
        last = visit
    outlook = strategy.outlook
    other = next(
        visit for visit, _ in crawl(snake(trips=8), RATES) if visit.node == 2 and visit.trip == 8
    )
    alone = outlook.predict(other).seconds
    waits = outlook.predict(other, 800_000).seconds - alone
    slower = min(outlook.bytes_per_second(2), outlook.bytes_per_second(last.node))
    assert waits == pytest.approx(800_000 / slower)
    # Ray sends small objects along with its messages.
    assert outlook.predict(other, LEAST_BYTES - 1).seconds == alone
    assert alone == pytest.approx(outlook.computing(other, 2) + 0.01)


def test_a_link_is_as_fast_as_its_fastest_pull_of_late():
    strategy = snake()
    visits = [strategy.next() for _ in range(8)]
    pulls = [30e3, 5e3, 6e3, 5e3, 4e3]
    assert len(pulls) == RATES_KEPT + 1
    for rate in pulls:
        strategy.observe(
            Outcome(
                visit=visits[3],
                steps=1,
                train_seconds=0.1,
                seconds=100.0,
                pull_bytes=LEAST_BYTES,
                pull_seconds=LEAST_BYTES / rate,
            )
        )
    assert strategy.outlook.bytes_per_second(3) == pytest.approx(6e3)
    assert strategy.outlook.bytes_per_second(4) is None


def test_the_order_settles():
    """Each trip begins where the one before ended, so that nothing is pulled in between."""
    found = crawl(snake(trips=12), RATES)
    for one, following in pairwise(range(5, 13)):
        assert nodes_of(found, one)[-1] == nodes_of(found, following)[0]
