"""The Ray cluster of a run: an embedded one, or one that is there already, and what it can give."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_snake.config import NodesConfig, SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ConfigError, ResourceError, RunError, SnakeError
from ray_snake.runtime.embedded import lean
from ray_snake.runtime.placement import NodeGroup, Request, setting_of
from ray_snake.runtime.warm import WarmProcess

Answer = TypeVar("Answer")

NODE_ID_LABEL = "ray.io/node-id"
"""The label with a machine's id, which Ray gives to each."""

KNOCK_SECONDS = 5.0
LAST_PORT = 65535


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Use the Ray cluster at `address`, or the one already joined, or an embedded one.

    An embedded cluster lives on this machine and ends with the block. `RAY_ADDRESS` (set within
    a Ray job) counts as an address.

    Raises:
        ResourceError: If there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet["include_dashboard"] = False
    try:
        knock(address)
    except OSError as error:
        raise _no_cluster(address, error) from None
    on_sigterm = signal.getsignal(signal.SIGTERM)
    warm = WarmProcess()
    try:
        try:
            with lean(warm) if address == "local" else contextlib.nullcontext():
                ray.init(address=address, **quiet)
        except Exception as error:
            # Ray raises anything here, down to a bare Exception when a start takes too long.
            raise _no_cluster(address, error) from None
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            # Ray puts a handler in its place that exits with the signal's number.
            signal.signal(signal.SIGTERM, on_sigterm)
        yield
    finally:
        ray.shutdown()
        warm.end()


def knock(address: str) -> None:
    """See whether anybody listens at `host:port`, with or without `ray://`; no other is looked at.

    Ray tries for minutes, writes that to standard error, and can't be interrupted meanwhile.

    Raises:
        OSError: If nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and "/" not in host and port.isdigit():
        if int(port) > LAST_PORT:
            # The C library would take its last 16 bits, where somebody else may listen.
            raise OSError(f"there is no port above {LAST_PORT}")
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


def _no_cluster(address: str, error: Exception) -> ResourceError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if address == "local":
        return ResourceError(
            "ray",
            f"could not be started on this machine ({reason})",
            "see whether it is overloaded or its disk is full, or give --address of a cluster",
        )
    return ResourceError(
        f"--address {address}",
        f"no Ray cluster answers there ({reason})",
        "give the address of a running head, or none for an embedded one",
    )


def is_embedded(address: str | None) -> bool:
    """Return whether a run at `address` has all its nodes on this machine, in its own cluster."""
    if ray.is_initialized():
        return False
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


@dataclass
class _Machine:
    name: str
    id: str
    resources: dict[str, float]
    labels: dict[str, str]


def draining() -> set[str]:
    """Return the ids of the machines that are about to go: preempted, or given back.

    Ray has them in no public interface. Where it can't say, none are.
    """
    try:
        return set(ray._private.state.state.get_draining_nodes())
    except Exception:
        return set()


def _machines() -> list[_Machine]:
    """Return the machines that are up and stay."""
    leaving = draining()
    return [
        _Machine(
            name=str(one["NodeManagerHostname"]),
            id=str(one["NodeID"]),
            resources={name: float(amount) for name, amount in one["Resources"].items()},
            labels={str(k): str(v) for k, v in (one.get("Labels") or {}).items()},
        )
        for one in ray.nodes()
        if one["Alive"] and one["NodeID"] not in leaving
    ]


def has_room(request: Request, nodes: NodesConfig) -> bool:
    """Return whether a machine that stays may host one more process now, or is sure to come."""
    if nodes.may_scale:
        return True
    free = ray._private.state.available_resources_per_node()
    return any(
        all(free.get(one, {}).get(name, 0.0) >= amount for name, amount in request.amounts.items())
        for one in host_machines(request)
    )


def host_machines(request: Request) -> list[str]:
    """Return the ids of the machines that may host a process: those with its labels, and with CPUs.

    A head without CPUs is how a cluster says that nothing should compute there; it counts where
    there is nothing else.
    """
    able = [one for one in _machines() if _matches(one.labels, request.labels)]
    return [one.id for one in able if one.resources.get("CPU")] or [one.id for one in able]


def node_options(request: Request) -> dict[str, Any]:
    """Return the Ray options of a node actor: what it asks of whichever machine hosts it."""
    amounts = request.amounts
    options: dict[str, Any] = {
        "num_cpus": amounts.pop("CPU", 0.0),
        "num_gpus": amounts.pop("GPU", 0.0),
        "max_restarts": 0,
        "max_task_retries": 0,
        "concurrency_groups": {"control": 2, "fetch": 1},
    }
    if "memory" in amounts:
        options["memory"] = amounts.pop("memory")
    if amounts:
        options["resources"] = amounts
    return options


def host_options(
    request: Request,
    hosted: Iterable[str],
    reserved: PlacementGroup | None = None,
    bundle: int = -1,
) -> dict[str, Any]:
    """Return the Ray options that choose a node actor's machine.

    Actors that reserve something Ray spreads by what is free. It puts those that reserve nothing
    (the default) on machines at random, so that is done here: on the machine with the fewest of
    them, or on any other if it is lost meanwhile.

    Args:
        request: What the actor asks for.
        hosted: The machine of each actor of the run so far.
        reserved: What the run may use, as the trial of a sweep; none: the cluster. Its bundles are
            where the labels say: see `ray_snake.tune.tune_resources`.
        bundle: Which of its bundles; -1: any.
    """
    if request.amounts and reserved is not None:
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(reserved, bundle)}
    labels = dict(request.labels)
    machines = host_machines(request)
    if request.amounts or not machines:
        return {"scheduling_strategy": "SPREAD", "label_selector": labels}
    counts = Counter(hosted)
    return {
        "label_selector": {**labels, NODE_ID_LABEL: min(machines, key=counts.__getitem__)},
        "fallback_strategy": [{"label_selector": labels}],
    }


def bundles(
    groups: Sequence[NodeGroup], reserved: PlacementGroup | None
) -> dict[tuple[int, ...], int]:
    """Return the bundle of each process that reserves something, as `tune_resources` has them."""
    asking = [group.nodes for group in groups if group.request.amounts]
    if reserved is None or reserved.bundle_count != 1 + len(asking):
        return {}
    return {nodes: number for number, nodes in enumerate(asking, 1)}


def own_gpus(config: SnakeConfig) -> dict[str, float]:
    """Return the GPU shares that the driver's side asks for beside the nodes, by setting."""
    splits = config.strategy in ("split", "splitfed")
    asked = {
        "evaluation.gpus": config.evaluation.gpus,
        "baseline.server_gpus": config.baseline.server_gpus if splits else 0.0,
    }
    return {key: gpus for key, gpus in asked.items() if gpus}


