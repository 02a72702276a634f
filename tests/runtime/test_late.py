"""Visits that pass their deadline, and runs that adapt to nodes: with the driver's whole loop."""

import asyncio

import pytest
from fakes import Fault, make_config, make_driver, run, until

from ray_snake.planning.cost import BlockCost
from ray_snake.runtime.events import Recovering, VisitDecided, VisitLate
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.states import Finished

pytestmark = pytest.mark.usefixtures("quick_progress")

COSTS = tuple(
    BlockCost(
        name=f"block{index}",
        weight_bytes=10,
        forward_flops=1e3,
        saved_bytes=10,
        input_bytes=10,
        output_bytes=10,
        forward_seconds=1e-6,
        backward_seconds=1e-6,
        training_seconds=2e-6,
    )
    for index in range(4)
)
LATE = 2


def adapting(cluster, storage, *, emit=None, trips=4, **adaptation):
    config = make_config(
        snake={"trips": trips, "adapt": True, "span_width": 2},
        adaptation={"deadline": 2.0, "min_deadline_seconds": 0.05, **adaptation},
    )
    return make_driver(cluster, config, storage, emit=emit, costs=COSTS)


def visits_of(storage):
    return Journal(storage).visits


def test_a_late_visit_is_told_to_stop_and_what_it_did_counts(cluster, storage):
    cluster.faults["visit", LATE] = [Fault.DAWDLES]
    events = []
    assert isinstance(run(adapting(cluster, storage, emit=events.append).run()), Finished)
    (late,) = [event for event in events if isinstance(event, VisitLate)]
    assert (late.visit.number, late.seconds >= 0.05) == (LATE, True)
    record = visits_of(storage)[LATE - 1]
    assert (record.late, record.accepted) == (True, True)
    assert not cluster.killed[:-3]


def test_what_a_late_visit_did_is_dropped_if_the_settings_say_so(cluster, storage):
    cluster.faults["visit", LATE] = [Fault.DAWDLES]
    run(adapting(cluster, storage, late="drop").run())
    record = visits_of(storage)[LATE - 1]
    assert (record.late, record.accepted) == (True, False)
    assert "deadline" in record.reason


def test_dropped_late_visits_do_not_fail_a_run(cluster, storage):
    """They are refused for their time alone: many in a row do not say that training fails."""
    for number in range(1, 10):
        cluster.faults["visit", number] = [Fault.DAWDLES]
    assert isinstance(run(adapting(cluster, storage, late="drop").run()), Finished)


def test_a_late_node_comes_last_with_few_steps_until_its_probation_ends(cluster, storage):
    cluster.faults["visit", LATE] = [Fault.DAWDLES]
    run(adapting(cluster, storage, trips=5, probation_trips=2).run())
    visits = visits_of(storage)
    node = visits[LATE - 1].node
    for trip in (2, 3):
        (own,) = [one for one in visits if one.trip == trip and one.node == node]
        assert own.why == "late not long ago"
        assert own.visit == max(one.visit for one in visits if one.trip == trip)
    (after,) = [one for one in visits if one.trip == 4 and one.node == node]
    assert after.why != "late not long ago"


def test_without_a_deadline_nothing_is_stopped(cluster, storage):
    cluster.faults["visit", LATE] = [Fault.DAWDLES]

    async def scenario():
        running = asyncio.create_task(adapting(cluster, storage, deadline="none").run())
        await until(lambda: len(cluster.visits) == LATE)
        # Many looks at it; with a deadline it would be over.
        await asyncio.wait({running}, timeout=0.3)
        assert not running.done()
        cluster.nodes[visits_at(cluster, LATE).node].finish()
        return await running

    assert isinstance(run(scenario()), Finished)
    assert not any(one.late for one in visits_of(storage))


def visits_at(cluster, number):
    return next(task.visit for task, _ in cluster.visits if task.visit.number == number)


@pytest.mark.parametrize("after", [2, 4, 7])
def test_a_run_that_adapts_goes_on_with_what_it_knew(cluster, storage, after):
    """The journal's outcomes alone decide: what follows a resume is what would have followed."""
    cluster.faults["visit", LATE] = [Fault.DAWDLES]

    async def interrupted():
        decided = []
        driver = adapting(
            cluster,
            storage,
            emit=lambda event: decided.append(event) if isinstance(event, VisitDecided) else None,
        )
        running = asyncio.create_task(driver.run())
        await until(lambda: len(decided) >= after)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(interrupted())
    assert isinstance(run(adapting(cluster, storage).run()), Finished)
    visits = visits_of(storage)
    assert [one.visit for one in visits] == list(range(1, 13))
    assert sorted((one.trip, one.node) for one in visits) == [
        (trip, node) for trip in range(1, 5) for node in range(3)
    ]


def test_a_run_that_adapts_recovers_within_itself_too(cluster, storage):
    cluster.faults["visit", 6] = [Fault.LACKS_BLOCKS]
    events = []
    assert isinstance(run(adapting(cluster, storage, emit=events.append).run()), Finished)
    assert any(isinstance(event, Recovering) for event in events)


def test_predictions_stand_beside_what_came_of_them(cluster, storage):
    run(adapting(cluster, storage).run())
    for one in visits_of(storage):
        assert one.predicted_seconds is not None
        assert one.predicted_bytes > 0
        assert one.prediction_error is not None
