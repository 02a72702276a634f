"""Who takes part in a run, and who did: what its journal says of nodes that join and leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ray_snake.config import SnakeConfig
from ray_snake.planning.outlook import Facts, Outlook
from ray_snake.planning.trips import Trips
from ray_snake.runtime.records import (
    JoinRecord,
    JournalRecord,
    LeaveRecord,
    StartRecord,
    VisitRecord,
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A node that takes part in a run, or did.

    Attributes:
        node: Its number.
        name: Its name.
        rows: Rows of its shard; none where the journal does not have them.
        state: `member` or `left`.
        visits: Its decided visits.
        joined: The last visit before it joined; 0: it was there from the start.
        left: The last visit before it left; none: it takes part.
        pace: How much longer it computes than the machine that measured the blocks; none where
            nothing was measured.
    """

    node: int
    name: str
    rows: int | None
    state: str
    visits: int
    joined: int
    left: int | None
    pace: float | None


def run_trips(config: SnakeConfig, nodes: int, records: Iterable[JournalRecord]) -> Trips:
    """Return where a run's trips are.

    Args:
        config: The run's settings.
        nodes: Number of nodes at its start.
        records: Its journal.
    """
    trips = Trips(nodes=nodes, trips=config.snake.trips)
    for record in records:
        if isinstance(record, VisitRecord | JoinRecord | LeaveRecord):
            trips.begin_through(record.trip)
        if isinstance(record, JoinRecord):
            trips.join()
        elif isinstance(record, LeaveRecord):
            trips.leave(record.node)
        elif isinstance(record, VisitRecord) and (record.trip, record.node) in trips.left:
            trips.take(record.trip, record.node)
    return trips


def all_names(names: Sequence[str], records: Iterable[JournalRecord]) -> list[str]:
    """Return the names of all nodes that a run has had, by number.

    Args:
        names: Those at its start.
        records: Its journal.
    """
    return [*names, *(one.name for one in records if isinstance(one, JoinRecord))]


def run_members(
    config: SnakeConfig, names: Sequence[str], records: Sequence[JournalRecord]
) -> list[Member]:
    """Return all nodes that a run has had, by number.

    Args:
        config: The run's settings.
        names: Its nodes' names at its start.
        records: Its journal.
    """
    joins = {one.node: one for one in records if isinstance(one, JoinRecord)}
    leaves = {one.node: one for one in records if isinstance(one, LeaveRecord)}
    visits = [one for one in records if isinstance(one, VisitRecord)]
    start = next((one for one in records if isinstance(one, StartRecord)), None)
    rows = dict(enumerate(start.rows if start else ()))
    rows |= {node: one.rows for node, one in joins.items()}
    outlook = _outlook(config, start, records)
    return [
        Member(
            node=node,
            name=name,
            rows=rows.get(node),
            state="left" if node in leaves else "member",
            visits=sum(one.node == node for one in visits),
            joined=joins[node].visit if node in joins else 0,
            left=leaves[node].visit if node in leaves else None,
            pace=outlook.pace(node) if outlook is not None and outlook.knows(node) else None,
        )
        for node, name in enumerate(all_names(names, records))
    ]


def _outlook(
    config: SnakeConfig, start: StartRecord | None, records: Iterable[JournalRecord]
) -> Outlook | None:
    """Return what the run has learned of its nodes; none where it measured no costs."""
    if start is None or not start.costs or not start.rows:
        return None
    outlook = Outlook(config, Facts(rows=start.rows, costs=start.costs))
    for record in records:
        if isinstance(record, JoinRecord):
            outlook.join(record.rows)
        elif isinstance(record, LeaveRecord):
            outlook.leave(record.node)
        elif isinstance(record, VisitRecord):
            outlook.observe(record.outcome)
    return outlook
