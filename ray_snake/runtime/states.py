"""The states of the driver: what it is doing now, each a small named type."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_snake.errors import SnakeError
from ray_snake.planning.outlook import Prediction
from ray_snake.planning.span import Visit
from ray_snake.runtime.messages import VisitReport, VisitTask
from ray_snake.runtime.records import VisitRecord
from ray_snake.runtime.supply import Moved


@dataclass(frozen=True, kw_only=True)
class Starting:
    """The journal is read and the current blocks are brought into the object store.

    Attributes:
        after: What was lost, when a running run goes back to its journal; empty at first.
    """

    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """The next visit is chosen."""


@dataclass(frozen=True, kw_only=True)
class Visiting:
    """Visits are with their nodes, or wait for them to start; the first to end is awaited."""

    visits: tuple[Visit, ...]


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """A visit came back and is accepted or refused.

    Attributes:
        task: What its node was asked to do.
        report: What the node reports.
        refs: The trained blocks as they travel, by block.
        moved: What moved to the node for it.
        machine: The node's machine.
        seconds: From sending the visit to its end.
        fetch_seconds: The part of it until its node had what is fetched ahead of it.
        prediction: What was expected of it; none if nothing was.
        late: Whether it was stopped at its deadline.
    """

    task: VisitTask
    report: VisitReport
    refs: Mapping[int, Any] = field(repr=False)
    moved: Moved
    machine: str
    seconds: float
    fetch_seconds: float = 0.0
    prediction: Prediction | None = None
    late: bool = False

    def record(self, *, node_name: str, refusal: str, staleness: int, heads: int) -> VisitRecord:
        """Return what the journal is to say of it, decided now.

        Args:
            node_name: Its node's name.
            refusal: Why it is refused; empty if it is accepted.
            staleness: How many results came in between its start and now.
            heads: Of the run.
        """
        visit = self.task.visit
        report = asdict(self.report)
        return VisitRecord(
            visit=visit.number,
            trip=visit.trip,
            node=visit.node,
            node_name=node_name,
            machine=self.machine,
            span=(visit.span.start, visit.span.stop),
            trained=visit.trained,
            learning_rate=self.task.learning_rate,
            accepted=not refusal,
            reason=refusal,
            bytes_pulled=self.moved.bytes_pulled,
            bytes_returned=sum(report.pop("parcel_bytes")),
            exchanged_bytes=self.moved.exchanged_bytes,
            transfers=self.moved.transfers,
            **report,
            seconds=self.seconds,
            fetch_seconds=self.fetch_seconds,
            finished_at=time.time(),
            averaged=visit.averaged,
            place=visit.place,
            planned_steps=visit.steps,
            why=visit.why,
            late=self.late,
            predicted_seconds=None if self.prediction is None else self.prediction.seconds,
            predicted_bytes=None if self.prediction is None else self.prediction.private_bytes,
            staleness=staleness,
            versions=self.task.versions if heads > 1 else (),
        )


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """All visits are decided; what is not yet on storage is awaited."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run is done."""

    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The run ended early; it can be resumed from its journal."""

    error: SnakeError


State = Starting | Scheduling | Visiting | Deciding | Finishing | Finished | Failed
