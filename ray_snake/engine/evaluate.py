"""Judging a network on rows: task loss, accuracy of classes, perplexity of language models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_snake.engine.device import computing
from ray_snake.engine.head import Scores, is_wide, pieces
from ray_snake.engine.objective import (
    TaskLoss,
    correct,
    cross_entropy,
    is_classification,
    is_language_modelling,
)
from ray_snake.engine.padding import row_lengths, without_padding
from ray_snake.engine.samples import Samples, in_order, load_batch
from ray_snake.engine.stack import BlockStack


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a network does on held-out rows.

    Attributes:
        samples: Rows judged.
        loss: Mean task loss over rows; of a language model, over all tokens that count.
        accuracy: Share of classes, or tokens, that are right, in [0, 1]; none without classes.
        perplexity: Of a language model the exponential of its cross-entropy in nats per token
            (Jelinek et al. 1977, doi:10.1121/1.2016299); none with another task or loss.
    """

    samples: int
    loss: float
    accuracy: float | None
    perplexity: float | None = None


@torch.no_grad()
def evaluate(
    stack: BlockStack,
    samples: Samples,
    *,
    task: TaskLoss,
    batch_size: int,
    precision: str = "fp32",
    device: torch.device | None = None,
) -> Evaluation:
    """Judge a loaded stack on all rows, in evaluation mode.

    Wide scores are made and judged some positions at a time (`engine.head`). Rows with padding are
    judged by length, so that little of it is computed.

    Args:
        stack: The network.
        samples: The rows.
        task: The loss.
        batch_size: Rows at once.
        precision: `fp32`, or `bf16` as in training.
        device: Where to compute; the CPU by default.
    """
    device = device or torch.device("cpu")
    stack.eval()
    total, weight, right, judged = 0.0, 0, 0, 0
    is_language_model = False
    last = stack.scoring
    scores = Scores(lambda x: stack(x, last))
    lengths = row_lengths(stack, samples)
    order = None if lengths is None else np.argsort(lengths, kind="stable")
    for places in in_order(len(samples), batch_size):
        rows = places if order is None else order[places]
        inputs, targets = load_batch(samples, rows, device)
        with computing(precision, device):
            hidden = stack(without_padding(stack, inputs), 0, last)
        parts: Iterable[tuple[Tensor, ...]] = [(hidden, targets)]
        if is_language_modelling(targets):
            is_language_model = not inputs.is_floating_point()
            # Means over positions can be put together again; of another task nobody knows.
            if task is cross_entropy and is_wide(stack, hidden):
                parts = pieces(stack, hidden, targets)
        for part, labels in parts:
            with computing(precision, device):
                outputs = scores(part)
            part_weight = len(labels)
            if is_classification(labels):
                part_right, part_weight = correct(outputs, labels)
                right, judged = right + part_right, judged + part_weight
            if part_weight:
                with computing(precision, device):
                    loss = float(task(outputs, labels))
                total += loss * part_weight
                weight += part_weight
            # Before the next ones are made.
            del outputs
    mean = total / weight if weight else math.nan
    return Evaluation(
        samples=len(samples),
        loss=mean,
        accuracy=right / judged if judged else None,
        perplexity=perplexity(mean) if is_language_model and task is cross_entropy else None,
    )


def perplexity(loss: float) -> float:
    """Return the perplexity of a cross-entropy in nats per token; inf where it overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
