import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_snake.config import SnakeConfig, SnakeSection
from ray_snake.planning.snake import Snake


def snake_of(*, heads, nodes=8, blocks=10, **snake):
    section = SnakeSection(heads=heads, trips=snake.pop("trips", 8), **snake)
    return Snake(SnakeConfig(snake=section), nodes=nodes, blocks=blocks)


def crawl(snake, seconds):
    """Return (start, end, visit) of every visit, each as long as `seconds` says."""
    clock, running, done = 0.0, [], []
    while True:
        while len(running) < snake.heads:
            others = [visit for *_, visit in sorted(running, key=lambda one: one[1])]
            visit = snake.next(others, {one.node for one in others})
            if visit is None:
                break
            end = clock + seconds(visit)
            heapq.heappush(running, (end, visit.number, visit))
            done.append((clock, end, visit))
        if not running:
            return done
        clock, *_ = heapq.heappop(running)


def counts_of(snake, done):
    counts = [[0] * len(snake.spans) for _ in range(snake.nodes)]
    for _, _, visit in done:
        counts[visit.node][visit.place] += 1
    return counts


def idle_share(done, heads):
    whole = max(end for _, end, _ in done)
    return 1 - sum(end - start for start, end, _ in done) / (heads * whole)


durations = st.lists(st.floats(0.5, 4.0), min_size=8, max_size=8)


@settings(deadline=None)
@given(durations)
def test_with_as_many_heads_as_spans_no_head_waits_for_an_end(node_seconds):
    snake = snake_of(heads=2, span_width=5, train_first=True, train_last=True)
    done = crawl(snake, lambda visit: node_seconds[visit.node])
    assert {visit.trained for *_, visit in done} == {(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)}
    # Some of the last trip's end, when one visit is left.
    longest = max(node_seconds)
    whole = max(end for _, end, _ in done)
    assert idle_share(done, heads=2) * 2 * whole <= longest + 1e-6


def test_ends_train_along_while_there_is_one_head():
    snake = snake_of(heads=2, heads_after_trips=1, span_width=5)
    done = crawl(snake, lambda visit: 1.0)
    first = [visit.trained for *_, visit in done if visit.trip == 1]
    assert first == [(0, 1, 2, 3, 4, 9)] * 8
    assert all(9 not in visit.trained for *_, visit in done if visit.trip > 1 and visit.place == 0)


def test_ends_train_along_where_spans_are_left_for_all_heads():
    snake = snake_of(heads=2, span_width=4)
    done = crawl(snake, lambda visit: 1.0)
    along = [visit for *_, visit in done if visit.place == 0 and 9 in visit.trained]
    assert along
    assert idle_share(done, heads=2) == pytest.approx(0, abs=0.02)


def test_only_visits_beside_others_are_damped():
    snake = snake_of(heads=2, heads_after_trips=1, damping=0.5, span_width=5, trips=2)
    shares = {visit.trip: snake.damping(visit) for *_, visit in crawl(snake, lambda visit: 1.0)}
    assert shares == {1: 1.0, 2: 0.5}
    warm = snake_of(heads=2, warmup_trips=1, damping=0.5, span_width=5, trips=1)
    assert {warm.damping(visit) for *_, visit in crawl(warm, lambda visit: 1.0)} == {1.0}
    alone = snake_of(heads=1, damping=0.5, span_width=5, trips=1)
    assert {alone.damping(visit) for *_, visit in crawl(alone, lambda visit: 1.0)} == {1.0}


def test_an_end_of_no_span_trains_along_beside_other_heads():
    snake = snake_of(heads=2, spans=((0, 1, 2, 3), (4, 5, 6, 7, 8)), train_last=True)
    done = crawl(snake, lambda visit: 1.0)
    assert {visit.trained[-1] for *_, visit in done if visit.place == 0} <= {3, 9}
    assert any(9 in visit.trained for *_, visit in done)


@pytest.mark.parametrize("order", ["span_major", "diagonal", "random"])
@settings(deadline=None, max_examples=40)
@given(node_seconds=st.lists(st.floats(1.0, 2.0), min_size=8, max_size=8))
def test_heads_keep_every_node_near_its_coverage(order, node_seconds):
    """Without it a node with many rows meets the same span in each trip."""
    snake = snake_of(heads=2, span_width=5, order=order)
    counts = counts_of(snake, crawl(snake, lambda visit: node_seconds[visit.node]))
    assert max(abs(one - two) for one, two in counts) <= 2


@settings(deadline=None, max_examples=40)
@given(durations)
def test_two_heads_on_two_spans_alternate_in_whatever_order(node_seconds):
    """So a benchmark may give one head the order that suits it."""
    major, diagonal = (
        crawl(snake_of(heads=2, span_width=5, order=order), lambda one: node_seconds[one.node])
        for order in ("span_major", "diagonal")
    )
    assert major == diagonal


def test_equal_visits_give_equal_coverage():
    snake = snake_of(heads=2, span_width=5)
    counts = counts_of(snake, crawl(snake, lambda visit: 1.0))
    assert counts == [[4, 4]] * 8


@settings(deadline=None, max_examples=40)
@given(node_seconds=durations, heads=st.integers(1, 3), stay=st.integers(1, 2))
def test_every_trip_visits_every_node_once_whatever_is_due(node_seconds, heads, stay):
    snake = snake_of(heads=heads, span_width=3, trips_per_span=stay, trips=5)
    done = crawl(snake, lambda visit: node_seconds[visit.node])
    seen = sorted((visit.trip, visit.node) for *_, visit in done)
    assert seen == [(trip, node) for trip in range(1, 6) for node in range(8)]
