"""The driver: who trains what next, what is accepted, what happens when something dies.

`Driver` is the whole loop and knows nothing of Ray: it directs whatever implements the handles.
It does no tensor maths and never fetches a block; it passes refs on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from ray_snake.config import SnakeConfig
from ray_snake.errors import NodeFailedError, SnakeError, TakenOverError, VisitFailedError
from ray_snake.extensions import OwnClasses
from ray_snake.layers.ledger import Ledger, Parcel
from ray_snake.planning.anchor import Anchors
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import Strategy, make_strategy
from ray_snake.runtime.acceptance import Refuse, judge_visit
from ray_snake.runtime.claim import Claim
from ray_snake.runtime.committer import Committer, Result
from ray_snake.runtime.crew import Crew
from ray_snake.runtime.events import Event, Recovering, RunEnded, RunStarted
from ray_snake.runtime.handles import BlocksLostError, EngineHandle, Meter, ProcessLostError, Ref
from ray_snake.runtime.journal import Journal
from ray_snake.runtime.messages import BlockTable
from ray_snake.runtime.recorder import Recorder
from ray_snake.runtime.records import DRIVER, VisitRecord
from ray_snake.runtime.registrar import LOOK_SECONDS, Registrar
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
from ray_snake.runtime.visitor import Visitor
from ray_snake.storage import Storage


class Driver:
    """Runs a snake from its first visit, or from its journal, to its last.

    Args:
        config: The run's settings.
        crew: The nodes that it starts with; those that join are added.
        blocks: The network's blocks.
        storage: The run's folder.
        engine: The process engine, not yet started.
        roster: The nodes, not yet started.
        registrar: Takes nodes in and lets nodes go.
        meter: Counts what machines receive.
        evaluates: Whether the process engine has held-out rows.
        emit: Told everything that happens, in order.
        own: A user's own classes; none: what the settings name.
    """

    def __init__(
        self,
        *,
        config: SnakeConfig,
        crew: Crew,
        blocks: BlockTable,
        storage: Storage,
        engine: EngineHandle,
        roster: Roster,
        registrar: Registrar,
        meter: Meter,
        evaluates: bool,
        emit: Callable[[Event], None],
        own: OwnClasses | None = None,
    ) -> None:
        self.state: State = Starting()
        self._config = config
        self._names = crew.names
        self._facts = crew.facts()
        self._blocks = blocks
        self._claim = Claim(storage)
        self._engine = engine
        self._roster = roster
        self._registrar = registrar
        self._meter = meter
        self._evaluates = evaluates
        self._emit = emit
        self._own = own
        self._recoveries_left = config.failures.recoveries
        self._refused_in_a_row = 0
        self._decided = 0
        self._running: list[asyncio.Future[Deciding]] = []
        self._attending: list[asyncio.Task[None]] = []
        self._decided_before: dict[int, int] = {}
        self._journal: Journal
        self._strategy: Strategy
        self._visitor: Visitor
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
            case Visiting():
                return await self._await_first()
            case Deciding():
                return await self._decide(state)
            case Finishing():
                return await self._finish()
        return state

    async def _start(self) -> State:
        """Bring the journal's last model into the object store and take up the strategy there."""
        await self._stop_background()
        await asyncio.to_thread(self._claim.take)
        self._journal = journal = await asyncio.to_thread(Journal, self._claim.storage)
        self._strategy = make_strategy(
            self._config,
            nodes=len(self._facts.rows),
            blocks=len(self._blocks.names),
            own=self._own,
        )
        costs = journal.costs or self._blocks.costs
        if costs:
            self._strategy.know(replace(self._facts, costs=costs))
        await self._registrar.take_up(journal.changes)
        anchors, self._refused_in_a_row = replay(
            journal, self._strategy, self._config.codec, parts=len(self._blocks.bytes)
        )
        self._decided = len(journal.visits)
        self._emit(
            RunStarted(
                nodes=tuple(self._names),
                block_names=self._blocks.names,
                block_bytes=self._blocks.bytes,
                trips=self._config.snake.trips,
                visits=self._strategy.total,
                done=self._decided,
                left=tuple(sorted({*range(self._strategy.nodes)} - {*self._strategy.members})),
            )
        )
        self._roster.begin(self._strategy.upcoming_nodes())
        await self._engine.start()
        wholes = await stored_blocks(journal, anchors, self._engine, self._strategy.mean)
        self._take_up(journal, anchors, wholes)
        if journal.current_blocks():
            await self._evaluate_if_missing()
        else:
            await self._recorder_or_fail().start(costs, self._facts.rows)
        await self._compare_bases(journal)
        await self._recorder_or_fail().traffic(visit=self._decided)
        acts = (lambda: self._registrar.look(self._strategy), self._move, self._stay)
        self._attending = [asyncio.create_task(self._again_and_again(one)) for one in acts]
        return Scheduling()

    async def _compare_bases(self, journal: Journal) -> None:
        """Tell the supply what bases are, for nodes that have some from elsewhere."""
        bases = range(len(self._blocks.names), len(self._blocks.bytes))
        if bases:
            await self._recorder_or_fail().drain()
            self._supply_or_fail().bases = {one: journal.block(one, 0).checksum for one in bases}

    def _take_up(
        self, journal: Journal, anchors: Anchors | None, wholes: Mapping[tuple[int, int], Ref]
    ) -> None:
        """Make recorder and supply anew, from what is at the driver's side."""

        def on_whole(block: int, version: int, ref: Ref) -> None:
            supply.add_whole(block, version, ref, machine=self._engine.machine)

        self._recorder = Recorder(
            engine=self._engine,
            claim=self._claim,
            journal=journal,
            meter=self._meter,
            emit=self._emit,
            wholes=wholes,
            on_whole=on_whole,
            mean=self._strategy.mean,
        )
        ledger = Ledger(
            [one.version for one in journal.current_blocks()] or [0] * len(self._blocks.bytes),
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
            mean=self._strategy.mean,
        )
        self._visitor = Visitor(
            config=self._config,
            strategy=self._strategy,
            supply=supply,
            roster=self._roster,
            recorder=self._recorder,
            machine=self._engine.machine,
            emit=self._emit,
        )

    async def _stop_background(self) -> None:
        background: list[asyncio.Future[Any]] = [*self._running, *self._attending]
        for one in background:
            one.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._running, self._attending = [], []
        if self._supply is not None:
            self._supply.close()
        if self._recorder is not None:
            await self._recorder.close()
            self._recorder = None

    @staticmethod
    async def _again_and_again(act: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await act()
            except TakenOverError:
                raise
            except SnakeError:
                # What storage or cluster refuse now, they may not refuse next time.
                pass
            await asyncio.sleep(LOOK_SECONDS)

    def _raise_failure_beside(self) -> None:
        """Raise what ended a task that goes on beside visits."""
        for attending in self._attending:
            if attending.done():
                attending.result()

    async def _stay(self) -> None:
        """End soon where another driver has taken the run: nodes may be what it waits for."""
        await asyncio.to_thread(self._claim.check)

    async def _move(self) -> None:
        """Leave machines that are about to go; nodes that are visited, after their visit."""
        for group in await self._roster.to_move():
            if self._visitor.busy.isdisjoint(group):
                self._roster.move(group)
                self._supply_or_fail().lost(group)

    async def _choose(self) -> State:
        """Let nodes join and leave, then begin as many visits as may go on at once."""
        self._roster.raise_failure()
        self._raise_failure_beside()
        changed = await self._registrar.settle(
            strategy=self._strategy,
            recorder=self._recorder_or_fail(),
            supply=self._supply_or_fail(),
            visited={visit.node for visit in self._visitor.running},
            decided=self._decided,
        )
        if changed:
            # A node that left may have been the last of its trip.
            await self._evaluate_if_missing()
        while len(self._running) < self._strategy.heads:
            visit = self._strategy.next(self._visitor.running, self._visitor.busy)
            if visit is None:
                break
            self._begin(visit)
        if not self._running:
            return Finishing()
        return Visiting(visits=self._visitor.running)

    def _begin(self, visit: Visit) -> None:
        self._decided_before[visit.number] = self._decided
        self._running.append(asyncio.ensure_future(self._visitor.visit(visit)))

    async def _await_first(self) -> State:
        """Return the visit that comes back first."""
        awaited: list[asyncio.Future[Any]] = [*self._running, *self._attending]
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        self._raise_failure_beside()
        done = next(one for one in self._running if one.done())
        self._running.remove(done)
        return done.result()

    async def _drain_behind(self) -> None:
        with contextlib.suppress(ProcessLostError):
            await self._recorder_or_fail().drain()
        self._visitor.raise_failure_behind()

    async def _decide(self, state: Deciding) -> State:
        visit = state.task.visit
        came_meanwhile = self._decided - self._decided_before.pop(visit.number)
        # Those that are averaged all start from one model, which none of them changes.
        staleness = 0 if visit.averaged else came_meanwhile
        verdict = judge_visit(state, staleness, self._config)
        record = state.record(
            node_name=self._names[visit.node],
            refusal=verdict.reason if isinstance(verdict, Refuse) else "",
            staleness=staleness,
            heads=self._config.snake.heads,
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
        await (self._committer.accept if record.accepted else self._committer.refuse)(result)
        self._visitor.decided(visit)
        self._decided += 1
        self._strategy.observe(record.outcome)
        self._count_decision(record)
        in_round = self._is_in_round(visit)
        if visit.averaged and not in_round:
            await self._committer.end_round()
        if not in_round and self._evaluation_is_due(self._decided):
            await recorder.evaluation(visit=visit.number, trip=visit.trip)
        if self._strategy.ends_trip(self._decided):
            await recorder.traffic(visit=visit.number, last=self._decided == self._strategy.total)
        if self._refused_in_a_row > self._config.acceptance.max_refused:
            await recorder.drain()
            raise VisitFailedError(
                f"{self._refused_in_a_row} visits in a row were refused, the last one because "
                f"{record.reason}",
                "lower training.learning_rate, or loosen the acceptance settings",
            )
        return Scheduling()

    def _is_in_round(self, visit: Visit) -> bool:
        """Return whether other visits are averaged with one, and are still to come in."""
        others = [*self._visitor.running, self._strategy.peek()]
        return visit.averaged and any(
            one is not None and one.averaged and one.trip == visit.trip for one in others
        )

    def _count_decision(self, record: VisitRecord) -> None:
        if record.accepted:
            self._refused_in_a_row = 0
        else:
            # Time is no fault of what was trained.
            self._refused_in_a_row += not record.late
            self._strategy.refused(record.planned)

    async def _finish(self) -> State:
        sha256 = await self._recorder_or_fail().weights_sha256()
        for attending in self._attending:
            attending.cancel()
        await self._registrar.close()
        self._emit(RunEnded(weights_sha256=sha256))
        return Finished(weights_sha256=sha256)

    def _evaluation_is_due(self, decided: int) -> bool:
        if not self._evaluates:
            return False
        every = self._config.evaluation.every_visits
        due = decided % every == 0 if every else self._strategy.ends_trip(decided)
        left = self._strategy.total - decided
        return due or left < max(1, self._config.evaluation.last_visits)

    async def _evaluate_if_missing(self) -> None:
        """Judge the model as the journal has it, if that was still to be done."""
        journal = self._journal
        if not journal.visits or not self._evaluation_is_due(len(journal.visits)):
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
