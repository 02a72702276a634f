"""What the machines of a run's Ray cluster have, and which of them may host what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_snake.config import NodesConfig, SnakeConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ResourceError
from ray_snake.runtime.gpu_shares import largest_share, room_for, single_gpus, take_share
from ray_snake.runtime.placement import NodeGroup, Request, setting_of

NODE_ID_LABEL = "ray.io/node-id"
"""The label with a machine's id, which Ray gives to each."""


@dataclass
class Machine:
    """A machine that is up: its name, Ray's id of it, what it has in all, and its labels."""

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


def machines_up() -> list[Machine]:
    """Return the machines that are up and stay."""
    leaving = draining()
    return [
        Machine(
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
        for one in hostmachines_up(request)
    )


def hostmachines_up(request: Request) -> list[str]:
    """Return the ids of the machines that may host a process: those with its labels, and with CPUs.

    A head without CPUs is how a cluster says that nothing should compute there; it counts where
    there is nothing else.
    """
    able = _able(request, machines_up())
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
    machines = hostmachines_up(request)
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

    `auto` divides what the cluster has, and others don't ask for, evenly: whole GPUs of one
    machine, or hundredths of a single GPU, as Ray gives them, in the largest share that all get.

    Args:
        groups: The processes.
        own: What the driver's side asks for: see `own_gpus`.
    """
    asked = [group.request.gpus for group in groups]
    shared = asked.count("auto")
    if not shared:
        return list(groups)
    machines = {one.id: one.resources.get("GPU", 0.0) for one in machines_up()}
    this = ray.get_runtime_context().get_node_id()
    gpus_of = [single_gpus(machines.pop(this, 0.0)), *map(single_gpus, machines.values())]
    for amount in own.values():
        take_share(amount, gpus_of[:1])
    for amount in sorted((one for one in asked if one != "auto"), reverse=True):
        take_share(amount, gpus_of)
    share = largest_share(gpus_of, shared)
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
    """Check that the machines that are up can host all node actors at once, as far as sums tell.

    And that this one can give the driver's side its GPU shares.

    Args:
        nodes: The settings.
        groups: The nodes' processes, with their GPU shares.
        sources: The nodes' shards, by number.
        own: What the driver's side asks for: see `own_gpus`.

    Raises:
        ResourceError: Naming the setting, what was asked for, and what the cluster has.
    """
    machines = machines_up()
    _take_own(own, machines)
    if nodes.may_scale:
        return
    requests = Counter(group.request for group in groups)
    able = {request: _able(request, machines) for request in requests}
    for request, count in requests.items():
        first = next(group.nodes[0] for group in groups if group.request == request)
        _check_kind(nodes, request, count, able[request], machines, sources[first])
    # More may not fit together, which is bin packing; what passes here waits for room in vain, and
    # is told so after `nodes.start_timeout_seconds`.
    hosts = {one.id: one for each in able.values() for one in each}.values()
    asked: Counter[str] = Counter()
    for request, count in requests.items():
        asked.update({name: count * amount for name, amount in request.amounts.items()})
    for resource, amount in asked.items():
        if amount > sum(one.resources.get(resource, 0.0) for one in hosts) + 1e-6:
            key = f"nodes.{_FIELDS.get(resource, 'resources')}"
            raise ResourceError(
                key,
                f"{len(groups)} node actors ask for {amount:g} in all, which does not fit on what "
                f"the cluster has ({_listed(resource, hosts)})",
                f"lower {key}, {_MORE_ROOM}",
            )


def _check_kind(
    nodes: NodesConfig,
    request: Request,
    count: int,
    able: Sequence[Machine],
    machines: Sequence[Machine],
    source: ShardSource,
) -> None:
    """Check that machines have room for all processes that ask for the same, of nodes like one."""
    if not able:
        known = sorted({f"{k}={v}" for one in machines for k, v in one.labels.items()})
        raise ResourceError(
            setting_of(nodes, source, "labels"),
            f"no machine of the cluster has {dict(request.labels)}",
            f"use labels that machines have ({', '.join(known) or 'none have any'})",
        )
    room = {
        resource: [room_for(resource, amount, one.resources) for one in able]
        for resource, amount in request.amounts.items()
    }
    for resource, each in room.items():
        if sum(each) < count:
            key = setting_of(nodes, source, _FIELDS.get(resource, "resources"))
            raise ResourceError(
                key,
                f"{count} node actors with {request.amounts[resource]:g} each don't fit on what "
                f"the cluster has ({_listed(resource, able)})",
                f"lower {key}, {_MORE_ROOM}",
            )
    if room and sum(map(min, zip(*room.values(), strict=True))) < count:
        key = setting_of(nodes, source, _FIELDS.get(next(iter(room)), "resources"))
        asked = " and ".join(f"{name} {amount:g}" for name, amount in request.amounts.items())
        raise ResourceError(
            key,
            f"{count} node actors with {asked} each don't fit on what the cluster has "
            f"({'; '.join(_listed(resource, able) for resource in room)})",
            f"lower {key}, {_MORE_ROOM}",
        )


def _listed(resource: str, machines: Iterable[Machine]) -> str:
    each = ", ".join(f"{one.name} {one.resources.get(resource, 0.0):g}" for one in machines)
    return f"{resource}: {each}"


def _take_own(own: Mapping[str, float], machines: Sequence[Machine]) -> None:
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


_MORE_ROOM = "raise nodes.nodes_per_actor, or set nodes.may_scale if the cluster grows by itself"
_FIELDS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_bytes"}


def _able(request: Request, machines: Iterable[Machine]) -> list[Machine]:
    return [one for one in machines if _matches(one.labels, request.labels)]


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
