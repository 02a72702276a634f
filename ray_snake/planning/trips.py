"""Which nodes each trip still has to visit, while nodes join and leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate

from ray_snake.errors import ConfigError


class Trips:
    """The members of a run and what is left of its trips.

    A node keeps its number for ever: 0 to `nodes - 1` at first, and one more for each that joins.
    It takes part from the first trip that begins after it joined. One that leaves is dropped from
    what is left of the trips that have begun.

    Args:
        nodes: Number of nodes at the start.
        trips: Trips of the whole run.
        crossing: Returns the nodes of a trip in order; those that are no members are left out.
    """

    def __init__(
        self, *, nodes: int, trips: int, crossing: Callable[[int], Sequence[int]] | None = None
    ) -> None:
        self.nodes = nodes
        """How many nodes the run has had so far."""
        self.members = list(range(nodes))
        """The nodes that take part, ascending."""
        self.trip = 0
        """The last trip that has begun."""
        # A plain dict would be slow: its first entry is found by passing over all that were taken
        # out before it.
        self.left: OrderedDict[tuple[int, int], None] = OrderedDict()
        """What is left of the trips that have begun: (trip, node) in order."""
        self._trips = trips
        self._crossing = crossing or (lambda trip: self.members)
        self._sizes: list[int] = []
        self._handed_out = 0

    @property
    def total(self) -> int:
        """Visits of the whole run if nobody joins or leaves any more.

        Those that were handed out, what is left of the trips that have begun, and one to each
        member for every trip that has not begun yet.
        """
        following = (self._trips - self.trip) * len(self.members)
        return self._handed_out + len(self.left) + following

    @property
    def is_over(self) -> bool:
        """Whether all visits were handed out."""
        return not self.left and self.trip == self._trips

    def following(self) -> list[tuple[int, int]]:
        """Return the trip that has not begun yet, with each of its nodes; [] after the last."""
        trip = self.trip + 1
        if trip > self._trips:
            return []
        members = set(self.members)
        return [(trip, node) for node in self._crossing(trip) if node in members]

    def begin(self) -> None:
        """Begin the next trip."""
        following = self.following()
        self.left.update(dict.fromkeys(following))
        self._sizes.append(len(following))
        self.trip += 1

    def begin_through(self, trip: int) -> None:
        """Begin all trips up to one, if they have not begun yet."""
        while self.trip < trip:
            self.begin()

    def take(self, trip: int, node: int) -> None:
        """Note that a visit to a node was handed out."""
        del self.left[trip, node]
        self._handed_out += 1

    def ends_trip(self, visits: int) -> bool:
        """Return whether a trip is over after so many visits: all nodes that it had are counted."""
        return visits in accumulate(self._sizes)

    def visits_through(self, trip: int) -> int:
        """Return the visits of all trips up to one; each must have begun."""
        return sum(self._sizes[:trip])

    def join(self) -> int:
        """Add a node; return its number."""
        number = self.nodes
        self.nodes += 1
        self.members.append(number)
        return number

    def leave(self, node: int) -> None:
        """Take a node out.

        Raises:
            ConfigError: If it is no member, or the last one.
        """
        if node not in self.members:
            raise ConfigError(f"node {node}", "takes no part in the run", "name one that does")
        if len(self.members) == 1:
            raise ConfigError(
                f"node {node}",
                "is the last one of the run",
                "add another one first, or stop the run",
            )
        self.members.remove(node)
        for trip, other in [one for one in self.left if one[1] == node]:
            del self.left[trip, other]
            self._sizes[trip - 1] -= 1
