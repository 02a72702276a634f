"""What travels, and nothing else: a block version whole, or as its difference from another one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Array = NDArray[Any]
OPTIMIZER = "#optimizer/"
"""How the names of arrays begin that an optimizer left with a block."""


@dataclass(frozen=True, kw_only=True)
class LayerState:
    """One version of one block.

    Numpy arrays travel through the object store without copies and arrive read-only. A dtype
    that numpy lacks travels as the unsigned integer of its width, named in `dtypes`.

    Attributes:
        block: The block's number.
        version: The visit that produced it; 0 for the initial weights.
        arrays: Weights and persistent buffers by name, C-contiguous, in the block's own order;
            then what an optimizer left, where that travels too.
        dtypes: Their torch dtypes by name, such as `float32` or `bfloat16`.
    """

    block: int
    version: int
    arrays: Mapping[str, Array]
    dtypes: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def checksum(self) -> str:
        """Return XXH3-128 over names, dtypes, shapes and bytes (hexadecimal, 32 digits).

        It finds damage, not malice: it is fast enough to be taken of everything that is stored.
        """
        return _digest(xxhash.xxh3_128(), [self])

    def is_finite(self) -> bool:
        """Return whether no floating-point array holds NaN or infinity."""
        return all(_is_finite(array, self.dtypes[name]) for name, array in self.arrays.items())


@dataclass(frozen=True, kw_only=True)
class BlockDelta:
    """One version of one block as its encoded difference from another version of it.

    Attributes:
        block: The block's number.
        version: The visit that produced it.
        base: The version that it is the difference from.
        codec: Name of the codec that made `parts`; see `layers.codec`.
        parts: The encoded tensors by name, each some named arrays.
        dtypes: The tensors' torch dtypes by name, such as `float32`.
    """

    block: int
    version: int
    base: int
    codec: str
    parts: Mapping[str, Mapping[str, Array]]
    dtypes: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for parts in self.parts.values() for array in parts.values())


def weights_sha256(states: Iterable[LayerState]) -> str:
    """Return SHA-256 over all blocks in order: names, dtypes, shapes, bytes (hexadecimal).

    Versions don't count: equal weights give an equal sum however they came about.
    """
    return _digest(hashlib.sha256(), states)


def _digest(hasher: Any, states: Iterable[LayerState]) -> str:  # noqa: ANN401 - two hash libraries
    for state in states:
        for name in sorted(state.arrays):
            array = state.arrays[name]
            hasher.update(f"{state.block}/{name}/{state.dtypes[name]}/{array.shape}".encode())
            hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return str(hasher.hexdigest())


def _is_finite(array: Array, dtype: str) -> bool:
    if dtype == "bfloat16":
        exponent = np.uint16(0x7F80)
        return not bool(((array & exponent) == exponent).any())
    if np.issubdtype(array.dtype, np.inexact):
        return bool(np.isfinite(array).all())
    return True
