"""Whether a network fits the data, found out with one row of zeros, block by block.

The meta device would need no computing at all, but running a layer on it makes torch import its
compiler, which takes longer than this does.
"""

from __future__ import annotations

import torch

from ray_snake.engine.stack import BlockStack
from ray_snake.errors import DataError


def output_shape(
    skeleton: BlockStack, sample_shape: tuple[int, ...], *, integer_inputs: bool, subject: str
) -> tuple[int, ...]:
    """Return the shape of the network's output for one sample, without the row axis.

    Args:
        skeleton: A stack on the meta device.
        sample_shape: Shape of one input row.
        integer_inputs: Whether inputs are int64 (such as token numbers) rather than float32.
        subject: The file that the rows come from, for the message.

    Raises:
        DataError: If the network can't take rows of that shape.
    """
    dtype = torch.int64 if integer_inputs else torch.float32
    x = torch.zeros((1, *sample_shape), dtype=dtype)
    skeleton.eval()
    for block, name in enumerate(skeleton.names):
        # Zeros of this size are pages that nobody wrote to, so a large block takes no memory.
        skeleton.load(
            block,
            {
                weight: torch.zeros_like(tensor, device="cpu")
                for weight, tensor in skeleton.tensors(block).items()
            },
            trainable=False,
        )
        try:
            with torch.no_grad():
                x = skeleton.blocks[block](x)
            if not isinstance(x, torch.Tensor):
                raise TypeError(f"it returns {type(x).__name__}, not one tensor")
        except Exception as error:
            raise DataError(
                subject,
                f"rows of shape {sample_shape} don't fit the model: block {name!r} says "
                f"{' '.join(str(error).split())[:160]}",
                "set model.options to the data's channels and size, or use the data it is made for",
            ) from None
        finally:
            skeleton.unload(block)
    return tuple(x.shape[1:])
