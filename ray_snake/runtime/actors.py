"""The Ray actors that the driver directs: shells around the local manager and process engine."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import ray
from ray.exceptions import RayTaskError

from ray_snake.config import SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.errors import SnakeError, first_line
from ray_snake.layers.state import Array, BlockDelta, LayerState
from ray_snake.runtime.answers import NO_OBJECT, cause_of, visit_failure
from ray_snake.runtime.handles import BlocksLostError
from ray_snake.runtime.messages import (
    BackReport,
    Delivery,
    EvaluationReport,
    NodeSpec,
    VisitReport,
    VisitTask,
)
from ray_snake.runtime.meter import machine_name
from ray_snake.runtime.recipe import Recipe
from ray_snake.runtime.records import BlockRecord
from ray_snake.storage import Storage

if TYPE_CHECKING:
    from ray_snake.engine.batch_result import BatchResult
    from ray_snake.engine.split import Exchange

AnyActor: TypeAlias = Any
"""An actor's handle, which Ray does not type."""
AnyRef: TypeAlias = "ray.ObjectRef[Any]"
BlockRef: TypeAlias = "ray.ObjectRef[LayerState | BlockDelta]"

ENGINE_SECONDS = 3600.0
"""How long the process engine may take at least, such as to judge a large model on many rows."""
GIVES_BACK_BYTES = 2**26
"""What an allocator keeps of visits to a smaller network is not worth the time to give it back."""


def pull(refs: Sequence[AnyRef], seconds: float) -> list[Any]:
    """Return what some refs lead to: views of this machine's object store, read-only.

    Args:
        refs: The refs.
        seconds: How long that may take, as whoever waits for it does: a link may be slow.
    """
    return ray.get(list(refs), timeout=seconds)


def _one_object_each(states: Sequence[LayerState]) -> tuple[LayerState, ...] | LayerState:
    """Return what Ray makes one object of each of; of a single one, it takes the value itself."""
    return states[0] if len(states) == 1 else tuple(states)


def engine_seconds(config: SnakeConfig) -> float:
    """Return how long the engine may take for anything that is asked of it."""
    return max(ENGINE_SECONDS, config.failures.visit_timeout_seconds)


@contextlib.contextmanager
def _one_line_leaves(who: str) -> Iterator[None]:
    """Let no more of an error out of the process than where it happened and its first line.

    Errors of models and losses may have rows in their messages and among their arguments, and Ray
    passes both on to the driver and to the cluster's record of failed tasks.
    """
    try:
        yield
    except (SnakeError, BlocksLostError):
        raise
    except Exception as error:
        raise visit_failure(who, error).with_traceback(error.__traceback__) from None


def _own_gpu_share() -> float:
    resources = ray.get_runtime_context().get_assigned_resources()
    return float(resources.get("GPU", 0.0))


