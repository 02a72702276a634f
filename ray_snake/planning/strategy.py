"""Strategies: who trains what next, and whether results follow each other or are averaged.

The snake is one (`planning.snake`), its rivals are others (`ray_snake.baselines`). A strategy plans
visits; the driver carries them out. The same settings give the same visits.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

from ray_snake.config import SnakeConfig, TrainingConfig
from ray_snake.errors import ConfigError
from ray_snake.extensions import OwnClasses, ask, check_class, find, import_path
from ray_snake.planning.order import forth_and_back
from ray_snake.planning.outlook import Facts, Outcome, Outlook
from ray_snake.planning.span import Span, Visit
from ray_snake.planning.trips import Trips

LOOKED_AT = 4
"""Nodes that are looked at for each head to find one whose visit is due."""


class Strategy(ABC):
    """Hands out a run's visits in order.

    A trip visits every node once, forth and back in turn; a strategy says which blocks a visit
    trains. It can plan other trips too: `crossing`. Nodes may join and leave on the way: see
    `planning.trips`.

    Args:
        config: The run's settings.
        nodes: Number of nodes at the start.
        blocks: Number of blocks of the network.

    Raises:
        ConfigError: If the settings don't fit the strategy, the nodes or the network.
    """

    averages: ClassVar[bool] = False
    """Whether some visits are averaged: all of a trip's then start from the same model."""
    spreads: ClassVar[bool] = False
    """Whether several visits can go on at once: they are averaged, or `plan` heeds `running`."""
    takes_order: ClassVar[bool] = False
    """Whether it is made with a user's own `order` too, which pairs nodes and spans."""
    keeps_nodes: ClassVar[str] = ""
    """Why no node may join or leave on the way; empty where they may."""

    def __init__(self, config: SnakeConfig, *, nodes: int, blocks: int) -> None:
        self.config = config
        self.blocks = blocks
        self.outlook: Outlook | None = None
        """Predicts visits; none before `know`."""
        self.running: tuple[Visit, ...] = ()
        """The visits that go on while `plan` is asked for one more."""
        self._handed_out = 0
        self._trips = Trips(
            nodes=nodes, trips=config.snake.trips, crossing=lambda trip: self.crossing(trip)
        )

    @abstractmethod
    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return the visit that comes next.

        Args:
            number: Its number, from 1.
            trip: Its trip, from 1.
            node: Its node, from 0.
        """

    def crossing(self, trip: int) -> list[int]:
        """Return the nodes of a trip in order: forth on the first trip, back on the second."""
        members = self.members
        places = forth_and_back(trip, len(members), turns=self.config.snake.turns)
        return [members[place] for place in places]

    def learning_rate(self, visit: Visit) -> float:
        """Return the learning rate of a visit: constant within a trip."""
        return scheduled(self.config.training, trip=visit.trip, trips=self.config.snake.trips)

    def distillation(self, visit: Visit) -> float | None:
        """Return a visit's own weight of distillation; none: that of the settings' loss."""
        del visit
        return None

    def damping(self, visit: Visit) -> float:
        """Return the share of its change that a visit returns: all of it where others wait."""
        snake = self.config.snake
        alone = snake.heads == 1 or visit.trip <= snake.heads_after_trips
        return 1.0 if alone or visit.place is None else snake.damping

    def is_warm_up(self, visit: Visit) -> bool:
        """Return whether a visit needs more of its node than most nodes can give."""
        del visit
        return False

    def know(self, facts: Facts) -> Outlook:
        """Take what is known of nodes and blocks, before the first visit."""
        self.outlook = Outlook(self.config, facts)
        return self.outlook

    def is_due(self, visit: Visit) -> bool:
        """Return whether a visit that could begin should, rather than one to a later node."""
        del visit
        return True

    def handed_out(self, visit: Visit) -> None:  # noqa: B027 - for those that count
        """Note that a visit was handed out."""

    def begins(self) -> None:  # noqa: B027 - likewise
        """Note that a trip begins, which may have been looked at before: see `peek`."""

    def observe(self, outcome: Outcome) -> None:
        """Note what a visit took that was handed out; in the order in which they come in."""
        if self.outlook is not None:
            self.outlook.observe(outcome)

    def refused(self, visit: Visit) -> None:  # noqa: B027 - likewise
        """Note that a visit's result did not become part of the model."""

    def join(
        self,
        rows: int,
        *,
        trip: int | None = None,
        training: TrainingConfig | None = None,
        limit: int | None = None,
    ) -> int:
        """Take in one more node; return its number. It takes part from the next trip on.

        Args:
            rows: Rows of its shard.
            trip: The last trip that had begun, where that is known from a journal.
            training: How it trains, where that is not as the settings say.
            limit: Bytes of memory that it has, 0 without a limit; none: as `nodes.memory_bytes`
                says.

        Raises:
            ConfigError: If the strategy keeps to its nodes.
        """
        self.check_may_change()
        self._trips.begin_through(trip or 0)
        if self.outlook is not None:
            self.outlook.join(rows, training=training, limit=limit)
        node = self._trips.join()
        self.joined(node)
        return node

    def leave(self, node: int, *, trip: int | None = None) -> None:
        """Let a node go; no visit to it may be under way. It is dropped from the trip's rest.

        Args:
            node: The node.
            trip: The last trip that had begun, where that is known from a journal.

        Raises:
            ConfigError: If the strategy keeps to its nodes, or it is no member, or the last one.
        """
        self.check_may_change()
        self._trips.begin_through(trip or 0)
        self._trips.leave(node)
        if self.outlook is not None:
            self.outlook.leave(node)
        self.went(node)

    def joined(self, node: int) -> None:  # noqa: B027 - for those that count
        """Note that a node joined."""

    def went(self, node: int) -> None:  # noqa: B027 - likewise
        """Note that a node left."""

    def check_may_change(self) -> None:
        """Check that nodes may join and leave on the way.

        Raises:
            ConfigError: If the strategy keeps to its nodes.
        """
        refusal = why_nodes_stay(self.config, type(self))
        if refusal is not None:
            raise refusal

    @property
    def nodes(self) -> int:
        """How many nodes the run has had so far; their numbers are below it."""
        return self._trips.nodes

    @property
    def members(self) -> list[int]:
        """The nodes that take part, ascending."""
        return self._trips.members

    @property
    def trip(self) -> int:
        """The last trip that has begun."""
        return self._trips.trip

    @property
    def is_within_trip(self) -> bool:
        """Whether a trip has begun and has visits that were not handed out."""
        return bool(self._trips.left)

    @property
    def total(self) -> int:
        """Visits of the whole run if nobody joins or leaves any more: see `Trips.total`."""
        return self._trips.total

    def ends_trip(self, visits: int) -> bool:
        """Return whether a trip is over after so many visits."""
        return self._trips.ends_trip(visits)

    @property
    def trips(self) -> int:
        """Trips of the whole run."""
        return self.config.snake.trips

    @property
    def heads(self) -> int:
        """Visits that may go on at once, now."""
        snake = self.config.snake
        trip = self._trips.trip if self._trips.left else self._trips.trip + 1
        return snake.heads if trip > snake.heads_after_trips else 1

    @property
    def mean(self) -> range | None:
        """Numbers of the last visits that the final weights are the mean over; none: no mean."""
        visits = self.config.snake.mean_visits
        if visits is None:
            return None
        return range(max(1, self.total - visits + 1), self.total + 1)

    @property
    def is_over(self) -> bool:
        """Whether all visits were handed out."""
        return self._trips.is_over

    def next(self, running: Sequence[Visit] = (), busy: Collection[int] = ()) -> Visit | None:
        """Hand out the next visit.

        Args:
            running: The visits that go on meanwhile.
            busy: Nodes that can't be visited meanwhile.

        Returns:
            None when the run's trips are done, or when nothing can be done beside what is running.
        """
        trips = self._trips
        if not trips.left and trips.trip < self.trips:
            self.begins()
            trips.begin()
        visit = self.peek(running, busy)
        if visit is not None:
            self._handed_out = visit.number
            trips.take(visit.trip, visit.node)
            self.handed_out(visit)
        return visit

    def peek(self, running: Sequence[Visit] = (), busy: Collection[int] = ()) -> Visit | None:
        """Return the visit that `next` would hand out now, without handing it out."""
        self.running = tuple(running)
        found: list[Visit] = []
        for trip, node in self._trips.left or self._trips.following():
            if node in busy:
                continue
            visit = self._planned(trip, node)
            if not running or all(_may_go_on_together(visit, one) for one in running):
                found.append(visit)
                if self.is_due(visit):
                    return visit
                if len(found) == LOOKED_AT * self.heads:
                    break
            elif not self.spreads:
                break
        # Better a visit that is not due than a head without one.
        return found[0] if found else None

    def _planned(self, trip: int, node: int) -> Visit:
        visit: object = ask("strategy", type(self), self.plan, self._handed_out + 1, trip, node)
        if not isinstance(visit, Visit):
            raise ConfigError(
                "strategy",
                f"{import_path(type(self))}.plan returned {visit!r}",
                "return a ray_snake.Visit",
            )
        return visit

    def adopt(self, visit: Visit) -> None:
        """Take a visit as handed out that was so before: see `next`."""
        self._trips.begin_through(visit.trip)
        self._trips.take(visit.trip, visit.node)
        self._handed_out = max(self._handed_out, visit.number)
        self.handed_out(visit)

    def upcoming_nodes(self) -> list[int]:
        """Return the nodes that still have visits, in the order of their next one."""
        visits = [*self._trips.left, *self._trips.following()]
        return list(dict.fromkeys(node for _, node in visits))

    def whole(
        self,
        number: int,
        trip: int,
        node: int,
        *,
        averaged: bool = False,
        cut: int | None = None,
    ) -> Visit:
        """Return a visit that trains all blocks, on the node or on both sides of a cut."""
        return Visit(
            number=number,
            trip=trip,
            node=node,
            span=Span(0, self.blocks),
            trained=tuple(range(self.blocks)),
            averaged=averaged,
            cut=cut,
        )


