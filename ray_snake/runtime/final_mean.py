"""The mean that a run may end in: which versions of each block count, and for how many visits."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import StartRecord, VisitRecord

Counts = dict[int, dict[int, int]]
"""By block and version, how many visits left that version current."""


def versions_since(journal: Journal, first: int) -> Counts:
    """Return what the journal's visits from number `first` on left current.

    A version that several visits left as it was counts for each of them: the mean is that of whole
    models, one after each visit.
    """
    counts: Counts = {}
    current: dict[int, int] = {}
    for record in journal:
        if isinstance(record, StartRecord | VisitRecord):
            current.update((one.block, one.version) for one in record.blocks)
        if isinstance(record, VisitRecord) and record.visit >= first:
            count(counts, current)
    return counts


def with_last(counts: Counts, journal: Journal, number: int, trained: Collection[int]) -> Counts:
    """Return counts with one visit more, which is not in the journal yet.

    Args:
        counts: Up to the visit before.
        journal: Up to there too.
        number: The visit's number.
        trained: The blocks it gave a new version; none if it was refused.
    """
    current = {one.block: one.version for one in journal.current_blocks()}
    count(counts, current | dict.fromkeys(trained, number))
    return counts


def count(counts: Counts, current: Mapping[int, int]) -> None:
    """Let a model count once more: that of these versions, by block."""
    for block, version in current.items():
        own = counts.setdefault(block, {})
        own[version] = own.get(version, 0) + 1
