"""A run's figures as metrics for Prometheus, from what its driver tells.

Names and units follow https://prometheus.io/docs/practices/naming: base units, seconds and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from ray_snake.runtime.events import (
    Evaluated,
    Event,
    NodeJoined,
    NodeLeft,
    NodeLost,
    NodeReady,
    Recovering,
    RunStarted,
    VisitDecided,
)
from ray_snake.runtime.records import EvaluationRecord, VisitRecord


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is told of a run.

    Attributes:
        kind: A gauge goes up and down; a counter adds up since this driver started.
        text: What it says.
        tags: Its labels beside the run's name.
    """

    kind: Literal["gauge", "counter"]
    text: str
    tags: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "snake_trip": Metric(kind="gauge", text="Trip of the last decided visit, from 1."),
    "snake_trips": Metric(kind="gauge", text="Trips of the whole run."),
    "snake_visits": Metric(kind="gauge", text="Decided visits, those before a resumption too."),
    "snake_visits_planned": Metric(kind="gauge", text="Visits of the whole run, as it is now."),
    "snake_nodes": Metric(kind="gauge", text="Nodes that can train now."),
    "snake_loss": Metric(
        kind="gauge", text="Latest mean loss of a sample, by rows: train or test.", tags=("rows",)
    ),
    "snake_accuracy": Metric(
        kind="gauge", text="Latest accuracy, 0 to 1, by rows: train or test.", tags=("rows",)
    ),
    "snake_perplexity": Metric(kind="gauge", text="Latest perplexity on held-out rows."),
    "snake_visits_decided": Metric(
        kind="counter",
        text="Visits by node and by what became of them: accepted or refused.",
        tags=("node", "result"),
    ),
    "snake_visits_late": Metric(
        kind="counter", text="Visits that were stopped at their deadline.", tags=("node",)
    ),
    "snake_samples": Metric(
        kind="counter", text="Samples that nodes' optimizers saw.", tags=("node",)
    ),
    "snake_moved_bytes": Metric(
        kind="counter",
        text="Bytes that nodes pulled, returned or exchanged with a split server.",
        tags=("node", "direction"),
    ),
    "snake_visit_seconds": Metric(
        kind="counter",
        text="Seconds of visits by phase: pull, train, or other, which is all else until the "
        "driver has decided.",
        tags=("node", "phase"),
    ),
    "snake_node_losses": Metric(
        kind="counter", text="Times that a node's process was lost.", tags=("node",)
    ),
    "snake_recoveries": Metric(kind="counter", text="Times that the run went back to its journal."),
}


class Meters(Protocol):
    """Where figures go."""

    def tell(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Set the gauge of this name, or add to the counter; tags are all of the metric's."""


class RunMetrics:
    """Turns what a run's driver tells into figures.

    Args:
        meters: Where they go.
    """

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._ready: set[int] = set()
        self._visits = 0

    def on_event(self, event: Event) -> None:
        """Take the run's next event."""
        match event:
            case RunStarted():
                self._visits = event.done
                self._tell("snake_trips", event.trips)
                self._tell("snake_visits", event.done)
                self._tell("snake_visits_planned", event.visits)
                self._tell("snake_nodes", len(self._ready))
            case NodeReady():
                self._ready.add(event.node)
                self._tell("snake_nodes", len(self._ready))
            case NodeLost():
                self._ready.discard(event.node)
                self._tell("snake_nodes", len(self._ready))
                self._tell("snake_node_losses", 1, node=event.name)
            case NodeJoined():
                self._ready.add(event.node)
                self._tell("snake_nodes", len(self._ready))
                self._tell("snake_visits_planned", event.visits)
            case NodeLeft():
                self._ready.discard(event.node)
                self._tell("snake_nodes", len(self._ready))
                self._tell("snake_visits_planned", event.visits)
            case Recovering():
                self._tell("snake_recoveries", 1)
            case VisitDecided():
                self._on_visit(event.record)
            case Evaluated():
                self._on_evaluation(event.record)

    def _on_visit(self, record: VisitRecord) -> None:
        node = record.node_name
        self._visits += 1
        self._tell("snake_trip", record.trip)
        self._tell("snake_visits", self._visits)
        result = "accepted" if record.accepted else "refused"
        self._tell("snake_visits_decided", 1, node=node, result=result)
        if record.late:
            self._tell("snake_visits_late", 1, node=node)
        self._tell("snake_samples", record.samples, node=node)
        for direction, size in (
            ("pulled", record.bytes_pulled),
            ("returned", record.bytes_returned),
            ("exchanged", record.exchanged_bytes),
        ):
            self._tell("snake_moved_bytes", size, node=node, direction=direction)
        rest = max(0.0, record.seconds - record.pull_seconds - record.train_seconds)
        for phase, seconds in (
            ("pull", record.pull_seconds),
            ("train", record.train_seconds),
            ("other", rest),
        ):
            self._tell("snake_visit_seconds", seconds, node=node, phase=phase)
        if record.accepted:
            self._tell("snake_loss", record.loss, rows="train")
            if record.accuracy is not None:
                self._tell("snake_accuracy", record.accuracy, rows="train")

    def _on_evaluation(self, record: EvaluationRecord) -> None:
        self._tell("snake_loss", record.loss, rows="test")
        if record.accuracy is not None:
            self._tell("snake_accuracy", record.accuracy, rows="test")
        if record.perplexity is not None:
            self._tell("snake_perplexity", record.perplexity)

    def _tell(self, name: str, value: float, **tags: str) -> None:
        self._meters.tell(name, value, tags)