class SnakeNode:
    """The actor of one node, or of several nodes of one machine that share a process.

    Visits run one after another; progress, stop and release are answered meanwhile.

    Args:
        specs: Its nodes, by number.
        recipe: The run's settings and functions.
    """

    def __init__(self, specs: Mapping[int, NodeSpec], recipe: Recipe) -> None:
        self._specs = dict(specs)
        self._recipe = recipe
        self._visit_seconds = recipe.config.failures.visit_timeout_seconds

    def open(self) -> tuple[str, dict[int, int], dict[int, str]]:
        """Open every node's shard, and map the bases that are at hand here.

        Returns:
            The machine's name, rows by node number, and the checksum of each base by its number.

        Raises:
            InputError: If a shard can't be used, or the model can't be built.
        """
        from ray_snake.engine.device import prepare_process, take_device
        from ray_snake.engine.visit import VisitControl
        from ray_snake.runtime.bases import bases_at_hand
        from ray_snake.runtime.local_manager import LocalManager

        names = ", ".join(spec.name for spec in self._specs.values())
        with _one_line_leaves(f"node {names} while it started"):
            prepare_process(self._recipe.config.nodes.threads)
            device = take_device(_own_gpu_share())
            stack = self._recipe.skeleton()
            self._is_large = sum(stack.block_bytes()) >= GIVES_BACK_BYTES
            self._control = VisitControl()
            self._managers = {
                node: LocalManager(spec, self._recipe, stack, device)
                for node, spec in self._specs.items()
            }
            bases = list(bases_at_hand(stack))
        for manager in self._managers.values():
            for base in bases:
                manager.hold(base)
        samples = {node: manager.samples for node, manager in self._managers.items()}
        checksums = {base.block: base.checksum() for base in bases}
        return machine_name(ray.get_runtime_context().get_node_id()), samples, checksums

    def visit(
        self,
        node: int,
        task: VisitTask,
        deliveries: Sequence[Delivery],
        server: AnyActor = None,
    ) -> Iterator[VisitReport | LayerState | BlockDelta]:
        """Train a visit's blocks; return the report and then each block trained here, ascending.

        Ray puts what an iterator yields into its store before it asks for more, so that no more
        than one block is here and there.

        Args:
            node: Which of the actor's nodes is visited.
            task: What to do.
            deliveries: The block versions that the node lacks.
            server: The split server's actor, for a visit with a cut.
        """
        from ray_snake.engine.visit import VisitControl

        # Set before the pull, which may take long: a stop meanwhile is meant for this visit.
        self._control = VisitControl()
        started = time.perf_counter()
        pulled = pull([one.ref for one in deliveries], self._visit_seconds)
        seconds = time.perf_counter() - started
        who = f"node {self._specs[node].name} on visit {task.visit.number}"
        with _one_line_leaves(who):
            report, parcels = self._managers[node].visit(
                task,
                pulled,
                seconds,
                self._control,
                functools.partial(_connect, server, self._visit_seconds, task),
            )
        return self._handed_over(report, parcels)

    def _handed_over(
        self, report: VisitReport, parcels: list[LayerState | BlockDelta]
    ) -> Iterator[VisitReport | LayerState | BlockDelta]:
        yield report
        while parcels:
            yield parcels.pop(0)
        if self._is_large:
            from ray_snake.engine.device import give_back_memory

            give_back_memory()

    @ray.method(concurrency_group="fetch")
    def fetch(self, node: int, deliveries: Sequence[Delivery]) -> tuple[LayerState | None, ...]:
        """Pull block versions that a node will need, mostly while another node's visit goes on.

        Returns:
            Nothing, and then each whole version that was made of a difference.
        """
        manager = self._managers[node]
        decoded = []
        for one in pull([one.ref for one in deliveries], self._visit_seconds):
            if isinstance(one, BlockDelta):
                decoded.append(manager.decode(one))
            else:
                manager.hold(one)
        return (None, *decoded)

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[int, int, float]:
        """Return (step, steps, running mean loss) of the visit under way."""
        control = self._control
        return control.step, control.steps, control.loss

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """End the visit under way before its next step."""
        self._control.stop.set()

    @ray.method(concurrency_group="control")
    def finish(self) -> None:
        """End the visit under way before its next step, with what was trained so far."""
        self._control.finish.set()

    @ray.method(concurrency_group="control")
    def release(self, node: int, block: int, version: int) -> None:
        """Let a node let go of a superseded block version."""
        self._managers[node].release(block, version)


def _connect(server: AnyActor, seconds: float, task: VisitTask, counts: Array | None) -> Exchange:
    """Begin a visit at the split server; return the way to have it step."""
    from ray_snake.runtime.split_server import exchange_through

    session = ray.get_runtime_context().get_task_id()
    _answer_of_server(server.open.remote(session, task, counts), seconds)

    def ask(features: Array, dtype: str, targets: Array) -> tuple[Array, BatchResult]:
        answer: tuple[Array, BatchResult] = _answer_of_server(
            server.step.remote(session, features, dtype, targets), seconds
        )
        return answer

    return exchange_through(ask)


def _answer_of_server(ref: AnyRef, seconds: float) -> Any:  # noqa: ANN401 - what the actor's method returns
    """Return what the split server answers, within a node's visit.

    Raises:
        BlocksLostError: If it died, and with it the back that the visit had trained so far.
        SnakeError: What it raised.
    """
    try:
        return ray.get(ref, timeout=seconds)
    except NO_OBJECT as error:
        raise BlocksLostError(f"the split server did not answer ({first_line(error)})") from None
    except RayTaskError as error:
        cause = cause_of(error)
        if isinstance(cause, (SnakeError, BlocksLostError)):
            raise cause from None
        raise BlocksLostError(f"the split server failed ({first_line(cause)})") from None


