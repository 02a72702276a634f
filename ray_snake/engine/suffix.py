"""How frozen blocks run that gradients pass through: those behind a trained one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ray_snake.engine.lean import run_lean
from ray_snake.engine.stack import BlockRun


def suffix_runs(
    suffix: Literal["eager", "recompute", "lean"], blocks: int, trained: Collection[int]
) -> dict[int, BlockRun]:
    """Return how the frozen ones of some blocks run, by number: see `BlockStack.runs`.

    Args:
        suffix: The setting `training.suffix`.
        blocks: How many blocks the network has.
        trained: Numbers of those that train.
    """
    if suffix == "eager":
        return {}
    run = run_again if suffix == "recompute" else run_lean
    return {block: run for block in range(blocks) if block not in trained}


def run_again(block: nn.Module, x: Tensor) -> Tensor:
    """Run a frozen block so that it keeps its input alone, and runs again in the backward pass.

    It comes to the same bits (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv
    1604.06174).
    """
    y: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    return y
