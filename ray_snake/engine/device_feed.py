"""Frozen blocks on their way to a GPU: the next one is copied while this one computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BUFFERS = 2
ALIGNMENT = 16


class DeviceFeed:
    """Brings blocks from the host to a CUDA device, one ahead.

    A block goes through one of two pinned buffers, each as large as the largest block, and to the
    device on a stream of its own. So copying overlaps computing, and host memory stays at two
    blocks, however many there are. Which block is next follows from the last two: it is the
    neighbour in the direction in which they were asked for, forth in the forward pass, back in the
    backward pass.

    Args:
        blocks: Tensors in the host's memory by block and name, maybe read-only. Those that lie on
            the device already are handed out as they are.
        device: A CUDA device.
    """

    def __init__(self, blocks: Mapping[int, Mapping[str, Tensor]], device: torch.device) -> None:
        self._blocks = blocks
        self._device = device
        self._order = sorted(blocks)
        # torch has no types for it.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        largest = max(map(_padded_bytes, blocks.values()), default=0)
        self._buffers = [
            torch.empty(largest, dtype=torch.uint8, pin_memory=True) for _ in range(BUFFERS)
        ]
        self._free = [_event() for _ in range(BUFFERS)]
        self._next_buffer = 0
        self._ahead: tuple[int, dict[str, Tensor], torch.cuda.Event] | None = None
        self._last: int | None = None

    def fetch(self, block: int) -> dict[str, Tensor]:
        """Return a block's tensors on the device, and begin to copy the one after it."""
        if self._ahead is not None and self._ahead[0] == block:
            _, tensors, done = self._ahead
        else:
            tensors, done = self._copy(block)
        self._ahead = None
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for tensor in tensors.values():
            # Made on the other stream: its memory may be used anew only after this one is through.
            tensor.record_stream(current)
        following = expected_next(self._order, self._last, block)
        self._last = block
        if following is not None:
            self._ahead = (following, *self._copy(following))
        return tensors

    def _copy(self, block: int) -> tuple[dict[str, Tensor], torch.cuda.Event]:
        number = self._next_buffer
        self._next_buffer = (number + 1) % BUFFERS
        self._free[number].synchronize()
        made: dict[str, Tensor] = {}
        start = 0
        with torch.cuda.stream(self._stream):
            for name, tensor in self._blocks[block].items():
                if tensor.device == self._device:
                    made[name] = tensor
                    continue
                pinned = self._buffers[number][start : start + tensor.nbytes]
                pinned = pinned.view(tensor.dtype).view(tensor.shape)
                pinned.copy_(tensor)
                made[name] = pinned.to(self._device, non_blocking=True)
                start += padded(tensor.nbytes)
            self._free[number].record(self._stream)
        return made, self._free[number]


def expected_next(order: Sequence[int], last: int | None, block: int) -> int | None:
    """Return the block that will be asked for after this one; none if nothing points to one.

    Args:
        order: All blocks, ascending.
        last: The one that was asked for before; none: this is the first.
        block: The one that is asked for now.
    """
    if last is None or last == block:
        return None
    place = order.index(block) + (1 if block > last else -1)
    return order[place] if 0 <= place < len(order) else None


def padded(size: int) -> int:
    """Return a size in bytes at whose end a tensor of any dtype may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _event() -> torch.cuda.Event:
    # torch has no types for it.
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return event


def _padded_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(padded(one.nbytes) for one in tensors.values())
