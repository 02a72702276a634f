"""An embedded cluster: what Ray starts of it, how often that reports, and how workers begin."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from ray_snake.runtime import worker_entry
from ray_snake.runtime.warm import WarmProcess, can_warm

# Of an embedded cluster. Its processes would else report to each other, and to a dashboard that is
# not there, several times a second, which between visits is all they do.
SETTINGS = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_io_context_event_loop_lag_collection_interval_ms": "0",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_task_events_report_interval_ms": "0",
}
# Ray starts a worker for every CPU before any is asked for. Driver, engine and nodes take over that
# many; on larger machines the others would only cost 60 MiB and most of a CPU second each.
PRESTARTED_WORKERS = 4


@contextlib.contextmanager
def lean(warm: WarmProcess) -> Iterator[None]:
    """Have an embedded cluster start and do only what a run uses of it.

    Ray has no option against its autoscaler, its log monitor and, even with the dashboard switched
    off, its dashboard server. They would take 160 MiB and some three CPU seconds, and do nothing:
    the cluster doesn't grow, and no log is shown. To learn whether a dashboard could be served, it
    imports all that one needs, 15 MiB; told that it can't, it has an agent serve none either. What
    a user has set for Ray holds.

    Args:
        warm: What its workers are forked from, where that can be; started beside the cluster.
    """
    try:
        from ray._private import utils
        from ray._private.node import Node
    except ImportError:
        # A later Ray may have it elsewhere; then it starts all that it has.
        yield
        return

    def start_nothing(node: Node, **_: object) -> None:
        pass

    def unwanted() -> ImportError:
        return ImportError("an embedded cluster has no dashboard")

    start_gcs_server: Any = getattr(Node, "start_gcs_server", None)

    def start_warm_too(node: Node) -> None:
        # What Ray sets in the environment is there by then, and no worker is.
        parameters: Any = getattr(node, "_ray_params", None)
        if can_warm() and hasattr(parameters, "setup_worker_path"):
            os.environ.update(warm.start(parameters.setup_worker_path))
            parameters.setup_worker_path = worker_entry.__file__
        start_gcs_server(node)

    changes: list[tuple[Any, str, Callable[..., Any]]] = [
        (Node, "start_gcs_server", start_warm_too),
        (Node, "start_monitor", start_nothing),
        (Node, "start_log_monitor", start_nothing),
        (Node, "start_api_server", start_nothing),
        (utils, "get_dashboard_dependency_error", unwanted),
    ]
    changes = [one for one in changes if hasattr(*one[:2])]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    settings = {name: text for name, text in SETTINGS.items() if name not in os.environ}
    if (os.cpu_count() or 1) > PRESTARTED_WORKERS:
        settings.setdefault("RAY_prestart_worker_first_driver", "0")
    for owner, name, other in changes:
        setattr(owner, name, other)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in (*settings, worker_entry.ADDRESS, worker_entry.ORDINARY):
            os.environ.pop(name, None)
        for owner, name, function in kept:
            setattr(owner, name, function)
