"""Codecs: a block version as its encoded difference from one that the receiver already has.

What a visit produced is defined by what its encoding decodes to, so sender, receivers and storage
all have the same bits. Decoding multiplies and adds in separate, exactly rounded steps, so that
every kind of processor gives them too.

Matrices and higher tensors are encoded, one channel (entry of the first axis) at a time. Vectors,
such as biases and the statistics of norms, are small and sensitive, and travel as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ray_snake.config import CodecConfig
from ray_snake.layers.state import Array, BlockDelta
from ray_snake.layers.tensors import from_array, to_array
from ray_snake.seeds import derive_seed

Parts = Mapping[str, Array]
"""One encoded tensor: named arrays whose meaning is the codec's."""

WHOLE = "whole"
PIECE_NUMBERS = 2**18
"""Numbers worked on at a time: they stay in the processor's cache, and so does what they become."""


class Codec(ABC):
    """Encodes differences between matrices (channels, numbers per channel), in float32.

    Args:
        config: The settings.
        seed: Decides rounding.
    """

    name: ClassVar[str]

    def __init__(self, config: CodecConfig, seed: int = 0) -> None:
        self._config = config
        self._draws = np.random.Generator(np.random.PCG64(seed))

    def encode(self, matrix: Tensor, base: Tensor) -> Parts:
        """Return the parts that `decode` makes the difference of, as near as the codec can."""
        pieces = [
            self._encode(_difference(matrix[first:last], base[first:last]))
            for first, last in _pieces(matrix)
        ]
        return {name: np.concatenate([one[name] for one in pieces]) for name in pieces[0]}

    @abstractmethod
    def decode(self, parts: Parts, first: int, last: int, out: Tensor) -> None:
        """Write channels [first, last) of the difference to `out`."""

    @abstractmethod
    def nbytes(self, channels: int, numbers: int) -> int:
        """Return the bytes of an encoded matrix."""

    @abstractmethod
    def _encode(self, difference: Tensor) -> Parts:
        """Encode some channels, each by itself."""


class Bfloat16(Codec):
    """Differences as bfloat16: 8 bits of precision for each number."""

    name = "bf16"

    def decode(self, parts: Parts, first: int, last: int, out: Tensor) -> None:
        """Widen the values."""
        out.copy_(from_array(parts["values"][first:last], "bfloat16"))

    def nbytes(self, channels: int, numbers: int) -> int:
        """Two for each number."""
        return 2 * channels * numbers

    def _encode(self, difference: Tensor) -> Parts:
        return {"values": to_array(difference.to(torch.bfloat16))}


class _Integers(Codec):
    """Whole numbers from -`LARGEST` to `LARGEST` times a float32 scale for each channel.

    Rounding up or down is drawn so that the mean is kept. So a small change, which always rounds
    to nothing, gets through on average, and no sender has to remember what was lost: QSGD,
    Alistarh et al. (2017, arXiv:1610.02132), with a channel's largest magnitude for its norm.
    """

    LARGEST: ClassVar[int]

    def decode(self, parts: Parts, first: int, last: int, out: Tensor) -> None:
        """Multiply the values by their channel's scale."""
        out.copy_(self._unpack(parts["values"][first:last], out.shape[1]))
        out.mul_(torch.from_numpy(parts["scales"][first:last])[:, None])

    def _encode(self, difference: Tensor) -> Parts:
        scales = difference.abs().amax(dim=1).div_(self.LARGEST)
        # A channel that did not change has no scale, and needs none.
        divisors = torch.where(scales > 0, scales, torch.ones_like(scales))
        draws = self._draws.random(difference.numel(), dtype=np.float32)
        values = difference.div_(divisors[:, None])
        values = values.add_(torch.from_numpy(draws).view_as(values)).floor_()
        values.clamp_(-self.LARGEST, self.LARGEST)
        return {"values": self._pack(values), "scales": scales.numpy()}

    @abstractmethod
    def _pack(self, values: Tensor) -> Array:
        """Return whole numbers (channels, numbers) as they travel."""

    @abstractmethod
    def _unpack(self, packed: Array, numbers: int) -> Tensor:
        """Return what `_pack` was given."""


class Int8(_Integers):
    """One byte for each number."""

    name = "int8"
    LARGEST = 127

    def nbytes(self, channels: int, numbers: int) -> int:
        """One for each number, four for each channel."""
        return channels * (numbers + 4)

    def _pack(self, values: Tensor) -> Array:
        return to_array(values.to(torch.int8))

    def _unpack(self, packed: Array, numbers: int) -> Tensor:
        return torch.from_numpy(packed)


