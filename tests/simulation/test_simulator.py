"""Runs on virtual clocks: the same planning as in real runs, and times that can be reckoned."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_snake.config import (
    AdaptationConfig,
    LossConfig,
    SnakeConfig,
    SnakeSection,
    TrainingConfig,
)
from ray_snake.errors import DataError, RunError
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.strategy import make_strategy
from ray_snake.simulation.distribution import Distribution
from ray_snake.simulation.simulator import Simulator
from ray_snake.simulation.world import World, read_trace

BLOCKS = 6
SPANS = 3
BYTES = 1000
COSTS = tuple(
    BlockCost(
        name=f"block{index}",
        weight_bytes=BYTES,
        forward_flops=1e6,
        saved_bytes=100,
        input_bytes=10,
        output_bytes=10,
        forward_seconds=1e-4,
        backward_seconds=1e-4,
        training_seconds=2e-4,
    )
    for index in range(BLOCKS)
)


def config(**section):
    return SnakeConfig(
        snake=SnakeSection(
            **{"span_width": BLOCKS // SPANS, "trips": 6, "train_last": False, **section}
        ),
        loss=LossConfig(distillation=0.0),
    )


def world(nodes=8, seed=1, **given_texts):
    given_texts = {"rows": "320", **given_texts}
    return World.draw(
        nodes, seed, {name: Distribution.parse(name, text) for name, text in given_texts.items()}
    )


def simulate(settings_, world_):
    return Simulator(settings_, world_, COSTS).run()


def test_without_links_a_run_takes_its_computing_time():
    found = simulate(config(), world(pace="choice(1, 2, 4)"))
    busy = sum(one.busy_seconds for one in found.trips)
    assert found.summary.seconds == pytest.approx(busy)
    assert found.summary.idle_share == pytest.approx(1 - 1 / 8)


def test_the_clock_runs_slower_where_nodes_do():
    once = simulate(config(), world()).summary.seconds
    assert simulate(config(), world(pace="3")).summary.seconds == pytest.approx(3 * once)
    late = simulate(config(), world(latency_seconds="0.5")).summary.seconds
    assert late == pytest.approx(once + 0.5 * 8 * 6)


def test_bytes_are_those_that_a_node_lacks():
    """The first trip sends every node all blocks; of those it trained it has the latest itself."""
    found = simulate(config(trips=1), world(nodes=4))
    assert found.summary.bytes_moved == 4 * BLOCKS * BYTES
    # Each further trip sends the span that was left in its final version, and the one that trains.
    found = simulate(config(trips=2), world(nodes=4))
    second = found.trips[1].bytes
    assert second == 3 * 2 * BYTES + 3 * 2 * BYTES


def test_an_optimizers_state_moves_with_the_blocks_that_have_one():
    training = TrainingConfig(momentum=0.9, optimizer_state="carry")
    settings = config(trips=2).model_copy(update={"training": training})
    found = simulate(settings, world(nodes=4))
    # What nobody has trained yet has none; of the span, all nodes but the first find one.
    assert found.trips[0].bytes == 4 * BLOCKS * BYTES + 3 * 2 * BYTES
    assert found.trips[1].bytes == 2 * (3 * 2 * BYTES + 3 * 2 * BYTES)


def test_trips_with_the_whole_model_send_the_whole_model():
    spans = simulate(config(trips=4), world(nodes=4))
    whole = simulate(config(trips=4, whole_every=2), world(nodes=4))
    assert [trip.bytes for trip in whole.trips[1:]] == [3 * BLOCKS * BYTES] * 3
    assert whole.trips[3].busy_seconds > spans.trips[3].busy_seconds


def test_links_cost_what_could_not_be_pulled_ahead():
    """A visit waits for what the one before it trained; the rest came meanwhile."""
    free = simulate(config(), world()).summary.seconds
    rate = 100_000
    bound = simulate(config(), world(bytes_per_second=str(rate))).summary.seconds
    span = BLOCKS // SPANS * BYTES / rate
    visits = 8 * 6
    turns = 6 - 1  # A trip's last node is the next one's first, and has what it trained.
    assert bound - free == pytest.approx((visits - 1 - turns) * span, rel=0.5)
    assert bound > free


@pytest.mark.parametrize("name", ["fedavg", "cyclic"])
def test_rivals_run_on_the_same_clock(name):
    settings_ = config().model_copy(update={"strategy": name})
    found = simulate(settings_, world(nodes=4, bytes_per_second="1e6"))
    assert found.summary.visits == 4 * 6
    both_ways = 2 if name == "fedavg" else 1
    assert found.summary.bytes_moved == pytest.approx(4 * 6 * BLOCKS * BYTES * both_ways, rel=0.25)


def test_a_round_begins_with_one_pull_of_the_mean():
    """Others of the round have theirs while the first trains, and all send back what they made."""
    settings_ = config().model_copy(update={"strategy": "fedavg"})
    computing = simulate(settings_, world(nodes=4)).summary.trip_seconds
    rate = BLOCKS * BYTES
    found = simulate(settings_, world(nodes=4, bytes_per_second=str(rate))).trips
    for before, trip in pairwise(found):
        seconds = trip.ended_at_seconds - before.ended_at_seconds
        assert seconds == pytest.approx(computing + 1 + 4)


def test_a_nodes_first_visit_waits_for_its_bases_which_are_no_bytes_moved():
    settings_, linked = config(), world(nodes=4, bytes_per_second="1e3")
    without = simulate(settings_, linked).table
    with_bases = simulate(settings_, replace(linked, base_bytes=100_000)).table
    later = [
        more - less
        for less, more in zip(
            without["ended_at_seconds"].to_pylist(),
            with_bases["ended_at_seconds"].to_pylist(),
            strict=True,
        )
    ]
    # The first node's take 100 seconds, meanwhile the second one's come, and so on.
    assert later[0] == pytest.approx(2 * 100, rel=0.1)
    assert later[1:] == pytest.approx([later[0]] * 5)
    assert with_bases["bytes"] == without["bytes"]


def test_samples_are_those_of_the_shards():
    found = simulate(config(), world(rows="100")).summary
    assert found.samples == 8 * 6 * 100


def test_a_node_that_came_back_within_a_visit_takes_the_next_one_at_once():
    away = world(nodes=1, rows="1", latency_seconds="6", online_seconds="10", offline_seconds="10")
    found = simulate(config(trips=4, span_width=BLOCKS), away)
    # It is there from 0 to 10, from 20 to 30 and from 40 on; computing takes next to nothing.
    ends = [one.ended_at_seconds for one in found.trips]
    assert ends == pytest.approx([6, 22, 28, 44], abs=0.1)


def test_heads_share_the_time():
    one = simulate(config(), world(nodes=12)).summary
    three = simulate(config(heads=3), world(nodes=12)).summary
    assert three.seconds == pytest.approx(one.seconds / 3, rel=0.15)
    assert three.samples == one.samples


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.integers(3, 9),
    heads=st.integers(1, 3),
    adapt=st.booleans(),
    seed=st.integers(0, 99),
    away=st.booleans(),
)
def test_every_node_gets_every_trip_and_the_same_seed_gives_the_same_run(
    nodes, heads, adapt, seed, away
):
    drawn = {"pace": "lognormal(1, 1)", "bytes_per_second": "uniform(1e3, 1e5)"}
    if away:
        drawn |= {"online_seconds": "exponential(3)", "offline_seconds": "exponential(1)"}
    visits = []
    runs = []
    for _ in range(2):
        simulator = Simulator(config(heads=heads, adapt=adapt), world(nodes, seed, **drawn), COSTS)
        told = []
        runs.append((simulator.run(told.append), told))
        visits.append([trip.visits for trip in runs[-1][0].trips])
    assert runs[0][0] == runs[1][0]
    assert visits[0] == [nodes] * 6
    assert runs[0][1] == list(range(1, 7))
    assert 0 <= runs[0][0].summary.idle_share < 1


def test_it_plans_what_a_real_run_plans():
    """Without adaptation the strategy's own visits, one after another."""
    seen = []
    simulator = Simulator(config(), world(), COSTS)
    strategy = simulator.strategy
    observe = strategy.observe

    def note(outcome):
        seen.append((outcome.visit.trip, outcome.visit.node, outcome.visit.trained))
        observe(outcome)

    strategy.observe = note
    simulator.run()
    alone = make_strategy(config(), nodes=8, blocks=BLOCKS)
    planned = iter(alone.next, None)
    assert seen == [(one.trip, one.node, one.trained) for one in planned]


