"""Local optimizers, over torch's functional forms of SGD and AdamW.

torch's optimizer classes import its compiler when the first one is made: over 1.6 CPU seconds in
every node process, for nothing that a visit uses. The functional forms are the same arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from ray_snake.config import TrainingConfig


class LocalOptimizer(ABC):
    """Changes some weights in place, by their gradients.

    Args:
        weights: The weights, each a leaf that collects gradients.
        training: Momentum and weight decay.
        learning_rate: Of every step.
    """

    def __init__(
        self, weights: Sequence[Tensor], training: TrainingConfig, learning_rate: float
    ) -> None:
        self._weights = list(weights)
        self._training = training
        self._learning_rate = learning_rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step. Weights that got no gradient stay as they are."""
        used = [index for index, weight in enumerate(self._weights) if weight.grad is not None]
        gradients = [grad for weight in self._weights if (grad := weight.grad) is not None]
        self._update(used, [self._weights[index] for index in used], gradients)

    @abstractmethod
    def _update(self, used: Sequence[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Apply the gradients of the weights numbered `used`."""


class Sgd(LocalOptimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`."""

    def __init__(
        self, weights: Sequence[Tensor], training: TrainingConfig, learning_rate: float
    ) -> None:
        super().__init__(weights, training, learning_rate)
        self._momentum: list[Tensor | None] = [None] * len(self._weights)

    def _update(self, used: Sequence[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        momentum = [self._momentum[index] for index in used]
        sgd(
            weights,
            gradients,
            momentum,
            weight_decay=self._training.weight_decay,
            momentum=self._training.momentum,
            lr=self._learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for index, buffer in zip(used, momentum, strict=True):
            self._momentum[index] = buffer


class AdamW(LocalOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(
        self, weights: Sequence[Tensor], training: TrainingConfig, learning_rate: float
    ) -> None:
        super().__init__(weights, training, learning_rate)
        self._averages = [torch.zeros_like(weight) for weight in self._weights]
        self._squares = [torch.zeros_like(weight) for weight in self._weights]
        self._steps = [torch.zeros((), dtype=torch.float32) for _ in self._weights]

    def _update(self, used: Sequence[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        adamw(
            weights,
            gradients,
            [self._averages[index] for index in used],
            [self._squares[index] for index in used],
            [],
            [self._steps[index] for index in used],
            amsgrad=False,
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            lr=self._learning_rate,
            weight_decay=self._training.weight_decay,
            eps=self.EPSILON,
            maximize=False,
        )


OPTIMIZERS: dict[str, type[LocalOptimizer]] = {"sgd": Sgd, "adamw": AdamW}


def make_optimizer(
    weights: Sequence[Tensor], training: TrainingConfig, learning_rate: float
) -> LocalOptimizer:
    """Return a fresh optimizer over the trained weights; its state ends with the visit."""
    return OPTIMIZERS[training.optimizer](weights, training, learning_rate)


def keeps_finite(weights: Sequence[Tensor], training: TrainingConfig, learning_rate: float) -> bool:
    """Return whether finite weights stay finite for sure as long as every gradient is finite.

    With clipping a step is bounded, and decay at a rate of at most 1 only shrinks the weights: they
    then stay clear of the largest number by many orders of magnitude.
    """
    if training.clip_norm is None or learning_rate * training.weight_decay > 1:
        return False
    longest = learning_rate * max(training.clip_norm, 10.0)
    return all(longest < 1e-20 * torch.finfo(weight.dtype).max for weight in weights)
