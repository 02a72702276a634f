"""How often each node has trained each span; what keeps a node from being locked to one place."""

from __future__ import annotations


class Coverage:
    """Counts of visits by member and span, all zero at first.

    Args:
        nodes: Number of nodes at the start.
        spans: Number of spans.
    """

    def __init__(self, nodes: int, spans: int) -> None:
        self._spans = spans
        self._counts = {node: [0] * spans for node in range(nodes)}

    @property
    def nodes(self) -> list[int]:
        """The nodes that are counted, ascending."""
        return sorted(self._counts)

    def join(self, node: int) -> None:
        """Count one more node, which has trained nothing yet."""
        self._counts[node] = [0] * self._spans

    def leave(self, node: int) -> None:
        """Count a node no more."""
        del self._counts[node]

    def add(self, node: int, span: int) -> None:
        """Count a visit of `node` to `span`."""
        self._counts[node][span] += 1

    def take_back(self, node: int, span: int) -> None:
        """Undo one `add`, for a visit whose result did not become part of the model."""
        self._counts[node][span] -= 1

    def counts(self, node: int) -> tuple[int, ...]:
        """Return how often `node` has trained each span."""
        return tuple(self._counts[node])

    def least_trained(self, node: int, within: int = 0) -> list[int]:
        """Return the spans that `node` has trained least often, or up to `within` more often."""
        counts = self._counts[node]
        limit = min(counts) + within
        return [span for span, count in enumerate(counts) if count <= limit]
