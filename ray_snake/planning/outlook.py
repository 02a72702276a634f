"""What is known of a run's nodes: their rows, and how fast each has turned out to be.

Estimates derive from decided visits alone, in the order in which they were decided. So a run that
goes on from its journal knows what it knew, and equal measurements give equal decisions.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, replace

from ray_snake.config import SnakeConfig, TrainingConfig
from ray_snake.planning.cost import BlockCost, VisitCost, VisitModel, total_steps
from ray_snake.planning.memory import carried_sets
from ray_snake.planning.span import Visit

DECAY = 0.6
"""Weight of what was known of a node before, at each new measurement."""
SPAN_DECAY = 0.9
"""The same of a span, which all nodes measure."""
RATES_KEPT = 4
"""Pulls by which a link is judged: the fastest of the latest ones."""
LEAST_BYTES = 100_000
"""Pulls of less say nothing of a link: Ray sends small objects along with its messages."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known before the first visit.

    Attributes:
        rows: Rows of each node's shard, by number, of those that left too.
        costs: What each block costs, measured on one machine for a single sample.
        training: How each node trains, where that is not as the settings say; else empty.
        limits: Bytes of memory that each node has, 0 where it has no limit; empty: as
            `nodes.memory_bytes` says.
    """

    rows: tuple[int, ...]
    costs: tuple[BlockCost, ...]
    training: tuple[TrainingConfig | None, ...] = ()
    limits: tuple[int, ...] = ()

    @property
    def flops_per_second(self) -> float:
        """Speed of the machine that measured, forward through the whole network."""
        seconds = sum(one.forward_seconds for one in self.costs)
        return sum(one.forward_flops for one in self.costs) / seconds if seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a decided visit took.

    Attributes:
        visit: The visit.
        steps: Optimizer steps that it made.
        train_seconds: Its computing time.
        seconds: From sending it to its end, as the driver sees it.
        pull_bytes: Bytes that its node pulled while the visit waited for them.
        pull_seconds: How long that took.
        fetch_seconds: How long it waited for what was being fetched ahead of it.
        free_bytes: Free memory of its machine at its end; none if unknown.
        late: Whether it was stopped at its deadline.
    """

    visit: Visit
    steps: int
    train_seconds: float
    seconds: float
    pull_bytes: int = 0
    pull_seconds: float = 0.0
    fetch_seconds: float = 0.0
    free_bytes: int | None = None
    late: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is expected of a visit.

    Attributes:
        seconds: From sending it to its end.
        private_bytes: Its node's own peak memory.
    """

    seconds: float
    private_bytes: int


class Ratio:
    """A ratio that is measured again and again, as a ratio of decaying sums.

    Each sum is an exponential moving average; the correction of their bias (Kingma and Ba 2015,
    arXiv:1412.6980, section 3) is the same for both and cancels.

    Args:
        decay: Weight of what was known before.
        settles: Whether the first measurement is forgotten with the second: a process takes longer
            the first time.
    """

    __slots__ = ("_count", "_decay", "_over", "_settles", "_under", "value")

    def __init__(self, decay: float = DECAY, *, settles: bool = False) -> None:
        self._decay = decay
        self._settles = settles
        self._count = 0
        self._over = 0.0
        self._under = 0.0
        self.value: float | None = None
        """The ratio; none before the first measurement."""

    def add(self, over: float, under: float) -> None:
        """Take one more measurement."""
        self._count += 1
        if self._settles and self._count == 2:
            self._over = self._under = 0.0
        self._over = self._decay * self._over + (1 - self._decay) * over
        self._under = self._decay * self._under + (1 - self._decay) * under
        self.value = self._over / self._under if self._under > 0 else None

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left in it of a first measurement that is to be forgotten."""
        return self._count > self._settles


class _Model:
    """Predicts the visits that train the same blocks, and remembers what it said.

    Attributes:
        visits: What predicts.
        full: Computing seconds of a visit of all its steps, by rows.
        shortened: Those of a visit of fewer, by rows and steps.
        found: How much longer such visits take than was measured, on nodes whose pace is known.
    """

    __slots__ = ("found", "full", "shortened", "visits")

    def __init__(self, visits: VisitModel) -> None:
        self.visits = visits
        self.full: dict[int, float] = {}
        self.shortened: dict[tuple[int, int], float] = {}
        self.found = Ratio(SPAN_DECAY)


