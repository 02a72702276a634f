"""The driver's actor: the driver's loop with Ray actors in its hands."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from ray_snake.config import SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ResourceError, first_line
from ray_snake.extensions import OwnClasses
from ray_snake.runtime.actors import AnyActor, AnyRef
from ray_snake.runtime.answers import error_of
from ray_snake.runtime.cluster import check_resources, has_room
from ray_snake.runtime.crew import Crew
from ray_snake.runtime.driver import Driver
from ray_snake.runtime.events import Event, RunEnded
from ray_snake.runtime.handles import ProcessLostError
from ray_snake.runtime.launch import RayEngine, RayNodeLauncher, RayServer
from ray_snake.runtime.memory_checks import Entry
from ray_snake.runtime.messages import BlockTable, NodeSpec
from ray_snake.runtime.meter import RayMeter
from ray_snake.runtime.metrics import RunMetrics
from ray_snake.runtime.on_machines import on_cluster
from ray_snake.runtime.placement import NodeGroup, asked_bytes, joining_gpus, joining_request
from ray_snake.runtime.preflight import check_joining
from ray_snake.runtime.ray_meters import RayMeters
from ray_snake.runtime.registrar import Registrar
from ray_snake.runtime.requests import Mailbox
from ray_snake.runtime.roster import Roster
from ray_snake.runtime.states import Failed
from ray_snake.storage import Storage

EVENTS_SECONDS = 1.0
ANSWER_SECONDS = 60.0


class SnakeDriver:
    """The actor of the driver: owns every ref, fetches none.

    Args:
        config: The run's settings.
        blocks: The network's blocks.
        specs: The nodes, by number; they are only passed on.
        recipe: Ref of the recipe, nested in a list: the driver passes it on unopened.
        storage: The run's folder.
        evaluation: Held-out rows, or none.
        groups: The nodes' processes and what each asks for.
        own: A user's own classes, in place of what the settings name.
        reserved: What the run may use; none: the cluster.
    """

    def __init__(
        self,
        config: SnakeConfig,
        blocks: BlockTable,
        specs: Sequence[NodeSpec],
        recipe: list[AnyRef],
        storage: Storage,
        evaluation: ShardSource | None,
        groups: Sequence[NodeGroup],
        own: OwnClasses | None,
        reserved: PlacementGroup | None,
    ) -> None:
        self._events: list[Event] = []
        self._metrics = RunMetrics(RayMeters(storage.shown_uri.rpartition("/")[2]))
        self._news = asyncio.Event()
        self._arguments: tuple[Any, ...] = (
            config,
            blocks,
            specs,
            recipe[0],
            storage,
            evaluation,
            groups,
            own,
            reserved,
        )

    async def run(self) -> None:
        """Run the snake to its end.

        Raises:
            SnakeError: If the run failed.
        """
        driver = make_driver(*self._arguments, emit=self._emit)
        state = await driver.run()
        if isinstance(state, Failed):
            raise state.error

    async def events(self, timeout: float) -> list[Event]:
        """Return what happened since the last call; wait up to `timeout` seconds for anything."""
        # Not left to `wait_for`: it gives up at once on a timeout of 0, whatever there is.
        if not self._events:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout)
        self._news.clear()
        events, self._events = self._events, []
        return events

    def _emit(self, event: Event) -> None:
        self._metrics.on_event(event)
        self._events.append(event)
        self._news.set()


def follow(driver: AnyActor, tell: Callable[[Event], None]) -> str:
    """Have a driver run, and pass on what it tells; return SHA-256 of the final weights.

    Args:
        driver: The driver's actor.
        tell: Told everything that happens, in order.

    Raises:
        ProcessLostError: If it died or does not answer.
        SnakeError: If the run failed, or `tell` raised that.
    """
    run = driver.run.remote()
    sha256 = ""
    try:
        while True:
            ended = bool(ray.wait([run], timeout=0)[0])
            events = ray.get(
                driver.events.remote(0.0 if ended else EVENTS_SECONDS), timeout=ANSWER_SECONDS
            )
            for event in events:
                if isinstance(event, RunEnded):
                    sha256 = event.weights_sha256
                tell(event)
            if ended:
                ray.get(run)
                return sha256
    except RayTaskError as error:
        raise error_of(error) from error
    except GetTimeoutError:
        raise ProcessLostError(f"the driver did not answer for {ANSWER_SECONDS:g} s") from None
    except RayError as error:
        raise ProcessLostError(f"the driver died ({first_line(error)})") from None


def make_driver(
    config: SnakeConfig,
    blocks: BlockTable,
    specs: Sequence[NodeSpec],
    recipe: AnyRef,
    storage: Storage,
    evaluation: ShardSource | None,
    groups: Sequence[NodeGroup],
    own: OwnClasses | None,
    reserved: PlacementGroup | None,
    *,
    emit: Callable[[Event], None],
) -> Driver:
    """Return a driver whose handles are Ray actors."""
    crew = Crew(
        names=[one.name for one in specs],
        rows=[one.samples for one in specs],
        training=tuple(one.training for one in specs),
        limits=tuple(asked_bytes(config.nodes, one.source) for one in specs),
    )
    server = RayServer(recipe, config)
    launcher = RayNodeLauncher(specs, config.nodes, recipe, groups, server, reserved)
    roster = Roster(
        names=crew.names,
        groups=[group.nodes for group in groups],
        launcher=launcher,
        window=max(2, int(ray.cluster_resources().get("CPU", 1))),
        start_timeout=config.nodes.start_timeout_seconds,
        restarts=config.failures.node_restarts,
        emit=emit,
    )
    registrar = Registrar(
        mailbox=Mailbox(storage),
        crew=crew,
        roster=roster,
        config=config,
        examine=lambda source, entry: asyncio.to_thread(
            _examine, config, recipe, groups, source, entry
        ),
        emit=emit,
    )
    return Driver(
        config=config,
        crew=crew,
        blocks=blocks,
        storage=storage,
        engine=RayEngine(recipe, config, storage, evaluation, len(blocks.bytes)),
        roster=roster,
        registrar=registrar,
        meter=RayMeter(),
        evaluates=evaluation is not None,
        emit=emit,
        own=own,
    )


def _examine(
    config: SnakeConfig,
    recipe: AnyRef,
    groups: Sequence[NodeGroup],
    source: ShardSource,
    entry: Entry,
) -> NodeSpec:
    """Look at the shard of a node that is to join, on a machine that may host it.

    Raises:
        SnakeError: If it can't be used, or no machine has room for the node, or the node none for
            its visits.
    """
    request = joining_request(config.nodes, source, joining_gpus(groups))
    group = NodeGroup(nodes=(0,), request=request)
    # Of GPUs of the driver's side nothing is left to ask: they are taken.
    check_resources(config.nodes, [group], [source], own={})
    if not has_room(request, config.nodes):
        raise ResourceError(
            f"node {source.name}",
            f"no machine has room now for what it asks: {request.amounts}",
            "remove a node first, or set nodes.may_scale if the cluster grows by itself",
        )
    (spec,) = on_cluster(config.nodes, [group])(_check_joining, [(recipe, source, entry)])
    checked: NodeSpec = spec
    return checked


def _check_joining(recipe: AnyRef, source: ShardSource, entry: Entry) -> NodeSpec:
    return check_joining(ray.get(recipe), source, entry)
