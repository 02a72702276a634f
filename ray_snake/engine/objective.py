"""What a visit minimises: task loss, logit adjustment and distillation."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_snake.config import LossConfig
from ray_snake.engine.teacher import Kept, make_teacher
from ray_snake.extensions import find

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> mean loss, a scalar tensor."""


IGNORED = -100
"""Target of what does not count, such as the token after padding; `data.text` writes it."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (..., classes) against class numbers (...).

    Targets that are `IGNORED` do not count. With the tokens that follow each position as targets
    this is the loss of language modelling, in nats per token.
    """
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of outputs (n, ...) against targets of as many values."""
    return F.mse_loss(outputs, targets.reshape(outputs.shape))


def correct(outputs: Tensor, targets: Tensor) -> tuple[int, int]:
    """Return how many classes are right and how many count, for logits (..., classes)."""
    right = int((outputs.argmax(-1) == targets).sum())
    return right, targets.numel() if targets.ndim == 1 else int((targets != IGNORED).sum())


def counted(targets: Tensor) -> int:
    """Return how much a mean loss is the mean of: rows, or real positions of sequences."""
    if is_language_modelling(targets):
        return int((targets != IGNORED).sum())
    return len(targets)


def is_classification(targets: Tensor) -> bool:
    """Return whether targets are class numbers (an integer dtype)."""
    return not targets.is_floating_point()


def is_language_modelling(targets: Tensor) -> bool:
    """Return whether targets are class numbers of each position of a sequence."""
    return is_classification(targets) and targets.ndim > 1


def log_frequencies(counts: Tensor) -> Tensor:
    """Return log p_k for label counts (classes,), float32.

    A class the node has no rows of counts as one row in a thousandfold of the shard: low enough
    that its logit is hardly pushed, finite so that nothing overflows.
    """
    smoothed = counts.to(torch.float64).clamp(min=float(counts.sum()) * 1e-3 / len(counts))
    return torch.log(smoothed / smoothed.sum()).to(torch.float32)


class Objective:
    """(1-a) * task(outputs + tau * log p_k, targets) + a * distillation, a scalar per batch.

    Logit adjustment is Menon et al. (2021), arXiv:2007.07314, with the node's own frequencies
    (Zhang et al. 2022, arXiv:2209.00189): training logits carry the node's prior, so that the
    weights need not. Outputs that are no logits (a task with float targets) are neither adjusted
    nor softened: their distillation is the mean squared error to the teacher's outputs.

    Args:
        settings: Weights and temperature.
        label_counts: Rows of each class on this node, (classes,); none switches adjustment off.
        task: A user's own (outputs, targets) -> scalar in place of the settings' loss.

    Raises:
        ConfigError: If the settings' loss is not known.
    """

    def __init__(
        self,
        settings: LossConfig,
        *,
        label_counts: Tensor | None = None,
        task: TaskLoss | None = None,
    ) -> None:
        self._settings = settings
        self.task: TaskLoss = task or find("loss", settings.name)
        self.teacher = make_teacher(settings)
        self._prior: Tensor | None = None
        if label_counts is not None and settings.logit_adjustment > 0:
            self._prior = settings.logit_adjustment * log_frequencies(label_counts)

    def weighted(self, distillation: float | None) -> Objective:
        """Return this loss with another weight of distillation; none: this one."""
        if distillation is None:
            return self
        other = copy.copy(self)
        other._settings = self._settings.model_copy(update={"distillation": distillation})
        return other

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss compares with the model as it arrived."""
        return self._settings.distillation > 0

    def __call__(
        self, outputs: Tensor, targets: Tensor, kept: Kept | None, hidden: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a batch.

        Args:
            outputs: Of the network.
            targets: The rows' targets.
            kept: What the teacher kept of these rows; none: nothing is distilled.
            hidden: Input of the last block, for teachers that look at it.
        """
        classes = is_classification(targets)
        adjusted = outputs
        if classes and self._prior is not None:
            self._prior = self._prior.to(outputs.device)
            adjusted = outputs + self._prior
        loss = self.task(adjusted, targets)
        if kept is None:
            return loss
        weight = self._settings.distillation
        hidden = outputs if hidden is None else hidden
        if is_language_modelling(targets):
            real = targets != IGNORED
            if not bool(real.all()):
                outputs, hidden = outputs[real], hidden[real]
                kept = tuple(one[real] for one in kept)
        distance = self.teacher.distance(hidden, outputs, kept, classes=classes)
        return (1 - weight) * loss + weight * distance
