"""Whether a network fits the data, found out with one row of zeros, block by block.

The meta device would need no computing at all, but running a layer on it makes torch import its
compiler, which takes longer than this does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ray_snake.engine.stack import BlockStack
from ray_snake.errors import DataError


def zeros_like(tensor: Tensor) -> Tensor:
    """Return zeros on the CPU in place of a weight that holds nothing.

    Zeros of some size are pages that nobody wrote to, so a large block takes no memory.
    """
    return torch.zeros_like(tensor, device="cpu")


@contextmanager
def made_up(
    skeleton: BlockStack, block: int, make: Callable[[Tensor], Tensor] = zeros_like
) -> Iterator[nn.Module]:
    """Return a block of a stack without weights, ready to compute, for as long as the context.

    Args:
        skeleton: A stack on the meta device.
        block: The block's number.
        make: Returns a weight or buffer on the CPU in place of one on the meta device.
    """
    needed = [*skeleton.reads[block], block]
    try:
        for one in needed:
            tensors = {name: make(tensor) for name, tensor in skeleton.tensors(one).items()}
            skeleton.load(one, tensors, trainable=False)
        yield skeleton.blocks[block]
    finally:
        for one in needed:
            skeleton.unload(one)


def output_shape(
    skeleton: BlockStack,
    sample_shape: tuple[int, ...],
    *,
    integer_inputs: bool,
    subject: str,
    largest: int = 0,
) -> tuple[int, ...]:
    """Return the shape of the network's output for one sample, without the row axis.

    Args:
        skeleton: A stack on the meta device.
        sample_shape: Shape of one input row.
        integer_inputs: Whether inputs are int64 (such as token numbers) rather than float32.
        subject: The file that the rows come from, for the message.
        largest: The largest of such inputs, which an embedding has to know.

    Raises:
        DataError: If the network can't take rows of that shape, or so large a number.
    """
    dtype = torch.int64 if integer_inputs else torch.float32
    x = torch.full((1, *sample_shape), largest if integer_inputs else 0, dtype=dtype)
    skeleton.eval()
    for block, name in enumerate(skeleton.names):
        try:
            with torch.no_grad(), made_up(skeleton, block) as module:
                x = module(x)
            if not isinstance(x, torch.Tensor):
                raise TypeError(f"it returns {type(x).__name__}, not one tensor")
        except Exception as error:
            if integer_inputs and block == 0 and isinstance(error, IndexError):
                raise DataError(
                    subject,
                    f"holds the number {largest}, which block {name!r} does not know ({error})",
                    "give the model more tokens, or write the data with the model's own tokenizer",
                ) from None
            raise DataError(
                subject,
                f"rows of shape {sample_shape} don't fit the model: block {name!r} says "
                f"{' '.join(str(error).split())[:160]}",
                "set model.options to the data's channels and size, or use the data it is made for",
            ) from None
    return tuple(x.shape[1:])
