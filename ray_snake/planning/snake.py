"""Snake Learning (Yu et al. 2025): a few consecutive blocks train at a time, node after node."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.extensions import ask, check_class, import_path
from ray_snake.planning.adaptation import Adaptation, Choice
from ray_snake.planning.coverage import Coverage
from ray_snake.planning.order import Order, Turn, find_order
from ray_snake.planning.outlook import Facts, Outcome, Outlook
from ray_snake.planning.span import Visit, chosen_spans, cut_spans, trained_blocks
from ray_snake.planning.strategy import Strategy


class Snake(Strategy):
    """The span crawls through the network and the nodes as `snake.order` says.

    A visit counts towards coverage when it is handed out. A refused visit is told through
    `refused`, so that its node trains that span again sooner. The first `snake.warmup_trips` trips
    train the whole model on the nodes that can. With `snake.adapt` the order proposes, and what
    nodes turn out to be able to do decides (`planning.adaptation`).

    Args:
        config: The run's settings.
        nodes: Number of nodes at the start.
        blocks: Number of blocks of the network.
        order: A user's own order; none: the one that the settings name.

    Raises:
        ConfigError: If spans, heads or warm-up nodes don't fit, or there is no such order.
    """

    spreads = True
    takes_order = True

    def __init__(
        self, config: SnakeConfig, *, nodes: int, blocks: int, order: type[Order] | None = None
    ) -> None:
        super().__init__(config, nodes=nodes, blocks=blocks)
        snake = config.snake
        if snake.spans is None:
            self.spans = cut_spans(blocks, snake.span_width)
            self._chosen = [tuple(span.blocks()) for span in self.spans]
        else:
            self.spans = chosen_spans(blocks, snake.spans)
            self._chosen = list(snake.spans)
        if snake.heads > len(self.spans):
            raise ConfigError(
                "snake.heads",
                f"{snake.heads} are more than the spans, {len(self.spans)}",
                "lower it, or make spans narrower",
            )
        self._places = {
            place: Visit(
                number=0,
                trip=0,
                node=0,
                span=span,
                trained=trained_blocks(
                    own, blocks, train_first=snake.train_first, train_last=snake.train_last
                ),
            )
            for place, (span, own) in enumerate(zip(self.spans, self._chosen, strict=True))
        }
        self._apart = {
            place: replace(visit, trained=self._without_others(visit.trained, place))
            for place, visit in self._places.items()
        }
        self._unchanged = [Choice(place=place) for place in self._places]
        self.coverage = Coverage(nodes, len(self.spans))
        # What the order proposed: so it goes its way, whatever nodes were given in its place.
        self._proposed_to = Coverage(nodes, len(self.spans))
        self._proposals: dict[int, int] = {}
        # Asked for again when a planned visit is handed out: its turn, and the place.
        self._proposal: tuple[tuple[int, int, int], int] | None = None
        kind: type[Order] = check_class("order", order, Order) if order else find_order(snake.order)
        make = functools.partial(
            kind,
            spans=len(self.spans),
            seed=config.seed,
            stay=snake.trips_per_span,
            turns=snake.turns,
        )
        self._order: Order = ask("order", kind, make)
        _check_warmup_nodes(config, nodes)
        self._adaptation: Adaptation | None = None

    def know(self, facts: Facts) -> Outlook:
        """Adapt to what is known, if the settings say so."""
        outlook = super().know(facts)
        if self.config.snake.adapt:
            places = list(self._places.values())
            self._adaptation = Adaptation(
                self.config.adaptation, outlook, places, self.whole(0, 0, 0)
            )
        return outlook

    def crossing(self, trip: int) -> list[int]:
        """Return the nodes of a trip as the order has them."""
        members = self.members
        order = self._order
        places = ask("order", type(order), order.crossing, trip, len(members))
        nodes = [members[place] for place in places]
        return nodes if self._adaptation is None else self._adaptation.crossing(trip, nodes)

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a warm-up visit, or one to the span that order, coverage and node allow."""
        if self._trains_whole(trip, node):
            visit = self.whole(number, trip, node)
            if self._adaptation is None:
                return visit
            choice = self._adaptation.shorten(visit)
            return replace(visit, steps=choice.steps, why=choice.why)
        free = self._free_places() or self._all_places
        proposed = self._proposed(number, trip, node)
        counts = self.coverage.counts(node)
        if self._adaptation is not None:
            choice = self._adaptation.suit(
                node, trip=trip, proposed=proposed, places=free, counts=counts
            )
        elif proposed in free and self._is_least(proposed, counts):
            choice = self._unchanged[proposed]
        else:
            least = min(counts[one] for one in free) + self._order.stay
            due = [one for one in free if counts[one] < least]
            choice = self._unchanged[min(due, key=lambda one: (abs(one - proposed), one))]
        there = free[choice.place]
        return Visit(
            number=number,
            trip=trip,
            node=node,
            span=there.span,
            trained=there.trained,
            place=choice.place,
            steps=choice.steps,
            why=choice.why,
        )

    def is_due(self, visit: Visit) -> bool:
        """Return whether a node has trained no other span less often; so heads keep to coverage."""
        if self._adaptation is not None or visit.place is None:
            return True
        return self._is_least(visit.place, self.coverage.counts(visit.node))

    def _is_least(self, place: int, counts: Sequence[int]) -> bool:
        """Return whether coverage leaves a place open to a node with such counts."""
        return counts[place] < min(counts) + self._order.stay

    def is_warm_up(self, visit: Visit) -> bool:
        """Return whether a visit trains the whole model, as only some nodes may be able to."""
        return self._trains_whole(visit.trip, visit.node)

    def learning_rate(self, visit: Visit) -> float:
        """Return the learning rate of a visit: lower where the whole model trains."""
        factor = self.config.snake.warmup_rate if self.is_warm_up(visit) else 1.0
        return factor * super().learning_rate(visit)

    def distillation(self, visit: Visit) -> float | None:
        """Return the weight of distillation where the whole model trains; none elsewhere."""
        return self.config.snake.warmup_distillation if self.is_warm_up(visit) else None

    def begins(self) -> None:
        """Let a trip go by what is known now: more than when it was looked at."""
        if self._adaptation is not None:
            self._adaptation.changed()

    def handed_out(self, visit: Visit) -> None:
        """Count a visit to a span."""
        if visit.place is None:
            return
        proposed = visit.place
        if self._adaptation is not None:
            proposed = self._proposed(visit.number, visit.trip, visit.node)
            self._adaptation.handed_out(proposed, visit)
        self._proposal = None
        self._proposals[visit.number] = proposed
        self._proposed_to.add(visit.node, proposed)
        self.coverage.add(visit.node, visit.place)

    def joined(self, node: int) -> None:
        """Count a node's visits too."""
        self.coverage.join(node)
        self._proposed_to.join(node)
        self._changed()

    def went(self, node: int) -> None:
        """Count a node's visits no more."""
        self.coverage.leave(node)
        self._proposed_to.leave(node)
        self._changed()

    def _changed(self) -> None:
        self._proposal = None
        if self._adaptation is not None:
            self._adaptation.changed()

    def observe(self, outcome: Outcome) -> None:
        """Learn from what a visit took."""
        super().observe(outcome)
        if self._adaptation is not None:
            self._adaptation.observe(outcome)

    def refused(self, visit: Visit) -> None:
        """Take a refused visit out of the coverage."""
        if visit.place is not None:
            self._proposal = None
            self._proposed_to.take_back(visit.node, self._proposals[visit.number])
            self.coverage.take_back(visit.node, visit.place)

    def _trains_whole(self, trip: int, node: int) -> bool:
        """Return whether a visit of a trip trains the whole model."""
        chosen = self.config.snake.warmup_nodes
        return self._is_whole(trip) and (chosen is None or node in chosen)

    def _is_whole(self, trip: int) -> bool:
        snake = self.config.snake
        late = trip - snake.warmup_trips
        return late <= 0 or (snake.whole_every is not None and late % snake.whole_every == 0)

    def _whole_trips(self, trip: int) -> Sequence[int]:
        """Return the trips up to one that the walk over the spans leaves out.

        A node that can't train the whole model has its place in the walk all the same: in the
        warm-up as if there were none, later that of the trip before.
        """
        snake = self.config.snake
        if trip <= snake.warmup_trips:
            return ()
        warm_up = range(1, snake.warmup_trips + 1)
        if snake.whole_every is None:
            return warm_up
        recurring = range(snake.warmup_trips + snake.whole_every, trip + 1, snake.whole_every)
        return [*warm_up, *recurring]

    def _proposed(self, number: int, trip: int, node: int) -> int:
        """Return the place that order and coverage choose."""
        if self._proposal is not None and self._proposal[0] == (number, trip, node):
            return self._proposal[1]
        before = self._whole_trips(trip)
        visits_before = sum(self._trips.visits_of(one) for one in before if one < trip)
        turn = Turn(number=number - visits_before, trip=trip - len(before), node=node)
        open_to = self._proposed_to.least_trained(node, self._order.stay - 1)
        order = type(self._order)
        place: int = ask("order", order, self._order.choose, turn, open_to)
        if place not in open_to:
            raise ConfigError(
                "snake.order",
                f"{import_path(order)} chose {place!r}, and the spans that "
                f"coverage leaves open are {', '.join(map(str, open_to))}",
                "return one of least_trained",
            )
        self._proposal = (number, trip, node), place
        return place

    def _free_places(self) -> Mapping[int, Visit]:
        """Return a visit to each place that no other trains at the moment.

        Of a span's ends, those that another visit trains at the moment are left out.
        """
        places = self._all_places
        if not self.running:
            return places
        busy = {block for visit in self.running for block in visit.trained}
        return {
            place: replace(visit, trained=tuple(one for one in visit.trained if one not in busy))
            for place, visit in places.items()
            if not busy & set(self._chosen[place])
        }

    @property
    def _all_places(self) -> Mapping[int, Visit]:
        """A visit to each place: with as many heads as spans, to its blocks apart from all others.

        An end that is another span's would keep a head from that one.
        """
        return self._apart if self.heads == len(self.spans) else self._places

    def _without_others(self, trained: Sequence[int], place: int) -> tuple[int, ...]:
        """Return those of a place's blocks that belong to no other span."""
        own = self._chosen[place]
        others = {block for chosen in self._chosen for block in chosen}.difference(own)
        return tuple(one for one in trained if one not in others)


def _check_warmup_nodes(config: SnakeConfig, nodes: int) -> None:
    """Check that the nodes exist that can train the whole model.

    Raises:
        ConfigError: If one does not.
    """
    chosen = config.snake.warmup_nodes
    if chosen is not None and max(chosen) >= nodes:
        raise ConfigError(
            "snake.warmup_nodes",
            f"there is no node {max(chosen)} of {nodes}",
            f"use numbers from 0 to {nodes - 1}",
        )
