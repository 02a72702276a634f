"""Work that is done again in the backward pass, so that it need keep no more than its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run_again(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Do some work now, and in the backward pass once more, to the same bits.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.

    Args:
        work: What to do. It draws no random numbers.
        x: Its input, which is all that is kept.
    """
    y: Tensor = checkpoint(work, x, use_reentrant=False, preserve_rng_state=False)
    return y


def flows_to(x: Tensor) -> bool:
    """Return whether a backward pass will ask for the gradient of `x`."""
    return torch.is_grad_enabled() and x.requires_grad