class Outlook:
    """Predicts visits from what is known so far.

    A visit computes, pulls what it waits for, and takes its node some time beside. A node's pace is
    how much longer it computes than the machine that measured the blocks; so what was measured on
    one span holds for others. Its link's rate is that of the fastest pull of late: a pull is as
    slow as the slower of two links. A node that has not been seen yet is taken for a middling one.

    Args:
        config: The run's settings.
        facts: What is known before the first visit.
    """

    def __init__(self, config: SnakeConfig, facts: Facts) -> None:
        self.facts = facts
        self._config = config
        self._rows = facts.rows
        nodes = len(facts.rows)
        self._paces = [Ratio(settles=True) for _ in range(nodes)]
        self._overheads = [Ratio(settles=True) for _ in range(nodes)]
        self._rates: list[deque[float]] = [deque(maxlen=RATES_KEPT) for _ in range(nodes)]
        self._last: int | None = None
        self._free_bytes: list[int | None] = [None] * nodes
        self._models: dict[tuple[tuple[int, ...], int | None], _Model] = {}
        self._training = list(facts.training) or [None] * nodes
        self._fitted: dict[tuple[tuple[int, ...], int | None, TrainingConfig], VisitModel] = {}
        self._limits = list(facts.limits) or [config.nodes.memory_bytes] * nodes
        self._full_steps = [total_steps(rows, config.training) for rows in facts.rows]
        self.members = list(range(nodes))
        """The nodes that take part, ascending."""
        self._seen: set[int] = set()
        self._middling = (1.0, 0.0)
        self._middling_due = 1

    def join(
        self, rows: int, *, training: TrainingConfig | None = None, limit: int | None = None
    ) -> None:
        """Take in one more node; see `Strategy.join`."""
        self.members.append(len(self.facts.rows))
        self.facts = replace(self.facts, rows=(*self.facts.rows, rows))
        self._rows = self.facts.rows
        self._paces.append(Ratio(settles=True))
        self._overheads.append(Ratio(settles=True))
        self._rates.append(deque(maxlen=RATES_KEPT))
        self._free_bytes.append(None)
        self._training.append(training)
        self._limits.append(self._config.nodes.memory_bytes if limit is None else limit)
        self._full_steps.append(total_steps(rows, self._config.training))

    def leave(self, node: int) -> None:
        """Leave a node out of what is middling from now on."""
        self.members.remove(node)
        self._seen.discard(node)

    def observe(self, outcome: Outcome) -> None:
        """Take what a decided visit took."""
        if outcome.steps == 0:
            return
        visit = outcome.visit
        node = visit.node
        model = self._model(visit)
        if outcome.steps == (visit.steps or self._full_steps[node]):
            work = self._measured(model, visit, node)
        else:
            work = model.visits.seconds(rows=self._rows[node], steps=outcome.steps)
        pace, factor = self._paces[node].value, model.found.value or 1.0
        if pace is not None and self._paces[node].is_settled:
            model.found.add(outcome.train_seconds, pace * work)
        self._paces[node].add(outcome.train_seconds, factor * work)
        beside = outcome.seconds - outcome.train_seconds
        beside -= outcome.pull_seconds + outcome.fetch_seconds
        self._overheads[node].add(max(0.0, beside), 1.0)
        if outcome.pull_bytes >= LEAST_BYTES and outcome.pull_seconds > 0:
            self._rates[node].append(outcome.pull_bytes / outcome.pull_seconds)
        self._last = node
        self._free_bytes[node] = outcome.free_bytes
        self._seen.add(node)
        # Of thousands of nodes not one by one: each time, some more of them.
        if len(self._seen) >= self._middling_due:
            self._middling_due += 1 + len(self._seen) // 8
            self._middling = self._find_middling()

    def cost(self, visit: Visit, node: int) -> VisitCost:
        """Return the cost of a visit if it were to `node`, where the blocks were measured."""
        steps = visit.steps or self.full_steps(node)
        return self._on_node(visit, node).predict(rows=self._rows[node], steps=steps)

    def seconds(self, visit: Visit, node: int) -> float:
        """Return the seconds that a visit would take `node`, from sending it to its end.

        As if what it trains had been trained elsewhere just before, so that it waits for that.
        """
        return self.computing(visit, node) + self.pulling(visit, node) + self.overhead(node)

    def computing(self, visit: Visit, node: int) -> float:
        """Return the seconds that a visit would compute on `node`."""
        return self.pace(node) * self.work(visit, node)

    def pulling(self, visit: Visit, node: int) -> float:
        """Return the seconds that `node` would wait for what a visit trains; 0 if unknown."""
        rate = self.bytes_per_second(node)
        if rate is None:
            return 0.0
        sets = 1 + carried_sets(self._config.training)
        return sum(self.facts.costs[block].weight_bytes * sets for block in visit.trained) / rate

    def work(self, visit: Visit, node: int) -> float:
        """Return a visit's computing seconds on `node`'s rows, where blocks were measured.

        Corrected by what visits to these blocks turned out to take.
        """
        model = self._models.get((visit.trained, visit.cut)) or self._model(visit)
        return (model.found.value or 1.0) * self._measured(model, visit, node)

    def measured(self, visit: Visit, node: int) -> float:
        """Return the same without that correction."""
        return self._measured(self._model(visit), visit, node)

    def correction(self, visit: Visit) -> float:
        """Return how much longer visits to these blocks take than was measured."""
        return self._model(visit).found.value or 1.0

    def _measured(self, model: _Model, visit: Visit, node: int) -> float:
        rows, steps = self._rows[node], visit.steps
        # Planning asks for the same ones again and again.
        found = model.shortened.get((rows, steps)) if steps else model.full.get(rows)
        if found is not None:
            return found
        found = model.visits.seconds(rows=rows, steps=steps or self._full_steps[node])
        if steps:
            model.shortened[rows, steps] = found
        else:
            model.full[rows] = found
        return found

    def samples(self, visit: Visit, node: int) -> int:
        """Return the samples that the optimizer would see in a visit if it were to `node`."""
        steps = visit.steps or self._full_steps[node]
        return self._model(visit).visits.samples(rows=self._rows[node], steps=steps)

    def expected_seconds(self, visit: Visit, pull_bytes: int) -> float:
        """Return the seconds that a visit will take its node from when it is sent to it.

        Args:
            visit: The visit.
            pull_bytes: Bytes that it will wait for; mostly they come from the latest visit's node.
        """
        node = visit.node
        pulling = 0.0
        if pull_bytes >= LEAST_BYTES:
            ends = (node,) if self._last is None else (node, self._last)
            rates = [rate for one in ends if (rate := self.bytes_per_second(one)) is not None]
            pulling = pull_bytes / min(rates) if rates else 0.0
        return self.computing(visit, node) + pulling + self.overhead(node)

    def predict(self, visit: Visit, pull_bytes: int = 0) -> Prediction:
        """Return what is expected of a visit to its node; see `expected_seconds`."""
        return Prediction(
            seconds=self.expected_seconds(visit, pull_bytes),
            private_bytes=self._peak_bytes(visit, visit.node),
        )

    def knows(self, node: int) -> bool:
        """Return whether a node was seen at work."""
        return self._paces[node].value is not None

    def full_steps(self, node: int) -> int:
        """Return the optimizer steps that the settings give a visit to a node."""
        return self._full_steps[node]

    def pace(self, node: int) -> float:
        """Return how much longer a node computes than the machine that measured the blocks."""
        own = self._paces[node].value
        return self._middling[0] if own is None else own

    def overhead(self, node: int) -> float:
        """Return the seconds that a node's visits take beside computing and pulling."""
        own = self._overheads[node].value
        return self._middling[1] if own is None else own

    def flops_per_second(self, node: int) -> float:
        """Return a node's speed in floating-point operations per second."""
        return self.facts.flops_per_second / self.pace(node)

    def bytes_per_second(self, node: int) -> float | None:
        """Return the rate of a node's link; none if it never waited for blocks."""
        return max(self._rates[node], default=None)

    def room(self, node: int) -> int | None:
        """Return the bytes that a visit may take of a node's memory; none if nothing is known.

        Of a GPU's where it computes on one: limits are of the heap.
        """
        free = self._free_bytes[node]
        limit = 0 if self._config.nodes.on_gpus else self._limits[node]
        return min(limit, free) if limit and free else (limit or free or None)

    def has_room(self, visit: Visit, node: int) -> bool:
        """Return whether a node's memory, as far as it is known, bears a visit."""
        room = self.room(node)
        return room is None or self._peak_bytes(visit, node) <= room

    def _peak_bytes(self, visit: Visit, node: int) -> int:
        return self.cost(visit, node).peak_bytes(on_gpu=self._config.nodes.on_gpus)

    def _on_node(self, visit: Visit, node: int) -> VisitModel:
        """Return what predicts a visit as a node trains: what it takes besides time may differ."""
        training = self._training[node]
        if training is None:
            return self._model(visit).visits
        key = (visit.trained, visit.cut, training)
        if key not in self._fitted:
            self._fitted[key] = self._visit_model(visit, training)
        return self._fitted[key]

    def _model(self, visit: Visit) -> _Model:
        key = (visit.trained, visit.cut)
        model = self._models.get(key)
        if model is None:
            visits = self._visit_model(visit, self._config.training)
            model = self._models[key] = _Model(visits)
        return model

    def _visit_model(self, visit: Visit, training: TrainingConfig) -> VisitModel:
        return VisitModel(
            visit,
            self.facts.costs,
            training=training,
            loss=self._config.loss,
            augmentation=self._config.augmentation,
        )

    def _find_middling(self) -> tuple[float, float]:
        """Return pace and overhead of a middling node, of those seen so far."""
        paces = [value for node in self._seen if (value := self._paces[node].value) is not None]
        beside = [self.overhead(node) for node in self._seen]
        return statistics.median(paces) if paces else 1.0, statistics.median(beside)
