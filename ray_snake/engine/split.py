"""Training a network that is cut in two: the front where the rows are, the back elsewhere.

Split learning, Gupta and Raskar (2018), arXiv:1810.06060. Where neither side draws random numbers,
as dropout does, and gradients are not clipped, both together take the very steps that
`visit.train_visit` takes on the whole network: the same bits. Clipping is by each side's own norm.
The back makes a language model's scores all at once, where `engine.head` would make them piece by
piece: with a large vocabulary its bits differ by rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_snake.config import AugmentationConfig, TrainingConfig
from ray_snake.engine.augment import Augmentation
from ray_snake.engine.batch_result import BatchResult, judge_batch
from ray_snake.engine.norms import statistics_for
from ray_snake.engine.objective import Objective
from ray_snake.engine.samples import Samples, load_batch
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.suffix import span_runs
from ray_snake.engine.trained import TrainedBlocks
from ray_snake.engine.visit import (
    TrainingMeter,
    VisitControl,
    VisitOutcome,
    passes_over,
    visit_batches,
    visit_samples,
)
from ray_snake.planning.cost import total_steps
from ray_snake.planning.memory import span_of
from ray_snake.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the front gets back for a batch.

    Attributes:
        gradient: Of the loss by the front's outputs: their shape and dtype.
        batch: The batch's scalars.
    """

    gradient: Tensor
    batch: BatchResult


Exchange = Callable[[Tensor, Tensor], Reply]
"""(the front's outputs (n, ...), targets (n, ...)) -> what the back makes of them."""


def train_front(
    stack: BlockStack,
    samples: Samples,
    *,
    cut: int,
    exchange: Exchange,
    learning_rate: float,
    seed: int,
    training: TrainingConfig,
    augmentation: AugmentationConfig | None = None,
    fix_norms: bool = False,
    measure_update: bool = False,
    device: torch.device | None = None,
    control: VisitControl | None = None,
) -> VisitOutcome:
    """Train the blocks before the cut on a shard; losses and accuracy are what the back says.

    Args:
        stack: The network; its first `cut` blocks are loaded, on `device`, maybe read-only. On
            return they hold new, private tensors. The others are not looked at.
        samples: The shard.
        cut: Number of blocks.
        exchange: Has the back take its step on a batch.
        learning_rate: Of every step of the visit.
        seed: Decides the order of rows and what layers draw, such as dropout.
        training: Optimizer, batch size, epochs or steps, clipping.
        augmentation: How rows are changed at random; none: not at all.
        fix_norms: Whether batch norms keep the statistics that arrived.
        measure_update: Whether to take the norm of the front's change.
        device: Where to compute; the CPU by default.
        control: Told the progress; its `stop` ends the visit before the next step.

    Raises:
        VisitStoppedError: If `control.stop` was set.
        ModelError: If a block writes to its weights where it should only read them.
    """
    device = device or torch.device("cpu")
    control = control or VisitControl()
    samples = visit_samples(samples, training, seed)
    front = TrainedBlocks(
        stack,
        range(cut),
        training=training,
        learning_rate=learning_rate,
        keeps_arrived=measure_update,
        device=device,
    )
    augment = Augmentation(
        augmentation or AugmentationConfig(),
        rows=len(samples),
        passes=passes_over(len(samples), training),
        seed=seed,
    )
    control.steps = total_steps(len(samples), training)
    meter = TrainingMeter()
    sent = received = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        started = time.perf_counter()
        stack.freeze_all_but(range(cut), fix_norms=fix_norms)
        stack.runs = span_runs(stack, range(cut), span_of(training))
        for epoch, rows in visit_batches(len(samples), training, seed):
            if control.ends_early():
                break
            inputs, targets = load_batch(samples, rows, device)
            inputs = augment(inputs, rows, epoch % augment.draws)
            with statistics_for(stack, len(rows)):
                outputs = stack(inputs, 0, cut)
                reply = exchange(outputs.detach(), targets)
                front.step(outputs, reply.gradient)
            sent += outputs.nbytes + targets.nbytes
            received += reply.gradient.nbytes
            meter.add(epoch, reply.batch)
            control.step, control.loss = meter.steps, meter.loss
    stack.runs = {}
    seconds = time.perf_counter() - started
    finite, change = front.result(measure_update=measure_update)
    return VisitOutcome(
        samples=meter.samples,
        steps=meter.steps,
        loss=meter.loss,
        first_loss=meter.first_loss,
        accuracy=meter.accuracy,
        update_norm=change,
        finite=finite,
        train_seconds=seconds,
        sent_bytes=sent,
        received_bytes=received,
    )


class BackTrainer:
    """The blocks from the cut on during a visit: they train on what the front sends.

    Args:
        stack: The network; its blocks from `cut` on are loaded, on `device`, maybe read-only. They
            get new, private tensors. The others are not looked at.
        cut: Number of blocks of the front.
        learning_rate: Of every step.
        seed: The visit's; decides what layers draw, in another way than it does for the front.
        training: Optimizer and clipping.
        objective: The loss of a batch, with the label frequencies of the node that is visited.
        fix_norms: Whether batch norms keep the statistics that arrived.
        measure_update: Whether to take the norm of the back's change.
        device: Where to compute; the CPU by default.
    """

    def __init__(
        self,
        stack: BlockStack,
        *,
        cut: int,
        learning_rate: float,
        seed: int,
        training: TrainingConfig,
        objective: Objective,
        fix_norms: bool = False,
        measure_update: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._stack = stack
        self._cut = cut
        self._seed = seed
        self._objective = objective
        self._measure_update = measure_update
        self._device = device or torch.device("cpu")
        blocks = range(cut, len(stack))
        self._back = TrainedBlocks(
            stack,
            blocks,
            training=training,
            learning_rate=learning_rate,
            keeps_arrived=measure_update,
            device=self._device,
        )
        stack.freeze_all_but(blocks, fix_norms=fix_norms)
        self._steps = 0

    def step(self, features: Tensor, targets: Tensor) -> Reply:
        """Take one step on a batch.

        Args:
            features: The front's outputs, (n, ...), maybe read-only; any device.
            targets: (n, ...), likewise.
        """
        leaf = features.detach().to(self._device).requires_grad_()
        targets = targets.to(self._device)
        forked = [self._device] if self._device.type == "cuda" else []
        with statistics_for(self._stack, len(leaf)):
            with torch.random.fork_rng(devices=forked):
                torch.manual_seed(derive_seed(self._seed, "back", self._steps))
                # A copy, since a first layer may work in place: on a leaf it must not, nor on
                # memory that is only read.
                outputs = self._stack(leaf.clone(), self._cut)
            loss = self._objective(outputs, targets, None)
            self._back.step(loss)
        self._steps += 1
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        batch = judge_batch(loss.detach(), outputs.detach(), targets)
        return Reply(gradient=gradient.to(features.device), batch=batch)

    def result(self) -> tuple[bool, float | None]:
        """Return whether all is finite, and the L2 norm of the change if it was asked for."""
        return self._back.result(measure_update=self._measure_update)
