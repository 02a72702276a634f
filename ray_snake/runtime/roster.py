"""The roster: which nodes are up, which are starting, and how often each was started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray_snake.errors import NodeFailedError
from ray_snake.runtime.events import Event, NodeLost, NodeMoved, NodeReady
from ray_snake.runtime.handles import NodeHandle, NodeLauncher, ProcessLostError, StartedNode
from ray_snake.runtime.messages import NodeSpec


class Roster:
    """Starts nodes in the order in which they are needed: the first alone, then a few at a time.

    Args:
        names: The nodes' names, by number.
        groups: The nodes of each process.
        launcher: Starts and ends the processes.
        window: How many processes start at once, so that the first is not slowed by the last.
        start_timeout: Seconds a process may take to start.
        restarts: How often one process may be started again.
        emit: Told which nodes are ready or lost.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        groups: Sequence[tuple[int, ...]],
        launcher: NodeLauncher,
        window: int,
        start_timeout: float,
        restarts: int,
        emit: Callable[[Event], None],
    ) -> None:
        self._names = dict(enumerate(names))
        self._group_of = {node: group for group in groups for node in group}
        self._launcher = launcher
        self._slots = asyncio.Semaphore(window)
        self._start_timeout = start_timeout
        self._restarts = restarts
        self._restarts_left = dict.fromkeys(groups, restarts)
        self._emit = emit
        self._starts: dict[tuple[int, ...], asyncio.Task[dict[int, StartedNode]]] = {}
        self._gone: set[int] = set()

    def begin(self, order: Sequence[int]) -> None:
        """Start all nodes in the background, in the order given."""
        for node in order:
            group = self._group_of[node]
            if group not in self._starts:
                first = next(iter(self._starts.values()), None)
                self._starts[group] = asyncio.create_task(self._start(group, after=first))

    async def node(self, number: int) -> NodeHandle:
        """Return a node once it is up.

        Raises:
            SnakeError: If this node, or any other before it, could not be started.
        """
        self.raise_failure()
        # A strategy of a user's own may leave it out of the first trips.
        self.begin([number])
        started = await asyncio.shield(self._starts[self._group_of[number]])
        return started[number].handle

    def beside(self, number: int) -> tuple[int, ...]:
        """Return the nodes of a node's process, which does one visit at a time."""
        return self._group_of[number]

    def if_up(self, number: int) -> NodeHandle | None:
        """Return a node if it is up now. Each start of its process gives another handle."""
        start = self._starts.get(self._group_of.get(number, ()))
        if start is None or not start.done() or start.cancelled() or start.exception() is not None:
            return None
        return start.result()[number].handle

    def raise_failure(self) -> None:
        """Raise what kept any node from starting, if anything did."""
        for start in self._starts.values():
            if start.done() and not start.cancelled():
                failure = start.exception()
                if failure is not None:
                    raise failure

    def lost(self, number: int, reason: str, *, machine_went: bool = False) -> tuple[int, ...]:
        """Start the process of a lost node again; return all nodes that were in it.

        Args:
            number: The node.
            reason: What happened to it.
            machine_went: Whether its machine was taken away, which is no fault of the process.

        Raises:
            NodeFailedError: If it was started again too often.
        """
        group = self._group_of[number]
        self._note_loss(group, number, reason, machine_went=machine_went)
        self._starts[group] = asyncio.create_task(self._start(group))
        return group

    async def recruit(self, number: int, spec: NodeSpec) -> None:
        """Start one more node, which nobody depends on yet; return when it is up.

        Raises:
            SnakeError: If it can't be started; then nothing of it is left.
        """
        group = (number,)
        self._names[number] = spec.name
        self._launcher.join(number, spec)
        self._restarts_left[group] = self._restarts
        start = asyncio.create_task(self._start(group, tell=False))
        try:
            await asyncio.shield(start)
        except BaseException:
            start.cancel()
            self._launcher.kill(group)
            self._launcher.leave(number)
            raise
        self._group_of[number] = group
        self._starts[group] = start

    def admit(self, number: int, spec: NodeSpec) -> None:
        """Note that a node takes part; one that was not recruited here is started when needed."""
        if number not in self._group_of:
            self._names[number] = spec.name
            self._launcher.join(number, spec)
            self._restarts_left[number,] = self._restarts
            self._group_of[number] = (number,)

    def leave(self, number: int) -> None:
        """End a node for good, and its process once all nodes in it have left."""
        if number in self._gone:
            return
        self._launcher.leave(number)
        group = self._group_of[number]
        self._gone.add(number)
        if self._gone.issuperset(group):
            start = self._starts.pop(group, None)
            if start is not None:
                start.cancel()
            self._launcher.kill(group)

    async def to_move(self) -> list[tuple[int, ...]]:
        """Return the nodes of each process whose machine is about to go, if others have room."""
        groups = await self._launcher.to_move()
        return [one for one in groups if one in self._starts and self._starts[one].done()]

    def move(self, group: tuple[int, ...]) -> None:
        """Start the process of nodes that are not being visited elsewhere; it counts as no loss."""
        for node in group:
            if node not in self._gone:
                self._emit(NodeMoved(node=node, name=self._names[node]))
        self._launcher.kill(group)
        self._starts[group] = asyncio.create_task(self._start(group))

    async def close(self) -> None:
        """End all processes and whatever is still starting."""
        for start in self._starts.values():
            start.cancel()
        await asyncio.gather(*self._starts.values(), return_exceptions=True)
        for group in self._starts:
            self._launcher.kill(group)

    async def _start(
        self, group: tuple[int, ...], after: asyncio.Task[Any] | None = None, *, tell: bool = True
    ) -> dict[int, StartedNode]:
        if after is not None:
            await asyncio.wait({after})
        async with self._slots:
            while True:
                began = time.monotonic()
                try:
                    started = await asyncio.wait_for(
                        self._launcher.launch(group), self._start_timeout
                    )
                except asyncio.TimeoutError:
                    self._launcher.kill(group)
                    raise NodeFailedError(
                        f"node {self._names[group[0]]} did not start within "
                        f"{self._start_timeout:g} s",
                        "see whether the cluster has room for nodes.cpus, nodes.gpus, "
                        "nodes.memory_bytes and nodes.labels, or raise "
                        "nodes.start_timeout_seconds",
                    ) from None
                except ProcessLostError as error:
                    machine_went = error.machine_went
                    self._note_loss(group, group[0], str(error), machine_went=machine_went)
                    continue
                seconds = time.monotonic() - began
                for node, one in started.items() if tell else ():
                    self._emit(
                        NodeReady(
                            node=node,
                            name=self._names[node],
                            samples=one.samples,
                            seconds=seconds,
                        )
                    )
                return started

    def _note_loss(
        self, group: tuple[int, ...], number: int, reason: str, *, machine_went: bool
    ) -> None:
        self._launcher.kill(group)
        self._emit(NodeLost(node=number, name=self._names[number], reason=reason))
        if machine_went:
            return
        if self._restarts_left[group] == 0:
            raise NodeFailedError(
                f"node {self._names[number]} was lost once more than "
                f"failures.node_restarts allows ({reason})",
                "look into why it dies (memory?), then go on with --resume",
            )
        self._restarts_left[group] -= 1
