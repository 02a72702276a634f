"""What a journal says of nodes that join and leave."""

import pytest

from ray_snake.config import SnakeConfig
from ray_snake.runtime.records import JoinRecord, LeaveRecord, StartRecord
from ray_snake.telemetry.members import all_names, run_members, run_trips

CONFIG = SnakeConfig.from_tree({"snake": {"trips": 3}})
NAMES = ("clinic-0", "clinic-1")


@pytest.fixture
def records(visit_record):
    moment = {"visit": 3, "trip": 2, "finished_at": 1.0}
    return [
        StartRecord(blocks=(), rows=(10, 20), finished_at=0.0),
        visit_record(1, node=0),
        visit_record(2, node=1),
        visit_record(3, node=1),
        JoinRecord(
            node=2,
            name="late",
            uri="late.arrow",
            rows=30,
            sample_shape=(2,),
            integer_inputs=False,
            classes=2,
            request="a",
            **moment,
        ),
        LeaveRecord(node=0, rows=10, request="b", **moment),
        visit_record(4, node=1, trip=3),
    ]


def test_members_and_those_who_left_are_told_apart(records):
    first, second, late = run_members(CONFIG, NAMES, records)
    assert (first.state, first.left, first.visits, first.rows) == ("left", 3, 1, 10)
    assert (second.state, second.left, second.visits, second.rows) == ("member", None, 3, 20)
    assert (late.state, late.joined, late.visits, late.rows) == ("member", 3, 0, 30)
    assert all_names(NAMES, records) == ["clinic-0", "clinic-1", "late"]


def test_a_total_counts_what_is_done_and_what_members_have_left(records):
    assert run_trips(CONFIG, 2, records).total == 5
    assert run_trips(CONFIG, 2, records[:3]).total == 6


def test_a_journal_without_rows_or_costs_leaves_them_open(records):
    old = [StartRecord(blocks=(), finished_at=0.0), *records[1:4]]
    assert [(one.rows, one.pace) for one in run_members(CONFIG, NAMES, old)] == [(None, None)] * 2
