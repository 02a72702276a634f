"""Judging a network on rows: the task loss and, for classes, the accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ray_snake.engine.objective import TaskLoss, correct, is_classification
from ray_snake.engine.samples import Samples, in_order, load_batch
from ray_snake.engine.stack import BlockStack


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a network does on held-out rows.

    Attributes:
        samples: Rows judged.
        loss: Mean task loss over rows.
        accuracy: Share of classes that are right, in [0, 1]; none without classes.
    """

    samples: int
    loss: float
    accuracy: float | None


@torch.no_grad()
def evaluate(
    stack: BlockStack,
    samples: Samples,
    *,
    task: TaskLoss,
    batch_size: int,
    device: torch.device | None = None,
) -> Evaluation:
    """Judge a loaded stack on all rows, in evaluation mode."""
    device = device or torch.device("cpu")
    stack.eval()
    total, right, judged = 0.0, 0, 0
    for rows in in_order(len(samples), batch_size):
        inputs, targets = load_batch(samples, rows, device)
        outputs = stack(inputs)
        total += float(task(outputs, targets)) * len(rows)
        if is_classification(targets):
            counts = correct(outputs, targets)
            right, judged = right + counts[0], judged + counts[1]
    count = len(samples)
    return Evaluation(
        samples=count,
        loss=total / count if count else math.nan,
        accuracy=right / judged if judged else None,
    )
