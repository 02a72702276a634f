"""Visits at once, and visits that take too long, with real processes."""

from collections import Counter

import pytest
from scenarios import NODES, STEPS, TRIPS, fit, kill, with_sections

from ray_snake.runtime.events import NodeLost, VisitDecided, VisitLate
from ray_snake.runtime.journal import read_records
from ray_snake.runtime.records import VisitRecord

# An embedded cluster would switch token authentication on in this process, for all later tests.
pytestmark = pytest.mark.usefixtures("raylets")

# Disjoint spans: the last block is trained by whichever head finds it free.
HEADS = with_sections(snake={"trips": TRIPS, "heads": 2, "span_width": 2})
EVERY_TURN = {(trip, node): 1 for trip in range(1, TRIPS + 1) for node in range(NODES)}


def visits_of(storage):
    records = read_records(storage.child("run"))
    return [one for one in records if isinstance(one, VisitRecord)]


def test_one_head_goes_on_while_the_other_is_held(storage, gate):
    """The held visit is let go only after others were decided: nothing waits for it."""
    decided = []

    def on_event(event):
        if isinstance(event, VisitDecided):
            decided.append(event.record.visit)
            gate.open()

    fit(HEADS, storage.uri, loss=gate.loss(1), on_event=on_event)
    visits = visits_of(storage)
    assert Counter((one.trip, one.node) for one in visits) == EVERY_TURN
    assert gate.held.exists()
    held = next(one for one in visits if one.staleness > 0)
    assert held.visit != decided[0]
    assert all(one.accepted for one in visits)


def test_a_node_killed_under_one_head_is_started_again(storage, gate):
    events = []

    def on_event(event):
        events.append(event)
        if isinstance(event, VisitDecided) and not gate.opened.exists():
            kill(gate.pid())
            gate.open()

    result = fit(HEADS, storage.uri, loss=gate.loss(1), on_event=on_event)
    assert [type(event) for event in events].count(NodeLost) == 1
    assert Counter((one.trip, one.node) for one in visits_of(storage)) == EVERY_TURN
    assert result.metrics["accuracy"] > 0.3


def test_a_visit_past_its_deadline_ends_early_and_its_steps_count(storage, gate):
    late = []

    def on_event(event):
        if isinstance(event, VisitLate):
            late.append(event.visit.number)
            gate.open()

    config = with_sections(
        snake={"trips": 3, "adapt": True},
        adaptation={"deadline": 1.0, "min_deadline_seconds": 1.0},
    )
    fit(config, storage.uri, loss=gate.loss(1), on_event=on_event)
    visits = visits_of(storage)
    assert Counter((one.trip, one.node) for one in visits) == {
        turn: 1 for turn in EVERY_TURN if turn[0] <= 3
    }
    record = next(one for one in visits if one.visit == late[0])
    assert (record.late, record.accepted) == (True, True)
    assert 0 < record.steps < STEPS
    node = record.node
    (following,) = [one for one in visits if (one.trip, one.node) == (record.trip + 1, node)]
    assert following.why == "late not long ago"
