"""Spans and visits: the words in which a plan is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

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
        steps: Optimizer steps, fewer than the settings say; none: what they say.
        place: Number of the span among those that its strategy has; none: it is none of them.
        why: What made the driver leave the fixed order, in a few words; empty where it did not.
    """

    number: int
    trip: int
    node: int
    span: Span
    trained: tuple[int, ...]
    averaged: bool = False
    cut: int | None = None
    steps: int | None = None
    place: int | None = field(default=None, compare=False)
    why: str = field(default="", compare=False)

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


def chosen_spans(blocks: int, chosen: Sequence[Sequence[int]]) -> tuple[Span, ...]:
    """Return the stretch of the network that each list of block numbers lies in.

    Raises:
        ConfigError: If there is no such block, one names a block twice, or two are the same.
    """
    for one in chosen:
        wrong = [block for block in one if block >= blocks]
        if wrong:
            raise ConfigError(
                "snake.spans",
                f"there is no block {wrong[0]} in a network of {blocks}",
                f"use numbers from 0 to {blocks - 1}",
            )
        if len(set(one)) < len(one):
            raise ConfigError(
                "snake.spans", f"{list(one)} names a block twice", "name each block of a span once"
            )
        twins = [other for other in chosen if set(other) == set(one)]
        if len(twins) > 1:
            raise ConfigError("snake.spans", f"{list(one)} stands there twice", "keep one of them")
    return tuple(Span(min(one), max(one) + 1) for one in chosen)


def trained_blocks(
    span: Iterable[int], blocks: int, *, train_first: bool, train_last: bool
) -> tuple[int, ...]:
    """Return the blocks that a visit to a span's blocks trains: these and the chosen ends."""
    ends = {0} if train_first else set()
    if train_last:
        ends.add(blocks - 1)
    return tuple(sorted(ends | set(span)))
