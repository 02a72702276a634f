"""What each block of a network costs, measured on one row; and how fast this machine is."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ray_snake.engine.stack import BlockStack
from ray_snake.planning.cost import BlockCost


def profile_blocks(
    skeleton: BlockStack, sample_shape: tuple[int, ...], *, integer_inputs: bool, batch: int
) -> tuple[list[BlockCost], float]:
    """Run a network of zeros forward, block by block; nothing is trained.

    Args:
        skeleton: A stack on the meta device.
        sample_shape: Shape of one input.
        integer_inputs: Whether inputs are int64 rather than float32.
        batch: Rows to run at once, for the speed.

    Returns:
        Each block's cost for one sample, and this machine's floating-point operations per second
        on this network with torch's current number of threads.
    """
    dtype = torch.int64 if integer_inputs else torch.float32
    x = torch.zeros((batch, *sample_shape), dtype=dtype)
    costs = []
    seconds = 0.0
    flops = 0.0
    skeleton.eval()
    for index, name in enumerate(skeleton.names):
        weights = {
            weight: torch.zeros_like(tensor, device="cpu")
            for weight, tensor in skeleton.tensors(index).items()
        }
        skeleton.load(index, weights, trainable=False)
        block = skeleton.blocks[index]
        block(x)
        started = time.perf_counter()
        with torch.no_grad():
            block(x)
        seconds += time.perf_counter() - started
        saved = _SavedBytes([*block.parameters()])
        block.requires_grad_(True)
        counter = FlopCounterMode(display=False)
        with counter, saved_tensors_hooks(saved.pack, _unpack):
            y = block(x if integer_inputs and index == 0 else x.detach().requires_grad_())
        flops += counter.get_total_flops()
        costs.append(
            BlockCost(
                name=name,
                weight_bytes=sum(one.numel() * one.element_size() for one in weights.values()),
                forward_flops=counter.get_total_flops() / batch,
                saved_bytes=saved.total // batch,
                input_bytes=x.numel() * x.element_size() // batch,
                output_bytes=y.numel() * y.element_size() // batch,
            )
        )
        x = y.detach()
        skeleton.unload(index)
    return costs, flops / max(seconds, 1e-9)


class _SavedBytes:
    """Counts what autograd keeps, each piece of memory once and the weights not at all."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.total = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in weights}

    def pack(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in self._seen:
            self._seen.add(memory.data_ptr())
            self.total += memory.nbytes()
        return tensor


def _unpack(tensor: Tensor) -> Tensor:
    return tensor
