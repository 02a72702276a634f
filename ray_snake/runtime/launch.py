"""How the driver starts and reaches the actors that it directs: its handles, through Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
)

from ray_snake.config import NodesConfig, SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.runtime.actors import (
    AnyRef,
    BlockRef,
    SnakeEngine,
    SnakeNode,
    SnakeServer,
    engine_seconds,
)
from ray_snake.runtime.answers import answer_of
from ray_snake.runtime.cluster import (
    NODE_ID_LABEL,
    bundles,
    draining,
    has_room,
    host_options,
    node_options,
)
from ray_snake.runtime.handles import BlocksLostError, ProcessLostError, StartedNode
from ray_snake.runtime.messages import (
    BackReport,
    Delivery,
    EvaluationReport,
    NodeSpec,
    VisitReport,
    VisitTask,
    with_back,
)
from ray_snake.runtime.meter import machine_name
from ray_snake.runtime.placement import NodeGroup, joining_gpus, joining_request
from ray_snake.runtime.records import BlockRecord
from ray_snake.storage import Storage

CONTROL_TIMEOUT_SECONDS = 5.0
ENGINE = "the process engine"


def actor_class(kind: type, **options: Any) -> Any:  # noqa: ANN401 - Ray's actor class and options
    """Return a class as a Ray actor class with these options."""
    remote: Any = ray.remote(**options)
    return remote(kind)


def here() -> NodeAffinitySchedulingStrategy:
    """Return the scheduling strategy that keeps an actor on this machine: the driver's side."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class RayServer:
    """The split server in its actor, beside the driver: started when a visit first needs it.

    Args:
        recipe: Ref of the recipe.
        config: The run's settings.
    """

    def __init__(self, recipe: AnyRef, config: SnakeConfig) -> None:
        self._recipe = recipe
        self._start_seconds = config.nodes.start_timeout_seconds
        self._actor_class = actor_class(
            SnakeServer,
            num_cpus=0,
            num_gpus=config.baseline.server_gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=here(),
        )
        self._actor: Any = None

    async def actor(self) -> Any:  # noqa: ANN401 - actor handle
        """Return the actor once it is up, a new one if it had died or does not answer."""
        if self._actor is not None:
            with contextlib.suppress(ProcessLostError):
                await answer_of(self._actor.ping.remote(), "the split server", self._start_seconds)
                return self._actor
            ray.kill(self._actor)
        self._actor = self._actor_class.remote(self._recipe)
        return self._actor

    async def close(self, task: VisitTask) -> tuple[BackReport, dict[int, BlockRef]]:
        """End a visit; the blocks stay in this machine's store, only their refs come back.

        Raises:
            BlocksLostError: If the server died, and with it what it had trained.
        """
        blocks = [block for block in task.visit.trained if not task.visit.on_node(block)]
        report, *refs = _several(self._actor.close, 1 + len(blocks), task)
        try:
            answer: BackReport = await answer_of(report, "the split server")
        except ProcessLostError as error:
            raise BlocksLostError(str(error)) from None
        return answer, dict(zip(blocks, refs, strict=True))


class RayNode:
    """A node in its actor.

    Args:
        actor: The actor's handle.
        machine: Ray's id of its machine.
        node: The node's number.
        name: Its name, for errors.
        server: The server of visits with a cut.
        bases: Checksum of each base that it has from the model's own files, by number.
    """

    def __init__(
        self,
        actor: Any,  # noqa: ANN401 - actor handle
        *,
        machine: str,
        node: int,
        name: str,
        server: RayServer,
        bases: Mapping[int, str],
    ) -> None:
        self.machine = machine
        self.bases = bases
        self._server = server
        self._actor = actor
        self._node = node
        self._name = f"node {name}"

    async def visit(
        self, task: VisitTask, deliveries: Sequence[Delivery]
    ) -> tuple[VisitReport, dict[int, BlockRef]]:
        """Train; the blocks stay where they were trained, only their refs come back."""
        if task.visit.cut is None:
            return await self._train(task, deliveries, server=None)
        report, refs = await self._train(task, deliveries, server=await self._server.actor())
        back, others = await self._server.close(task)
        return with_back(report, back), {**refs, **others}

    async def _train(
        self,
        task: VisitTask,
        deliveries: Sequence[Delivery],
        server: Any,  # noqa: ANN401 - actor handle
    ) -> tuple[VisitReport, dict[int, BlockRef]]:
        blocks = [block for block in task.visit.trained if task.visit.on_node(block)]
        report, *refs = self._actor.visit.options(num_returns=1 + len(blocks)).remote(
            self._node, task, list(deliveries), server
        )
        answer: VisitReport = await answer_of(report, f"{self._name} on visit {task.visit.number}")
        return answer, dict(zip(blocks, refs, strict=True))

    async def fetch(self, deliveries: Sequence[Delivery]) -> list[BlockRef]:
        """Have block versions pulled ahead of a visit."""
        decoded = sum(one.base is not None for one in deliveries)
        returned = self._actor.fetch.options(num_returns=1 + decoded).remote(
            self._node, list(deliveries)
        )
        done, *refs = returned if decoded else [returned]
        await answer_of(done, f"{self._name} while it fetched")
        return list(refs)

    async def progress(self) -> tuple[int, int, float] | None:
        """Ask how far the visit is; a late answer is no answer."""
        try:
            answer: tuple[int, int, float] = await answer_of(
                self._actor.progress.remote(), self._name, CONTROL_TIMEOUT_SECONDS
            )
        except ProcessLostError:
            return None
        return answer

    def stop(self) -> None:
        """Ask the visit under way to end."""
        self._actor.stop.remote()

    def finish(self) -> None:
        """Ask the visit under way to end with what it has."""
        self._actor.finish.remote()

    def release(self, block: int, version: int) -> None:
        """Tell the node to let go of a block version."""
        self._actor.release.remote(self._node, block, version)


