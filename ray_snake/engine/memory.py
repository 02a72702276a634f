"""Peak memory of a piece of work, measured by what torch allocates."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device | None = None) -> int:
    """Return by how many bytes torch's allocations exceed, at most, what there was before.

    On the CPU torch's own records of every allocation are added up, so that neither Python nor what
    an allocator keeps for later counts, nor the release of what there was before. Memory that torch
    did not allocate, such as views of an object store and memory-mapped files, is not in it.

    Args:
        work: What to do. It should be a few steps: on the CPU all are recorded.
        device: Where it computes; the CPU by default.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    # One entry for each allocation and release; they stand in no order.
    changes = sorted(
        (event["ts"], event["args"]["Bytes"], event["args"]["Addr"])
        for event in events
        if event.get("name") == "[memory]" and event["args"].get("Device Type") == 0
    )
    # A release of what earlier work allocated is recorded only if that work was measured too, or if
    # it has an address that measured work had: such releases are left out.
    held: dict[int, int] = {}
    total = peak = 0
    for _, change, address in changes:
        if change > 0:
            held[address] = change
            total += change
            peak = max(peak, total)
        else:
            total -= held.pop(address, 0)
    return peak
