"""Where a run is: what its journal says, for whoever looks from another shell."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ray_snake.config import SnakeConfig
from ray_snake.runtime.records import EvaluationRecord, JournalRecord, LeaveRecord, VisitRecord
from ray_snake.telemetry.members import all_names, run_trips
from ray_snake.telemetry.summary import bytes_moved


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """What a node has done.

    Attributes:
        name: Its name.
        visits: Its decided visits.
        trip: The trip of its last one; 0 before the first.
        seconds: What its visits took on average; none before the first.
        late: Visits that were stopped at their deadline.
        left: Whether it takes part no more.
    """

    name: str
    visits: int
    trip: int
    seconds: float | None
    late: int
    left: bool


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run is.

    Attributes:
        trip: The trip of its last decided visit; 0 before the first.
        trips: Trips of the whole run.
        visits: Decided visits.
        refused: Those of them whose result was refused.
        all_visits: Visits of the whole run, as long as nobody joins or leaves.
        loss: On held-out rows, by the latest evaluation; none before the first.
        accuracy: Likewise, in [0, 1]; none without classes.
        bytes_moved: Bytes of all blocks that moved.
        idle_seconds: Since the journal grew last; none where it is empty.
        nodes: What each node has done, those that left included.
    """

    trip: int
    trips: int
    visits: int
    refused: int
    all_visits: int
    loss: float | None
    accuracy: float | None
    bytes_moved: int
    idle_seconds: float | None
    nodes: tuple[NodeStatus, ...]


def run_status(
    config: SnakeConfig, names: Sequence[str], records: Iterable[JournalRecord]
) -> RunStatus:
    """Return where a run is.

    Args:
        config: The run's settings.
        names: Its nodes' names at its start, by number.
        records: Its journal.
    """
    records = list(records)
    gone = {one.node for one in records if isinstance(one, LeaveRecord)}
    visits = [one for one in records if isinstance(one, VisitRecord)]
    judged = [one for one in records if isinstance(one, EvaluationRecord)]
    return RunStatus(
        trip=max((one.trip for one in visits), default=0),
        trips=config.snake.trips,
        visits=len(visits),
        refused=sum(not one.accepted for one in visits),
        all_visits=run_trips(config, len(names), records).total,
        loss=judged[-1].loss if judged else None,
        accuracy=judged[-1].accuracy if judged else None,
        bytes_moved=bytes_moved(visits),
        idle_seconds=time.time() - records[-1].finished_at if records else None,
        nodes=tuple(
            _node(name, [one for one in visits if one.node == node], left=node in gone)
            for node, name in enumerate(all_names(names, records))
        ),
    )


def _node(name: str, visits: Sequence[VisitRecord], *, left: bool) -> NodeStatus:
    return NodeStatus(
        name=name,
        visits=len(visits),
        trip=max((one.trip for one in visits), default=0),
        seconds=sum(one.seconds for one in visits) / len(visits) if visits else None,
        late=sum(one.late for one in visits),
        left=left,
    )