class RayNodeLauncher:
    """Starts node actors.

    Args:
        specs: The nodes, by number.
        nodes: The settings, of what nodes that join ask for.
        recipe: Ref of the recipe.
        groups: The processes and what each asks for.
        server: The server of visits with a cut.
        reserved: What the run may use; none: the cluster.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        nodes: NodesConfig,
        recipe: AnyRef,
        groups: Sequence[NodeGroup],
        server: RayServer,
        reserved: PlacementGroup | None = None,
    ) -> None:
        self._reserved = reserved
        self._specs = dict(enumerate(specs))
        self._nodes = nodes
        self._recipe = recipe
        self._requests = {group.nodes: group.request for group in groups}
        self._bundles = bundles(groups, reserved)
        self._server = server
        self._actors: dict[tuple[int, ...], Any] = {}
        self._machines: dict[tuple[int, ...], str] = {}
        # Where they are, which may be elsewhere than where they were to be.
        self._hosts: dict[tuple[int, ...], str] = {}
        self._starting: set[tuple[int, ...]] = set()
        self._gpus = joining_gpus(groups)

    async def launch(self, group: tuple[int, ...]) -> dict[int, StartedNode]:
        """Start the actor of these nodes and wait until it has opened their shards."""
        specs = {node: self._specs[node] for node in group if node in self._specs}
        request = self._requests[group]
        bundle = self._bundles.get(group, -1)
        where = host_options(request, self._machines.values(), self._reserved, bundle)
        kind = actor_class(SnakeNode, **node_options(request), **where)
        actor = kind.remote(specs, self._recipe)
        self._actors[group] = actor
        self._starting.add(group)
        self._machines[group] = where.get("label_selector", {}).get(NODE_ID_LABEL, "")
        names = {node: spec.name for node, spec in specs.items()}
        try:
            machine, samples, bases = await answer_of(
                actor.open.remote(), f"node {', '.join(names.values())} while it started"
            )
        finally:
            self._starting.discard(group)
        self._hosts[group] = machine
        return {
            node: StartedNode(
                handle=RayNode(
                    actor,
                    machine=machine,
                    node=node,
                    name=names[node],
                    server=self._server,
                    bases=bases,
                ),
                samples=samples[node],
            )
            for node in specs
        }

    def join(self, node: int, spec: NodeSpec) -> None:
        """Take note of a node of an actor of its own."""
        self._specs[node] = spec
        self._requests[node,] = joining_request(self._nodes, spec.source, self._gpus)

    def leave(self, node: int) -> None:
        """Forget a node."""
        self._specs.pop(node, None)

    async def to_move(self) -> list[tuple[int, ...]]:
        """Return the nodes of each actor whose machine Ray drains, if another one has room."""
        try:
            return await asyncio.to_thread(self._to_move)
        except Exception:
            # Ray's state is asked again in a moment; nothing that runs depends on the answer.
            return []

    def _to_move(self) -> list[tuple[int, ...]]:
        leaving = {machine_name(one) for one in draining()}
        found = []
        # What is free now is free for one: of those that reserve something, one moves at a time.
        reserving = any(self._requests[one].amounts for one in list(self._starting))
        for group, machine in list(self._hosts.items()) if leaving else ():
            request = self._requests[group]
            if machine not in leaving or (request.amounts and reserving):
                continue
            if has_room(request, self._nodes):
                found.append(group)
                reserving = reserving or bool(request.amounts)
        return found

    def kill(self, group: tuple[int, ...]) -> None:
        """End the actor of these nodes."""
        self._machines.pop(group, None)
        self._hosts.pop(group, None)
        actor = self._actors.pop(group, None)
        if actor is not None:
            ray.kill(actor)


class RayEngine:
    """The process engine in its actor, beside the driver.

    Each call has a deadline: that of a visit, or an hour where that is longer.

    Args:
        recipe: Ref of the recipe.
        config: The run's settings.
        storage: The run's folder.
        evaluation: Held-out rows, or none.
        parts: Number of the network's parts.
    """

    def __init__(
        self,
        recipe: AnyRef,
        config: SnakeConfig,
        storage: Storage,
        evaluation: ShardSource | None,
        parts: int,
    ) -> None:
        self._arguments = (recipe, storage, evaluation)
        self._seconds = engine_seconds(config)
        self._start_seconds = config.nodes.start_timeout_seconds
        self._actor_class = actor_class(
            SnakeEngine,
            num_cpus=0,
            num_gpus=config.evaluation.gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"judging": 1, "serving": 1},
            scheduling_strategy=here(),
        )
        self._actor: Any = None
        self._parts = parts
        self.machine = machine_name(ray.get_runtime_context().get_node_id())

    async def start(self) -> None:
        """Start the actor, anew if it died or does not answer; calls wait until it is up."""
        if self._actor is not None:
            with contextlib.suppress(ProcessLostError):
                await answer_of(self._actor.ping.remote(), ENGINE, self._start_seconds)
                return
            ray.kill(self._actor)
        self._actor = self._actor_class.remote(*self._arguments)

    async def initial(self) -> list[BlockRef]:
        """Return version 0 of every part."""
        return _several(self._actor.initial, self._parts)

    async def restore(self, blocks: Sequence[BlockRecord]) -> list[BlockRef]:
        """Return stored block versions."""
        return _several(self._actor.restore, len(blocks), list(blocks))

    async def serve(
        self, refs: Sequence[BlockRef], bases: Sequence[BlockRef]
    ) -> tuple[list[BlockRef], list[BlockRef]]:
        """Pull blocks to the driver's side; nodes then pull them from there."""
        done, *returned = _several(
            self._actor.serve, 1 + len(refs) + len(bases), list(refs), list(bases)
        )
        await self._call(done)
        served = returned[: len(refs)]
        return served, returned[len(refs) :] or served

    async def decode(self, refs: Sequence[BlockRef], bases: Sequence[BlockRef]) -> list[BlockRef]:
        """Pull differences; return the blocks whole."""
        return _several(self._actor.decode, len(refs), list(refs), list(bases))

    async def average(
        self, version: int, parts: Mapping[int, Sequence[tuple[BlockRef, float]]]
    ) -> list[BlockRef]:
        """Pull blocks and return their weighted means, one for each block."""
        refs = [[ref for ref, _ in of_block] for of_block in parts.values()]
        weights = [[weight for _, weight in of_block] for of_block in parts.values()]
        return _several(self._actor.average, len(parts), version, refs, weights)

    async def store(self, refs: Sequence[BlockRef]) -> tuple[BlockRecord, ...]:
        """Write block versions to storage."""
        records: tuple[BlockRecord, ...] = await self._call(self._actor.store.remote(list(refs)))
        return records

    async def update_norm(self, refs: Sequence[BlockRef], superseded: Sequence[BlockRef]) -> float:
        """Return the norm of the change from one version of some blocks to another."""
        return float(await self._call(self._actor.update_norm.remote(list(refs), list(superseded))))

    async def discard(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Delete superseded versions from storage."""
        await self._call(self._actor.discard.remote(list(blocks)))

    async def evaluate(self, refs: Sequence[BlockRef]) -> EvaluationReport:
        """Judge a model."""
        report: EvaluationReport = await self._call(self._actor.evaluate.remote(list(refs)))
        return report

    async def weights_sha256(self, refs: Sequence[BlockRef]) -> str:
        """Return SHA-256 over all blocks."""
        return str(await self._call(self._actor.weights_sha256.remote(list(refs))))

    async def _call(self, ref: Any) -> Any:  # noqa: ANN401 - what the actor's method returns
        return await answer_of(ref, ENGINE, self._seconds)


def _several(method: Any, count: int, *arguments: Any) -> list[AnyRef]:  # noqa: ANN401 - Ray's
    """Call an actor's method that returns `count` objects."""
    returned = method.options(num_returns=count).remote(*arguments)
    return [returned] if count == 1 else list(returned)
