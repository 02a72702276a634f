"""Anchors: the version of each block that encoded ones are the difference from."""

from __future__ import annotations

from collections.abc import Sequence

from ray_snake.config import CodecConfig
from ray_snake.planning.span import Visit


class Anchors:
    """Decides which version of a block is its anchor, from the visits alone.

    An anchor is worth having if all nodes hold it, and costs nothing if they hold it anyway. Every
    node learns the final weights of a span that the snake left, for its own forward pass: so that
    version becomes the anchor, at once where the whole trip stayed with the span, and else when the
    snake comes back to it after a trip or more. A block that is trained in every trip, such as an
    end, takes its current version every `trips` trips: each node then pulls one difference more.

    Args:
        blocks: Number of blocks.
        trips: Trips after which a block that is always trained gets another anchor.
    """

    def __init__(self, *, blocks: int, trips: int) -> None:
        self._trips = trips
        self._versions = [0] * blocks
        self._since = [0] * blocks
        self._last_trip = [0] * blocks
        self._visits_of_last_trip = [0] * blocks
        # Of the trip under way and the one before; nodes join and leave, so sizes differ.
        self._visits_of_trip: dict[int, int] = {}

    @property
    def versions(self) -> tuple[int, ...]:
        """The anchor of each block, in block order, after the last decided visit."""
        return tuple(self._versions)

    def at(self, visit: Visit, current: Sequence[int]) -> tuple[int, ...]:
        """Return the anchor of each block, in block order, as a visit finds them.

        Args:
            visit: The visit; its results are encoded against them.
            current: The version of each block that it starts from.
        """
        return tuple(
            current[block] if self._moves(block, visit) else version
            for block, version in enumerate(self._versions)
        )

    def advance(self, visit: Visit, anchors: Sequence[int]) -> None:
        """Take a decided visit into account, with the anchors that `at` gave for it."""
        for block, version in enumerate(anchors):
            if version != self._versions[block]:
                self._versions[block] = version
                self._since[block] = visit.trip
        decided = self._visits_of_trip
        self._visits_of_trip = {
            trip: decided.get(trip, 0) + (trip == visit.trip)
            for trip in (visit.trip - 1, visit.trip)
        }
        for block in visit.trained:
            if self._last_trip[block] != visit.trip:
                self._last_trip[block] = visit.trip
                self._visits_of_last_trip[block] = 0
            self._visits_of_last_trip[block] += 1

    def _moves(self, block: int, visit: Visit) -> bool:
        last = self._last_trip[block]
        if block not in visit.trained:
            stayed = self._visits_of_last_trip[block] == self._visits_of_trip.get(last)
            return stayed and last == visit.trip - 1
        return last < visit.trip - 1 or visit.trip - self._since[block] >= self._trips


def make_anchors(codec: CodecConfig, *, blocks: int) -> Anchors | None:
    """Return the anchors of a run's start; none where blocks travel whole."""
    if codec.name == "none":
        return None
    return Anchors(blocks=blocks, trips=codec.anchor_trips)
