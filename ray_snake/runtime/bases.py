"""The bases of blocks: weights that no visit changes, and that a node may have from elsewhere.

They are parts of a network beside its blocks' versions (`engine.stack`), and numbered like further
blocks: version 0 is all there is of each. A node that finds the model's own files on its machine
maps them; no byte travels, and all processes share the files' pages. Any other node pulls bases
once, like blocks. Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ray_snake.layers.state import LayerState

if TYPE_CHECKING:
    from ray_snake.engine.stack import BlockStack


def bases_at_hand(stack: BlockStack) -> Iterator[LayerState]:
    """Yield each base that can be mapped from the model's own files on this machine, as it is.

    Args:
        stack: The network without weights; it has none afterwards. Modules of it that have a method
            `map_base`, as those of `models.transformer_blocks` do, know their files.

    Raises:
        ModelError: If there are such files, and they can't be read or don't fit.
    """
    from ray_snake.layers.tensors import pack

    for part in range(len(stack), len(stack.owners)):
        block = stack.owners[part]
        mappers: list[Callable[[], bool]] = [
            mapper
            for module in stack.blocks[block].modules()
            if (mapper := getattr(module, "map_base", None)) is not None
        ]
        try:
            if mappers and all(mapper() for mapper in mappers):
                yield pack(part, 0, stack.part(part))
        finally:
            stack.unload(block)
