"""The ledger: which version of each block is current, who holds which, where the ref is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Ref = TypeVar("Ref")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version that a node still holds and that nobody needs any more."""

    node: int
    block: int
    version: int


class Ledger(Generic[Ref]):
    """Versions, holders and refs. A ref is whatever leads to a block's bytes; it is only passed on.

    Args:
        versions: Current version of each block, in block order.
        refs: Where each of them is, in block order.
    """

    def __init__(self, versions: Sequence[int], refs: Sequence[Ref]) -> None:
        self._versions = list(versions)
        self._refs = list(refs)
        self._held: dict[int, dict[int, int]] = {}

    @property
    def versions(self) -> tuple[int, ...]:
        """Current version of each block, in block order."""
        return tuple(self._versions)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Ref of each block's current version, in block order."""
        return tuple(self._refs)

    def stale(self, node: int) -> list[int]:
        """Return the blocks whose current version a node lacks, ascending."""
        held = self._held.get(node, {})
        return [block for block, version in enumerate(self._versions) if held.get(block) != version]

    def holds(self, node: int, blocks: Iterable[int]) -> None:
        """Note that a node has the current versions of these blocks."""
        held = self._held.setdefault(node, {})
        held.update((block, self._versions[block]) for block in blocks)

    def let_go(self, node: int, blocks: Iterable[int]) -> None:
        """Note that a node no longer has any version of these blocks."""
        held = self._held.get(node, {})
        for block in blocks:
            held.pop(block, None)

    def forget(self, node: int) -> None:
        """Note that a node holds nothing any more: its process was started again."""
        self._held.pop(node, None)

    def commit(self, version: int, refs: Mapping[int, Ref]) -> list[Release]:
        """Make new versions of blocks current.

        Args:
            version: The visit that produced them.
            refs: Where each of them is, by block.

        Returns:
            What the nodes can now release. They no longer count as holding it.
        """
        releases = []
        for block, ref in refs.items():
            self._versions[block] = version
            self._refs[block] = ref
            for node, held in self._held.items():
                if block in held:
                    releases.append(Release(node=node, block=block, version=held.pop(block)))
        return releases
