"""What really moved between machines, as Ray's object managers count it."""

from __future__ import annotations

import asyncio
import http.client
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import ray

ANSWER_SECONDS = 5.0
READERS = 8
_RECEIVED = re.compile(
    r'^ray_object_manager_bytes\{[^}]*Type="Received"[^}]*\} (\S+)$', re.MULTILINE
)


def machine_name(ray_id: str) -> str:
    """Return what a machine is called in the journal: the first digits of Ray's id of it."""
    return ray_id[:8]


class RayMeter:
    """Reads the counter of received bytes of every machine of the cluster.

    The counters are each raylet's own, of all that its object store has got from other machines
    since it started: other jobs' objects too, and twice what was sent twice. A raylet reports them
    every 10 s, or as `metrics_report_interval_ms` of the cluster says.
    """

    async def received(self) -> dict[str, int]:
        """Return bytes received so far, by machine; {} where there is only one machine.

        Machines that don't answer are left out.
        """
        return await asyncio.to_thread(self._read)

    @staticmethod
    def _read() -> dict[str, int]:
        machines = [one for one in ray.nodes() if one["Alive"]]
        if len(machines) < 2:
            return {}
        urls = [
            f"http://{one['NodeManagerAddress']}:{one['MetricsExportPort']}/metrics"
            for one in machines
        ]
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(_received, urls))
        return {
            machine_name(one["NodeID"]): received
            for one, received in zip(machines, found, strict=True)
            if received is not None
        }


def _received(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
            text = answer.read().decode()
    except (OSError, http.client.HTTPException):
        # The latter where a machine goes in the middle of its answer.
        return None
    # What has never received anything has no counter yet.
    return sum(int(float(value)) for value in _RECEIVED.findall(text))
