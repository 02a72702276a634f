"""Teachers: what is kept of the model as it arrived, and how far the current one is from it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_snake.config import LossConfig

Kept = tuple[Tensor, ...]
"""What a teacher keeps of some rows: tensors with the rows as first axis."""


class Teacher(ABC):
    """Compares the current model with the one that arrived, on the same rows."""

    @abstractmethod
    def keep(self, hidden: Tensor, outputs: Tensor) -> Kept:
        """Return what to keep of the arriving model.

        Args:
            hidden: Input of the last block, (n, ...).
            outputs: Of the network, (n, ..., classes).
        """

    @abstractmethod
    def distance(self, hidden: Tensor, outputs: Tensor, kept: Kept, *, classes: bool) -> Tensor:
        """Return how far the current model is, a scalar.

        Args:
            hidden: As in `keep`, of the current model.
            outputs: Likewise.
            kept: What `keep` returned for these rows.
            classes: Whether outputs are logits.
        """


class Logits(Teacher):
    """All outputs: T^2 * KL between softened classes; without classes the mean squared error."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def keep(self, hidden: Tensor, outputs: Tensor) -> Kept:
        """Return the outputs."""
        return (outputs,)

    def distance(self, hidden: Tensor, outputs: Tensor, kept: Kept, *, classes: bool) -> Tensor:
        """Return the divergence or error from the kept outputs."""
        (arrived,) = kept
        if not classes:
            return F.mse_loss(outputs, arrived)
        return distillation(outputs, arrived, self._temperature)


class TopK(Teacher):
    """The k likeliest classes, and the rest as one more outcome: for outputs that are very wide.

    T^2 * KL over these k + 1 outcomes is a lower bound of that over all classes (data processing
    inequality), and equal to it where k is the number of classes. A row takes 8 * k bytes.
    """

    def __init__(self, k: int, temperature: float) -> None:
        self._k = k
        self._temperature = temperature

    def keep(self, hidden: Tensor, outputs: Tensor) -> Kept:
        """Return log-probabilities (n, ..., k), float32, and their classes, int32."""
        logs = F.log_softmax(outputs.float() / self._temperature, dim=-1)
        top = logs.topk(min(self._k, logs.shape[-1]), dim=-1)
        return top.values, top.indices.to(torch.int32)

    def distance(self, hidden: Tensor, outputs: Tensor, kept: Kept, *, classes: bool) -> Tensor:
        """Return the divergence from the kept outcomes.

        Raises:
            ValueError: If outputs are no logits.
        """
        if not classes:
            raise ValueError("the likeliest classes of outputs that are no logits")
        values, indices = kept
        logs = F.log_softmax(outputs.float() / self._temperature, dim=-1)
        own = logs.gather(-1, indices.long())
        return self._temperature**2 * F.kl_div(
            _with_rest(own).flatten(0, -2),
            _with_rest(values).flatten(0, -2),
            reduction="batchmean",
            log_target=True,
        )


class LastHidden(Teacher):
    """The input of the last block: mean squared error from it.

    It is zero, and holds nothing back, in a visit that trains no block before the last.
    """

    def keep(self, hidden: Tensor, outputs: Tensor) -> Kept:
        """Return the last block's input."""
        return (hidden,)

    def distance(self, hidden: Tensor, outputs: Tensor, kept: Kept, *, classes: bool) -> Tensor:
        """Return the error from the kept input; padding that `hidden` lacks counts as no error."""
        (arrived,) = kept
        whole, arrived = arrived.shape[1], arrived[:, : hidden.shape[1]]
        return F.mse_loss(hidden, arrived) * (hidden.shape[1] / whole)


def make_teacher(settings: LossConfig) -> Teacher:
    """Return the teacher that the settings name."""
    match settings.teacher:
        case "logits":
            return Logits(settings.temperature)
        case "top_k":
            return TopK(settings.teacher_top_k, settings.temperature)
        case "last_hidden":
            return LastHidden()


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(teacher / T) || softmax(outputs / T)), mean over rows.

    Hinton et al. (2015), arXiv:1503.02531. Both are logits (..., classes).
    """
    return temperature**2 * F.kl_div(
        _softened(outputs, temperature),
        _softened(teacher, temperature),
        reduction="batchmean",
        log_target=True,
    )


def _softened(logits: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities (rows, classes), in float32 at least.

    Autocast leaves them in bfloat16 on the CPU: too coarse for a difference that begins at 0.
    """
    wide = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(wide / temperature, dim=-1)


def _with_rest(logs: Tensor) -> Tensor:
    """Return log-probabilities (..., k) with that of all other classes behind them."""
    # Of all classes nothing is left over; a mass that rounds to zero or below counts as 1e-30.
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp(min=1e-30).log()
    return torch.cat([logs, rest], dim=-1)