def with_gpu_shares(groups: Sequence[NodeGroup], own: Mapping[str, float]) -> list[NodeGroup]:
    """Return the processes with their GPU shares.

    `auto` divides what the cluster has, and others don't ask for, evenly, in hundredths.

    Args:
        groups: The processes.
        own: What the driver's side asks for: see `own_gpus`.
    """
    asked = [group.request.gpus for group in groups]
    shared = asked.count("auto")
    if not shared:
        return list(groups)
    free = float(ray.cluster_resources().get("GPU", 0.0))
    free -= sum(gpus for gpus in asked if gpus != "auto") + sum(own.values())
    share = max(0.0, free) / shared
    share = float(int(share)) if share >= 1 else int(share * 100) / 100
    return [
        replace(group, request=replace(group.request, gpus=share))
        if group.request.gpus == "auto"
        else group
        for group in groups
    ]


def check_resources(
    nodes: NodesConfig,
    groups: Sequence[NodeGroup],
    sources: Sequence[ShardSource],
    own: Mapping[str, float],
) -> None:
    """Check that the machines that are up can host all node actors at once.

    And that this one can give the driver's side its GPU shares.

    Args:
        nodes: The settings.
        groups: The nodes' processes, with their GPU shares.
        sources: The nodes' shards, by number.
        own: What the driver's side asks for: see `own_gpus`.

    Raises:
        ResourceError: Naming the setting, what was asked for, and what the cluster has.
    """
    machines = _machines()
    _take_own(own, machines)
    if nodes.may_scale:
        return
    for request, count in Counter(group.request for group in groups).items():
        first = next(group.nodes[0] for group in groups if group.request == request)
        able = [one for one in machines if _matches(one.labels, request.labels)]
        if not able:
            known = sorted({f"{k}={v}" for one in machines for k, v in one.labels.items()})
            raise ResourceError(
                setting_of(nodes, sources[first], "labels"),
                f"no machine of the cluster has {dict(request.labels)}",
                f"use labels that machines have ({', '.join(known) or 'none have any'})",
            )
        for resource, amount in request.amounts.items():
            room = sum(int(one.resources.get(resource, 0.0) / amount + 1e-9) for one in able)
            if room < count:
                key = setting_of(nodes, sources[first], _FIELDS.get(resource, "resources"))
                have = ", ".join(f"{one.name} {one.resources.get(resource, 0.0):g}" for one in able)
                raise ResourceError(
                    key,
                    f"{count} node actors with {amount:g} each don't fit on what the cluster has "
                    f"({resource}: {have})",
                    f"lower {key}, raise nodes.nodes_per_actor, or set nodes.may_scale if the "
                    "cluster grows by itself",
                )


