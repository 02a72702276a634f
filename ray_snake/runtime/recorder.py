"""The recorder: what becomes of a decided visit. Blocks to storage, a journal record, a judgement.

It works behind the running visit, strictly in order: the journal never has a visit whose blocks,
or whose predecessors, are not on storage.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from ray_snake.layers.ledger import BlockVersion
from ray_snake.planning.cost import BlockCost
from ray_snake.runtime.claim import Claim
from ray_snake.runtime.events import Evaluated, Event, VisitDecided
from ray_snake.runtime.final_mean import Counts, versions_since, with_last
from ray_snake.runtime.handles import EngineHandle, Meter, Ref
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.records import (
    BlockRecord,
    EvaluationRecord,
    JoinRecord,
    JournalRecord,
    LeaveRecord,
    StartRecord,
    TrafficRecord,
    VisitRecord,
)

BACKLOG = 4
"""How many things may wait before whoever adds one more waits too."""
HOLD_SECONDS = 1.0
"""How long a visit's blocks may wait for the next visit to be under way before they are stored."""
COUNTERS_SECONDS = 12.0
"""How long a run's end waits for counters of what moved: Ray reports them every 10 s."""
UNCOUNTED_BYTES = 100_000
"""Smaller objects may travel within Ray's messages; object managers then don't count them."""


