"""Shares of a CPU for processes of others: the kernel's own limits, control groups v1 or v2."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import click

ROOT = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS = 20_000
LOOK_SECONDS = 0.05


class CpuLimit:
    """A control group whose processes together get a share of one CPU.

    Args:
        name: Its name, which no other has.
        share: CPUs, such as 0.25; 0 or less: no limit.

    Raises:
        click.ClickException: If this machine lets nobody make control groups.
    """

    def __init__(self, name: str, share: float) -> None:
        first = (ROOT / "cgroup.controllers").exists()
        self._folder = (ROOT if first else ROOT / "cpu") / name
        quota = str(round(share * PERIOD_MICROSECONDS)) if share > 0 else ("max" if first else "-1")
        try:
            self._folder.mkdir()
            if first:
                (self._folder / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
            else:
                (self._folder / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
                (self._folder / "cpu.cfs_quota_us").write_text(quota)
        except OSError as error:
            raise click.ClickException(
                f"{self._folder}: {error.strerror}; limits on CPUs need root and the cpu controller"
            ) from None

    def take(self, pid: int) -> None:
        """Hold a process, with all its threads, to the limit; one that is gone is no error."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            (self._folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Let go of what is still in it, and remove it."""
        outside = self._folder.parent / "cgroup.procs"
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                outside.write_text(pid)
        deadline = time.monotonic() + 10
        while True:
            try:
                return self._folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


@contextlib.contextmanager
def limited(shares: list[float], of: Callable[[int], int | None]) -> Iterator[None]:
    """Hold node processes to shares of a CPU as they come up, until the end of the block.

    Args:
        shares: CPUs of each place.
        of: Returns the place of a node's process, by pid; none: not to be limited.
    """
    over = Event()
    with contextlib.ExitStack() as groups:
        limits = []
        for place, share in enumerate(shares):
            limits.append(CpuLimit(f"ray_snake_{os.getpid()}_{place}", share))
            groups.callback(limits[-1].close)
        seen: set[int] = set()

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                for pid in node_processes():
                    if pid not in seen and (place := of(pid)) is not None:
                        limits[place].take(pid)
                        seen.add(pid)

        looking = Thread(target=look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()


def node_processes() -> list[int]:
    """Return the pids of the node actors of this machine that are at a visit now.

    Ray names a worker after what it does. Until its first visit a node starts, at full speed.
    """
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry.name}/cmdline").read_bytes()
                if words.startswith(b"ray::SnakeNode.visit"):
                    found.append(int(entry.name))
    return sorted(found)


def network_of(pid: int) -> int:
    """Return the number of a process's network namespace."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino
