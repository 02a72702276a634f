"""How the driver starts and reaches the actors that it directs: its handles, through Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_snake.config import NodesConfig
from ray_snake.data import ShardSource
from ray_snake.errors import NodeFailedError, SnakeError
from ray_snake.runtime.actors import (
    AnyRef,
    BlockRef,
    SnakeEngine,
    SnakeNode,
    first_line,
    visit_failure,
)
from ray_snake.runtime.handles import BlocksLostError, ProcessLostError, StartedNode
from ray_snake.runtime.journal import BlockRecord
from ray_snake.runtime.messages import (
    EvaluationReport,
    NodeSpec,
    VisitReport,
    VisitTask,
)
from ray_snake.storage import Storage

CONTROL_TIMEOUT_SECONDS = 5.0

Answer = TypeVar("Answer")


def node_options(nodes: NodesConfig, gpus: float) -> dict[str, Any]:
    """Return the Ray options of a node actor: what it asks of the cluster."""
    options: dict[str, Any] = {
        "num_cpus": nodes.cpus,
        "num_gpus": gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "concurrency_groups": {"control": 2, "prefetch": 1},
        "scheduling_strategy": "SPREAD",
    }
    if nodes.memory_bytes:
        options["memory"] = nodes.memory_bytes
    if nodes.labels:
        options["label_selector"] = nodes.labels
    return options


def actor_class(kind: type, **options: Any) -> Any:  # noqa: ANN401 - Ray's actor class and options
    """Return a class as a Ray actor class with these options."""
    remote: Any = ray.remote(**options)
    return remote(kind)


def here() -> NodeAffinitySchedulingStrategy:
    """Return the scheduling strategy that keeps an actor on this machine: the driver's side."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


async def _answer(call: Awaitable[Answer], who: str) -> Answer:
    """Await a Ray call and turn its failures into the driver's own."""
    try:
        return await call
    except RayActorError as error:
        if error.actor_init_failed:
            # It would fail again: mostly a function that the process can't import.
            raise NodeFailedError(
                f"{who} could not be set up ({str(error).strip().splitlines()[-1][:300]})",
                "define model and loss in the main program, or in a package that is installed "
                "on every machine",
            ) from None
        raise ProcessLostError(f"{who} died ({first_line(error)})") from None
    except (ObjectLostError, GetTimeoutError) as error:
        raise BlocksLostError(f"{who} could not get a block ({first_line(error)})") from None
    except TaskCancelledError as error:
        raise ProcessLostError(f"{who} was cancelled ({first_line(error)})") from None
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SnakeError):
            raise cause from error
        if isinstance(cause, (ObjectLostError, GetTimeoutError)):
            raise BlocksLostError(f"{who} could not get a block ({first_line(cause)})") from None
        raise visit_failure(who, cause) from error


class RayNode:
    """A node in its actor."""

    def __init__(self, actor: Any, node: int, name: str) -> None:  # noqa: ANN401 - actor handle
        self._actor = actor
        self._node = node
        self._name = f"node {name}"

    async def visit(
        self, task: VisitTask, refs: Mapping[int, BlockRef]
    ) -> tuple[VisitReport, dict[int, BlockRef]]:
        """Train; the blocks stay where they were trained, only their refs come back."""
        trained = task.visit.trained
        report, *blocks = self._actor.visit.options(num_returns=1 + len(trained)).remote(
            self._node, task, {block: [ref] for block, ref in refs.items()}
        )
        answer: VisitReport = await _answer(report, f"{self._name} on visit {task.visit.number}")
        return answer, dict(zip(trained, blocks, strict=True))

    async def prefetch(self, refs: Mapping[int, BlockRef]) -> None:
        """Pull block versions ahead of the node's next visit."""
        await _answer(
            self._actor.prefetch.remote(self._node, {block: [ref] for block, ref in refs.items()}),
            f"{self._name} while it prefetched",
        )

    async def progress(self) -> tuple[int, int, float] | None:
        """Ask how far the visit is; a late answer is no answer."""
        try:
            answer: tuple[int, int, float] = await asyncio.wait_for(
                _answer(self._actor.progress.remote(), self._name), CONTROL_TIMEOUT_SECONDS
            )
        except (asyncio.TimeoutError, ProcessLostError):
            return None
        return answer

    def stop(self) -> None:
        """Ask the visit under way to end."""
        self._actor.stop.remote()

    def release(self, block: int, version: int) -> None:
        """Tell the node to let go of a block version."""
        self._actor.release.remote(self._node, block, version)


