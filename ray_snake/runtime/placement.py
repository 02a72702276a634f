"""What each node's process asks of the machine that hosts it, and which nodes share a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from ray_snake.config import NodesConfig
from ray_snake.data import ShardSource
from ray_snake.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one process asks for.

    Attributes:
        cpus: CPUs.
        gpus: GPUs, or `auto` as long as the cluster is not known.
        memory_bytes: Heap memory.
        labels: Label selector of the machine, as sorted pairs.
        resources: Custom resources of the machine, as sorted pairs.
    """

    cpus: float = 0.0
    gpus: float | Literal["auto"] = 0.0
    memory_bytes: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    resources: tuple[tuple[str, float], ...] = ()

    @property
    def amounts(self) -> dict[str, float]:
        """What is reserved, by Ray's names of resources; nothing that is 0 or not yet known."""
        asked = {
            "CPU": self.cpus,
            "GPU": 0.0 if self.gpus == "auto" else self.gpus,
            "memory": float(self.memory_bytes),
            **dict(self.resources),
        }
        return {name: amount for name, amount in asked.items() if amount}


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """The nodes of one process, by number, and what it asks for."""

    nodes: tuple[int, ...]
    request: Request


def group_nodes(nodes: NodesConfig, sources: Sequence[ShardSource]) -> list[NodeGroup]:
    """Return the processes of a run: consecutive nodes that ask for the same share one.

    Args:
        nodes: The settings.
        sources: The nodes' shards, by number.

    Raises:
        ConfigError: If an entry of `nodes.each` matches no node.
    """
    for index, entry in enumerate(nodes.each):
        for pattern in entry.patterns:
            if not any(_matches(source, pattern) for source in sources):
                names = [source.name for source in sources]
                raise ConfigError(
                    f"nodes.each[{index}].match",
                    f"{pattern!r} matches none of the nodes",
                    f"nodes are called {', '.join([*names[:5], '...'][: len(names)])}",
                )
    groups: list[NodeGroup] = []
    for number, source in enumerate(sources):
        request = request_of(nodes, source)
        last = groups[-1] if groups else None
        if last is not None and last.request == request and len(last.nodes) < nodes.nodes_per_actor:
            groups[-1] = NodeGroup(nodes=(*last.nodes, number), request=request)
        else:
            groups.append(NodeGroup(nodes=(number,), request=request))
    return groups


def joining_gpus(groups: Sequence[NodeGroup]) -> float:
    """Return the GPU share of a process that joins one by one: the smallest that another has.

    Args:
        groups: The run's processes, with their GPU shares.
    """
    shares = [group.request.gpus for group in groups]
    return min((one for one in shares if one != "auto" and one > 0), default=0.0)


def joining_request(nodes: NodesConfig, source: ShardSource, gpus: float) -> Request:
    """Return what the process of a node that joins asks for; `gpus` in place of `auto`."""
    request = request_of(nodes, source)
    return replace(request, gpus=gpus) if request.gpus == "auto" else request


def setting_of(nodes: NodesConfig, source: ShardSource, field: str) -> str:
    """Return the key that decides what a node asks for, such as `nodes.each[1].labels`."""
    return _asked(nodes, source, field)[0]


def asked_bytes(nodes: NodesConfig, source: ShardSource) -> int:
    """Return the memory that a node asks for, in bytes; 0: it has no limit."""
    found: int = _asked(nodes, source, "memory_bytes")[1]
    return found


def _asked(nodes: NodesConfig, source: ShardSource, field: str) -> tuple[str, Any]:
    """Return the key that decides, and its value."""
    found = f"nodes.{field}", getattr(nodes, field)
    for index, entry in enumerate(nodes.each):
        own = getattr(entry, field)
        if own is not None and any(_matches(source, pattern) for pattern in entry.patterns):
            found = f"nodes.each[{index}].{field}", own
    return found


def _matches(source: ShardSource, pattern: str) -> bool:
    """Return whether a node's name or shard is, or fits, a pattern.

    Both may hold brackets themselves.
    """
    return any(
        text == pattern or fnmatchcase(text, pattern) for text in (source.name, source.subject)
    )


def request_of(nodes: NodesConfig, source: ShardSource) -> Request:
    """Return what a process asks for that hosts this node."""
    settings = {field: _asked(nodes, source, field)[1] for field in _FIELDS}
    return Request(
        cpus=settings["cpus"],
        gpus=settings["gpus"],
        memory_bytes=settings["memory_bytes"],
        labels=tuple(sorted(settings["labels"].items())),
        resources=tuple(sorted(settings["resources"].items())),
    )


_FIELDS = ("cpus", "gpus", "memory_bytes", "labels", "resources")
