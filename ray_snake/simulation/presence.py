"""When the nodes of a simulated run are there, and when a visit that this interrupts ends."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

import numpy as np

from ray_snake.errors import RunError
from ray_snake.simulation.world import World

MOST_STAYS = 10_000
"""Stays of a node that a visit may take; shorter ones may be too short for the clock to show."""


class Presence:
    """Which nodes are away. A visit whose node goes ends once it was there for long enough."""

    def __init__(self, world: World) -> None:
        self.absent: set[int] = set()
        # When a node comes or goes next, as far as it is known.
        self.changes: list[tuple[float, int, bool]] = []
        self._periods: dict[int, Iterator[tuple[float, float]]] = {}
        self._current: dict[int, tuple[float, float]] = {}
        # Those behind the current one that were looked at already.
        self._ahead: dict[int, deque[tuple[float, float]]] = {}
        whole = world.online_seconds is None and not world.online_from.any()
        if whole and np.isinf(world.online_until).all():
            return
        for node in range(len(world)):
            self.absent.add(node)
            self._periods[node] = world.presence(node)
            self._ahead[node] = deque()
            self._plan(node)
        self.go_on(0.0)

    def go_on(self, now: float) -> None:
        """Let nodes come and go until now."""
        while self.changes and self.changes[0][0] <= now:
            _, node, comes = heapq.heappop(self.changes)
            if comes:
                self.absent.discard(node)
                gone = self._current[node][1]
                if np.isfinite(gone):
                    heapq.heappush(self.changes, (gone, node, False))
            else:
                self.absent.add(node)
                self._plan(node)

    def next_change(self, now: float) -> float:
        """Return when a node comes next.

        Raises:
            RunError: If none ever does.
        """
        coming = [when for when, _, comes in self.changes if comes]
        if not coming:
            raise RunError(
                f"after {now:.0f} virtual seconds no node is left that has visits to do",
                "let nodes stay longer, or simulate fewer trips",
            )
        return max(now, min(coming))

    def end_of(self, node: int, now: float, seconds: float) -> float:
        """Return when a node has been there for so many seconds from now on.

        Raises:
            RunError: If that takes more than `MOST_STAYS`.
        """
        if node not in self._current:
            return now + seconds
        came, gone = self._current[node]
        start = max(now, came)
        periods_later = 0
        while start + seconds > gone:
            seconds -= max(0.0, gone - start)
            following = self._following(node, periods_later)
            if following is None:
                # It never comes back; what it did until then is lost with it.
                return gone
            start, gone = following
            periods_later += 1
            if periods_later == MOST_STAYS:
                raise RunError(
                    f"a visit of node {node} would take more than {MOST_STAYS:,} stays",
                    "give longer stays, or shorter gaps between them",
                )
        return start + seconds

    def _plan(self, node: int) -> None:
        following = self._following(node)
        if following is not None:
            self._current[node] = self._ahead[node].popleft()
            heapq.heappush(self.changes, (following[0], node, True))

    def _following(self, node: int, further: int = 0) -> tuple[float, float] | None:
        """Return a node's next period, or one further on, which does not begin by that."""
        ahead = self._ahead[node]
        while len(ahead) <= further:
            found = next(self._periods[node], None)
            if found is None:
                return None
            ahead.append(found)
        return ahead[further]