def with_paces(paces):
    """Return a world of nodes that differ in that alone."""
    nodes = len(paces)
    return replace(
        world(nodes=nodes), pace=np.array(paces, dtype=float), latency_seconds=np.zeros(nodes)
    )


def test_adaptation_gives_slow_nodes_less_to_do():
    paces = with_paces([1, 1, 1, 1, 1, 1, 8, 8])
    fixed = simulate(config(trips=12), paces).summary
    adaptive = simulate(config(trips=12, adapt=True), paces).summary
    assert adaptive.seconds < 0.6 * fixed.seconds
    assert adaptive.covered == fixed.covered == 1.0


def test_a_visit_past_its_deadline_is_stopped():
    settings_ = config(trips=4, adapt=True).model_copy(
        update={
            "adaptation": AdaptationConfig(deadline=1.5, min_deadline_seconds=0.001, late="drop")
        }
    )
    # Whoever was not seen yet is taken for a middling node.
    paces = with_paces([1, 1, 1, 1, 1, 1, 1, 40])
    assert simulate(settings_, paces).summary.late > 0


def test_nodes_that_are_gone_for_good_end_a_simulation_with_the_reason():
    leaving = replace(world(), online_until=np.full(8, 0.5))
    with pytest.raises(RunError, match="no node is left"):
        simulate(config(trips=60), leaving)