def _take_own(own: Mapping[str, float], machines: Sequence[_Machine]) -> None:
    """Take the GPU shares of the driver's side from what this machine has for nodes.

    Raises:
        ResourceError: If it has less.
    """
    if not own:
        return
    this = ray.get_runtime_context().get_node_id()
    resources = next((one.resources for one in machines if one.id == this), {})
    left = resources.get("GPU", 0.0) - sum(own.values())
    if left < 0:
        key = max(own, key=own.__getitem__)
        raise ResourceError(
            key,
            f"{' and '.join(f'{one} = {gpus:g}' for one, gpus in own.items())} is for the machine "
            f"of the driver, which has GPU: {resources.get('GPU', 0.0):g}",
            f"lower {key}, or start the run on a machine that has more",
        )
    resources["GPU"] = left


_FIELDS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_bytes"}


def _matches(labels: dict[str, str], selector: Iterable[tuple[str, str]]) -> bool:
    """Return whether a machine's labels satisfy a Ray label selector, given as pairs."""
    for key, wanted in selector:
        value = labels.get(key)
        negated = wanted.startswith("!")
        wanted = wanted.removeprefix("!")
        if wanted.startswith("in(") and wanted.endswith(")"):
            inside = value in [one.strip() for one in wanted[3:-1].split(",")]
        else:
            inside = value == wanted
        if inside == negated:
            return False
    return True


def on_cluster(nodes: NodesConfig, groups: Sequence[NodeGroup]) -> Callable[..., list[Any]]:
    """Return a runner that calls a function, for each node, on a machine that may host the node.

    Shards may be readable only there. The calls are shared out over Ray tasks, about one for each
    CPU of the cluster. A task's process ends with its answer: Ray would keep it for other tasks,
    with whatever it read of the rows still in its memory.
    """

    def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        task: Any = ray.remote(max_calls=1)(_each)
        most = max(1, int(ray.cluster_resources().get("CPU", 1)))
        size = max(1, -(-len(arguments) // most))
        refs = {}
        for request, numbers in _nodes_of(groups).items():
            options: dict[str, Any] = {
                "num_cpus": 0,
                "max_retries": 2,
                "scheduling_strategy": "SPREAD",
                "label_selector": dict(request.labels),
                # Only to be where they are.
                "resources": {name: min(0.001, amount) for name, amount in request.resources},
            }
            for first in range(0, len(numbers), size):
                few = numbers[first : first + size]
                refs[few] = task.options(**options).remote(function, [arguments[i] for i in few])
        try:
            answers = ray.get(list(refs.values()), timeout=nodes.start_timeout_seconds)
        except ray.exceptions.GetTimeoutError:
            raise ConfigError(
                "nodes",
                f"no machine looked at the shards within {nodes.start_timeout_seconds:g} s",
                "see whether machines with nodes.labels are up, or raise "
                "nodes.start_timeout_seconds",
            ) from None
        except ray.exceptions.RayError as error:
            raise error_of(error) from None
        found = {
            number: one
            for few, several in zip(refs, answers, strict=True)
            for number, one in zip(few, several, strict=True)
        }
        return [found[number] for number in range(len(arguments))]

    return run


def on_each_machine(
    function: Callable[[], Answer], seconds: float = 60.0
) -> list[tuple[str, Answer | RunError]]:
    """Call a function on each machine that is up; return their names and what it returned.

    Args:
        function: What to call, in a process of its own.
        seconds: What takes longer counts as an error.
    """
    task: Any = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(function)
    machines = _machines()
    if not machines:
        return []
    refs = [task.options(label_selector={NODE_ID_LABEL: one.id}).remote() for one in machines]
    done, _ = ray.wait(refs, num_returns=len(refs), timeout=seconds)
    late = f"a task did not end within {seconds:g} s"

    def answer(ref: ray.ObjectRef[Answer]) -> Answer | RunError:
        if ref not in done:
            ray.cancel(ref, force=True)
            return RunError(late, "see whether the machine is overloaded")
        try:
            return ray.get(ref)
        except ray.exceptions.RayError as error:
            return RunError(_shown(error), "see that ray-snake is there as it is here")

    return [(one.name, answer(ref)) for one, ref in zip(machines, refs, strict=True)]


def _nodes_of(groups: Sequence[NodeGroup]) -> dict[Request, tuple[int, ...]]:
    found: dict[Request, tuple[int, ...]] = {}
    for group in groups:
        found[group.request] = (*found.get(group.request, ()), *group.nodes)
    return found


def _each(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [function(*one) for one in arguments]


def error_of(error: Exception) -> SnakeError:
    """Return the error that a user should see for whatever a Ray call raised."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SnakeError):
        return cause
    if isinstance(error, SnakeError):
        return error
    return RunError(_shown(error), "look into it, then go on with --resume")


def _shown(error: Exception) -> str:
    """Return in a line what a Ray call raised, or what made it."""
    cause = getattr(error, "cause", None)
    shown = cause if isinstance(cause, Exception) else error
    return f"{type(shown).__name__}: {' '.join(str(shown).split())[:400]}"