class Recorder:
    """Stores, journals and judges in the background, one thing after another.

    It keeps the whole blocks at the driver's side: the current ones, and those that others are the
    difference from.

    Args:
        engine: Writes blocks and judges models.
        claim: The right to write to the run.
        journal: The run's journal.
        meter: Counts what machines receive.
        emit: Told what the journal has.
        wholes: The whole blocks that are there already, by block and version.
        on_whole: Told (block, version, ref) of each that was decoded since.
        mean: The visits whose versions stay until the run's end, for the mean; none: no visit's.
    """

    def __init__(
        self,
        *,
        engine: EngineHandle,
        claim: Claim,
        journal: Journal,
        meter: Meter,
        emit: Callable[[Event], None],
        wholes: Mapping[BlockVersion, Ref],
        on_whole: Callable[[int, int, Ref], None],
        mean: range | None = None,
    ) -> None:
        self._engine = engine
        self._claim = claim
        self._journal = journal
        self._meter = meter
        self._received_before: int | None = None
        self._expected = 0
        self._emit = emit
        self._wholes = dict(wholes)
        self._on_whole = on_whole
        self._mean = mean
        self._pending: list[asyncio.Task[None]] = []
        self._hold_over = asyncio.Event()
        self._hold_over.set()
        self._writing: asyncio.Future[None] | None = None

    async def start(self, costs: tuple[BlockCost, ...] = (), rows: tuple[int, ...] = ()) -> None:
        """Store the initial weights; the journal's first record says so.

        Args:
            costs: What each block costs, where the run adapts.
            rows: Rows of each node's shard.
        """
        # By the time it is their turn, there may be visits' blocks too.
        initial = [*self._wholes.values()]

        async def work() -> None:
            blocks = await self._stored(initial)
            record = StartRecord(blocks=blocks, costs=costs, rows=rows, finished_at=time.time())
            await self._append(record)

        await self._add(work)

    async def change(self, record: JoinRecord | LeaveRecord) -> None:
        """Journal that a node joins or leaves; when this returns, the journal has it."""

        async def work() -> None:
            await self._append(record)

        await self._add(work)
        await self.drain()

    def whole(self, block: int, version: int) -> Ref:
        """Return the ref of a whole block at the driver's side."""
        return self._wholes[block, version]

    async def visit(
        self,
        record: VisitRecord,
        refs: Mapping[int, Ref],
        *,
        anchors: Sequence[int] | None,
        wholes: Mapping[int, Ref] | None = None,
    ) -> None:
        """Store an accepted visit's blocks and journal it; a refused one is only journalled.

        Args:
            record: The decision, its `blocks` still empty; its `update_norm` is measured here
                unless the node did.
            refs: The blocks that the visit produced as they travel, by block; empty for a refused
                one.
            anchors: What they are the difference from, in block order; none: they are whole.
            wholes: Them whole, by block, where the driver's side has decoded them already.
        """
        self._hold()
        if wholes is not None:
            # The next visit's results may be the difference from them.
            self._keep(record.visit, refs, wholes)

        async def work() -> None:
            made = wholes or await self._decoded(record.visit, refs, anchors)
            blocks = await self._stored(made.values()) if made else ()
            change = record.update_norm
            if made and change is None:
                change = await self._engine.update_norm(
                    list(made.values()), [self._wholes[one] for one in self._current(made)]
                )
            complete = record.model_copy(update={"blocks": blocks, "update_norm": change})
            await self._append(complete)
            self._note_expected(record)
            self._emit(VisitDecided(record=complete))
            if not self._stays_for_mean(record.visit):
                await self._discard(anchors)

        await self._add(work)

    async def round(self, records: Sequence[VisitRecord], averages: Mapping[int, Ref]) -> None:
        """Journal visits that were averaged, at once, and store their averages.

        Args:
            records: The decisions, in order.
            averages: The averages, by block: versions of the last visit's number; empty if none of
                the visits was accepted.
        """
        last = records[-1]
        self._hold()
        self._keep(last.visit, averages, averages)

        async def work() -> None:
            blocks = await self._stored(averages.values()) if averages else ()
            ended = last.model_copy(update={"blocks": blocks, "ends_round": True})
            complete = [*records[:-1], ended]
            await self._append(*complete)
            for one in complete:
                self._note_expected(one)
                self._emit(VisitDecided(record=one))
            await self._discard(None)

        await self._add(work)

    async def counted(self, number: int, trained: Collection[int]) -> Counts:
        """Return what of the run's last visits counts for the mean, the very last one included.

        Args:
            number: The very last visit, which is not recorded yet.
            trained: The blocks that it gave a new version.
        """
        await self.drain()
        first = number if self._mean is None else self._mean.start
        return with_last(versions_since(self._journal, first), self._journal, number, trained)

    def _stays_for_mean(self, visit: int) -> bool:
        """Return whether what a visit superseded is still to be counted."""
        return self._mean is not None and self._mean[0] < visit < self._mean[-1]

    async def _decoded(
        self, visit: int, refs: Mapping[int, Ref], anchors: Sequence[int] | None
    ) -> Mapping[int, Ref]:
        """Return a visit's blocks whole, by block, and keep them."""
        wholes = refs
        if anchors is not None and refs:
            bases = [self._wholes[block, anchors[block]] for block in refs]
            decoded = await self._engine.decode(list(refs.values()), bases)
            wholes = dict(zip(refs, decoded, strict=True))
        self._keep(visit, refs, wholes)
        return wholes

    def _note_expected(self, record: VisitRecord) -> None:
        self._expected += sum(
            one.bytes for one in record.transfers if one.bytes > UNCOUNTED_BYTES * one.objects
        )

    def _keep(self, visit: int, refs: Mapping[int, Ref], wholes: Mapping[int, Ref]) -> None:
        for block, ref in wholes.items():
            self._wholes[block, visit] = ref
            if ref is not refs[block]:
                self._on_whole(block, visit, ref)

    async def _discard(self, anchors: Sequence[int] | None) -> None:
        """Drop what is neither current any more nor an anchor, and delete its files."""
        superseded = [
            (block, version)
            for block, version in self._wholes
            if version < self._journal.current_version(block)
            and not (anchors and anchors[block] == version)
        ]
        for one in superseded:
            del self._wholes[one]
        await self._engine.discard(superseded)

    async def evaluation(self, *, visit: int, trip: int) -> None:
        """Judge the model after the last visit so far and journal the result."""

        async def work() -> None:
            report = await self._engine.evaluate(self._model())
            record = EvaluationRecord(
                visit=visit,
                trip=trip,
                samples=report.samples,
                loss=report.loss,
                accuracy=report.accuracy,
                perplexity=report.perplexity,
                seconds=report.seconds,
                finished_at=time.time(),
            )
            await self._append(record)
            self._emit(Evaluated(record=record))

        await self._add(work)

    async def traffic(self, *, visit: int, last: bool = False) -> None:
        """Journal what machines have received so far.

        The first reading is made before this returns: what moves from then on counts.

        Args:
            visit: The last decided visit.
            last: Wait until the counters know of all that was to move, for a while.
        """
        first = self._received_before is None
        at_first = await self._meter.received() if first else {}
        if first:
            self._received_before = sum(at_first.values())

        async def work() -> None:
            deadline = time.monotonic() + COUNTERS_SECONDS
            received = at_first if first else await self._meter.received()
            before = self._received_before or 0
            while (
                last
                and received
                and sum(received.values()) - before < self._expected
                and time.monotonic() < deadline
            ):
                await asyncio.sleep(COUNTERS_SECONDS / 24)
                received = await self._meter.received()
            if not received:
                return
            await self._append(
                TrafficRecord(
                    visit=visit,
                    driver_machine=self._engine.machine,
                    received=dict(received),
                    first=first,
                    finished_at=time.time(),
                )
            )

        # It holds no block, so the driver need not wait for it.
        self._queue(work)

    async def weights_sha256(self) -> str:
        """Return SHA-256 over all blocks (hexadecimal) once all so far is on storage."""
        await self.drain()
        return await self._engine.weights_sha256(self._model())

    def _model(self) -> list[Ref]:
        return [self._wholes[one.block, one.version] for one in self._journal.current_blocks()]

    def _current(self, blocks: Iterable[int]) -> list[BlockVersion]:
        return [(block, self._journal.current_version(block)) for block in blocks]

    def go_on(self) -> None:
        """Store what waits: the next visit's node has its blocks."""
        self._hold_over.set()

    def raise_failure(self) -> None:
        """Raise what kept the recorder from going on, if anything did."""
        for task in self._pending:
            if task.done():
                task.result()

    async def drain(self) -> None:
        """Return when everything so far is on storage; raise what kept it from being so."""
        self.go_on()
        if self._pending:
            # Whoever waits here may be given up, such as a fetch for a node that leaves.
            await asyncio.shield(self._pending[-1])

    async def close(self) -> None:
        """Drop what is not done yet; on return nothing writes to the journal any more."""
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        if self._writing is not None:
            await asyncio.wait({self._writing})

    async def _add(self, work: Callable[[], Awaitable[None]]) -> None:
        self._queue(work)
        if len(self._pending) > BACKLOG + 1:
            self.go_on()
            await self._pending[0]

    def _hold(self) -> None:
        """Leave machines and links to the handover: storing pulls the very same blocks."""
        self._hold_over.clear()
        asyncio.get_running_loop().call_later(HOLD_SECONDS, self.go_on)

    def _queue(self, work: Callable[[], Awaitable[None]]) -> None:
        self.raise_failure()
        self._pending = [task for task in self._pending if not task.done()]
        before = self._pending[-1] if self._pending else None
        self._pending.append(asyncio.create_task(self._after(before, work)))

    async def _after(
        self, before: asyncio.Task[None] | None, work: Callable[[], Awaitable[None]]
    ) -> None:
        if before is not None:
            await before
        await self._hold_over.wait()
        await work()

    async def _stored(self, refs: Iterable[Ref]) -> tuple[BlockRecord, ...]:
        await asyncio.to_thread(self._claim.check)
        return await self._engine.store(list(refs))

    async def _append(self, *records: JournalRecord) -> None:
        def append() -> None:
            self._claim.check()
            self._journal.append(*records)

        # A cancelled append would go on in its thread, and could later write over newer records.
        self._writing = asyncio.ensure_future(asyncio.to_thread(append))
        await asyncio.shield(self._writing)
