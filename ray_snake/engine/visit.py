"""Where a span gets trained: one visit, a pure function of weights, rows and seed."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ray_snake.config import AugmentationConfig, TrainingConfig
from ray_snake.engine.augment import Augmentation
from ray_snake.engine.cache import PrefixCache
from ray_snake.engine.objective import Objective, correct, is_classification
from ray_snake.engine.samples import (
    Rows,
    Samples,
    drawn,
    in_order,
    load_batch,
    shuffled,
)
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.suffix import suffix_runs
from ray_snake.engine.teacher import Kept
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
        stack: The network, loaded, on `device`; its tensors may be read-only memory. On return
            its trained blocks hold new, private tensors, but for weights that no gradient
            reached; those that arrived were not written to.
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
    last = len(stack) - 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        started = time.perf_counter()
        with computing(training, device):
            features = _Features(
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
                device=device,
            )
        stack.freeze_all_but(trained, fix_norms=fix_norms)
        stack.runs = suffix_runs(stack, trained, training.suffix)
        try:
            for epoch, rows in visit_batches(len(samples), training, seed):
                if control.ends_early():
                    break
                with computing(training, device):
                    inputs, targets, kept = features.batch(rows, epoch)
                    hidden = stack(inputs, features.first, last)
                    outputs = stack(hidden, last)
                    loss = objective(outputs, targets, kept, hidden)
                if proximal > 0:
                    loss = loss + proximal / 2 * blocks.squared_distance()
                blocks.step(loss)
                meter.add(epoch, judge_batch(loss.detach(), outputs.detach(), targets))
                control.step, control.loss = meter.steps, meter.loss
        finally:
            features.close()
            stack.runs = {}
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


def computing(training: TrainingConfig, device: torch.device) -> torch.autocast:
    """Return the context of forward passes: with `bf16` torch chooses what can bear it.

    Weights, gradients and the optimizer's state stay fp32. It is entered anew for each step: within
    one, casts of weights are kept.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16")


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


def visit_batches(rows: int, training: TrainingConfig, seed: int) -> Iterator[tuple[int, Rows]]:
    """Yield (epoch, row numbers) for every optimizer step of a visit."""
    every = (
        (epoch, batch)
        for epoch in itertools.count()
        for batch in shuffled(rows, training.batch_size, derive_seed(seed, "epoch", epoch))
    )
    return itertools.islice(every, total_steps(rows, training))


class _Features:
    """What reaches the first trained block, batch by batch, with targets and what a teacher kept.

    With several passes over the rows ahead, the prefix's outputs and the targets are kept from
    the first one; what the teacher kept is always at hand. There is one entry for each row as it is
    in each draw of the augmentation.
    """

    def __init__(
        self,
        stack: BlockStack,
        samples: Samples,
        *,
        first: int,
        training: TrainingConfig,
        objective: Objective,
        augmentation: Augmentation,
        device: torch.device,
    ) -> None:
        self.first = first
        self._stack = stack
        self._samples = samples
        self._augmentation = augmentation
        self._device = device
        self._cache: PrefixCache | None = None
        self._targets: Tensor | None = None
        self._objective = objective
        self._kept: Kept | None = None
        again = passes_over(len(samples), training) > augmentation.draws
        if first > 0 and (objective.needs_teacher or again):
            entries = len(samples) * augmentation.draws
            self._cache = PrefixCache(entries, limit_bytes=training.cache_bytes)
        if self._cache is not None or objective.needs_teacher:
            self._first_pass(training.batch_size)

    def batch(self, rows: Rows, epoch: int) -> tuple[Tensor, Tensor, Kept | None]:
        """Return (features, targets, what the teacher kept or none) of the rows in an epoch."""
        draw = epoch % self._augmentation.draws
        entries = draw * len(self._samples) + rows
        kept = None
        if self._kept is not None:
            index = torch.from_numpy(entries).to(self._device)
            kept = tuple(one[index] for one in self._kept)
        if self._cache is not None and self._targets is not None:
            targets = self._targets[torch.from_numpy(rows).to(self._device)]
            return self._cache.gather(entries, self._device), targets, kept
        inputs, targets = self._load(rows, draw)
        with torch.no_grad():
            features = self._stack(inputs, 0, self.first)
        return features, targets, kept

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _load(self, rows: Rows, draw: int) -> tuple[Tensor, Tensor]:
        inputs, targets = load_batch(self._samples, rows, self._device)
        return self._augmentation(inputs, rows, draw), targets

    @torch.no_grad()
    def _first_pass(self, batch_size: int) -> None:
        self._stack.eval()
        last = len(self._stack) - 1
        targets, kept = [], []
        for draw in range(self._augmentation.draws):
            for rows in in_order(len(self._samples), batch_size):
                inputs, batch_targets = self._load(rows, draw)
                features = self._stack(inputs, 0, self.first)
                if draw == 0:
                    targets.append(batch_targets)
                if self._cache is not None:
                    self._cache.append(features)
                if self._objective.needs_teacher:
                    hidden = self._stack(features, self.first, last)
                    outputs = self._stack(hidden, last)
                    kept.append(self._objective.teacher.keep(hidden, outputs))
        self._targets = torch.cat(targets)
        if kept:
            self._kept = tuple(torch.cat(parts) for parts in zip(*kept, strict=True))


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """Scalars of one batch.

    Attributes:
        samples: Its rows.
        loss: Its loss, a mean over them.
        right: Classes that are right; 0 without classes.
        judged: Classes that there are; 0 without classes.
    """

    samples: int
    loss: float
    right: int
    judged: int


def judge_batch(loss: Tensor, outputs: Tensor, targets: Tensor) -> BatchResult:
    """Return the scalars of a batch from its loss, the network's outputs and the targets."""
    right, judged = correct(outputs, targets) if is_classification(targets) else (0, 0)
    return BatchResult(samples=len(targets), loss=float(loss), right=right, judged=judged)


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
