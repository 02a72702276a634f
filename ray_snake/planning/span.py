"""Spans and visits: the words in which a plan is written."""

from __future__ import annotations

from dataclasses import dataclass

from ray_snake.errors import ConfigError


@dataclass(frozen=True, order=True)
class Span:
    """Consecutive blocks [start, stop) trained together."""

    start: int
    stop: int

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}-{self.stop - 1}" if len(self) > 1 else str(self.start)

    def blocks(self) -> range:
        """Return the block numbers of the span."""
        return range(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One node trains one span: the unit of work, of failure and of history.

    Attributes:
        number: 1 for a run's first visit, then counting up.
        trip: The crossing of all nodes it belongs to, from 1.
        node: The node's number, from 0.
        span: The blocks whose turn it is.
        trained: All blocks it trains, ascending: the span and the ends that train with it.
        averaged: Whether its result is averaged with those of its trip's other visits, which all
            start from the same model; otherwise the next visit goes on from it.
        cut: First of the blocks that stay at the driver's side, where a server trains them on what
            the node sends it for every batch; none: the node has all blocks.
    """

    number: int
    trip: int
    node: int
    span: Span
    trained: tuple[int, ...]
    averaged: bool = False
    cut: int | None = None

    def on_node(self, block: int) -> bool:
        """Return whether the node has a block, and not the server at the driver's side."""
        return self.cut is None or block < self.cut


def cut_spans(blocks: int, width: int) -> tuple[Span, ...]:
    """Cut `blocks` blocks into consecutive spans of `width`; the last may be narrower.

    Raises:
        ConfigError: If a span is wider than the network.
    """
    if width > blocks:
        raise ConfigError(
            "snake.span_width",
            f"{width} blocks are more than the network's {blocks}",
            f"set it to {blocks} or less",
        )
    return tuple(Span(start, min(start + width, blocks)) for start in range(0, blocks, width))


def trained_blocks(
    span: Span, blocks: int, *, train_first: bool, train_last: bool
) -> tuple[int, ...]:
    """Return the blocks that a visit to `span` trains: the span and the chosen ends, ascending."""
    ends = {0} if train_first else set()
    if train_last:
        ends.add(blocks - 1)
    return tuple(sorted(ends | set(span.blocks())))
