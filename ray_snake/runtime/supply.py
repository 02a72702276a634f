"""The supply: sees to it that a node has what its visit needs, and that nothing travels twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from ray_snake.errors import SnakeError
from ray_snake.layers.ledger import BlockVersion, Ledger, Parcel, Release
from ray_snake.planning.anchor import Anchors
from ray_snake.planning.span import Visit
from ray_snake.runtime.handles import (
    BlocksLostError,
    NodeHandle,
    ProcessLostError,
    Ref,
)
from ray_snake.runtime.messages import Delivery, VisitReport
from ray_snake.runtime.records import DRIVER, Transfer
from ray_snake.runtime.roster import Roster


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What moved to a node for a visit, what was fetched ahead included, and during it.

    Attributes:
        bytes_pulled: Bytes to a node that is alone on its machine.
        exchanged_bytes: Bytes that node and server exchanged; 0 without a cut.
        transfers: What went between machines: nothing that the node's machine had already.
    """

    bytes_pulled: int
    exchanged_bytes: int
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What a visit starts from.

    Attributes:
        deliveries: What its node is to be sent with it.
        versions: The version of each block, in block order.
        anchors: What its results are encoded against, in block order; none: nothing.
        back: The blocks that its server is sent.
        bytes: Bytes of the deliveries.
    """

    deliveries: tuple[Delivery, ...]
    versions: tuple[int, ...]
    anchors: tuple[int, ...] | None
    back: tuple[Delivery, ...]
    bytes: int


class Supply:
    """Decides what travels to a node in which form, has it fetched ahead, and keeps the ledger.

    Args:
        names: The nodes' names, by number.
        block_bytes: Bytes of each whole block, in block order.
        anchors: Decides what blocks are encoded against; none: they travel whole.
        ledger: Who has what.
        roster: The nodes.
        recorded: Returns when all accepted blocks are at the driver's side too.
        timeout: Seconds that fetching ahead may take.
        through_driver: Whether nodes pull from the driver's side alone.

    Attributes:
        bases: The checksum of each base, by number: a node that has the same need not pull it.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        block_bytes: Sequence[int],
        anchors: Anchors | None,
        ledger: Ledger[Ref],
        roster: Roster,
        recorded: Callable[[], Awaitable[None]],
        timeout: float,
        through_driver: bool,
    ) -> None:
        self._names = names
        self._block_bytes = block_bytes
        self._anchors = anchors
        self._ledger = ledger
        self._roster = roster
        self._recorded = recorded
        self._timeout = timeout
        self._through_driver = through_driver
        self.bases: Mapping[int, str] = {}
        self._ahead: dict[int, asyncio.Task[None]] = {}
        self._bytes_pulled: dict[int, int] = {}
        self._transfers: dict[int, list[Transfer]] = {}
        # What nodes must not release before their visit is over.
        self._in_use: dict[int, set[BlockVersion]] = {}
        self._withheld: dict[int, list[Release]] = {}

    def anchors(self, visit: Visit) -> tuple[int, ...] | None:
        """Return what a visit's results are encoded against, in block order; none: nothing."""
        return None if self._anchors is None else self._anchors.at(visit, self._ledger.versions)

    async def ship(self, visit: Visit, handle: NodeHandle) -> Shipment:
        """Return what a visit starts from, after its node fetched what it can't be sent with it.

        That is, what is only made whole on its machine. Until the visit has returned, the node
        releases nothing of it.

        Raises:
            ProcessLostError: If the node died on the way.
            BlocksLostError: If a block could not be pulled any more.
        """
        ahead = self._ahead.pop(visit.node, None)
        if ahead is not None:
            # So that nothing is pulled twice.
            await ahead
        anchors = self.anchors(visit)
        if anchors is not None:
            self._ledger.anchor(anchors)
        node = visit.node
        versions = self._ledger.versions
        needed = self._needs(visit)
        self._in_use[node] = set(enumerate(versions))
        self._note_bases(node, handle)
        await self._fetch(node, handle, self._ledger.lacks(node, needed), decoded_only=True)
        parcels = [
            await self._source(node, handle, one) for one in self._ledger.lacks(node, needed)
        ]
        parcels += self._ledger.differences(visit.trained)
        for parcel in parcels:
            self._count(node, handle, parcel)
        return Shipment(
            deliveries=tuple(_delivery(one) for one in parcels),
            versions=versions,
            anchors=anchors,
            back=self._back(visit),
            bytes=sum(one.bytes for one in parcels),
        )

    def _back(self, visit: Visit) -> tuple[Delivery, ...]:
        """Return the blocks of a visit that its server is sent: those that its node has not.

        They never leave the driver's side, so nothing is counted.
        """
        return tuple(
            _delivery(self._ledger.whole(block))
            for block in visit.trained
            if not visit.on_node(block)
        )

    def fetch_ahead(self, running: Sequence[Visit], following: Visit | None) -> None:
        """While visits run, have the next one's node fetch what the running ones can't change."""
        if following is None or following.node in [one.node for one in running]:
            return
        before = self._ahead.get(following.node)
        if before is not None and not before.done():
            return
        anchors = self.anchors(following)
        lacking = self._ledger.lacks(following.node, self._needs(following, anchors))
        changing: set[int] = set()
        for one in running:
            same_trip = following.trip == one.trip
            if not (one.averaged and same_trip):
                # Within a trip anchors stay: what both train is encoded against the same one.
                kept = set(following.trained) if anchors and same_trip else set()
                changing |= set(one.trained) - kept
        self._ahead[following.node] = asyncio.create_task(
            self._fetch_quietly(following.node, [one for one in lacking if one[0] not in changing])
        )

    def returned(
        self, visit: Visit, deliveries: Sequence[Delivery], report: VisitReport, *, crosses: bool
    ) -> Moved:
        """Note that a visit came back: its node holds what it was sent whole.

        Args:
            visit: The visit.
            deliveries: What its node was sent.
            report: What its node reports.
            crosses: Whether the node is on another machine than the driver's side.
        """
        whole = [(one.block, one.version) for one in deliveries if one.base is None]
        self._in_use.pop(visit.node, None)
        self._hold(visit.node, whole)
        self._ledger.let_go(visit.node, self._ledger.used(visit.trained))
        self._release(self._withheld.pop(visit.node, ()))
        return Moved(
            bytes_pulled=self._bytes_pulled.pop(visit.node, 0),
            exchanged_bytes=report.sent_bytes + report.received_bytes,
            transfers=(
                *self._transfers.pop(visit.node, ()),
                *(_exchange(self._names[visit.node], report) if crosses else ()),
            ),
        )

    def decided(self, visit: Visit, anchors: tuple[int, ...] | None) -> None:
        """Note that a visit was accepted or refused, with the anchors that it had."""
        if self._anchors is not None and anchors is not None:
            self._anchors.advance(visit, anchors)

    def commit(
        self,
        visit: Visit,
        refs: Mapping[int, Ref],
        parcel_bytes: Sequence[int],
        *,
        machines: Set[str],
        origin: str,
    ) -> None:
        """Make a visit's results current.

        Args:
            visit: The visit.
            refs: Where its blocks are pulled from, by block.
            parcel_bytes: Bytes of each as it travels, in the same order.
            machines: The machines that have them in their stores.
            origin: Name of whoever serves them: the node, or the driver's side.
        """
        anchors = self.anchors(visit)
        parcels = {
            block: Parcel(
                block=block,
                version=visit.number,
                ref=ref,
                bytes=size,
                base=None if anchors is None else anchors[block],
                origin=origin,
                machines=set(machines),
                nodes={visit.node},
            )
            for (block, ref), size in zip(refs.items(), parcel_bytes, strict=True)
        }
        self.decided(visit, anchors)
        self._release(self._ledger.commit(visit.number, parcels))

    def commit_at_driver(self, version: int, refs: Mapping[int, Ref], *, machine: str) -> None:
        """Make whole blocks current that come from the driver's side: averages, or a server's.

        Args:
            version: Their version.
            refs: Where they are pulled from, by block.
            machine: The driver's machine.
        """
        parcels = {
            block: self._whole(block, version, ref, machine=machine, origin=DRIVER, nodes=())
            for block, ref in refs.items()
        }
        self._release(self._ledger.commit(version, parcels))

    def add_whole(self, block: int, version: int, ref: Ref, *, machine: str) -> None:
        """Note that a version is at the driver's side whole."""
        self._ledger.add(self._whole(block, version, ref, machine=machine, origin=DRIVER, nodes=()))

    def lost(self, nodes: Iterable[int]) -> None:
        """Note that nodes hold nothing any more: their process was started again."""
        for node in nodes:
            self._ledger.forget(node)
            self._in_use.pop(node, None)
            self._withheld.pop(node, None)
            # It pulls them once more for the visit that is done again; what crossed has crossed.
            self._bytes_pulled.pop(node, None)

    def left(self, node: int) -> None:
        """Note that a node takes part no more."""
        ahead = self._ahead.pop(node, None)
        if ahead is not None:
            ahead.cancel()
        self.lost([node])

    def close(self) -> None:
        """Drop what is being fetched ahead."""
        for one in self._ahead.values():
            one.cancel()
        self._ahead = {}

    async def _fetch_quietly(self, node: int, versions: Sequence[BlockVersion]) -> None:
        # Whatever fails here is met again, and dealt with, when the node is visited.
        with contextlib.suppress(
            SnakeError, ProcessLostError, BlocksLostError, asyncio.TimeoutError
        ):
            handle = await self._roster.node(node)
            # While the node was starting, some may have been superseded.
            needed = [one for one in versions if self._ledger.is_needed(*one)]
            self._note_bases(node, handle)
            needed = self._ledger.lacks(node, needed)
            await asyncio.wait_for(self._fetch(node, handle, needed), self._timeout)

    async def _fetch(
        self,
        node: int,
        handle: NodeHandle,
        versions: Sequence[BlockVersion],
        *,
        decoded_only: bool = False,
    ) -> None:
        """Have a node pull versions, and make those whole that come as differences."""
        parcels = [await self._source(node, handle, one) for one in versions]
        parcels = [one for one in parcels if one.base is not None or not decoded_only]
        if not parcels:
            return
        decoded = await handle.fetch([_delivery(one) for one in parcels])
        # The node may have been lost, and the ledger told so, while the answer was on its way.
        if self._roster.if_up(node) is not handle:
            return
        for parcel in parcels:
            self._count(node, handle, parcel)
        differences = [one for one in parcels if one.base is not None]
        for parcel, ref in zip(differences, decoded, strict=True):
            self._ledger.add(
                self._whole(
                    parcel.block,
                    parcel.version,
                    ref,
                    machine=handle.machine,
                    origin=self._names[node],
                    nodes={node},
                )
            )
        self._hold(node, [(one.block, one.version) for one in parcels if one.base is None])

    def _note_bases(self, node: int, handle: NodeHandle) -> None:
        """Note which bases a node has from the model's own files, and that they are the run's."""
        own = [one for one, checksum in handle.bases.items() if self.bases.get(one) == checksum]
        self._hold(node, [(one, 0) for one in own])

    async def _source(self, node: int, handle: NodeHandle, one: BlockVersion) -> Parcel[Ref]:
        parcel = self._ledger.source(node, handle.machine, *one)
        if parcel is None:
            # All there is so far is a difference from a version that the node never had.
            await self._recorded()
            parcel = self._ledger.source(node, handle.machine, *one)
        if parcel is None:
            raise BlocksLostError(f"there is no whole copy of version {one[1]} of block {one[0]}")
        return parcel

    def _count(self, node: int, handle: NodeHandle, parcel: Parcel[Ref]) -> None:
        """Note that a parcel goes to a node, and what that moves."""
        apart, crossing = self._ledger.deliver(node, handle.machine, parcel)
        self._bytes_pulled[node] = self._bytes_pulled.get(node, 0) + apart
        if crossing:
            self._transfers.setdefault(node, []).append(
                Transfer(source=parcel.origin, target=self._names[node], bytes=crossing)
            )

    def _needs(self, visit: Visit, anchors: tuple[int, ...] | None = None) -> list[BlockVersion]:
        needed = self._ledger.needs(visit.trained, anchors)
        return [one for one in needed if visit.on_node(one[0])]

    def _hold(self, node: int, versions: Iterable[BlockVersion]) -> None:
        self._release(self._ledger.holds(node, versions))

    def _release(self, releases: Iterable[Release]) -> None:
        for release in releases:
            if (release.block, release.version) in self._in_use.get(release.node, ()):
                self._withheld.setdefault(release.node, []).append(release)
                continue
            node = self._roster.if_up(release.node)
            if node is not None:
                node.release(release.block, release.version)

    def _whole(
        self, block: int, version: int, ref: Ref, *, machine: str, origin: str, nodes: Iterable[int]
    ) -> Parcel[Ref]:
        return Parcel(
            block=block,
            version=version,
            ref=ref,
            bytes=self._block_bytes[block],
            origin=origin,
            # What a node decoded would else be pulled from there by others.
            private=self._through_driver and origin != DRIVER,
            machines={machine},
            nodes=set(nodes),
        )


def _delivery(parcel: Parcel[Ref]) -> Delivery:
    return Delivery(block=parcel.block, version=parcel.version, base=parcel.base, ref=parcel.ref)


def _exchange(node: str, report: VisitReport) -> tuple[Transfer, ...]:
    """Return what went between a node and the server; one object each way for every batch."""
    both = ((node, DRIVER, report.sent_bytes), (DRIVER, node, report.received_bytes))
    return tuple(
        Transfer(source=source, target=target, bytes=size, objects=report.steps)
        for source, target, size in both
        if size
    )
