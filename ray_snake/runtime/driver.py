"""The driver: who trains what next, what is accepted, what happens when something dies.

`Driver` is the whole loop and knows nothing of Ray: it directs whatever implements the handles.
It does no tensor maths and never fetches a block; it passes refs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import TypeVar

from ray_snake.config import SnakeConfig
from ray_snake.errors import NodeFailedError, SnakeError, VisitFailedError
from ray_snake.layers.ledger import Ledger, Parcel
from ray_snake.planning.anchor import Anchors
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import Strategy, make_strategy
from ray_snake.runtime.acceptance import Refuse, judge
from ray_snake.runtime.committer import Committer, Result
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
    Meter,
    NodeHandle,
    ProcessLostError,
    Ref,
)
from ray_snake.runtime.journal import DRIVER, Journal, VisitRecord
from ray_snake.runtime.messages import BlockTable, VisitTask
from ray_snake.runtime.recorder import Recorder
from ray_snake.runtime.resume import replay, stored_blocks
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
from ray_snake.runtime.supply import Supply
from ray_snake.seeds import derive_seed
from ray_snake.storage import Storage

PROGRESS_SECONDS = 1.0

Answer = TypeVar("Answer")


class Driver:
    """Runs a snake from its first visit, or from its journal, to its last.

    Args:
        config: The run's settings.
        names: The nodes' names, by number.
        blocks: The network's blocks.
        storage: The run's folder.
        engine: The process engine, not yet started.
        roster: The nodes, not yet started.
        meter: Counts what machines receive.
        evaluates: Whether the process engine has held-out rows.
        emit: Told everything that happens, in order.
        strategy: A user's own class; none: the one that the settings name.
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
        meter: Meter,
        evaluates: bool,
        emit: Callable[[Event], None],
        strategy: type[Strategy] | None = None,
    ) -> None:
        self.state: State = Starting()
        self._config = config
        self._names = names
        self._blocks = blocks
        self._storage = storage
        self._engine = engine
        self._roster = roster
        self._meter = meter
        self._evaluates = evaluates
        self._emit = emit
        self._strategy_kind = strategy
        self._recoveries_left = config.failures.recoveries
        self._refused_in_a_row = 0
        self._strategy: Strategy
        self._supply: Supply | None = None
        self._recorder: Recorder | None = None
        self._committer: Committer

    async def run(self) -> State:
        """Step until the run is finished or has failed; return that state."""
        try:
            while not isinstance(self.state, (Finished, Failed)):
                await self.step()
        finally:
            await self._stop_background()
            await self._roster.close()
        return self.state

    async def step(self) -> None:
        """Make one transition. A lost process or block leads back to the journal."""
        try:
            self.state = await self._next(self.state)
        except (ProcessLostError, BlocksLostError) as error:
            self.state = self._recover(str(error))
        except SnakeError as error:
            if self._recorder is not None:
                # What was accepted before need not be done again.
                with contextlib.suppress(SnakeError, ProcessLostError, BlocksLostError):
                    await self._recorder.drain()
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
        """Bring the journal's last model into the object store and take up the strategy there."""
        await self._stop_background()
        journal = await asyncio.to_thread(Journal, self._storage)
        self._strategy = make_strategy(
            self._config,
            nodes=len(self._names),
            blocks=len(self._blocks.names),
            kind=self._strategy_kind,
        )
        anchors, self._refused_in_a_row = replay(journal, self._strategy, self._config.codec)
        self._emit(
            RunStarted(
                nodes=self._names,
                block_names=self._blocks.names,
                block_bytes=self._blocks.bytes,
                trips=self._config.snake.trips,
                visits=self._strategy.total,
                done=len(journal.visits),
            )
        )
        self._roster.begin(self._strategy.upcoming_nodes())
        await self._engine.start()
        wholes = await stored_blocks(journal, anchors, self._engine)
        self._take_up(journal, anchors, wholes)
        if journal.current_blocks():
            await self._evaluate_if_missing(journal)
        else:
            await self._recorder_or_fail().start()
        await self._recorder_or_fail().traffic(visit=len(journal.visits))
        return Scheduling()

    def _take_up(
        self, journal: Journal, anchors: Anchors | None, wholes: Mapping[tuple[int, int], Ref]
    ) -> None:
        """Make recorder and supply anew, from what is at the driver's side."""

        def on_whole(block: int, version: int, ref: Ref) -> None:
            supply.add_whole(block, version, ref, machine=self._engine.machine)

        self._recorder = Recorder(
            engine=self._engine,
            journal=journal,
            meter=self._meter,
            emit=self._emit,
            wholes=wholes,
            on_whole=on_whole,
        )
        ledger = Ledger(
            [one.version for one in journal.current_blocks()] or [0] * len(self._blocks.names),
            [
                Parcel(
                    block=block,
                    version=version,
                    ref=ref,
                    bytes=journal.block_bytes(block, version) or self._blocks.bytes[block],
                    origin=DRIVER,
                    machines={self._engine.machine},
                )
                for (block, version), ref in wholes.items()
            ],
            None if anchors is None else anchors.versions,
        )
        self._supply = supply = Supply(
            names=self._names,
            block_bytes=self._blocks.bytes,
            anchors=anchors,
            ledger=ledger,
            roster=self._roster,
            recorded=self._drain_behind,
            timeout=self._config.failures.visit_timeout_seconds,
            through_driver=self._through_driver,
        )
        self._committer = Committer(
            engine=self._engine,
            supply=supply,
            recorder=self._recorder,
            through_driver=self._through_driver,
        )

    async def _stop_background(self) -> None:
        if self._supply is not None:
            self._supply.close()
        if self._recorder is not None:
            await self._recorder.close()

    async def _choose(self) -> State:
        self._roster.raise_failure()
        visit = self._strategy.next()
        return Finishing() if visit is None else Visiting(visit=visit)

    async def _visit(self, visit: Visit) -> State:
        """Send a visit to its node and wait; a lost node is started again and visited again."""
        supply = self._supply_or_fail()
        handle = await self._roster.node(visit.node)
        self._emit(VisitStarted(visit=visit))
        started = time.monotonic()
        try:
            deliveries = await self._in_time(supply.ship(visit, handle), visit)
            task = self._task(visit)
            training = asyncio.create_task(handle.visit(task, deliveries))
            supply.fetch_ahead(visit, self._strategy.peek())
            try:
                await self._watch(visit, handle, training)
                report, refs = await training
            finally:
                training.cancel()
        except ProcessLostError as error:
            supply.lost(self._roster.lost(visit.node, str(error)))
            return Visiting(visit=visit)
        except BaseException:
            handle.stop()
            raise
        return Deciding(
            task=task,
            report=report,
            refs=refs,
            moved=supply.returned(
                visit, deliveries, report, crosses=handle.machine != self._engine.machine
            ),
            machine=handle.machine,
            seconds=time.monotonic() - started,
        )

    async def _in_time(self, shipping: Awaitable[Answer], visit: Visit) -> Answer:
        limit = self._config.failures.visit_timeout_seconds
        try:
            return await asyncio.wait_for(shipping, limit)
        except asyncio.TimeoutError:
            raise ProcessLostError(
                f"visit {visit.number} got its blocks not within failures.visit_timeout_seconds = "
                f"{limit:g}"
            ) from None

    def _task(self, visit: Visit) -> VisitTask:
        return VisitTask(
            visit=visit,
            versions=self._supply_or_fail().versions,
            anchors=self._supply_or_fail().anchors(visit),
            learning_rate=self._strategy.learning_rate(visit),
            seed=derive_seed(self._config.seed, "visit", visit.number),
            back=self._supply_or_fail().back(visit),
        )

    async def _watch(
        self, visit: Visit, handle: NodeHandle, training: asyncio.Task[object]
    ) -> None:
        """Return when the visit is done; pass on its progress meanwhile."""
        limit = self._config.failures.visit_timeout_seconds
        deadline = time.monotonic() + limit
        while not (await asyncio.wait({training}, timeout=PROGRESS_SECONDS))[0]:
            self._recorder_or_fail().go_on()
            self._raise_failure_behind()
            if time.monotonic() > deadline:
                raise ProcessLostError(
                    f"visit {visit.number} took longer than failures.visit_timeout_seconds = "
                    f"{limit:g}"
                )
            progress = await handle.progress()
            if progress is not None:
                step, steps, loss = progress
                self._emit(VisitProgress(visit=visit.number, step=step, steps=steps, loss=loss))

    def _raise_failure_behind(self) -> None:
        """Raise what kept the recorder from going on; it is not the visit's node that is lost."""
        try:
            self._recorder_or_fail().raise_failure()
        except ProcessLostError as error:
            raise BlocksLostError(str(error)) from None

    async def _drain_behind(self) -> None:
        with contextlib.suppress(ProcessLostError):
            await self._recorder_or_fail().drain()
        self._raise_failure_behind()

    async def _decide(self, state: Deciding) -> State:
        visit = state.task.visit
        verdict = judge(state.report, self._config.acceptance)
        accepted = not isinstance(verdict, Refuse)
        report = asdict(state.report)
        record = VisitRecord(
            visit=visit.number,
            trip=visit.trip,
            node=visit.node,
            node_name=self._names[visit.node],
            machine=state.machine,
            span=(visit.span.start, visit.span.stop),
            trained=visit.trained,
            learning_rate=state.task.learning_rate,
            accepted=accepted,
            reason=verdict.reason if isinstance(verdict, Refuse) else "",
            bytes_pulled=state.moved.bytes_pulled,
            bytes_returned=sum(report.pop("parcel_bytes")),
            exchanged_bytes=state.moved.exchanged_bytes,
            transfers=state.moved.transfers,
            **report,
            seconds=state.seconds,
            finished_at=time.time(),
            averaged=visit.averaged,
        )
        recorder = self._recorder_or_fail()
        result = Result(
            visit=visit,
            record=record,
            refs=state.refs,
            parcel_bytes=state.report.parcel_bytes,
            machine=state.machine,
            anchors=state.task.anchors,
        )
        await (self._committer.accept if accepted else self._committer.refuse)(result)
        self._count_decision(visit, accepted=accepted)
        in_round = visit.averaged and self._is_in_round_of(visit, self._strategy.peek())
        if visit.averaged and not in_round:
            await self._committer.end_round()
        if not in_round and self._evaluation_is_due(visit.number):
            await recorder.evaluation(visit=visit.number, trip=visit.trip)
        if visit.number % len(self._names) == 0:
            await recorder.traffic(visit=visit.number, last=visit.number == self._strategy.total)
        if self._refused_in_a_row > self._config.acceptance.max_refused:
            await recorder.drain()
            raise VisitFailedError(
                f"{self._refused_in_a_row} visits in a row were refused, the last one because "
                f"{record.reason}",
                "lower training.learning_rate, or loosen the acceptance settings",
            )
        return Scheduling()

    @staticmethod
    def _is_in_round_of(visit: Visit, other: Visit | None) -> bool:
        return other is not None and other.averaged and other.trip == visit.trip

    def _count_decision(self, visit: Visit, *, accepted: bool) -> None:
        if accepted:
            self._refused_in_a_row = 0
        else:
            self._refused_in_a_row += 1
            self._strategy.refused(visit)

    async def _finish(self) -> State:
        sha256 = await self._recorder_or_fail().weights_sha256()
        self._emit(RunEnded(weights_sha256=sha256))
        return Finished(weights_sha256=sha256)

    def _evaluation_is_due(self, visit: int) -> bool:
        if not self._evaluates:
            return False
        every = self._config.evaluation.every_visits or len(self._names)
        left = self._strategy.total - visit
        return visit % every == 0 or left < max(1, self._config.evaluation.last_visits)

    async def _evaluate_if_missing(self, journal: Journal) -> None:
        """Judge the model at which the run was interrupted, if that was still to be done."""
        if not journal.visits or not self._evaluation_is_due(journal.visits[-1].visit):
            return
        last = journal.visits[-1]
        if not journal.evaluations or journal.evaluations[-1].visit != last.visit:
            await self._recorder_or_fail().evaluation(visit=last.visit, trip=last.trip)

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

    def _supply_or_fail(self) -> Supply:
        if self._supply is None:
            raise RuntimeError("the driver has not started; step it from Starting")
        return self._supply

    @property
    def _through_driver(self) -> bool:
        return self._config.transport.mode == "client_server"
