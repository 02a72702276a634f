"""The registrar: nodes that ask to join or leave a run that goes on.

A node that is to join has its shard checked and its process started before anything depends on it,
while visits go on. So a node that can't be started is refused, and the run is none the worse. It is
between visits that it joins; the journal has it before the strategy does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from ray_snake.config import SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ConfigError, RunError, SnakeError, first_line
from ray_snake.planning.strategy import Strategy
from ray_snake.runtime.crew import Crew, joining, spec_of
from ray_snake.runtime.events import Event, NodeJoined, NodeLeft
from ray_snake.runtime.memory_checks import Entry
from ray_snake.runtime.messages import NodeSpec
from ray_snake.runtime.placement import asked_bytes
from ray_snake.runtime.recorder import Recorder
from ray_snake.runtime.records import JoinRecord, LeaveRecord
from ray_snake.runtime.requests import AddRequest, Answer, Mailbox, RemoveRequest, Request
from ray_snake.runtime.roster import Roster
from ray_snake.runtime.supply import Supply

LOOK_SECONDS = 2.0
"""How long a request may lie before the driver knows of it."""

Examine = Callable[[ShardSource, Entry], Awaitable[NodeSpec]]
"""Looks at a shard where its node may live; raises SnakeError where it can't take part."""


@dataclass(frozen=True)
class Recruit:
    """A node that is up and waits to join."""

    key: str
    node: int
    spec: NodeSpec


@dataclass(frozen=True)
class Departure:
    """A node that is to leave."""

    key: str
    node: int