def why_nodes_stay(config: SnakeConfig, kind: type[Strategy] | None) -> ConfigError | None:
    """Return why no node may join or leave a run on the way; none where nodes may.

    Args:
        config: The run's settings.
        kind: Its strategy; none: a user's own, which the run alone knows.
    """
    remedy = "start another run with the nodes that it is to have"
    if config.snake.mean_visits is not None:
        return ConfigError(
            "snake.mean_visits",
            "no node can join or leave on the way: which visits are a run's last would change",
            remedy,
        )
    if kind is not None and kind.keeps_nodes:
        return ConfigError(
            "strategy",
            f"with {config.strategy!r} no node can join or leave on the way: {kind.keeps_nodes}",
            remedy,
        )
    return None


def _may_go_on_together(one: Visit, other: Visit) -> bool:
    """Return whether neither of two visits changes what the other trains.

    Those that are averaged all start from the same model, within their trip.
    """
    if one.averaged or other.averaged:
        return one.averaged and other.averaged and one.trip == other.trip
    return not set(one.trained) & set(other.trained)


def scheduled(training: TrainingConfig, *, trip: int, trips: int) -> float:
    """Return the learning rate of a trip (from 1).

    `cosine` is eta/2 * (1 + cos(pi * (trip - 1) / trips)), Loshchilov and Hutter (2017,
    arXiv:1608.03983) without restarts, stepped once a trip.
    """
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (trip - 1) / trips))


