"""The driver: who trains what next, what is accepted, what happens when something dies.

`Driver` is the whole loop and knows nothing of Ray: it directs whatever implements the handles.
It does no tensor maths and never fetches a block; it passes refs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from ray_snake.config import SnakeConfig
from ray_snake.errors import CheckpointError, NodeFailedError, SnakeError, VisitFailedError
from ray_snake.layers.ledger import Ledger
from ray_snake.planning.schedule import Schedule, learning_rate
from ray_snake.planning.span import Visit
from ray_snake.runtime.acceptance import Refuse, judge
from ray_snake.runtime.events import (
    Event,
    Recovering,
    RunEnded,
    RunStarted,
    VisitProgress,
    VisitStarted,
)
from ray_snake.runtime.handles import (
    BlocksLostError,
    EngineHandle,
    NodeHandle,
    ProcessLostError,
    Ref,
)
from ray_snake.runtime.journal import Journal, VisitRecord
from ray_snake.runtime.messages import BlockTable, VisitTask
from ray_snake.runtime.recorder import Recorder
from ray_snake.runtime.roster import Roster
from ray_snake.runtime.states import (
    Deciding,
    Failed,
    Finished,
    Finishing,
    Scheduling,
    Starting,
    State,
    Visiting,
)
from ray_snake.seeds import derive_seed
from ray_snake.storage import Storage

PROGRESS_SECONDS = 1.0


class Driver:
    """Runs a snake from its first visit, or from its journal, to its last.

    Args:
        config: The run's settings.
        names: The nodes' names, by number.
        blocks: The network's blocks.
        storage: The run's folder.
        engine: The process engine, not yet started.
        roster: The nodes, not yet started.
        evaluates: Whether the process engine has held-out rows.
        emit: Told everything that happens, in order.
    """

    def __init__(
        self,
        *,
        config: SnakeConfig,
        names: tuple[str, ...],
        blocks: BlockTable,
        storage: Storage,
        engine: EngineHandle,
        roster: Roster,
        evaluates: bool,
        emit: Callable[[Event], None],
    ) -> None:
        self.state: State = Starting()
        self._config = config
        self._names = names
        self._blocks = blocks
        self._storage = storage
        self._engine = engine
        self._roster = roster
        self._evaluates = evaluates
        self._emit = emit
        self._recoveries_left = config.failures.recoveries
        self._refused_in_a_row = 0
        self._schedule: Schedule
        self._ledger: Ledger[Ref]
        self._recorder: Recorder | None = None
        self._prefetch: asyncio.Task[None] | None = None

    async def run(self) -> State:
        """Step until the run is finished or has failed; return that state."""
        try:
            while not isinstance(self.state, (Finished, Failed)):
                await self.step()
        finally:
            if self._prefetch is not None:
                self._prefetch.cancel()
            if self._recorder is not None:
                await self._recorder.close()
            await self._roster.close()
        return self.state

    async def step(self) -> None:
        """Make one transition. A lost process or block leads back to the journal."""
        try:
            self.state = await self._next(self.state)
        except (ProcessLostError, BlocksLostError) as error:
            self.state = self._recover(str(error))
        except SnakeError as error:
            self.state = Failed(error=error)

    async def _next(self, state: State) -> State:
        match state:
            case Starting():
                return await self._start()
            case Scheduling():
                return await self._choose()
            case Visiting(visit=visit):
                return await self._visit(visit)
            case Deciding():
                return await self._decide(state)
            case Finishing():
                return await self._finish()
        return state

    async def _start(self) -> State:
        """Bring the journal's last model into the object store and take up the schedule there."""
        if self._recorder is not None:
            await self._recorder.close()
        if self._prefetch is not None:
            self._prefetch.cancel()
            self._prefetch = None
        journal = await asyncio.to_thread(Journal, self._storage)
        self._schedule = Schedule(
            self._config.snake,
            nodes=len(self._names),
            blocks=len(self._blocks.names),
            seed=self._config.seed,
        )
        self._replay(journal)
        self._recorder = Recorder(engine=self._engine, journal=journal, emit=self._emit)
        self._emit(
            RunStarted(
                nodes=self._names,
                block_names=self._blocks.names,
                block_bytes=self._blocks.bytes,
                trips=self._config.snake.trips,
                visits=self._schedule.total,
                done=len(journal.visits),
            )
        )
        self._roster.begin(self._schedule.upcoming_nodes())
        await self._engine.start()
        stored = journal.current_blocks()
        if stored:
            self._ledger = Ledger(
                [one.version for one in stored], await self._engine.restore(stored)
            )
            await self._evaluate_if_missing(journal)
        else:
            self._ledger = Ledger([0] * len(self._blocks.names), await self._engine.initial())
            await self._recorder.start(self._ledger.refs)
        return Scheduling()

    def _replay(self, journal: Journal) -> None:
        """Take the schedule to where the journal ends."""
        self._refused_in_a_row = 0
        for record in journal.visits:
            visit = self._schedule.next()
            if visit is None or (visit.number, visit.node, visit.trained) != (
                record.visit,
                record.node,
                record.trained,
            ):
                raise CheckpointError(
                    f"visit {record.visit} of the journal of {self._storage.uri} is not the one "
                    "that these settings plan",
                    "resume with the settings and the version the run was started with",
                )
            self._count_decision(visit, accepted=record.accepted)

    async def _choose(self) -> State:
        self._roster.raise_failure()
        visit = self._schedule.next()
        return Finishing() if visit is None else Visiting(visit=visit)

    async def _visit(self, visit: Visit) -> State:
        """Send a visit to its node and wait; a lost node is started again and visited again."""
        handle = await self._roster.node(visit.node)
        await self._prefetched()
        task = self._task(visit)
        stale = self._ledger.stale(visit.node)
        refs = {block: self._ledger.refs[block] for block in stale}
        self._emit(VisitStarted(visit=visit))
        started = time.monotonic()
        training = asyncio.create_task(handle.visit(task, refs))
        self._prefetch = asyncio.create_task(self._prefetch_for_next(visit))
        try:
            await self._watch(visit, handle, training)
            report, trained = await training
        except ProcessLostError as error:
            for node in self._roster.lost(visit.node, str(error)):
                self._ledger.forget(node)
            return Visiting(visit=visit)
        except BaseException:
            handle.stop()
            raise
        finally:
            training.cancel()
        self._ledger.holds(visit.node, stale)
        self._ledger.let_go(visit.node, visit.trained)
        return Deciding(task=task, report=report, refs=trained, seconds=time.monotonic() - started)

    async def _prefetch_for_next(self, visit: Visit) -> None:
        """Have the next visit's node pull what the visit under way can't change."""
        following = self._schedule.peek()
        if following is None or following.node == visit.node:
            return
        node = self._roster.if_up(following.node)
        blocks = [
            block for block in self._ledger.stale(following.node) if block not in visit.trained
        ]
        if node is None or not blocks:
            return
        ledger = self._ledger
        # Whatever fails here is met again, and dealt with, when the node is visited.
        with contextlib.suppress(ProcessLostError, BlocksLostError, asyncio.TimeoutError):
            await asyncio.wait_for(
                node.prefetch({block: ledger.refs[block] for block in blocks}),
                self._config.failures.visit_timeout_seconds,
            )
            # The node may have been lost, and the ledger told so, while the answer was on its way.
            if self._roster.if_up(following.node) is node:
                ledger.holds(following.node, blocks)

    async def _prefetched(self) -> None:
        """Wait for the prefetch under way, so that nothing is pulled twice."""
        if self._prefetch is not None:
            await self._prefetch

    def _task(self, visit: Visit) -> VisitTask:
        return VisitTask(
            visit=visit,
            versions=self._ledger.versions,
            learning_rate=learning_rate(
                self._config.training, trip=visit.trip, trips=self._config.snake.trips
            ),
            seed=derive_seed(self._config.seed, "visit", visit.number),
        )

    async def _watch(
        self, visit: Visit, handle: NodeHandle, training: asyncio.Task[object]
    ) -> None:
        """Return when the visit is done; pass on its progress meanwhile."""
        limit = self._config.failures.visit_timeout_seconds
        deadline = time.monotonic() + limit
        while not (await asyncio.wait({training}, timeout=PROGRESS_SECONDS))[0]:
            self._recorder_or_fail().raise_failure()
            if time.monotonic() > deadline:
                raise ProcessLostError(
                    f"visit {visit.number} took longer than failures.visit_timeout_seconds = "
                    f"{limit:g}"
                )
            progress = await handle.progress()
            if progress is not None:
                step, steps, loss = progress
                self._emit(VisitProgress(visit=visit.number, step=step, steps=steps, loss=loss))

    async def _decide(self, state: Deciding) -> State:
        visit, report = state.task.visit, state.report
        verdict = judge(report, self._config.acceptance)
        accepted = not isinstance(verdict, Refuse)
        record = VisitRecord(
            visit=visit.number,
            trip=visit.trip,
            node=visit.node,
            node_name=self._names[visit.node],
            span=(visit.span.start, visit.span.stop),
            trained=visit.trained,
            learning_rate=state.task.learning_rate,
            accepted=accepted,
            reason=verdict.reason if isinstance(verdict, Refuse) else "",
            **asdict(report),
            seconds=state.seconds,
            finished_at=time.time(),
        )
        recorder = self._recorder_or_fail()
        arrived = {block: self._ledger.refs[block] for block in visit.trained}
        refs = await self._commit(visit, state.refs) if accepted else {}
        self._count_decision(visit, accepted=accepted)
        await recorder.visit(record, refs, arrived)
        if self._evaluation_is_due(visit.number):
            await recorder.evaluation(visit=visit.number, trip=visit.trip, refs=self._ledger.refs)
        if self._refused_in_a_row > self._config.acceptance.max_refused:
            await recorder.drain()
            raise VisitFailedError(
                f"{self._refused_in_a_row} visits in a row were refused, the last one because "
                f"{record.reason}",
                "lower training.learning_rate, or loosen the acceptance settings",
            )
        return Scheduling()

    async def _commit(self, visit: Visit, refs: Mapping[int, Ref]) -> Mapping[int, Ref]:
        """Make a visit's blocks current; return the refs from which they are pulled from now on."""
        if self._config.transport.mode == "client_server":
            served = await self._engine.serve(list(refs.values()))
            refs = dict(zip(refs, served, strict=True))
        for release in self._ledger.commit(visit.number, refs):
            node = self._roster.if_up(release.node)
            if node is not None:
                node.release(release.block, release.version)
        return refs

    def _count_decision(self, visit: Visit, *, accepted: bool) -> None:
        if accepted:
            self._refused_in_a_row = 0
        else:
            self._refused_in_a_row += 1
            self._schedule.refused(visit)

    async def _finish(self) -> State:
        recorder = self._recorder_or_fail()
        await recorder.drain()
        sha256 = await self._engine.weights_sha256(self._ledger.refs)
        self._emit(RunEnded(weights_sha256=sha256))
        return Finished(weights_sha256=sha256)

    def _evaluation_is_due(self, visit: int) -> bool:
        if not self._evaluates:
            return False
        every = self._config.evaluation.every_visits or len(self._names)
        return visit % every == 0 or visit == self._schedule.total

    async def _evaluate_if_missing(self, journal: Journal) -> None:
        """Judge the model at which the run was interrupted, if that was still to be done."""
        if not journal.visits or not self._evaluation_is_due(journal.visits[-1].visit):
            return
        last = journal.visits[-1]
        if not journal.evaluations or journal.evaluations[-1].visit != last.visit:
            await self._recorder_or_fail().evaluation(
                visit=last.visit, trip=last.trip, refs=self._ledger.refs
            )

    def _recover(self, reason: str) -> State:
        if self._recoveries_left == 0:
            return Failed(
                error=NodeFailedError(
                    f"the run went back to its journal more often than failures.recoveries "
                    f"allows; the last time because {reason}",
                    "look into why, then go on with --resume",
                )
            )
        self._recoveries_left -= 1
        self._emit(Recovering(reason=reason))
        return Starting(after=reason)

    def _recorder_or_fail(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError("the driver has not started; step it from Starting")
        return self._recorder
