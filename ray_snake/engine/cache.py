"""What is computed once per visit for each row: the prefix's outputs, what a teacher keeps."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch import Tensor

from ray_snake.engine.samples import Rows


class RowCache:
    """What a visit keeps of each row of the shard, filled in row order.

    The prefix's outputs are valid only while it is deterministic and does not change: frozen, its
    norms in evaluation mode. What is small is held in memory; what is larger lies in a
    memory-mapped temporary file of the node that is gone when the cache is closed.

    Args:
        rows: Number of rows.
        limit_bytes: Largest size to hold in memory.
    """

    def __init__(self, rows: int, *, limit_bytes: int) -> None:
        self._rows = rows
        self._limit = limit_bytes
        self._filled = 0
        self._store: Tensor | None = None

    def append(self, outputs: Tensor) -> None:
        """Add the outputs for the next rows, (n, ...)."""
        store = self._store
        if store is None or (store.shape[1:], store.dtype) != (outputs.shape[1:], outputs.dtype):
            store = self._allocate(outputs)
        store[self._filled : self._filled + len(outputs)] = outputs.detach()
        self._filled += len(outputs)

    def gather(self, rows: Rows, device: torch.device) -> Tensor:
        """Return the outputs for these rows, (n, ...), on `device`."""
        if self._store is None:
            raise RuntimeError("the cache is empty; append before you gather")
        return self._store[torch.from_numpy(rows).to(self._store.device)].to(device)

    def part(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Return the outputs for rows [start, stop), on `device`: a view where it is there."""
        if self._store is None:
            raise RuntimeError("the cache is empty; append before you read")
        return self._store[start:stop].to(device)

    def restart(self) -> None:
        """Begin again with the first row, in the same memory where the outputs' shape allows."""
        self._filled = 0

    def close(self) -> None:
        """Let go of the memory or the file."""
        self._store = None

    def _allocate(self, first: Tensor) -> Tensor:
        if self._filled:
            raise ValueError("outputs changed their shape or dtype between two rows")
        self._store = None
        shape = (self._rows, *first.shape[1:])
        size = self._rows * first[0].numel() * first.element_size()
        if size <= self._limit:
            self._store = torch.empty(shape, dtype=first.dtype, device=first.device)
            return self._store
        with tempfile.TemporaryFile(prefix="ray-snake-rows-") as file:
            file.truncate(size)
            mapped = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
        self._store = torch.from_numpy(mapped).view(first.dtype).view(shape)
        return self._store