class Registrar:
    """Prepares what was asked for, and carries it out between visits.

    Args:
        mailbox: The run's requests.
        crew: The run's nodes; those that join are added.
        roster: Starts and ends their processes.
        config: The run's settings.
        examine: Looks at shards.
        emit: Told who joined and who left.
    """

    def __init__(
        self,
        *,
        mailbox: Mailbox,
        crew: Crew,
        roster: Roster,
        config: SnakeConfig,
        examine: Examine,
        emit: Callable[[Event], None],
    ) -> None:
        self._mailbox = mailbox
        self._crew = crew
        self._roster = roster
        self._config = config
        self._examine = examine
        self._emit = emit
        self._ready: list[Recruit | Departure] = []
        self._answered: set[str] = set()

    @property
    def prepared(self) -> list[str]:
        """The ids of the requests that wait for the next time between visits."""
        return [one.key for one in self._ready]

    async def look(self, strategy: Strategy) -> None:
        """Prepare all requests that were made meanwhile, one after another."""
        known = {one.key for one in self._ready} | self._answered
        waiting = await asyncio.to_thread(self._mailbox.waiting)
        for key, request in waiting.items():
            if key not in known:
                await self._prepare(key, request, strategy)

    async def _prepare(self, key: str, request: Request, strategy: Strategy) -> None:
        try:
            strategy.check_may_change()
            if isinstance(request, AddRequest):
                self._ready.append(await self._recruit(key, request, strategy))
            else:
                self._ready.append(self._departure(key, request, strategy))
        except SnakeError as error:
            await self._answer(key, Answer.refusal(error))
        except Exception as error:
            # A cluster that can't be asked raises anything; visits go on all the same.
            failure = RunError(
                f"could not be seen to ({type(error).__name__}: {first_line(error)})",
                "look into it, then ask again",
            )
            await self._answer(key, Answer.refusal(failure))

    async def _recruit(self, key: str, request: AddRequest, strategy: Strategy) -> Recruit:
        source = joining(request.uri, request.name, self._config.data, index=len(self._crew.names))
        recruits = [one for one in self._ready if isinstance(one, Recruit)]
        node = len(self._crew.names) + len(recruits)
        gone = {*range(strategy.nodes)} - {*strategy.members}
        entry = Entry(node=node, gone=tuple(sorted(gone)), trip=strategy.trip)
        spec = await self._examine(source, entry)
        taken = {self._crew.names[node] for node in strategy.members}
        if spec.name in taken | {one.spec.name for one in recruits}:
            raise ConfigError(
                f"node {spec.name}", "takes part already", "give another --name, or another shard"
            )
        await self._roster.recruit(node, spec)
        return Recruit(key, node, spec)

    def _departure(self, key: str, request: RemoveRequest, strategy: Strategy) -> Departure:
        going = {one.node for one in self._ready if isinstance(one, Departure)}
        staying = set(strategy.members) - going
        if request.node not in staying:
            raise ConfigError(
                f"node {request.name}", "takes no part in the run", "name one that does"
            )
        if len(staying) == 1:
            raise ConfigError(
                f"node {request.name}", "is the run's last one", "add another one first"
            )
        return Departure(key, request.node)

    async def settle(
        self,
        *,
        strategy: Strategy,
        recorder: Recorder,
        supply: Supply,
        visited: Collection[int],
        decided: int,
    ) -> bool:
        """Let nodes join and leave that can now; each is journalled, then done, then answered.

        Where visits are averaged they wait for the round's end, and a node for that of its visit.
        Once all visits are handed out nothing is left to change.

        Args:
            strategy: Plans for its members.
            recorder: Journals.
            supply: Forgets what those had that left.
            visited: The nodes with a visit under way.
            decided: Number of decided visits.

        Returns:
            Whether anyone joined or left.
        """
        if strategy.is_over or (strategy.averages and (visited or strategy.is_within_trip)):
            return False
        changes = [one for one in self._ready if one.node not in visited]
        for change in changes:
            if isinstance(change, Recruit):
                await recorder.change(self._join_record(change, strategy.trip, decided))
                self._join(change, strategy)
            else:
                await recorder.change(self._leave_record(change, strategy.trip, decided))
                self._leave(change, strategy, supply)
            self._ready.remove(change)
            await self._answer(change.key, self._done(change.node, decided))
        return bool(changes)

    async def take_up(self, changes: Sequence[JoinRecord | LeaveRecord]) -> None:
        """Bring the crew, its processes and what is asked for to where the journal is.

        Args:
            changes: Who joined and left, by the journal.
        """
        waiting = await asyncio.to_thread(self._mailbox.waiting) if changes else {}
        for record in changes:
            if isinstance(record, JoinRecord):
                if record.node == len(self._crew.names):
                    self._crew.names.append(record.name)
                    self._crew.rows.append(record.rows)
                self._roster.admit(record.node, spec_of(record, self._config.data))
            else:
                self._roster.leave(record.node)
            self._ready = [one for one in self._ready if one.key != record.request]
            self._answered.add(record.request)
            if record.request in waiting:
                await self._answer(record.request, self._done(record.node, record.visit))

    async def close(self) -> None:
        """Refuse what is still asked for: the run is over."""
        ended = ConfigError("RUN", "has ended", "start another run with the nodes it is to have")
        with contextlib.suppress(SnakeError):
            for key in await asyncio.to_thread(self._mailbox.waiting):
                await self._answer(key, Answer.refusal(ended))

    async def _answer(self, key: str, answer: Answer) -> None:
        """Answer a request; where storage refuses that, whoever asked waits in vain."""
        self._answered.add(key)
        with contextlib.suppress(SnakeError):
            await asyncio.to_thread(self._mailbox.answer, key, answer)

    def _done(self, node: int, visit: int) -> Answer:
        return Answer(node=node, name=self._crew.names[node], visit=visit)

    def _join(self, recruit: Recruit, strategy: Strategy) -> None:
        spec = recruit.spec
        strategy.join(spec.samples, training=spec.training, limit=self._limit(spec))
        self._crew.names.append(spec.name)
        self._crew.rows.append(spec.samples)
        self._roster.admit(recruit.node, spec)
        self._emit(
            NodeJoined(
                node=recruit.node, name=spec.name, samples=spec.samples, visits=strategy.total
            )
        )

    def _leave(self, departure: Departure, strategy: Strategy, supply: Supply) -> None:
        node = departure.node
        strategy.leave(node)
        supply.left(node)
        self._roster.leave(node)
        self._emit(NodeLeft(node=node, name=self._crew.names[node], visits=strategy.total))

    def _join_record(self, recruit: Recruit, trip: int, decided: int) -> JoinRecord:
        spec = recruit.spec
        return JoinRecord(
            visit=decided,
            trip=trip,
            node=recruit.node,
            name=spec.name,
            uri=spec.source.uri or "",
            rows=spec.samples,
            sample_shape=spec.sample_shape,
            integer_inputs=spec.integer_inputs,
            classes=spec.classes,
            training=spec.training,
            limit=self._limit(spec),
            request=recruit.key,
            finished_at=time.time(),
        )

    def _limit(self, spec: NodeSpec) -> int:
        return asked_bytes(self._config.nodes, spec.source)

    def _leave_record(self, departure: Departure, trip: int, decided: int) -> LeaveRecord:
        return LeaveRecord(
            visit=decided,
            trip=trip,
            node=departure.node,
            rows=self._crew.rows[departure.node],
            request=departure.key,
            finished_at=time.time(),
        )