def make_strategy(
    config: SnakeConfig, *, nodes: int, blocks: int, own: OwnClasses | None = None
) -> Strategy:
    """Return the settings' strategy at a run's start.

    Args:
        config: The run's settings.
        nodes: Number of nodes.
        blocks: Number of blocks of the network.
        own: A user's own classes; none: what the settings name.

    Raises:
        ConfigError: If there is none of that name, or the settings don't fit it.
    """
    own = own or OwnClasses()
    named = own.strategy or find("strategy", config.strategy)
    chosen: type[Strategy] = check_class("strategy", named, Strategy)
    if own.order is not None and not chosen.takes_order:
        raise ConfigError(
            "order",
            f"{import_path(own.order)} is for the snake, and the strategy is {config.strategy!r}",
            "leave it out, or choose a strategy that is a snake",
        )
    if chosen.averages and config.codec.name != "none":
        raise ConfigError(
            "codec.name",
            f"{config.codec.name!r} is for blocks that go from node to node, and "
            f"{config.strategy!r} averages them at the driver's side",
            'set it to "none"',
        )
    if chosen.averages and config.training.optimizer_state != "reset":
        raise ConfigError(
            "training.optimizer_state",
            f"{config.training.optimizer_state!r} is for blocks that go from node to node, and "
            f"{config.strategy!r} averages them",
            'set it to "reset"',
        )
    ordered = {} if own.order is None else {"order": own.order}
    strategy: Strategy = ask(
        "strategy", chosen, functools.partial(chosen, config, nodes=nodes, blocks=blocks, **ordered)
    )
    _check_heads(strategy)
    _check_mean(strategy)
    return strategy


def _check_heads(strategy: Strategy) -> None:
    heads = strategy.config.snake.heads
    if heads == 1:
        return
    if not strategy.spreads:
        raise ConfigError(
            "snake.heads",
            f"{heads}, and with {strategy.config.strategy!r} each visit follows another",
            "set it to 1",
        )
    if heads > strategy.nodes:
        raise ConfigError(
            "snake.heads", f"{heads} are more than the nodes, {strategy.nodes}", "lower it"
        )
    if strategy.config.codec.name != "none":
        raise ConfigError(
            "snake.heads",
            f"{heads}, and codec.name {strategy.config.codec.name!r} is for a single one",
            'set it to 1, or codec.name to "none"',
        )


def _check_mean(strategy: Strategy) -> None:
    config = strategy.config
    if config.snake.mean_visits is None:
        return
    subject, remedy = f"{config.snake.mean_visits}", 'set it to "none"'
    if strategy.averages:
        problem = f"and {config.strategy!r} averages its rounds itself"
    elif config.snake.heads > 1:
        problem = f"and with {config.snake.heads} heads (snake.heads) visits have no one order"
    elif config.codec.name != "none":
        problem = f"and codec.name {config.codec.name!r} is for what one visit leaves to the next"
    else:
        return
    raise ConfigError("snake.mean_visits", f"{subject}, {problem}", remedy)
