"""The folder of a test bed: its token and its raylets' sessions. It ends with the test bed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from ray_snake.errors import ResourceError

_PREFIX = "snakebed-"
# Unix sockets have paths of at most 107 bytes, and Ray's own part of one takes about 75.
_MOST_BYTES = 32


class BedFolder:
    """A new folder, `snakebed-PID-...`, that only this user can read.

    Its maker holds a lock on it, which the kernel gives up when the maker dies: a folder that can
    be locked is stale, however its process ended and whoever has its number since.

    Raises:
        ResourceError: If the path would be too long for Ray's sockets.
    """

    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        if len(os.fsencode(parent)) + len(_PREFIX) > _MOST_BYTES:
            raise ResourceError(
                "TMPDIR", f"{parent} is too long a path for Ray's sockets", "set it to /tmp"
            )
        # Under its own name only once it is locked, or another's `clean` could take it for stale.
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
        self._lock = _lock(made)
        self.path = made.rename(parent / f"{_PREFIX}{os.getpid()}-{made.name[-4:]}")

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_stale() -> list[Path]:
    """Remove the folders of test beds that were killed; return their paths."""
    removed = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.geteuid():
            continue
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
            removed.append(path)
    return removed


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock, or none if it is held or gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
