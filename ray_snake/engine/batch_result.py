"""The scalars of a batch: its loss and how many classes are right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ray_snake.engine.objective import correct, counted, is_classification


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """Scalars of one batch.

    Attributes:
        samples: Its rows.
        loss: Its loss, a mean over them.
        right: Classes that are right; 0 without classes.
        judged: Classes that there are; 0 without classes.
        counted: What the loss is a mean over.
    """

    samples: int
    loss: float
    right: int
    judged: int
    counted: int = 0


def joined(parts: Sequence[BatchResult]) -> BatchResult:
    """Return the scalars of a batch from those of its parts."""
    real = [one for one in parts if one.counted]
    total = sum(one.counted for one in real)
    return BatchResult(
        samples=sum(one.samples for one in parts),
        loss=sum(one.loss * one.counted for one in real) / total if total else math.nan,
        right=sum(one.right for one in parts),
        judged=sum(one.judged for one in parts),
        counted=total,
    )


def judge_batch(loss: Tensor, outputs: Tensor, targets: Tensor) -> BatchResult:
    """Return the scalars of a batch from its loss, the network's outputs and the targets."""
    right, judged = correct(outputs, targets) if is_classification(targets) else (0, 0)
    return BatchResult(
        samples=len(targets),
        loss=float(loss),
        right=right,
        judged=judged,
        counted=counted(targets),
    )
