"""What a process and all it started take: CPU seconds and memory, sampled from a process apart.

    python jobs/benchmarks/process_tree.py PID OUT.jsonl --memory

writes a line for each sample until the process and all it started have ended. CPU seconds count
what already ended. Memory is the sum of proportional set sizes, in which a page that several
processes share, as of the object store, counts once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

TICKS = os.sysconf("SC_CLK_TCK")
END_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a command took.

    Attributes:
        times: Unix times of the samples.
        cpu_seconds: CPU seconds of the whole tree up to each of them.
        peak_bytes: Largest memory of the whole tree; 0 where it was not sampled.
        peak_by_process: How it was made up, bytes by process, largest first.
        largest_by_process: The largest memory of each process that was ever there, likewise.
    """

    times: Sequence[float]
    cpu_seconds: Sequence[float]
    peak_bytes: int
    peak_by_process: dict[str, int]
    largest_by_process: dict[str, int]

    def cpu_until(self, when: float) -> float:
        """Return the CPU seconds taken up to a Unix time, between two samples in proportion."""
        after = min(max(bisect_left(self.times, when), 1), len(self.times) - 1)
        t0, t1 = self.times[after - 1], self.times[after]
        c0, c1 = self.cpu_seconds[after - 1], self.cpu_seconds[after]
        return c0 + (c1 - c0) * min(max((when - t0) / (t1 - t0), 0.0), 1.0)


def measure(
    command: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    *,
    memory: bool,
    interval: float | None = None,
) -> Usage:
    """Run a command to its end and sample it and all it starts.

    Args:
        command: Its arguments.
        environment: Its environment.
        folder: For the samples and the command's output.
        memory: Whether to sample memory too, which takes the sampling process about half a core.
        interval: Seconds between samples; none: as short as the sampling allows.

    Raises:
        click.ClickException: If the command fails; what it said is shown.
    """
    samples, said = folder / "samples.jsonl", folder / "output.txt"
    with said.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    sampling = [sys.executable, __file__, str(process.pid), str(samples)]
    if memory:
        sampling.append("--memory")
    if interval is not None:
        sampling += ["--interval", str(interval)]
    sampler = subprocess.Popen(sampling)
    try:
        status = process.wait()
    finally:
        process.terminate()
        process.wait()
        sampler.wait()
    if status != 0 or sampler.returncode != 0:
        raise click.ClickException(f"{' '.join(command)} failed:\n{said.read_text()[-4000:]}")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    peak = max(lines, key=lambda line: sum(line["memory"].values()))
    largest: dict[str, int] = {}
    for line in lines:
        for process, size in line["memory"].items():
            largest[process] = max(size, largest.get(process, 0))
    return Usage(
        times=[line["time"] for line in lines],
        cpu_seconds=[line["cpu"] for line in lines],
        peak_bytes=sum(peak["memory"].values()),
        peak_by_process=_sorted(peak["memory"]),
        largest_by_process=_sorted(largest),
    )


def _sorted(sizes: dict[str, int]) -> dict[str, int]:
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


@dataclass
class _Process:
    """A process that was seen.

    Attributes:
        parent: The process that it was started by.
        started: Its start, which tells it from a later one of the same number.
        own: Its CPU seconds when last seen.
        reaped: Those of its children that ended, where it waited for them.
        name: What to call it.
    """

    parent: int
    started: int
    own: float = 0.0
    reaped: float = 0.0
    name: str = ""


class Tree:
    """A process and all it started, alive or ended."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[tuple[int, int], _Process] = {}
        self._alive: dict[int, _Process] = {}

    def look(self) -> None:
        """Take note of the tree as it is now."""
        stats = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
                stats[int(entry.name)] = stat
        known = {
            pid for pid, one in self._alive.items() if pid in stats and stats[pid][1] == one.started
        }
        inside = known | ({self._root} if not self._seen and self._root in stats else set())
        children = defaultdict(list)
        for pid, stat in stats.items():
            children[stat[0]].append(pid)
        waiting = list(inside)
        while waiting:
            for child in children[waiting.pop()]:
                if child not in inside:
                    inside.add(child)
                    waiting.append(child)
        self._alive = {}
        for pid in inside:
            parent, started, own, reaped = stats[pid]
            one = self._seen.setdefault(
                (pid, started), _Process(parent=parent, started=started, name=_name(pid))
            )
            one.own, one.reaped = own, reaped
            # A worker of Ray names itself after what it was given to do.
            one.name = _name(pid) or one.name
            self._alive[pid] = one

    @property
    def alive(self) -> dict[int, _Process]:
        """The processes that were there at the last look."""
        return self._alive

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all that was ever seen, and of children too short to see."""
        ended: dict[int, float] = defaultdict(float)
        for (pid, _), one in self._seen.items():
            if pid not in self._alive:
                ended[one.parent] += one.own + one.reaped
        own = sum(one.own for one in self._seen.values())
        unseen = sum(
            max(0.0, one.reaped - ended.get(pid, 0.0)) for (pid, _), one in self._seen.items()
        )
        return own + unseen

    def memory(self) -> dict[str, int]:
        """Return the proportional set size of each process, in bytes."""
        found: dict[str, int] = {}
        for pid, one in self._alive.items():
            found[f"{one.name}:{pid}"] = _pss(pid)
        return found


def _stat(pid: int) -> tuple[int, int, float, float] | None:
    """Return (parent, start, own CPU seconds, those of reaped children) of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    user, system, reaped_user, reaped_system = (int(one) / TICKS for one in fields[11:15])
    return int(fields[1]), int(fields[19]), user + system, reaped_user + reaped_system


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    scripts = [word for word in words if word.endswith(".py")]
    return Path(scripts[0] if scripts else words[0]).name


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0 kB")
    return 1024 * int(line.split()[1])


@click.command()
@click.argument("pid", type=int)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--memory", is_flag=True, help="Sample memory too.")
@click.option("--interval", type=float, help="Seconds between samples.")
def main(pid: int, out: Path, memory: bool, interval: float | None) -> None:
    """Sample process PID and all it starts into OUT, until all of it has ended."""
    tree = Tree(pid)
    deadline = None
    pause = interval or (0.005 if memory else 0.05)
    with out.open("w") as file:
        while True:
            tree.look()
            line = {
                "time": time.time(),
                "cpu": tree.cpu_seconds(),
                "memory": tree.memory() if memory else {},
            }
            file.write(json.dumps(line) + "\n")
            if not tree.alive:
                return
            if pid not in tree.alive or _is_zombie(pid):
                deadline = deadline or time.monotonic() + END_SECONDS
                if time.monotonic() > deadline:
                    names = ", ".join(one.name for one in tree.alive.values())
                    for left in tree.alive:
                        os.kill(left, signal.SIGKILL)
                    raise click.ClickException(f"the command left processes behind: {names}")
            time.sleep(pause)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


if __name__ == "__main__":
    main()