class Int4(_Integers):
    """Half a byte for each number; a channel of odd length has one half too many."""

    name = "int4"
    LARGEST = 7

    def nbytes(self, channels: int, numbers: int) -> int:
        """One for each two numbers, four for each channel."""
        return channels * (math.ceil(numbers / 2) + 4)

    def _pack(self, values: Tensor) -> Array:
        # Moved up by one more than the largest, so that all are positive.
        moved = values.add_(self.LARGEST + 1).to(torch.uint8)
        if moved.shape[1] % 2:
            moved = torch.nn.functional.pad(moved, (0, 1))
        return to_array(moved[:, 0::2] | (moved[:, 1::2] << 4))

    def _unpack(self, packed: Array, numbers: int) -> Tensor:
        both = torch.from_numpy(packed)
        halves = torch.stack((both & 15, both >> 4), dim=2).flatten(1)[:, :numbers]
        return halves.to(torch.float32).sub_(self.LARGEST + 1)


class TopK(Codec):
    """Only the largest differences of a tensor, as bfloat16 with their places.

    The others stay what they were in the base, so the next node starts without them, and makes up
    for them in its own training.
    """

    name = "topk"

    def encode(self, matrix: Tensor, base: Tensor) -> Parts:
        """Return the largest of all channels together."""
        return self._encode(_difference(matrix, base))

    def decode(self, parts: Parts, first: int, last: int, out: Tensor) -> None:
        """Put the values in their places among zeros."""
        numbers = out.shape[1]
        start, stop = np.searchsorted(parts["places"], (first * numbers, last * numbers))
        places = torch.from_numpy(parts["places"][start:stop]).long() - first * numbers
        values = from_array(parts["values"][start:stop], "bfloat16")
        out.zero_().view(-1)[places] = values.to(torch.float32)

    def nbytes(self, channels: int, numbers: int) -> int:
        """Six for each number kept."""
        return 6 * self._kept(channels * numbers)

    def _encode(self, difference: Tensor) -> Parts:
        flat = difference.flatten()
        places = flat.abs().topk(self._kept(len(flat)), sorted=False).indices.sort().values
        return {
            "places": to_array(places.to(torch.int32)),
            "values": to_array(flat[places].to(torch.bfloat16)),
        }

    def _kept(self, numbers: int) -> int:
        return math.ceil(self._config.top_k * numbers)


CODECS: dict[str, type[Codec]] = {one.name: one for one in (Bfloat16, Int8, Int4, TopK)}


def encode(
    block: int,
    version: int,
    tensors: Mapping[str, Tensor],
    *,
    base: Mapping[str, Tensor],
    base_version: int,
    config: CodecConfig,
    seed: int,
) -> BlockDelta:
    """Return a block version as its difference from another.

    Args:
        block: The block's number.
        version: The visit that produced it.
        tensors: Its weights and buffers by name, on the CPU.
        base: The same of the version that receivers have.
        base_version: That version.
        config: The codec and its settings.
        seed: Decides rounding.
    """
    parts: dict[str, Parts] = {}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if _is_encoded(tensor.shape, dtypes[name]):
            codec = CODECS[config.name](config, derive_seed(seed, "rounding", block, name))
            parts[name] = codec.encode(_matrix(tensor), _matrix(base[name]))
        else:
            parts[name] = {WHOLE: to_array(tensor)}
    return BlockDelta(
        block=block,
        version=version,
        base=base_version,
        codec=config.name,
        parts=parts,
        dtypes=dtypes,
    )


def decode(delta: BlockDelta, base: Mapping[str, Tensor], config: CodecConfig) -> dict[str, Tensor]:
    """Return the version that a difference stands for, as new tensors on the CPU.

    Args:
        delta: The difference.
        base: Weights and buffers of version `delta.base`, by name, on the CPU; only read.
        config: The codec's settings.
    """
    codec = CODECS[delta.codec](config)
    tensors: dict[str, Tensor] = {}
    for name, parts in delta.parts.items():
        if WHOLE in parts:
            tensors[name] = from_array(parts[WHOLE], delta.dtypes[name]).clone()
            continue
        before = base[name]
        tensors[name] = torch.empty_like(before)
        rows, new = _matrix(before), _matrix(tensors[name])
        for first, last in _pieces(rows):
            piece = torch.empty(rows[first:last].shape, dtype=torch.float32)
            codec.decode(parts, first, last, piece)
            new[first:last].copy_(piece.add_(rows[first:last]))
    return tensors


def encoded_nbytes(tensors: Mapping[str, Tensor], config: CodecConfig) -> int:
    """Return the bytes that a block with such tensors travels in; their values don't count."""
    total = 0
    for tensor in tensors.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if config.name == "none" or not _is_encoded(tensor.shape, dtype):
            total += tensor.numel() * tensor.element_size()
        else:
            rows = _matrix(tensor)
            total += CODECS[config.name](config).nbytes(*rows.shape)
    return total


def _is_encoded(shape: torch.Size, dtype: str) -> bool:
    return len(shape) > 1 and math.prod(shape) > 0 and "float" in dtype


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1)


def _difference(matrix: Tensor, base: Tensor) -> Tensor:
    return matrix.to(torch.float32) - base.to(torch.float32)


def _pieces(matrix: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the first and the last channel of pieces that cover a matrix."""
    step = max(1, PIECE_NUMBERS // matrix.shape[1])
    for first in range(0, len(matrix), step):
        yield first, min(first + step, len(matrix))
