"""Live progress of a run on the terminal, or plain lines where there is none."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ray_snake.planning.span import Span
from ray_snake.runtime.events import (
    Evaluated,
    Event,
    NodeJoined,
    NodeLeft,
    NodeLost,
    NodeMoved,
    NodeReady,
    Preparing,
    Recovering,
    RunEnded,
    RunStarted,
    VisitDecided,
    VisitLate,
    VisitProgress,
    VisitStarted,
)
from ray_snake.runtime.records import EvaluationRecord, VisitRecord
from ray_snake.telemetry.format import format_bytes, format_seconds

WIDTH_WITH_BAR = 120


class ConsoleProgress:
    """Shows a run as its events come in.

    On a terminal one line is kept up to date: trip, visit, node, span, training loss, accuracy (of
    the latest evaluation, until then of training), bytes pulled by nodes, and time left. Elsewhere
    every decided visit and every evaluation is a line. Lost nodes and refused visits are always
    lines of their own. Bytes and time left count from this object's first event: in a resumed run
    they leave out what was done before.

    Args:
        console: Where to write; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console
        # Standard output belongs to the run's result, so rich must not take it over.
        # On a narrow terminal the words need all the room; what doesn't fit is cut off at the end.
        bar = [BarColumn(bar_width=12)] if self._console.width >= WIDTH_WITH_BAR else []
        self._bar = Progress(
            *bar,
            TextColumn("{task.description}", markup=False),
            console=self._console,
            redirect_stdout=False,
        )
        self._task = self._bar.add_task("", total=None)
        self._live = self._console.is_interactive
        self._closed = False
        self._preparing = ""
        self._started: RunStarted | None = None
        self._ready: set[int] = set()
        self._left: set[int] = set()
        self._under_way: dict[int, VisitStarted] = {}
        self._most_under_way = 1
        self._step = ""
        self._trip = 0
        self._last_visit = 0
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._evaluated = False
        self._bytes_moved = 0
        self._seconds: list[float] = []

    def __enter__(self) -> ConsoleProgress:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def on_event(self, event: Event) -> None:
        """Show one event of the run."""
        match event:
            case Preparing():
                self._preparing = event.what
            case RunStarted():
                self._on_run_started(event)
            case NodeReady():
                self._on_node_ready(event)
            case NodeLost():
                self._ready.discard(event.node)
                self._line(f"node lost: {event.name} ({event.reason}); starting it again")
            case NodeJoined():
                self._on_node_joined(event)
            case NodeLeft():
                self._on_node_left(event)
            case NodeMoved():
                self._ready.discard(event.node)
                self._line(f"node moved: {event.name}, as its machine is about to go")
            case Recovering():
                self._under_way.clear()
                self._line(f"going back to the journal: {event.reason}")
            case VisitStarted():
                self._under_way[event.visit.number] = event
                self._most_under_way = max(self._most_under_way, len(self._under_way))
                self._trip, self._step = event.visit.trip, ""
            case VisitProgress():
                self._step, self._loss = f"step {event.step}/{event.steps}", event.loss
            case VisitLate():
                self._line(
                    f"late: {self._node_name(event.visit.node)} in visit {event.visit.number}, "
                    f"told to stop after {format_seconds(event.seconds)}"
                )
            case VisitDecided():
                self._on_visit_decided(event.record)
            case Evaluated():
                self._on_evaluated(event.record)
            case RunEnded():
                self._line(
                    f"done after visit {self._of(self._last_visit, 'visits')}, "
                    f"moved {format_bytes(self._bytes_moved)}, "
                    f"weights {event.weights_sha256[:12]}"
                )
        self._redraw()
        # rich redraws ten times a second by itself, which is enough within a visit.
        if self._live and not self._closed and not isinstance(event, VisitProgress):
            self._bar.refresh()

    def close(self) -> None:
        """Stop the live line and leave it as it is; more calls do nothing."""
        # Where there is no live line, stopping it would print an empty one.
        if self._live and not self._closed:
            self._bar.stop()
        self._closed = True

    def _on_run_started(self, event: RunStarted) -> None:
        self._started = event
        self._left = set(event.left)
        self._last_visit = event.done
        self._line(
            f"{self._members()} nodes, {len(event.block_names)} blocks "
            f"({format_bytes(sum(event.block_bytes))}), {event.trips} trips, "
            f"{event.visits} visits"
        )
        if event.done:
            self._line(f"resuming after visit {event.done}/{event.visits}")
        if len(self._ready) < self._members():
            self._plain(self._starting())

    def _on_node_ready(self, event: NodeReady) -> None:
        self._ready.add(event.node)
        self._plain(
            f"{self._starting()} ({event.name}: {event.samples} samples, "
            f"{format_seconds(event.seconds)})"
        )

    def _on_node_joined(self, event: NodeJoined) -> None:
        self._ready.add(event.node)
        if self._started is not None:
            names = (*self._started.nodes, event.name)
            self._started = replace(self._started, nodes=names, visits=event.visits)
        self._line(
            f"node joined: {event.name} ({event.samples} samples); {self._members()} nodes take "
            "part from the next trip on"
        )

    def _on_node_left(self, event: NodeLeft) -> None:
        self._left.add(event.node)
        self._ready.discard(event.node)
        if self._started is not None:
            self._started = replace(self._started, visits=event.visits)
        self._line(f"node left: {event.name}; {self._members()} nodes take part")

    def _members(self) -> int:
        return 0 if self._started is None else len(self._started.nodes) - len(self._left)

    def _on_visit_decided(self, record: VisitRecord) -> None:
        self._under_way.pop(record.visit, None)
        self._trip, self._step = record.trip, ""
        self._last_visit = max(self._last_visit, record.visit)
        self._bytes_moved += record.bytes_moved
        self._seconds.append(record.seconds)
        visit = (
            f"trip {self._of(record.trip, 'trips')}  visit {self._of(record.visit, 'visits')}  "
            f"node {record.node_name}  span {Span(*record.span)}"
        )
        if not record.accepted:
            self._line(f"{visit}  refused: {record.reason}")
            return
        self._loss = record.loss
        if not self._evaluated:
            self._accuracy = record.accuracy
        why = [f"({record.why})"] if record.why else []
        self._plain("  ".join([visit, *why, format_seconds(record.seconds), *self._numbers()]))

    def _on_evaluated(self, record: EvaluationRecord) -> None:
        self._evaluated = True
        self._accuracy = record.accuracy
        accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.3f}"
        self._plain(
            f"trip {self._of(record.trip, 'trips')} evaluated after visit {record.visit}: "
            f"loss {record.loss:.4g}{accuracy} "
            f"({record.samples} samples, {format_seconds(record.seconds)})"
        )

    def _starting(self) -> str:
        return f"starting nodes {self._of(len(self._ready), 'nodes')} ready"

    def _of(self, number: int, whole: str) -> str:
        """Return `number/total`, or the number alone while the totals aren't known."""
        if self._started is None:
            return str(number)
        totals = {
            "nodes": self._members(),
            "trips": self._started.trips,
            "visits": self._started.visits,
        }
        return f"{number}/{totals[whole]}"

    def _numbers(self) -> list[str]:
        numbers = []
        if self._loss is not None:
            numbers.append(f"loss {self._loss:.4g}")
        if self._accuracy is not None:
            judged_on = "test" if self._evaluated else "train"
            numbers.append(f"{judged_on} accuracy {self._accuracy:.3f}")
        left = self._seconds_left()
        if left is not None:
            numbers.append(f"{format_seconds(left)} left")
        numbers.append(f"moved {format_bytes(self._bytes_moved)}")
        return numbers

    def _seconds_left(self) -> float | None:
        if self._started is None or not self._seconds:
            return None
        visits_left = self._started.visits - self._last_visit
        if visits_left <= 0:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        return mean * visits_left / self._most_under_way

    def _redraw(self) -> None:
        """Bring the live line up to date; the first call starts it."""
        if not self._live or self._closed:
            return
        if self._trip == 0:
            waiting = self._preparing if self._started is None else self._starting()
            self._bar.update(self._task, description=waiting)
        else:
            visit = max(self._under_way, default=self._last_visit)
            counters = f"trip {self._of(self._trip, 'trips')} visit {self._of(visit, 'visits')}"
            self._bar.update(
                self._task,
                description="  ".join([counters, *self._visiting(), *self._numbers()]),
                total=None if self._started is None else self._started.visits,
                completed=self._last_visit,
            )
        self._bar.start()

    def _visiting(self) -> list[str]:
        visits = [started.visit for started in self._under_way.values()]
        parts = [f"{self._node_name(one.node)} span {one.span}" for one in visits]
        return [*parts, self._step] if self._step else parts

    def _node_name(self, node: int) -> str:
        return f"node {node}" if self._started is None else self._started.nodes[node]

    def _plain(self, text: str) -> None:
        """Write a line where no live line shows the same."""
        if not self._live:
            self._line(text)

    def _line(self, text: str) -> None:
        self._console.print(
            " ".join(text.split("\n")), markup=False, highlight=False, soft_wrap=True
        )
