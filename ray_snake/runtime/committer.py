"""What becomes of a decided visit: its blocks are made current, or wait to be averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray_snake.planning.span import Visit
from ray_snake.runtime.handles import EngineHandle, Ref
from ray_snake.runtime.recorder import Recorder
from ray_snake.runtime.records import DRIVER, Transfer, VisitRecord
from ray_snake.runtime.supply import Supply


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a visit came to.

    Attributes:
        visit: The visit.
        record: The decision, its `blocks` still empty.
        refs: The trained blocks as they travel, by block.
        parcel_bytes: Bytes of each that the node trained, in the same order.
        machine: The node's machine, which has them in its store.
        anchors: What they are the difference from, in block order; none: they are whole.
    """

    visit: Visit
    record: VisitRecord
    refs: Mapping[int, Ref]
    parcel_bytes: Sequence[int]
    machine: str
    anchors: tuple[int, ...] | None


class Committer:
    """Makes results current in the ledger and has them recorded.

    Args:
        engine: Serves blocks in client-server mode, and averages.
        supply: Keeps the ledger.
        recorder: Stores and journals.
        through_driver: Whether nodes pull from the driver's side alone.
        mean: The last visits that the final weights are the mean over; none: no mean.
    """

    def __init__(
        self,
        *,
        engine: EngineHandle,
        supply: Supply,
        recorder: Recorder,
        through_driver: bool,
        mean: range | None = None,
    ) -> None:
        self._engine = engine
        self._supply = supply
        self._recorder = recorder
        self._through_driver = through_driver
        self._last_of_mean = None if mean is None else mean[-1]
        self._round: list[Result] = []

    async def accept(self, result: Result) -> None:
        """Make a visit's blocks current, or keep them until its round is over."""
        result = self._with_transfers(result)
        if result.visit.averaged:
            self._round.append(result)
        elif result.visit.number == self._last_of_mean:
            await self._commit_mean(result, result.refs)
        else:
            await self._commit(result)

    async def refuse(self, result: Result) -> None:
        """Leave the model as it is."""
        if result.visit.averaged:
            self._round.append(result)
        elif result.visit.number == self._last_of_mean:
            await self._commit_mean(result, {})
        else:
            self._supply.decided(result.visit, result.anchors)
            await self._recorder.visit(result.record, {}, anchors=result.anchors)

    async def end_round(self) -> None:
        """Average what a round's accepted visits returned, weighted by the samples they saw."""
        results = sorted(self._round, key=lambda one: one.visit.number)
        self._round = []
        accepted = [one for one in results if one.record.accepted]
        records = [one.record for one in results]
        last = results[-1].visit
        blocks = sorted({block for one in accepted for block in one.refs})
        if not blocks:
            await self._recorder.round(records, {})
            return
        parts = {
            block: [
                (one.refs[block], float(one.record.samples))
                for one in accepted
                if block in one.refs
            ]
            for block in blocks
        }
        averages = await self._engine.average(last.number, parts)
        refs = dict(zip(blocks, averages, strict=True))
        self._supply.commit_at_driver(last.number, refs, machine=self._engine.machine)
        await self._recorder.round(records, refs)

    async def _commit_mean(self, result: Result, refs: Mapping[int, Ref]) -> None:
        """End the run in the mean over its last visits.

        Args:
            result: The very last one's.
            refs: The blocks that it gave a new version.
        """
        number = result.visit.number
        counts = await self._recorder.counted(number, refs)
        parts = {
            block: [
                (refs[block] if one == number else self._recorder.whole(block, one), float(visits))
                for one, visits in versions.items()
            ]
            for block, versions in counts.items()
            # What these visits left alone is its own mean.
            if len(versions) > 1 or block in refs
        }
        means = await self._engine.average(number, parts) if parts else []
        wholes = dict(zip(parts, means, strict=True))
        self._supply.commit_at_driver(number, wholes, machine=self._engine.machine)
        await self._recorder.visit(result.record, wholes, anchors=None, wholes=wholes)

    def _with_transfers(self, result: Result) -> Result:
        """Note what goes to the driver's side: whatever a node made and was accepted, once."""
        record = result.record
        if result.machine == self._engine.machine:
            return result
        to_driver = [
            Transfer(source=record.node_name, target=DRIVER, bytes=size)
            for size in result.parcel_bytes
        ]
        record = record.model_copy(update={"transfers": (*record.transfers, *to_driver)})
        return Result(**{**vars(result), "record": record})

    async def _commit(self, result: Result) -> None:
        refs, anchors = result.refs, result.anchors
        # Straight on to the next node, or through the driver's side.
        machines, origin = {result.machine, self._engine.machine}, result.record.node_name
        wholes = None
        if self._through_driver:
            bases = [] if anchors is None else [self._recorder.whole(b, anchors[b]) for b in refs]
            served, decoded = await self._engine.serve(list(refs.values()), bases)
            refs = dict(zip(refs, served, strict=True))
            wholes = dict(zip(refs, decoded, strict=True))
            machines, origin = {self._engine.machine}, DRIVER
        visit = result.visit
        of_node = {block: ref for block, ref in refs.items() if visit.on_node(block)}
        of_server = {block: ref for block, ref in refs.items() if block not in of_node}
        self._supply.commit(visit, of_node, result.parcel_bytes, machines=machines, origin=origin)
        self._supply.commit_at_driver(visit.number, of_server, machine=self._engine.machine)
        await self._recorder.visit(result.record, refs, anchors=anchors, wholes=wholes)
