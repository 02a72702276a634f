"""The journal's files: numbered segments of lines that one driver appends to.

Object stores can't append, so each append writes the open segment whole. None of them can lock
either: so before a segment is written it is read, and where it is not what this writer left there,
somebody else writes too, and this one stops. Without that two drivers of one run would each take
away what the other had accepted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ray_snake.errors import CheckpointError
from ray_snake.storage import Storage

FOLDER = "journal"


class Segments:
    """The segments of one run.

    Args:
        storage: The run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        # Digests of what may be there: what was read or written last, and what was tried since.
        self._known: dict[str, set[bytes]] = {}

    def read(self, first: int = 0) -> Iterator[tuple[str, list[bytes]]]:
        """Yield (name, lines) of each segment from number `first` (from 0) on."""
        for name in self._storage.list(FOLDER):
            if name >= _name(first):
                content = self._storage.read(f"{FOLDER}/{name}")
                self._known[name] = {_digest(content)}
                # Split as bytes: text has line ends of its own that JSON leaves as they are.
                yield name, content.splitlines()

    def write(self, number: int, content: bytes) -> None:
        """Write a segment whole; when this returns, it is on storage.

        Raises:
            CheckpointError: If somebody else has written it since this one read or wrote it.
            StorageError: If the storage refuses it.
        """
        name = _name(number)
        self._refuse_other_writers(name)
        # It may be there after all where the storage says that it isn't.
        self._known.setdefault(name, set()).add(_digest(content))
        self._storage.write(f"{FOLDER}/{name}", content)
        self._known[name] = {_digest(content)}

    def _refuse_other_writers(self, name: str) -> None:
        path = f"{FOLDER}/{name}"
        if name in self._known:
            is_ours = _digest(self._storage.read(path)) in self._known[name]
        else:
            is_ours = not self._storage.exists(path)
        if not is_ours:
            raise CheckpointError(
                f"another driver goes on with run {self._storage.uri}: it has written {path}",
                "let one of them run to its end; this one stops",
            )


def _name(number: int) -> str:
    return f"{number:06d}.jsonl"


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
