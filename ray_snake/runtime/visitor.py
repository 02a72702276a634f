"""How a visit is carried out: blocks shipped, its node watched, a lost node started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ray_snake.config import SnakeConfig
from ray_snake.planning.outlook import Prediction
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import Strategy
from ray_snake.runtime.events import Event, VisitLate, VisitProgress, VisitStarted
from ray_snake.runtime.handles import BlocksLostError, NodeHandle, ProcessLostError
from ray_snake.runtime.messages import VisitTask
from ray_snake.runtime.recorder import Recorder
from ray_snake.runtime.roster import Roster
from ray_snake.runtime.states import Deciding
from ray_snake.runtime.supply import Shipment, Supply
from ray_snake.seeds import derive_seed

PROGRESS_SECONDS = 1.0

Answer = TypeVar("Answer")


class Visitor:
    """Carries visits out, several at once if need be.

    Args:
        config: The run's settings.
        strategy: Knows learning rates, what is expected of a visit, and what comes next.
        supply: Ships blocks.
        roster: The nodes.
        recorder: Works behind running visits.
        machine: The driver's machine.
        emit: Told what happens.
    """

    def __init__(
        self,
        *,
        config: SnakeConfig,
        strategy: Strategy,
        supply: Supply,
        roster: Roster,
        recorder: Recorder,
        machine: str,
        emit: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._strategy = strategy
        self._supply = supply
        self._roster = roster
        self._recorder = recorder
        self._machine = machine
        self._emit = emit
        self._running: dict[int, Visit] = {}

    @property
    def running(self) -> tuple[Visit, ...]:
        """The visits that were begun and are not decided yet, as they were begun."""
        return tuple(self._running.values())

    @property
    def busy(self) -> set[int]:
        """The nodes that can't take another visit now: a process does one at a time."""
        return self._busy(self.running)

    def _busy(self, visits: Sequence[Visit]) -> set[int]:
        return {node for one in visits for node in self._roster.beside(one.node)}

    def visit(self, visit: Visit) -> Awaitable[Deciding]:
        """Carry a visit out; where its node is lost, start that again and visit it again.

        It counts as running from now on, even before it is awaited.

        Raises:
            NodeFailedError: If the node was lost too often.
            ProcessLostError: If another process was lost.
            BlocksLostError: If a block could not be had any more.
            SnakeError: If the visit can't be done at all.
        """
        self._running[visit.number] = visit
        return self._carry_out(visit)

    async def _carry_out(self, visit: Visit) -> Deciding:
        while True:
            handle = await self._roster.node(visit.node)
            try:
                return await self._attempt(visit, handle)
            except ProcessLostError as error:
                lost = self._roster.lost(visit.node, str(error), machine_went=error.machine_went)
                self._supply.lost(lost)

    def decided(self, visit: Visit) -> None:
        """Let others train what a visit trained: its result is part of the model, or refused."""
        del self._running[visit.number]

    async def _attempt(self, visit: Visit, handle: NodeHandle) -> Deciding:
        self._emit(VisitStarted(visit=visit))
        started = time.monotonic()
        try:
            shipment = await self._in_time(self._supply.ship(visit, handle), visit)
            fetch_seconds = time.monotonic() - started
            prediction = self._prediction(visit, shipment, fetch_seconds)
            task = self._task(visit, shipment)
            training = asyncio.create_task(handle.visit(task, shipment.deliveries))
            # As if the one that began first were the first to end.
            following = self._strategy.peek(self.running[1:], self._busy(self.running[1:]))
            self._supply.fetch_ahead(self.running, following)
            try:
                late = await self._watch(visit, handle, training, self._deadline(prediction))
                report, refs = await training
            finally:
                training.cancel()
        except ProcessLostError:
            raise
        except BaseException:
            handle.stop()
            raise
        moved = self._supply.returned(
            visit, shipment.deliveries, report, crosses=handle.machine != self._machine
        )
        return Deciding(
            task=task,
            report=report,
            refs=refs,
            moved=moved,
            machine=handle.machine,
            seconds=time.monotonic() - started,
            fetch_seconds=fetch_seconds,
            prediction=prediction,
            late=late,
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

    def _task(self, visit: Visit, shipment: Shipment) -> VisitTask:
        return VisitTask(
            visit=visit,
            versions=shipment.versions,
            anchors=shipment.anchors,
            learning_rate=self._strategy.learning_rate(visit),
            seed=derive_seed(self._config.seed, "visit", visit.number),
            back=shipment.back,
            distillation=self._strategy.distillation(visit),
            damping=self._strategy.damping(visit),
        )

    def _prediction(
        self, visit: Visit, shipment: Shipment, fetch_seconds: float
    ) -> Prediction | None:
        outlook = self._strategy.outlook
        if outlook is None:
            return None
        found = outlook.predict(visit, shipment.bytes)
        return replace(found, seconds=fetch_seconds + found.seconds)

    def _deadline(self, prediction: Prediction | None) -> float | None:
        """Return the seconds after which a visit is stopped; none: never."""
        adaptation = self._config.adaptation
        if prediction is None or adaptation.deadline is None or not self._config.snake.adapt:
            return None
        return max(adaptation.min_deadline_seconds, adaptation.deadline * prediction.seconds)

    async def _watch(
        self,
        visit: Visit,
        handle: NodeHandle,
        training: asyncio.Task[object],
        deadline: float | None,
    ) -> bool:
        """Return when the visit is done, and whether it was stopped; pass on its progress."""
        limit = self._config.failures.visit_timeout_seconds
        started = time.monotonic()
        late = False
        while not (await asyncio.wait({training}, timeout=PROGRESS_SECONDS))[0]:
            self._recorder.go_on()
            self.raise_failure_behind()
            seconds = time.monotonic() - started
            if seconds > limit:
                raise ProcessLostError(
                    f"visit {visit.number} took longer than failures.visit_timeout_seconds = "
                    f"{limit:g}"
                )
            if deadline is not None and seconds > deadline and not late:
                late = True
                handle.finish()
                self._emit(VisitLate(visit=visit, seconds=seconds))
            progress = await handle.progress()
            if progress is not None:
                step, steps, loss = progress
                self._emit(VisitProgress(visit=visit.number, step=step, steps=steps, loss=loss))
        return late

    def raise_failure_behind(self) -> None:
        """Raise what kept the recorder from going on; it is not the visit's node that is lost."""
        try:
            self._recorder.raise_failure()
        except ProcessLostError as error:
            raise BlocksLostError(str(error)) from None
