"""Functions called on the machines of a Ray cluster: where the nodes' shards are, or on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray

from ray_snake.config import NodesConfig
from ray_snake.errors import ConfigError, RunError
from ray_snake.runtime.answers import error_of, in_a_line
from ray_snake.runtime.cluster import NODE_ID_LABEL, machines_up
from ray_snake.runtime.placement import NodeGroup, Request

Answer = TypeVar("Answer")


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
    machines = machines_up()
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
            return RunError(in_a_line(error), "see that ray-snake is there as it is here")

    return [(one.name, answer(ref)) for one, ref in zip(machines, refs, strict=True)]


def _nodes_of(groups: Sequence[NodeGroup]) -> dict[Request, tuple[int, ...]]:
    found: dict[Request, tuple[int, ...]] = {}
    for group in groups:
        found[group.request] = (*found.get(group.request, ()), *group.nodes)
    return found


def _each(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [function(*one) for one in arguments]
