"""A run on a virtual clock: the strategies of real runs decide, nodes that were drawn take time.

What is modelled: computing time from measured blocks and each node's pace; the blocks that a node
lacks, pulled over the slower of its link and the sender's, ahead of its visit as far as the visit
before leaves time for it; visits at once; nodes that come and go; deadlines. What is not: loss and
accuracy, and machines that several nodes share.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_snake.config import SnakeConfig
from ray_snake.planning.cost import BlockCost
from ray_snake.planning.memory import carried_sets
from ray_snake.planning.outlook import Facts, Outcome
from ray_snake.planning.snake import Snake
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import make_strategy
from ray_snake.simulation.presence import Presence
from ray_snake.simulation.world import World

TRIPS_SCHEMA: pa.Schema = pa.schema(
    [
        ("trip", pa.int64()),
        ("ended_at_seconds", pa.float64()),
        ("visits", pa.int64()),
        ("late", pa.int64()),
        ("bytes", pa.int64()),
        ("busy_seconds", pa.float64()),
        ("samples", pa.int64()),
        ("covered", pa.float64()),
    ]
)
"""What became of each trip: `bytes` that moved, `busy_seconds` of computing, `samples` trained on,
`covered`: share of all pairs of node and span that were trained until then, null without spans."""


@dataclass(kw_only=True)
class Trip:
    """What became of a trip so far; see `TRIPS_SCHEMA`."""

    trip: int
    ended_at_seconds: float = 0.0
    visits: int = 0
    late: int = 0
    bytes: int = 0
    busy_seconds: float = 0.0
    samples: int = 0
    covered: float | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A simulated run in a few numbers.

    Attributes:
        nodes: Number of nodes.
        trips: Trips done.
        visits: Visits done.
        late: Visits that were stopped at their deadline.
        seconds: Virtual seconds of the whole run.
        trip_seconds: Those of a trip, on average.
        idle_share: Share of all nodes' time in which they did not compute.
        bytes_moved: Bytes of blocks that nodes pulled, or returned to be averaged.
        samples: Samples trained on.
        covered: Share of all pairs of node and span that were trained; none without spans.
    """

    nodes: int
    trips: int
    visits: int
    late: int
    seconds: float
    trip_seconds: float
    idle_share: float
    bytes_moved: int
    samples: int
    covered: float | None


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A simulated run.

    Attributes:
        nodes: Number of nodes.
        trips: What became of each trip.
    """

    nodes: int
    trips: list[Trip]

    @property
    def table(self) -> pa.Table:
        """One row for each trip: `TRIPS_SCHEMA`."""
        return pa.Table.from_pylist([vars(one) for one in self.trips], schema=TRIPS_SCHEMA)

    @property
    def summary(self) -> Summary:
        """The whole run in a few numbers."""
        seconds = max(one.ended_at_seconds for one in self.trips)
        busy = sum(one.busy_seconds for one in self.trips)
        return Summary(
            nodes=self.nodes,
            trips=len(self.trips),
            visits=sum(one.visits for one in self.trips),
            late=sum(one.late for one in self.trips),
            seconds=seconds,
            trip_seconds=seconds / len(self.trips),
            idle_share=1 - busy / (self.nodes * seconds) if seconds else 0.0,
            bytes_moved=sum(one.bytes for one in self.trips),
            samples=sum(one.samples for one in self.trips),
            covered=self.trips[-1].covered,
        )


@dataclass(order=True)
class _Running:
    """A visit under way, ordered by its end."""

    end: float
    number: int
    visit: Visit = field(compare=False)
    outcome: Outcome = field(compare=False)
    busy_seconds: float = field(compare=False)
    samples: int = field(compare=False)
    bytes: int = field(compare=False)


class Simulator:
    """Drives a strategy against a world.

    Args:
        config: The run's settings.
        world: The nodes.
        costs: What each block costs.

    Raises:
        ConfigError: If the settings don't fit the nodes or the network.
    """

    def __init__(self, config: SnakeConfig, world: World, costs: tuple[BlockCost, ...]) -> None:
        self._world = world
        self.strategy = make_strategy(config, nodes=len(world), blocks=len(costs))
        self._outlook = self.strategy.know(Facts(rows=tuple(world.rows.tolist()), costs=costs))
        self._clock = 0.0
        self._running: list[_Running] = []
        self._at_work: set[int] = set()
        self._presence = Presence(world)
        self._exchange = _Exchange(world, costs, carried=carried_sets(config.training))
        # Lists, as elements of arrays are slow one by one.
        self._paces: list[float] = world.pace.tolist()
        self._latencies: list[float] = world.latency_seconds.tolist()
        self._rates: list[float] = world.bytes_per_second.tolist()
        self._corrections = world.corrections
        self._batches = np.minimum(config.training.batch_size, world.rows).tolist()
        self._patience = config.adaptation.deadline if config.snake.adapt else None
        self._min_deadline = config.adaptation.min_deadline_seconds
        self._drops_late = config.adaptation.late == "drop"
        self._places = len(self.strategy.spans) if isinstance(self.strategy, Snake) else 0
        self._nodes = len(world)
        self._rounds: list[Visit] = []
        self._trips: dict[int, Trip] = {}
        # Pairs of node and place, as one number each.
        self._covered: set[int] = set()

    def run(self, on_trip: Callable[[int], None] = lambda trip: None) -> Simulation:
        """Run to the end of the last trip.

        Args:
            on_trip: Told each trip, in order, when all its visits have ended.

        Raises:
            RunError: If nodes are gone for good that have visits left, or a visit would take more
                than `presence.MOST_STAYS`.
        """
        told = 0
        while True:
            self._begin_visits()
            if not self._running:
                if self.strategy.is_over:
                    break
                self._clock = self._presence.next_change(self._clock)
                continue
            self._end_first()
            while told + 1 in self._trips and self._trips[told + 1].visits == self._nodes:
                told += 1
                on_trip(told)
        trips = [self._trips[trip] for trip in sorted(self._trips)]
        return Simulation(nodes=len(self._world), trips=trips)

    def _begin_visits(self) -> None:
        presence = self._presence
        while len(self._running) < self.strategy.heads:
            if presence.changes:
                presence.go_on(self._clock)
            busy = self._at_work | presence.absent if presence.absent else self._at_work
            running = [one.visit for one in self._running]
            running.sort(key=lambda one: one.number)
            visit = self.strategy.next(running, busy)
            if visit is None:
                break
            heapq.heappush(self._running, self._begin(visit))
            self._at_work.add(visit.node)

    def _begin(self, visit: Visit) -> _Running:
        node = visit.node
        pulled, waiting_bytes, waiting = self._exchange.pull(visit, self._clock)
        deadline = self._deadline(visit, waiting_bytes)
        work = self._paces[node] * self._outlook.measured(visit, node)
        if self._corrections:
            work *= self._corrections.get(visit.trained, 1.0)
        beside = waiting + self._latencies[node]
        full = visit.steps or self._outlook.full_steps(node)
        steps, late = full, False
        if deadline is not None and beside + work > deadline and work > 0:
            share = max(0.0, deadline - beside) / work
            steps, late, work = max(1, round(share * full)), True, max(0.0, deadline - beside)
        returned = self._exchange.bytes_of(visit) if visit.averaged else 0
        if returned:
            beside += returned / self._rates[node]
        outcome = Outcome(
            visit=visit,
            steps=steps,
            train_seconds=work,
            seconds=beside + work,
            pull_bytes=waiting_bytes,
            pull_seconds=waiting,
            late=late,
        )
        return _Running(
            end=self._presence.end_of(node, self._clock, beside + work),
            number=visit.number,
            visit=visit,
            outcome=outcome,
            busy_seconds=work,
            samples=steps * self._batches[node] if late else self._outlook.samples(visit, node),
            bytes=pulled + returned,
        )

    def _deadline(self, visit: Visit, pull_bytes: int) -> float | None:
        """Return the deadline of a visit that will wait for so many bytes; none: it has none."""
        if self._patience is None:
            return None
        expected = self._outlook.expected_seconds(visit, pull_bytes)
        return max(self._min_deadline, self._patience * expected)

    def _end_first(self) -> None:
        done = heapq.heappop(self._running)
        visit = done.visit
        self._clock = done.end
        self._at_work.discard(visit.node)
        dropped = done.outcome.late and self._drops_late
        if visit.averaged:
            self._rounds.append(visit)
            self._end_round_if_due(visit)
        elif not dropped:
            self._exchange.commit(visit, self._clock)
        self.strategy.observe(done.outcome)
        if dropped:
            self.strategy.refused(visit)
        elif visit.place is not None:
            self._covered.add(visit.node * self._places + visit.place)
        trip = self._trips.get(visit.trip)
        if trip is None:
            trip = self._trips[visit.trip] = Trip(trip=visit.trip)
        trip.ended_at_seconds = max(trip.ended_at_seconds, self._clock)
        trip.visits += 1
        trip.late += done.outcome.late
        trip.bytes += done.bytes
        trip.busy_seconds += done.busy_seconds
        trip.samples += done.samples
        if self._places:
            trip.covered = len(self._covered) / (self._nodes * self._places)

    def _end_round_if_due(self, visit: Visit) -> None:
        others = [*(one.visit for one in self._running), self.strategy.peek()]
        if not any(one is not None and one.averaged and one.trip == visit.trip for one in others):
            self._exchange.commit_mean(self._rounds, self._clock, version=visit.number)
            self._rounds.clear()


class _Exchange:
    """Which version of each block each node has, and what pulling the others takes.

    Args:
        world: The nodes.
        costs: What each block costs.
        carried: Numbers of an optimizer's state that travel with each weight.
    """

    def __init__(self, world: World, costs: tuple[BlockCost, ...], *, carried: int) -> None:
        self._first_bytes = np.array([one.weight_bytes for one in costs], dtype=np.float64)
        self._bytes = self._first_bytes * (1 + carried)
        self._base_bytes = world.base_bytes
        self._rates: list[float] = world.bytes_per_second.tolist()
        self._versions = np.zeros(len(costs), dtype=np.int64)
        self._held = np.full((len(world), len(costs)), -1, dtype=np.int64)
        # What came to be since the latest visit began: when, at which node, none of a mean, which
        # is at the driver's side; and its bytes.
        self._fresh: list[tuple[float, int | None, int]] = []
        self._last_begin = 0.0
        self._of: dict[tuple[int, ...], tuple[NDArray[np.intp], int]] = {}

    def bytes_of(self, visit: Visit) -> int:
        """Return the bytes of what a visit trains."""
        return self._trained(visit)[1]

    def pull(self, visit: Visit, now: float) -> tuple[int, int, float]:
        """Pull what a node lacks; return its bytes, and bytes and seconds that the visit waits for.

        What was there when the visit before began was fetched meanwhile, as far as time allowed.
        Bases, which come with a node's first visit, count in what it waits for alone.
        """
        node = visit.node
        held = self._held[node]
        bases = self._base_bytes if held[0] < 0 else 0
        sizes = np.where(self._versions > 0, self._bytes, self._first_bytes)
        pulled = int(np.add.reduce(sizes[held != self._versions]))
        held[:] = self._versions
        began, self._last_begin = self._last_begin, now
        self._fresh = [one for one in self._fresh if one[0] > began]
        rate = self._rates[node]
        fresh_bytes, waiting = 0, 0.0
        for _, maker, size in self._fresh:
            if maker != node:
                fresh_bytes += size
                waiting += size / (rate if maker is None else min(rate, self._rates[maker]))
        fresh_bytes = min(fresh_bytes, pulled)
        late = (pulled - fresh_bytes + bases) / rate - (now - began)
        if late > 0:
            return pulled, pulled + bases, waiting + late
        return pulled, fresh_bytes, waiting

    def commit(self, visit: Visit, now: float) -> None:
        """Make what a visit trained the current version, which its node has."""
        trained, size = self._trained(visit)
        self._versions[trained] = self._held[visit.node][trained] = visit.number
        self._fresh.append((now, visit.node, size))

    def commit_mean(self, visits: Sequence[Visit], now: float, version: int) -> None:
        """Make the mean of what visits trained the current version, which no node has yet."""
        trained = sorted({block for one in visits for block in one.trained})
        self._versions[trained] = version
        self._fresh.append((now, None, int(self._bytes[trained].sum())))

    def _trained(self, visit: Visit) -> tuple[NDArray[np.intp], int]:
        found = self._of.get(visit.trained)
        if found is None:
            trained = np.array(visit.trained, dtype=np.intp)
            found = self._of[visit.trained] = trained, int(self._bytes[trained].sum())
        return found