class RayNodeLauncher:
    """Starts node actors.

    Args:
        specs: The nodes, by number.
        recipe: Ref of the recipe.
        nodes: What an actor asks for.
        gpus: Its GPU share.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        recipe: AnyRef,
        nodes: NodesConfig,
        gpus: float,
    ) -> None:
        self._specs = specs
        self._recipe = recipe
        self._actor_class = actor_class(SnakeNode, **node_options(nodes, gpus))
        self._actors: dict[tuple[int, ...], Any] = {}

    async def launch(self, group: tuple[int, ...]) -> dict[int, StartedNode]:
        """Start the actor of these nodes and wait until it has opened their shards."""
        specs = {node: self._specs[node] for node in group}
        actor = self._actor_class.remote(specs, self._recipe)
        self._actors[group] = actor
        names = {node: spec.name for node, spec in specs.items()}
        samples: dict[int, int] = await _answer(
            actor.open.remote(), f"node {', '.join(names.values())} while it started"
        )
        return {
            node: StartedNode(handle=RayNode(actor, node, names[node]), samples=samples[node])
            for node in group
        }

    def kill(self, group: tuple[int, ...]) -> None:
        """End the actor of these nodes."""
        actor = self._actors.pop(group, None)
        if actor is not None:
            ray.kill(actor)


class RayEngine:
    """The process engine in its actor, beside the driver.

    Args:
        recipe: Ref of the recipe.
        storage: The run's folder.
        evaluation: Held-out rows, or none.
        gpus: GPU share of judging.
        blocks: Number of blocks.
    """

    def __init__(
        self,
        recipe: AnyRef,
        storage: Storage,
        evaluation: ShardSource | None,
        gpus: float,
        blocks: int,
    ) -> None:
        self._arguments = (recipe, storage, evaluation)
        self._actor_class = actor_class(
            SnakeEngine,
            num_cpus=0,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"judging": 1, "serving": 1},
            scheduling_strategy=here(),
        )
        self._actor: Any = None
        self._blocks = blocks

    async def start(self) -> None:
        """Start the actor, anew if it had died; calls wait until it is up."""
        if self._actor is None or not await self._is_alive():
            self._actor = self._actor_class.remote(*self._arguments)

    async def initial(self) -> list[BlockRef]:
        """Return version 0 of every block."""
        return self._several(self._actor.initial.options(num_returns=self._blocks).remote())

    async def restore(self, blocks: Sequence[BlockRecord]) -> list[BlockRef]:
        """Return stored block versions."""
        return self._several(
            self._actor.restore.options(num_returns=self._blocks).remote(list(blocks))
        )

    async def serve(self, refs: Sequence[BlockRef]) -> list[BlockRef]:
        """Pull blocks to the driver's side; nodes then pull them from there."""
        returned = self._actor.serve.options(num_returns=1 + len(refs)).remote(list(refs))
        await self._call(returned[0])
        return list(returned[1:])

    async def store(self, refs: Sequence[BlockRef]) -> tuple[BlockRecord, ...]:
        """Write block versions to storage."""
        records: tuple[BlockRecord, ...] = await self._call(self._actor.store.remote(list(refs)))
        return records

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

    async def _is_alive(self) -> bool:
        try:
            await self._call(self._actor.ping.remote())
        except ProcessLostError:
            return False
        return True

    def _several(self, returned: Any) -> list[BlockRef]:  # noqa: ANN401 - one ref or a list
        return [returned] if self._blocks == 1 else list(returned)

    @staticmethod
    async def _call(ref: Any) -> Any:  # noqa: ANN401 - what the actor's method returns
        return await _answer(ref, "the process engine")
