"""The states of the driver: what it is doing now, each a small named type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_snake.errors import SnakeError
from ray_snake.planning.outlook import Prediction
from ray_snake.planning.span import Visit
from ray_snake.runtime.messages import VisitReport, VisitTask
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
