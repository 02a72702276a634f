import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_snake.errors import ConfigError
from ray_snake.extensions import OWN
from ray_snake.planning.order import Turn, find_order, nearest, there_and_back


@given(places=st.integers(1, 30), rounds=st.integers(1, 4))
def test_there_and_back_takes_every_place_equally_often(places, rounds):
    walk = [there_and_back(step, places) for step in range(2 * places * rounds)]
    assert [walk.count(place) for place in range(places)] == [2 * rounds] * places


def test_there_and_back_takes_the_ends_twice_in_a_row():
    assert [there_and_back(step, 3) for step in range(8)] == [0, 1, 2, 2, 1, 0, 0, 1]


def test_nearest_prefers_the_lower_of_two_equally_near():
    assert nearest(3, [1, 5]) == 1
    assert nearest(3, [0, 4]) == 4


@pytest.mark.parametrize("name", ["span_major", "diagonal"])
@given(trip=st.integers(1, 9), nodes=st.integers(1, 30))
def test_the_snake_goes_forth_on_odd_trips_and_back_on_even_ones(name, trip, nodes):
    crossing = find_order(name)(spans=3, seed=0).crossing(trip, nodes)
    forth = list(range(nodes))
    assert crossing == (forth if trip % 2 else forth[::-1])


@pytest.mark.parametrize("name", ["span_major", "diagonal"])
@given(trip=st.integers(1, 9), nodes=st.integers(1, 30))
def test_a_snake_that_does_not_turn_begins_each_trip_with_the_first_node(name, trip, nodes):
    order = find_order(name)(spans=3, seed=0, turns=False)
    assert order.crossing(trip, nodes) == list(range(nodes))


@pytest.mark.parametrize("name", OWN["order"])
@given(trip=st.integers(1, 50), nodes=st.integers(1, 60), seed=st.integers(0, 9))
def test_a_crossing_takes_every_node_once(name, trip, nodes, seed):
    crossing = find_order(name)(spans=3, seed=seed).crossing(trip, nodes)
    assert sorted(crossing) == list(range(nodes))


@pytest.mark.parametrize("name", OWN["order"])
@given(
    number=st.integers(1, 500),
    trip=st.integers(1, 50),
    spans=st.integers(1, 12),
    data=st.data(),
)
def test_an_order_chooses_among_the_least_trained_spans_only(name, number, trip, spans, data):
    least = sorted(data.draw(st.sets(st.integers(0, spans - 1), min_size=1)))
    order = find_order(name)(spans=spans, seed=5)
    assert order.choose(Turn(number=number, trip=trip, node=0), least) in least


def test_the_random_order_draws_a_fresh_crossing_each_trip():
    order = find_order("random")(spans=2, seed=1)
    crossings = {tuple(order.crossing(trip, 20)) for trip in range(1, 21)}
    assert len(crossings) == 20


def test_the_random_order_draws_all_spans_about_equally_often():
    order = find_order("random")(spans=4, seed=1)
    drawn = [order.choose(Turn(number=n, trip=1, node=0), range(4)) for n in range(1, 2001)]
    # Four standard deviations of a binomial count around its mean of 500.
    assert all(abs(drawn.count(span) - 500) < 78 for span in range(4))


def test_an_unknown_order_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        find_order("zigzag")
    assert str(caught.value) == (
        "snake.order: there is no order 'zigzag'; known: span_major, diagonal, random; or give "
        "package.module:Name"
    )
