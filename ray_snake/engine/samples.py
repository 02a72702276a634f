"""What the engine needs of a shard: rows by number. `ray_snake.data.NodeDataset` is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]
POOL = 16


class Samples(Protocol):
    """Rows of inputs and targets, by row number."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def batch(self, rows: Rows) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (inputs, targets) of the rows, first axis the rows in the order given."""


def load_batch(samples: Samples, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets) of the rows as tensors on `device`."""
    inputs, targets = samples.batch(rows)
    return torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)


def in_order(rows: int, batch_size: int) -> Iterator[Rows]:
    """Yield all row numbers in order, in batches."""
    for start in range(0, rows, batch_size):
        yield np.arange(start, min(start + batch_size, rows), dtype=np.int64)


def pieces(rows: Rows, size: int | None) -> list[Rows]:
    """Return row numbers (n,) in pieces of at most `size`, in order; none: in one piece.

    They differ by one row at most, so that none is alone where others have many.
    """
    count = 1 if size is None else -(-len(rows) // size)
    return np.array_split(rows, count)


class Subset:
    """Some rows of a shard, as if there were no others.

    Args:
        samples: The shard.
        rows: Their row numbers.
    """

    def __init__(self, samples: Samples, rows: Rows) -> None:
        self._samples = samples
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Rows) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (inputs, targets) of the rows, counted among these."""
        return self._samples.batch(self._rows[rows])


def drawn(samples: Samples, count: int, seed: int) -> Samples:
    """Return `count` rows of a shard drawn from `seed`, or the shard if it has no more."""
    if count >= len(samples):
        return samples
    draw = np.random.Generator(np.random.PCG64(seed))
    rows = draw.choice(len(samples), size=count, replace=False, shuffle=False)
    return Subset(samples, np.sort(rows).astype(np.int64))


def shuffled(
    rows: int, batch_size: int, seed: int, lengths: NDArray[np.int64] | None = None
) -> Iterator[Rows]:
    """Yield all row numbers in an order drawn from `seed`, in batches.

    A last batch of one row is left out where others exist: batch statistics need two.

    Args:
        rows: How many there are.
        batch_size: Rows of a batch.
        seed: Decides the order.
        lengths: Of the rows, (rows,): a batch then consists of rows of about one length, out of
            as many batches' as `POOL` says; none: of any rows.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    order = draw.permutation(rows).astype(np.int64)
    if lengths is not None:
        size = POOL * batch_size
        pools = [order[start : start + size] for start in range(0, rows, size)]
        order = np.concatenate([_by_length(one, lengths, batch_size, draw) for one in pools])
    for start in range(0, rows, batch_size):
        batch = order[start : start + batch_size]
        if len(batch) > 1 or start == 0 or batch_size == 1:
            yield batch


def _by_length(
    order: Rows, lengths: NDArray[np.int64], batch_size: int, draw: np.random.Generator
) -> Rows:
    """Return rows so that whole batches have about one length each, the batches in drawn order."""
    whole = len(order) // batch_size * batch_size
    rows, rest = order[:whole], order[whole:]
    batches = rows[np.argsort(lengths[rows], kind="stable")].reshape(-1, batch_size)
    return np.concatenate([draw.permutation(batches).ravel(), rest])
