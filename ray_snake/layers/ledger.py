"""The ledger: which version of each block is current, who holds which, where the bytes are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Ref = TypeVar("Ref")
BlockVersion = tuple[int, int]
"""(block, version)."""


@dataclass(kw_only=True)
class Parcel(Generic[Ref]):
    """An object that a block version can be had from.

    Attributes:
        block: The block's number.
        version: The version.
        ref: Leads to the object; it is only passed on.
        bytes: Bytes of its arrays.
        origin: Name of whoever made it.
        base: The version that it is the difference from; none: the version whole.
        private: Whether it is for the machines alone that have a copy.
        machines: Machines with a copy of the object in their store.
        nodes: Nodes that made it or have pulled it.
    """

    block: int
    version: int
    ref: Ref
    bytes: int
    origin: str
    base: int | None = None
    private: bool = False
    machines: set[str] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version that a node still holds and that nobody needs any more."""

    node: int
    block: int
    version: int


class Ledger(Generic[Ref]):
    """Versions, holders and parcels.

    What a node holds is block versions whole: views of its machine's object store. A version comes
    whole, or as the difference from its block's anchor, which nodes keep for that.

    Args:
        versions: Current version of each block, in block order.
        parcels: Whole parcels of all of these, and of the anchors.
        anchors: Anchor of each block, in block order; none: nothing travels as a difference.
    """

    def __init__(
        self,
        versions: Sequence[int],
        parcels: Iterable[Parcel[Ref]],
        anchors: Sequence[int] | None = None,
    ) -> None:
        self._versions = list(versions)
        self._anchors = None if anchors is None else list(anchors)
        self._parcels: dict[BlockVersion, list[Parcel[Ref]]] = {}
        self._held: dict[int, set[BlockVersion]] = {}
        for parcel in parcels:
            self.add(parcel)

    @property
    def versions(self) -> tuple[int, ...]:
        """Current version of each block, in block order."""
        return tuple(self._versions)

    def is_needed(self, block: int, version: int) -> bool:
        """Return whether a version is current, or what others are the difference from."""
        return version in (self._versions[block], self._anchor(block))

    def add(self, parcel: Parcel[Ref]) -> None:
        """Note one more object that a version can be had from; no matter if it is not needed."""
        if self.is_needed(parcel.block, parcel.version):
            self._parcels.setdefault((parcel.block, parcel.version), []).append(parcel)

    def needs(
        self, trained: Iterable[int], anchors: Sequence[int] | None = None
    ) -> list[BlockVersion]:
        """Return what a visit's node must hold whole, in block order.

        That is the current version of every block; but the anchor of a trained one, where trained
        blocks travel as differences.

        Args:
            trained: The blocks that the visit trains.
            anchors: The anchors at that visit; none: those of now.
        """
        anchors = self._anchors if anchors is None else anchors
        trained = set(trained)
        return [
            (block, version if anchors is None or block not in trained else anchors[block])
            for block, version in enumerate(self._versions)
        ]

    def lacks(self, node: int, needed: Iterable[BlockVersion]) -> list[BlockVersion]:
        """Return those of some block versions that a node does not hold whole."""
        held = self._held.get(node, set())
        return [one for one in needed if one not in held]

    def source(self, node: int, machine: str, block: int, version: int) -> Parcel[Ref] | None:
        """Return what a node should pull to hold a version whole; none if there is nothing yet.

        One that the node's machine has whole comes first, then the smallest that the node can use.
        """
        return min(
            (
                one
                for one in self._decodable(node, block, version)
                if not one.private or machine in one.machines
            ),
            key=lambda one: (one.base is not None or machine not in one.machines, one.bytes),
            default=None,
        )

    def whole(self, block: int) -> Parcel[Ref]:
        """Return a whole object of a block's current version, whoever it is for."""
        current = self._parcels[block, self._versions[block]]
        return next(one for one in current if one.base is None)

    def deliver(self, node: int, machine: str, parcel: Parcel[Ref]) -> tuple[int, int]:
        """Note that a node pulls a parcel; return what that moves.

        Returns:
            Bytes that the version would take to the node alone on its machine, and bytes that come
            to its machine: both 0 for what is there already.
        """
        others = self._parcels.get((parcel.block, parcel.version), [])
        usable = [parcel, *self._decodable(node, parcel.block, parcel.version)]
        had = any(node in one.nodes for one in others)
        apart = 0 if had else min(one.bytes for one in usable)
        crossing = 0 if machine in parcel.machines else parcel.bytes
        parcel.machines.add(machine)
        parcel.nodes.add(node)
        return apart, crossing

    def differences(self, trained: Iterable[int]) -> list[Parcel[Ref]]:
        """Return what a visit's node pulls beside what it must hold: news of the trained blocks.

        None where blocks travel whole, or for blocks whose anchor is current. Of a version that is
        not known as a difference (it was restored from storage) the whole.
        """
        return [
            min(
                (one for one in self._parcels[block, self._versions[block]] if not one.private),
                key=lambda one: one.bytes,
            )
            for block in trained
            if self._versions[block] != self._anchor(block)
        ]

    def used(self, trained: Iterable[int]) -> list[BlockVersion]:
        """Return the versions that a visit's node let go of, to make new ones of them."""
        return [
            (block, self._versions[block])
            for block in trained
            if self._anchors is None or self._anchors[block] != self._versions[block]
        ]

    def holds(self, node: int, versions: Iterable[BlockVersion]) -> list[Release]:
        """Note that a node holds these versions whole; return what it can release for that.

        A former anchor is of use to a node until it holds the next one.
        """
        held = self._held.setdefault(node, set())
        releases = []
        for block, version in versions:
            held.add((block, version))
            for other in [one for one in held if one[0] == block]:
                if not self.is_needed(*other) and version >= self._anchor(block):
                    held.remove(other)
                    releases.append(Release(node=node, block=block, version=other[1]))
        return releases

    def let_go(self, node: int, versions: Iterable[BlockVersion]) -> None:
        """Note that a node no longer holds these versions."""
        self._held.get(node, set()).difference_update(versions)

    def forget(self, node: int) -> None:
        """Note that a node holds nothing any more: its process was started again."""
        self._held.pop(node, None)
        for parcels in self._parcels.values():
            for parcel in parcels:
                parcel.nodes.discard(node)

    def anchor(self, anchors: Sequence[int]) -> None:
        """Note the anchors that the next visit's results are encoded against, in block order."""
        former, self._anchors = self._anchors, list(anchors)
        for block, version in enumerate(former or ()):
            self._drop(block, version)

    def commit(self, version: int, parcels: Mapping[int, Parcel[Ref]]) -> list[Release]:
        """Make new versions of blocks current.

        Args:
            version: The visit that produced them.
            parcels: Where each of them is, by block.

        Returns:
            What the nodes can now release. They no longer count as holding it.
        """
        releases = []
        for block, parcel in parcels.items():
            former = self._versions[block]
            self._versions[block] = version
            self.add(parcel)
            if self.is_needed(block, former):
                continue
            self._drop(block, former)
            for node, held in self._held.items():
                if (block, former) in held:
                    held.remove((block, former))
                    releases.append(Release(node=node, block=block, version=former))
        return releases

    def _decodable(self, node: int, block: int, version: int) -> list[Parcel[Ref]]:
        held = self._held.get(node, set())
        return [
            one
            for one in self._parcels.get((block, version), [])
            if one.base is None or (block, one.base) in held
        ]

    def _anchor(self, block: int) -> int:
        return self._versions[block] if self._anchors is None else self._anchors[block]

    def _drop(self, block: int, version: int) -> None:
        if not self.is_needed(block, version):
            self._parcels.pop((block, version), None)
