"""Adaptation: what a visit becomes on a node that is slower, or has less room, than others.

The measure is the middling node: half of all nodes are slower. A node that would compute longer
for a visit than that one gets the time of the middling node's visits (times `patience`; so all slow
nodes get the same, which is proportional fairness), trains the span that it gets furthest with in
it, and makes fewer steps. Spans that slow nodes leave behind go to fast nodes, in exchange for
those that slow nodes took. Coverage bends, and does not break: see `min_coverage`.

Steps don't help a slow link. But blocks go from node to node as fast as the slower of their links.
So trips cross the nodes from fast links to slow ones and back: each slow link is then waited for
once a trip, where between two fast ones it is waited for twice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray_snake.config import AdaptationConfig
from ray_snake.planning.outlook import Outcome, Outlook
from ray_snake.planning.span import Visit


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a node is given.

    Attributes:
        place: The place that it trains.
        steps: Optimizer steps; none: as many as the settings say.
        why: Why it is not what the order proposed; empty where it is.
    """

    place: int
    steps: int | None = None
    why: str = ""


class Adaptation:
    """Suits the visits of a fixed order to their nodes.

    A place is what a visit to one of the snake's spans trains; `places` below are visits that train
    them, whatever their node.

    Args:
        config: How far it may go.
        outlook: Predicts visits.
        places: One visit to each place.
    """

    def __init__(self, config: AdaptationConfig, outlook: Outlook, places: Sequence[Visit]) -> None:
        self._config = config
        self._outlook = outlook
        self._places = places
        self._unchanged = [Choice(place=place) for place in range(len(places))]
        # Samples by which slow nodes trained a place less than the order had it; of others, more.
        self._owed = [0.0] * len(places)
        self._shares: dict[tuple[int, int], float] = {}
        self._probation: dict[int, int] = {}
        self._middling_of = 0
        self._middling = 0
        self._middlings: dict[tuple[int, ...], float] = {}
        self._budget = 0.0

    def crossing(self, trip: int, nodes: Sequence[int]) -> list[int]:
        """Return the nodes of a trip, for those that the order has: by their links.

        Where the order has the lowest number is the fastest link. Those on probation are last.
        """
        self._find_middling(trip)
        # Of links that seem equally slow one may only have slow neighbours: they change places
        # from time to time, and it shows.
        turned = (trip - 1) // 2 % 2 == 1
        classes = {node: self._link_class(node) for node in nodes}
        by_link = sorted(
            sorted(nodes), key=lambda one: (classes[one], -one if turned and classes[one] else one)
        )
        places = {node: place for place, node in enumerate(sorted(nodes))}
        crossing = [by_link[places[node]] for node in nodes]
        return sorted(crossing, key=lambda node: self.is_on_probation(node, trip))

    def changed(self) -> None:
        """Look anew which node is the middling one: more is known, or somebody joined or left."""
        self._middling_of = 0

    def _link_class(self, node: int) -> int:
        """Return how often a node's wait for a span halves until it hardly counts."""
        first = self._places[0]
        hardly = self._config.hysteresis * self._middling_seconds(first)
        waits = self._outlook.pulling(first, node)
        return math.ceil(math.log2(waits / hardly)) if waits > hardly > 0 else 0

    def is_on_probation(self, node: int, trip: int) -> bool:
        """Return whether a node was late not long before a trip."""
        return trip <= self._probation.get(node, 0)

    def suit(
        self,
        node: int,
        *,
        trip: int,
        proposed: int,
        places: Mapping[int, Visit],
        counts: Sequence[int],
    ) -> Choice:
        """Return what a node is given in place of what the order proposes.

        Args:
            node: The node.
            trip: The trip.
            proposed: The place that the order proposes.
            places: The places that are free now.
            counts: How often the node has trained each place.
        """
        self._find_middling(trip)
        room = self._with_room(node, self._open(counts, places), places)
        why = ""
        if proposed not in room:
            why = "catches up" if proposed in places else "the other span is taken"
            if proposed in places and not self._outlook.has_room(places[proposed], node):
                why = "no room for the other span"
            proposed = min(room, key=lambda one: (abs(one - proposed), one))
        if self.is_on_probation(node, trip):
            return self._choice(node, proposed, self._config.min_steps, "late not long ago")
        if self._is_slow(node, places[proposed]):
            if len(room) < len(places):
                places = {one: places[one] for one in room}
            return self._shortened(node, proposed, places)
        other = self._exchanged(node, proposed, room, places)
        if other != proposed:
            return Choice(place=other, why="left behind by slow nodes")
        return Choice(place=proposed, why=why) if why else self._unchanged[proposed]

    def shorten(self, visit: Visit) -> Choice:
        """Return how many of a visit's steps its node has time for; its place is 0."""
        self._find_middling(visit.trip)
        if not self._is_slow(visit.node, visit):
            return Choice(place=0)
        slower = self._outlook.computing(visit, visit.node) / self._middling_seconds(visit)
        return self._choice(visit.node, 0, self._config.patience / slower, _slower(slower))

    def handed_out(self, proposed: int, visit: Visit) -> None:
        """Note what became of a proposed place."""
        if visit.place is not None and visit.place != proposed:
            samples = self._outlook.samples(visit, visit.node)
            self._owed[proposed] += samples
            self._owed[visit.place] -= samples
        full = self._outlook.full_steps(visit.node)
        self._shares[visit.node, visit.place or 0] = (visit.steps or full) / full

    def observe(self, outcome: Outcome) -> None:
        """Take what a decided visit took."""
        if outcome.late and self._config.probation_trips:
            node = outcome.visit.node
            self._probation[node] = outcome.visit.trip + self._config.probation_trips

    def _open(self, counts: Sequence[int], places: Mapping[int, Visit]) -> Sequence[int]:
        """Return the places that coverage leaves open to a node."""
        least = math.floor(self._config.min_coverage * (sum(counts) + 1) / len(counts))
        if min(counts) >= least:
            return list(places)
        return [place for place in places if counts[place] < least] or list(places)

    def _with_room(
        self, node: int, chosen: Sequence[int], places: Mapping[int, Visit]
    ) -> Sequence[int]:
        """Return the places that a node's memory bears; else the one that it bears best."""
        if self._outlook.room(node) is None:
            return chosen
        room = [one for one in chosen if self._outlook.has_room(places[one], node)]
        room = room or [one for one in places if self._outlook.has_room(places[one], node)]
        if room:
            return room
        # Better a visit that may not fit than a node that never takes part.
        return [min(places, key=lambda one: self._outlook.cost(places[one], node).private_bytes)]

    def _shortened(self, node: int, proposed: int, places: Mapping[int, Visit]) -> Choice:
        """Return with what a slow node gets furthest in the time that it has."""
        computing = self._outlook.computing

        def share_of(seconds: float) -> float:
            return min(1.0, self._budget / seconds) if seconds > 0 else 1.0

        seconds = computing(places[proposed], node)
        share = least = share_of(seconds)
        place = proposed
        for one, visit in places.items():
            found = share_of(computing(visit, node))
            if found > share or (found == share and abs(one - proposed) < abs(place - proposed)):
                place, share = one, found
        if share <= least * (1 + self._config.hysteresis):
            place, share = proposed, least
        slower = seconds / self._middling_seconds(places[proposed])
        return self._choice(node, place, share, _slower(slower))

    def _exchanged(
        self, node: int, proposed: int, room: Sequence[int], places: Mapping[int, Visit]
    ) -> int:
        """Return the place that slow nodes left behind most, or the one proposed."""
        if self._owed[proposed] > 0 or not any(one > 0 for one in self._owed):
            return proposed
        place = max(room, key=lambda one: (self._owed[one], -abs(one - proposed)))
        enough = self._owed[place] >= self._outlook.samples(places[proposed], node) / 2
        return place if enough and not self._is_slow(node, places[place]) else proposed

    def _choice(self, node: int, place: int, share: float, why: str) -> Choice:
        """Return a visit with a share of its steps; that of last time there, where it is near."""
        share = min(1.0, max(self._config.min_steps, share))
        before = self._shares.get((node, place))
        if before is not None and abs(share - before) <= self._config.hysteresis * before:
            share = before
        full = self._outlook.full_steps(node)
        steps = max(1, round(share * full))
        return Choice(place=place, steps=steps if steps < full else None, why=why)

    def _is_slow(self, node: int, visit: Visit) -> bool:
        """Return whether a node that was seen at work computes longer than the middling one."""
        if not self._outlook.knows(node):
            return False
        limit = self._middling_seconds(visit) * (1 + self._config.hysteresis)
        return self._outlook.computing(visit, node) > limit

    def _middling_seconds(self, visit: Visit) -> float:
        """Return how long the middling node computes, as was expected at the trip's start."""
        found = self._middlings.get(visit.trained)
        if found is None:
            found = self._outlook.computing(visit, self._middling)
            self._middlings[visit.trained] = found
        return found

    def _find_middling(self, trip: int) -> None:
        """Look at a trip's start which node is the middling one, and how long it computes."""
        if trip == self._middling_of:
            return
        self._middling_of = trip
        first = self._places[0]
        ranked = sorted(self._outlook.members, key=lambda one: self._outlook.computing(first, one))
        self._middling = ranked[(len(ranked) - 1) // 2]
        self._middlings.clear()
        self._budget = self._config.patience * statistics.fmean(
            self._middling_seconds(one) for one in self._places
        )


def _slower(ratio: float) -> str:
    return f"{ratio:.1f} times as long as the middling node"