@pytest.mark.parametrize("seconds", [("1e-9", "1e9"), ("1e-9", "1e-9")])
def test_stays_too_short_for_a_visit_end_a_simulation_with_the_reason(seconds):
    online, offline = seconds
    with pytest.raises(RunError, match="more than 10,000 stays; give longer stays"):
        simulate(config(), world(nodes=2, online_seconds=online, offline_seconds=offline))


def test_a_trace_gives_each_node_its_own(tmp_path):
    path = tmp_path / "nodes.csv"
    table = pa.table({"pace": [1.0, 2.0, 4.0], "rows": [100, 200, 300]})
    pa.csv.write_csv(table, path)
    traced = world(nodes=3).with_trace(read_trace(str(path)))
    assert traced.pace.tolist() == [1.0, 2.0, 4.0]
    assert traced.rows.tolist() == [100, 200, 300]
    assert traced.latency_seconds.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"pace": [1.0, 2.0]}, "2 rows for 3 nodes"),
        ({"speed": [1.0, 2.0, 3.0]}, "'speed'"),
        ({"pace": [1.0, None, 3.0], "rows": [1, 2, 3]}, "lacks values"),
        ({"pace": [1.0, -1.0, 3.0]}, "'pace' holds -1 in row 1; use numbers from 0"),
        ({"latency_seconds": [float("inf"), 0.0, 0.0]}, "'latency_seconds' holds inf in row 0"),
        ({"rows": [1, 0, 3]}, "'rows' holds 0 in row 1; use numbers from 1"),
        ({"bytes_per_second": [0.0, 1e6, 1e6]}, "'bytes_per_second' holds 0 in row 0"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(tmp_path, columns, words):
    path = tmp_path / "nodes.csv"
    pa.csv.write_csv(pa.table(columns), path)
    with pytest.raises(DataError, match=words):
        world(nodes=3).with_trace(read_trace(str(path)))


def test_a_trace_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nodes\.csv"):
        read_trace(str(tmp_path / "nodes.csv"))


def test_more_draws_of_one_quantity_move_no_other():
    few = world(nodes=3, pace="lognormal(1, 1)")
    more = world(nodes=3, pace="lognormal(1, 1)", latency_seconds="exponential(1)")
    assert few.pace.tolist() == more.pace.tolist()


def test_the_table_has_a_row_for_each_trip():
    table = simulate(config(), world()).table
    assert table["trip"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert Counter(table["visits"].to_pylist()) == {8: 6}