class SnakeServer:
    """The actor of the split server, at the driver's side.

    Args:
        recipe: The run's settings and functions.
    """

    def __init__(self, recipe: Recipe) -> None:
        from ray_snake.engine.device import prepare_process, take_device
        from ray_snake.runtime.split_server import SplitServer

        prepare_process(recipe.config.nodes.threads)
        self._server = SplitServer(recipe, take_device(_own_gpu_share()))
        self._visit_seconds = recipe.config.failures.visit_timeout_seconds
        self._number = 0

    def ping(self) -> None:
        """Answer, so that a caller knows that the process is up."""

    def open(self, session: str, task: VisitTask, counts: Array | None) -> None:
        """Pull the back and begin a visit; see `SplitServer.open`."""
        try:
            states = pull([one.ref for one in task.back], self._visit_seconds)
        except NO_OBJECT as error:
            raise BlocksLostError(
                f"the split server could not get a block ({first_line(error)})"
            ) from None
        with self._for(task.visit.number):
            self._server.open(session, task, states, counts)
            self._number = task.visit.number

    def step(
        self, session: str, features: Array, dtype: str, targets: Array
    ) -> tuple[Array, BatchResult]:
        """Take one step on a batch; see `SplitServer.step`."""
        with self._for(self._number):
            return self._server.step(session, features, dtype, targets)

    def close(self, task: VisitTask) -> tuple[BackReport | LayerState, ...]:
        """End a visit; return the report and then each block of the back, ascending."""
        with self._for(task.visit.number):
            report, states = self._server.close(task)
        return (report, *states)

    @staticmethod
    def _for(visit: int) -> contextlib.AbstractContextManager[None]:
        return _one_line_leaves(f"the split server on visit {visit}")


class SnakeEngine:
    """The actor of the process engine, and in client-server mode the hub of all transfers.

    Judging does not hold up storing, and neither holds up serving.

    Args:
        recipe: The run's settings and functions.
        storage: The run's folder.
        evaluation: Held-out rows, or none.
    """

    def __init__(self, recipe: Recipe, storage: Storage, evaluation: ShardSource | None) -> None:
        from ray_snake.engine.device import prepare_process, take_device
        from ray_snake.runtime.process_engine import ProcessEngine

        prepare_process(threads=1)
        self._engine = ProcessEngine(recipe, storage, evaluation, take_device(_own_gpu_share()))
        self._seconds = engine_seconds(recipe.config)

    def _pull(self, refs: Sequence[AnyRef]) -> list[Any]:
        return pull(refs, self._seconds)

    def ping(self) -> None:
        """Answer, so that a caller knows that the process is up."""

    def initial(self) -> Iterator[LayerState] | LayerState:
        """Return version 0 of every part, one object each.

        Ray puts what an iterator yields into its store before it asks for more.
        """
        states = self._engine.initial_blocks()
        return next(states) if self._engine.parts == 1 else states

    def restore(self, blocks: Sequence[BlockRecord]) -> tuple[LayerState, ...] | LayerState:
        """Return stored block versions, one object each."""
        return _one_object_each(self._engine.restore(blocks))

    @ray.method(concurrency_group="serving")
    def serve(
        self, refs: list[BlockRef], bases: list[BlockRef]
    ) -> tuple[LayerState | BlockDelta | None, ...]:
        """Pull trained blocks and check them.

        Returns:
            Nothing, then each as it came, as an object held here, then each whole if it came as a
            difference from `bases`.
        """
        parcels = self._pull(refs)
        decoded = self._engine.decode(parcels, self._pull(bases)) if bases else []
        self._engine.check(decoded or parcels)
        return (None, *parcels, *decoded)

    def decode(
        self, refs: list[BlockRef], bases: list[BlockRef]
    ) -> tuple[LayerState, ...] | LayerState:
        """Return whole versions of differences from `bases`, one object each."""
        return _one_object_each(self._engine.decode(self._pull(refs), self._pull(bases)))

    def average(
        self, version: int, refs: list[list[BlockRef]], weights: list[list[float]]
    ) -> tuple[LayerState, ...] | LayerState:
        """Return the weighted mean of each block's versions, one object each."""
        averages = [
            self._engine.average(version, self._pull(of_block), own)
            for of_block, own in zip(refs, weights, strict=True)
        ]
        return _one_object_each(averages)

    def store(self, refs: list[BlockRef]) -> tuple[BlockRecord, ...]:
        """Write block versions to storage."""
        return self._engine.store(self._pull(refs))

    def update_norm(self, refs: list[BlockRef], superseded: list[BlockRef]) -> float:
        """Return the L2 norm of the change from the superseded versions' weights to these."""
        return self._engine.update_norm(self._pull(refs), self._pull(superseded))

    def discard(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Delete superseded (block, version) pairs from storage."""
        self._engine.discard(blocks)

    @ray.method(concurrency_group="judging")
    def evaluate(self, refs: list[BlockRef]) -> EvaluationReport:
        """Judge the model that consists of these blocks."""
        return self._engine.evaluate(self._pull(refs))

    def weights_sha256(self, refs: list[BlockRef]) -> str:
        """Return SHA-256 over all blocks (hexadecimal)."""
        return self._engine.weights_sha256(self._pull(refs))
