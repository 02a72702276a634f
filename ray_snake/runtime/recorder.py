"""The recorder: what becomes of a decided visit. Blocks to storage, a journal record, a judgement.

It works behind the running visit, strictly in order: the journal never has a visit whose blocks,
or whose predecessors, are not on storage.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ray_snake.runtime.events import Evaluated, Event, VisitDecided
from ray_snake.runtime.handles import EngineHandle, Ref
from ray_snake.runtime.journal import EvaluationRecord, Journal, StartRecord, VisitRecord


class Recorder:
    """Stores, journals and judges in the background, one thing after another.

    Args:
        engine: Writes blocks and judges models.
        journal: The run's journal.
        emit: Told what the journal has.
        backlog: How many things may wait before `add` waits too.
    """

    def __init__(
        self,
        *,
        engine: EngineHandle,
        journal: Journal,
        emit: Callable[[Event], None],
        backlog: int = 4,
    ) -> None:
        self._engine = engine
        self._journal = journal
        self._emit = emit
        self._backlog = backlog
        self._pending: list[asyncio.Task[None]] = []
        self._writing: asyncio.Future[None] | None = None

    async def start(self, refs: Sequence[Ref]) -> None:
        """Store the initial weights; the journal's first record says so."""

        async def work() -> None:
            blocks = await self._engine.store(refs)
            await self._append(StartRecord(blocks=blocks, finished_at=time.time()))

        await self._add(work)

    async def visit(
        self, record: VisitRecord, refs: Mapping[int, Ref], arrived: Mapping[int, Ref]
    ) -> None:
        """Store an accepted visit's blocks and journal it; a refused one is only journalled.

        Args:
            record: The decision, its `blocks` still empty; its `update_norm` is measured here
                unless the node did.
            refs: The blocks that the visit produced, by block; empty for a refused one.
            arrived: The versions of these blocks that it started from, by block.
        """
        before = [] if record.update_norm is not None else [arrived[block] for block in refs]

        async def work() -> None:
            superseded = [
                (one.block, one.version)
                for one in self._journal.current_blocks()
                if one.block in refs
            ]
            blocks = await self._engine.store(list(refs.values())) if refs else ()
            change = record.update_norm
            if before:
                change = await self._engine.update_norm(list(refs.values()), before)
            complete = record.model_copy(update={"blocks": blocks, "update_norm": change})
            await self._append(complete)
            self._emit(VisitDecided(record=complete))
            await self._engine.discard(superseded)

        await self._add(work)

    async def evaluation(self, *, visit: int, trip: int, refs: Sequence[Ref]) -> None:
        """Judge the model after a visit and journal the result."""

        async def work() -> None:
            report = await self._engine.evaluate(refs)
            record = EvaluationRecord(
                visit=visit,
                trip=trip,
                samples=report.samples,
                loss=report.loss,
                accuracy=report.accuracy,
                seconds=report.seconds,
                finished_at=time.time(),
            )
            await self._append(record)
            self._emit(Evaluated(record=record))

        await self._add(work)

    def raise_failure(self) -> None:
        """Raise what kept the recorder from going on, if anything did."""
        for task in self._pending:
            if task.done():
                task.result()

    async def drain(self) -> None:
        """Return when everything so far is on storage; raise what kept it from being so."""
        if self._pending:
            await self._pending[-1]

    async def close(self) -> None:
        """Drop what is not done yet; on return nothing writes to the journal any more."""
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        if self._writing is not None:
            await asyncio.wait({self._writing})

    async def _add(self, work: Callable[[], Awaitable[None]]) -> None:
        self.raise_failure()
        self._pending = [task for task in self._pending if not task.done()]
        if len(self._pending) > self._backlog:
            await self._pending[0]
        before = self._pending[-1] if self._pending else None
        self._pending.append(asyncio.create_task(self._after(before, work)))

    @staticmethod
    async def _after(
        before: asyncio.Task[None] | None, work: Callable[[], Awaitable[None]]
    ) -> None:
        if before is not None:
            await before
        await work()

    async def _append(self, record: StartRecord | VisitRecord | EvaluationRecord) -> None:
        # A cancelled append would go on in its thread, and could later write over newer records.
        self._writing = asyncio.ensure_future(asyncio.to_thread(self._journal.append, record))
        await asyncio.shield(self._writing)
