"""Local optimizers, over torch's functional forms of SGD and AdamW.

torch's optimizer classes import its compiler when the first one is made: over 1.6 CPU seconds in
every node process, for nothing that a visit uses. The functional forms are the same arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from ray_snake.config import TrainingConfig

PIECE = 2**18


class LocalOptimizer(ABC):
    """Changes some weights by their gradients.

    The weights may arrive as memory that must not be written to, so a weight's first step goes to
    new memory. It is made in pieces, each copied and stepped on while it is in the processor's
    cache: the bits of a copy and a step in place, for one pass over memory in place of two.

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
        self._states: dict[int, list[Tensor]] = {}
        self._carried: dict[int, list[Tensor]] = {}

    def take_up(self, index: int, state: Sequence[Tensor]) -> None:
        """Go on with what another optimizer of the kind kept for a weight; it is not written to."""
        self._carried[index] = list(state)

    def state(self, index: int) -> list[Tensor]:
        """Return what is kept for a weight: nothing before its first step."""
        return self._states.get(index, self._carried.get(index, []))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step. Weights that got no gradient stay as, and where, they are."""
        gradients = {
            index: gradient
            for index, weight in enumerate(self._weights)
            if (gradient := weight.grad) is not None
        }
        for index in gradients.keys() & self._carried.keys():
            self._states[index] = [one.clone() for one in self._carried.pop(index)]
            self._weights[index].data = self._weights[index].clone()
        again = [index for index in gradients if index in self._states]
        for index in gradients.keys() - self._states.keys():
            self._states[index] = self._step_to_new_memory(self._weights[index], gradients[index])
        if again:
            self._update(
                [self._weights[index] for index in again],
                [gradients[index] for index in again],
                [self._states[index] for index in again],
            )

    def _step_to_new_memory(self, weight: Tensor, gradient: Tensor) -> list[Tensor]:
        stepped = torch.empty_like(weight)
        state = self._new_state(weight)
        for before, after, *rest in _pieces(weight, stepped, gradient, *state):
            after.copy_(before)
            self._begin(after, *rest)
        weight.data = stepped
        return [*state, *self._counters(weight)]

    @abstractmethod
    def _new_state(self, weight: Tensor) -> list[Tensor]:
        """Return uninitialised tensors, shaped like a weight, for what is kept between steps."""

    def _counters(self, weight: Tensor) -> list[Tensor]:
        """Return what is kept of a weight besides, as it is after one step."""
        del weight
        return []

    @abstractmethod
    def _begin(self, weight: Tensor, gradient: Tensor, *state: Tensor) -> None:
        """Take the first step of a piece of a weight, in place; fill its piece of the state."""

    @abstractmethod
    def _update(
        self, weights: list[Tensor], gradients: list[Tensor], states: list[list[Tensor]]
    ) -> None:
        """Take a later step of some weights, in place."""


class Sgd(LocalOptimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`."""

    def _new_state(self, weight: Tensor) -> list[Tensor]:
        return [torch.empty_like(weight)] if self._training.momentum else []

    def _begin(self, weight: Tensor, gradient: Tensor, *state: Tensor) -> None:
        momentum: list[Tensor | None] = [None]
        self._sgd([weight], [gradient], momentum)
        for kept, made in zip(state, momentum, strict=False):
            kept.copy_(made if made is not None else gradient)

    def _update(
        self, weights: list[Tensor], gradients: list[Tensor], states: list[list[Tensor]]
    ) -> None:
        self._sgd(weights, gradients, [state[0] if state else None for state in states])

    def _sgd(
        self, weights: list[Tensor], gradients: list[Tensor], momentum: list[Tensor | None]
    ) -> None:
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


class AdamW(LocalOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW`."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def _new_state(self, weight: Tensor) -> list[Tensor]:
        return [torch.empty_like(weight), torch.empty_like(weight)]

    def _counters(self, weight: Tensor) -> list[Tensor]:
        # Where the weight is: on a GPU torch's kernel reads them there.
        return [torch.ones((), dtype=torch.float32, device=weight.device)]

    def _begin(self, weight: Tensor, gradient: Tensor, *state: Tensor) -> None:
        for one in state:
            one.zero_()
        steps = torch.zeros((), dtype=torch.float32, device=weight.device)
        self._update([weight], [gradient], [[*state, steps]])

    def _update(
        self, weights: list[Tensor], gradients: list[Tensor], states: list[list[Tensor]]
    ) -> None:
        averages, squares, steps = (list(kind) for kind in zip(*states, strict=True))
        adamw(
            weights,
            gradients,
            averages,
            squares,
            [],
            steps,
            # One pass over memory in place of a dozen: torch's own kernel for it.
            fused=True,
            amsgrad=False,
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            lr=self._learning_rate,
            weight_decay=self._training.weight_decay,
            eps=self.EPSILON,
            maximize=False,
        )


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same pieces of several tensors of one shape, as views."""
    if tensors[0].device.type != "cpu" or not all(one.is_contiguous() for one in tensors):
        yield tensors
        return
    flat = [one.view(-1) for one in tensors]
    for start in range(0, tensors[0].numel(), PIECE):
        yield tuple(one[start : start + PIECE] for one in flat)


OPTIMIZERS: dict[str, type[LocalOptimizer]] = {"sgd": Sgd, "adamw": AdamW}


def make_optimizer(
    weights: Sequence[Tensor], training: TrainingConfig, learning_rate: float
) -> LocalOptimizer:
    """Return a fresh optimizer over the trained weights."""
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
