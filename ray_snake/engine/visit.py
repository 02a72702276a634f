"""Where a span gets trained: one visit, a pure function of weights, rows and seed."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ray_snake.config import AugmentationConfig, TrainingConfig
from ray_snake.engine.augment import Augmentation
from ray_snake.engine.batch_result import BatchResult, joined, judge_batch
from ray_snake.engine.device import computing
from ray_snake.engine.features import Features
from ray_snake.engine.head import Head
from ray_snake.engine.norms import statistics_for
from ray_snake.engine.objective import Objective
from ray_snake.engine.padding import row_lengths
from ray_snake.engine.residency import FrozenBlocks
from ray_snake.engine.samples import Rows, Samples, drawn, pieces, shuffled
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.trained import Carried, TrainedBlocks
from ray_snake.planning.cost import batches_per_epoch, total_steps
from ray_snake.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class VisitOutcome:
    """What a visit reports beside the trained weights. Losses are means over samples.

    Attributes:
        samples: Samples that the optimizer saw.
        steps: Optimizer steps.
        loss: Loss over the last epoch.
        first_loss: Loss over the first epoch.
        accuracy: Training accuracy over the last epoch, in [0, 1]; none without classes.
        update_norm: L2 norm of the change to the trained weights; none if it was not asked for,
            inf if they are not finite.
        finite: Whether all trained weights and their buffers are finite numbers.
        train_seconds: Wall-clock time from the first batch, of the prefix or else of training,
            to the end of the last step.
        sent_bytes: What the node sent a server for it: activations and labels; 0 without a cut.
        received_bytes: What came back from there: gradients.
    """

    samples: int
    steps: int
    loss: float
    first_loss: float
    accuracy: float | None
    update_norm: float | None
    finite: bool
    train_seconds: float
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass
class VisitControl:
    """The way to look at a visit, and to stop it, from another thread."""

    step: int = 0
    steps: int = 0
    loss: float = math.nan
    stop: threading.Event = field(default_factory=threading.Event)
    finish: threading.Event = field(default_factory=threading.Event)

    def ends_early(self) -> bool:
        """Return whether the visit is to end with the steps that it made so far.

        Raises:
            VisitStoppedError: If it is to end with nothing.
        """
        if self.stop.is_set():
            raise VisitStoppedError
        return self.finish.is_set()


class VisitStoppedError(Exception):
    """The visit was told to stop; its weights are not to be used."""


def train_visit(
    stack: BlockStack,
    samples: Samples,
    *,
    trained: Sequence[int],
    learning_rate: float,
    seed: int,
    training: TrainingConfig,
    objective: Objective,
    augmentation: AugmentationConfig | None = None,
    fix_norms: bool = False,
    proximal: float = 0.0,
    carried: Carried | None = None,
    measure_update: bool = False,
    device: torch.device | None = None,
    control: VisitControl | None = None,
) -> VisitOutcome:
    """Train some blocks of a stack on a shard; all others stay as they are.

    Blocks before the first trained one are the prefix: computed without gradients, and once per
    visit where more than one pass over the shard is made. From the first trained block on,
    gradients flow through every block and reach the trained weights only. Frozen blocks are in
    evaluation mode, so their statistics never drift and their outputs never vary.

    Args:
        stack: The network, loaded, on `device`; its frozen blocks may lie in the CPU's memory
            where `residency.brings_in` says so. Its tensors may be read-only memory. On return its
            trained blocks hold new, private tensors, but for weights that no gradient reached;
            those that arrived were not written to.
        samples: The shard.
        trained: Numbers of the blocks to train.
        learning_rate: Of every step of the visit.
        seed: Decides the order of rows and what layers draw, such as dropout.
        training: Optimizer, batch size, epochs or steps, clipping.
        objective: The loss of a batch.
        augmentation: How rows are changed at random; none: not at all.
        fix_norms: Whether trained batch norms keep the statistics that arrived.
        proximal: Weight mu of mu/2 * |w - w0|^2, w0 the weights that arrived (FedProx, Li et al.
            2020, arXiv:1812.06127).
        carried: What the optimizer goes on with, by block, and on return what it kept of the
            trained ones; none: it starts anew.
        measure_update: Whether to take the norm of the change: one more pass over the weights
            before they can travel on.
        device: Where to compute; the CPU by default.
        control: Told the progress; its `stop` ends the visit before the next step, its `finish`
            too, but with what was trained so far.

    Raises:
        VisitStoppedError: If `control.stop` was set.
        ModelError: If a trained block writes to its weights where it should only read them.
    """
    device = device or torch.device("cpu")
    control = control or VisitControl()
    blocks = TrainedBlocks(
        stack,
        trained,
        training=training,
        learning_rate=learning_rate,
        keeps_arrived=measure_update or proximal > 0,
        carried=carried,
        device=device,
    )
    control.steps = total_steps(len(samples), training)
    samples = visit_samples(samples, training, seed)
    meter = TrainingMeter()
    frozen = FrozenBlocks(stack, trained, training=training, device=device)
    head = Head(stack, frozen, objective, computing=partial(computing, training.precision, device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        started = time.perf_counter()
        with frozen, ExitStack() as held:
            with computing(training.precision, device):
                features = Features(
                    stack,
                    samples,
                    first=min(trained),
                    training=training,
                    objective=objective,
                    augmentation=Augmentation(
                        augmentation or AugmentationConfig(),
                        rows=len(samples),
                        passes=passes_over(len(samples), training),
                        seed=seed,
                    ),
                    passes=passes_over(len(samples), training),
                    frozen=frozen,
                    head=head,
                    device=device,
                )
            held.callback(features.close)
            stack.freeze_all_but(trained, fix_norms=fix_norms)
            step = _Step(
                stack,
                features,
                blocks,
                training=training,
                objective=objective,
                head=head,
                proximal=proximal,
                device=device,
            )
            lengths = row_lengths(stack, samples) if training.group_lengths else None
            for epoch, rows in visit_batches(len(samples), training, seed, lengths):
                if control.ends_early():
                    break
                meter.add(epoch, step.take(rows, epoch))
                control.step, control.loss = meter.steps, meter.loss
    seconds = time.perf_counter() - started
    finite, change = blocks.result(measure_update=measure_update)
    if carried is not None:
        blocks.carry(carried)
    return VisitOutcome(
        samples=meter.samples,
        steps=meter.steps,
        loss=meter.loss,
        first_loss=meter.first_loss,
        accuracy=meter.accuracy,
        update_norm=change,
        finite=finite,
        train_seconds=seconds,
    )


def passes_over(rows: int, training: TrainingConfig) -> int:
    """Return the passes over a shard that a visit makes, the last of them maybe in part."""
    return math.ceil(total_steps(rows, training) / batches_per_epoch(rows, training.batch_size))


def visit_samples(samples: Samples, training: TrainingConfig, seed: int) -> Samples:
    """Return the rows that a visit trains on: in less than one pass, no more than it needs.

    Neither prefix nor teacher need see others.
    """
    if training.steps is None:
        return samples
    return drawn(samples, training.steps * training.batch_size, derive_seed(seed, "rows"))


def visit_batches(
    rows: int,
    training: TrainingConfig,
    seed: int,
    lengths: NDArray[np.int64] | None = None,
) -> Iterator[tuple[int, Rows]]:
    """Yield (epoch, row numbers) for every optimizer step of a visit; see `shuffled`."""
    every = (
        (epoch, batch)
        for epoch in itertools.count()
        for batch in shuffled(rows, training.batch_size, derive_seed(seed, "epoch", epoch), lengths)
    )
    return itertools.islice(every, total_steps(rows, training))


class _Step:
    """An optimizer step on a batch, which goes through the network in one or several parts.

    Args:
        stack: The network.
        features: What reaches the first trained block.
        blocks: The blocks that train.
        training: Size of the parts, and precision.
        objective: The loss of a part, a mean over what counts in it.
        head: Takes loss and last block together where scores are wide.
        proximal: Weight of the squared distance from the weights that arrived.
        device: Where to compute.
    """

    def __init__(
        self,
        stack: BlockStack,
        features: Features,
        blocks: TrainedBlocks,
        *,
        training: TrainingConfig,
        objective: Objective,
        head: Head,
        proximal: float,
        device: torch.device,
    ) -> None:
        self._stack = stack
        self._features = features
        self._blocks = blocks
        self._training = training
        self._size = micro_batch_size(training)
        self._objective = objective
        self._head = head
        self._proximal = proximal
        self._device = device

    def take(self, rows: Rows, epoch: int) -> BatchResult:
        """Take the step on some rows of an epoch."""
        parts = pieces(rows, self._size)
        # A part's loss is a mean over what counts in it, and a batch's over all of that.
        summed = len(parts) > 1
        results = []
        for part in parts:
            with statistics_for(self._stack, len(part)):
                results.append(self._backward(part, epoch, summed=summed))
        result = joined(results) if summed else results[0]
        weight = max(result.counted, 1) if summed else 1
        if self._proximal > 0:
            distance = self._proximal / 2 * self._blocks.squared_distance()
            self._blocks.accumulate(distance * weight)
        self._blocks.update(divisor=weight)
        return result

    def _backward(self, rows: Rows, epoch: int, *, summed: bool) -> BatchResult:
        """Backpropagate the loss of some rows; return their scalars.

        Args:
            rows: The rows.
            epoch: The epoch.
            summed: Whether gradients are of the sum over what counts in the rows, not of the mean.
        """
        last = self._stack.scoring
        with computing(self._training.precision, self._device):
            inputs, targets, kept = self._features.batch(rows, epoch)
            hidden = self._stack(inputs, self._features.first, last)
            splits = self._head.splits(hidden, targets)
            if not splits:
                outputs = self._stack(hidden, last)
                loss = self._objective(outputs, targets, kept, hidden)
        if splits:
            gradient, result = self._head.backward(hidden, targets, kept, summed=summed)
            if hidden.requires_grad:
                self._blocks.accumulate(hidden, gradient)
            return result
        result = judge_batch(loss.detach(), outputs.detach(), targets)
        # With many classes outputs are the largest of all activations.
        del outputs
        if not summed:
            self._blocks.accumulate(loss)
        elif result.counted:
            self._blocks.accumulate(loss * result.counted)
        return result


def micro_batch_size(training: TrainingConfig) -> int | None:
    """Return the rows that go through the network at once; none: a whole batch."""
    return None if training.micro_batch == "auto" else training.micro_batch


class TrainingMeter:
    """Sums over the first and the last epoch, weighted by samples."""

    def __init__(self) -> None:
        self.steps = 0
        self.samples = 0
        self.first_loss = math.nan
        self._epoch = 0
        self._start_epoch()

    def add(self, epoch: int, batch: BatchResult) -> None:
        """Take the next batch of an epoch (from 0)."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._start_epoch()
        self.steps += 1
        self.samples += batch.samples
        self._rows += batch.samples
        self._loss += batch.loss * batch.samples
        self._right += batch.right
        self._judged += batch.judged
        if epoch == 0:
            self.first_loss = self.loss

    @property
    def loss(self) -> float:
        """Mean loss over the epoch so far."""
        return self._loss / self._rows if self._rows else math.nan

    @property
    def accuracy(self) -> float | None:
        """Accuracy over the epoch so far, in [0, 1]; none without classes."""
        return self._right / self._judged if self._judged else None

    def _start_epoch(self) -> None:
        self._rows = 0
        self._loss = 0.0
        self._right = 0
        self._judged = 0
